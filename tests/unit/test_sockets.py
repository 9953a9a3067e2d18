"""Addresses that a process listens on."""

import pytest

from scoreboard.errors import SettingInvalid
from scoreboard.runtime.sockets import bind_listener


@pytest.mark.parametrize("host", ["x" * 64, "é" * 64, "no.such.host.invalid", "a\0b", "192.0.2.1"])
def test_an_address_that_cannot_be_bound_names_the_setting(host: str) -> None:
    with pytest.raises(SettingInvalid, match="SCOREBOARD_API_HOST: cannot listen on"):
        bind_listener(host, 0, variables="SCOREBOARD_API_HOST")
