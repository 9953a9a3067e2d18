-- retire: empty a fenced partition that its board no longer has, and store the layout that replaced it.
-- WHY       a caller with the old layout must be refused and learn the new one (I9)
-- KEYS      1 meta hash · 2 board zset · 3 shadow zset · 4 events stream
-- ARGV      1 token of the fence · 2 layout with rules that the board has now · 3 group
-- ASSUMES   the caller has exclusive access to the partition: its token is compared, and every other fence replaces it · PostgreSQL has everything in the stream: all was delivered and acknowledged
-- RETURNS   1
-- OUTCOMES  none
-- REFUSES   FENCE another token holds the fence · LAG the stream holds actions that are not committed · BADARG arguments
-- WRITES    meta board shadow events
-- EMITS     nothing
-- COST      O(1), the keys are freed in the background

local meta, board, shadow, events = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, layout, group = ARGV[1], ARGV[2], ARGV[3]

-- The default rules are not part of a layout.
local rules = string.match(layout, '^%d+:%d+:%d+(.*)$')
local is_layout = rules == '' or (rules and string.match(rules, '^:%l+:%l+:%d+:%d+:%l+:%l+$')
  or (rules and string.match(rules, '^:%l+:%l+:%d+:%d+:%l+:%l+:[!-~]+@[!-~]+$')))
if not group or not is_layout then
  return redis.error_reply('BADARG layout or group')
end
if redis.call('HGET', meta, 'fence') ~= token then
  return redis.error_reply('FENCE another operator holds the fence')
end
local function named(fields)
  local values = {}
  for i = 1, #fields, 2 do
    values[fields[i]] = fields[i + 1]
  end
  return values
end
if redis.call('EXISTS', events) == 1 then
  local stream = named(redis.call('XINFO', 'STREAM', events))
  local is_drained = stream.length == 0
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', events)) do
    local one = named(fields)
    is_drained = is_drained or (one.name == group and one.pending == 0
      and one['last-delivered-id'] == stream['last-generated-id'])
  end
  if not is_drained then
    return redis.error_reply('LAG the stream holds actions that are not committed')
  end
end

-- write: without an epoch reads are refused as for an empty partition; a second run changes nothing
redis.call('UNLINK', meta, board, shadow, events)
redis.call('HSET', meta, 'state', 'retired', 'layout', layout, 'fence', token)
return 1
