-- depends: 0008_create_actions
-- Administrative changes, written in the transaction of the change itself; append only.
CREATE TABLE IF NOT EXISTS audit_log (
    id      BIGINT      NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT audit_log_pk PRIMARY KEY,
    at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    actor   TEXT        NOT NULL,
    action  TEXT        NOT NULL,
    board   TEXT,
    detail  JSONB       NOT NULL DEFAULT '{}'
);
CREATE OR REPLACE FUNCTION audit_log_is_append_only() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is append only';
END $$;
CREATE OR REPLACE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_append_only();
