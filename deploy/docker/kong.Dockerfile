# Kong with the two plugins. 3.9 is the last open-source line (docs/explanation/gateway.md, «The version»). Also
# pin the digest after the first pull: kong:3.9.3@sha256:…
FROM kong:3.9.3
# The modes are set, because those of a checkout depend on its umask.
COPY --chmod=755 kong/plugins/scoreboard-intake/ /usr/local/share/lua/5.1/kong/plugins/scoreboard-intake/
COPY --chmod=755 kong/plugins/scoreboard-authz/ /usr/local/share/lua/5.1/kong/plugins/scoreboard-authz/
COPY --chmod=755 deploy/docker/kong-entrypoint.sh deploy/docker/kong-ready.lua /usr/local/share/scoreboard/
# Before 1.1.8, runc gives a tmpfs, from the second start on, the mode of the folder that it covers.
USER 0
RUN install -d -m 1777 /var/lib/kong
# Settings of every installation. The Admin API is on loopback unless docker-compose.yml sets an address; the
# Manager is off; Status is for probes.
ENV KONG_DATABASE=off \
    KONG_PLUGINS=cors,jwt,rate-limiting,request-size-limiting,prometheus,file-log,scoreboard-intake,scoreboard-authz \
    KONG_PREFIX=/var/lib/kong \
    KONG_PROXY_LISTEN=0.0.0.0:8000 \
    KONG_ADMIN_LISTEN=127.0.0.1:8001 \
    KONG_ADMIN_GUI_LISTEN=off \
    KONG_STATUS_LISTEN=0.0.0.0:8100 \
    KONG_PROXY_ACCESS_LOG=off \
    KONG_ADMIN_ACCESS_LOG=off \
    KONG_PROXY_ERROR_LOG=/dev/stderr \
    KONG_ADMIN_ERROR_LOG=/dev/stderr \
    KONG_ANONYMOUS_REPORTS=off \
    KONG_REQUEST_DEBUG=off \
    KONG_HEADERS=X-Kong-Request-Id \
    KONG_HEADERS_UPSTREAM=X-Kong-Request-Id \
    KONG_UNTRUSTED_LUA=off \
    KONG_ERROR_DEFAULT_TYPE=application/json \
    KONG_NGINX_HTTP_CLIENT_MAX_BODY_SIZE=64k \
    KONG_NGINX_PROXY_LIMIT_CONN_STATUS=429 \
    KONG_NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT=60s \
    KONG_DNS_VALID_TTL=5
# By name, because the base image chooses the uid.
# hadolint ignore=DL3066
USER kong
ENTRYPOINT ["sh", "/usr/local/share/scoreboard/kong-entrypoint.sh"]
CMD ["kong", "docker-start"]
STOPSIGNAL SIGQUIT
# `kong health` only checks that nginx runs; this checks that a configuration is loaded. The image may
# have no curl, but has resty, which runs the kong command itself.
HEALTHCHECK --interval=5s --timeout=4s --start-period=20s --retries=6 \
    CMD ["/usr/local/openresty/bin/resty", "/usr/local/share/scoreboard/kong-ready.lua"]
