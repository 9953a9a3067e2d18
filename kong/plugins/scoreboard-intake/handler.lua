-- scoreboard-intake: the first word on every request, and the last on every error of the gateway.
-- WHY       jwt reads tokens loosely and answers some malformed ones with 500; browsers can carry a
--           token to a WebSocket only as a subprotocol; Kong has four shapes of error, we have one
-- CONFIG    algorithms · max_token_bytes · subprotocol (WebSocket route) · allowed_origins
-- ACCESS    400 header tricks, two tokens, a handshake with a body · 401 a token jwt could not read
--           403 a foreign origin
--           else Authorization is absent or exactly `Bearer <token>` for what comes next, and an
--           upgrade is forwarded by the WebSocket route alone
-- FILTERS   every error that no service wrote becomes problem+json with a status of the contract
-- LOG       request headers, queries and tokens stay out of what the log plugins write
-- SHARED    reads kong.ctx.shared.scoreboard_detail, a sentence that a refusing plugin left
-- COST      O(bytes of the headers); nothing here waits

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

-- What a hop-by-hop list may name. Kong deletes every other header named there *after* its plugins
-- ran, so `Connection: authorization` would take the checked token away from the service.
local CONNECTION_OPTIONS = {
  ['close'] = true, ['keep-alive'] = true, ['upgrade'] = true, ['te'] = true,
  ['http2-settings'] = true,
}

-- Characters of the signature where jwt raises, and so answers 500, on any other length.
local SIGNATURE_LENGTHS = {
  ES256 = 86, ES384 = 128, ES512 = 176, PS256 = 342, PS384 = 342, PS512 = 342,
}

-- Headers by which a gateway names a user. No service of ours reads them; a client's stay outside.
local IDENTITY_PREFIXES = { 'x-consumer-', 'x-credential-', 'x-authenticated-', 'x-anonymous-' }

-- Headers that name a request: the id of Kong's own wins, in X-Kong-Request-Id and every log line.
local REQUEST_IDS = { ['x-request-id'] = true, ['x-kong-request-id'] = true }

-- The kinds of problem the gateway answers with: status and title of the services' own errors.
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

-- The kind of a status that Kong or nginx made. Others below 500 are malformed, others unavailable.
local KINDS = {
  [401] = 'unauthenticated', [403] = 'forbidden', [404] = 'not-found', [405] = 'method-not-allowed',
  [413] = 'body-too-large', [414] = 'uri-too-long', [415] = 'unsupported-media',
  [417] = 'body-too-large', -- what request-size-limiting answers to Expect: 100-continue
  [429] = 'rate-limited', [431] = 'head-too-large',
  [494] = 'head-too-large', -- nginx's own number for it
  [501] = 'malformed', [505] = 'http-version',
}

-- What to change, by the status that was made; where nothing is said here, the title says it.
local DETAILS = {
  [404] = 'No route of this gateway has this method and path.',
  [405] = 'The gateway takes GET, HEAD and POST.',
  [408] = 'The request did not arrive in time.',
  [411] = 'The request needs a Content-Length.',
  [421] = 'The connection was made for another host.',
  [429] = 'Wait as many seconds as Retry-After says.',
  [495] = 'The certificate of the client is not accepted.',
  [496] = 'A certificate of the client is needed.',
  [497] = 'This port speaks HTTPS.',
  [501] = 'The transfer coding of the request is not supported.',
}
local REPEAT = 'Repeat the same request after Retry-After; '
  .. 'an update repeated with its actionId counts once.'
local LOST = 'The answer was lost. Repeat the update with the same actionId: it counts once.'

-- Give the items of a comma-separated header: absent, one line, or several.
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

-- Stop here. Sentence and kind travel to header_filter, where every error gets its shape.
local function refuse(status, detail, kind)
  kong.ctx.shared.scoreboard_detail = detail
  kong.ctx.plugin.kind = kind
  return kong.response.exit(status, { message = detail })
end

-- Drop what only the gateway may say, and what looks like it: nginx joins `X_Foo` with `X-Foo`.
local function drop_lookalikes(headers)
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

-- Forward no upgrade: only the streamer answers one, and a service that reads the bytes after the
-- head as another protocol would find requests in a body that nothing has limited. Kong has noted
-- the upgrade in these two variables before its plugins; nginx makes the headers it sends of them.
local function drop_upgrade()
  ngx.var.upstream_upgrade = ''
  ngx.var.upstream_connection = 'keep-alive'
  kong.service.request.clear_header('Upgrade')
  kong.service.request.clear_header('HTTP2-Settings')
end

-- Tell whether a page was loaded from the host that it asks now, as the services judge it.
local function is_of_same_host(origin, host)
  local scheme, authority = origin:lower():match('^(https?)://([^/?#@]+)$')
  if not scheme or type(host) ~= 'string' then
    return false
  end
  local default_port = scheme == 'https' and ':443$' or ':80$'
  return (authority:gsub(default_port, '')) == (host:lower():gsub(default_port, ''))
end

local function may_connect(origin, host, allowed)
  return type(origin) == 'string' and (contains(allowed, origin) or is_of_same_host(origin, host))
end

local function has_body(headers)
  local length = headers['content-length']
  return headers['transfer-encoding'] ~= nil or (length ~= nil and length ~= '0')
end

