"""The nodes of a cluster whose users a rotation changes, and their addresses."""

import pytest

from scoreboard.rotation.acl_users import addresses_of
from scoreboard.runtime.connection_urls import parse_cluster_url

NODES = """\
07c37df 127.0.0.1:30004@31004,host-4 slave e7d1eec 0 1426238317239 4 connected
67ed2db 127.0.0.1:30002@31002,host-2,tls-port=0 master,fail - 0 0 2 disconnected 5461-10922
292f8b3 ::1:30003@31003 master - 0 1426238318243 3 connected 10923-16383
6ec2392 :0@0,,tls-port=0 master,noaddr - 0 0 5 disconnected
824fe11 127.0.0.1:30006@31006, handshake - 0 0 5 connected
e7d1eec 127.0.0.1:30001@31001, myself,master - 0 0 1 connected 0-5460
"""


def test_every_node_is_found_by_its_name_or_else_its_address() -> None:
    """Also one that has failed, but not one that has no address or has not joined."""
    assert addresses_of(NODES) == [
        ("127.0.0.1", 30001),
        ("::1", 30003),
        ("host-2", 30002),
        ("host-4", 30004),
    ]


@pytest.mark.parametrize(
    ("url", "host", "expected"),
    [
        ("redis+cluster://a:1,b:2", "host-1", "redis://host-1:7000/0"),
        ("redis+cluster://u:p%40w@a:1,b:2", "host-1", "redis://u:p%40w@host-1:7000/0"),
        ("redis+cluster://u@a", "::1", "redis://u@[::1]:7000/0"),
        (
            "rediss+cluster://a?ssl_ca_certs=/ca.pem",
            "host-1",
            "rediss://host-1:7000/0?ssl_ca_certs=/ca.pem",
        ),
    ],
)
def test_the_url_of_a_node_has_the_login_of_the_cluster(url: str, host: str, expected: str) -> None:
    address = parse_cluster_url(url)
    assert address is not None
    assert address.url_of(host, 7000) == expected
