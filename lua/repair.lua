-- repair: set users' scores to the score in PostgreSQL plus the uncommitted deltas of the stream, and remove or return banned users.
-- WHY       a late duplicate counts in Redis and not in the ledger; setting a score can be repeated, subtracting cannot
-- KEYS      1 board zset · 2 events stream · 3 meta hash · 4 changes channel · 5 banned hash
-- ARGV      1 replication id · 2 epoch int · 3 committed seq int · 4 stream id up to which the caller has summed the uncommitted deltas · 5 dry 0 or 1: only report differences · 6 season id:start:end for which the caller has read the scores, empty for a board without seasons · 7+ user, expected score int at that id or -1 for none, banned 0 or 1, count int, then as many users: those with the expected score, in order of arrival
-- ASSUMES   no commit since the caller read its position: no later one is known here, and this server has reached it · the caller read this stream: replication id and epoch are compared
-- RETURNS   per user, in order: outcome, change, expected score, seq or 0
-- OUTCOMES  corrected unchanged differs
-- REFUSES   UNINIT no epoch · FENCED not accepting · STALE other replication id, other epoch, another season, or a later position is known · LAG more than 1000 entries after the stream id · RANGE a score would leave its range · BADARG arguments
-- WRITES    board banned events meta
-- EMITS     to changes, once, if a score changed · to sb:active the name of the stream, if it was empty before and a correction was added
-- COST      O(e + n (log N + 512)), e entries after the stream id ≤ 1000, n users ≤ 64

local SCORE_MAX = 2147483647
local SLOT_COUNT = 2097152
local ENTRIES_MAX = 1000
local EQUALS_MAX = 512
local ACTIVE = 'sb:active'

-- unpack
local board, events, meta, changes, banned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local replication_id, epoch, committed, from = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local is_dry, season = ARGV[5] == '1', ARGV[6]

-- validate
if not replication_id or not epoch or not committed or not from or not season or not string.match(from, '^%d+-%d+$') then
  return redis.error_reply('BADARG replication id, epoch, seq, stream id or season')