-- Take `bearer.<jwt>` out of the offered subprotocols. The header is clean before any refusal,
-- because log plugins read the live one. Gives token, or nil and what is wrong.
local function take_subprotocol_token(offered, subprotocol)
  local tokens, is_spoken, is_misspelt = {}, false, false
  for _, item in ipairs(items_of(offered)) do
    if item:sub(1, 7):lower() == 'bearer.' then
      tokens[#tokens + 1] = item:sub(8)
      is_misspelt = is_misspelt or item:sub(1, 7) ~= 'bearer.'
    elseif item == subprotocol then
      is_spoken = true
    end
  end
  if #tokens == 0 then
    return nil
  end
  kong.service.request.set_header('Sec-WebSocket-Protocol', subprotocol)
  if #tokens > 1 then
    return nil, 'Sec-WebSocket-Protocol carries more than one token.'
  elseif is_misspelt then
    return nil, 'The subprotocol of a token begins with bearer. in lower case.'
  elseif not is_spoken then
    return nil, 'Beside the token the subprotocol ' .. subprotocol .. ' must be offered.'
  end
  return tokens[1]
end

local function decode_object(part)
  local text = base64.decode_base64url(part)
  -- cjson gives a table for an array too, and jwt indexes whatever it gets.
  if not text or not text:find('^%s*{') then
    return nil
  end
  return json.decode(text)
end

-- Say what is wrong with a token's form, or nil. Its signature and claims are judged later.
local function fault_of(token, conf)
  if #token > conf.max_token_bytes then
    return 'The token is too long.'
  end
  local head, body, signature = token:match('^([%w_-]+)%.([%w_-]+)%.([%w_-]+)$')
  if not head then
    return 'The token is not three base64url parts.'
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
    return 'The token names no key.'
  end
  -- jwt looks for the key's name in the claims first.
  if claims.kid ~= nil and claims.kid ~= kid then
    return 'The token names two keys.'
  end
  if header.crit ~= nil then
    return 'The token demands an extension that is not known here.'
  end
  local length = SIGNATURE_LENGTHS[header.alg]
  if length and #signature ~= length then
    return 'The signature of the token has a wrong length.'
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
  drop_lookalikes(headers)

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
    return refuse(400, 'The request for a WebSocket carries a body.')
  end

  local authorization = headers['authorization']
  if authorization ~= nil then
    if token then
      return refuse(400, 'The request carries two tokens.')
    end
    kong.ctx.plugin.has_token = true
    local scheme
    if type(authorization) == 'string' then
      scheme, token = authorization:match('^(%a+) +(%S+)$')
    end
    if not scheme or scheme:lower() ~= 'bearer' then
      return refuse(401, 'Authorization must be one Bearer token.')
    end
  end
  if token then
    kong.ctx.plugin.has_token = true
    fault = fault_of(token, conf)
    if fault then
      return refuse(401, fault)
    end
    -- Set anew, so that jwt and the service see exactly what was checked.
    kong.service.request.set_header('Authorization', 'Bearer ' .. token)
  end

  -- CORS does not cover WebSocket handshakes, and Kong's cors plugin never refuses. A client
  -- without Origin is no browser: its token decides.
  local origin = headers['origin']
  if conf.allowed_origins and origin ~= nil
      and not may_connect(origin, headers['host'], conf.allowed_origins) then
    return refuse(403, 'The list of origins does not name the origin of this page.', 'origin')
  end
end

-- Give the kind of problem that a status of the gateway's own stands for.
local function kind_of(status)
  if status == 429 and kong.response.get_source() == 'error' then
    return 'too-many-connections' -- limit_conn of nginx: no plugin made it
  elseif (status == 502 or status == 504) and kong.request.get_method() == 'POST' then
    return 'outcome-unknown' -- the service may have had the request
  end
  return KINDS[status] or (status < 500 and 'malformed' or 'unavailable')
end

local function detail_of(made, kind)
  if kind == 'outcome-unknown' then
    return LOST
  end
  return DETAILS[made] or (PROBLEMS[kind][1] == 503 and REPEAT) or PROBLEMS[kind][2] .. '.'
end

function Intake:header_filter()
  local response = kong.response
  local made = response.get_status()
  if made < 400 or response.get_source() == 'service' then
    return
  end
  local kind = kong.ctx.plugin.kind or kind_of(made)
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
    -- jwt's own challenge lacks a comma, and names an error where no token was sent.
    response.set_header('WWW-Authenticate', kong.ctx.plugin.has_token and INVALID_TOKEN or REALM)
  end
  kong.ctx.plugin.problem = json.encode({
    type = PROBLEM_TYPE_PREFIX .. kind,
    title = title,
    status = status,
    detail = kong.ctx.shared.scoreboard_detail or detail_of(made, kind),
    request_id = ngx.var.kong_request_id,
  })
end

function Intake:body_filter()
  local problem = kong.ctx.plugin.problem
  if problem then
    kong.response.set_raw_body(problem)
  end
end

-- Give what log lines and metrics need of a route or service. It must stay a table with a name:
-- prometheus raises on anything else, and that ends the log phase for every plugin behind it.
local function named(entity)
  return entity and { name = entity.name }
end

function Intake:log()
  local set = kong.log.set_serialize_value
  set('route', named(kong.router.get_route()))
  set('service', named(kong.router.get_service()))
  set('tries', nil)
  set('request.headers', nil)
  -- No service reads a token from a query, but callers put them there: no query is logged.
  set('request.uri', kong.request.get_raw_path())
  set('request.url', nil)
  set('request.querystring', nil)
  set('upstream_uri', nil)
end

return Intake
