-- standing: read one user's rank and score and the rows around it, all of one moment.
-- WHY       rank, score and neighbours of different moments would contradict each other
-- KEYS      1 board zset · 2 meta hash
-- ARGV      1 user · 2 around int, rows on each side
-- ASSUMES   none
-- RETURNS   epoch, seq, total, index from 0 or -1 for a user without a score, packed score or -1, index of the first row, rows: alternating user and packed score
-- OUTCOMES  none
-- REFUSES   UNINIT no epoch · BADARG arguments
-- WRITES    nothing
-- EMITS     nothing
-- COST      O(log N + around)

local board, meta = KEYS[1], KEYS[2]
local user, around = ARGV[1], tonumber(ARGV[2])
if not around or around < 0 then
  return redis.error_reply('BADARG around is a whole number from 0')
end
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end

local facts = redis.call('HMGET', meta, 'epoch', 'seq')
local epoch, seq = whole(facts[1]), whole(facts[2])
if not epoch or epoch < 1 or not seq then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
local total = redis.call('ZCARD', board)
local index = redis.call('ZREVRANK', board, user)
if not index then
  return { epoch, seq, total, -1, -1, 0, {} }
end
local packed = redis.call('ZSCORE', board, user)
-- The window keeps its width at the ends: rows missing on one side are added on the other.
local first = math.max(0, math.min(index - around, total - 1 - 2 * around))
local rows = redis.call('ZRANGE', board, string.format('%.0f', first),
  string.format('%.0f', first + 2 * around), 'REV', 'WITHSCORES')
return { epoch, seq, total, index, tonumber(packed), first, rows }
