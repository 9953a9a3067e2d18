"""`/api/admin`: what administrators do over HTTP, once, audited, and for nobody else."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest

from scoreboard.model import Action, Board, Layout, Limits, Partition, Rules
from scoreboard.moderation import acts as acts_module
from scoreboard.runtime.settings import Settings
from scoreboard.security.tokens import UPDATE_ANY
from tests.support.data.boards import fence
from tests.support.eventually import eventually_async
from tests.support.servers.api import LEADERBOARD_PATH, ApiClient, StartApi
from tests.support.servers.flushers import act, flushing, is_drained, make_board, query, store_of

pytestmark = pytest.mark.slow

ADMIN = "admin:scores"
PLAYED = [("alice", "win:1", 30), ("alice", "win:2", 5), ("bob", "win:1", 20)]


class Admin:
    """An administrator of an api with a flusher."""

    def __init__(self, client: ApiClient, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.headers = client.bearer("carla", ADMIN)

    async def get(self, path: str, **parameters: Any) -> httpx.Response:
        return await self.client.get(f"/api/admin/{path}", params=parameters, headers=self.headers)

    async def send(self, path: str, method: str = "POST", **body: Any) -> httpx.Response:
        return await self.client.request(
            method, f"/api/admin/{path}", json=body, headers=self.headers
        )

    async def act(self, kind: str, **fields: Any) -> dict[str, Any]:
        body = {"board": "main", "id": secrets.token_hex(8), "reason": "test"} | fields
        answer = await self.send("acts", kind=kind, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
async def admin(start_api: StartApi, database_url: str, settings: Settings) -> AsyncIterator[Admin]:
    """Yield an administrator; alice has 35 points in two actions, bob 20."""
    client = await start_api(database_url=database_url, admin_api="true")
    await make_board(settings, Board())
    async with flushing(settings):
        await act(settings, *(Action(*one) for one in PLAYED))
        await eventually_async(lambda: is_drained(settings))
        yield Admin(client, settings)


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].rpartition("/")[2]


async def test_each_kind_of_act_is_previewed_performed_listed_and_undone(admin: Admin) -> None:
    wanted = {"kind": "void", "board": "main", "userId": "alice", "actionId": "win:1"}
    shown = (await admin.send("acts/preview", **wanted)).json()
    assert (shown["delta"], shown["actions"]) == (-30, 1)
    assert (shown["before"], shown["after"]) == (
        {"score": 35, "rank": 1},
        {"score": 5, "rank": 2},
    )
    assert [row["userId"] for row in shown["topAfter"]] == ["bob", "alice"]

    done = await admin.act("void", userId="alice", actionId="win:1")
    assert (done["score"], done["committed"]) == (5, True)
    undone = await admin.send("acts", kind="undo", act=done["act"], id="0" * 16, reason="no")
    assert undone.json()["score"] == 35
    corrected = await admin.act("correct", userId="bob", delta=-5)
    assert corrected["score"] == 15
    window = {"since": "2020-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z"}
    assert (await admin.act("void window", userId="alice", **window))["delta"] == -35
    banned = await admin.act("ban", userId="bob")
    assert banned["score"] is None
    client = admin.client
    refused = await client.update("bob", "win:9", headers=client.bearer("bob"))
    assert problem(refused) == (403, "banned")
    await admin.act("unban", userId="bob")

    listed = (await admin.get("acts", userId="bob")).json()["acts"]
    assert [one["kind"] for one in listed] == ["unban", "ban", "correct"]
    assert {one["state"] for one in listed} == {"applied"}
    assert {(one["actor"], one["reason"]) for one in listed} == {("sub:carla", "test")}
    rows = (await admin.get("audit", userId="bob", action="act")).json()["rows"]
    assert [row["action"] for row in rows] == ["act unban", "act ban", "act correct"]


async def test_an_act_is_done_once_for_its_id(admin: Admin) -> None:
    one = {"kind": "correct", "board": "main", "userId": "bob", "delta": 3}
    body = one | {"id": "a" * 16, "reason": "test"}

    answers = await asyncio.gather(*(admin.send("acts", **body) for _ in range(3)))

    assert {answer.status_code for answer in answers} == {200}, [one.text for one in answers]
    assert {answer.json()["act"] for answer in answers} == {"a" * 16}
    again = await admin.send("acts", **body)
    assert (again.status_code, again.json()["score"]) == (200, None)
    for change in ({"delta": 4}, {"userId": "alice"}, {"reason": "other"}):
        refused = await admin.send("acts", **body | change)
        assert problem(refused) == (409, "act-conflict")
        assert refused.json()["title"] == "The id is that of another act"
    user = (await admin.get("users/bob")).json()
    assert user["boards"] == [{"board": "main", "score": 23, "rank": 2, "bannedBy": None}]
    assert user["seasons"] == []


async def test_an_interrupted_act_is_pending_and_completed_by_a_repeat(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after it has recorded the act."""

    async def die(*_: object) -> None:
        raise RuntimeError("killed")

    body = {"kind": "correct", "board": "main", "userId": "bob", "delta": 3}
    body |= {"id": "b" * 16, "reason": "test"}
    with monkeypatch.context() as patch:
        patch.setattr(acts_module.Moderator, "_apply", die)
        assert problem(await admin.send("acts", **body)) == (500, "internal")
    listed = (await admin.get("acts", state="pending")).json()["acts"]
    assert [one["id"] for one in listed] == ["b" * 16]
    assert (await admin.get("status")).json()["pendingActs"] == 1
    other = await admin.send("acts", **body | {"id": "c" * 16})
    assert problem(other) == (409, "operator-mistake")

    assert (await admin.send("acts", **body)).json()["score"] == 23
    resumed = await admin.client.post(f"/api/admin/acts/{'b' * 16}/resume", headers=admin.headers)
    assert resumed.status_code == 200
    assert (await admin.get("users/bob")).json()["boards"][0]["score"] == 23


