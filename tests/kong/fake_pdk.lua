-- A small stand-in for Kong: its plugin chain and the part of its PDK that our two plugins use.
-- It is not Kong. It copies four behaviours on which the plugins rely:
--   * `exit` and `error` yield and are never resumed, so no code after them runs;
--   * after an exit, later `access` handlers are skipped, the filters and `log` of all still run;
--   * a Lua error in `access` is a 500 of source `error`;
--   * headers differ by underscore, are looked up without case, and are cut at 100.
-- Globals `python_json_decode`, `python_json_encode` and `python_base64url` come from runtime.py.

local HEADERS_MAX = 100

-- Real JSON null is userdata; a proxy is the only userdata plain Lua can make.
null = newproxy(true)

local state

local PHASES = {
  ['request.get_headers'] = 'access log', ['service.request.set_header'] = 'access',
  ['service.request.clear_header'] = 'access', ['response.exit'] = 'access',
  ['response.set_status'] = 'header_filter', ['response.set_header'] = 'header_filter',
  ['response.clear_header'] = 'header_filter', ['response.get_header'] = 'header_filter',
  ['response.get_status'] = 'header_filter', ['response.get_source'] = 'header_filter log',
  ['response.set_raw_body'] = 'body_filter', ['client.authenticate'] = 'access',
  ['client.get_consumer'] = 'access log', ['client.load_consumer'] = 'access',
  ['log.set_serialize_value'] = 'log', ['request.get_raw_query'] = 'access log',
  ['request.get_path'] = 'access log', ['router.get_route'] = 'access log',
}

local function in_phase(name, fn)
  local allowed = assert(PHASES[name], name)
  return function(...)
    if not allowed:find(state.phase, 1, true) then
      error(name .. ' is not for phase ' .. state.phase, 2)
    end
    return fn(...)
  end
end

local function remove_header(list, name)
  for i = #list, 1, -1 do
    if list[i][1]:lower() == name:lower() then
      table.remove(list, i)
    end
  end
end

