-- open: make the shadow board the board, raise the epoch and accept again.
-- WHY       viewers and callers see the old board or the whole new one, never a mixture (I9)
-- KEYS      1 board zset · 2 shadow zset · 3 events stream · 4 meta hash · 5 changes channel
-- ARGV      1 token of the fence · 2 epoch int · 3 seq int · 4 stream id from which new events go on · 5 group · 6 layout · 7 public 0 or 1 · 8 members int the shadow must have
-- RETURNS   members of the board
-- OUTCOMES  none
-- REFUSES   FENCE another token holds the fence, or the shadow is not complete · BADARG arguments
-- WRITES    board shadow events meta
-- EMITS     to changes, once
-- COST      O(n), n entries left in the stream, all of them committed

local board, shadow, events, meta, changes = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local token, epoch, seq, position = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local group, layout, public, members = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])

local function parse(id)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(n)
end

local position_ms, position_n = parse(position)
if not epoch or epoch < 1 or not seq or seq < 0 or not position_ms or not members
    or not string.match(layout, '^%d+:%d+:%d+$') or (public ~= '0' and public ~= '1') then
  return redis.error_reply('BADARG epoch, seq, stream id, layout, public or members')
end
local facts = redis.call('HMGET', meta, 'fence', 'epoch')
if facts[1] ~= token then
  return redis.error_reply('FENCE another operator holds the fence')
end
if epoch <= (tonumber(facts[2]) or 0) then
  return redis.error_reply('BADARG the epoch must rise')
end
if redis.call('ZCARD', shadow) ~= members then
  return redis.error_reply('FENCE the shadow board is not complete')
end
redis.call('ZCARD', board)
local has_stream, has_group = redis.call('EXISTS', events) == 1, false
if has_stream then
  local stream = redis.call('XINFO', 'STREAM', events)
  for i = 1, #stream, 2 do
    if stream[i] == 'last-generated-id' then
      local last_ms, last_n = parse(stream[i + 1])
      -- Ids never go back: XSETID refuses it, and occurred_at is read from them.
      if last_ms > position_ms or (last_ms == position_ms and last_n > position_n) then
        position = stream[i + 1]
      end
    end
  end
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', events)) do
    for i = 1, #fields, 2 do
      has_group = has_group or (fields[i] == 'name' and fields[i + 1] == group)
    end
  end
end

redis.call('UNLINK', board)
if members > 0 then
  redis.call('RENAME', shadow, board)
end
if has_group then
  redis.call('XGROUP', 'SETID', events, group, position)
else
  redis.call('XGROUP', 'CREATE', events, group, position, 'MKSTREAM')
end
redis.call('XTRIM', events, 'MAXLEN', 0)
redis.call('XSETID', events, position)
redis.call('HSET', meta, 'epoch', string.format('%.0f', epoch), 'seq', string.format('%.0f', seq),
  'state', 'open', 'layout', layout, 'public', public)
redis.call('HDEL', meta, 'fence')
redis.call('PUBLISH', changes, string.format('%.0f:%.0f', epoch, seq))
return members
