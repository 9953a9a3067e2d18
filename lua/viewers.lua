-- viewers: set how many viewers of a board one process has, return those of all processes.
-- WHY       a process that died must not be counted: only the server's clock tells for all of them
-- KEYS      1 counts hash
-- ARGV      1 process text · 2 count int, 0 to be counted no longer · 3 lifetime int, in seconds
-- ASSUMES   none
-- RETURNS   viewers of all processes that called within the lifetime
-- OUTCOMES  none
-- REFUSES   BADARG arguments
-- WRITES    counts: process, second:count
-- EMITS     nothing
-- COST      O(p), p processes with viewers of the board

local counts = KEYS[1]
local process, count, lifetime = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if process == '' or not count or count < 0 or not lifetime or lifetime < 1 then
  return redis.error_reply('BADARG count is a whole number from 0, lifetime from 1')
end
local now = tonumber(redis.call('TIME')[1])
local held = redis.call('HGETALL', counts)
local total = count
local gone = {}
for i = 1, #held, 2 do
  local second, viewers = string.match(held[i + 1], '^(%d+):(%d+)$')
  local age = now - (tonumber(second) or 0)
  if held[i] == process then
    if count == 0 then
      gone[#gone + 1] = held[i]
    end
  elseif age < lifetime and age > -lifetime then
    total = total + tonumber(viewers)
  else
    gone[#gone + 1] = held[i]
  end
end
for _, field in ipairs(gone) do
  redis.call('HDEL', counts, field)
end
if count > 0 then
  redis.call('HSET', counts, process, string.format('%.0f:%.0f', now, count))
  redis.call('EXPIRE', counts, string.format('%.0f', lifetime))
end
return total
