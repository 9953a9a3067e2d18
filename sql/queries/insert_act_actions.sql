-- Record the actions that an act voids.
-- Index: acts_pk, act_actions_pk
INSERT INTO act_actions (board, user_id, action_id, act_id)
SELECT a.board, a.user_id, v.action_id, a.id
FROM acts a, unnest(%(actions)s::TEXT[]) AS v (action_id)
WHERE a.id = %(id)s
