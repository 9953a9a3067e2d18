-- submit: apply up to 64 actions of one partition, each exactly once.
-- WHY       score, stream record and dedup record of an action change together or not at all (I4)
-- KEYS      1 board zset · 2 events stream · 3 meta hash · 4 changes channel · 5 banned hash · 6 gained hash · 7+ seen hash
-- ARGV      1 generation int from which the caller built its seen keys · 2 layout with rules · 3 cap int · 4+ user, action, digest, delta int or with the operators best and last the value, stated 0 or 1, request id, pair int: which pair of seen keys; then, only if some actions are traced or state their season: number of the action and its traceparent, for each of them, joined by spaces; after it, only if some state their season: number of the action and id of the season, in the same form
-- ASSUMES   the keys match time and layout of the board: both are compared
-- RETURNS   per action, in order: outcome, delta, score, seq, committed 0 or 1: this change is known to be in PostgreSQL; delta 0 if the action changed nothing, then seq is that of the last change before it; of a held action the delta that it would have had; busy, range, banned and closed (another season than the stated one is current) repeat the argument in its place
-- OUTCOMES  applied replayed held held_before conflict busy range banned closed
-- REFUSES   UNINIT no epoch, seq or layout · FENCED not accepting · ARCHIVED the board is archived · LAYOUT other layout or a retired partition, the second word is the right layout · SEASON the season has ended, the second word is id:start:end:now in s · BUCKET other generation, the second word is Redis's time in s · BADARG arguments
-- WRITES    board events meta gained seen
-- EMITS     to changes, if the watched top can differ: up to 8 traceparents of actions that changed it, if they are traced; then epoch:seq · to sb:active the name of the stream, if it was empty before
-- COST      O(n log N), n actions ≤ 64, N members; where a score runs out of slots, 16 moves more per action, and 1024 per call

local WATCHED_TOP = 10
local SCORE_MAX = 2147483647
local SLOT_COUNT = 2097152
local SWEEP_BELOW = SLOT_COUNT / 4
local MOVES = 16
local SWEEPS_MORE = 64
local FIELDS_PER_ACTION = 7
local TRACES_MAX = 8
local ACTIVE = 'sb:active'
local ENDS = '/ends' -- not the id of a user