ENDPOINTS = [
    ("GET", "acts"),
    ("POST", "acts"),
    ("POST", "acts/preview"),
    ("POST", f"acts/{'a' * 16}/resume"),
    ("GET", "audit"),
    ("GET", "users?query=al"),
    ("GET", "users/alice"),
    ("GET", "users/alice/history?board=main"),
    ("GET", "boards"),
    ("POST", "boards"),
    ("PATCH", "boards/main"),
    ("GET", "boards/main/seasons"),
    ("GET", "boards/main/leaderboard"),
    ("GET", "held"),
    ("POST", "held/1/void"),
    ("GET", "status"),
]


async def test_only_administrators_get_in(start_api: StartApi, database_url: str) -> None:
    client = await start_api(database_url=database_url, admin_api="true")
    documented = (await client.get("/openapi.json")).json()["paths"]
    count = sum(len(item) for path, item in documented.items() if path.startswith("/api/admin"))
    assert count == len(ENDPOINTS), "each endpoint is tried here"
    for scope in ("", "update:score read:leaderboard", "update:score:any"):
        headers = client.bearer("eve", scope) if scope else {}
        expected = (403, "forbidden") if scope else (401, "unauthenticated")
        for method, path in ENDPOINTS:
            answer = await client.request(
                method, f"/api/admin/{path}", headers=headers, content=b"{"
            )
            assert problem(answer) == expected, (method, path)
            if scope:
                assert 'scope="admin:scores"' in answer.headers["www-authenticate"]


async def test_without_the_setting_there_is_no_such_path(
    start_api: StartApi, database_url: str
) -> None:
    client = await start_api(database_url=database_url)

    answer = await client.get("/api/admin/acts", headers=client.bearer("carla", ADMIN))

    assert problem(answer) == (404, "not-found")


