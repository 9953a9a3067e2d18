-- configure: set the visibility, the state and the limits of a partition that is loaded.
-- WHY       they may change while the board is used; a later epoch gets them from PostgreSQL by open
-- KEYS      1 meta hash · 2 changes channel
-- ARGV      1 public 0 or 1 · 2 state open or archived · 3 limits per action:per window:seconds, 0 for none; empty for no limits
-- ASSUMES   the caller has exclusive access to the partition, so that no reseed opens it with older values afterwards
-- RETURNS   1 if something changed, else 0
-- OUTCOMES  none
-- REFUSES   UNINIT no epoch or seq · FENCED a reseed was interrupted: the next one sets them · BADARG arguments
-- WRITES    meta
-- EMITS     to changes, if something changed: epoch:seq:board, so that readers read the properties of the board again
-- COST      O(1)

local meta, changes = KEYS[1], KEYS[2]
local public, wanted, limits = ARGV[1], ARGV[2], ARGV[3]
if (public ~= '0' and public ~= '1') or (wanted ~= 'open' and wanted ~= 'archived')
    or not limits or (limits ~= '' and not string.match(limits, '^%d+:%d+:%d+$')) then
  return redis.error_reply('BADARG public, state or limits')
end
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end

local facts = redis.call('HMGET', meta, 'epoch', 'seq', 'state', 'public', 'limits')
local epoch, seq = whole(facts[1]), whole(facts[2])
if not epoch or epoch < 1 or not seq then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
if facts[3] ~= 'open' and facts[3] ~= 'archived' then
  return redis.error_reply('FENCED the partition accepts no actions')
end
if facts[3] == wanted and facts[4] == public and (facts[5] or '') == limits then
  return 0
end
redis.call('HSET', meta, 'state', wanted, 'public', public)
if limits ~= '' then
  redis.call('HSET', meta, 'limits', limits)
else
  redis.call('HDEL', meta, 'limits')
end
redis.call('PUBLISH', changes, string.format('%.0f:%.0f:board', epoch, seq))
return 1
