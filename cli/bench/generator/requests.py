"""The requests of the api that a load sends, and the outcomes of their responses."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

import msgspec
from msgspec import Struct

from scoreboard.http.problems import TYPE_PREFIX

KIND: Final = "win"
"""The kind of the actions; it must be in the catalogue, or unknown kinds must be accepted."""


class User(Struct, frozen=True):
    """A user whom the load acts for, and the token to send; its repr has no token."""

    id: str
    token: str

    def __repr__(self) -> str:
        return f"User({self.id!r})"


class _Updated(Struct):
    replayed: bool


class _Problem(Struct):
    type: str = ""


_decode_updated: Final = msgspec.json.Decoder(_Updated).decode
_decode_problem: Final = msgspec.json.Decoder(_Problem).decode


class Updates:
    """Updates of the users in turn, each with an action of its own, so that each is applied."""

    def __init__(
        self,
        host: str,
        users: Sequence[User],
        *,
        board: str | None,
        run: str,
        path: str = "",
        points: int | None = None,
    ) -> None:
        """``run`` makes the actions of this run unique; ``points`` need a trusted token."""
        query = f"?board={quote(board)}" if board else ""
        self._heads = [
            (
                f"POST {path}/api/scores/update{query} HTTP/1.1\r\nHost: {host}\r\n"
                "Content-Type: application/json\r\n"
                f"Authorization: Bearer {user.token}\r\nContent-Length: "
            ).encode()
            for user in users
        ]
        self._bodies = [f'{{"userId":"{user.id}","actionId":"{KIND}:{run}-' for user in users]
        self._tail = '"}' if points is None else f'","points":{points}}}'

    def request(self, number: int) -> bytes:
        """Return the update with a number."""
        index = number % len(self._heads)
        body = f"{self._bodies[index]}{number}{self._tail}".encode()
        return b"%b%d\r\n\r\n%b" % (self._heads[index], len(body), body)

    def judge(self, status: int, body: bytes) -> str:
        """Return the outcome: applied, replayed, or the status and the problem."""
        if status == 200:
            try:
                return "replayed" if _decode_updated(body).replayed else "applied"
            except msgspec.MsgspecError:
                return "200 unreadable"
        return name_problem(status, body)


class Reads:
    """Reads in turn: of the leaderboard, and of the standing of one user after another."""

    def __init__(
        self,
        host: str,
        users: Sequence[User],
        *,
        board: str | None,
        leaderboard_share: float,
        path: str = "",
        is_public: bool = True,
    ) -> None:
        """``leaderboard_share`` is the share of reads that get the leaderboard."""
        query = f"?board={quote(board)}" if board else ""

        def get(target: str, user: User) -> bytes:
            token = "" if is_public else f"Authorization: Bearer {user.token}\r\n"
            head = f"GET {path}{target}{query} HTTP/1.1\r\nHost: {host}\r\n{token}\r\n"
            return head.encode()

        self._leaderboards = [get("/api/scores/leaderboard", user) for user in users]
        self._standings = [get(f"/api/scores/users/{quote(user.id)}", user) for user in users]
        self._share = leaderboard_share

    def request(self, number: int) -> bytes:
        """Return the read with a number; the kinds are spread evenly."""
        is_leaderboard = int((number + 1) * self._share) > int(number * self._share)
        chosen = self._leaderboards if is_leaderboard else self._standings
        return chosen[number % len(chosen)]

    def judge(self, status: int, body: bytes) -> str:
        """Return the outcome: ok, or the status and the problem."""
        return "ok" if status == 200 else name_problem(status, body)


def name_problem(status: int, body: bytes) -> str:
    """Return the status with the code of the problem, such as `409 action-conflict`."""
    try:
        kind = _decode_problem(body).type
    except msgspec.MsgspecError:
        kind = ""
    return f"{status} {kind.removeprefix(TYPE_PREFIX)}".rstrip()
