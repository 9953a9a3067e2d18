-- open: replace the board with the shadow board, raise the epoch and accept actions again, unless it is archived.
-- WHY       viewers and callers see the old board or the complete new one (I9)
-- KEYS      1 board zset · 2 shadow zset · 3 events stream · 4 meta hash · 5 changes channel
-- ARGV      1 token of the fence · 2 epoch int · 3 seq int · 4 stream id after which new events follow · 5 group · 6 layout with rules · 7 public 0 or 1 · 8 members int the shadow must have · 9 state open or archived, open if there is none · 10 limits as for configure, empty or missing for none · 11 season id:start:end, empty or missing for a board without seasons
-- ASSUMES   the caller has exclusive access to the partition: its token is compared, and every other fence replaces it · PostgreSQL has everything in the stream: all was delivered and acknowledged · the shadow board is what the caller loaded: its members are compared · epoch and seq do not decrease
-- RETURNS   members of the board
-- OUTCOMES  none
-- REFUSES   FENCE another token holds the fence, or the shadow board is incomplete · LAG the stream holds uncommitted entries · BADARG arguments
-- WRITES    board shadow events meta
-- EMITS     to changes, once
-- COST      O(n), n entries left in the stream, all of them committed

local board, shadow, events, meta, changes = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local token, epoch, seq, position = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local group, layout, public, members = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local state, limits, season = ARGV[9] or 'open', ARGV[10] or '', ARGV[11] or ''

local function parse(id)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(n)
end

-- The default rules are not part of a layout.
local rules = string.match(layout, '^%d+:%d+:%d+(.*)$')
local is_layout = rules == '' or (rules and string.match(rules, '^:%l+:%l+:%d+:%d+:%l+:%l+$')
  or (rules and string.match(rules, '^:%l+:%l+:%d+:%d+:%l+:%l+:[!-~]+@[!-~]+$')))
local has_seasons = string.match(layout, '@') ~= nil
local position_ms, position_n = parse(position)
if not epoch or epoch < 1 or not seq or seq < 0 or not position_ms or not members
    or not is_layout or (public ~= '0' and public ~= '1')
    or (state ~= 'open' and state ~= 'archived')
    or (limits ~= '' and not string.match(limits, '^%d+:%d+:%d+$'))
    or has_seasons ~= (string.match(season, '^[0-9A-Z%-]+:%d+:%d+$') ~= nil) then
  return redis.error_reply('BADARG epoch, seq, stream id, layout, public, members, state, limits or season')
end
-- A field that is not a whole number counts as missing: tonumber alone accepts '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end
local facts = redis.call('HMGET', meta, 'fence', 'epoch', 'seq')
if facts[1] ~= token then
  return redis.error_reply('FENCE another operator holds the fence')
end
if epoch <= (whole(facts[2]) or 0) or seq < (whole(facts[3]) or 0) then
  return redis.error_reply('BADARG the epoch must rise, and seq must not go back')
end
if redis.call('ZCARD', shadow) ~= members then
  return redis.error_reply('FENCE the shadow board is not complete')
end
local function named(fields)
  local values = {}
  for i = 1, #fields, 2 do
    values[fields[i]] = fields[i + 1]
  end
  return values
end
local is_drained, has_group = true, false
if redis.call('EXISTS', events) == 1 then
  local stream = named(redis.call('XINFO', 'STREAM', events))
  is_drained = stream.length == 0
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', events)) do
    local one = named(fields)
    if one.name == group then
      has_group = true
      is_drained = is_drained
        or (one.pending == 0 and one['last-delivered-id'] == stream['last-generated-id'])
    end
  end
  local last_ms, last_n = parse(stream['last-generated-id'])
  -- Ids never decrease: XSETID refuses that, and occurred_at is derived from them.
  if last_ms > position_ms or (last_ms == position_ms and last_n > position_n) then
    position = stream['last-generated-id']
  end
end
if not is_drained then
  return redis.error_reply('LAG the stream holds actions that are not committed')
end

redis.call('UNLINK', board) -- whatever type it has
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
-- The dedup window was filled from the ledger, so all of it is committed.
local committed = string.format('%.0f:%.0f', epoch, seq)
redis.call('UNLINK', meta)
redis.call('HSET', meta, 'epoch', string.format('%.0f', epoch), 'seq', string.format('%.0f', seq),
  'state', state, 'layout', layout, 'public', public, 'committed', committed)
if limits ~= '' then
  redis.call('HSET', meta, 'limits', limits)
end
if has_seasons then
  redis.call('HSET', meta, 'season', season)
end
redis.call('PUBLISH', changes, committed)
return members
