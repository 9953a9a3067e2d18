-- trim: cut the stream behind what PostgreSQL has committed, and never further.
-- WHY       the stream is the only copy of what was acknowledged and not yet committed (I1)
-- KEYS      1 events stream
-- ARGV      1 group · 2 committed stream id, the last one of the batch just committed
-- RETURNS   entries cut
-- OUTCOMES  none
-- REFUSES   BADARG arguments
-- WRITES    events
-- EMITS     nothing
-- COST      O(n), n entries cut

local events = KEYS[1]
local group, committed = ARGV[1], ARGV[2]

-- Ids are compared as two numbers; as text '9-0' would stand behind '10-0'.
local function parse(id)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(n)
end
local function earlier(a, b)
  local a_ms, a_n = parse(a)
  local b_ms, b_n = parse(b)
  return a_ms < b_ms or (a_ms == b_ms and a_n < b_n)
end
local function after(id)
  local ms, n = parse(id)
  return string.format('%.0f-%.0f', ms, n + 1)
end

if not parse(committed) then
  return redis.error_reply('BADARG the committed id is no stream id')
end
if redis.call('EXISTS', events) == 0 then
  return 0
end
local delivered
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', events)) do
  local facts = {}
  for i = 1, #fields, 2 do
    facts[fields[i]] = fields[i + 1]
  end
  if facts.name == group then
    delivered = facts['last-delivered-id']
  end
end
if not delivered then
  return 0 -- without its group nobody knows what was delivered: cut nothing
end
local keep_from = after(committed)
-- On a Redis that came back older, new events may have ids below the committed one.
if earlier(after(delivered), keep_from) then
  keep_from = after(delivered)
end
local pending = redis.call('XPENDING', events, group)
if pending[1] > 0 and earlier(pending[2], keep_from) then
  keep_from = pending[2]
end
return redis.call('XTRIM', events, 'MINID', '=', keep_from)
