-- standing: read ranks and scores of up to 64 users and the rows around each, all of one moment.
-- WHY       rank, score and neighbours of different moments would contradict each other
-- KEYS      1 board zset · 2 meta hash
-- ARGV      1+ user, around int: rows on each side
-- ASSUMES   none
-- RETURNS   epoch, seq, total, per user in order: index from 0 or -1 for a user without a score, packed score or -1, index of the first row, rows: alternating user and packed score; no rows if around is 0; layout
-- OUTCOMES  none
-- REFUSES   UNINIT no epoch · BADARG arguments
-- WRITES    nothing
-- EMITS     nothing
-- COST      O(n (log N + around)), n users ≤ 64, N members

local board, meta = KEYS[1], KEYS[2]
local count = #ARGV / 2
if count < 1 or count > 64 or count % 1 ~= 0 then
  return redis.error_reply('BADARG 1 to 64 users, each with a number of rows')
end
local arounds = {}
for i = 1, count do
  local around = tonumber(ARGV[2 * i])
  if not around or around < 0 then
    return redis.error_reply('BADARG around is a whole number from 0')
  end
  arounds[i] = around
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
local places = {}
for i, around in ipairs(arounds) do
  local user = ARGV[2 * i - 1]
  local index = redis.call('ZREVRANK', board, user)
  if index then
    local first, rows = 0, {}
    if around > 0 then
      -- The window keeps its width at the ends: rows missing on one side are added on the other.
      first = math.max(0, math.min(index - around, total - 1 - 2 * around))
      rows = redis.call('ZRANGE', board, string.format('%.0f', first),
        string.format('%.0f', first + 2 * around), 'REV', 'WITHSCORES')
    end
    places[i] = { index, tonumber(redis.call('ZSCORE', board, user)), first, rows }
  else
    places[i] = { -1, -1, 0, {} }
  end
end
return { epoch, seq, total, places, facts[3] or '' }
