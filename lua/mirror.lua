-- mirror: replace the catalogue that the api reads, and announce it.
-- WHY       of two copies that are made at once, the older one must not be the last
-- KEYS      1 actions hash
-- ARGV      1 version int the caller saw, 0 for none · 2 channel · 3+ kind, points int
-- BELIEFS   nobody has copied a newer catalogue: the caller saw the version before it read the catalogue, and each copy raises it
-- RETURNS   the new version
-- OUTCOMES  none
-- REFUSES   STALE another copy was made meanwhile · BADARG arguments
-- WRITES    actions
-- EMITS     to the channel, once: the version
-- COST      O(n), n kinds

local actions = KEYS[1]
local seen, channel = tonumber(ARGV[1]), ARGV[2]
if not seen or not channel or #ARGV % 2 ~= 0 then
  return redis.error_reply('BADARG a version, a channel, and kinds with their points')
end
for i = 4, #ARGV, 2 do
  if not string.match(ARGV[i], '^%d+$') then
    return redis.error_reply('BADARG points are whole numbers')
  end
end
-- A field that is no whole number counts as missing: tonumber alone would take '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end
local held = redis.pcall('HGET', actions, ':version') -- no kind has a colon in its name
-- A key of another type holds no version, and is replaced.
local version = type(held) == 'string' and whole(held) or 0
if version ~= seen then
  return redis.error_reply('STALE another copy of the catalogue was made')
end
redis.call('UNLINK', actions)
redis.call('HSET', actions, ':version', string.format('%.0f', version + 1))
for i = 3, #ARGV, 2 do
  redis.call('HSET', actions, ARGV[i], ARGV[i + 1])
end
redis.call('PUBLISH', channel, string.format('%.0f', version + 1))
return version + 1
