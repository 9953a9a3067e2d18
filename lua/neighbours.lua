-- neighbours: count the members above a packed score of another partition, and read the nearest.
-- WHY       a user's rank on a board of several partitions is the sum of such counts
-- KEYS      1 board zset · 2 meta hash
-- ARGV      1 packed score int · 2 wins 0 or 1: an equal packed score here ranks above · 3 around int
-- ASSUMES   the packed score is still the user's: not checked; after a change between two reads the rank is that of either moment
-- RETURNS   epoch, seq, total, count above, rows above nearest first, rows below nearest first: alternating user and packed score
-- OUTCOMES  none
-- REFUSES   UNINIT no epoch · BADARG arguments
-- WRITES    nothing
-- EMITS     nothing
-- COST      O(log N + around)

local board, meta = KEYS[1], KEYS[2]
local packed, wins, around = tonumber(ARGV[1]), ARGV[2] == '1', tonumber(ARGV[3])
if not packed or not around or around < 0 then
  return redis.error_reply('BADARG packed and around are whole numbers')
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
local bound = string.format('%.0f', packed)
local above = wins and bound or ('(' .. bound)
local below = wins and ('(' .. bound) or bound
local total = redis.call('ZCARD', board)
local higher = redis.call('ZCOUNT', board, above, '+inf')
local nearest_above, nearest_below = {}, {}
if around > 0 then
  nearest_above = redis.call('ZRANGE', board, above, '+inf', 'BYSCORE', 'LIMIT', 0, around, 'WITHSCORES')
  nearest_below = redis.call('ZRANGE', board, below, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, around, 'WITHSCORES')
end
return { epoch, seq, total, higher, nearest_above, nearest_below }
