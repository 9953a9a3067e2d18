"""A process that runs `python -m MODULE`, each time in a process forked from it.

It imports the module once; that takes most of the CPU time of a short command and of the start of a
service. `tests.support.clients.forked` starts it: `fork_server.py MODULE SOCKET`. Each connection
to the socket is one process:

- request: four bytes with the length of what follows, and with them the descriptors of stdin,
  stdout and stderr; JSON with the arguments, the environment, the folder, the umask (-1 keeps
  it) and the limit of open files (0 keeps it);
- answer: a line with the process id, and at the end a line with the exit code, negative for a
  signal.

A process whose connection breaks is killed. The server ends at the end of its stdin.
"""

import gc
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

Request = dict[str, Any]


def main(module: str, path: str) -> None:
    """Import the module and serve; in a forked process, run the module."""
    import_module(f"{module}.__main__")
    if module == "cli":
        _import_commands()
    del sys.modules[f"{module}.__main__"]  # it runs as __main__
    gc.freeze()  # so that the end of a forked process does not copy these objects
    request = Server(path).serve()
    if request is not None:
        sys.argv = [module, *request["arguments"]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _import_commands() -> None:
    group = import_module("cli.group")
    for name in ("cli.failures", "boto3.session"):
        import_module(name)
    for names in group.SECTIONS.values():
        for name in names:
            import_module(f"cli.commands.{name}")


class Server:
    """Forks a process for each connection, and reports its end."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._running: dict[int, tuple[int, socket.socket]] = {}
        """By the id of the process: a descriptor of it and its connection."""

    def serve(self) -> Request | None:
        """Serve until the end of stdin; in each forked process, return its request."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._fork)
        self._selector.register(0, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._kill_all()
                    return None
                request = key.data()
                if request is not None:
                    return request

    def _fork(self) -> Request | None:
        connection, _ = self._listener.accept()
        request, streams = _receive(connection)
        pid = os.fork()
        if not pid:
            self._close()
            connection.close()
            _become(request, streams)
            return request
        for stream in streams:
            os.close(stream)
        descriptor = os.pidfd_open(pid)
        self._running[pid] = (descriptor, connection)
        self._selector.register(descriptor, selectors.EVENT_READ, lambda: self._end(pid))
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._kill(pid))
        _answer(connection, pid)
        return None

    def _end(self, pid: int) -> None:
        descriptor, connection = self._running.pop(pid)
        _, status = os.waitpid(pid, 0)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        if connection.fileno() >= 0:
            self._selector.unregister(connection)
            _answer(connection, os.waitstatus_to_exitcode(status))
            connection.close()

    def _kill(self, pid: int) -> None:
        if pid in self._running:  # it may have ended at the same time
            _, connection = self._running[pid]
            os.kill(pid, signal.SIGKILL)
            self._selector.unregister(connection)
            connection.close()

    def _kill_all(self) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)

    def _close(self) -> None:
        """Close everything in a forked process."""
        self._selector.close()
        self._listener.close()
        for descriptor, connection in self._running.values():
            os.close(descriptor)
            connection.close()


def _receive(connection: socket.socket) -> tuple[Request, list[int]]:
    start, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as stream:
        return json.loads(stream.read(int.from_bytes(start))), streams


def _answer(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # the client has gone; the selector reports it, too
        connection.sendall(b"%d\n" % number)


def _become(request: Request, streams: list[int]) -> None:
    os.setsid()
    os.chdir(request["folder"])
    if request["umask"] >= 0:
        os.umask(request["umask"])
    if request["open_files"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request["open_files"],) * 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
