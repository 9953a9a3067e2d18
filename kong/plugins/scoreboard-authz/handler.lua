-- scoreboard-authz: checks the claims of a token, and sets the user whose limit applies.
-- WHY       jwt verifies only the signature and exp; all tokens of an issuer belong to one Kong
--           consumer, but the limit is per user
-- CONFIG    issuer · audiences · scopes · clock_skew · trusted_scope · trusted_consumer · token_types
-- ACCESS    401 no verified token, another issuer or audience, not yet valid, an invalid sub
--           403 none of the scopes · 503 trusted_consumer does not exist
--           else the request is authenticated with a credential whose id is the token's sub
-- SHARED    reads kong.ctx.shared.authenticated_jwt_token, which jwt sets for a verified token
--           sets kong.ctx.shared.scoreboard_detail for scoreboard-intake
-- COST      one parse of the token; the trusted consumer is read from Kong's cache

local jwt_parser = require 'kong.plugins.jwt.jwt_parser'

local kong = kong
local ngx = ngx
local ipairs, type = ipairs, type

local Authz = { PRIORITY = 1440, VERSION = '1.0.0' }

local REALM = 'Bearer realm="scoreboard"'
local SUB_MAX_BYTES = 255

local function refuse(status, detail, challenge)
  kong.ctx.shared.scoreboard_detail = detail
  return kong.response.exit(status, { message = detail },
    challenge and { ['WWW-Authenticate'] = challenge } or nil)
end

local function refuse_token(detail)
  return refuse(401, detail, REALM .. ', error="invalid_token"')
end

-- Collect a claim that is a string or an array of strings into a set. JSON null is userdata, which is
-- true in Lua, so types are tested.
local function collect(claim, is_list_of_words, set)
  if type(claim) == 'table' then
    for _, value in ipairs(claim) do
      if type(value) == 'string' then
        set[value] = true
      end
    end
  elseif type(claim) == 'string' then
    if not is_list_of_words then
      set[claim] = true
      return
    end
    for word in claim:gmatch('%S+') do
      set[word] = true
    end
  end
end

local function has_any(set, wanted)
  for _, value in ipairs(wanted) do
    if set[value] then
      return true
    end
  end
  return false
end

-- Return whether a time claim is absent or in the past, within the clock skew.
local function is_reached(claim, clock_skew)
  return claim == nil or (type(claim) == 'number' and claim <= ngx.time() + clock_skew)
end

local function is_listed_type(typ, token_types)
  if type(typ) ~= 'string' then
    return false
  end
  local short = typ:lower():gsub('^application/', '')
  return has_any({ [short] = true }, token_types)
end

-- Return what is wrong with a verified token, or nil.
local function fault_of(jwt, conf)
  local claims = jwt.claims
  if claims.iss ~= conf.issuer then
    return 'The token is from another issuer.'
  end
  local audiences = {}
  collect(claims.aud, false, audiences)
  if not has_any(audiences, conf.audiences) then
    return 'The token is for another audience.'
  end
  if not is_reached(claims.nbf, conf.clock_skew) or not is_reached(claims.iat, conf.clock_skew) then
    return 'The token is not valid yet.'
  end
  if conf.token_types and not is_listed_type(jwt.header.typ, conf.token_types) then
    return 'The token has another type.'
  end
  local sub = claims.sub
  -- It becomes part of a Redis key and of log lines; the api checks the stricter form of a userId.
  if type(sub) ~= 'string' or #sub > SUB_MAX_BYTES or not sub:find('^[\33-\126]+$') then
    return 'The subject of the token is not a valid user.'
  end
  return nil
end

-- Return a consumer by name, from Kong's cache.
local function get_consumer(username)
  local key = kong.db.consumers:cache_key(username)
  return kong.cache:get(key, nil, kong.client.load_consumer, username, true)
end

function Authz:access(conf)
  local token = kong.ctx.shared.authenticated_jwt_token
  local consumer = kong.client.get_consumer()
  -- Fail closed if jwt is absent, anonymous or was skipped.
  if type(token) ~= 'string' or type(consumer) ~= 'table' then
    return refuse(401, 'A token is required.', REALM)
  end
  local jwt = jwt_parser:new(token)
  local fault = not jwt and 'The token cannot be decoded.' or jwt and fault_of(jwt, conf)
  if fault then
    return refuse_token(fault)
  end

  local granted = {}
  collect(jwt.claims.scope, true, granted)
  collect(jwt.claims.scp, true, granted)
  if not has_any(granted, conf.scopes) then
    local wanted = conf.scopes[1]
    return refuse(403, 'The token lacks the scope ' .. wanted .. '.',
      REALM .. ', error="insufficient_scope", scope="' .. wanted .. '"')
  end

  -- A game server sends updates of many users; with its own sub it would have the limit of one player.
  if conf.trusted_scope and granted[conf.trusted_scope] then
    local trusted, err = get_consumer(conf.trusted_consumer)
    if not trusted then
      kong.log.err('consumer ', conf.trusted_consumer, ' cannot be loaded: ', err or 'not found')
      return refuse(503, 'The limit of game servers is not configured.')
    end
    consumer = trusted
  end
  kong.client.authenticate(consumer, { id = jwt.claims.sub, consumer_id = consumer.id })
end

return Authz
