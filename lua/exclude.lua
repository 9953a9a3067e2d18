-- exclude: add users to the banned users of a partition that is being reseeded.
-- WHY       a banned user must stay off the board after a reseed, and must not score on it
-- KEYS      1 meta hash · 2 banned hash
-- ARGV      1 token of the fence · 2 first 0 or 1: the first page, which removes the users of before · 3+ user, score int or -1 for none
-- ASSUMES   the caller has exclusive access to the partition: its token is compared, and every other fence replaces it
-- RETURNS   users in the hash
-- OUTCOMES  none
-- REFUSES   FENCE another token holds the fence · BADARG arguments
-- WRITES    banned
-- EMITS     nothing
-- COST      O(n), n users of the page ≤ 1000

local meta, banned = KEYS[1], KEYS[2]
local token, first = ARGV[1], ARGV[2] == '1'
local values = #ARGV - 2
if values % 2 ~= 0 or values > 2000 then
  return redis.error_reply('BADARG users and scores come in pairs, at most 1000')
end
for i = 4, #ARGV, 2 do
  if not string.match(ARGV[i], '^%-?%d+$') then
    return redis.error_reply('BADARG a score is a whole number')
  end
end
if redis.call('HGET', meta, 'fence') ~= token then
  return redis.error_reply('FENCE another operator holds the fence')
end
if first then
  redis.call('UNLINK', banned) -- whatever type it has
else
  redis.call('HLEN', banned)
end
if values > 0 then
  redis.call('HSET', banned, unpack(ARGV, 3))
end
return redis.call('HLEN', banned)
