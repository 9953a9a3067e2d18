"""From accept to 101: admission, request head, refusals."""
