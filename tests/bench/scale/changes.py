"""A process that changes the top of the board `main` ten times a second until it is ended."""

import asyncio
import os

from tests.bench.ws.__main__ import publish

if __name__ == "__main__":
    asyncio.run(publish(os.environ["REDIS_URL"], float("inf")))
