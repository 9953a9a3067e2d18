"""Requests of the Python clients and of the Go client, to the real system and through a gateway."""

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path

from scoreboard.runtime.settings import load
from scoreboard.security.local_issuer import make_signing_key
from scoreboard.security.proofs import ProofVerifier
from scoreboard.security.tokens import UPDATE_ANY
from tests.clients.programs import Gateway, Start
from tests.support.eventually import eventually
from tests.support.servers.system import System

Plan = Callable[..., Gateway]
QUICK = {"firstS": 0.05, "ceilingS": 0.1}
NEW = '{"success": true, "newScore": 10, "replayed": false, "later": {"x": 1}}'
ACTION = {"userId": "ada", "actionId": "win:1"}


def test_an_action_whose_answer_is_lost_is_sent_again_and_counts_once(
    start: Start, system: System, gateway: Plan, user: str
) -> None:
    server = gateway(system.api, "lose", "503:0", "lose", "forward")

    events = start(
        do="update",
        url=server.url,
        token=system.token(user),
        action={"userId": user, "actionId": "win:1"},
        retries=QUICK,
    ).rest()

    assert events == [{"event": "reply", "newScore": 10, "replayed": True}]
    assert len(server.bodies) == 4
    assert len(set(server.bodies)) == 1


def test_a_wait_that_the_service_asks_for_is_kept(start: Start, gateway: Plan) -> None:
    server = gateway("", "429:1", "503:2", NEW)

    events = start(do="update", url=server.url, action=ACTION, retries=QUICK).rest()

    assert events == [{"event": "reply", "newScore": 10, "replayed": False}]
    first, second, third = server.times
    assert 1 <= second - first < 2
    assert 2 <= third - second < 3


def test_a_wait_that_is_too_long_is_the_callers(start: Start, gateway: Plan) -> None:
    server = gateway("", "429:600")

    events = start(do="update", url=server.url, action=ACTION).rest()

    assert events == [{"event": "error", "status": 429, "code": "429"}]
    assert len(server.bodies) == 1


def test_tries_come_to_an_end(start: Start, gateway: Plan) -> None:
    server = gateway("", "500", "lost", "500")

    events = start(do="update", url=server.url, action=ACTION, retries=QUICK | {"tries": 3}).rest()

    assert events == [{"event": "error", "status": 500, "code": "500"}]
    assert len(server.bodies) == 3


def test_a_slow_answer_is_a_lost_one(start: Start, gateway: Plan) -> None:
    server = gateway("", "hang", NEW)

    events = start(do="update", url=server.url, action=ACTION, retries=QUICK, timeoutS=0.5).rest()

    assert events == [{"event": "reply", "newScore": 10, "replayed": False}]


def test_an_answer_that_was_cut_is_a_lost_one(start: Start, gateway: Plan) -> None:
    server = gateway("", NEW[:20], NEW)

    events = start(do="update", url=server.url, action=ACTION, retries=QUICK).rest()

    assert events == [{"event": "reply", "newScore": 10, "replayed": False}]


def test_a_refusal_is_final(start: Start, system: System, gateway: Plan, user: str) -> None:
    server = gateway(system.api, "forward")

    events = start(do="update", url=server.url, token=system.token(user), action=ACTION).rest()

    assert events == [{"event": "error", "status": 403, "code": "forbidden"}]
    assert len(server.bodies) == 1


def test_a_rejected_token_is_renewed_once(start: Start, gateway: Plan) -> None:
    server = gateway("", "401", NEW)

    events = start(
        do="update", url=server.url, action=ACTION, tokens=["one", "two", "three"]
    ).rest()

    assert [one.get("reason") for one in events] == ["first", "rejected", None]
    assert server.tokens == ["Bearer one", "Bearer two"]


def test_a_second_rejection_is_the_callers(start: Start, gateway: Plan) -> None:
    server = gateway("", "401")

    events = start(do="update", url=server.url, action=ACTION, tokens=["1", "2", "3"]).rest()

    assert events[-1] == {"event": "error", "status": 401, "code": "401"}
    assert server.tokens == ["Bearer 1", "Bearer 2"]


def test_a_token_that_has_expired_is_renewed_before_a_try(start: Start, gateway: Plan) -> None:
    server = gateway("", "503:0", NEW)
    claims = base64.urlsafe_b64encode(b'{"exp": 1}').decode().rstrip("=")

    events = start(
        do="update",
        url=server.url,
        action=ACTION,
        tokens=[f"x.{claims}.x", "two"],
        retries=QUICK,
    ).rest()

    assert [one.get("reason") for one in events] == ["first", "expired", None]
    assert server.tokens == [f"Bearer x.{claims}.x", "Bearer two"]


