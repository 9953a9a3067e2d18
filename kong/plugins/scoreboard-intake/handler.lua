-- scoreboard-intake: validates every request first, and formats every error of the gateway.
-- WHY       jwt parses tokens loosely and answers some malformed ones with 500; browsers can send a
--           token to a WebSocket only as a subprotocol; Kong has four error formats, the API has one
-- CONFIG    algorithms · max_token_bytes · subprotocol (WebSocket route) · allowed_origins
-- ACCESS    400 invalid headers, two tokens, a handshake with a body · 401 an invalid token
--           403 an origin that is not allowed
--           else Authorization is absent or exactly `Bearer <token>` for later plugins, and only the
--           WebSocket route forwards an upgrade
-- FILTERS   every error that no service wrote becomes problem+json with a documented status
-- LOG       removes request headers, queries and tokens from the output of the log plugins
-- SHARED    reads kong.ctx.shared.scoreboard_detail, the detail of an error of another plugin
-- COST      O(bytes of the headers); never blocks

local base64 = require 'ngx.base64'
local json = require 'cjson.safe'

local kong = kong
local ngx = ngx
local ipairs, pairs, type = ipairs, pairs, type

local Intake = { PRIORITY = 1460, VERSION = '1.0.0' }

local REALM = 'Bearer realm="scoreboard"'
local INVALID_TOKEN = REALM .. ', error="invalid_token"'
local PROBLEM = 'application/problem+json'
local PROBLEM_TYPE_PREFIX = '/docs/problems/'
local KID_MAX_BYTES = 256

-- Allowed options of Connection. Kong deletes every header named there *after* its plugins have run,
-- so `Connection: authorization` would remove the validated token.
local CONNECTION_OPTIONS = {
  ['close'] = true, ['keep-alive'] = true, ['upgrade'] = true, ['te'] = true,
  ['http2-settings'] = true,
}

-- Signature lengths in characters; on any other length jwt raises an error and answers 500.
local SIGNATURE_LENGTHS = {
  ES256 = 86, ES384 = 128, ES512 = 176, PS256 = 342, PS384 = 342, PS512 = 342,
}

-- Headers by which a gateway names a user. The services do not read them; a client's are removed.
local IDENTITY_PREFIXES = { 'x-consumer-', 'x-credential-', 'x-authenticated-', 'x-anonymous-' }

-- Headers with a request id. Kong's own id is used, in X-Kong-Request-Id and in every log line.
local REQUEST_IDS = { ['x-request-id'] = true, ['x-kong-request-id'] = true }

-- The problems of the gateway: status and title as in the services (scoreboard.http.problems).
local PROBLEMS = {
  malformed = { 400, 'The request is malformed' },
  unauthenticated = { 401, 'A valid bearer token is required' },
  forbidden = { 403, 'The token does not allow this request' },
  origin = { 403, 'The origin is not allowed' },
  ['not-found'] = { 404, 'Not found' },
  ['method-not-allowed'] = { 405, 'The path does not support this method' },
  ['body-too-large'] = { 413, 'The request body is too large' },
  ['uri-too-long'] = { 414, 'The request line is too long' },
  ['unsupported-media'] = { 415, 'The body must be application/json' },
  ['rate-limited'] = { 429, 'Too many requests' },
  ['too-many-connections'] = { 429, 'Too many connections' },
  ['head-too-large'] = { 431, 'The request headers are too large' },
  unavailable = { 503, 'The service is unavailable' },
  ['outcome-unknown'] = { 503, 'It is unknown whether the action was applied' },
  ['http-version'] = { 505, 'The HTTP version is not supported' },
}

-- The problem of a status from Kong or nginx. Others below 500 are malformed, the rest unavailable.
local KINDS = {
  [401] = 'unauthenticated', [403] = 'forbidden', [404] = 'not-found', [405] = 'method-not-allowed',
  [413] = 'body-too-large', [414] = 'uri-too-long', [415] = 'unsupported-media',
  [417] = 'body-too-large', -- request-size-limiting's answer to Expect: 100-continue
  [429] = 'rate-limited', [431] = 'head-too-large',
  [494] = 'head-too-large', -- nginx's own status for it
  [501] = 'malformed', [505] = 'http-version',
}

-- The details by original status; without an entry, the title is used.
local DETAILS = {
  [404] = 'No route of the gateway matches this method and path.',
  [405] = 'The gateway accepts GET, HEAD and POST.',
  [408] = 'The request did not arrive in time.',
  [411] = 'The request must have a Content-Length.',
  [421] = 'The connection was made for another host.',
  [429] = 'Wait as many seconds as Retry-After says.',
  [495] = 'The client certificate is not accepted.',
  [496] = 'A client certificate is required.',
  [497] = 'This port requires HTTPS.',
  [501] = 'The transfer coding of the request is not supported.',
}
local REPEAT = 'Repeat the same request after Retry-After; '
  .. 'an update repeated with its actionId counts once.'
local LOST = 'The answer was lost. Repeat the request with the same actionId or id: it counts once.'
local WRITES = { POST = true, PATCH = true }

