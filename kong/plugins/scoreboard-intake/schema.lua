-- Configuration of scoreboard-intake. The entry without a route applies to all routes; the entry of a
-- route replaces it completely, so it must repeat `algorithms`.

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
          description = 'Accepted algorithms of tokens; none and HS* are not possible.',
          type = 'array', required = true, len_min = 1,
          elements = { type = 'string', one_of = {
            'RS256', 'RS384', 'RS512', 'ES256', 'ES384', 'ES512', 'PS256', 'PS384', 'PS512',
          } },
        } },
        { max_token_bytes = {
          description = 'Longest token in bytes; nginx reads headers into buffers of 8 KiB.',
          type = 'integer', required = true, default = 4096, between = { 64, 8000 },
        } },
        { subprotocol = {
          description = 'On a WebSocket route: the subprotocol offered in addition to a token, or a form of it.',
          type = 'string', required = false,
        } },
        { allowed_origins = {
          description = 'Origins that may use the route, in addition to the same host; absent: all.',
          type = 'array', required = false, len_min = 1, elements = { type = 'string' },
        } },
      },
    } },
  },
}
