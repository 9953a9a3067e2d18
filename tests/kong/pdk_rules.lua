-- What Kong 3.9 accepts from a plugin: phases and arguments of each PDK function that the two plugins
-- call, and what its log plugins do with the serialised message. fake_pdk.lua (LuaJIT) and
-- nginx/shim.lua (nginx) both build their `kong` with `guard`, so neither is more lenient.
-- The rules restate Kong's source: kong/pdk/private/{phases,checks}.lua, kong/pdk/{request,
-- response,client,router,log}.lua, kong/pdk/service/request.lua,
-- kong/plugins/{prometheus,file-log}/.

local rules = {}

-- Arguments ---------------------------------------------------------------------------------------

local function check(condition, message)
  if not condition then error(message, 0) end
end

local function check_header_name(name)
  check(type(name) == 'string', 'header name must be a string')
end

-- checks.validate_header: a value is a string, a number or a boolean; `nil` is an error.
local function check_header(name, value)
  check_header_name(name)
  local kind = type(value)
  check(kind == 'string' or kind == 'number' or kind == 'boolean',
    'invalid header value for "' .. name .. '": got ' .. kind)
end

-- checks.validate_headers: in addition, arrays of strings.
local function check_headers(headers)
  check(type(headers) == 'table', 'headers must be a nil or table')
  for name, value in pairs(headers) do
    if type(value) == 'table' then
      check_header_name(name)
      for _, item in ipairs(value) do
        check(type(item) == 'string', 'invalid header value in array "' .. name .. '"')
      end
    else
      check_header(name, value)
    end
  end
end

local function check_status(status)
  check(type(status) == 'number', 'code must be a number')
  check(status >= 100 and status <= 599, 'code must be a number between 100 and 599')
end

local function check_max(max)
  if max ~= nil then
    check(type(max) == 'number' and max >= 1 and max <= 1000, 'max_headers must be in 1..1000')
  end
end

local function check_exit(status, body, headers)
  check_status(status)
  local kind = type(body)
  check(body == nil or kind == 'string' or kind == 'table', 'body must be a nil, string or table')
  if headers ~= nil then check_headers(headers) end
end

local function check_authenticate(consumer, credential)
  check(consumer == nil or type(consumer) == 'table', 'consumer must be a table or nil')
  check(credential == nil or type(credential) == 'table', 'credential must be a table or nil')
  check(consumer or credential, 'either credential or consumer must be provided')
  check(not consumer or consumer.id == nil or type(consumer.id) == 'string',
    'consumer_id must be a string or nil')
end

local function check_load_consumer(id, by_username)
  check(type(id) == 'string', 'consumer_id must be a string')
  local is_uuid = id:find('^%x+%-%x+%-%x+%-%x+%-%x+$') and #id == 36
  check(is_uuid or by_username, 'cannot load a consumer with an id that is not a uuid')
end

local function check_serialize_value(key, _, options)
  check(type(key) == 'string', 'key must be a string')
  local mode = options and options.mode or 'set'
  check(mode == 'set' or mode == 'add' or mode == 'replace',
    "mode must be 'set', 'add' or 'replace'")
end

-- The functions -----------------------------------------------------------------------------------

local ANY = 'rewrite access response header_filter body_filter log error admin_api'
local BEFORE_THE_BODY = 'rewrite access response header_filter error admin_api'
local OF_THE_ANSWER = 'response header_filter body_filter log error admin_api'
local UPSTREAM = 'rewrite access balancer'
local AUTHENTICATED = 'access response header_filter body_filter log'

local FUNCTIONS = {
  ['request.get_headers'] = { ANY, check_max },
  ['request.get_method'] = { ANY },
  ['request.get_raw_path'] = { ANY },
  ['service.request.set_header'] = { UPSTREAM, check_header },
  ['service.request.clear_header'] = { UPSTREAM, check_header_name },
  ['response.get_status'] = { OF_THE_ANSWER },
  ['response.get_source'] = { OF_THE_ANSWER },
  ['response.get_header'] = { OF_THE_ANSWER, check_header_name },
  ['response.set_status'] = { BEFORE_THE_BODY, check_status },
  ['response.set_header'] = { BEFORE_THE_BODY, check_header },
  ['response.clear_header'] = { BEFORE_THE_BODY, check_header_name },
  ['response.exit'] = { BEFORE_THE_BODY, check_exit },
  ['response.set_raw_body'] = { 'body_filter', function(body)
    check(type(body) == 'string', 'body must be a string')
  end },
  ['client.get_consumer'] = { AUTHENTICATED },
  ['client.load_consumer'] = { AUTHENTICATED, check_load_consumer },
  ['client.authenticate'] = { 'access', check_authenticate },
  ['router.get_route'] = { AUTHENTICATED },
  ['router.get_service'] = { AUTHENTICATED },
  ['log.err'] = { ANY },
  ['log.set_serialize_value'] = { 'certificate ' .. ANY, check_serialize_value },
}

