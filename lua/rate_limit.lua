-- rate_limit: count calls of a caller in its sliding window, as many as the limit allows.
-- WHY       checking and counting in two steps would let parallel calls exceed the limit
-- KEYS      1 times list of the last counted calls, newest first, in seconds
-- ARGV      1 limit int, calls per window · 2 window int, in seconds · 3 count int, calls to count
-- ASSUMES   none
-- RETURNS   number of calls that were counted, calls left, milliseconds until the oldest call leaves the window
-- OUTCOMES  none
-- REFUSES   BADARG arguments
-- WRITES    times
-- EMITS     nothing
-- COST      O(limit), a list of at most limit entries

local times = KEYS[1]
local limit, window, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not limit or limit < 1 or not window or window < 1 or not wanted or wanted < 1 then
  return redis.error_reply('BADARG limit, window and count are whole numbers from 1')
end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function time_at(index)
  return tonumber(redis.call('LINDEX', times, string.format('%.0f', index)) or '')
end
local function is_in_window(index)
  local time = time_at(index)
  return time and time > now - window
end

-- The list is ordered: a binary search finds how many calls lie in the window.
local held, beyond = 0, limit
while held < beyond do
  local middle = math.floor((held + beyond) / 2)
  if is_in_window(middle) then
    held = middle + 1
  else
    beyond = middle
  end
end
local counted = math.min(wanted, limit - held)
if counted > 0 then
  for _ = 1, counted do
    redis.call('LPUSH', times, string.format('%.6f', now))
  end
  redis.call('LTRIM', times, 0, string.format('%.0f', limit - 1))
  redis.call('EXPIRE', times, string.format('%.0f', window))
end
local count = held + counted
local oldest = time_at(count - 1) or now
return { counted, limit - count, math.ceil((oldest + window - now) * 1000) }
