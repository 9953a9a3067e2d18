#!/bin/sh
# Stand-in for OpenResty's resty: runs one Lua file with ngx.socket, and exits with its code.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/nginx.conf" <<END
daemon off; master_process off; worker_processes 1; pid $folder/pid; error_log stderr error;
load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
events { worker_connections 16; }
http {
  lua_package_path '/usr/share/lua/5.1/?.lua;;';
  client_body_temp_path $folder/a; proxy_temp_path $folder/b; fastcgi_temp_path $folder/c;
  uwsgi_temp_path $folder/d; scgi_temp_path $folder/e;
  init_worker_by_lua_block {
    local run = assert(loadfile('$1'))
    assert(ngx.timer.at(0, function() os.exit(pcall(run) and 0 or 1) end))
  }
}
END
nginx -p "$folder" -e stderr -c "$folder/nginx.conf"
