"""The fakes refuse what Kong refuses: phases, arguments, invalid values in log messages."""

import pytest

from tests.kong.runtime import Entry, Gateway, Outcome

PHASES = ("access", "header_filter", "body_filter", "log")


def run(gateway: Gateway, phase: str, lua: str) -> Outcome:
    """Run a line of Lua in a phase of a plugin that runs before the log plugins."""
    gateway.lua.execute(f"bundled.probe = {{ PRIORITY = 100, {phase} = function() {lua} end }}")
    return gateway.send([Entry("probe", [(None, {})])])


def fault_of(gateway: Gateway, phase: str, lua: str) -> str:
    """Return the error of a line of Lua; in `access` Kong converts it to a 500."""
    try:
        outcome = run(gateway, phase, lua)
    except gateway.lua_error as error:
        return str(error)
    return "".join(outcome.errors)


@pytest.mark.parametrize(
    ("lua", "allowed"),
    [
        ("kong.request.get_headers()", PHASES),
        ("kong.request.get_raw_path()", PHASES),
        ("kong.router.get_route()", PHASES),
        ("kong.service.request.set_header('a', 'b')", ("access",)),
        ("kong.service.request.clear_header('a')", ("access",)),
        ("kong.client.authenticate({ id = 'c' }, { id = 'u' })", ("access",)),
        ("kong.response.get_status()", ("header_filter", "body_filter", "log")),
        ("kong.response.get_source()", ("header_filter", "body_filter", "log")),
        ("kong.response.set_status(400)", ("header_filter",)),
        ("kong.response.set_header('a', 'b')", ("header_filter",)),
        ("kong.response.clear_header('a')", ("header_filter",)),
        ("kong.response.set_raw_body('x')", ("body_filter",)),
        ("kong.log.set_serialize_value('a', 1)", PHASES),
    ],
)
def test_functions_are_refused_in_phases_where_kong_refuses_them(
    gateway: Gateway, lua: str, allowed: tuple[str, ...]
) -> None:
    # Kong accepts set_status and similar functions in access too; the fake has no response there.
    for phase in PHASES:
        if phase == "access" and lua.startswith("kong.response.") and phase not in allowed:
            continue
        fault = fault_of(gateway, phase, lua)
        assert ("cannot be called" in fault) is (phase not in allowed), (phase, fault)


@pytest.mark.parametrize(
    ("phase", "lua", "fault"),
    [
        ("access", "kong.response.exit('403')", "code must be a number"),
        ("access", "kong.response.exit(99)", "between 100 and 599"),
        ("access", "kong.response.exit(403, 5)", "body must be"),
        ("access", "kong.response.exit(403, {}, 'x')", "headers must be"),
        ("access", "kong.response.exit(403, {}, { a = print })", "invalid header value"),
        ("access", "kong.response.exit(403, {}, { 'value' })", "header name must be a string"),
        ("access", "kong.service.request.set_header('a', nil)", "invalid header value"),
        ("access", "kong.service.request.set_header('a', {})", "invalid header value"),
        ("access", "kong.service.request.clear_header(nil)", "must be a string"),
        ("access", "kong.request.get_headers(0)", "max_headers"),
        ("access", "kong.client.authenticate(nil, nil)", "either credential or consumer"),
        ("access", "kong.client.authenticate('players', {})", "consumer must be a table"),
        ("access", "kong.client.load_consumer('players')", "not a uuid"),
        ("access", "kong.request.get_body()", "has no rule"),
        ("access", "kong.node.get_id()", "has no rule"),
        ("access", "ngx.var.remote_addr = 'x'", "not found for writing"),
        ("header_filter", "kong.response.set_status('400')", "code must be a number"),
        ("header_filter", "kong.response.set_header('a', nil)", "invalid header value"),
        ("body_filter", "kong.response.set_raw_body(nil)", "body must be a string"),
        ("log", "kong.log.set_serialize_value(1, 'x')", "key must be a string"),
        ("log", "kong.log.set_serialize_value('a', 1, { mode = 'x' })", "mode must be"),
        ("log", "kong.log.set_serialize_value('a', kong.request.get_headers)", "must be nil"),
        ("log", "local a = {} a.a = a kong.log.set_serialize_value('a', a)", "self-ref"),
        ("log", "kong.log.set_serialize_value('client_ip.port', 1)", "is not a table"),
        ("log", "kong.log.set_serialize_value('route', 'scores-update')", "label route"),
        ("log", "kong.log.set_serialize_value('route', nil)", "label route"),
        ("log", "kong.log.set_serialize_value('service', nil)", "label service"),
        ("log", "kong.log.set_serialize_value('service', { id = 5 })", "label service"),
        ("log", "kong.log.set_serialize_value('response', nil)", "response"),
        ("log", "kong.log.set_serialize_value('latencies.request', 'x')", "latency request"),
    ],
)
def test_invalid_arguments_and_values_are_refused(
    gateway: Gateway, phase: str, lua: str, fault: str
) -> None:
    assert fault in fault_of(gateway, phase, lua)


def test_values_are_set_added_and_replaced_as_kong_does(gateway: Gateway) -> None:
    outcome = run(
        gateway,
        "log",
        """
        local set = kong.log.set_serialize_value
        set('new.deep.value', 1)
        set('client_ip', 'x', { mode = 'add' })
        set('absent.value', 'x', { mode = 'replace' })
        set('source', 'x', { mode = 'replace' })
        """,
    )
    assert outcome.logged["new"] == {"deep": {"value": 1}}
    assert outcome.logged["client_ip"] == "192.0.2.1"
    assert "absent" not in outcome.logged
    assert outcome.logged["source"] == "x"
