-- history: name the history of writes that this server continues.
-- WHY       after a failover the same epoch, seq and stream id may belong to other actions
-- KEYS      none
-- ARGV      none
-- BELIEFS   none
-- RETURNS   the replication id, which differs after every failover and every start; empty where the server hides it
-- OUTCOMES  none
-- REFUSES   none
-- WRITES    nothing
-- EMITS     nothing
-- COST      O(1)

local info = redis.pcall('INFO', 'replication')
return type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or ''
