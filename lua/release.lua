-- release: let a partition go on with what it holds, and drop what was loaded beside it.
-- WHY       a reshard that gives up before its layout is recorded has changed nothing of the old partitions
-- KEYS      1 meta hash · 2 shadow zset
-- ARGV      1 token of the fence · 2 state open or archived
-- ASSUMES   the caller has exclusive access to the partition: its token is compared, and every other fence replaces it · board, dedup window and bans are those of the partition's layout
-- RETURNS   1
-- OUTCOMES  none
-- REFUSES   FENCE another token holds the fence · UNINIT no epoch or layout · BADARG arguments
-- WRITES    meta shadow
-- EMITS     nothing
-- COST      O(1), the shadow board is freed in the background

local meta, shadow = KEYS[1], KEYS[2]
local token, state = ARGV[1], ARGV[2]
if not token or (state ~= 'open' and state ~= 'archived') then
  return redis.error_reply('BADARG a token and a state are needed')
end
local facts = redis.call('HMGET', meta, 'fence', 'epoch', 'layout')
if facts[1] ~= token then
  return redis.error_reply('FENCE another operator holds the fence')
end
if not facts[2] or not facts[3] then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
redis.call('UNLINK', shadow) -- whatever type it has
redis.call('HSET', meta, 'state', state)
redis.call('HDEL', meta, 'fence')
return 1