end
local users, at = {}, 7
while at <= #ARGV do
  local score, count = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 3])
  if not score or not count or count > EQUALS_MAX or at + 3 + count > #ARGV or #users == 64 then
    return redis.error_reply('BADARG user ' .. (#users + 1))
  end
  local user = { name = ARGV[at], score = score, is_banned = ARGV[at + 2] == '1', order = {} }
  for i = 1, count do
    user.order[i] = ARGV[at + 3 + i]
  end
  users[#users + 1] = user
  at = at + 4 + count
end

-- read
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end
local facts = redis.call('HMGET', meta, 'epoch', 'state', 'seq', 'committed', 'layout', 'season')
local meta_epoch, seq = whole(facts[1]), whole(facts[3])
if not meta_epoch or meta_epoch < 1 or not seq then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
if facts[2] ~= 'open' and facts[2] ~= 'archived' then
  return redis.error_reply('FENCED the partition accepts no actions')
end
if meta_epoch ~= epoch then
  return redis.error_reply('STALE another epoch began')
end
if (facts[6] or '') ~= season then -- the entries after the stream id are of this season, too
  return redis.error_reply('STALE another season began')
end
local info = redis.pcall('INFO', 'replication') -- a server may not show it; then both are empty
if (type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or '') ~= replication_id then
  return redis.error_reply('STALE the replication id has changed')
end
local known_epoch, known = string.match((facts[4] or '') .. ':', '^(%d+):(%d+):')
if whole(known_epoch) == epoch and (whole(known) or 0) > committed then
  return redis.error_reply('STALE a later position is committed')
end
if committed > seq then
  return redis.error_reply('STALE Redis is older than the committed position')
end
local entries = redis.call('XRANGE', events, '(' .. from, '+', 'COUNT', ENTRIES_MAX + 1)
if #entries > ENTRIES_MAX then
  return redis.error_reply('LAG too many new entries')
end
local waiting, has_added = redis.call('XLEN', events), false
local changes_of, acted = {}, {}
for place, entry in ipairs(entries) do
  local fields = {}
  for i = 1, #entry[2], 2 do
    fields[entry[2][i]] = entry[2][i + 1]
  end
  -- Only entries that the flusher counts; the others become dead letters.
  local delta = tonumber(string.match(fields.d or '', '^-?%d+$'))
  if fields.u and fields.a and delta and math.abs(delta) <= SCORE_MAX and not fields.k
      and whole(fields.q) and whole(fields.s) and whole(fields.e) then
    changes_of[fields.u] = changes_of[fields.u] or {}
    table.insert(changes_of[fields.u], { delta = delta, value = whole(fields.s), kept = fields.v })
    acted[fields.u] = place
  end
end

-- decide
-- A packed score is level × SLOT_COUNT + slot. The level is the score, or SCORE_MAX - score if the lowest score
-- is the best.
local order = string.match(facts[5] or '', '^%d+:%d+:%d+:%l+:(%l+):')
local function level_of(score) -- and back
  return order == 'lowest' and SCORE_MAX - score or score
end
for i, user in ipairs(users) do
  local packed = tonumber(redis.call('ZSCORE', board, user.name))
  user.is_member = packed ~= nil
  user.kept = redis.call('HGET', banned, user.name)
  -- Another program wrote an invalid packed score: replace it.
  user.is_invalid = packed and (packed < 0 or packed >= (SCORE_MAX + 1) * SLOT_COUNT or packed % 1 ~= 0)
  user.held = packed and not user.is_invalid and level_of(math.floor(packed / SLOT_COUNT))
    or not packed and whole(user.kept or nil) or 0
  local score = user.score >= 0 and user.score or nil
  for _, change in ipairs(changes_of[user.name] or {}) do
    if not change.kept then
      score = (score or 0) + change.delta
    elseif not score or change.kept == 'last' or (change.value < score) == (change.kept == 'lowest') then
      score = change.value -- the value itself: the score that it replaced may have been wrong
    end
  end
  user.expected = score or 0
  local has_score = user.score >= 0 or acted[user.name] ~= nil
  user.leaves = user.is_banned or not has_score
  user.keeps = user.is_banned and (has_score and string.format('%.0f', user.expected) or '-1')
  if user.expected < 0 or user.expected > SCORE_MAX then
    return redis.error_reply('RANGE the score of user ' .. i .. ' would leave its range')
  end
end

-- write, user by user: each is placed after the effects of those before it
local function place_by_arrival(user)
  local floor = level_of(user.expected) * SLOT_COUNT
  local low, high = string.format('%.0f', floor), string.format('%.0f', floor + SLOT_COUNT - 1)
  local equals = redis.call('ZRANGE', board, high, low, 'BYSCORE', 'REV', 'LIMIT', 0, EQUALS_MAX + 1,
    'WITHSCORES')
  if #equals > 2 * EQUALS_MAX then
    -- Too many to reorder: take the last place.
    local lowest = redis.call('ZRANGE', board, low, high, 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    local slot = math.max(math.floor(tonumber(lowest[2])) - floor - 1, 0)
    redis.call('ZADD', board, string.format('%.0f', floor + slot), user.name)
    return
  end
  -- By arrival: first the users with this score in PostgreSQL, in its order; then other members with
  -- this score; last those who acted since, in stream order.
  local packed, names = {}, {}
  for i = 1, #equals, 2 do
    packed[equals[i]] = tonumber(equals[i + 1])
    names[#names + 1] = equals[i]
  end
  packed[user.name] = -1
  names[#names + 1] = user.name
  local is_placed, order, recent = {}, {}, {}
  local function place(name)
    if packed[name] and not acted[name] and not is_placed[name] then
      is_placed[name] = true
      order[#order + 1] = name
    end
  end
  for _, name in ipairs(user.order) do
    place(name)
  end
  for _, name in ipairs(names) do
    place(name)
    if acted[name] then
      recent[#recent + 1] = name
    end
  end
  table.sort(recent, function(one, other)
    return acted[one] < acted[other]
  end)
  for _, name in ipairs(recent) do
    order[#order + 1] = name
  end
  for i, name in ipairs(order) do
    local target = floor + SLOT_COUNT - i
    if packed[name] ~= target then
      redis.call('ZADD', board, string.format('%.0f', target), name)
    end
  end
end

local replies, wrote = {}, false
for i, user in ipairs(users) do
  local change = user.expected - user.held
  if change == 0 and not user.is_invalid and user.is_member ~= user.leaves and user.kept == user.keeps then
    replies[i] = { 'unchanged', 0, user.expected, 0 }
  elseif is_dry then
    replies[i] = { 'differs', change, user.expected, 0 }
  else
    wrote = true
    local at_seq = 0
    if change ~= 0 or user.is_member == user.leaves then
      -- A viewer ignores a position that it has, so also a change of the board without one of the score takes a seq.
      local shown = change ~= 0 and change or (user.leaves and -1 or 1) * math.max(user.expected, 1)
      seq = seq + 1
      at_seq, has_added = seq, true
      local record = { 'q', seq, 'u', user.name, 'a', string.format('correction:%.0f', committed),
        'd', shown, 's', user.expected, 'e', epoch, 'k', 'c', 'p', season }
      redis.call('XADD', events, '*', unpack(record, 1, season ~= '' and 16 or 14))
    end
    if user.keeps then
      redis.call('HSET', banned, user.name, user.keeps)
    elseif user.kept then
      redis.call('HDEL', banned, user.name)
    end
    if user.leaves then
      redis.call('ZREM', board, user.name)
    else
      place_by_arrival(user)
    end
    replies[i] = { 'corrected', change, user.expected, at_seq }
  end
end
if wrote then
  redis.call('HSET', meta, 'seq', string.format('%.0f', seq))
end

-- emit
if wrote then
  redis.call('PUBLISH', changes, string.format('%.0f:%.0f', epoch, seq))
end
-- As in submit.lua: a user of an older version's ACL may not publish here.
if has_added and waiting == 0 then
  redis.pcall('PUBLISH', ACTIVE, events)
end
return replies
