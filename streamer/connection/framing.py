"""Frames as a server writes them: unmasked, whole, without extensions. Pure.

Built once and written to every viewer, which is exact only because nothing negotiated alters them.
"""


def text_frame(payload: bytes) -> bytes:
    """Frame a whole text message."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def ping_frame(payload: bytes) -> bytes:
    """Frame a ping; ``payload`` has at most 125 bytes and comes back in the pong."""
    return b"\x89" + len(payload).to_bytes(1, "big") + payload


def close_frame(code: int, reason: str) -> bytes:
    """Frame a close; ``reason`` has at most 123 bytes."""
    payload = code.to_bytes(2, "big") + reason.encode()
    return b"\x88" + len(payload).to_bytes(1, "big") + payload