MALFORMED: list[dict[str, Any]] = [
    {"kind": "correct"},
    {"kind": "correct", "board": "main", "userId": "bob", "delta": 0},
    {"kind": "correct", "board": "main", "userId": "bob", "delta": 1, "actionId": "win:1"},
    {"kind": "correct", "board": "main", "userId": "a b", "delta": 1},
    {"kind": "correct", "board": "main", "userId": "bob\n", "delta": 1},
    {"kind": "ban", "board": "main\n", "userId": "bob"},
    {"kind": "void", "board": "main", "userId": "bob", "actionId": "win:1\n"},
    {"kind": "undo", "act": "0123456789abcdef\n"},
    {"kind": "correct", "board": "main", "userId": "bob", "delta": 2**31},
    {"kind": "void", "board": "main", "userId": "bob"},
    {"kind": "void window", "board": "main", "userId": "bob", "since": "2026-01-01T00:00:00"},
    {
        "kind": "void window",
        "board": "main",
        "userId": "bob",
        "since": "2026-01-02T00:00:00Z",
        "until": "2026-01-01T00:00:00Z",
    },
    {"kind": "undo", "act": "x"},
    {"kind": "erase", "board": "main", "userId": "bob"},
    {"kind": "ban", "board": "MAIN", "userId": "bob"},
    {"kind": "ban", "board": "main", "userId": "bob", "force": True},
]


async def test_malformed_acts_are_refused(admin: Admin) -> None:
    for body in MALFORMED:
        assert problem(await admin.send("acts/preview", **body)) == (422, "invalid"), body


async def test_no_request_is_an_internal_error(admin: Admin) -> None:
    """Each of these values reached PostgreSQL or Redis, or ended the parser, once."""
    act = {"kind": "ban", "board": "main", "userId": "bob", "reason": "test"}
    for id_ in ("0123456789abcdef\n", "0123456789abcde", "0123456789ABCDEF"):
        assert problem(await admin.send("acts", id=id_, **act)) == (422, "invalid"), id_
    ban = {**act, "id": "1" * 16, "reason": "a\n"}
    assert problem(await admin.send("acts", **ban)) == (422, "invalid")
    assert problem(await admin.send("boards", name="laps\n")) == (422, "invalid")
    refused: list[tuple[str, dict[str, Any]]] = [
        ("boards", {"after": "\0"}),
        ("boards", {"after": "main\n"}),
        ("audit", {"before": 2**63 + 1}),
        ("audit", {"board": "main\n"}),
        ("acts", {"userId": "bob\n"}),
        ("held", {"board": "main\n"}),
        ("users/bob/history", {"board": "main\n"}),
    ]
    for path, given in refused:
        assert problem(await admin.get(path, **given)) == (422, "invalid"), (path, given)
    for path in ("boards/main%0A", f"acts/{'a' * 16}%0A/resume", f"held/{2**63}/void"):
        answer = await admin.send(path, reason="test")
        assert answer.status_code in {400, 404, 405, 422}, (path, answer.text)
    headers = admin.client.bearer("carla", ADMIN) | {"Content-Type": "application/json"}
    for body in (b'{"kind": "\xff"}', b"[" * 5000, b'{"a":' * 2000, b"", b"\0"):
        answer = await admin.client.request(
            "POST", "/api/admin/acts", headers=headers, content=body
        )
        assert answer.status_code in {400, 422}, (body[:20], answer.text)


