"""docs/asyncapi.yaml and docs/reference/websocket.md match the code."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from api.documents.openapi import shorten_patterns
from scoreboard.broadcast import messages
from scoreboard.broadcast.close_codes import CLOSE_REASONS, CloseCode
from scoreboard.runtime.settings import describe
from streamer import protocol
from tests.support.asyncapi import check_message, document, payload_names, read

GUIDE = (Path(__file__).parents[2] / "docs" / "reference" / "websocket.md").read_text()
SENT = (
    messages.Leaderboard,
    messages.Delta,
    messages.Heartbeat,
    messages.Place,
    messages.Status,
    messages.AuthExpiring,
    messages.Problem,
    messages.Bye,
)
RECEIVED = (
    protocol.Auth,
    protocol.Sync,
    protocol.Subscribe,
    protocol.Unsubscribe,
    protocol.Watch,
)


def tags(types: tuple[type, ...]) -> set[str]:
    return {str(kind.__struct_config__.tag) for kind in types}  # type: ignore[attr-defined]


def test_every_schema_matches_its_struct() -> None:
    _, schemas = msgspec.json.schema_components(
        [*SENT, *RECEIVED], ref_template="#/components/schemas/{name}"
    )

    written = document()["components"]["schemas"]
    assert written == shorten_patterns(msgspec.to_builtins(schemas))


def test_a_schema_that_is_written_twice_is_refused() -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match="found twice: \\['Delta'\\]"):
        read("schemas:\n  Delta:\n    type: object\n  Watch: {}\n  Delta: {}\n")


def test_the_operations_name_exactly_the_messages() -> None:
    every = set(messages.Message.__subclasses__())

    assert every == set(SENT)
    assert set(payload_names("send")) == tags(SENT)
    assert set(payload_names("receive")) == tags(RECEIVED)


def test_every_example_matches_its_schema() -> None:
    for name, message in document()["components"]["messages"].items():
        action = "send" if name in payload_names("send") else "receive"
        for example in message["examples"]:
            check_message(example["payload"], action)


def test_the_close_codes_match_the_code() -> None:
    written = document()["channels"]["scoreboard"]["x-close-codes"]

    assert written == {
        str(int(code)): {
            "reason": ending.reason,
            "reconnect": ending.reconnect,
            "delay_ms": list(ending.delay_ms),
        }
        for code, ending in CLOSE_REASONS.items()
    }
    assert set(CLOSE_REASONS) == set(CloseCode)


def test_a_message_with_an_undescribed_field_is_refused() -> None:
    with pytest.raises(AssertionError, match="does not describe"):
        check_message({"type": "status", "state": "live", "colour": "red"})


def test_the_guide_has_a_row_for_every_close_code_and_a_section_for_every_message() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d{4}) \|", GUIDE, re.MULTILINE)}
    sections = set(re.findall(r"^### `([a-z_]+)`", GUIDE, re.MULTILINE))

    assert codes == {int(code) for code in CloseCode} | {1006}
    assert sections == tags(SENT) | tags(RECEIVED)


def test_the_settings_in_the_guide_exist() -> None:
    named = set(re.findall(r"SCOREBOARD_[A-Z_]+", GUIDE))

    assert named <= {variable for variable, _, _ in describe()}
