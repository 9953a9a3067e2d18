-- Roles and logins of the services. The owner of the database runs it with psql; repeat it to create
-- what is missing. A login that exists is not changed.
-- The environment has the secret of each login, {"username": "scoreboard_api_a", "password": "…"}.
-- The other login of a role has no password until a rotation sets one.
-- `scoreboard db migrate` grants the rights of the roles (sql/grants.sql).
\getenv api API_DATABASE
\getenv flusher FLUSHER_DATABASE
\getenv operator OPERATOR_DATABASE
\getenv rotator ROTATOR_DATABASE
SELECT format('CREATE ROLE %I NOLOGIN', role)
FROM unnest(ARRAY['scoreboard_api', 'scoreboard_flusher', 'scoreboard_operator',
    'scoreboard_rotator']) AS role
WHERE to_regrole(role) IS NULL
\gexec
SELECT format(
    'CREATE ROLE %I LOGIN IN ROLE %I PASSWORD %L', login, role,
    CASE login WHEN document ->> 'username' THEN document ->> 'password' END
)
FROM (
    VALUES
    ('scoreboard_api', :'api'::json),
    ('scoreboard_flusher', :'flusher'::json),
    ('scoreboard_operator', :'operator'::json),
    ('scoreboard_rotator', :'rotator'::json)
) AS secrets (role, document)
CROSS JOIN LATERAL unnest(ARRAY[role || '_a', role || '_b']) AS login
WHERE to_regrole(login) IS NULL
\gexec
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
-- Batches and imports use temporary staging tables.
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO'
        ' scoreboard_api, scoreboard_flusher, scoreboard_operator, scoreboard_rotator',
        current_database()
    );
    EXECUTE format(
        'GRANT TEMPORARY ON DATABASE %I TO scoreboard_flusher, scoreboard_operator',
        current_database()
    );
END $$;
