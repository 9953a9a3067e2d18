-- Count the users of the frozen standings of a season with a better score than one, and with that score or a better one.
-- Index: season_standings_pk, at each step of a binary search, because scores are in order of ranks
WITH RECURSIVE sides (includes_equals) AS (
    VALUES (false), (true)
), search (includes_equals, low, high) AS (
    SELECT s.includes_equals, 0::BIGINT, coalesce((
        SELECT max(t.rank) FROM season_standings t WHERE t.board = %(board)s AND t.season = %(season)s
    ), 0)
    FROM sides s
    UNION ALL
    SELECT m.includes_equals,
           CASE WHEN d.is_before THEN m.middle ELSE m.low END,
           CASE WHEN d.is_before THEN m.high ELSE m.middle - 1 END
    FROM (
        SELECT s.includes_equals, s.low, s.high, (s.low + s.high + 1) / 2 AS middle FROM search s WHERE s.low < s.high
    ) m CROSS JOIN LATERAL (
        SELECT CASE WHEN t.score = %(score)s::BIGINT THEN m.includes_equals
                    WHEN %(is_lowest_best)s::BOOLEAN THEN t.score < %(score)s::BIGINT
                    ELSE t.score > %(score)s::BIGINT END AS is_before
        FROM season_standings t
        WHERE t.board = %(board)s AND t.season = %(season)s AND t.rank = m.middle
    ) d
)
SELECT max(low) FILTER (WHERE NOT includes_equals), max(low) FILTER (WHERE includes_equals)
FROM search WHERE low = high
