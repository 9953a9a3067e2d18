-- Ban the user of an act on its board, unless it is banned.
-- Index: acts_pk, bans_pk
INSERT INTO bans (board, user_id, act_id)
SELECT board, user_id, id FROM acts WHERE id = %(id)s
ON CONFLICT DO NOTHING