-- Return the items of a comma-separated header, which may be absent or have several lines.
local function items_of(header)
  local items = {}
  local lines = type(header) == 'table' and header or { header }
  for _, line in ipairs(lines) do
    for item in line:gmatch('[^,]+') do
      items[#items + 1] = item:match('^%s*(.-)%s*$')
    end
  end
  return items
end

local function contains(list, wanted)
  for _, item in ipairs(list) do
    if item == wanted then
      return true
    end
  end
  return false
end

-- Reject the request. header_filter formats the error with this detail and kind.
local function refuse(status, detail, kind)
  kong.ctx.shared.scoreboard_detail = detail
  kong.ctx.plugin.kind = kind
  return kong.response.exit(status, { message = detail })
end

-- Remove headers that only the gateway may set, and names with `_`: nginx treats `X_Foo` as `X-Foo`.
local function drop_reserved_headers(headers)
  for name in pairs(headers) do
    local drop = name:find('_', 1, true) or REQUEST_IDS[name:lower()]
    for _, prefix in ipairs(IDENTITY_PREFIXES) do
      drop = drop or name:sub(1, #prefix):lower() == prefix
    end
    if drop then
      kong.service.request.clear_header(name)
    end
  end
end

-- Do not forward an upgrade: only the streamer supports one. A service that reads the bytes after the
-- head as another protocol would accept requests in a body that no plugin has checked. Kong sets
-- these two variables before its plugins run, and nginx sends the headers from them.
local function drop_upgrade()
  ngx.var.upstream_upgrade = ''
  ngx.var.upstream_connection = 'keep-alive'
  kong.service.request.clear_header('Upgrade')
  kong.service.request.clear_header('HTTP2-Settings')
end

-- Return whether a page has the host of the request as its origin, by the same rule as the services.
local function is_same_host(origin, host)
  local scheme, authority = origin:lower():match('^(https?)://([^/?#@]+)$')
  if not scheme or type(host) ~= 'string' then
    return false
  end
  local default_port = scheme == 'https' and ':443$' or ':80$'
  return (authority:gsub(default_port, '')) == (host:lower():gsub(default_port, ''))
end

local function may_connect(origin, host, allowed)
  return type(origin) == 'string' and (contains(allowed, origin) or is_same_host(origin, host))
end

local function has_body(headers)
  local length = headers['content-length']
  return headers['transfer-encoding'] ~= nil or (length ~= nil and length ~= '0')
end

-- Return whether an offer is the subprotocol or a form of it, such as `scoreboard.v1.delta`.
local function is_form_of(item, subprotocol)
  return item == subprotocol
    or (item:sub(1, #subprotocol + 1) == subprotocol .. '.'
      and item:find('^[a-z]+$', #subprotocol + 2) ~= nil)
end

-- Remove `bearer.<jwt>` from the offered subprotocols, before any rejection, because log plugins read
-- the header later. Return the token, or nil and what is wrong.
local function take_subprotocol_token(offered, subprotocol)
  local tokens, forms, has_wrong_case = {}, {}, false
  for _, item in ipairs(items_of(offered)) do
    if item:sub(1, 7):lower() == 'bearer.' then
      tokens[#tokens + 1] = item:sub(8)
      has_wrong_case = has_wrong_case or item:sub(1, 7) ~= 'bearer.'
    elseif is_form_of(item, subprotocol) then
      forms[#forms + 1] = item
    end
  end
  if #tokens == 0 then
    return nil
  end
  kong.service.request.set_header('Sec-WebSocket-Protocol',
    #forms > 0 and table.concat(forms, ', ') or subprotocol)
  if #tokens > 1 then
    return nil, 'Sec-WebSocket-Protocol contains more than one token.'
  elseif has_wrong_case then
    return nil, 'The subprotocol of a token must begin with bearer. in lower case.'
  elseif #forms == 0 then
    return nil, 'The subprotocol ' .. subprotocol .. ' must be offered in addition to the token.'
  end
  return tokens[1]
end

local function decode_object(part)
  local text = base64.decode_base64url(part)
  -- cjson decodes an array to a table, too, and jwt indexes the result without a check.
  if not text or not text:find('^%s*{') then
    return nil
  end
  return json.decode(text)
end

-- Return what is wrong with a token's form, or nil. jwt and authz check its signature and claims.
local function fault_of(token, conf)
  if #token > conf.max_token_bytes then
    return 'The token is too long.'
  end
  local head, body, signature = token:match('^([%w_-]+)%.([%w_-]+)%.([%w_-]+)$')
  if not head then
    return 'The token must have three base64url parts.'
  end
  local header, claims = decode_object(head), decode_object(body)
  if not header or not claims or not base64.decode_base64url(signature) then
    return 'The token cannot be decoded.'
  end
  if type(header.alg) ~= 'string' or not contains(conf.algorithms, header.alg) then
    return 'The algorithm of the token is not accepted.'
  end
  local kid = header.kid
  if type(kid) ~= 'string' or #kid > KID_MAX_BYTES or not kid:find('^[\33-\126]+$') then
    return 'The token has no valid kid.'
  end
  -- jwt reads kid from the claims first.
  if claims.kid ~= nil and claims.kid ~= kid then
    return 'The token has two different kids.'
  end
  if header.crit ~= nil then
    return 'The token requires an extension (crit) that is not supported.'
  end
  local length = SIGNATURE_LENGTHS[header.alg]
  if length and #signature ~= length then
    return 'The signature of the token has the wrong length.'
  end
  return nil
end

function Intake:access(conf)
  local headers, truncated = kong.request.get_headers()
  local token, fault
  if conf.subprotocol then
    token, fault = take_subprotocol_token(headers['sec-websocket-protocol'], conf.subprotocol)
  else
    drop_upgrade()
  end
  drop_reserved_headers(headers)

  if truncated then
    return refuse(400, 'The request has too many headers.')
  end
  for _, option in ipairs(items_of(headers['connection'])) do
    if option ~= '' and not CONNECTION_OPTIONS[option:lower()] then
      return refuse(400, 'Connection names a header that is not hop-by-hop.')
    end
  end
  if fault then
    return refuse(400, fault)
  end
  if conf.subprotocol and has_body(headers) then
    return refuse(400, 'The WebSocket handshake has a body.')
  end

  local authorization = headers['authorization']
  if authorization ~= nil then
    if token then
      return refuse(400, 'The request contains two tokens.')
    end
    kong.ctx.plugin.has_token = true
    local scheme
    if type(authorization) == 'string' then
      scheme, token = authorization:match('^(%a+) +(%S+)$')
    end
    if not scheme or scheme:lower() ~= 'bearer' then
      return refuse(401, 'Authorization must contain one Bearer token.')
    end
  end
  if token then
    kong.ctx.plugin.has_token = true
    fault = fault_of(token, conf)
    if fault then
      return refuse(401, fault)
    end
    -- Replaced, so that jwt and the service read exactly the validated token.
    kong.service.request.set_header('Authorization', 'Bearer ' .. token)
  end

  -- CORS does not cover WebSocket handshakes, and Kong's cors plugin never rejects a request. A client
  -- without Origin is not a browser and needs no check.
  local origin = headers['origin']
  if conf.allowed_origins and origin ~= nil
      and not may_connect(origin, headers['host'], conf.allowed_origins) then
    return refuse(403, 'The origin of this page is not in the list of allowed origins.', 'origin')
  end
end

-- Return the problem of a status from the gateway.
local function kind_of(status)
  if status == 429 and kong.response.get_source() == 'error' then
    return 'too-many-connections' -- nginx's limit_conn; no plugin answers this
  elseif (status == 502 or status == 504) and WRITES[kong.request.get_method()] then
    return 'outcome-unknown' -- the service may have received the request
  end
  return KINDS[status] or (status < 500 and 'malformed' or 'unavailable')
end

local function detail_of(original, kind)
  if kind == 'outcome-unknown' then
    return LOST
  end
  return DETAILS[original] or (PROBLEMS[kind][1] == 503 and REPEAT) or PROBLEMS[kind][2] .. '.'
end

function Intake:header_filter()
  local response = kong.response
  local original = response.get_status()
  if original < 400 or response.get_source() == 'service' then
    return
  end
  local kind = kong.ctx.plugin.kind or kind_of(original)
  local status, title = PROBLEMS[kind][1], PROBLEMS[kind][2]
  response.set_status(status)
  response.set_header('Content-Type', PROBLEM)
  response.set_header('Cache-Control', 'no-store')
  response.clear_header('Content-Length')
  if (status == 503 or status == 429) and not response.get_header('Retry-After') then
    response.set_header('Retry-After', '1')
  end
  if status == 405 then
    response.set_header('Allow', 'GET, HEAD, POST')
  end
  if status == 401 then
    -- jwt's challenge lacks a comma, and names an error even if no token was sent.
    response.set_header('WWW-Authenticate', kong.ctx.plugin.has_token and INVALID_TOKEN or REALM)
  end
  kong.ctx.plugin.problem = json.encode({
    type = PROBLEM_TYPE_PREFIX .. kind,
    title = title,
    status = status,
    detail = kong.ctx.shared.scoreboard_detail or detail_of(original, kind),
    request_id = ngx.var.kong_request_id,
  })
end

function Intake:body_filter()
  local problem = kong.ctx.plugin.problem
  if problem then
    kong.response.set_raw_body(problem)
  end
end

-- Return the parts of a route or service for log lines and metrics. It must be a table with a name:
-- prometheus raises an error on anything else, which ends the log phase of all later plugins.
local function named(entity)
  return entity and { name = entity.name }
end

function Intake:log()
  local set = kong.log.set_serialize_value
  set('route', named(kong.router.get_route()))
  set('service', named(kong.router.get_service()))
  set('tries', nil)
  set('request.headers', nil)
  -- No query is logged: services read no token from it, but clients may put one there.
  set('request.uri', kong.request.get_raw_path())
  set('request.url', nil)
  set('request.querystring', nil)
  set('upstream_uri', nil)
end

return Intake
