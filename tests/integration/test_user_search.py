"""Administrators search users by the beginning of an id or a name, whatever the number of users."""

import re

import psycopg

from scoreboard.ledger.pool import connect
from scoreboard.ledger.users import search_users
from scoreboard.runtime import resources
from scoreboard.runtime.settings import Secret, Settings


async def test_a_search_reads_indexes_however_many_users_there_are(database_url: str) -> None:
    """Each search read the whole table, and was cancelled after five seconds on a large one."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO users (id, external_id, name) "
            "SELECT gen_random_uuid(), 'u' || n, CASE WHEN n % 3 = 0 THEN 'Name ' || n END "
            "FROM generate_series(1, 30000) n"
        )
        connection.execute(
            "INSERT INTO users (id, external_id, name) VALUES "
            "(gen_random_uuid(), 'u1%x', 'Ümit'), (gen_random_uuid(), 'zed', 'u1_y')"
        )
        # PostgreSQL does not take this collation for "C", as it does not that of a language.
        connection.execute(
            'ALTER TABLE users ALTER COLUMN external_id TYPE TEXT COLLATE "C.utf8", '
            'ALTER COLUMN name TYPE VARCHAR(200) COLLATE "C.utf8"'
        )
        connection.execute("ANALYZE users")
        for query in ("u1", "name 29", "zed", "%"):
            beginning = query.replace("%", r"\%") + "%"
            given = {"query": query, "beginning": beginning, "limit": 20}
            statement = b"EXPLAIN " + resources.query("search_users")
            plan = "\n".join(row[0] for row in connection.execute(statement, given))
            assert "Seq Scan" not in plan, plan
            if query == "u1":  # of a third of the users, twenty are read and none is sorted out
                assert "Bitmap" not in plan, plan
            assert {"users_external_id_search", "users_name_search"} <= set(
                re.findall(r"users_\w+", plan)
            )
    settings = Settings(redis_url=Secret("redis://unused"), database_url=Secret(database_url))
    async with await connect(settings, name="test") as reader:

        async def found(query: str) -> list[str]:
            return [user_id for user_id, _ in await search_users(reader, query, limit=3)]

        assert await found("u1") == ["u1", "u1%x", "u10"]
        assert await found("u1%") == ["u1%x"]
        assert await found("u1_") == ["zed"]
        assert await found("NAME 299") == ["u29901", "u29904", "u29907"]
        assert await found("ÜM") == ["u1%x"]
        assert await found("\\") == []
