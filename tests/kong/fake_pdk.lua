-- A fake of Kong: its plugin chain and the part of its PDK that the two plugins use.
-- It is not Kong. It copies these behaviours on which the plugins rely:
--   * `exit` and `error` yield and are never resumed, so no code after them runs;
--   * after an exit, later `access` handlers are skipped, the filters and `log` of all still run;
--   * a Lua error in `access` is a 500 of source `error`;
--   * headers differ by underscore, are looked up without case, and are cut at 100;
--   * an upgrade is stored in two variables before the plugins run; hop-by-hop headers are removed
--     after them.
-- pdk_rules.lua checks phases, arguments and the serialised message. The globals `pdk_rules`,
-- `python_json_decode`, `python_json_encode` and `python_base64url` come from runtime.py.

local HEADERS_MAX = 100

-- Real JSON null is userdata; a proxy is the only userdata plain Lua can make.
null = newproxy(true)

local state

local function remove_header(list, name)
  for i = #list, 1, -1 do
    if list[i][1]:lower() == name:lower() then
      table.remove(list, i)
    end
  end
end

local function get_headers(max)
  local headers, truncated = {}, nil
  for i, pair in ipairs(state.request.headers) do
    if i > (max or HEADERS_MAX) then
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

-- kong.tools.http.get_header: the first of several.
local function first_of(value)
  return type(value) == 'table' and value[1] or value
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

local raw = {
  request = {
    get_headers = get_headers,
    get_method = function() return state.request.method end,
    get_raw_path = function() return state.request.path end,
  },
  service = { request = {
    set_header = function(name, value)
      remove_header(state.request.headers, name)
      table.insert(state.request.headers, { name, tostring(value) })
    end,
    clear_header = function(name) remove_header(state.request.headers, name) end,
  } },
  response = {
    exit = exit,
    get_status = function() return state.response.status end,
    get_source = function() return state.response.source end,
    get_header = function(name) return state.response.headers[name:lower()] end,
    set_status = function(status) state.response.status = status end,
    set_header = function(name, value) state.response.headers[name:lower()] = tostring(value) end,
    clear_header = function(name) state.response.headers[name:lower()] = nil end,
    set_raw_body = function(body) state.response.body = body end,
  },
  client = {
    get_consumer = function() return state.consumer end,
    load_consumer = function(name) return state.consumers[name] end,
    authenticate = function(consumer, credential)
      state.authenticated = state.authenticated + 1
      state.consumer, state.credential = consumer, credential
    end,
  },
  router = {
    get_route = function() return state.route end,
    get_service = function() return state.service end,
  },
  log = {
    err = function(...)
      local text = ''
      for i = 1, select('#', ...) do text = text .. tostring((select(i, ...))) end
      table.insert(state.errors, text)
    end,
    set_serialize_value = function(key, value, options)
      local mode = options and options.mode or 'set'
      table.insert(state.edits, { key = key, value = value, mode = mode })
    end,
  },
  as_is = {
    db = { consumers = { cache_key = function(_, name) return 'consumers:' .. name end } },
    cache = { get = function(_, key, options, load, ...)
      assert(type(key) == 'string' and options == nil)
      return load(...)
    end },
    ctx = setmetatable({}, { __index = function(_, key)
      return key == 'shared' and state.shared or key == 'plugin' and state.plugin_ctx or nil
    end }),
  },
}
kong = pdk_rules.guard(raw, function() return state.phase end)

ngx = {
  time = function() return state.now end,
  var = setmetatable({}, {
    __index = function(_, key)
      return key == 'kong_request_id' and '0123456789abcdef0123456789abcdef' or state.variables[key]
    end,
    __newindex = function(_, key, value)
      pdk_rules.check_variable(key)
      state.variables[key] = value
    end,
  }),
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

-- What Kong's access phase does before the plugins (kong/runloop/handler.lua, access.before).
local function note_upgrade()
  local headers = get_headers()
  state.client_connection = first_of(headers['connection'])
  local upgrade = first_of(headers['upgrade'])
  state.variables.upstream_connection, state.variables.upstream_upgrade = 'keep-alive', ''
  if upgrade and upgrade:lower() == 'websocket' then
    state.variables.upstream_connection = 'keep-alive, Upgrade'
    state.variables.upstream_upgrade = 'websocket'
  end
end

-- And after them (access.after): headers that the client's Connection names are not forwarded.
local function drop_hop_by_hop()
  for name in (state.client_connection or ''):gmatch('[^,%s]+') do
    if name:lower() ~= 'upgrade' or state.variables.upstream_connection == 'keep-alive' then
      remove_header(state.request.headers, name)
    end
  end
end

-- The message that log plugins serialise, in the shape of kong/pdk/log.lua.
local function serialised()
  local request = state.request
  local uri = request.path .. (request.query ~= '' and '?' .. request.query or '')
  return pdk_rules.edit({
    request = {
      id = ngx.var.kong_request_id, uri = uri, url = 'http://play.example:8000' .. uri,
      querystring = { args = request.query }, method = request.method, headers = get_headers(),
      size = 100,
    },
    upstream_uri = uri, upstream_status = '',
    response = { status = state.response.status, headers = state.response.headers, size = 100 },
    latencies = { kong = 1, proxy = -1, request = 2, receive = 0 },
    tries = { { ip = '10.0.0.1', port = 8000 } },
    route = state.route, service = state.service, consumer = state.consumer,
    authenticated_entity = state.credential, client_ip = '192.0.2.1', started_at = 0,
    source = state.response.source,
  }, state.edits, null)
end

bundled.prometheus = { PRIORITY = 13, log = function()
  state.series = pdk_rules.prometheus(serialised())
end }
bundled['file-log'] = { PRIORITY = 9, log = function()
  state.line = python_json_encode(serialised())
end }

-- `entries`: array of { name, handler, configs = array of { conf, consumer } }, most specific first.
function run_chain(request, entries, options)
  state = {
    request = request, shared = {}, errors = {}, edits = {}, authenticated = 0, variables = {},
    now = options.now, keys = options.keys, consumers = options.consumers,
    consumer = options.consumer, credential = nil,
  }
  if options.route then
    state.route = { id = 'id-of-' .. options.route, name = options.route, paths = { '/' } }
    state.service = { id = 'id-of-service', name = 'scoreboard-service', host = 'service' }
  end
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

  note_upgrade()
  for _, entry in ipairs(entries) do
    local conf = conf_of(entry)
    entry.chosen = conf
    if conf and reached and entry.handler.access then
      ran[#ran + 1] = entry.name
      local routine = coroutine.create(function() call(entry, 'access', conf) end)
      local ok, fault = coroutine.resume(routine)
      if not ok then
        state.response = { status = 500, source = 'error', headers = {}, body = '' }
        table.insert(state.errors, tostring(fault))
      end
      reached = not state.response
    end
  end
  if reached then drop_hop_by_hop() end
  state.response = state.response or options.service_response
  state.response.source = options.source or state.response.source
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
    credential = state.credential, consumer = state.consumer, line = state.line,
    series = state.series, authenticated = state.authenticated, variables = state.variables,
  }
end
