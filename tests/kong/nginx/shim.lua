-- A fake of Kong on nginx with lua-nginx-module. It is not Kong: it has Kong's chain and the part of
-- its PDK that the two handlers use, so that they run with real requests, headers and a real proxy. jwt verifies signatures with libcrypto; rate-limiting counts in memory. Phases,
-- arguments and the serialised message are checked by pdk_rules.lua, as Kong checks them.
-- Called from the nginx.conf that tests/kong/nginx_gateway.py writes.

local cjson = require 'cjson.safe'
local base64 = require 'ngx.base64'
local ffi = require 'ffi'
local pdk_rules = require 'pdk_rules'

local shim = {}
local states, config, entries, log_path = {}, nil, {}, nil
local running -- the state of the request whose handler runs; handlers do not yield in between

-- libcrypto ---------------------------------------------------------------------------------------

ffi.cdef([[
  typedef struct bio_st BIO; typedef struct evp_pkey_st EVP_PKEY;
  typedef struct evp_md_ctx_st EVP_MD_CTX; typedef struct evp_md_st EVP_MD;
  BIO *BIO_new_mem_buf(const void *buf, int len); int BIO_free(BIO *a);
  EVP_PKEY *PEM_read_bio_PUBKEY(BIO *bp, EVP_PKEY **x, void *cb, void *u);
  void EVP_PKEY_free(EVP_PKEY *key); EVP_MD_CTX *EVP_MD_CTX_new(void);
  void EVP_MD_CTX_free(EVP_MD_CTX *ctx); const EVP_MD *EVP_sha256(void);
  int EVP_DigestVerifyInit(EVP_MD_CTX *ctx, void **pctx, const EVP_MD *type, void *e, EVP_PKEY *pkey);
  int EVP_DigestVerify(EVP_MD_CTX *ctx, const char *sig, size_t siglen, const char *tbs, size_t tbslen);
]])
local crypto = ffi.load('libcrypto.so.3')

