-- Configuration of scoreboard-authz. It stands only beside jwt, on routes that need a token.

local typedefs = require 'kong.db.schema.typedefs'

local words = { type = 'array', required = true, len_min = 1, elements = { type = 'string' } }

return {
  name = 'scoreboard-authz',
  fields = {
    { protocols = typedefs.protocols_http },
    { consumer = typedefs.no_consumer },
    { config = {
      type = 'record',
      fields = {
        { issuer = {
          description = 'The `iss` of accepted tokens, to the last slash.',
          type = 'string', required = true,
        } },
        { audiences = words },
        { scopes = words },
        { clock_skew = {
          description = 'Seconds by which `nbf` and `iat` may lie ahead.',
          type = 'integer', required = true, default = 30, between = { 0, 300 },
        } },
        { trusted_scope = {
          description = 'The scope whose holders count against trusted_consumer.',
          type = 'string', required = false,
        } },
        { trusted_consumer = {
          description = 'The consumer, by username, with the limit of game servers.',
          type = 'string', required = false,
        } },
        { token_types = {
          description = 'Accepted `typ`s in lower case, such as at+jwt; absent: all.',
          type = 'array', required = false, len_min = 1, elements = { type = 'string' },
        } },
      },
      entity_checks = {
        { mutually_required = { 'trusted_scope', 'trusted_consumer' } },
      },
    } },
  },
}
