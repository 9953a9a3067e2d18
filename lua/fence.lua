-- fence: stop accepting actions, in the name of a token.
-- WHY       no action may be accepted while the partition is rebuilt (I9)
-- KEYS      1 meta hash
-- ARGV      1 token, unique · 2 epoch int the caller read, 0 for none · 3 fence the caller read, empty for none · 4 committed seq int, the highest the caller knows of, or -1 for any
-- ASSUMES   the caller has exclusive access to the partition and read it while it had; any other caller with access changes epoch or fence
-- RETURNS   epoch or 0, seq or 0: the position before
-- OUTCOMES  none
-- REFUSES   STALE the partition has changed since the caller read it · BADARG arguments
-- WRITES    meta
-- EMITS     nothing
-- COST      O(1)

local meta = KEYS[1]
local token, seen_epoch, seen_fence, seen_committed = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
if not token or not string.match(token, '^[!-~]+$') or not seen_epoch or not seen_fence or not seen_committed then
  return redis.error_reply('BADARG a token of printable ASCII, epoch, fence and committed are needed')
end
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end

local facts = redis.call('HMGET', meta, 'epoch', 'seq', 'fence', 'committed')
local epoch, seq = whole(facts[1]) or 0, whole(facts[2])
local fence = string.match(facts[3] or '', '^[!-~]+$') or ''
local known_epoch, known = string.match((facts[4] or '') .. ':', '^(%d+):(%d+):')
if seen_epoch ~= (seq and epoch or 0) or seen_fence ~= fence
    or (seen_committed >= 0 and whole(known_epoch) == epoch and (whole(known) or 0) > seen_committed) then
  return redis.error_reply('STALE another epoch, fence or committed position')
end
redis.call('HSET', meta, 'state', 'fenced', 'fence', token)
return { epoch, seq or 0 }
