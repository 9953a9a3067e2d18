-- fence: stop accepting actions, in the name of a token.
-- WHY       nothing may be accepted while history is being put back (I9)
-- KEYS      1 meta hash
-- ARGV      1 token, a word of the operator who holds the board's lock
-- RETURNS   epoch or 0, seq or 0: where the partition stood
-- OUTCOMES  none
-- REFUSES   BADARG arguments
-- WRITES    meta
-- EMITS     nothing
-- COST      O(1)

local meta = KEYS[1]
local token = ARGV[1]
if not token or token == '' then
  return redis.error_reply('BADARG a token is needed')
end
-- A field that is no whole number counts as missing: tonumber alone would take '1e5', '0x1' and 'inf'.
local function whole(text)
  local number = tonumber(string.match(text or '', '^%d+$'))
  return number and number < 2 ^ 53 and number or nil
end

local facts = redis.call('HMGET', meta, 'epoch', 'seq')
redis.call('HSET', meta, 'state', 'fenced', 'fence', token)
return { whole(facts[1]) or 0, whole(facts[2]) or 0 }
