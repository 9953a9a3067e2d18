"""The streamer's metrics. Labels come from closed sets: never a user, an address or a token."""

from scoreboard.runtime.telemetry import VIEWER_BUCKETS, counter, gauge, histogram

CONNECTIONS = gauge("ws_connections", "Connections by state", "state")
HANDSHAKES = counter("ws_handshakes_total", "Handshakes by how they ended", "result")
CLOSES = counter("ws_closes_total", "Closed viewers by code and by who began it", "code", "by")
FRAMES_SENT = counter("ws_frames_sent_total", "Boards written to viewers")
FRAMES_SKIPPED = counter(
    "ws_frames_skipped_total", "Boards a viewer was not given because it could take nothing then"
)
SWEEP = histogram("ws_sweep_seconds", "Time of one turn of a sweep", VIEWER_BUCKETS)
CHANGE_TO_WRITE = histogram(
    "ws_change_to_write_seconds",
    "From the first word of a change to the end of each turn that shows it",
    VIEWER_BUCKETS,
)
PING_RTT = histogram("ws_ping_rtt_seconds", "Round trip of a ping", VIEWER_BUCKETS)
UNSENT = histogram(
    "ws_unsent_bytes",
    "Bytes the kernel could not send yet, looked up at each ping",
    (0, 1024, 4096, 8192, 16_384, 32_768, 65_536),
)
ACK_PACED = gauge("ws_ack_paced", "Viewers whose next board waits for a pong")
INBOUND = counter("ws_inbound_total", "Frames from viewers", "type", "verdict")
RENEWALS = counter("ws_auth_renewals_total", "Tokens renewed in place", "result")
LOOP_LAG = gauge("loop_lag_seconds", "How late the clock of the process last was")
