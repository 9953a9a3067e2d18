-- Count the action of a dead letter: the ledger decides whether it is new, and only then the score changes.
-- Index: users_external_id_key, score_events_pk, held_actions_pk, scores_pk
-- A negative delta is an UPDATE: an INSERT checks its row against the constraint of a score before it finds the conflict.
-- Without a score (NULL) the row gets the score that PostgreSQL has after it.
WITH counted AS (
    INSERT INTO score_events (
        board, part, user_id, action_id, epoch, seq, delta, score_after, kind, request_id, occurred_at, season
    )
    SELECT %(board)s, %(part)s, u.id, %(action_id)s, %(epoch)s, %(seq)s, %(delta)s::INT,
           coalesce(
               %(score_after)s::INT,
               %(delta)s::INT + coalesce(
                   (SELECT s.score FROM scores s WHERE s.board = %(scores)s AND s.user_id = u.id), 0
               )
           ),
           %(kind)s, %(request_id)s, least(%(occurred_at)s, now() + INTERVAL '1 minute'),
           %(season)s::TEXT
    FROM users u
    WHERE u.external_id = %(user_id)s AND NOT EXISTS (
        SELECT FROM held_actions h
        WHERE h.board = %(board)s AND h.user_id = u.id AND h.action_id = %(action_id)s
    )
    ON CONFLICT DO NOTHING
    RETURNING user_id, seq, delta, occurred_at
), lowered AS (
    UPDATE scores s
    SET score = s.score + c.delta,
        actions = s.actions + 1,
        reached_at = greatest(s.reached_at, c.occurred_at),
        last_seq = greatest(s.last_seq, c.seq)
    FROM counted c
    WHERE c.delta < 0 AND s.board = %(scores)s AND s.user_id = c.user_id
), raised AS (
    INSERT INTO scores AS s (board, user_id, score, actions, reached_at, last_seq)
    SELECT %(scores)s, user_id, delta, 1, occurred_at, seq FROM counted c
    WHERE delta > 0 OR NOT EXISTS (SELECT FROM scores x WHERE x.board = %(scores)s AND x.user_id = c.user_id)
    ON CONFLICT (board, user_id) DO UPDATE
    SET score = s.score + excluded.score,
        actions = s.actions + 1,
        reached_at = greatest(s.reached_at, excluded.reached_at),
        last_seq = greatest(s.last_seq, excluded.last_seq)
)
SELECT count(*) FROM counted
