-- trim: acknowledge a committed batch, cut the stream behind it, and say how far PostgreSQL is.
-- WHY       the stream is the only copy of what was acknowledged and not yet committed (I1); in one call, as each call waits for the disk
-- KEYS      1 events stream · 2 meta hash
-- ARGV      1 group · 2 committed stream id, the last one of the batch just committed · 3 epoch int · 4 committed seq int, 0 to say nothing of it · 5+ stream id to acknowledge
-- RETURNS   entries cut
-- OUTCOMES  none
-- REFUSES   BADARG arguments
-- WRITES    events meta
-- EMITS     nothing
-- COST      O(n), n entries acknowledged or cut

local ACKNOWLEDGED_AT_ONCE = 1000
local events, meta = KEYS[1], KEYS[2]
local group, committed, epoch, seq = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

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

if not committed or not parse(committed) or not epoch or not seq then
  return redis.error_reply('BADARG a stream id, an epoch or a seq is none')
end
for i = 5, #ARGV do
  if not parse(ARGV[i]) then
    return redis.error_reply('BADARG an id to acknowledge is no stream id')
  end
end

-- read
local facts = redis.call('HMGET', meta, 'epoch', 'committed')
local known_epoch, known_seq = string.match(facts[2] or '', '^(%d+):(%d+)$')
local has_stream = redis.call('EXISTS', events) == 1
local delivered
for _, fields in ipairs(has_stream and redis.call('XINFO', 'GROUPS', events) or {}) do
  local facts = {}
  for i = 1, #fields, 2 do
    facts[fields[i]] = fields[i + 1]
  end
  if facts.name == group then
    delivered = facts['last-delivered-id']
  end
end

-- write
local cut = 0
if delivered then -- without its group nobody knows what was delivered: cut nothing
  for first = 5, #ARGV, ACKNOWLEDGED_AT_ONCE do
    local last = math.min(first + ACKNOWLEDGED_AT_ONCE - 1, #ARGV)
    redis.call('XACK', events, group, unpack(ARGV, first, last))
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
  cut = redis.call('XTRIM', events, 'MINID', '=', keep_from)
end
if seq > 0 and tonumber(facts[1]) == epoch
    and (tonumber(known_epoch) ~= epoch or tonumber(known_seq) < seq) then
  redis.call('HSET', meta, 'committed', string.format('%.0f:%.0f', epoch, seq))
end
return cut
