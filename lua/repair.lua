-- repair: bring users' scores back to what PostgreSQL counted and the stream still adds.
-- WHY       a late duplicate counts in Redis and not in the ledger; setting the state is right however often it runs, subtracting is not
-- KEYS      1 board zset · 2 events stream · 3 meta hash · 4 changes channel
-- ARGV      1 history · 2 epoch int · 3 committed seq int · 4 stream id up to which the caller has added up what is not committed · 5 dry 0 or 1: only say what differs · 6+ user, score int due up to there or -1 for none, count int, then as many users: those known at the wanted score, in order of arrival
-- BELIEFS   nobody has committed since the caller read its position: no later one is known here, and this server has reached it · what the caller added up stands in this very stream: history and epoch are compared
-- RETURNS   per user, in order: outcome, change, wanted score, seq or 0
-- OUTCOMES  corrected unchanged differs
-- REFUSES   UNINIT no epoch · FENCED not accepting · STALE other history, other epoch, or a later position is known · LAG more than 1000 entries after the stream id · RANGE a score would leave its range · BADARG arguments
-- WRITES    board events meta
-- EMITS     to changes, once, if a score changed
-- COST      O(e + n (log N + 512)), e entries after the stream id ≤ 1000, n users ≤ 64

local SCORE_MAX = 2147483647
local SLOT_COUNT = 2097152
local ENTRIES_MAX = 1000
local EQUALS_MAX = 512

-- unpack
local board, events, meta, changes = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local history, epoch, committed, from = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local is_dry = ARGV[5] == '1'

-- validate
if not history or not epoch or not committed or not from or not string.match(from, '^%d+-%d+$') then
  return redis.error_reply('BADARG history, epoch, seq or stream id')
end
local users, at = {}, 6
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
-- A field that is no whole number counts as missing: tonumber alone would take '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end
local facts = redis.call('HMGET', meta, 'epoch', 'state', 'seq', 'committed')
local meta_epoch, seq = whole(facts[1]), whole(facts[3])
if not meta_epoch or meta_epoch < 1 or not seq then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
if facts[2] ~= 'open' then
  return redis.error_reply('FENCED the partition accepts nothing for now')
end
if meta_epoch ~= epoch then
  return redis.error_reply('STALE another epoch began')
end
local info = redis.pcall('INFO', 'replication') -- a server may hide it; then history is empty too
if (type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or '') ~= history then
  return redis.error_reply('STALE another server continues the history')
end
local known_epoch, known = string.match(facts[4] or '', '^(%d+):(%d+)$')
if whole(known_epoch) == epoch and (whole(known) or 0) > committed then
  return redis.error_reply('STALE more is committed than the caller knows of')
end
if committed > seq then
  return redis.error_reply('STALE Redis is older than the committed position')
end
local entries = redis.call('XRANGE', events, '(' .. from, '+', 'COUNT', ENTRIES_MAX + 1)
if #entries > ENTRIES_MAX then
  return redis.error_reply('LAG too many actions came meanwhile')
end
local added, acted = {}, {}
for place, entry in ipairs(entries) do
  local fields = {}
  for i = 1, #entry[2], 2 do
    fields[entry[2][i]] = entry[2][i + 1]
  end
  -- Only what the flusher would count too; it parks the rest.
  local delta = tonumber(string.match(fields.d or '', '^-?%d+$'))
  if fields.u and fields.a and delta and math.abs(delta) <= SCORE_MAX and not fields.k
      and whole(fields.q) and whole(fields.s) and whole(fields.e) then
    added[fields.u] = (added[fields.u] or 0) + delta
    acted[fields.u] = place
  end
end

-- decide
for i, user in ipairs(users) do
  local packed = tonumber(redis.call('ZSCORE', board, user.name))
  user.is_member = packed ~= nil
  -- Somebody else wrote what is no packed score: set it anew, whatever it says.
  user.is_odd = packed and (packed < 0 or packed >= (SCORE_MAX + 1) * SLOT_COUNT or packed % 1 ~= 0)
  user.held = packed and not user.is_odd and math.floor(packed / SLOT_COUNT) or 0
  user.wanted = math.max(user.score, 0) + (added[user.name] or 0)
  user.leaves = user.score < 0 and acted[user.name] == nil
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
    local slot = math.max(math.floor(tonumber(lowest[2])) - floor - 1, 0)
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
  local change = user.wanted - user.held
  if change == 0 and not user.is_odd and user.is_member ~= user.leaves then
    replies[i] = { 'unchanged', 0, user.wanted, 0 }
  elseif is_dry then
    replies[i] = { 'differs', change, user.wanted, 0 }
  else
    wrote = true
    local at_seq = 0
    if change ~= 0 then
      seq = seq + 1
      at_seq = seq
      redis.call('XADD', events, '*', 'q', seq, 'u', user.name,
        'a', string.format('correction:%.0f', committed), 'd', change, 's', user.wanted,
        'e', epoch, 'k', 'c')
    end
    if user.leaves then
      redis.call('ZREM', board, user.name)
    else
      settle(user)
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
