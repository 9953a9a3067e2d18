-- Export the actions of a user that acts have voided.
-- Index: users_external_id_key, then act_actions_pk for each board
SELECT v.board AS "board",
       v.action_id AS "actionId",
       v.act_id AS "actId"
FROM users u JOIN act_actions v ON v.user_id = u.id
WHERE u.external_id = %(user)s
ORDER BY v.board, v.action_id, v.act_id
