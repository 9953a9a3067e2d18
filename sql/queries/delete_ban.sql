-- End the ban of the user of an act on its board.
-- Index: acts_pk, bans_pk
DELETE FROM bans b USING acts a
WHERE a.id = %(id)s AND b.board = a.board AND b.user_id = a.user_id
