"""A process that runs `scoreboard` command lines, each in a process forked from it.

It imports all commands once, which takes most of the CPU time of a command. Each line on stdin is a
request in JSON; the answer is a line with the exit code. The process ends at the end of stdin.
"""

import gc
import json
import os
import sys
from importlib import import_module

from cli import group, main


def serve() -> None:
    """Answer requests until the end of stdin."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become_command(**json.loads(line))
            main.main()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become_command(
    arguments: list[str], environment: dict[str, str], folder: str, out: str, err: str
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    for number, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY),
        (2, err, os.O_WRONLY),
    ):
        opened = os.open(path, mode)
        os.dup2(opened, number)
        os.close(opened)


if __name__ == "__main__":
    for module in ("cli.failures", "boto3.session"):
        import_module(module)
    for names in group.SECTIONS.values():
        for name in names:
            import_module(f"cli.commands.{name}")
    gc.freeze()  # so that the end of a forked process does not copy these objects
    serve()