local function der_integer(bytes)
  bytes = bytes:gsub('^%z+', '')
  if bytes == '' or bytes:byte() > 127 then bytes = '\0' .. bytes end
  return '\2' .. string.char(#bytes) .. bytes
end

local function verify(pem, algorithm, text, signature)
  if algorithm == 'ES256' then
    assert(#signature == 64, 'Signature must be 64 bytes.')
    local pair = der_integer(signature:sub(1, 32)) .. der_integer(signature:sub(33))
    signature = '\48' .. string.char(#pair) .. pair
  end
  local bio = crypto.BIO_new_mem_buf(pem, #pem)
  local key = crypto.PEM_read_bio_PUBKEY(bio, nil, nil, nil)
  crypto.BIO_free(bio)
  assert(key ~= nil, 'a PEM cannot be read')
  local ctx = crypto.EVP_MD_CTX_new()
  local good = crypto.EVP_DigestVerifyInit(ctx, nil, crypto.EVP_sha256(), nil, key) == 1
    and crypto.EVP_DigestVerify(ctx, signature, #signature, text, #text) == 1
  crypto.EVP_MD_CTX_free(ctx)
  crypto.EVP_PKEY_free(key)
  return good
end

-- The PDK -----------------------------------------------------------------------------------------

local function exit(status, body, headers)
  running.is_exited = true
  running.answer = { status = status, body = body, headers = headers or {} }
  coroutine.yield('exit')
end

local function entity_of(kind)
  local found = config.entities[running.route]
  return found and found[kind]
end

local raw = {
  request = {
    get_headers = function(max) return ngx.req.get_headers(max or 100) end,
    get_method = function()
      -- The redirect to the error page changed the method to GET.
      return running.is_unexpected and (ngx.var.request or ''):match('^%S+') or ngx.req.get_method()
    end,
    get_raw_path = function() return (ngx.var.request_uri or ''):match('^.[^?]*') or '' end,
  },
  service = { request = {
    set_header = function(name, value) ngx.req.set_header(name, value) end,
    clear_header = function(name) ngx.req.clear_header(name) end,
  } },
  response = {
    exit = exit,
    get_status = function() return ngx.status end,
    get_source = function()
      return running.is_unexpected and 'error' or running.is_exited and 'exit'
        or running.is_proxied and 'service' or 'error'
    end,
    get_header = function(name) return ngx.resp.get_headers()[name] end,
    set_status = function(status) ngx.status = status end,
    set_header = function(name, value) ngx.header[name] = value end,
    clear_header = function(name) ngx.header[name] = nil end,
    set_raw_body = function(body)
      ngx.arg[1] = body
      ngx.arg[2] = true
    end,
  },
  client = {
    get_consumer = function() return running.consumer end,
    load_consumer = function(name) return config.consumers[name] end,
    authenticate = function(consumer, credential)
      running.consumer, running.credential = consumer, credential
    end,
  },
  router = {
    get_route = function() return entity_of('route') end,
    get_service = function() return entity_of('service') end,
  },
  log = {
    err = function(...) ngx.log(ngx.ERR, ...) end,
    set_serialize_value = function(key, value, options)
      local mode = options and options.mode or 'set'
      table.insert(running.edits, { key = key, value = value, mode = mode })
    end,
  },
  as_is = {
    db = { consumers = { cache_key = function(_, name) return name end } },
    cache = { get = function(_, _, _, load, ...) return load(...) end },
    ctx = setmetatable({}, { __index = function(_, key)
      return key == 'shared' and running.shared or running.contexts[running.plugin]
    end }),
  },
}
kong = pdk_rules.guard(raw, function() return running.phase end)

local parser = {}
function parser.new(_, token)
  local head, body, signature = token:match('^([^.]+)%.([^.]+)%.([^.]+)$')
  if not head then return nil, 'invalid token' end
  local jwt = {
    header = cjson.decode(base64.decode_base64url(head) or ''),
    claims = cjson.decode(base64.decode_base64url(body) or ''),
    signature = base64.decode_base64url(signature), text = head .. '.' .. body,
  }
  if not (jwt.header and jwt.claims and jwt.signature) then return nil, 'invalid JSON' end
  return jwt
end
package.preload['kong.plugins.jwt.jwt_parser'] = function() return parser end

-- The bundled plugins, as far as these tests need them --------------------------------------------

local bundled = {}

bundled.jwt = { PRIORITY = 1450, access = function(_, conf)
  local header = ngx.req.get_headers()['authorization']
  local token = type(header) == 'string' and header:match('[Bb]earer%s+(.+)')
  local jwt, fault = nil, 'Unauthorized'
  if token then jwt, fault = parser:new(token) end
  if not jwt then return exit(401, { message = fault }) end
  local kid = jwt.claims[conf.key_claim_name] or jwt.header[conf.key_claim_name]
  local key = config.keys[kid]
  if not key or key.algorithm ~= jwt.header.alg
      or not verify(key.pem, key.algorithm, jwt.text, jwt.signature) then
    return exit(401, { message = 'Invalid signature' })
  end
  if type(jwt.claims.exp) ~= 'number' or jwt.claims.exp <= ngx.time() then
    return exit(401, { exp = 'token expired' })
  end
  running.shared.authenticated_jwt_token = token
  ngx.req.set_header('X-Consumer-Username', 'players')
  kong.client.authenticate(config.consumers.players, { id = kid })
end }

-- As Kong's: it answers preflight requests itself, and replaces the header of the service, also on
-- its own refusals. The only origin of a list is sent to every page.
bundled.cors = { PRIORITY = 2000, access = function(_, conf)
  local headers = ngx.req.get_headers()
  if ngx.req.get_method() ~= 'OPTIONS' or not headers['origin']
      or not headers['access-control-request-method'] then
    return
  end
  return exit(200, {}, {
    ['Access-Control-Allow-Methods'] = table.concat(conf.methods, ','),
    ['Access-Control-Allow-Headers'] = table.concat(conf.headers, ','),
  })
end, header_filter = function(_, conf)
  local origin = ngx.req.get_headers()['origin']
  if not origin then return end
  local allowed = #conf.origins == 1 and conf.origins[1] or nil
  for _, listed in ipairs(conf.origins) do
    if listed == origin then allowed = origin end
  end
  ngx.header['Access-Control-Allow-Origin'] = allowed
  ngx.header['Access-Control-Expose-Headers'] = table.concat(conf.exposed_headers, ',')
end }

bundled['request-size-limiting'] = { PRIORITY = 951, access = function(_, conf)
  local length = tonumber(ngx.req.get_headers()['content-length'] or 0)
  if length > conf.allowed_payload_size * 1000 then
    local status = ngx.req.get_headers()['expect'] and 417 or 413
    return exit(status, { message = 'Request size limit exceeded' })
  end
end }

bundled['rate-limiting'] = { PRIORITY = 910, access = function(_, conf)
  local who = conf.limit_by == 'credential' and running.credential and running.credential.id
  local key = running.route .. ':' .. (who or ngx.var.remote_addr)
  local count = ngx.shared.counters:incr(key, 1, 0)
  if count > conf.minute then
    return exit(429, { message = 'API rate limit exceeded' }, { ['Retry-After'] = '42' })
  end
end }

-- The message that log plugins serialise, in the shape of kong/pdk/log.lua.
local function serialised()
  local uri = ngx.var.request_uri or ''
  return pdk_rules.edit({
    request = {
      id = ngx.var.kong_request_id, uri = uri, url = 'http://' .. (ngx.var.host or '') .. uri,
      querystring = ngx.req.get_uri_args(), method = kong.request.get_method(),
      headers = ngx.req.get_headers(), size = tonumber(ngx.var.request_length),
    },
    upstream_uri = uri, upstream_status = ngx.var.upstream_status or '',
    response = {
      status = ngx.status, headers = ngx.resp.get_headers(), size = tonumber(ngx.var.bytes_sent),
    },
    latencies = { kong = 0, proxy = -1, request = ngx.var.request_time * 1000, receive = 0 },
    tries = { { ip = ngx.var.upstream_addr } },
    route = entity_of('route'), service = entity_of('service'), consumer = running.consumer,
    authenticated_entity = running.credential, client_ip = ngx.var.remote_addr,
    started_at = ngx.req.start_time() * 1000, source = kong.response.get_source(),
  }, running.edits, ngx.null)
end

local function append(path, line)
  local file = assert(io.open(path, 'a'))
  file:write(line, '\n')
  file:close()
end

bundled.prometheus = { PRIORITY = 13, log = function()
  local series = pdk_rules.prometheus(serialised())
  if series then append(log_path .. '.series', series) end
end }

bundled['file-log'] = { PRIORITY = 9, log = function()
  append(log_path, assert(cjson.encode(serialised())))
end }

-- The chain ---------------------------------------------------------------------------------------

function shim.load(path, plugins, log)
  log_path = log
  local file = assert(io.open(path))
  config = assert(cjson.decode(file:read('*a')))
  file:close()
  for _, name in ipairs({ 'scoreboard-intake', 'scoreboard-authz' }) do
    bundled[name] = assert(loadfile(plugins .. '/' .. name .. '/handler.lua'))()
  end
end

local function entries_of(route)
  if not entries[route] then
    local found = {}
    for _, entry in ipairs(config.routes[route]) do
      found[#found + 1] = { name = entry.name, handler = bundled[entry.name], configs = entry.configs }
    end
    table.sort(found, function(a, b) return a.handler.PRIORITY > b.handler.PRIORITY end)
    entries[route] = found
  end
  return entries[route]
end

local function conf_of(entry)
  for _, candidate in ipairs(entry.configs) do
    if candidate.consumer == ngx.null
        or (running.consumer and running.consumer.username == candidate.consumer) then
      return candidate.conf
    end
  end
end

local function state()
  local id = ngx.var.kong_request_id
  states[id] = states[id] or {
    shared = {}, contexts = {}, edits = {}, route = ngx.var.route ~= '' and ngx.var.route or nil,
  }
  running = states[id]
  return running
end

local function call(entry, phase, conf)
  running.plugin, running.phase = entry.name, phase
  running.contexts[entry.name] = running.contexts[entry.name] or {}
  return entry.handler[phase](entry.handler, conf)
end

local function answer(found)
  ngx.status = found.status
  ngx.header['Content-Type'] = 'application/json; charset=utf-8'
  for name, value in pairs(found.headers) do ngx.header[name] = value end
  local body = cjson.encode(found.body or {})
  ngx.header['Content-Length'] = #body
  ngx.print(body)
  return ngx.exit(found.status)
end

-- Kong reads the first of several headers once, before the plugins run.
local function header_of_client(name)
  local value = ngx.req.get_headers(100)[name]
  return type(value) == 'table' and value[1] or value
end

function shim.access()
  local current = state()
  if not current.route or not config.methods[current.route][ngx.req.get_method()] then
    -- Without a route Kong runs no `access` at all, and the filters of the global entries.
    current.route, current.is_exited = nil, true
    return answer({ status = 404, body = { message = 'no Route matched' }, headers = {} })
  end
  -- kong/runloop/handler.lua, access.before: an upgrade is stored before the plugins run.
  local connection, upgrade = header_of_client('connection'), header_of_client('upgrade')
  local is_upgrade = upgrade and upgrade:lower() == 'websocket'
  ngx.var.upstream_upgrade = is_upgrade and 'websocket' or ''
  ngx.var.upstream_connection = is_upgrade and 'keep-alive, Upgrade' or 'keep-alive'
  for _, entry in ipairs(entries_of(current.route)) do
    local conf = conf_of(entry)
    if conf and entry.handler.access then
      local routine = coroutine.create(function() call(entry, 'access', conf) end)
      local ok, fault = coroutine.resume(routine)
      if not ok then
        ngx.log(ngx.ERR, fault)
        current.is_exited = true
        current.answer = { status = 500, body = { message = 'An unexpected error' }, headers = {} }
      end
      if current.answer then return answer(current.answer) end
    end
  end
  -- access.after: hop-by-hop headers are removed.
  for name in (connection or ''):gmatch('[^,%s]+') do
    if name:lower() ~= 'upgrade' or ngx.var.upstream_connection == 'keep-alive' then
      ngx.req.clear_header(name)
    end
  end
  current.is_proxied = true
end

local function filter(phase)
  local current = state()
  for _, entry in ipairs(entries_of(current.route or '')) do
    if entry.handler[phase] then
      call(entry, phase, conf_of(entry))
    end
  end
end

function shim.header_filter() filter('header_filter') end
function shim.body_filter() filter('body_filter') end
function shim.log()
  filter('log')
  states[ngx.var.kong_request_id] = nil
end

-- nginx's own errors end here, with the state of the same request.
function shim.error_page()
  local current = state()
  current.is_unexpected = true
  ngx.header['Content-Type'] = 'application/json; charset=utf-8'
  ngx.print(cjson.encode({ message = 'An unexpected error occurred', request_id = 'x' }))
end

return shim
