-- Count a staged batch: the ledger decides which rows are new, and scores change by their sum.
-- Index: users_pk, flush_state_pk, score_events_pk, held_actions_pk, scores_pk
-- All statements lock rows in the same order (users by id, ledger by its key, scores by user), so
-- flushers cannot deadlock. Returns: rows counted; of these, rows whose seq was committed before
-- (Redis lost acknowledged data); users whose score differs from the one in the stream; whether a
-- staged id is not the id of its user's row: then nothing was counted.
-- The scores of a season have a name of their own; the ledger's key spans all seasons of the board.
-- A negative sum is an UPDATE: an INSERT checks its row against the constraint of a score before it finds the conflict.
-- A held action never counts by itself, also if it comes again after the dedup window.
-- The time of a row is that of its stream id, at most a minute from now and never before that of an
-- earlier row: stream ids stay in the future after Redis's clock has jumped forward and back.
WITH missing AS MATERIALIZED (
    SELECT user_id, external_id FROM flush_batch b
    WHERE is_last
      AND external_id IS DISTINCT FROM (SELECT u.external_id FROM users u WHERE u.id = b.user_id)
), inserted AS (
    INSERT INTO users (id, external_id)
    SELECT user_id, external_id FROM missing ORDER BY user_id
    ON CONFLICT DO NOTHING
    RETURNING id
), mismatches AS (
    SELECT (SELECT count(*) FROM missing) <> (SELECT count(*) FROM inserted) AS exist
), latest AS (
    SELECT clock FROM flush_state WHERE board = %(board)s AND part = %(part)s
), counted AS (
    INSERT INTO score_events (
        board, part, user_id, action_id, epoch, seq, delta, score_after, kind, request_id, occurred_at, season
    )
    SELECT %(board)s::TEXT, %(part)s::INT,
           user_id, action_id, epoch, seq, delta, score_after, kind, request_id,
           greatest((SELECT clock FROM latest), least(occurred_at, now() + INTERVAL '1 minute')),
           %(season)s::TEXT
    FROM flush_batch b
    WHERE NOT (SELECT exist FROM mismatches)
      AND NOT EXISTS (
          SELECT FROM held_actions h
          WHERE h.board = %(board)s AND h.user_id = b.user_id AND h.action_id = b.action_id
      )
    ORDER BY user_id, action_id, seq
    ON CONFLICT DO NOTHING
    RETURNING user_id, seq, delta, occurred_at
), totals AS (
    SELECT user_id, sum(delta) AS total, count(*) AS actions, max(occurred_at) AS reached_at, max(seq) AS last_seq
    FROM counted GROUP BY user_id
), lowered AS (
    UPDATE scores s
    SET score = s.score + t.total,
        actions = s.actions + t.actions,
        reached_at = greatest(s.reached_at, t.reached_at),
        last_seq = greatest(s.last_seq, t.last_seq)
    FROM totals t
    WHERE t.total < 0 AND s.board = %(scores)s AND s.user_id = t.user_id
    RETURNING s.user_id, s.score
), raised AS (
    INSERT INTO scores AS s (board, user_id, score, actions, reached_at, last_seq)
    SELECT %(scores)s::TEXT, user_id, total, actions, reached_at, last_seq
    FROM totals t
    WHERE total >= 0
       OR NOT EXISTS (SELECT FROM scores x WHERE x.board = %(scores)s AND x.user_id = t.user_id)
    ORDER BY user_id
    ON CONFLICT (board, user_id) DO UPDATE
    SET score = s.score + excluded.score,
        actions = s.actions + excluded.actions,
        reached_at = greatest(s.reached_at, excluded.reached_at),
        last_seq = greatest(s.last_seq, excluded.last_seq)
    RETURNING user_id, score
), moved AS (
    SELECT * FROM lowered UNION ALL SELECT * FROM raised
)
SELECT (SELECT count(*) FROM counted),
       (SELECT count(*) FROM counted WHERE seq <= %(seq)s::BIGINT),
       (SELECT count(*) FROM moved m JOIN flush_batch b USING (user_id)
        WHERE b.is_last AND b.score_after <> m.score),
       (SELECT exist FROM mismatches)
