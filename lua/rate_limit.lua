-- rate_limit: count one call of a caller, if fewer than the limit lie in the sliding window.
-- WHY       checking and counting in two steps would let parallel calls exceed the limit
-- KEYS      1 times list of the last counted calls, newest first, in seconds
-- ARGV      1 limit int, calls per window · 2 window int, in seconds
-- ASSUMES   none
-- RETURNS   1 if the call was counted or else 0, calls left, milliseconds until the oldest call leaves the window
-- OUTCOMES  none
-- REFUSES   BADARG arguments
-- WRITES    times
-- EMITS     nothing
-- COST      O(limit), a list of at most limit entries

local times = KEYS[1]
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
if not limit or limit < 1 or not window or window < 1 then
  return redis.error_reply('BADARG limit and window are whole numbers from 1')
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

local is_counted = not is_in_window(limit - 1)
if is_counted then
  redis.call('LPUSH', times, string.format('%.6f', now))
  redis.call('LTRIM', times, 0, string.format('%.0f', limit - 1))
  redis.call('EXPIRE', times, string.format('%.0f', window))
end
-- The list is ordered: a binary search finds how many calls lie in the window.
local count, beyond = 1, limit
while count < beyond do
  local middle = math.floor((count + beyond) / 2)
  if is_in_window(middle) then
    count = middle + 1
  else
    beyond = middle
  end
end
local oldest = time_at(count - 1) or now
return { is_counted and 1 or 0, limit - count, math.ceil((oldest + window - now) * 1000) }
