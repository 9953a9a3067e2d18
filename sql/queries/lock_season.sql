-- Lock a season against its freeze and other revisions; return whether its standings are frozen.
-- Index: seasons_pk
SELECT frozen_at IS NOT NULL FROM seasons WHERE board = %(board)s AND season = %(season)s FOR UPDATE
