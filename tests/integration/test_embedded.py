"""The embedded servers: what they promise to `scoreboard up` and to every other test."""


def test_a_valkey_and_a_postgres_answer(redis_url, empty_database_url):
    import psycopg
    import redis

    with redis.Redis.from_url(redis_url) as client:
        assert client.set("a", "1")
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
