"""What cannot be read or stored, made ready to be parked in dead_events with its reason.

Pure. The writer stores it in the transaction that moves past the entry, so nothing is acknowledged
without a row. The form keeps every byte: an operator can read it, and apply it later.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from scoreboard.events import BIGINT_MAX, BadRecord

REASON_MAX: Final = 500
"""Longest reason stored; a server's message may quote a whole row."""

_encode = msgspec.json.Encoder(order="sorted").encode


class DeadEvent(Struct, frozen=True):
    """One row of dead_events."""

    stream_id: str
    raw: bytes
    raw_hash: bytes
    reason: str
    seq: int | None


def park(stream_id: str, fields: Mapping[bytes, bytes], reason: str) -> DeadEvent:
    """Make the row of an entry.

    ``raw`` is a JSON object of the fields in which each character stands for one byte (latin-1).
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
    )


def park_bad(record: BadRecord) -> DeadEvent:
    """Make the row of a record that could not be read."""
    return park(record.stream_id, record.fields, record.reason)


def _seq(text: bytes) -> int | None:
    if not text.isdigit() or len(text) > 19:  # digits of a BIGINT
        return None
    seq = int(text)
    return seq if 0 < seq <= BIGINT_MAX else None