local function get_headers()
  local headers, truncated = {}, nil
  for i, pair in ipairs(state.request.headers) do
    if i > HEADERS_MAX then
      truncated = 'truncated'
      break
    end
    local name, value = pair[1]:lower(), pair[2]
    local known = headers[name]
    if known == nil then
      headers[name] = value
    elseif type(known) == 'table' then
      known[#known + 1] = value
    else
      headers[name] = { known, value }
    end
  end
  return setmetatable(headers, {
    __index = function(t, key) return rawget(t, (key:lower():gsub('_', '-'))) end,
  }), truncated
end

local function exit(status, body, headers)
  state.response = { status = status, source = 'exit', headers = {}, body = body }
  for name, value in pairs(headers or {}) do
    state.response.headers[name:lower()] = value
  end
  if type(body) == 'table' then
    state.response.body = python_json_encode(body)
    state.response.headers['content-type'] = 'application/json; charset=utf-8'
  end
  state.response.headers['content-length'] = tostring(#(state.response.body or ''))
  coroutine.yield('exit')
  error('resumed after an exit')
end

kong = {
  request = {
    get_headers = in_phase('request.get_headers', get_headers),
    get_raw_query = in_phase('request.get_raw_query', function() return state.request.query end),
    get_path = in_phase('request.get_path', function() return state.request.path end),
  },
  service = { request = {
    set_header = in_phase('service.request.set_header', function(name, value)
      remove_header(state.request.headers, name)
      table.insert(state.request.headers, { name, value })
    end),
    clear_header = in_phase('service.request.clear_header', function(name)
      remove_header(state.request.headers, name)
    end),
  } },
  response = {
    exit = in_phase('response.exit', exit),
    get_status = in_phase('response.get_status', function() return state.response.status end),
    get_source = in_phase('response.get_source', function() return state.response.source end),
    get_header = in_phase('response.get_header', function(name)
      return state.response.headers[name:lower()]
    end),
    set_status = in_phase('response.set_status', function(status)
      state.response.status = status
    end),
    set_header = in_phase('response.set_header', function(name, value)
      assert(type(value) == 'string', 'a header is a string')
      state.response.headers[name:lower()] = value
    end),
    clear_header = in_phase('response.clear_header', function(name)
      state.response.headers[name:lower()] = nil
    end),
    set_raw_body = in_phase('response.set_raw_body', function(body)
      assert(type(body) == 'string', 'body must be a string')
      state.response.body = body
    end),
  },
  client = {
    get_consumer = in_phase('client.get_consumer', function() return state.consumer end),
    load_consumer = in_phase('client.load_consumer', function(name, by_username)
      assert(by_username == true, 'consumers are known by name here')
      return state.consumers[name]
    end),
    authenticate = in_phase('client.authenticate', function(consumer, credential)
      state.authenticated = state.authenticated + 1
      state.consumer, state.credential = consumer, credential
    end),
  },
  db = { consumers = { cache_key = function(_, name) return 'consumers:' .. name end } },
  cache = { get = function(_, key, options, load, ...)
    assert(type(key) == 'string' and options == nil)
    return load(...)
  end },
  router = { get_route = in_phase('router.get_route', function()
    return state.route and { name = state.route }
  end) },
  log = {
    err = function(...)
      local text = ''
      for i = 1, select('#', ...) do text = text .. tostring((select(i, ...))) end
      table.insert(state.errors, text)
    end,
    set_serialize_value = in_phase('log.set_serialize_value', function(key, value)
      state.serialised[key] = value == nil and 'REMOVED' or value
    end),
  },
  ctx = setmetatable({}, { __index = function(_, key)
    return key == 'shared' and state.shared or key == 'plugin' and state.plugin_ctx or nil
  end }),
}

ngx = {
  time = function() return state.now end,
  var = setmetatable({}, { __index = function(_, key)
    return key == 'kong_request_id' and '0123456789abcdef0123456789abcdef' or nil
  end }),
}

local json = { decode = python_json_decode, encode = python_json_encode, null = null }
local parser = {}
function parser.new(_, token)
  assert(type(token) == 'string', 'Token must be a string')
  local head, body = token:match('^([^.]+)%.([^.]+)%.')
  if not head then return nil, 'invalid token' end
  local header = python_json_decode(python_base64url(head) or '')
  local claims = python_json_decode(python_base64url(body) or '')
  if type(header) ~= 'table' or type(claims) ~= 'table' then return nil, 'invalid JSON' end
  return { header = header, claims = claims }
end

package.preload['cjson.safe'] = function() return json end
package.preload['ngx.base64'] = function() return { decode_base64url = python_base64url } end
package.preload['kong.plugins.jwt.jwt_parser'] = function() return parser end
package.preload['kong.db.schema.typedefs'] = function()
  return { protocols_http = { type = 'set' }, no_consumer = { type = 'foreign', eq = null } }
end

-- The bundled plugins, as far as the chain depends on them. --------------------------------------

local function header(name)
  local headers = get_headers()
  return headers[name]
end

bundled = {
  jwt = { PRIORITY = 1450, access = function(_, conf)
    local token = (header('authorization') or ''):match('[Bb]earer%s+(.+)')
    if not token then
      exit(401, { message = 'Unauthorized' }, { ['WWW-Authenticate'] = 'Bearer' })
    end
    local parsed, fault = parser:new(token)
    if not parsed then
      exit(401, { message = 'Bad token; ' .. fault }, { ['WWW-Authenticate'] = 'Bearer realm="scoreboard"error="invalid_token"' })
    end
    local kid = parsed.claims[conf.key_claim_name] or parsed.header[conf.key_claim_name]
    local alg = state.keys[kid]
    if alg ~= parsed.header.alg or not token:find('%.c2ln[%w_-]*$') then
      exit(401, { message = 'Invalid signature' }, { ['WWW-Authenticate'] = 'Bearer realm="scoreboard"error="invalid_token"' })
    end
    if type(parsed.claims.exp) ~= 'number' or parsed.claims.exp <= state.now then
      exit(401, { exp = 'token expired' }, { ['WWW-Authenticate'] = 'Bearer realm="scoreboard"error="invalid_token"' })
    end
    state.consumer = state.consumers['players']
    state.credential = { id = 'id-of-' .. kid }
    state.shared.authenticated_jwt_token = token
  end },
  ['request-size-limiting'] = { PRIORITY = 951, access = function(_, conf)
    if #(state.request.body or '') > conf.allowed_payload_size * 1000 then
      exit(header('expect') and 417 or 413, { message = 'Request size limit exceeded' })
    end
  end },
  ['rate-limiting'] = { PRIORITY = 910, access = function(_, conf)
    local identifier = conf.limit_by == 'credential' and (state.credential or {}).id or '127.0.0.1'
    counters[identifier] = (counters[identifier] or 0) + 1
    if counters[identifier] > conf.minute then
      exit(429, { message = 'API rate limit exceeded' }, { ['Retry-After'] = '42' })
    end
  end },
}
counters = {}

-- One request through the chain. -----------------------------------------------------------------

-- `entries`: array of { name, handler, configs = array of { conf, consumer } }, most specific first.
function run_chain(request, entries, options)
  state = {
    request = request, shared = {}, errors = {}, serialised = {}, authenticated = 0,
    now = options.now, keys = options.keys, consumers = options.consumers, route = options.route,
    consumer = options.consumer, credential = nil,
  }
  state.shared.authenticated_jwt_token = options.verified_token
  table.sort(entries, function(a, b) return a.handler.PRIORITY > b.handler.PRIORITY end)
  local ran, contexts, reached = {}, {}, true

  local function conf_of(entry)
    for _, candidate in ipairs(entry.configs) do
      if not candidate.consumer
          or (state.consumer and state.consumer.username == candidate.consumer) then
        return candidate.conf
      end
    end
  end

  local function call(entry, phase, conf)
    contexts[entry.name] = contexts[entry.name] or {}
    state.phase, state.plugin_ctx = phase, contexts[entry.name]
    return entry.handler[phase](entry.handler, conf)
  end

  for _, entry in ipairs(entries) do
    local conf = conf_of(entry)
    entry.chosen = conf
    if conf and entry.handler.access then
      ran[#ran + 1] = entry.name
      local routine = coroutine.create(function() call(entry, 'access', conf) end)
      local ok, fault = coroutine.resume(routine)
      if not ok then
        state.response = { status = 500, source = 'error', headers = {}, body = '' }
        table.insert(state.errors, tostring(fault))
      end
      if state.response then
        reached = false
        break
      end
    end
  end
  state.response = state.response or options.service_response
  for _, phase in ipairs({ 'header_filter', 'body_filter', 'log' }) do
    for _, entry in ipairs(entries) do
      if entry.chosen and entry.handler[phase] then
        call(entry, phase, entry.chosen)
      end
    end
  end
  return {
    status = state.response.status, headers = state.response.headers, body = state.response.body,
    ran = ran, reached = reached, sent = state.request.headers, errors = state.errors,
    credential = state.credential, consumer = state.consumer, serialised = state.serialised,
    authenticated = state.authenticated,
  }
end
