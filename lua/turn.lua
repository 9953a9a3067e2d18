-- turn: end the season of a partition and begin a later one, once.
-- WHY       board, season and stream change together: an action belongs to the season in which it was applied
-- KEYS      1 board zset · 2 events stream · 3 meta hash · 4 changes channel · 5 banned hash
-- ARGV      1 season that ends · 2 season that begins, both id:start:end in s
-- ASSUMES   the season that ends is the current one, and Redis's time is in the one that begins: both are compared
-- RETURNS   outcome, season that is current then
-- OUTCOMES  turned unchanged
-- REFUSES   UNINIT no epoch, seq or season · FENCED not accepting · ARCHIVED the board is archived · BADARG arguments
-- WRITES    board events meta banned
-- EMITS     to changes, if it turned: epoch:seq · to sb:active the name of the stream, if it was empty before
-- COST      O(b), b banned users of the partition; the members are freed in the background

local ACTIVE = 'sb:active'
local SEASON = '^[0-9A-Z%-]+:(%d+):(%d+)$'

-- unpack
local board, events, meta, changes, banned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ending, following = ARGV[1], ARGV[2]

-- validate
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end
local _, ends = string.match(ending or '', SEASON)
local starts, last = string.match(following or '', SEASON)
ends, starts, last = whole(ends), whole(starts), whole(last)
if not ends or not starts or not last or starts < ends or last <= starts then
  return redis.error_reply('BADARG seasons')
end

-- read
local facts = redis.call('HMGET', meta, 'epoch', 'state', 'seq', 'season')
local epoch, seq, season = whole(facts[1]), whole(facts[3]), facts[4]
if not epoch or epoch < 1 or not seq or not season then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
if facts[2] ~= 'open' then
  if facts[2] == 'archived' then
    return redis.error_reply('ARCHIVED the board accepts no more actions')
  end
  return redis.error_reply('FENCED the partition accepts no actions')
end
local now = tonumber(redis.call('TIME')[1])
local waiting = redis.call('XLEN', events)
local users = redis.call('HGETALL', banned)
local fields = redis.call('HGETALL', meta)

local outcome = 'unchanged'

-- decide: another caller may have turned it, and its clock may be ahead of Redis's
if season ~= ending or now < starts or now >= last then
  return { outcome, season }
end

-- write
outcome = 'turned'
local seq_text = string.format('%.0f', seq + 1)
redis.call('XADD', events, '*', 'q', seq_text, 'e', string.format('%.0f', epoch), 'k', 's', 'p', following)
redis.call('UNLINK', board)
for i = 1, #users, 2 do
  redis.call('HSET', banned, users[i], '-1')
end
for i = 1, #fields, 2 do
  if string.match(fields[i], '^sweep:') then
    redis.call('HDEL', meta, fields[i])
  end
end
redis.call('HSET', meta, 'seq', seq_text, 'season', following)

-- emit
redis.call('PUBLISH', changes, string.format('%.0f:%.0f', epoch, seq + 1))
-- As in submit.lua: a user of an older version's ACL may not publish here.
if waiting == 0 then
  redis.pcall('PUBLISH', ACTIVE, events)
end
return { outcome, following }
