-- Ask for a revision of the standings of a season, in the transaction of the change.
-- Index: none
INSERT INTO season_revisions (board, season, reason) VALUES (%(board)s, %(season)s, %(reason)s)
