"""How quickly a board comes back from PostgreSQL, and how quickly both stores are compared."""
