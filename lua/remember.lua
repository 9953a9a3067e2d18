-- remember: add actions of the ledger to one shard of the dedup window.
-- WHY       after a reseed a repeat must still get its first answer (I5)
-- KEYS      1 meta hash · 2 seen hash; or gained hash, of which a reshard moves the fields
-- ARGV      1 token of the fence · 2 first 0 or 1: empty the hash before · 3 expiry int, seconds since 1970 · 4+ digest, record delta:score:seq, with the operators best and last followed by :value; or user, points, and /ends, end of the window
-- ASSUMES   the caller has exclusive access to the partition: its token is compared, and every other fence replaces it
-- RETURNS   actions in the hash
-- OUTCOMES  none
-- REFUSES   FENCE another token holds the fence · BADARG arguments
-- WRITES    seen, or gained
-- EMITS     nothing
-- COST      O(n), n actions of the page ≤ 1000

local meta, seen = KEYS[1], KEYS[2]
local token, first, expiry = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])
local values = #ARGV - 3
if not expiry or values % 2 ~= 0 or values > 2000 then
  return redis.error_reply('BADARG digests and records come in pairs, at most 1000')
end
if redis.call('HGET', meta, 'fence') ~= token then
  return redis.error_reply('FENCE another operator holds the fence')
end
if first then
  redis.call('UNLINK', seen) -- whatever type it has
else
  redis.call('HLEN', seen)
end
if values > 0 then
  redis.call('HSET', seen, unpack(ARGV, 4))
  redis.call('EXPIREAT', seen, string.format('%.0f', expiry))
end
return redis.call('HLEN', seen)
