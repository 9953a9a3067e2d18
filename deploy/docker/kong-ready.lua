-- Exits with 0 if Kong has loaded and built a configuration: the health check of its container.
local socket = ngx.socket.tcp()
socket:settimeout(2000)
local ok = socket:connect('127.0.0.1', 8100)
  and socket:send('GET /status/ready HTTP/1.0\r\nHost: localhost\r\n\r\n')
local line = ok and socket:receive('*l') or ''
os.exit(line:find('^HTTP/%d%.%d 200') and 0 or 1)
