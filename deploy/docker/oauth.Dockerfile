# An OAuth 2.0 provider for development, never for production: it signs in anyone under any name. Its
# image has no program for the health check, so busybox is added.
FROM busybox:1.37.0-musl AS tools
FROM ghcr.io/navikt/mock-oauth2-server:2.1.10
COPY --from=tools /bin/busybox /usr/local/bin/busybox
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=6 \
    CMD ["/usr/local/bin/busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8090/isalive"]
