-- Record actions that exceeded a limit, each once; return how many are new, and how many of these have a committed seq.
-- Index: users_external_id_key, score_events_pk, held_actions_pk, rejected_events_pk
-- A repeat has a place in the stream of its own, so it is kept as a late duplicate; nothing has to be corrected for it.
-- A redelivered entry is neither.
WITH given AS MATERIALIZED (
    SELECT user_id_of(g.external_id, g.preferred_id) AS user_id, g.action_id, g.epoch, g.seq, g.delta, g.score,
           g.limit_kind, g.request_id, least(g.occurred_at, now() + INTERVAL '1 minute') AS occurred_at, g.season
    FROM unnest(
        %(users)s::TEXT[], %(preferred_ids)s::UUID[], %(actions)s::TEXT[], %(epochs)s::BIGINT[], %(seqs)s::BIGINT[],
        %(deltas)s::INT[], %(scores)s::INT[], %(limits)s::TEXT[], %(requests)s::TEXT[], %(times)s::TIMESTAMPTZ[],
        %(seasons)s::TEXT[]
    ) AS g (
        external_id, preferred_id, action_id, epoch, seq, delta, score, limit_kind, request_id, occurred_at,
        season
    )
    ORDER BY g.external_id, g.action_id, g.epoch, g.seq
), held AS (
    INSERT INTO held_actions (
        board, part, user_id, action_id, epoch, seq, delta, score, limit_kind, request_id, occurred_at, season
    )
    SELECT %(board)s, %(part)s, g.user_id, g.action_id, g.epoch, g.seq, g.delta, g.score, g.limit_kind, g.request_id,
           g.occurred_at, g.season
    FROM given g
    WHERE NOT EXISTS (
        SELECT FROM score_events e
        WHERE e.board = %(board)s AND e.user_id = g.user_id AND e.action_id = g.action_id
    )
    ORDER BY g.epoch, g.seq
    ON CONFLICT DO NOTHING
    RETURNING user_id, action_id, epoch, seq
), repeated AS (
    INSERT INTO rejected_events (
        board, part, user_id, action_id, epoch, seq, delta, score_after, request_id, reason, occurred_at, corrected_at
    )
    SELECT %(board)s, %(part)s, g.user_id, g.action_id, g.epoch, g.seq, g.delta, g.score, g.request_id,
           'late_duplicate', g.occurred_at, now()
    FROM given g
    WHERE NOT EXISTS (
        SELECT FROM held h
        WHERE (h.user_id, h.action_id, h.epoch, h.seq) = (g.user_id, g.action_id, g.epoch, g.seq)
    ) AND NOT EXISTS (
        SELECT FROM held_actions h
        WHERE h.board = %(board)s AND (h.user_id, h.action_id, h.epoch, h.seq) = (g.user_id, g.action_id, g.epoch, g.seq)
    )
    ORDER BY g.user_id, g.action_id, g.epoch, g.seq
    ON CONFLICT DO NOTHING
)
SELECT count(*), count(*) FILTER (WHERE seq <= %(committed)s::BIGINT) FROM held
