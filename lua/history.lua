-- history: read the replication id of this server.
-- WHY       after a failover the same epoch, seq and stream id may belong to other actions
-- KEYS      1 any key of a partition: it names the server
-- ARGV      none
-- ASSUMES   none
-- RETURNS   the replication id, which differs after every failover and every start; empty if the server does not show it
-- OUTCOMES  none
-- REFUSES   none
-- WRITES    nothing
-- EMITS     nothing
-- COST      O(1)

local info = redis.pcall('INFO', 'replication')
return type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or ''