def test_many_actions_are_divided_and_each_has_its_result(
    start: Start, system: System, gateway: Plan, user: str
) -> None:
    server = gateway(system.api, "lose", "forward")
    updates = [{"userId": user, "actionId": f"win:{number}"} for number in range(120)]
    updates += [updates[0], {"userId": "not valid", "actionId": "win:1"}]

    (results,) = start(
        do="many",
        url=server.url,
        token=system.token("arena", UPDATE_ANY),
        updates=updates,
        retries=QUICK,
    ).rest()

    outcomes = results["outcomes"]
    # The answer to the first hundred was lost, so the second try found them counted.
    assert outcomes[:121] == ["replayed"] * 100 + ["applied"] * 20 + ["replayed"]
    assert outcomes[121] == "/docs/problems/invalid"
    assert [len(json.loads(body)["updates"]) for body in server.bodies] == [100, 100, 22]


def test_actions_of_many_that_may_succeed_later_are_sent_again(start: Start, gateway: Plan) -> None:
    problem = {"type": "/docs/problems/busy", "title": "", "status": 503, "detail": ""}
    busy = {"outcome": "problem", "retryAfter": 1, "problem": problem | {"request_id": ""}}
    final = {"outcome": "problem", "problem": problem | {"request_id": "", "type": "/x/invalid"}}
    applied = {"outcome": "applied", "newScore": 1}
    server = gateway(
        "",
        json.dumps({"success": False, "results": [busy, final, applied]}),
        json.dumps({"success": True, "results": [applied]}),
    )
    updates = [{"userId": user, "actionId": "win:1"} for user in ("a", "b", "c")]

    (results,) = start(do="many", url=server.url, updates=updates, retries=QUICK).rest()

    assert results["outcomes"] == ["applied", "/x/invalid", "applied"]
    assert [one["userId"] for one in json.loads(server.bodies[1])["updates"]] == ["a"]
    assert server.times[1] - server.times[0] >= 1


def test_everything_can_be_read(start: Start, system: System, user: str) -> None:
    token = system.token(user)
    assert system.run("user", "set", user, "--name", "Ada").returncode == 0
    counted = start(
        do="many",
        url=system.api,
        token=system.token("arena", UPDATE_ANY),
        updates=[
            {"userId": user, "actionId": "read:1", "points": 1_000_000},
            {"userId": user, "actionId": "read:2", "points": 1_000_000},
            {"userId": f"{user}x", "actionId": "read:1", "points": 1},
        ],
    ).rest()
    assert counted[0]["outcomes"] == ["applied"] * 3

    def complete() -> list[dict[str, object]]:
        # The history is read from PostgreSQL, which has an action a moment later.
        events = start(do="reads", url=system.api, token=token, userId=user).rest()
        assert events[0].get("history") == "read:2", events
        return events

    (read,) = eventually(complete)

    rank = read["own"]
    assert isinstance(rank, int)
    assert read["row"][0] == 1
    assert read["row"][2] == "Ada"
    assert read["row"][3] == read["cutoff"] == 2_000_000
    assert read["neighbours"] >= 2
    assert read["standings"] == [1, ["nobody"]]
    assert read["rank"] >= 3
    assert read["season"] == "open"
    first, after = read["boards"]  # of a page of one board; other tests make boards, too
    assert first == after <= "league"
    assert read["operator"] == "add"


def test_a_proof_that_the_client_signs_is_accepted(
    start: Start, key_file: Path, tmp_path: Path
) -> None:
    key_file.write_text(make_signing_key().reveal())
    action = {"userId": "ada", "actionId": "raid:77", "points": 250, "boards": ["main"]}

    (signed,) = start(do="proof", url=str(key_file), action=action).rest()

    jwks = tmp_path / "jwks.json"
    jwks.write_text(signed["keySet"])
    settings = load({"REDIS_URL": "redis://unused", "SCOREBOARD_PROOF_JWKS_FILE": str(jwks)})
    proof = asyncio.run(ProofVerifier(settings).verify(signed["proof"]))
    assert (proof.user_id, proof.action_id, proof.points) == ("ada", "raid:77", 250)


def test_a_board_is_followed_through_a_restart_of_the_streamer(
    start: Start, system: System, user: str
) -> None:
    def count(number: int) -> None:
        done = start(
            do="update",
            url=system.api,
            token=system.token("arena", UPDATE_ANY),
            action={"userId": user, "actionId": f"live:{number}", "points": 1_000_000},
        ).rest()
        assert done[0]["event"] == "reply", done

    def wait_for(score: int) -> None:
        while [user, score] not in [[row[1], row[3]] for row in program.until("board")["rows"]]:
            pass

    with start(
        do="live",
        url=system.api,
        liveUrl=system.ws,
        token=system.token(user),
        patience={"firstWaitS": 0.1, "ceilingS": 1},
    ) as program:
        program.until("status", state="live")
        for number in range(1, 6):
            count(number)
        wait_for(5_000_000)

        system.services["streamer"].stop()
        program.until("status", state="reconnecting")
        count(6)
        system.services["streamer"].start()
        system.wait_until_ready("streamer")

        wait_for(6_000_000)
        program.tell(close=True)
        assert program.rest()[-1]["reason"] == "closed"
