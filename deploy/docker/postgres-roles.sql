-- Roles of the services; run as the owner of the database, with the variable `password`.
CREATE ROLE scoreboard_rw NOLOGIN;
CREATE ROLE scoreboard_a LOGIN PASSWORD :'password' IN ROLE scoreboard_rw;
-- No password yet: nobody can log in by it until a rotation gives it one.
CREATE ROLE scoreboard_b LOGIN IN ROLE scoreboard_rw;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO scoreboard_rw;
-- Tables come later, by migrations: these hold for whatever the owner makes.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO scoreboard_rw;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO scoreboard_rw;
