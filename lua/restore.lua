-- restore: add a page of scores to the shadow board.
-- WHY       concurrent operators, or one that lost its fence, must not mix their pages
-- KEYS      1 meta hash · 2 shadow zset
-- ARGV      1 token of the fence · 2 first 0 or 1: the first page, which removes the pages of an interrupted run · 3+ packed score int, user
-- ASSUMES   the caller has exclusive access to the partition: its token is compared, and every other fence replaces it
-- RETURNS   members in the shadow board
-- OUTCOMES  none
-- REFUSES   FENCE another token holds the fence · BADARG arguments
-- WRITES    shadow
-- EMITS     nothing
-- COST      O(n log N), n scores of the page ≤ 1000

local meta, shadow = KEYS[1], KEYS[2]
local token, first = ARGV[1], ARGV[2] == '1'
local values = #ARGV - 2
if values % 2 ~= 0 or values > 2000 then
  return redis.error_reply('BADARG scores and users come in pairs, at most 1000')
end
for i = 3, #ARGV, 2 do
  if not string.match(ARGV[i], '^%d+$') then
    return redis.error_reply('BADARG a packed score is a whole number')
  end
end
if redis.call('HGET', meta, 'fence') ~= token then
  return redis.error_reply('FENCE another operator holds the fence')
end
if first then
  redis.call('UNLINK', shadow) -- whatever type it has
else
  redis.call('ZCARD', shadow)
end
if values > 0 then
  redis.call('ZADD', shadow, unpack(ARGV, 3))
end
return redis.call('ZCARD', shadow)
