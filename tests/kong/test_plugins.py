"""Kong's requirements for plugins, their order, and their schemas."""

import re

import pytest

from tests.kong.runtime import PLUGINS, Gateway, our_plugins


@pytest.mark.parametrize("plugin", our_plugins())
def test_a_plugin_has_the_files_version_and_name_that_kong_requires(
    gateway: Gateway, plugin: str
) -> None:
    assert sorted(f.name for f in (PLUGINS / plugin).iterdir()) == ["handler.lua", "schema.lua"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", gateway.version(plugin))
    assert gateway.schemas[plugin]["name"] == plugin


def test_plugins_have_the_documented_priorities(gateway: Gateway) -> None:
    intake, authz = gateway.priority("scoreboard-intake"), gateway.priority("scoreboard-authz")
    cors, jwt, rate_limiting = 2000, 1450, 910
    assert rate_limiting < authz < jwt < intake < cors
    assert (intake, authz) == (1460, 1440)


@pytest.mark.parametrize("plugin", our_plugins())
def test_plugins_call_nothing_blocking_and_have_no_response_phase(
    gateway: Gateway, plugin: str
) -> None:
    source = (PLUGINS / plugin / "handler.lua").read_text()
    for blocking in ("ngx.sleep", "resty.", "ngx.socket", "io.", "os.", "ngx.location"):
        assert blocking not in source, blocking
    # A response phase buffers responses, and Kong refuses it together with filters.
    assert gateway.handlers[plugin][b"response"] is None


@pytest.mark.parametrize("plugin", our_plugins())
@pytest.mark.parametrize("part", ["handler", "schema"])
def test_plugins_set_no_globals(gateway: Gateway, plugin: str, part: str) -> None:
    before = set(gateway.lua.globals().keys())
    gateway.lua.execute((PLUGINS / plugin / f"{part}.lua").read_bytes())
    assert set(gateway.lua.globals().keys()) == before


@pytest.mark.parametrize(
    ("plugin", "config"),
    [
        ("scoreboard-intake", {}),
        ("scoreboard-intake", {"algorithms": []}),
        ("scoreboard-intake", {"algorithms": ["none"]}),
        ("scoreboard-intake", {"algorithms": ["HS256"]}),
        ("scoreboard-intake", {"algorithms": "RS256"}),
        ("scoreboard-intake", {"algorithms": ["RS256"], "max_token_bytes": 1}),
        ("scoreboard-intake", {"algorithms": ["RS256"], "algorithm": "RS256"}),
        ("scoreboard-authz", {}),
        ("scoreboard-authz", {"issuer": "i", "audiences": [], "scopes": ["s"]}),
        ("scoreboard-authz", {"issuer": "i", "audiences": ["a"], "scopes": []}),
        ("scoreboard-authz", {"audiences": ["a"], "scopes": ["s"]}),
        (
            "scoreboard-authz",
            {"issuer": "i", "audiences": ["a"], "scopes": ["s"], "clock_skew": -1},
        ),
    ],
)
def test_schemas_refuse_invalid_configurations(
    gateway: Gateway, plugin: str, config: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=plugin):
        gateway.config(plugin, config)
