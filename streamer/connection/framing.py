"""Build server frames (RFC 6455, section 5.2): unmasked, unfragmented, without extensions.

A frame is built once and written to every viewer. This is correct because no extension is
negotiated that would change it.
"""


def text_frame(payload: bytes) -> bytes:
    """Return a text frame."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def ping_frame(payload: bytes) -> bytes:
    """Return a ping frame; ``payload`` has at most 125 bytes and comes back in the pong."""
    return b"\x89" + len(payload).to_bytes(1, "big") + payload


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame; ``reason`` has at most 123 bytes."""
    payload = code.to_bytes(2, "big") + reason.encode()
    return b"\x88" + len(payload).to_bytes(1, "big") + payload