local function guarded(name, raw, phase_of)
  local rule = FUNCTIONS[name]
  check(rule, 'kong.' .. name .. ' has no rule in pdk_rules.lua')
  return function(...)
    local phase = phase_of()
    if not (' ' .. rule[1] .. ' '):find(' ' .. phase .. ' ', 1, true) then
      error('kong.' .. name .. ': function cannot be called in ' .. phase .. ' phase (only in: '
        .. rule[1] .. ')', 2)
    end
    if rule[2] then
      local ok, fault = pcall(rule[2], ...)
      if not ok then error('kong.' .. name .. ': ' .. fault, 2) end
    end
    return raw(...)
  end
end

-- Return a `kong` whose functions check phase and arguments before they call those of `raw`. A
-- function without a rule cannot be called. Tables in `raw.as_is` are not checked.
function rules.guard(raw, phase_of)
  local function wrap(tree, path)
    local wrapped = {}
    for name, value in pairs(tree) do
      local full = path == '' and name or path .. '.' .. name
      if type(value) == 'function' then
        wrapped[name] = guarded(full, value, phase_of)
      else
        wrapped[name] = wrap(value, full)
      end
    end
    return setmetatable(wrapped, { __index = function(_, name)
      error('kong.' .. (path == '' and '' or path .. '.') .. tostring(name)
        .. ' has no rule in pdk_rules.lua', 2)
    end })
  end

  local as_is = raw.as_is
  raw.as_is = nil
  local kong = wrap(raw, '')
  for name, value in pairs(as_is) do rawset(kong, name, value) end
  return kong
end

-- ngx.var accepts values only for variables that `set` has created; Kong's template creates these.
local SETTABLE = {
  upstream_te = true, upstream_via = true, upstream_host = true, upstream_upgrade = true,
  upstream_connection = true, upstream_scheme = true, upstream_uri = true,
}

function rules.check_variable(name)
  check(SETTABLE[name], 'variable "' .. tostring(name) .. '" not found for writing')
end

-- The serialised message --------------------------------------------------------------------------

-- kong.log.serialize's is_valid_value. `null` is the only userdata that cjson encodes.
local function is_serialisable(value, null, visited)
  local kind = type(value)
  if value == nil or value == null or kind == 'number' or kind == 'string' or kind == 'boolean' then
    return true
  end
  if kind ~= 'table' or visited[value] then return false end
  visited[value] = true
  for key, item in pairs(value) do
    local key_kind = type(key)
    if key_kind ~= 'string' and key_kind ~= 'number' and key_kind ~= 'boolean' then return false end
    if not is_serialisable(item, null, visited) then return false end
  end
  return true
end

-- Apply the calls of set_serialize_value in order, as serialize() does for each log plugin.
-- `edits` is an array of { key, value, mode }; a missing value removes.
function rules.edit(root, edits, null)
  for _, edit in ipairs(edits) do
    check(is_serialisable(edit.value, null, {}), 'value of ' .. edit.key
      .. ' must be nil, a number, string, boolean or a non-self-referencial table of these')
    local node, last = root, edit.key
    for part in edit.key:gmatch('([^.]*)%.') do
      if node[part] == nil then
        if edit.mode == 'replace' then node = nil break end
        node[part] = {}
      end
      check(type(node[part]) == 'table', "The key '" .. edit.key
        .. "' could not be used as a serialize value. Subkey '" .. part .. "' is not a table.")
      node = node[part]
    end
    last = edit.key:match('[^.]*$')
    if node and (edit.mode == 'set' or (edit.mode == 'add') == (node[last] == nil)) then
      node[last] = edit.value
    end
  end
  return root
end

-- What prometheus counts for a message: one series per service, route and status. Labels are strings
-- from tables; if one is missing, Kong's plugin raises an error, which ends the log phase for the
-- following plugins and for the health checks.
function rules.prometheus(message)
  if message.route == nil and message.service == nil then return nil end
  local labels = {}
  for _, part in ipairs({ 'service', 'route' }) do
    local entity = message[part]
    local name = type(entity) == 'table' and (entity.name or entity.id) or nil
    check(type(name) == 'string', 'prometheus: the label ' .. part .. ' is '
      .. type(name) .. ', not a string')
    labels[#labels + 1] = name
  end
  check(type(message.response.status) == 'number', 'prometheus: the status is not a number')
  for _, part in ipairs({ 'request', 'proxy', 'kong' }) do
    check(type(message.latencies[part]) == 'number', 'prometheus: latency ' .. part)
  end
  check(message.request.size == nil or tonumber(message.request.size), 'prometheus: request size')
  labels[#labels + 1] = tostring(message.response.status)
  return table.concat(labels, '|')
end

return rules
