-- Sends updates with wrk: each with its own actionId, by the users of a file of tokens in turn.
--
--   LOAD_TOKENS=tokens.txt wrk -t 2 -c 64 -d 30s --latency -s loadtest/wrk/update.lua http://127.0.0.1:8000
--
-- wrk is closed loop: see loadtest/README.md. Variables: LOAD_TOKENS, LOAD_BOARD, LOAD_KIND.

local threads = {}

function setup(thread)
  thread:set('number', #threads)
  threads[#threads + 1] = thread
end

-- What follows runs in each thread, with its own variables, which must be global for done().

acknowledged, replayed, limited, failed, sample = 0, 0, 0, 0, ''

local users, headers, path, prefix = {}, {}, nil, nil
local sent = 0

local function unique()
  local source = assert(io.open('/dev/urandom', 'rb'))
  local bytes = source:read(8)
  source:close()
  return (bytes:gsub('.', function(byte) return string.format('%02x', byte:byte()) end))
end

function init()
  local name = os.getenv('LOAD_TOKENS') or 'tokens.txt'
  for line in io.lines(name) do
    local user, token = line:match('^(%S+) (%S+)$')
    assert(user, name .. ': each line is USER TOKEN')
    users[#users + 1] = user
    headers[#headers + 1] = {
      ['Authorization'] = 'Bearer ' .. token,
      ['Content-Type'] = 'application/json',
    }
  end
  assert(#users > 0, name .. ' is empty')
  sent = number * 7919 -- threads start at different users
  path = '/api/scores/update'
  if os.getenv('LOAD_BOARD') then
    path = path .. '?board=' .. os.getenv('LOAD_BOARD')
  end
  prefix = (os.getenv('LOAD_KIND') or 'win') .. ':' .. unique() .. '-'
end

function request()
  sent = sent + 1
  local at = sent % #users + 1
  local body = string.format('{"userId":"%s","actionId":"%s%d"}', users[at], prefix, sent)
  return wrk.format('POST', path, headers[at], body)
end

function response(status, _, body)
  if status == 200 and body:find('"replayed":false', 1, true) then
    acknowledged = acknowledged + 1
  elseif status == 200 then
    replayed = replayed + 1
  elseif status == 429 then
    limited = limited + 1
  else
    failed = failed + 1
    sample = status .. ' ' .. body
  end
end

function done(summary)
  local total = { acknowledged = 0, replayed = 0, limited = 0, failed = 0 }
  local problem = ''
  for _, thread in ipairs(threads) do
    for name in pairs(total) do
      total[name] = total[name] + thread:get(name)
    end
    problem = problem ~= '' and problem or thread:get('sample')
  end
  local errors = summary.errors
  total.failed = total.failed + errors.connect + errors.read + errors.write + errors.timeout
  print(string.format('acknowledged %d, replayed %d, limited %d, failed %d',
    total.acknowledged, total.replayed, total.limited, total.failed))
  if problem ~= '' then
    print('one of the failures: ' .. problem)
  end
end
