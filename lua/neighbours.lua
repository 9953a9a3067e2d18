-- neighbours: count the members above each of up to 64 packed scores of another partition, and read the nearest.
-- WHY       a user's rank on a board of several partitions is the sum of such counts
-- KEYS      1 board zset · 2 meta hash
-- ARGV      1+ packed score int, wins 0 or 1: an equal packed score here ranks above, around int
-- ASSUMES   the packed score is still the user's: not checked; after a change between two reads the rank is that of either moment
-- RETURNS   epoch, seq, total, per packed score in order: count above, rows above nearest first, rows below nearest first: alternating user and packed score; layout
-- OUTCOMES  none
-- REFUSES   UNINIT no epoch · BADARG arguments
-- WRITES    nothing
-- EMITS     nothing
-- COST      O(n (log N + around)), n packed scores ≤ 64, N members

local board, meta = KEYS[1], KEYS[2]
local count = #ARGV / 3
if count < 1 or count > 64 or count % 1 ~= 0 then
  return redis.error_reply('BADARG 1 to 64 packed scores, each with wins and around')
end
local reads = {}
for i = 1, count do
  local packed, around = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i])
  if not packed or not around or around < 0 then
    return redis.error_reply('BADARG packed and around are whole numbers')
  end
  reads[i] = { bound = string.format('%.0f', packed), wins = ARGV[3 * i - 1] == '1', around = around }
end
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end

local facts = redis.call('HMGET', meta, 'epoch', 'seq', 'layout')
local epoch, seq = whole(facts[1]), whole(facts[2])
if not epoch or epoch < 1 or not seq then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
local total = redis.call('ZCARD', board)
local near = {}
for i, read in ipairs(reads) do
  local above = read.wins and read.bound or ('(' .. read.bound)
  local below = read.wins and ('(' .. read.bound) or read.bound
  local nearest_above, nearest_below = {}, {}
  if read.around > 0 then
    nearest_above = redis.call('ZRANGE', board, above, '+inf', 'BYSCORE', 'LIMIT', 0, read.around, 'WITHSCORES')
    nearest_below = redis.call('ZRANGE', board, below, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, read.around, 'WITHSCORES')
  end
  near[i] = { redis.call('ZCOUNT', board, above, '+inf'), nearest_above, nearest_below }
end
return { epoch, seq, total, near, facts[3] or '' }
