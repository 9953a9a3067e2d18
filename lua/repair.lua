-- repair: bring users' scores back to what PostgreSQL counted and the stream still adds.
-- WHY       a late duplicate counts in Redis and not in the ledger; setting the state is right however often it runs, subtracting is not
-- KEYS      1 board zset · 2 events stream · 3 meta hash · 4 changes channel
-- ARGV      1 epoch int · 2 committed stream id · 3 committed seq int, nobody may commit meanwhile · 4 dry 0 or 1: only say what differs · 5+ user, score in PostgreSQL int or -1 for none, count int, then as many users: those whom PostgreSQL knows at the wanted score, in order of arrival
-- RETURNS   per user, in order: outcome, change, wanted score, seq or 0
-- OUTCOMES  corrected unchanged differs
-- REFUSES   UNINIT no epoch · FENCED not accepting · EPOCH another one began · LAG more than 1000 entries are not committed · RANGE a score would leave its range · BADARG arguments
-- WRITES    board events meta
-- EMITS     to changes, once, if a score changed
-- COST      O(e + n (log N + 512)), e entries not committed ≤ 1000, n users ≤ 64

local SCORE_MAX = 2147483647
local SLOT_COUNT = 2097152
local ENTRIES_MAX = 1000
local EQUALS_MAX = 512

-- unpack
local board, events, meta, changes = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch, committed, seq_committed = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local is_dry = ARGV[4] == '1'

-- validate
if not epoch or not seq_committed or not committed or not string.match(committed, '^%d+-%d+$') then
  return redis.error_reply('BADARG epoch, stream id or seq')
end
local users, at = {}, 5
while at <= #ARGV do
  local score, count = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  if not score or not count or count > EQUALS_MAX or at + 2 + count > #ARGV or #users == 64 then
    return redis.error_reply('BADARG user ' .. (#users + 1))
  end
  local user = { name = ARGV[at], score = score, order = {} }
  for i = 1, count do
    user.order[i] = ARGV[at + 2 + i]
  end
  users[#users + 1] = user
  at = at + 3 + count
end

-- read
local facts = redis.call('HMGET', meta, 'epoch', 'state', 'seq')
local seq = tonumber(facts[3])
if not tonumber(facts[1]) or not seq then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
if tonumber(facts[1]) ~= epoch then
  return redis.error_reply('EPOCH another epoch began, run it again')
end
if facts[2] ~= 'open' then
  return redis.error_reply('FENCED the partition accepts nothing for now')
end
local entries = redis.call('XRANGE', events, '(' .. committed, '+', 'COUNT', ENTRIES_MAX + 1)
if #entries > ENTRIES_MAX then
  return redis.error_reply('LAG too many actions are not committed yet')
end
local added, acted = {}, {}
for place, entry in ipairs(entries) do
  local fields = {}
  for i = 1, #entry[2], 2 do
    fields[entry[2][i]] = entry[2][i + 1]
  end
  local delta = tonumber(fields.d)
  if fields.u and delta and not fields.k then
    added[fields.u] = (added[fields.u] or 0) + delta
    acted[fields.u] = place
  end
end

-- decide
for i, user in ipairs(users) do
  local packed = tonumber(redis.call('ZSCORE', board, user.name))
  user.held = packed and math.floor(packed / SLOT_COUNT)
  user.wanted = math.max(user.score, 0) + (added[user.name] or 0)
  user.leaves = user.score < 0 and not acted[user.name]
  if user.wanted < 0 or user.wanted > SCORE_MAX then
    return redis.error_reply('RANGE the score of user ' .. i .. ' would leave its range')
  end
end

-- write, user by user: each takes its place among those before it
local function settle(user)
  local floor = user.wanted * SLOT_COUNT
  local low, high = string.format('%.0f', floor), string.format('%.0f', floor + SLOT_COUNT - 1)
  local equals = redis.call('ZRANGE', board, high, low, 'BYSCORE', 'REV', 'LIMIT', 0, EQUALS_MAX + 1,
    'WITHSCORES')
  if #equals > 2 * EQUALS_MAX then
    -- Too many to deal their places anew: the last one.
    local lowest = redis.call('ZRANGE', board, low, high, 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    local slot = math.max(tonumber(lowest[2]) - floor - 1, 0)
    redis.call('ZADD', board, string.format('%.0f', floor + slot), user.name)
    return
  end
  -- By arrival: first those whom PostgreSQL knows here, as it says; then whoever else stands here;
  -- last those who acted since, in the order of the stream.
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
    local due = floor + SLOT_COUNT - i
    if packed[name] ~= due then
      redis.call('ZADD', board, string.format('%.0f', due), name)
    end
  end
end

local replies, wrote = {}, false
for i, user in ipairs(users) do
  local change = user.wanted - (user.held or 0)
  if change == 0 and not (user.leaves and user.held) then
    replies[i] = { 'unchanged', 0, user.wanted, 0 }
  elseif is_dry then
    replies[i] = { 'differs', change, user.wanted, 0 }
  else
    wrote = true
    if user.leaves then
      redis.call('ZREM', board, user.name)
    else
      settle(user)
    end
    local at_seq = 0
    if change ~= 0 then
      seq = seq + 1
      at_seq = seq
      redis.call('XADD', events, '*', 'q', seq, 'u', user.name,
        'a', string.format('correction:%.0f', seq_committed), 'd', change, 's', user.wanted,
        'e', epoch, 'k', 'c')
    end
    replies[i] = { 'corrected', change, user.wanted, at_seq }
  end
end
if wrote then
  redis.call('HSET', meta, 'seq', string.format('%.0f', seq))
end

-- emit
if wrote then
  redis.call('PUBLISH', changes, string.format('%.0f:%.0f', epoch, seq))
end
return replies
