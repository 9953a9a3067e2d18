"""SQL files: migrations, queries and grants."""
