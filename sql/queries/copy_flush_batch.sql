-- Copy a batch to the staging table.
-- Index: none
COPY flush_batch (
    user_id, external_id, action_id, epoch, seq, delta, score_after, kind, request_id, occurred_at, is_last
) FROM STDIN (FORMAT BINARY)
