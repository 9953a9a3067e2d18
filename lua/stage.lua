-- stage: give a token the right to load a partition beside what it holds; an open one goes on accepting actions.
-- WHY       a reshard loads the new partitions while the old ones are open, and two loads must not mix their pages
-- KEYS      1 meta hash
-- ARGV      1 token, unique · 2 epoch int the caller read, 0 for none · 3 fence the caller read, empty for none
-- ASSUMES   the caller has exclusive access to the partition and read it while it had; any other caller with access changes epoch or fence
-- RETURNS   1
-- OUTCOMES  none
-- REFUSES   STALE the partition has changed since the caller read it · BADARG arguments
-- WRITES    meta
-- EMITS     nothing
-- COST      O(1)

local meta = KEYS[1]
local token, seen_epoch, seen_fence = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if not token or not string.match(token, '^[!-~]+$') or not seen_epoch or not seen_fence then
  return redis.error_reply('BADARG a token of printable ASCII, epoch and fence are needed')
end
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end

local facts = redis.call('HMGET', meta, 'epoch', 'seq', 'fence')
local epoch = whole(facts[2]) and whole(facts[1]) or 0
if seen_epoch ~= epoch or seen_fence ~= (string.match(facts[3] or '', '^[!-~]+$') or '') then
  return redis.error_reply('STALE another epoch or fence')
end
redis.call('HSET', meta, 'fence', token)
return 1
