-- The privileges of the services' roles.
-- `scoreboard db migrate` runs this file after the migrations if deploy/docker/postgres-roles.sql has
-- created the roles; it can be repeated. Rows of the ledger and of the audit log can only be added.
REVOKE ALL ON ALL TABLES IN SCHEMA public
    FROM scoreboard_api, scoreboard_flusher, scoreboard_operator;
GRANT USAGE ON SCHEMA public TO scoreboard_api, scoreboard_flusher, scoreboard_operator;
GRANT SELECT ON _yoyo_migration TO scoreboard_api, scoreboard_flusher, scoreboard_operator;

-- The names of ?names=true; no e-mail.
GRANT SELECT (external_id, name) ON users TO scoreboard_api;

GRANT SELECT ON boards, actions, scores, score_events, flush_state, rejected_events, dead_events
    TO scoreboard_flusher;
GRANT SELECT (id, external_id), INSERT (id, external_id) ON users TO scoreboard_flusher;
GRANT INSERT ON score_events, dead_events, audit_log TO scoreboard_flusher;
GRANT INSERT, UPDATE (score, actions, reached_at, last_seq) ON scores TO scoreboard_flusher;
GRANT INSERT, UPDATE (epoch, seq, stream_id, clock) ON flush_state TO scoreboard_flusher;
GRANT INSERT, UPDATE (corrected_at) ON rejected_events TO scoreboard_flusher;

GRANT SELECT ON boards, users, actions, scores, score_events, flush_state, rejected_events,
    dead_events, audit_log
    TO scoreboard_operator;
GRANT INSERT ON score_events, audit_log TO scoreboard_operator;
GRANT INSERT, UPDATE (partitions, seen_seconds, seen_shards, is_public) ON boards
    TO scoreboard_operator;
GRANT INSERT, UPDATE (name, email) ON users TO scoreboard_operator;
GRANT INSERT, UPDATE (points, enabled, updated_at) ON actions TO scoreboard_operator;
GRANT INSERT, UPDATE (score, actions, reached_at, last_seq) ON scores TO scoreboard_operator;
GRANT INSERT, UPDATE (epoch, seq, stream_id) ON flush_state TO scoreboard_operator;
GRANT INSERT, UPDATE (corrected_at) ON rejected_events TO scoreboard_operator;
GRANT UPDATE (resolved_at, resolution, resolved_by, resolved_reason) ON dead_events
    TO scoreboard_operator;
