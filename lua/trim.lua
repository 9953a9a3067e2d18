-- trim: acknowledge a committed batch, publish the committed position, and trim the stream.
-- WHY       the stream is the only copy of acknowledged, uncommitted actions (I1); one call, because each call waits for an fsync
-- KEYS      1 events stream · 2 meta hash
-- ARGV      1 group · 2 replication id, read before the batch · 3 epoch int · 4 stream id of the batch's last entry · 5 first seq int of the batch, 0 if unknown · 6 last seq int of the batch, 0 for none · 7 channel that announces commits · 8+ stream id to acknowledge
-- ASSUMES   the entries are in this stream: replication id and epoch are compared · no entry before them is uncommitted: the first seq follows the committed one, or, if unknown, each entry before is acknowledged now or known to be committed; pending and undelivered entries are not trimmed
-- RETURNS   entries removed, subscribers that received the announcement or -1 if there was none
-- OUTCOMES  none
-- REFUSES   UNINIT no epoch · STALE other replication id, other epoch, or an entry before the batch is not committed · BADARG arguments
-- WRITES    events meta
-- EMITS     `epoch:seq` to the channel, if the committed position moved
-- COST      O(n), n entries acknowledged or removed

local ACKNOWLEDGED_AT_ONCE = 1000
local READ_AT_ONCE = 1000
local events, meta = KEYS[1], KEYS[2]
local group, replication_id, epoch, last_id = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local first, last = tonumber(ARGV[5]), tonumber(ARGV[6])
local commits = ARGV[7]

-- Ids are compared as two numbers; as text, '9-0' would follow '10-0'.
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
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end

if not replication_id or not epoch or not last_id or not parse(last_id) or not first or not last or not commits then
  return redis.error_reply('BADARG expected a replication id, an epoch, a stream id, two seqs and a channel')
end
for i = 8, #ARGV do
  if not parse(ARGV[i]) then
    return redis.error_reply('BADARG an id to acknowledge is not a stream id')
  end
end

-- read
local facts = redis.call('HMGET', meta, 'epoch', 'committed')
local meta_epoch = whole(facts[1])
if not meta_epoch or meta_epoch < 1 then
  return redis.error_reply('UNINIT the partition is empty: reseed it')
end
if meta_epoch ~= epoch then
  return redis.error_reply('STALE another epoch began')
end
local info = redis.pcall('INFO', 'replication') -- a server may not show it; then both are empty
if (type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or '') ~= replication_id then
  return redis.error_reply('STALE the replication id has changed')
end
local known_epoch, known = string.match((facts[2] or '') .. ':', '^(%d+):(%d+):')
known = whole(known_epoch) == epoch and whole(known)
if known and first > known + 1 then
  return redis.error_reply('STALE an entry before the batch is not known to be committed')
end
local has_stream = redis.call('EXISTS', events) == 1
local delivered
for _, fields in ipairs(has_stream and redis.call('XINFO', 'GROUPS', events) or {}) do
  local named = {}
  for i = 1, #fields, 2 do
    named[fields[i]] = fields[i + 1]
  end
  if named.name == group then
    delivered = named['last-delivered-id']
  end
end

local keep_from = after(last_id)
if delivered and earlier(after(delivered), keep_from) then
  keep_from = after(delivered)
end
if known and first == 0 then
  local listed = {}
  for i = 8, #ARGV do
    listed[ARGV[i]] = true
  end
  local from = '-'
  repeat
    local entries = redis.call('XRANGE', events, from, '(' .. keep_from, 'COUNT', READ_AT_ONCE)
    for _, entry in ipairs(entries) do
      local q
      for i = 1, #entry[2], 2 do
        q = entry[2][i] == 'q' and entry[2][i + 1] or q
      end
      if not listed[entry[1]] and (whole(q) or 0) > known then
        return redis.error_reply('STALE an entry before the batch is not known to be committed')
      end
      from = '(' .. entry[1]
    end
  until #entries < READ_AT_ONCE
end

-- write
local receivers = -1
if last > (known or 0) then
  local position = string.format('%.0f:%.0f', epoch, last)
  redis.call('HSET', meta, 'committed', position)
  local published = redis.pcall('PUBLISH', commits, position) -- pcall: the user may lack access to the channel
  receivers = type(published) == 'number' and published or -1
end
if not delivered then -- without its group it is unknown what was delivered: remove nothing
  return { 0, receivers }
end
for from = 8, #ARGV, ACKNOWLEDGED_AT_ONCE do
  local to = math.min(from + ACKNOWLEDGED_AT_ONCE - 1, #ARGV)
  redis.call('XACK', events, group, unpack(ARGV, from, to))
end
local pending = redis.call('XPENDING', events, group)
if pending[1] > 0 and earlier(pending[2], keep_from) then
  keep_from = pending[2]
end
return { redis.call('XTRIM', events, 'MINID', '=', keep_from), receivers }
