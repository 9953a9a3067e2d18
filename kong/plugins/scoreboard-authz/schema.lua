-- Configuration of scoreboard-authz, which is used together with jwt on routes that need a token.

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
          description = 'The exact `iss` of accepted tokens.',
          type = 'string', required = true,
        } },
        { audiences = words },
        { scopes = words },
        { clock_skew = {
          description = 'Seconds by which `nbf` and `iat` may be in the future.',
          type = 'integer', required = true, default = 30, between = { 0, 300 },
        } },
        { trusted_scope = {
          description = 'The scope whose holders have the limit of trusted_consumer.',
          type = 'string', required = false,
        } },
        { trusted_consumer = {
          description = 'The username of the consumer with the limit of game servers.',
          type = 'string', required = false,
        } },
        { token_types = {
          description = 'Accepted values of `typ` in lower case, such as at+jwt; absent: all.',
          type = 'array', required = false, len_min = 1, elements = { type = 'string' },
        } },
      },
      entity_checks = {
        { mutually_required = { 'trusted_scope', 'trusted_consumer' } },
      },
    } },
  },
}
