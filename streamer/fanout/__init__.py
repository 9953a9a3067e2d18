"""Who watches which board, and whose turn it is."""
