-- The privileges of the services' roles.
-- `scoreboard db migrate` runs this file after the migrations if deploy/docker/postgres-roles.sql has
-- created the roles; it can be repeated. Rows of the ledger, of the audit log and of the backups can
-- only be added.
REVOKE ALL ON ALL TABLES IN SCHEMA public
    FROM scoreboard_api, scoreboard_flusher, scoreboard_operator;
GRANT USAGE ON SCHEMA public TO scoreboard_api, scoreboard_flusher, scoreboard_operator;
GRANT SELECT ON _yoyo_migration, schema_compatibility
    TO scoreboard_api, scoreboard_flusher, scoreboard_operator;

-- The names and metadata of ?names=true, and the history of a user; no e-mail, no request ids.
GRANT SELECT (id, external_id, name, metadata) ON users TO scoreboard_api;
GRANT SELECT (board, user_id, action_id, epoch, seq, delta, score_after, occurred_at) ON score_events
    TO scoreboard_api;
-- The seasons of a board and their final standings.
GRANT SELECT ON seasons, season_standings TO scoreboard_api;
-- Whether the history of a user is no longer there.
GRANT SELECT (board, detached_at) ON ledger_partitions TO scoreboard_api;

-- The names of live boards. A database from before it has no such role: then viewers get ids.
DO $$
BEGIN
    IF to_regrole('scoreboard_streamer') IS NOT NULL THEN
        REVOKE ALL ON ALL TABLES IN SCHEMA public FROM scoreboard_streamer;
        GRANT USAGE ON SCHEMA public TO scoreboard_streamer;
        GRANT SELECT (external_id, name) ON users TO scoreboard_streamer;
    END IF;
END $$;

GRANT SELECT ON boards, actions, scores, score_events, flush_state, rejected_events, dead_events,
    backups, bans, held_actions, seasons, season_turns, season_standings, ledger_partitions, score_sums
    TO scoreboard_flusher;
-- Whether a held action was released, and who was banned at the end of a season; not who decided it, and why.
GRANT SELECT (id, at, board, user_id, kind, refused_at, undoes) ON acts TO scoreboard_flusher;
GRANT SELECT (id, external_id), INSERT (id, external_id) ON users TO scoreboard_flusher;
GRANT INSERT ON score_events, dead_events, held_actions, audit_log TO scoreboard_flusher;
-- The number and the hash of a row that it has inserted; not the rows' content.
GRANT SELECT (seq, hash) ON audit_log TO scoreboard_flusher;
GRANT INSERT, UPDATE (score, actions, reached_at, last_seq) ON scores TO scoreboard_flusher;
GRANT INSERT, UPDATE (epoch, seq, stream_id, clock, season) ON flush_state TO scoreboard_flusher;
-- The ends of seasons and their final standings; open_season records a season.
GRANT INSERT ON season_turns, season_standings TO scoreboard_flusher;
GRANT DELETE ON season_standings TO scoreboard_flusher;
GRANT UPDATE (frozen_at, revisions, revised_at) ON seasons TO scoreboard_flusher;
GRANT SELECT, UPDATE (done_at) ON season_revisions TO scoreboard_flusher;
GRANT INSERT, UPDATE (corrected_at) ON rejected_events TO scoreboard_flusher;

GRANT SELECT ON boards, users, actions, scores, score_events, flush_state, rejected_events,
    dead_events, held_actions, audit_log, backups, acts, act_actions, bans, seasons, season_turns, season_standings,
    ledger_partitions, score_sums
    TO scoreboard_operator;
GRANT INSERT ON score_events, held_actions, audit_log, backups, acts, act_actions, bans
    TO scoreboard_operator;
GRANT UPDATE (act_id, voided_at, voided_by, voided_reason) ON held_actions TO scoreboard_operator;
GRANT UPDATE (refused_at) ON acts TO scoreboard_operator;
-- The final standings of a season are computed again.
GRANT UPDATE (revisions, revised_at) ON seasons TO scoreboard_operator;
GRANT INSERT, DELETE ON season_standings TO scoreboard_operator;
GRANT SELECT, INSERT, UPDATE (done_at) ON season_revisions TO scoreboard_operator;
GRANT DELETE ON bans TO scoreboard_operator;
GRANT INSERT, UPDATE (
    partitions, seen_seconds, seen_shards, is_public, state, points_per_action, points_per_window, window_s
) ON boards TO scoreboard_operator;
GRANT INSERT, UPDATE (name, email, metadata) ON users TO scoreboard_operator;
GRANT INSERT, UPDATE (points, enabled, updated_at, scope, boards, needs_proof) ON actions
    TO scoreboard_operator;
GRANT INSERT, UPDATE (score, actions, reached_at, last_seq) ON scores TO scoreboard_operator;
GRANT INSERT, UPDATE (epoch, seq, stream_id, season) ON flush_state TO scoreboard_operator;
GRANT INSERT, UPDATE (corrected_at) ON rejected_events TO scoreboard_operator;
GRANT UPDATE (resolved_at, resolution, resolved_by, resolved_reason) ON dead_events
    TO scoreboard_operator;

GRANT EXECUTE ON FUNCTION open_season TO scoreboard_flusher, scoreboard_operator;

-- The rotator sets passwords and ends sessions by these functions, which run with the owner's rights, and
-- has no other right. With CREATEROLE and ADMIN OPTION instead, it could create, rename and drop roles
-- and become a member of each; and two logins cannot have ADMIN OPTION on each other.
CREATE OR REPLACE FUNCTION set_login_password(login TEXT, verifier TEXT) RETURNS VOID
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_roles
        WHERE rolname = login AND rolcanlogin AND NOT rolsuper
            AND rolname ~ '^scoreboard_(api|streamer|flusher|operator|rotator)_[ab]$'
    ) THEN
        RAISE insufficient_privilege USING MESSAGE = format('%L is not the login of a service', login);
    END IF;
    -- Plain text could get into a log.
    IF verifier !~ '^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$' THEN
        RAISE invalid_password USING MESSAGE = 'the password is not a SCRAM-SHA-256 verifier';
    END IF;
    -- PostgreSQL refuses concurrent changes of one role.
    PERFORM pg_advisory_xact_lock(hashtext(login));
    EXECUTE format('ALTER ROLE %I PASSWORD %L', login, verifier);
    INSERT INTO public.audit_log (actor, action, detail)
    VALUES (session_user, 'secret set', jsonb_build_object('login', login));
END $$;
CREATE OR REPLACE FUNCTION end_login_sessions(login TEXT) RETURNS INTEGER
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF login IS NULL OR login !~ '^scoreboard_(api|streamer|flusher|operator|rotator)_[ab]$' THEN
        RAISE insufficient_privilege USING MESSAGE = format('%L is not the login of a service', login);
    END IF;
    INSERT INTO public.audit_log (actor, action, detail)
    VALUES (session_user, 'session end', jsonb_build_object('login', login));
    RETURN (
        SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE usename = login AND pid <> pg_backend_pid()
    );
END $$;
REVOKE ALL ON FUNCTION set_login_password, end_login_sessions FROM PUBLIC;
DO $$
BEGIN
    IF to_regrole('scoreboard_rotator') IS NOT NULL THEN
        GRANT EXECUTE ON FUNCTION set_login_password, end_login_sessions TO scoreboard_rotator;
    END IF;
END $$;
