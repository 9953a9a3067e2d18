-- depends: 0001_create_boards
-- id is the userId itself where it is a canonical UUID, else a UUIDv5 of it; external_id is what the api speaks.
CREATE TABLE IF NOT EXISTS users (
    id          UUID        NOT NULL CONSTRAINT users_pk PRIMARY KEY,
    external_id TEXT        NOT NULL CONSTRAINT users_external_id_key UNIQUE,
    name        VARCHAR(200),
    email       VARCHAR(320),
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now()
);
