-- fence: stop accepting actions, in the name of a token.
-- WHY       nothing may be accepted while history is being put back (I9)
-- KEYS      1 meta hash
-- ARGV      1 token, a word that nobody else uses · 2 epoch int the caller saw, 0 for none · 3 fence the caller saw, empty for none · 4 committed seq int, the highest the caller knows of, or -1 for any
-- BELIEFS   the caller alone may mend the partition; it saw the partition since that was sure, and any other who may mend it changes epoch or fence
-- RETURNS   epoch or 0, seq or 0: where the partition stood
-- OUTCOMES  none
-- REFUSES   STALE the partition is not as the caller saw it · BADARG arguments
-- WRITES    meta
-- EMITS     nothing
-- COST      O(1)

local meta = KEYS[1]
local token, seen_epoch, seen_fence, seen_committed = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
if not token or not string.match(token, '^[!-~]+$') or not seen_epoch or not seen_fence or not seen_committed then
  return redis.error_reply('BADARG a token of printable ASCII, epoch, fence and committed are needed')
end
-- A field that is no whole number counts as missing: tonumber alone would take '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end

local facts = redis.call('HMGET', meta, 'epoch', 'seq', 'fence', 'committed')
local epoch, seq = whole(facts[1]) or 0, whole(facts[2])
local fence = string.match(facts[3] or '', '^[!-~]+$') or ''
local known_epoch, known = string.match(facts[4] or '', '^(%d+):(%d+)$')
if seen_epoch ~= (seq and epoch or 0) or seen_fence ~= fence
    or (seen_committed >= 0 and whole(known_epoch) == epoch and (whole(known) or 0) > seen_committed) then
  return redis.error_reply('STALE another epoch, fence or committed position')
end
redis.call('HSET', meta, 'state', 'fenced', 'fence', token)
return { epoch, seq or 0 }
