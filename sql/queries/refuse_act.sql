-- Record that Redis refused an act; it can then never be applied.
-- Index: acts_pk
UPDATE acts SET refused_at = now() WHERE id = %(id)s AND refused_at IS NULL
