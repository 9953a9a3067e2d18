"""Functions that write boards and history directly into the stores."""
