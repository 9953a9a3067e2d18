-- Disable a kind of action.
-- Index: actions_pk
UPDATE actions SET enabled = FALSE, updated_at = now() WHERE kind = %(kind)s
