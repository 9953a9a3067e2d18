-- Roles and logins of the services. The owner of the database runs it once with psql; the passwords
-- come from the environment. `scoreboard db migrate` grants the rights of the roles (sql/grants.sql).
-- The second login of each role has no password until a rotation sets one.
\getenv api API_PASSWORD
\getenv flusher FLUSHER_PASSWORD
\getenv operator OPERATOR_PASSWORD
CREATE ROLE scoreboard_api NOLOGIN;
CREATE ROLE scoreboard_flusher NOLOGIN;
CREATE ROLE scoreboard_operator NOLOGIN;
CREATE ROLE scoreboard_api_a LOGIN PASSWORD :'api' IN ROLE scoreboard_api;
CREATE ROLE scoreboard_api_b LOGIN IN ROLE scoreboard_api;
CREATE ROLE scoreboard_flusher_a LOGIN PASSWORD :'flusher' IN ROLE scoreboard_flusher;
CREATE ROLE scoreboard_flusher_b LOGIN IN ROLE scoreboard_flusher;
CREATE ROLE scoreboard_operator_a LOGIN PASSWORD :'operator' IN ROLE scoreboard_operator;
CREATE ROLE scoreboard_operator_b LOGIN IN ROLE scoreboard_operator;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
-- Batches and imports use temporary staging tables.
DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO scoreboard_api, scoreboard_flusher, scoreboard_operator',
        current_database()
    );
    EXECUTE format(
        'GRANT TEMPORARY ON DATABASE %I TO scoreboard_flusher, scoreboard_operator',
        current_database()
    );
END $$;
