-- history: read the replication id of this server.
-- WHY       after a failover the same epoch, seq and stream id may belong to other actions
-- KEYS      none; the caller names one of a partition, which chooses the server of a cluster
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