LOOSE: list[tuple[str, str, str, int, str]] = [
    ("POST", "acts/preview",
     '{"kind": "correct", "board": "main", "userId": "bob", "delta": 1, "delta": 2}',
     400, "Do not repeat the field delta"),
    ("PATCH", "boards/main",
     '{"limits": {"pointsPerAction": 1, "pointsPerWindow": 0, "windowS": 0, "windowS": 0}}',
     400, "Do not repeat the field windowS"),
    ("POST", "acts/preview",
     '{"kind": "correct", "board": "main", "userId": "bob", "delta": "5"}',
     422, "delta must be an integer"),
    ("POST", "boards", '{"name": "laps", "rules": {"min": "1"}}',
     422, "rules.min must be an integer"),
    ("POST", "boards", '{"name": "laps", "public": 1}', 422, "public must be true or false"),
    ("POST", "boards", '{"name": ".."}',
     422, "name must be 1 to 32 characters of a-z 0-9 _ . -, other than . and .."),
    ("POST", "boards", '{"name": "laps", "rules": {"operator": "sum"}}',
     422, "rules.operator must be one of add, best, last"),
    ("POST", "acts/preview",
     '{"kind": "void window", "board": "main", "userId": "bob", "since": 1, "until": 2}',
     422, "since must be a time with its zone, such as 2026-11-27T08:00:00Z"),
    ("POST", "acts/preview",
     '{"kind": "ban", "board": "main", "userId": "a b"}',
     422, "userId must be 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -"),
    ("POST", "acts", '{"kind": "ban", "board": "main", "userId": "bob", "id": "x", "reason": "a"}',
     422, "id must be 16 hexadecimal digits, 0-9 a-f"),
    ("POST", "held/1/void", '{"reason": "a\\nb"}',
     422, "reason must be a text of one line, and not only spaces"),
    ("POST", "held/1/void", '{"act_id": 1}', 422, "there is no field act_id"),
    ("POST", "acts", "[1]", 422, "the value must be an object"),
    ("POST", "acts", "", 400, "The body is empty; send a JSON object"),
    ("POST", "acts", "{", 400, "The body is not JSON; send a JSON object"),
    ("POST", "acts/x/resume", "", 422, "actId must be 16 hexadecimal digits, 0-9 a-f"),
    ("POST", "held/+1/void", '{"reason": "a"}', 422, "heldId must be an integer"),
    ("POST", "held/1_0/void", '{"reason": "a"}', 422, "heldId must be an integer"),
    ("POST", "held/0/void", '{"reason": "a"}', 422, "heldId must be at least 1"),
    ("GET", "users?query=a", "", 422, "query must have at least 2 characters"),
    ("GET", "acts?state=x", "", 422, "state must be one of applied, pending, refused"),
    ("GET", "held?state=x", "", 422, "state must be one of held, pending, released, voided"),
    ("GET", "acts?userId=a%20b", "",
     422, "userId must be 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -"),
    ("GET", "acts?limit=1.0", "", 422, "limit must be an integer"),
    ("GET", "acts?limit=0", "", 422, "limit must be at least 1"),
    ("GET", "audit?before=1e2", "", 422, "before must be an integer"),
    ("GET", "users/bob/history", "", 422, "The parameter board is missing"),
    ("GET", "users/a%20b", "",
     422, "userId must be 1 to 128 characters of A-Z a-z 0-9 . _ | : @ -"),
]  # fmt: skip


async def test_nothing_is_converted_and_messages_use_the_names_of_the_api(
    start_api: StartApi, database_url: str
) -> None:
    client = await start_api(database_url=database_url, admin_api="true")
    headers = client.bearer("carla", ADMIN) | {"Content-Type": "application/json"}

    found = [
        await client.request(method, f"/api/admin/{path}", headers=headers, content=body)
        for method, path, body, _, _ in LOOSE
    ]

    told = [(answer.status_code, answer.json()["detail"]) for answer in found]
    assert told == [(status, detail) for _, _, _, status, detail in LOOSE]


async def test_acts_that_do_not_apply_are_refused_with_a_reason(admin: Admin) -> None:
    main = {"board": "main", "userId": "bob", "reason": "test"}
    cases: list[tuple[dict[str, Any], tuple[int, str]]] = [
        ({"kind": "void", "actionId": "win:7"}, (404, "not-found")),
        ({"kind": "unban"}, (409, "operator-mistake")),
        ({"kind": "correct", "delta": -21}, (422, "score-out-of-range")),
        ({"kind": "ban", "board": "nowhere"}, (404, "unknown-board")),
        ({"kind": "undo", "act": "0" * 16}, (404, "not-found")),
        ({"kind": "release", "held": 1}, (404, "not-found")),
    ]
    extra = {"undo": ("board", "userId"), "release": ("userId",)}
    for body, expected in cases:
        for path, more in (("acts/preview", {}), ("acts", {"id": secrets.token_hex(8)})):
            sent = {k: v for k, v in (main | body | more).items() if more or k != "reason"}
            for name in extra.get(body["kind"], ()):
                del sent[name]
            answer = await admin.send(path, **sent)
            assert problem(answer) == expected, body
            assert "scoreboard " not in answer.json()["detail"], "the page runs no commands"
    assert (await admin.get("acts")).json()["acts"] == []
    for reason in ("", " ", "a\nb", "x" * 501):
        answer = await admin.send("acts", kind="ban", id="1" * 16, **main | {"reason": reason})
        assert problem(answer) == (422, "invalid"), reason


