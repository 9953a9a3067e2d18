-- Let a kind of action earn nothing any more.
-- Index: actions_pk
UPDATE actions SET enabled = FALSE, updated_at = now() WHERE kind = %(kind)s
