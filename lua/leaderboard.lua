-- leaderboard: read a window of the ranking with total, epoch, seq and times, all of one moment.
-- WHY       rows and position must be of one moment, or a viewer could take old rows for new ones
-- KEYS      1 board zset · 2 meta hash
-- ARGV      1 offset int · 2 limit int, 0 for none
-- ASSUMES   none
-- RETURNS   epoch, seq, total, rows: alternating user and packed score, best first, time of the last change of the watched top in ms or 0, Redis's time in ms; both times are 0 without the right to TIME; season id:start:end, empty for a board without seasons; layout
-- OUTCOMES  none
-- REFUSES   UNINIT no epoch · BADARG arguments
-- WRITES    nothing
-- EMITS     nothing
-- COST      O(log N + limit)

local board, meta = KEYS[1], KEYS[2]
local offset, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
if not offset or not limit or offset < 0 or limit < 0 then
  return redis.error_reply('BADARG offset and limit are whole numbers from 0')
end
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end

local facts = redis.call('HMGET', meta, 'epoch', 'seq', 'changed', 'season', 'layout')
local epoch, seq = whole(facts[1]), whole(facts[2])
if not epoch or epoch < 1 or not seq then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
local total = redis.call('ZCARD', board)
local rows = {}
if limit > 0 then
  rows = redis.call('ZRANGE', board, string.format('%.0f', offset),
    string.format('%.0f', offset + limit - 1), 'REV', 'WITHSCORES')
end
-- Users of an older version's ACL may not call TIME: then both times are unknown.
local time = redis.pcall('TIME')
if time.err then
  return { epoch, seq, total, rows, 0, 0, facts[4] or '', facts[5] or '' }
end
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
return { epoch, seq, total, rows, whole(facts[3]) or 0, now, facts[4] or '', facts[5] or '' }
