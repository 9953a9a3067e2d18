"""Stands in for `python` in a shell: `python -m MODULE` is forked from the server of the module.

`forked.programs` writes the scripts that run it: `forked_python.py SOCKETS PYTHON ARGUMENT…`. The
process of the shell stays until the forked one ends; it passes signals on, and its end kills the
other. Everything that is not a module with a server is run by the real interpreter.
"""

import json
import os
import signal
import socket
import sys


def main(sockets: str, python: str, *arguments: str) -> None:
    """Run the arguments of `python`, and end as they end."""
    path = f"{sockets}/{arguments[1]}" if arguments[:1] == ("-m",) and arguments[1:] else ""
    if not os.path.exists(path):  # noqa: PTH110 (pathlib takes longer to import than the rest)
        os.execv(python, [python, *arguments])
    umask = os.umask(0)
    request = {
        "arguments": arguments[2:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "umask": umask,
        "open_files": 0,
    }
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [len(text).to_bytes(4)], [0, 1, 2])
        connection.sendall(text)
        with connection.makefile("rb") as answers:
            pid = int(answers.readline())
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, lambda number, _frame: os.kill(pid, number))
            code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
