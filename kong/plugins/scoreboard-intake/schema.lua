-- Configuration of scoreboard-intake. The entry without a route is the rule for all routes; a
-- route's own entry replaces it as a whole, so it repeats `algorithms`.

local typedefs = require 'kong.db.schema.typedefs'

return {
  name = 'scoreboard-intake',
  fields = {
    { protocols = typedefs.protocols_http },
    { consumer = typedefs.no_consumer },
    { config = {
      type = 'record',
      fields = {
        { algorithms = {
          description = 'Algorithms of tokens that may pass on to jwt; never none, never HS*.',
          type = 'array', required = true, len_min = 1,
          elements = { type = 'string', one_of = {
            'RS256', 'RS384', 'RS512', 'ES256', 'ES384', 'ES512', 'PS256', 'PS384', 'PS512',
          } },
        } },
        { max_token_bytes = {
          description = 'Longest token; nginx reads headers into buffers of 8 KiB.',
          type = 'integer', required = true, default = 4096, between = { 64, 8000 },
        } },
        { subprotocol = {
          description = 'On a WebSocket route: the subprotocol beside which a token may stand.',
          type = 'string', required = false,
        } },
        { allowed_origins = {
          description = 'Origins whose pages may use the route, as those of the same host may; absent: all.',
          type = 'array', required = false, len_min = 1, elements = { type = 'string' },
        } },
      },
    } },
  },
}