-- unpack
local board, events, meta, changes, banned, gained = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local generation, layout, cap = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local extras = (#ARGV - 3) % FIELDS_PER_ACTION -- 1: traces; 2: traces and seasons
local count = (#ARGV - 3 - extras) / FIELDS_PER_ACTION
local pairs_count = (#KEYS - 6) / 2

-- validate
if not generation or not cap or extras > 2 or count < 1 or count > 64 or count % 1 ~= 0 or pairs_count % 1 ~= 0 then
  return redis.error_reply('BADARG counts of keys and arguments do not fit')
end
local given, pair_of, traces, season_of, has_zero = {}, {}, {}, {}, false
for i = 1, count do
  local at = 3 + (i - 1) * FIELDS_PER_ACTION
  local number, pair = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 7])
  if not number or number % 1 ~= 0 or math.abs(number) > SCORE_MAX or #ARGV[at + 3] ~= 16
      or not pair or pair % 1 ~= 0 or pair < 1 or pair > pairs_count then
    return redis.error_reply('BADARG action ' .. i)
  end
  given[i], pair_of[i] = number, pair
  has_zero = has_zero or number == 0
end
if extras > 0 and ARGV[#ARGV + 1 - extras] ~= '' then
  local rest = string.gsub(ARGV[#ARGV + 1 - extras] .. ' ', '(%d+) (%x%x%-%x+%-%x+%-%x%x) ', function(number, traceparent)
    number = tonumber(number)
    if given[number] and #traceparent == 55 then
      traces[number] = traceparent
      return ''
    end
  end)
  if rest ~= '' then
    return redis.error_reply('BADARG traces')
  end
end
if extras == 2 then
  local rest = string.gsub(ARGV[#ARGV] .. ' ', '(%d+) ([0-9A-Z%-]+) ', function(number, id)
    number = tonumber(number)
    if given[number] then
      season_of[number] = id
      return ''
    end
  end)
  if rest ~= '' then
    return redis.error_reply('BADARG seasons')
  end
end

-- read
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end
local facts = redis.call('HMGET', meta, 'epoch', 'state', 'seq', 'layout', 'committed', 'limits', 'season')
local epoch, state, seq = whole(facts[1]), facts[2], whole(facts[3])
local seconds, rules = string.match(facts[4] or '', '^%d+:(%d+):%d+(.*)$')
local seen_seconds = whole(seconds)
if state == 'retired' and seen_seconds then -- it has no season
  return redis.error_reply('LAYOUT ' .. facts[4] .. ' is the layout of this board')
end
-- The default rules are not part of a layout.
local operator, order, score_min, score_max = 'add', 'highest', 0, SCORE_MAX
local season, season_id, ends
if seconds and rules ~= '' then
  local low, high, more
  operator, order, low, high, more = string.match(rules, '^:(%l+):(%l+):(%d+):(%d+):%l+:%l+(.*)$')
  score_min, score_max = whole(low), whole(high)
  if operator and more ~= '' then
    season = facts[7]
    season_id, ends = string.match(season or '', '^([0-9A-Z%-]+):%d+:(%d+)$')
    ends = whole(ends)
  end
  seen_seconds = operator and (more == '' or ends) and seen_seconds
end
if not epoch or epoch < 1 or not seq or not seen_seconds or seen_seconds < 1 then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
if state ~= 'open' then
  if state == 'archived' then
    return redis.error_reply('ARCHIVED the board accepts no more actions')
  end
  return redis.error_reply('FENCED the partition accepts no actions')
end
if facts[4] ~= layout then
  return redis.error_reply('LAYOUT ' .. facts[4] .. ' is the layout of this board')
end
local takes_values, is_lowest = operator ~= 'add', order == 'lowest'
if has_zero and not takes_values then
  return redis.error_reply('BADARG a delta is 0')
end
local now = tonumber(redis.call('TIME')[1])
if ends and now >= ends then
  return redis.error_reply(string.format('SEASON %s:%.0f has ended', season, now))
end
if math.floor(now / seen_seconds) ~= generation then
  return redis.error_reply(string.format('BUCKET %.0f is the time, in s', now))
end
-- Every record is read here, so that a wrong type fails before the first write.
local stored, current_keys = {}, {}
for i = 1, count do
  local current, previous = KEYS[5 + 2 * pair_of[i]], KEYS[6 + 2 * pair_of[i]]
  local digest = ARGV[6 + (i - 1) * FIELDS_PER_ACTION]
  stored[i] = redis.call('HGET', current, digest) or redis.call('HGET', previous, digest)
end
for pair = 1, pairs_count do
  current_keys[pair] = KEYS[5 + 2 * pair]
end
-- A key that exists has an expiry. Users of an older version's ACL may not call EXISTS: then each key is tried.
local have_expiry = redis.pcall('EXISTS', unpack(current_keys)) == pairs_count
-- Limits are per action and per user and window; 0 is none. Windows end at multiples of their length. `gained` has
-- what each user has gained in the window that ends at its field ENDS.
local per_action, per_window, window_end, gained_until
if facts[6] then
  local most, sum, length = string.match(facts[6], '^(%d+):(%d+):(%d+)')
  per_action, per_window, length = whole(most) or 0, whole(sum) or 0, whole(length) or 0
  if per_window > 0 and length > 0 and not takes_values then
    window_end = (math.floor(now / length) + 1) * length
    local found = redis.pcall('HGET', gained, ENDS) -- a key of another type is replaced
    gained_until = type(found) == 'string' and whole(found) or nil
  end
end
local waiting = redis.call('XLEN', events)
local room = cap - waiting
-- Packed score of the last watched row; -1 while there are fewer rows.
local last_watched = redis.call('ZRANGE', board, WATCHED_TOP - 1, WATCHED_TOP - 1, 'REV', 'WITHSCORES')
local threshold = tonumber(last_watched[2]) or -1

-- Returns the reply to an action when it was applied. Parts that a later version adds at the end of a record are
-- ignored. So is an invalid record: the action counts again, and the ledger refuses the repeat.
local committed -- seq, read on first use
local function is_committed(at)
  if not committed then
    local known_epoch, known = string.match((facts[5] or '') .. ':', '^(%d+):(%d+):')
    committed = whole(known_epoch) == epoch and whole(known) or 0
  end
  return at <= committed and 1 or 0
end
local function parse_record(text)
  local delta, score, at = string.match(text .. ':', '^(-?%d+):(%d+):(%d+):')
  score, at = whole(score), whole(at)
  if not score or not at then
    return nil
  end
  local record = { 'applied', tonumber(delta), score, at, is_committed(at) }
  record.is_held = string.find(text, ':held', 1, true) ~= nil
  if takes_values then
    record.value = whole(string.match(text, '^-?%d+:%d+:%d+:(%d+)'))
  end
  return record
end

-- A packed score is level × SLOT_COUNT + slot. The level is the score, or SCORE_MAX - score if the lowest score
-- is the best, so the best is always the greatest.
-- The board is written in one ZADD at the end, or before a sweep. Until then `packed_of` has the new packed
-- scores of users, and `lowest` the lowest slots in use, also those of users who have left a level meanwhile.
local moves, packed_of, lowest = {}, {}, {}
local function write_board()
  if #moves > 0 then
    redis.call('ZADD', board, unpack(moves))
    moves, packed_of, lowest = {}, {}, {}
  end
end

local function next_slot(level)
  local slot = lowest[level]
  if not slot then
    local floor = level * SLOT_COUNT
    local first = redis.call('ZRANGE', board, string.format('%.0f', floor),
      string.format('%.0f', floor + SLOT_COUNT - 1), 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    slot = first[2] and math.floor(tonumber(first[2])) - floor or SLOT_COUNT
    lowest[level] = slot
  end
  return slot - 1
end

-- Members that leave a level free their slots, but new members take slots below the lowest one. A sweep
-- recovers free slots: it moves the members of the level, from the best to the last and a few per
-- arrival, up to the slot below the previous member, so the order is unchanged. Returns whether it has
-- reached the last member.
local visible = false
local function sweep(level)
  local floor, field = level * SLOT_COUNT, string.format('sweep:%.0f', level)
  local frontier = math.min(whole(redis.call('HGET', meta, field)) or SLOT_COUNT, SLOT_COUNT)
  local members = redis.call('ZRANGE', board, string.format('(%.0f', floor + frontier),
    string.format('%.0f', floor), 'BYSCORE', 'REV', 'LIMIT', 0, MOVES, 'WITHSCORES')
  local is_over = #members < 2 * MOVES
  lowest[level] = nil
  for i = 1, #members, 2 do
    local packed, target = tonumber(members[i + 1]), floor + frontier - 1
    if packed > target then -- members share the last slot: there is no room
      is_over = true
      break
    end
    if packed < target then
      redis.call('ZADD', board, string.format('%.0f', target), members[i])
      visible = visible or target >= threshold
    end
    frontier = frontier - 1
  end
  if is_over then
    redis.call('HDEL', meta, field)
  else
    redis.call('HSET', meta, field, string.format('%.0f', frontier))
  end
  return is_over
end

-- Returns which limit an action exceeds that changes the score by `delta`. A limit bounds how much better it gets.
local function limit_of(user, delta)
  local gain = is_lowest and -delta or delta
  if gain > 0 and per_action > 0 and gain > per_action then
    return 'action'
  end
  if gain > 0 and window_end then
    local before = gained_until == window_end and whole(redis.call('HGET', gained, user) or nil) or 0
    if before + gain > per_window then
      return 'window'
    end
  end
end

local function add_gain(user, delta)
  local gain = is_lowest and -delta or delta
  if gain <= 0 then
    return
  end
  if gained_until ~= window_end then
    redis.call('EXPIRE', gained, -1) -- deletes it; not every user may call UNLINK
    redis.call('HSET', gained, ENDS, string.format('%.0f', window_end))
    redis.call('EXPIRE', gained, string.format('%.0f', window_end - now))
    gained_until = window_end
  end
  local before = whole(redis.call('HGET', gained, user) or nil) or 0
  redis.call('HSET', gained, user, string.format('%.0f', before + gain))
end

-- Fields of a stream record that exist only with a value.
local function optional_fields(request, trace)
  if trace and request ~= '' then
    return 't', request, 'w', trace
  elseif trace then
    return 'w', trace
  elseif request ~= '' then
    return 't', request
  end
end

local more_fields = optional_fields
if takes_values then
  local kept = operator == 'best' and order or operator
  more_fields = function(request, trace)
    return 'v', kept, optional_fields(request, trace)
  end
end

local function held_fields(request, trace, limit)
  return 'k', 'h', 'l', limit, optional_fields(request, trace)
end

local function remember(i, digest, record)
  local current = KEYS[5 + 2 * pair_of[i]]
  redis.call('HSET', current, digest, record)
  if not have_expiry then
    redis.call('EXPIRE', current, 2 * seen_seconds + 60, 'NX')
  end
end

if season then -- each record says which season it is of
  local others, others_held = more_fields, held_fields
  more_fields = function(request, trace)
    return 'p', season, others(request, trace)
  end
  held_fields = function(request, trace, limit)
    return 'p', season, others_held(request, trace, limit)
  end
end

-- decide and write, action by action: each sees the effects of those before it
local replies, applied, shown, stream_id, failure = {}, {}, {}, nil, nil
local epoch_text, sweeps_more = string.format('%.0f', epoch), SWEEPS_MORE
for i = 1, count do
  local at, number = 3 + (i - 1) * FIELDS_PER_ACTION, given[i]
  local user, digest = ARGV[at + 1], ARGV[at + 3]
  local record = applied[digest] or stored[i] and parse_record(stored[i])
  if record then
    local outcome = 'replayed'
    if record.is_held then
      outcome = 'held_before'
    end
    if ARGV[at + 5] == '1' and (record.value or record[2]) ~= number then
      outcome = 'conflict'
    end
    replies[i] = { outcome, record[2], record[3], record[4], record[5] }
  else
    local before = packed_of[user] or tonumber(redis.call('ZSCORE', board, user))
    local held = before and math.max(0, math.min(math.floor(before / SLOT_COUNT), SCORE_MAX)) or 0
    if is_lowest and before then
      held = SCORE_MAX - held
    end
    local score = takes_values and number or held + number
    local limit = per_action and limit_of(user, score - held)
    -- pcall: an error here would leave the actions before half written.
    if season_of[i] and season_of[i] ~= season_id then
      replies[i] = { 'closed', number, 0, 0, 0 }
    elseif not before and type(redis.pcall('HGET', banned, user)) == 'string' then
      replies[i] = { 'banned', number, 0, 0, 0 }
    elseif room < 1 then
      replies[i] = { 'busy', number, held, 0, 0 }
    elseif score < score_min or score > score_max or (score == 0 and is_lowest and not before) then
      -- The last case: a score of 0 would be the best, and the ledger has no change of 0 that could record it.
      replies[i] = { 'range', number, held, 0, 0 }
    elseif score == held or (operator == 'best' and before and (score < held) ~= is_lowest) then
      remember(i, digest, string.format('0:%.0f:%.0f:%.0f', held, seq, number))
      replies[i] = { 'applied', 0, held, seq, is_committed(seq), value = number }
      applied[digest] = replies[i]
    else
      local delta, level = score - held, is_lowest and SCORE_MAX - score or score
      local after, more, slot = score, more_fields, nil
      if limit then
        after, more = held, held_fields
      else
        -- The first user at a score ranks first: take the slot below the lowest one in use.
        slot = next_slot(level)
        if slot < SWEEP_BELOW then
          write_board()
          local is_over = sweep(level)
          slot = next_slot(level)
          -- No slot is left below: sweep on within the limit of a call.
          while slot < 0 and not is_over and sweeps_more > 0 do
            is_over, sweeps_more = sweep(level), sweeps_more - 1
            slot = next_slot(level)
          end
          slot = math.max(slot, 0)
        end
      end
      local delta_text, score_text = string.format('%.0f', delta), string.format('%.0f', after)
      local seq_text = string.format('%.0f', seq + 1)
      -- XADD first: it can fail, if another program wrote to the stream. The actions before are then completed.
      local added = redis.pcall('XADD', events, '*', 'q', seq_text, 'u', user, 'a', ARGV[at + 2],
        'd', delta_text, 's', score_text, 'e', epoch_text, more(ARGV[at + 6], traces[i], limit))
      if type(added) ~= 'string' then
        failure = added
        break
      end
      stream_id, seq, room = added, seq + 1, room - 1
      local first = delta_text .. ':' .. score_text .. ':' .. seq_text
      if limit then
        remember(i, digest, string.format('%s:%.0f:held', first, number))
        replies[i] = { 'held', delta, held, seq, 0, is_held = true }
      else
        local packed = level * SLOT_COUNT + slot
        moves[#moves + 1] = string.format('%.0f', packed)
        moves[#moves + 1] = user
        packed_of[user], lowest[level] = packed, slot
        remember(i, digest, takes_values and first .. ':' .. score_text or first)
        if window_end then
          add_gain(user, delta)
        end
        if packed >= threshold or (before and before >= threshold) then
          visible = true
          if traces[i] and #shown < TRACES_MAX then
            shown[#shown + 1] = traces[i]
          end
        end
        replies[i] = { 'applied', delta, score, seq, 0 }
      end
      applied[digest] = replies[i]
      if takes_values then
        replies[i].value = number
      end
    end
  end
end
write_board()
if stream_id then
  if visible then
    redis.call('HSET', meta, 'seq', string.format('%.0f', seq), 'changed', string.match(stream_id, '^%d+'))
  else
    redis.call('HSET', meta, 'seq', string.format('%.0f', seq))
  end
end

-- emit
if visible then
  if #shown > 0 then -- first, so that a reader has them when it reads the board
    redis.call('PUBLISH', changes, 'traces ' .. table.concat(shown, ' '))
  end
  redis.call('PUBLISH', changes, string.format('%.0f:%.0f', epoch, seq))
end
-- A flusher serves a partition while its stream has entries. A user of an older version's ACL may not publish here;
-- the flusher then finds the entries when it reads the lengths of all streams.
if stream_id and waiting == 0 then
  redis.pcall('PUBLISH', ACTIVE, events)
end
return failure or replies
