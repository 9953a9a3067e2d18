-- mirror: replace the catalogue that the api reads, and publish the change.
-- WHY       of two concurrent copies, the older one must not be the last
-- KEYS      1 actions hash
-- ARGV      1 version int the caller read, 0 for none · 2 channel · 3+ kind, points int; or kind:rules, text
-- ASSUMES   no newer catalogue was copied: the caller read the version before the catalogue, and each copy increments it
-- RETURNS   the new version
-- OUTCOMES  none
-- REFUSES   STALE another copy was made since · BADARG arguments
-- WRITES    actions
-- EMITS     to the channel, once: the version
-- COST      O(n), n kinds

local actions = KEYS[1]
local seen, channel = tonumber(ARGV[1]), ARGV[2]
if not seen or not channel or #ARGV % 2 ~= 0 then
  return redis.error_reply('BADARG a version, a channel, and fields with their values')
end
for i = 4, #ARGV, 2 do
  local is_kind = not string.find(ARGV[i - 1], ':', 1, true) -- else a field that earlier versions ignore
  if is_kind and not string.match(ARGV[i], '^%d+$') then
    return redis.error_reply('BADARG points are whole numbers')
  end
end
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end
local held = redis.pcall('HGET', actions, ':version') -- kinds contain no colon
-- A key of another type has no version and is replaced.
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
