-- List the banned users of a board.
-- Index: bans_pk, users_pk
SELECT u.external_id FROM bans b JOIN users u ON u.id = b.user_id WHERE b.board = %(board)s
