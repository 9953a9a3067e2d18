-- Reads with wrk: the top of a board, or the ranks of the users of a file of tokens in turn.
--
--   LOAD_TOKENS=tokens.txt wrk -t 2 -c 64 -d 30s --latency -s loadtest/wrk/read.lua http://127.0.0.1:8000
--
-- wrk is closed loop: see loadtest/README.md. Variables: LOAD_TOKENS, LOAD_BOARD, LOAD_READ (leaderboard
-- or users).

local threads = {}

function setup(thread)
  thread:set('number', #threads)
  threads[#threads + 1] = thread
end

-- What follows runs in each thread, with its own variables, which must be global for done().

answered, unknown, failed, empty, sample = 0, 0, 0, 0, ''

local requests = {}
local sent = 0

function init()
  local name = os.getenv('LOAD_TOKENS') or 'tokens.txt'
  local read = os.getenv('LOAD_READ') or 'leaderboard'
  assert(read == 'leaderboard' or read == 'users', 'LOAD_READ is leaderboard or users')
  local board = os.getenv('LOAD_BOARD')
  for line in io.lines(name) do
    local user, token = line:match('^(%S+) (%S+)$')
    assert(user, name .. ': each line is USER TOKEN')
    user = user:gsub('[|:@]', function(sign) return string.format('%%%02X', sign:byte()) end)
    local path = '/api/scores/' .. (read == 'users' and 'users/' .. user or 'leaderboard')
    path = path .. (board and '?board=' .. board or '')
    requests[#requests + 1] = wrk.format('GET', path, { ['Authorization'] = 'Bearer ' .. token })
  end
  assert(#requests > 0, name .. ' is empty')
  sent = number * 7919 -- threads start at different users
end

function request()
  sent = sent + 1
  return requests[sent % #requests + 1]
end

function response(status, _, body)
  if status == 200 and body:find('"rank"', 1, true) then
    answered = answered + 1
  elseif status == 200 and body:find('"leaderboard":[]', 1, true) then
    answered = answered + 1
    empty = empty + 1
  elseif status == 404 then -- a user without a score
    unknown = unknown + 1
  else
    failed = failed + 1
    sample = status .. ' ' .. body
  end
end

function done(summary)
  local total = { answered = 0, unknown = 0, failed = 0, empty = 0 }
  local problem = ''
  for _, thread in ipairs(threads) do
    for name in pairs(total) do
      total[name] = total[name] + thread:get(name)
    end
    problem = problem ~= '' and problem or thread:get('sample')
  end
  local errors = summary.errors
  total.failed = total.failed + errors.connect + errors.read + errors.write + errors.timeout
  print(string.format('answered %d, unknown %d, failed %d', total.answered, total.unknown, total.failed))
  if total.empty > 0 then
    print(total.empty .. ' answers were of an empty board: send updates first, as with update.lua')
  end
  if problem ~= '' then
    print('one of the failures: ' .. problem)
  end
end
