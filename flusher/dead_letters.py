"""Dead letters: entries that cannot be decoded or stored, as rows of dead_events. No I/O.

The writer inserts them in the transaction that moves past the entry, so every acknowledged entry
has a row. The form keeps every byte, so an operator can read an entry and apply it later.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from scoreboard.events import BIGINT_MAX, BadRecord

REQUEST_ID_MAX: Final = 128
"""Longest id of a request; an entry that cannot be decoded may contain anything."""

REASON_MAX: Final = 500
"""Longest stored reason in characters; a server's message may quote a whole row."""

_encode = msgspec.json.Encoder(order="sorted").encode


class DeadEvent(Struct, frozen=True):
    """A row of dead_events."""

    stream_id: str
    raw: bytes
    raw_hash: bytes
    reason: str
    seq: int | None
    request_id: str = ""


def dead_event(stream_id: str, fields: Mapping[bytes, bytes], reason: str) -> DeadEvent:
    """Return the row of an entry.

    ``raw`` is a JSON object of the fields; each character represents one byte (latin-1).
    """
    raw = _encode(
        {name.decode("latin-1"): value.decode("latin-1") for name, value in fields.items()}
    )
    return DeadEvent(
        stream_id=stream_id,
        raw=raw,
        raw_hash=hashlib.blake2b(raw, digest_size=16).digest(),
        reason=reason.replace("\0", "")[:REASON_MAX],
        seq=_seq(fields.get(b"q", b"")),
        request_id=fields.get(b"t", b"").decode("latin-1")[:REQUEST_ID_MAX],
    )


def dead_event_of(record: BadRecord) -> DeadEvent:
    """Return the row of a record that could not be decoded."""
    return dead_event(record.stream_id, record.fields, record.reason)


def _seq(text: bytes) -> int | None:
    if not text.isdigit() or len(text) > 19:  # digits of a BIGINT
        return None
    seq = int(text)
    return seq if 0 < seq <= BIGINT_MAX else None
