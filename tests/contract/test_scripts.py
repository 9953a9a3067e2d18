"""The headers of the scripts match their bodies, errors.py and model.py."""

import re
from pathlib import Path

import pytest

from scoreboard import model, trace_context
from scoreboard.errors import REFUSALS
from scoreboard.store import corrections, keys
from scoreboard.store.scripts import Script

LUA = Path(__file__).parents[2] / "lua"
SCRIPTS = sorted(path.stem for path in LUA.glob("*.lua"))
SECTIONS = [
    "WHY",
    "KEYS",
    "ARGV",
    "ASSUMES",
    "RETURNS",
    "OUTCOMES",
    "REFUSES",
    "WRITES",
    "EMITS",
    "COST",
]
WRITING = re.compile(
    r"redis\.call\('(ZADD|XADD|HSET|HDEL|EXPIRE|EXPIREAT|UNLINK|RENAME|XTRIM|XSETID|XGROUP|PUBLISH|LPUSH|LTRIM)'"
)


def read(name: str) -> tuple[str, dict[str, str], str]:
    text = (LUA / f"{name}.lua").read_text()
    header = re.match(r"(?:-- .*\n)+", text)
    assert header, f"{name}.lua starts with its header"
    title, *lines = header.group().splitlines()
    sections = dict(line[3:].split(None, 1) for line in lines)
    return title, sections, text[header.end() :]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_header_has_its_sections_in_order(name: str) -> None:
    title, sections, _ = read(name)

    assert title.startswith(f"-- {name}: ")
    assert list(sections) == SECTIONS


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("array", ["KEYS", "ARGV"])
def test_exactly_the_documented_arguments_are_used(name: str, array: str) -> None:
    _, sections, body = read(name)

    indices = re.findall(r"(?:^| · )(\d+)(\+?) ", sections[array])
    fixed = {int(number) for number, plus in indices if not plus}
    used = {int(number) for number in re.findall(rf"{array}\[(\d+)\]", body)}

    assert fixed == set(range(1, len(fixed) + 1))
    assert used == fixed
    assert bool(re.search(rf"#{array}|{array}\[\w*[a-z]", body)) == any(p for _, p in indices)


@pytest.mark.parametrize("name", SCRIPTS)
def test_exactly_the_possible_refusals_are_listed_and_known(name: str) -> None:
    _, sections, body = read(name)

    listed = {entry.split()[0] for entry in sections["REFUSES"].split(" · ")} - {"none"}
    made = set(re.findall(r"error_reply\((?:string\.format\()?'([A-Z]+) ", body))

    assert made == listed
    assert listed <= set(REFUSALS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_exactly_the_possible_outcomes_are_listed(name: str) -> None:
    _, sections, body = read(name)
    listed = set(sections["OUTCOMES"].split()) - {"none"}

    made = set(re.findall(r"replies\[i\] = \{ '(\w+)'", body))
    made |= set(re.findall(r"outcome = '(\w+)'", body))

    assert made == listed


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_is_refused_after_the_first_write(name: str) -> None:
    _, _, body = read(name)
    first_write = WRITING.search(body)

    last_refusal = body.rfind("error_reply")

    assert first_write is None or last_refusal < first_write.start()


@pytest.mark.parametrize("name", SCRIPTS)
def test_reading_scripts_write_nothing_and_writing_scripts_declare_it(name: str) -> None:
    _, sections, body = read(name)

    writes = {word for word in WRITING.findall(body) if word != "PUBLISH"}

    assert bool(writes) == (sections["WRITES"] != "nothing")
    assert ("'PUBLISH'" in body) == (sections["EMITS"] != "nothing")


@pytest.mark.parametrize("name", SCRIPTS)
def test_numbers_are_never_joined_or_printed_with_fourteen_digits(name: str) -> None:
    _, _, body = read(name)

    assert not re.search(r"\bcjson\b|\bcmsgpack\b|%d\b(?!\+)|%g", body.replace("(%d+)", ""))
    assert "tostring" not in body


def test_lua_and_python_agree_on_constants() -> None:
    _, _, body = read("submit")
    constants = dict(re.findall(r"local ([A-Z_]+) = (\d+)", body))

    assert int(constants["WATCHED_TOP"]) == model.WATCHED_TOP
    assert int(constants["SCORE_MAX"]) == model.SCORE_MAX
    assert int(constants["SLOT_COUNT"]) == model.SLOT_COUNT
    assert f"count > {model.BATCH_MAX}" in body
    assert int(constants["TRACES_MAX"]) == trace_context.NOTICE_MAX
    assert f"'{trace_context.NOTICE.decode()}' .." in body
    assert f"#traceparent == {trace_context.CONTEXT_BYTES}" in body
    assert f"'{trace_context.FIELD.decode()}', trace" in body
    _, _, body = read("repair")
    constants = dict(re.findall(r"local ([A-Z_]+) = (\d+)", body))
    assert int(constants["SCORE_MAX"]) == model.SCORE_MAX
    assert int(constants["SLOT_COUNT"]) == model.SLOT_COUNT
    assert int(constants["EQUALS_MAX"]) == corrections.EQUALS_MAX
    assert f"#users == {corrections.REPAIR_MAX}" in body


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_adds_to_a_stream_announces_it(name: str) -> None:
    """A flusher does not read the streams of partitions without work."""
    _, sections, body = read(name)

    adds = "'XADD'" in body
    assert adds == (f"local ACTIVE = '{keys.ACTIVE}'\n" in body)
    assert adds == ("  redis.pcall('PUBLISH', ACTIVE, events)\n" in body)
    assert adds == (f"to {keys.ACTIVE} " in sections["EMITS"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_messages_of_a_partition_are_sharded_in_a_cluster_and_no_others(name: str) -> None:
    _, sections, body = read(name)
    script = Script.load(name)
    published = re.findall(r"'PUBLISH', (\w+)", body)
    sharded = re.findall(r"'SPUBLISH', (\w+)", script.sharded.text.decode())

    assert set(published) <= ({"channel"} if name == "mirror" else {"changes", "commits", "ACTIVE"})
    assert sharded == [one for one in published if one in {"changes", "commits"}]
    assert script.sharded.text.replace(b"'SPUBLISH'", b"'PUBLISH'") == script.text
    assert (script.sharded.sha == script.sha) == (not sharded)
    if "changes" in published:
        assert re.search(r"\d changes channel", sections["KEYS"])
        assert re.search(r"local [\w, ]*\bchanges\b[\w, ]* = .*KEYS\[", body)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_run_by_the_store_and_described_in_the_readme(name: str) -> None:
    root = LUA.parent
    callers = "".join(path.read_text() for path in sorted((root / "scoreboard/store").glob("*.py")))

    assert f'Script.load("{name}")' in callers
    assert f"`{name}.lua`" in (LUA / "README.md").read_text()