async def test_a_board_has_seasons_and_limits(admin: Admin) -> None:
    rules = {"season": "weekly", "timeZone": "Europe/Berlin"}
    made = await admin.send("boards", name="league", rules=rules)
    assert (made.json()["rules"]["season"], made.json()["rules"]["timeZone"]) == tuple(
        rules.values()
    )
    for wrong in (
        {"season": "hourly"},
        {"season": "daily", "timeZone": "Mars"},
        {"timeZone": "UTC"},
        {"operator": "best", "lowering": "players"},
    ):
        assert problem(await admin.send("boards", name="wrong", rules=wrong)) == (422, "invalid")

    async def limit(*numbers: int) -> httpx.Response:
        names = ("pointsPerAction", "pointsPerWindow", "windowS")
        limits = dict(zip(names, numbers, strict=False))
        return await admin.send("boards/league", "PATCH", limits=limits)

    assert (await limit(50, 100, 3600)).json()["limits"]["pointsPerWindow"] == 100
    sent = await admin.client.update(
        "bob", "a:1", board="league", headers=admin.client.bearer("arena", UPDATE_ANY), points=60
    )
    assert sent.json()["held"] is True
    for numbers in ((50,), (50, 100, 0), (0, 0, 60), (-1, 0, 0)):
        assert problem(await limit(*numbers)) == (422, "invalid"), numbers
    assert (await limit(0, 0, 0)).json()["limits"]["pointsPerAction"] == 0


async def test_a_new_board_has_limits_and_remembers_for_a_time(admin: Admin) -> None:
    limits = {"pointsPerAction": 50, "pointsPerWindow": 100, "windowS": 3600}
    given = {"name": "arena", "limits": limits, "seenSeconds": 86_400}
    for _ in range(2):
        made = await admin.send("boards", **given)
        assert made.status_code == 200, made.text
        assert (made.json()["limits"], made.json()["seenSeconds"]) == (limits, 86_400)
    sent = await admin.client.update(
        "bob", "a:1", board="arena", headers=admin.client.bearer("arena", UPDATE_ANY), points=60
    )
    assert sent.json()["held"] is True
    assert (await admin.send("boards", name="arena")).status_code == 200
    for other in ({"limits": limits | {"pointsPerAction": 0}}, {"seenSeconds": 3600}):
        answer = await admin.send("boards", **given | other)
        assert problem(answer) == (409, "operator-mistake"), other
    best: dict[str, Any] = {"name": "wrong", "rules": {"operator": "best"}}
    for wrong in (
        best | {"limits": limits},
        {"name": "wrong", "limits": limits | {"windowS": 0}},
        {"name": "wrong", "limits": limits | {"windowS": 1}},
        {"name": "wrong", "seenSeconds": 0},
        {"name": "wrong", "seenSeconds": 2**31},
        {"name": "wrong", "rules": {"season": "cron:* *"}},
    ):
        assert problem(await admin.send("boards", **wrong)) == (422, "invalid"), wrong
    assert problem(await admin.send("boards/wrong", "PATCH", public=True)) == (404, "unknown-board")
    rules = {"season": "cron:0 6 * * 1", "timeZone": "Europe/Berlin"}
    made = await admin.send("boards", name="mondays", rules=rules)
    assert made.json()["rules"]["season"] == "cron:0 6 * * 1"


async def test_private_boards_and_their_seasons_are_read(admin: Admin) -> None:
    """The scope admin:scores is enough, and does not read them anywhere else."""
    made = await admin.send("boards", name="secret", public=False, rules={"season": "weekly"})
    assert made.status_code == 200, made.text
    client = admin.client
    for user, points in (("alice", 30), ("bob", 50), ("carol", 40)):
        sent = await client.update(
            user, "a:1", board="secret", headers=client.bearer("arena", UPDATE_ANY), points=points
        )
        assert sent.status_code == 200, sent.text

    async def seasons() -> list[dict[str, Any]]:
        answer = await admin.get("boards/secret/seasons")
        assert answer.status_code == 200, answer.text
        assert "no-store" in answer.headers["cache-control"]
        return answer.json()["seasons"]

    await eventually_async(seasons)
    [season] = await seasons()
    for chosen in ({}, {"season": season["id"]}):
        first = await admin.get("boards/secret/leaderboard", limit=2, **chosen)
        rest = await admin.get("boards/secret/leaderboard", limit=2, offset=2, **chosen)
        rows = [row["userId"] for one in (first, rest) for row in one.json()["leaderboard"]]
        assert (rows, first.json()["total"]) == (["bob", "carol", "alice"], 3)
    for path in ("seasons", "leaderboard"):
        assert problem(await admin.get(f"boards/none/{path}")) == (404, "unknown-board"), path
    unknown = await admin.get("boards/secret/leaderboard", season="2001-W01")
    assert problem(unknown) == (404, "unknown-season")
    for path in ("leaderboard", "seasons"):
        answer = await client.get(f"/api/scores/{path}?board=secret", headers=admin.headers)
        assert answer.status_code == 403


