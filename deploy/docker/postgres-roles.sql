-- Roles and logins of the services. Run once with psql, by the owner of the database; the passwords
-- come from the environment. A migrator then gives the roles their rights: sql/grants.sql, by
-- `scoreboard db migrate`. Each second login has no password until a rotation gives it one.
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
-- The staging tables of a batch and of an import are temporary ones.
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
