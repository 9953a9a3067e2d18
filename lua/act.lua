-- act: change the score of one user by an administrator's act, exactly once.
-- WHY       only here the score of this moment is known, and so whether the new one is within the board's bounds
-- KEYS      1 board zset · 2 events stream · 3 meta hash · 4 changes channel · 5 banned hash · 6 seen hash of the next generation · 7 seen hash of the generation · 8 seen hash of the previous generation
-- ARGV      1 generation int from which the caller built its seen keys · 2 layout · 3 cap int · 4 user · 5 action · 6 digest · 7 delta int · 8 lowest score int · 9 highest score int · 10 score int from which the delta was computed, -1 for any · 11 season id in which it was decided, empty for a board without seasons
-- ASSUMES   the keys match time and layout of the board: both are compared
-- RETURNS   outcome, delta, score, seq; moved: the score is another one than the delta was computed from, closed: another season has begun since the act was decided; then nothing was changed
-- OUTCOMES  applied replayed moved range closed
-- REFUSES   UNINIT no epoch, seq or layout · FENCED not accepting · ARCHIVED the board is archived · SEASON the season has ended, the second word is id:start:end:now in s · STALE other layout, or a generation later than the next · LAG the stream is full · BADARG arguments
-- WRITES    board events meta banned seen
-- EMITS     epoch:seq to changes, unless the user is banned · to sb:active the name of the stream, if it was empty before
-- COST      O(log N), N members

local SCORE_MAX = 2147483647
local SLOT_COUNT = 2097152
local ACTIVE = 'sb:active'

-- unpack
local board, events, meta, changes, banned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local following, current, previous = KEYS[6], KEYS[7], KEYS[8]
local generation, layout, cap = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local user, action, digest, delta = ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local lowest, highest, from = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local decided_in = ARGV[11] or ''

-- validate
if not generation or not cap or not user or user == '' or not action or not digest or #digest ~= 16
    or not delta or delta % 1 ~= 0 or delta == 0 or math.abs(delta) > SCORE_MAX
    or not lowest or lowest < 0 or not highest or highest > SCORE_MAX or not from then
  return redis.error_reply('BADARG generation, cap, user, action, digest, delta or bounds')
end

-- read
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end
local facts = redis.call('HMGET', meta, 'epoch', 'state', 'seq', 'layout', 'season')
local epoch, seq = whole(facts[1]), whole(facts[3])
local seen_seconds = whole(string.match(facts[4] or '', '^%d+:(%d+):%d+'))
local order = string.match(facts[4] or '', '^%d+:%d+:%d+:%l+:(%l+):')
if not epoch or epoch < 1 or not seq or not seen_seconds or seen_seconds < 1 then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
if facts[2] ~= 'open' then
  if facts[2] == 'archived' then
    return redis.error_reply('ARCHIVED the board accepts no more actions')
  end
  return redis.error_reply('FENCED the partition accepts no actions')
end
if facts[4] ~= layout then
  return redis.error_reply('STALE the board has another layout')
end
local now = tonumber(redis.call('TIME')[1])
local ahead = math.floor(now / seen_seconds) - generation
if ahead ~= 0 and ahead ~= 1 then
  return redis.error_reply('STALE another generation began')
end
local stored = redis.call('HGET', following, digest) or redis.call('HGET', current, digest)
  or redis.call('HGET', previous, digest)
local seen = ahead == 1 and following or current
local packed = tonumber(redis.call('ZSCORE', board, user))
local kept = redis.call('HGET', banned, user)
local is_banned = kept and not packed
local waiting = redis.call('XLEN', events)
local outcome = 'applied'
local season = string.match(layout, '@') and facts[5] or nil
local season_id, ends = string.match(season or '', '^([0-9A-Z%-]+):%d+:(%d+)$')

-- decide
local first_delta, first_score, first_seq = string.match((stored or '') .. ':', '^(-?%d+):(%d+):(%d+):')
if whole(first_score) and whole(first_seq) then
  outcome = 'replayed'
  return { outcome, tonumber(first_delta), whole(first_score), whole(first_seq) }
end
if season and now >= (whole(ends) or 0) then
  return redis.error_reply(string.format('SEASON %s:%.0f has ended', season, now))
end
if (season_id or '') ~= decided_in then
  outcome = 'closed'
  return { outcome, delta, 0, 0 }
end
-- A packed score is level × SLOT_COUNT + slot. The level is the score, or SCORE_MAX - score if the lowest score
-- is the best.
local function level_of(score) -- and back
  return order == 'lowest' and SCORE_MAX - score or score
end
local held = packed and level_of(math.floor(packed / SLOT_COUNT)) or whole(kept or nil) or 0
held = math.max(0, math.min(held, SCORE_MAX))
if from >= 0 and held ~= from then
  outcome = 'moved'
  return { outcome, delta, held, 0 }
end
local score = held + delta
if score < lowest or score > highest then
  outcome = 'range'
  return { outcome, delta, held, 0 }
end
if waiting >= cap then
  return redis.error_reply('LAG too many actions wait for PostgreSQL')
end
local floor = level_of(score) * SLOT_COUNT
-- As an arrival: the slot below the lowest one in use.
local last = redis.call('ZRANGE', board, string.format('%.0f', floor), string.format('%.0f', floor + SLOT_COUNT - 1),
  'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
local slot = math.max((last[2] and math.floor(tonumber(last[2])) - floor or SLOT_COUNT) - 1, 0)

-- write
local delta_text, score_text = string.format('%.0f', delta), string.format('%.0f', score)
local seq_text = string.format('%.0f', seq + 1)
local record = { 'q', seq_text, 'u', user, 'a', action, 'd', delta_text, 's', score_text,
  'e', string.format('%.0f', epoch), 'p', season }
redis.call('XADD', events, '*', unpack(record, 1, season and 14 or 12))
redis.call('HSET', seen, digest, delta_text .. ':' .. score_text .. ':' .. seq_text)
redis.call('EXPIRE', seen, 2 * seen_seconds + 60, 'NX')
redis.call('HSET', meta, 'seq', seq_text)
if is_banned then
  redis.call('HSET', banned, user, score_text)
else
  redis.call('ZADD', board, string.format('%.0f', floor + slot), user)
end

-- emit
if not is_banned then
  redis.call('PUBLISH', changes, string.format('%.0f:%.0f', epoch, seq + 1))
end
if waiting == 0 then -- pcall: the user may lack access to the channel
  redis.pcall('PUBLISH', ACTIVE, events)
end
return { outcome, delta, score, seq + 1 }
