"""Exit codes are stable, and each error is one line on stderr."""

import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from cli import commands, failures, group, main
from scoreboard.errors import (
    Forbidden,
    InternalError,
    OperatorMistake,
    RedisUnavailable,
    ScoreboardError,
    Unauthenticated,
    UnknownBoard,
    WaitTimeout,
)

COMMANDS = group.scoreboard.list_commands(click.Context(group.scoreboard))


def every_error(kind: type[ScoreboardError] = ScoreboardError) -> Iterator[type[ScoreboardError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from every_error(inner)


@pytest.mark.parametrize("kind", list(every_error()))
def test_every_error_has_an_exit_code(kind: type[ScoreboardError]) -> None:
    assert failures.exit_code_of(kind.__new__(kind)) in {1, 3, 4, 5, 69, 74, 75}


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (InternalError, 1),
        (UnknownBoard, 3),
        (Unauthenticated, 4),
        (Forbidden, 4),
        (OperatorMistake, 5),
        (RedisUnavailable, 69),
        (WaitTimeout, 75),
    ],
)
def test_exit_codes_do_not_change(kind: type[ScoreboardError], code: int) -> None:
    assert failures.exit_code_of(kind("x")) == code


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `fail` that raises what the test puts into the list."""
    errors: list[BaseException] = []

    @click.command()
    def fail() -> int:
        if errors:
            raise errors[0]
        return 7

    monkeypatch.setitem(group.scoreboard.commands, "fail", fail)
    return errors


def test_an_error_is_printed_in_one_line_on_stderr(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(UnknownBoard("There is no board x"))

    assert main.run(["fail"]) == 3

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "scoreboard: No such board: There is no board x\n"


def test_an_interrupt_exits_with_130(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())

    assert main.run(["fail"]) == 130


def test_an_invalid_command_line_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["no-such-verb"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_a_command_returns_its_own_exit_code(failing: list[BaseException]) -> None:
    assert main.run(["fail"]) == 7


def test_help_lists_every_command_in_one_section_and_the_completion(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.run(["--help"]) == 0

    out = capsys.readouterr().out
    listed = re.findall(r"^  ([a-z]+) +[A-Z]", out, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert all(f"{section}:" in out for section in group.SECTIONS)
    assert all(f"_SCOREBOARD_COMPLETE={shell}_source" in out for shell in ("bash", "zsh", "fish"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_every_module_of_a_command_is_listed() -> None:
    modules = {module.name for module in pkgutil.iter_modules(commands.__path__)}

    assert modules == set(COMMANDS)


def test_a_command_imports_no_other_command_and_no_library_that_it_does_not_use() -> None:
    program = (
        "import sys; from cli.main import run; run(['token', '--help']); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    imported = set(done.stderr.split())
    assert {name for name in imported if name.startswith("cli.commands.")} == {"cli.commands.token"}
    assert not imported & {"httpx", "yoyo", "boto3", "litestar", "yaml", "websockets"}
