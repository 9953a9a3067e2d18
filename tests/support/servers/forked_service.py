"""A service of `scoreboard up`, forked from a process that has imported it."""

from cli.running.service import Service
from tests.support.clients.forked import Forked


class ForkedService(Service):
    """Starts as fast as a fork; its arguments are ``-m MODULE ARGUMENT…``."""

    def _spawn(self) -> Forked:
        _, module, *arguments = self._arguments
        with self.log.open("ab") as log:
            return Forked(module, arguments, self._environment, output=log, umask=0o077)
