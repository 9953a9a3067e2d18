-- depends: 0009_create_audit_log
-- Two ids may prefer the same UUID (docs/decisions/0045), so the row of a user decides its id.
CREATE OR REPLACE FUNCTION user_id_of(external TEXT, preferred UUID) RETURNS UUID
LANGUAGE plpgsql AS $$
DECLARE
    found_id UUID;
BEGIN
    LOOP
        SELECT id INTO found_id FROM users WHERE external_id = external;
        EXIT WHEN found_id IS NOT NULL;
        INSERT INTO users (id, external_id) VALUES (preferred, external)
        ON CONFLICT DO NOTHING RETURNING id INTO found_id;
        EXIT WHEN found_id IS NOT NULL;
        -- The id belongs to another user, or this user was made meanwhile: the next turn finds it.
        preferred := gen_random_uuid();
    END LOOP;
    RETURN found_id;
END $$;
