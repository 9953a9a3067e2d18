"""The streamer's metrics. Labels come from closed sets: never a user, an address or a token."""

from typing import Final

from scoreboard.broadcast.close_codes import CloseCode
from scoreboard.runtime.telemetry import VIEWER_BUCKETS, Children, counter, gauge, histogram

CONNECTIONS: Final = Children(
    gauge(
        "ws_connections",
        "Connections by state: open, or other (handshakes and closing connections)",
        "state",
        unit="connections",
        normal="open: below 70 % of SCOREBOARD_VIEWERS; other: few",
    ),
    "open",
    "other",
)
HANDSHAKES: Final = Children(
    counter(
        "ws_handshakes_total",
        "Opening handshakes by result: a status, or how the connection ended",
        "result",
        unit="handshakes",
        normal="nearly all 101; 503 and displaced: 0",
    ),
    "101",
    "503",
    "dropped",
    "displaced",
)
CLOSES: Final = Children(
    counter(
        "ws_closes_total",
        "Closed viewers by close code and by who closed",
        "code",
        "by",
        unit="connections",
        normal="1000, 1001, 1005 and 1006 by the client, 1012 by the server; 1011 and 4450: 0",
    ),
    *((str(int(code)), "server") for code in (CloseCode.INTERNAL_ERROR, CloseCode.TOO_SLOW)),
)
FRAMES_SENT: Final = counter(
    "ws_frames_sent_total",
    "Boards written to viewers",
    unit="frames",
    normal="at most ten a second for each viewer, and five more after a quiet time",
)
FRAMES_SKIPPED: Final = counter(
    "ws_frames_skipped_total",
    "Boards skipped because the viewer did not accept data",
    unit="frames",
    normal="below 1 % of ws_frames_sent_total",
)
WATCHED_USERS: Final = gauge(
    "ws_watched_users",
    "Users whose places are read for viewers",
    unit="users",
    normal="at most the viewers with a token, and five for each that asks; below"
    " SCOREBOARD_WATCHED_USERS",
)
WATCHES_REFUSED: Final = counter(
    "ws_watches_refused_total",
    "Viewers whose users were not watched, because too many are",
    unit="requests",
    normal="0",
)
PLACES_READ: Final = counter(
    "ws_places_read_total",
    "Places read from Redis",
    unit="places",
    normal="one a second for each watched user of a board that changes, and the first one",
)
PLACES_SENT: Final = counter(
    "ws_places_sent_total",
    "Places written to viewers",
    unit="places",
    normal="at most one a second for each user that a viewer watches",
)
PLACES_SKIPPED: Final = counter(
    "ws_places_skipped_total",
    "Places skipped because the viewer did not accept data",
    unit="places",
    normal="below 1 % of ws_places_sent_total",
)
PLACE_TURNS: Final = counter(
    "ws_place_turns_total",
    "Turns of watched users, whose places are read if their boards have changed",
    unit="users",
    normal="once a second for each watched user",
)
PLACE_LATE: Final = histogram(
    "ws_place_late_seconds",
    "Delay of the oldest turn that is due, at each tick with one",
    VIEWER_BUCKETS,
    normal="below 0.2, and up to 1 just after many viewers came; above 1 all the time, places come "
    "less than half as often as they should",
)
SWEEP: Final = histogram(
    "ws_sweep_seconds",
    "Time per event-loop turn spent writing a message to viewers",
    VIEWER_BUCKETS,
    normal="below 0.01, the limit of a turn and its last viewers",
)
SWEEP_CPU: Final = counter(
    "ws_sweep_cpu_seconds_total",
    "CPU time spent writing messages to viewers of boards",
    unit="s",
    normal="below 0.5 a second; with ws_frames_sent_total the cost of a frame, 5 to 10 µs",
)
CHANGE_TO_WRITE: Final = histogram(
    "ws_change_to_write_seconds",
    "Time from a change's notification to the end of each turn that writes it",
    VIEWER_BUCKETS,
    normal="p99 below 0.15: frames leave every 0.1 while a board changes continuously",
)
ACCEPT_TO_VIEWER: Final = histogram(
    "accept_to_viewer_seconds",
    "Time from Redis's acceptance of the newest change in a board to the end of each turn that"
    " writes it",
    VIEWER_BUCKETS,
    normal="p99 below 0.25",
)
PING_RTT: Final = histogram(
    "ws_ping_rtt_seconds",
    "Round trip of a ping",
    VIEWER_BUCKETS,
    normal="that of the viewers' networks, mostly below 0.25",
)
UNSENT: Final = histogram(
    "ws_unsent_bytes",
    "Unsent bytes in a viewer's kernel buffer, sampled at each keepalive ping",
    (0, 1024, 4096, 8192, 16_384, 32_768, 65_536),
    normal="0",
)
ACK_PACED: Final = gauge(
    "ws_ack_paced",
    "Viewers whose next board waits for a pong",
    unit="viewers",
    normal="few: those with slow networks",
)
INBOUND: Final = Children(
    counter(
        "ws_inbound_total",
        "Frames from viewers",
        "type",
        "verdict",
        unit="frames",
        normal="pong taken: one per viewer and keepalive interval; refused: nearly 0",
    )
)
RENEWALS: Final = Children(
    counter(
        "ws_auth_renewals_total",
        "Token renewals by result",
        "result",
        unit="renewals",
        normal="nearly all renewed",
    ),
    "renewed",
)
LOOP_LAG: Final = gauge(
    "loop_lag_seconds", "Delay of the last timer tick of the event loop", normal="below 0.05"
)
