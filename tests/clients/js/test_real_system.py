"""The package in Node on a real system."""

import json
import re
import threading
from collections.abc import Iterator

import pytest

from scoreboard.security.tokens import READ, UPDATE_ANY
from tests.clients.js.package_folder import SOURCE, Package, run
from tests.documents.test_clients import Gateway
from tests.support.servers.system import System

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Return a running system for all tests of this module."""
    with System(tmp_path_factory.mktemp("client") / "system", updates_per_minute=100) as made:
        yield made


@pytest.fixture
def gateway(running: System) -> Iterator[Gateway]:
    """Return a gateway that loses the first answer, and answers the next request with 503."""
    with Gateway(running.api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(30)


def test_the_example_of_the_readme_works(package: Package, running: System) -> None:
    readme = (SOURCE / "README.md").read_text()
    found = re.search(r"^```js\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert found is not None
    script = found[1].replace("http://127.0.0.1:8000", running.api)
    script = script.replace("ws://127.0.0.1:8001/ws/scoreboard", running.ws)

    printed = run(package.project, script, TOKEN=running.token("alice"))

    assert printed.startswith("alice has 10 points\n")
    assert "userId: 'alice', score: 10" in printed


def test_an_update_without_an_answer_counts_once(
    package: Package, running: System, gateway: Gateway
) -> None:
    script = """
      import { newActionId, ScoreboardClient } from "@scoreboard/client";
      const { API: url, TOKEN: token } = process.env;
      const client = new ScoreboardClient({ url, token });
      const reply = await client.update({ userId: "bob", actionId: newActionId("win") });
      console.log(JSON.stringify(reply));
    """
    address = f"http://127.0.0.1:{gateway.server_address[1]}"

    printed = run(package.project, script, API=address, TOKEN=running.token("bob"))

    assert json.loads(printed) == {"success": True, "newScore": 10, "replayed": True}
    assert len(gateway.bodies) == 3
    assert len(set(gateway.bodies)) == 1


def test_a_game_server_updates_many_and_everything_can_be_read(
    package: Package, running: System
) -> None:
    script = """
      import { ScoreboardClient } from "@scoreboard/client";
      const { API: url, TOKEN, WS: liveUrl } = process.env;
      let provided = 0;
      const statuses = [];
      const client = new ScoreboardClient({
        url,
        liveUrl,
        board: "main",
        tokenProvider: () => ((provided += 1) === 1 ? "not.a.token" : TOKEN),
        fetch: async (address, init) => {
          const response = await fetch(address, init);
          statuses.push(response.status);
          return response;
        },
      });
      const actions = Array.from({ length: 120 }, (_, number) => ({
        userId: `player-${number}`,
        actionId: "bulk:1",
        points: 1_000 + number,
      }));
      const results = await client.updateMany([...actions, actions[0]]);
      const top = await client.leaderboard({ limit: 2 });
      const again = await client.leaderboard({ limit: 2 });
      const player = await client.user("player-118", { around: 1 });
      const friends = await client.users(["player-3", "player-4", "nobody"]);
      const rank = await client.rank(2_000);
      const cutoff = await client.cutoff(1);
      const history = await client.history("player-7");
      const boards = await client.boards();
      const board = await client.board("main");
      const missing = await client.user("nobody").catch((error) => error);
      const live = await new Promise((resolve) => {
        const connection = client.connect({
          onBoard: (newest) => {
            connection.close();
            resolve(newest);
          },
        });
      });
      console.log(JSON.stringify({
        statuses,
        outcomes: results.map(({ outcome }) => outcome),
        top: top.leaderboard.map(({ userId }) => userId),
        isSame: JSON.stringify(top) === JSON.stringify(again),
        player: [player.rank, player.score, player.neighbours.length],
        friends: [friends.users.map(({ userId }) => userId), friends.notFound],
        rank: rank.rank,
        cutoff: cutoff.score,
        history: history.history.length,
        boards: boards.boards.map(({ name }) => name),
        board: board.rules.operator,
        missing: [missing.type, missing.status, typeof missing.requestId],
        live: live.leaderboard[0].userId,
      }));
    """
    token = running.token("arena", UPDATE_ANY, READ)

    printed = run(package.project, script, API=running.api, WS=running.ws, TOKEN=token)

    got = json.loads(printed)
    # The first token is refused; the second read of the leaderboard was not sent again.
    assert got.pop("statuses")[:5] == [401, 200, 200, 200, 304]
    assert got.pop("outcomes") == ["applied"] * 120 + ["replayed"]
    assert got == {
        "top": ["player-119", "player-118"],
        "isSame": True,
        "player": [2, 1118, 3],
        "friends": [["player-4", "player-3"], ["nobody"]],
        "rank": 1,
        "cutoff": 1119,
        "history": got["history"],  # PostgreSQL has it a moment later
        "boards": ["main"],  # a test that makes another one comes later
        "board": "add",
        "missing": ["/docs/problems/unknown-user", 404, "string"],
        "live": "player-119",
    }


def test_a_live_board_has_windows_names_and_places(package: Package, running: System) -> None:
    script = """
      import { ScoreboardClient } from "@scoreboard/client";
      const { API: url, GAME, PLAYER, WS: liveUrl } = process.env;
      const board = "windowed";
      const ids = Array.from({ length: 12 }, (_, index) => `w${index + 1}`);
      const updates = ids.map((userId, index) => (
        { userId, actionId: "bulk:2", points: 120 - 10 * index, board }
      ));
      await new ScoreboardClient({ url, token: GAME }).updateMany(updates);
      const client = new ScoreboardClient({ url, liveUrl, board, token: PLAYER });
      const seen = { rows: null, own: null, other: null };
      const connection = client.connect({
        rows: 11,
        offset: 10,
        onBoard: ({ leaderboard, offset }) => {
          const rows = leaderboard.map(({ rank, name }) => [rank, name ?? null]);
          if (rows.length === 2 && rows[0][1] !== null) seen.rows = [offset, rows];
          finish();
        },
        onPlace: ({ userId, rank, toNext, toTop, above }) => {
          if (userId !== "w12") seen.other = rank;
          else if (rank !== null) {
            seen.own = [rank, toNext, toTop, above.length];
            connection.watch(["w3"]);
          }
          finish();
        },
      });
      function finish() {
        if (Object.values(seen).includes(null)) return;
        connection.close();
        console.log(JSON.stringify(seen));
      }
    """
    assert running.run("board", "create", "windowed").returncode == 0
    assert running.run("user", "set", "w11", "--name", "Ada").returncode == 0
    game, player = running.token("arena", UPDATE_ANY), running.token("w12")

    printed = run(package.project, script, API=running.api, WS=running.ws, GAME=game, PLAYER=player)

    assert json.loads(printed) == {
        "rows": [10, [[11, "Ada"], [12, None]]],
        "own": [12, 10, 20, 2],
        "other": 3,
    }


def test_a_refusal_is_an_error_with_the_id_of_the_request(
    package: Package, running: System
) -> None:
    script = """
      import { ScoreboardClient, ScoreboardError } from "@scoreboard/client";
      const { API: url, TOKEN: token } = process.env;
      const client = new ScoreboardClient({ url, token });
      const action = { userId: "another", actionId: "win:1" };
      const error = await client.update(action).catch((caught) => caught);
      const { type, status, requestId } = error;
      console.log(JSON.stringify([error instanceof ScoreboardError, type, status, requestId]));
    """

    printed = run(package.project, script, API=running.api, TOKEN=running.token("carol"))

    is_error, kind, status, request_id = json.loads(printed)
    assert (is_error, kind, status) == (True, "/docs/problems/forbidden", 403)
    assert len(request_id) >= 8