async def test_users_are_found_by_id_and_name(admin: Admin) -> None:
    with psycopg.connect(admin.settings.database_url.reveal()) as connection:
        connection.execute("UPDATE users SET name = 'Bobby Tables' WHERE external_id = 'bob'")
    found = (await admin.get("users", query="bobby")).json()["users"]
    assert found == [{"userId": "bob", "name": "Bobby Tables"}]
    assert (await admin.get("users", query="al")).json()["users"] == [
        {"userId": "alice", "name": None}
    ]
    assert (await admin.get("users", query="al%")).json()["users"] == []
    for unusable in ("a", "a\0b", "a\nb", "x" * 129):
        assert problem(await admin.get("users", query=unusable)) == (422, "invalid")
    for path in ("acts", "held", "audit"):
        for name in ("userId", "board"):
            answer = await admin.get(path, **{name: "a\0b"})
            assert problem(answer) == (422, "invalid"), (path, name)
    assert problem(await admin.get("audit", actor="a\0b")) == (422, "invalid")
    assert problem(await admin.get("users/nobody")) == (404, "unknown-user")
    history = (await admin.get("users/alice/history", board="main", limit=1)).json()
    assert [one["actionId"] for one in history["history"]] == ["win:2"]
    assert history["next"]
    assert problem(await admin.get("users/alice/history", board="none")) == (404, "unknown-board")


async def test_boards_are_made_changed_and_listed(admin: Admin) -> None:
    rules = {"operator": "best", "order": "lowest", "points": "stated"}
    for _ in range(2):
        made = await admin.send("boards", name="laps", rules=rules)
        assert made.status_code == 200, made.text
        assert made.json()["users"] == 0
    assert problem(await admin.send("boards", name="laps")) == (409, "operator-mistake")
    client = admin.client
    sent = await client.update(
        "bob", "lap:1", board="laps", headers=client.bearer("bob"), points=71
    )
    assert sent.status_code == 200, sent.text
    changed = await admin.send("boards/laps", "PATCH", state="archived", public=False)
    assert (changed.json()["state"], changed.json()["public"]) == ("archived", False)
    assert problem(await admin.send("boards/laps", "PATCH")) == (422, "invalid")
    assert problem(await admin.send("boards/none", "PATCH", public=True)) == (404, "unknown-board")
    page = (await admin.get("boards", limit=1)).json()
    assert ([one["name"] for one in page["boards"]], page["next"]) == (["laps"], "laps")
    page = (await admin.get("boards", after="laps")).json()
    assert [(one["name"], one["users"]) for one in page["boards"]] == [("main", 2)]
    actions = query(
        admin.settings, "SELECT action, actor FROM audit_log WHERE board = 'laps' ORDER BY seq"
    )
    assert [action for action, _ in actions] == [
        *("board create", "reseed", "board publish", "board archive")
    ]
    assert {actor for _, actor in actions} == {"sub:carla"}


