"""Run one command on Redis with an operator's login, and print the answer as JSON.

    python redis_command.py INFO memory

The login is the file that SCOREBOARD_REDIS_SECRET names; its rights are in users.acl.
"""

import json
import os
import sys
from pathlib import Path

import redis


def main(words: list[str]) -> int:
    """Run the command; return the exit code."""
    login = json.loads(Path(os.environ["SCOREBOARD_REDIS_SECRET"]).read_text())
    client = redis.Redis.from_url(
        os.environ["REDIS_URL"],
        username=login["username"],
        password=login["password"],
        decode_responses=True,
        socket_timeout=10,
    )
    try:
        with client:
            answer = client.execute_command(*words)
    except redis.RedisError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{json.dumps(answer, indent=1, default=str)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
