"""The streamer's metrics. Labels come from closed sets: never a user, an address or a token."""

from scoreboard.runtime.telemetry import VIEWER_BUCKETS, counter, gauge, histogram

CONNECTIONS = gauge("ws_connections", "Connections by state", "state")
HANDSHAKES = counter("ws_handshakes_total", "Opening handshakes by result", "result")
CLOSES = counter("ws_closes_total", "Closed viewers by close code and by who closed", "code", "by")
FRAMES_SENT = counter("ws_frames_sent_total", "Boards written to viewers")
FRAMES_SKIPPED = counter(
    "ws_frames_skipped_total", "Boards skipped because the viewer did not accept data"
)
SWEEP = histogram(
    "ws_sweep_seconds",
    "Time per event-loop turn spent writing a message to viewers",
    VIEWER_BUCKETS,
)
CHANGE_TO_WRITE = histogram(
    "ws_change_to_write_seconds",
    "Time from a change's notification to the end of each turn that writes it",
    VIEWER_BUCKETS,
)
PING_RTT = histogram("ws_ping_rtt_seconds", "Round trip of a ping", VIEWER_BUCKETS)
UNSENT = histogram(
    "ws_unsent_bytes",
    "Unsent bytes in a viewer's kernel buffer, sampled at each keepalive ping",
    (0, 1024, 4096, 8192, 16_384, 32_768, 65_536),
)
ACK_PACED = gauge("ws_ack_paced", "Viewers whose next board waits for a pong")
INBOUND = counter("ws_inbound_total", "Frames from viewers", "type", "verdict")
RENEWALS = counter("ws_auth_renewals_total", "Token renewals by result", "result")
LOOP_LAG = gauge("loop_lag_seconds", "Delay of the last timer tick of the event loop")
