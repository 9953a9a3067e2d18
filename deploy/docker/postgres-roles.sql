-- Roles and logins of the services. The owner of the database runs it with psql; repeat it to create
-- what is missing. A login that exists is not changed, unless it has no password and the secret names
-- it: then it gets that of the secret. Only a superuser can see that; another owner sets such a
-- password with ALTER ROLE.
-- The environment has the secret of each login, {"username": "scoreboard_api_a", "password": "…"}.
-- The other login of a role has no password until a rotation sets one.
-- `scoreboard db migrate` grants the rights of the roles (sql/grants.sql).
\getenv api API_DATABASE
-- Without it, the logins of the streamer get no password, and viewers no names.
\set streamer '{}'
\getenv streamer STREAMER_DATABASE
\getenv flusher FLUSHER_DATABASE
\getenv operator OPERATOR_DATABASE
\getenv rotator ROTATOR_DATABASE
-- A DO block cannot read psql's variables.
SET scoreboard.api = :'api';
SET scoreboard.streamer = :'streamer';
SET scoreboard.flusher = :'flusher';
SET scoreboard.operator = :'operator';
SET scoreboard.rotator = :'rotator';
DO $$
DECLARE
    service TEXT;
    service_role TEXT;
    login TEXT;
    document TEXT;
    password TEXT;
    has_none BOOLEAN;
BEGIN
    FOREACH service IN ARRAY ARRAY['api', 'streamer', 'flusher', 'operator', 'rotator'] LOOP
        service_role := 'scoreboard_' || service;
        document := current_setting('scoreboard.' || service);
        IF document IS NOT JSON OBJECT THEN
            RAISE WARNING 'the secret of % is not a JSON object: its logins get no password', service;
            document := '{}';
        END IF;
        IF to_regrole(service_role) IS NULL THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', service_role);
        END IF;
        FOREACH login IN ARRAY ARRAY[service_role || '_a', service_role || '_b'] LOOP
            password := CASE document::json ->> 'username' WHEN login
                THEN document::json ->> 'password' END;
            IF to_regrole(login) IS NULL THEN
                EXECUTE format(
                    'CREATE ROLE %I LOGIN IN ROLE %I PASSWORD %L', login, service_role, password
                );
            ELSIF password IS NOT NULL THEN
                BEGIN
                    SELECT rolpassword IS NULL INTO has_none FROM pg_authid WHERE rolname = login;
                EXCEPTION WHEN insufficient_privilege THEN
                    has_none := FALSE;
                END;
                IF has_none THEN
                    EXECUTE format('ALTER ROLE %I PASSWORD %L', login, password);
                END IF;
            END IF;
        END LOOP;
    END LOOP;
END $$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
-- Batches and imports use temporary staging tables.
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO'
        ' scoreboard_api, scoreboard_streamer, scoreboard_flusher, scoreboard_operator, scoreboard_rotator',
        current_database()
    );
    EXECUTE format(
        'GRANT TEMPORARY ON DATABASE %I TO scoreboard_flusher, scoreboard_operator',
        current_database()
    );
END $$;
-- The exporter of the profile `observability` reads the statistics of the server and no table of ours.
-- Without MONITOR_PASSWORD it gets no login.
\set monitor ''
\getenv monitor MONITOR_PASSWORD
SET scoreboard.monitor = :'monitor';
DO $$
DECLARE
    password TEXT := current_setting('scoreboard.monitor');
BEGIN
    IF password = '' THEN
        RETURN;
    END IF;
    IF to_regrole('scoreboard_monitor') IS NULL THEN
        EXECUTE format('CREATE ROLE scoreboard_monitor LOGIN PASSWORD %L', password);
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO scoreboard_monitor', current_database());
    GRANT pg_monitor TO scoreboard_monitor;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'scoreboard_monitor was not created: % has no admin option on pg_monitor', current_user;
END $$;
RESET scoreboard.monitor;