async def test_held_actions_are_listed_released_and_voided(admin: Admin) -> None:
    limited = Board("limited", limits=Limits(per_action=10))
    await make_board(admin.settings, limited)
    sent = [Action(user, "quest:1", 50) for user in ("alice", "bob")]
    await act(admin.settings, *sent, board="limited")
    await eventually_async(lambda: is_drained(admin.settings, "limited"))
    held = (await admin.get("held", state="held")).json()["held"]
    assert [(one["userId"], one["delta"], one["limit"]) for one in held] == [
        ("alice", 50, "action"),
        ("bob", 50, "action"),
    ]
    assert (await admin.get("status")).json()["held"] == 2
    first, second = (one["id"] for one in held)

    body = {"kind": "release", "board": "limited", "held": first}
    shown = (await admin.send("acts/preview", **body)).json()
    assert (shown["userId"], shown["after"]["score"]) == ("alice", 50)
    for score in (50, None):
        done = await admin.send("acts", **body, id="d" * 16, reason="checked")
        assert (done.status_code, done.json()["score"]) == (200, score), done.text
    for _ in range(2):  # the first answer may be lost
        voided = await admin.send(f"held/{second}/void", reason="bot")
        assert voided.status_code == 200, voided.text
        assert (voided.json()["state"], voided.json()["voidedBy"]) == ("voided", "sub:carla")
    other = await admin.send(f"held/{second}/void", reason="no bot")
    assert problem(other) == (409, "operator-mistake")
    rows = query(admin.settings, "SELECT count(*) FROM audit_log WHERE action = 'held void'")
    assert rows == [(1,)]
    assert problem(await admin.send("held/999999/void", reason="bot")) == (404, "not-found")
    states = [one["state"] for one in (await admin.get("held")).json()["held"]]
    assert states == ["released", "voided"]


async def test_an_action_held_in_another_season_is_released_only_if_that_is_asked_for(
    admin: Admin,
) -> None:
    rules = Rules(season="monthly", time_zone="UTC")
    await admin.send("boards", name="league", rules={"season": "monthly", "timeZone": "UTC"})
    limits = {"pointsPerAction": 10, "pointsPerWindow": 0, "windowS": 0}
    assert (await admin.send("boards/league", "PATCH", limits=limits)).status_code == 200
    await act(admin.settings, Action("alice", "quest:1", 50, rules=rules), board="league")
    await eventually_async(lambda: is_drained(admin.settings, "league"))
    [one] = (await admin.get("held", board="league")).json()["held"]
    [(season,)] = query(admin.settings, "SELECT season FROM seasons WHERE board = 'league'")
    assert one["season"] == season
    query(admin.settings, "UPDATE held_actions SET season = '1999-01' WHERE board = 'league'")
    body = {"kind": "release", "board": "league", "held": one["id"]}
    for path, more in (("acts/preview", {}), ("acts", {"id": "e" * 16, "reason": "checked"})):
        refused = await admin.send(path, **body, **more)
        assert problem(refused) == (409, "operator-mistake")
        assert "is of season 1999-01, which is over" in refused.json()["detail"]
    body["inCurrentSeason"] = True
    done = await admin.send("acts", **body, id="e" * 16, reason="checked")
    assert (done.status_code, done.json()["score"]) == (200, 50), done.text
    other = {"kind": "ban", "board": "league", "userId": "alice", "inCurrentSeason": True}
    assert (await admin.send("acts/preview", **other)).status_code == 422


async def test_held_actions_are_filtered_and_paged(admin: Admin) -> None:
    limited = Board("limited", limits=Limits(per_action=10, per_window=15, window_s=3600))
    await make_board(admin.settings, limited)
    for number in range(3):
        await act(admin.settings, Action("alice", f"over:{number}", 50), board="limited")
    await act(admin.settings, Action("bob", "under:0", 10), board="limited")
    await act(admin.settings, Action("bob", "under:1", 10), board="limited")
    await eventually_async(lambda: is_drained(admin.settings, "limited"))

    async def listed(**chosen: Any) -> list[str]:
        answer = await admin.get("held", **chosen)
        assert answer.status_code == 200, answer.text
        return [one["actionId"] for one in answer.json()["held"]]

    first = (await admin.get("held", limit=2)).json()
    second = (await admin.get("held", limit=2, after=first["next"])).json()
    assert [one["actionId"] for one in (*first["held"], *second["held"])] == [
        *("over:0", "over:1", "over:2", "under:1")
    ]
    assert second["next"] is None
    assert await listed(exceeded="window") == ["under:1"]
    assert await listed(exceeded="action", userId="bob") == []
    moment = query(admin.settings, "SELECT max(occurred_at) FROM held_actions")[0][0]
    assert await listed(since=moment.isoformat()) == ["under:1"]
    for wrong in (
        {"exceeded": "season"},
        {"since": "2026-01-01T00:00:00"},
        {"since": "today"},
        {"after": 0},
    ):
        assert problem(await admin.get("held", **wrong)) == (422, "invalid"), wrong


