"""Players for locust: each sends updates and sometimes reads, with its own token.

    LOAD_TOKENS=tokens.txt locust -f loadtest/locustfile.py --headless -u 100 -r 20 -t 1m

Variables: LOAD_URL, LOAD_TOKENS, LOAD_BOARD, LOAD_KIND, LOAD_RATE (requests per second of a user).
An update that the limit refused (429) is listed as `update (limited)`, not as a failure.
"""

import itertools
import os
from pathlib import Path
from uuid import uuid4

from locust import FastHttpUser, constant_throughput, events, task

URL = os.environ.get("LOAD_URL", "http://127.0.0.1:8000")
BOARD = os.environ.get("LOAD_BOARD", "")
KIND = os.environ.get("LOAD_KIND", "win")
RATE = float(os.environ.get("LOAD_RATE", "0.1"))
UPDATE, LIMITED, REPLAYED = "update", "update (limited)", "update (replayed)"


def read_tokens():
    """Return users and tokens of the file, as pairs.

    Raises ValueError if a line has another form.
    """
    lines = Path(os.environ.get("LOAD_TOKENS", "tokens.txt")).read_text().splitlines()
    pairs = [tuple(line.split(" ")) for line in lines]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError("each line of LOAD_TOKENS is USER TOKEN")
    return pairs


# Two users of locust share a player only if there are fewer tokens than users.
PLAYERS = itertools.cycle(read_tokens())


class Player(FastHttpUser):
    """A player. The pace is kept while answers take less time than it leaves."""

    host = URL
    wait_time = constant_throughput(RATE)
    connection_timeout = network_timeout = 10.0

    def on_start(self):
        """Use the next line of the file of tokens."""
        self.user_id, token = next(PLAYERS)
        self.headers = {"Authorization": f"Bearer {token}"}
        self.params = f"?board={BOARD}" if BOARD else ""

    @task(9)
    def update(self):
        """Send a new action, and check that it was counted."""
        with self.client.post(
            f"/api/scores/update{self.params}",
            name=UPDATE,
            json={"userId": self.user_id, "actionId": f"{KIND}:{uuid4().hex}"},
            headers=self.headers,
            catch_response=True,
        ) as response:
            if response.status_code == 429:
                response.request_meta["name"] = LIMITED
                response.success()
            elif response.status_code == 200:
                if response.json()["replayed"]:
                    response.request_meta["name"] = REPLAYED
                    response.failure("a new action was answered as a repeat")
                else:
                    response.success()

    @task(1)
    def leaderboard(self):
        """Read the top of the board."""
        path = f"/api/scores/leaderboard{self.params}"
        self.client.get(path, name="leaderboard", headers=self.headers)


@events.quitting.add_listener
def print_outcomes(environment, **_):
    """Print how many updates the api acknowledged, and exit with 1 if anything failed."""
    entries = {entry.name: entry for entry in environment.stats.entries.values()}

    def count(name):
        return entries[name].num_requests if name in entries else 0

    failed = environment.stats.total.num_failures
    of_updates = entries[UPDATE].num_failures if UPDATE in entries else 0
    print(
        f"acknowledged {count(UPDATE) - of_updates}, replayed {count(REPLAYED)}, "
        f"limited {count(LIMITED)}, failed {failed - count(REPLAYED)}"
    )
