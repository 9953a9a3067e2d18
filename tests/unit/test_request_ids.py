"""Request ids: which header is used, and which values are accepted from clients."""

import pytest

from scoreboard.http.request_ids import GATEWAY_HEADER, HEADER, RequestIds


def test_the_gateways_id_is_preferred_unless_it_is_unsafe() -> None:
    ids = RequestIds()

    assert ids.of({HEADER: b"client-01", GATEWAY_HEADER: b"gateway-1"}) == "gateway-1"
    assert ids.of({HEADER: b"client-01"}) == "client-01"
    assert ids.of({HEADER: b"client-01", GATEWAY_HEADER: b"bad id"}) == "client-01"


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"short",
        b"x" * 129,
        b"has space",
        b"line\nbreak",
        b"ends-here\n",
        "ünicode-1".encode(),
        b"<script>alert(1)</script>",
    ],
)
def test_an_unsafe_id_is_replaced(given: bytes) -> None:
    ids = RequestIds()

    chosen = ids.of({HEADER: given})

    assert chosen.encode() != given
    assert ids.of({HEADER: chosen.encode()}) == chosen, "a new id has the safe form itself"


def test_new_ids_differ() -> None:
    ids, others = RequestIds(), RequestIds()

    assert len({ids.new(), ids.of({}), others.new(), others.of({})}) == 4