async def test_acts_are_paged(admin: Admin) -> None:
    for delta in range(1, 6):
        await admin.act("correct", userId="bob", delta=delta)
    # Acts of one moment are told apart by their ids.
    with psycopg.connect(admin.settings.database_url.reveal()) as connection:
        connection.execute("UPDATE acts SET at = (SELECT min(at) FROM acts) WHERE delta < 4")
    found: list[int] = []
    before: dict[str, str] = {}
    for _ in range(3):
        page = (await admin.get("acts", limit=2, **before)).json()
        found += [one["delta"] for one in page["acts"]]
        before = {"before": page["next"]}
    assert (found[:2], sorted(found[2:]), page["next"]) == ([5, 4], [1, 2, 3], None)
    assert problem(await admin.get("acts", before="0" * 16)) == (404, "not-found")
    assert problem(await admin.get("acts", before="x")) == (422, "invalid")


async def test_the_audit_log_is_paged(admin: Admin) -> None:
    for delta in (1, 2, 3):
        await admin.act("correct", userId="bob", delta=delta)
    first = (await admin.get("audit", action="act", limit=2)).json()
    second = (await admin.get("audit", action="act", limit=2, before=first["next"])).json()
    deltas = [row["detail"]["delta"] for page in (first, second) for row in page["rows"]]
    assert (deltas, second["next"]) == ([3, 2, 1], None)


async def test_the_status_shows_what_waits(start_api: StartApi, database_url: str) -> None:
    client = await start_api(database_url=database_url, admin_api="true")
    settings = client.api.health._settings
    await make_board(settings, Board())
    await make_board(settings, Board("laps", Layout(rules=Rules("best", "lowest"))))
    await act(settings, Action("alice", "win:1", 30))

    answer = await client.get("/api/admin/status", headers=client.bearer("carla", ADMIN))

    [main] = answer.json()["boards"]
    assert (main["board"], main["open"], main["uncommitted"]) == ("main", True, 1)
    assert 0 <= main["oldestAgeS"] < 60

    async with store_of(settings) as store:
        await fence(store, Partition("laps"), "test")
    answer = await client.get("/api/admin/status", headers=client.bearer("carla", ADMIN))
    assert [(one["board"], one["open"]) for one in answer.json()["boards"]] == [
        ("laps", False),
        ("main", True),
    ]


async def test_few_requests_of_administrators_run_at_once(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("api.endpoints.admin.sessions.WAIT_S", 0.0)
        answers = await asyncio.gather(*(admin.get("acts") for _ in range(12)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes[:4] == [200] * 4
    assert codes[-1] == 503

    answers = await asyncio.gather(*(admin.get("acts") for _ in range(12)))
    assert {answer.status_code for answer in answers} == {200}


async def test_acts_that_wait_for_a_commit_hold_up_nothing(
    start_api: StartApi, database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four acts held all sessions until the flusher was back."""
    client = await start_api(database_url=database_url, admin_api="true")
    await make_board(settings, Board())
    admin = Admin(client, settings)
    monkeypatch.setattr("api.endpoints.admin.sessions.COMMIT_S", 3.0)
    users = [f"user-{number}" for number in range(12)]
    acts = [asyncio.create_task(admin.act("correct", userId=user, delta=5)) for user in users]

    async def are_applied() -> bool:
        top = (await client.get(LEADERBOARD_PATH)).json()
        return top["total"] == len(users)

    await eventually_async(are_applied)
    status = (await admin.get("status")).json()
    assert (status["boards"][0]["uncommitted"], status["pendingActs"]) == (12, 12)
    assert not any(one.done() for one in acts)
    done = await asyncio.gather(*acts)
    assert {(one["score"], one["committed"]) for one in done} == {(5, False)}

    async with flushing(settings):
        await eventually_async(lambda: is_drained(settings))
        last = await admin.act("correct", userId="user-0", delta=1)
        assert (last["score"], last["committed"]) == (6, True)
