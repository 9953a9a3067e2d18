"""Names and patterns in requests, and what an error says of a text that has another form."""

from typing import Final

from scoreboard.ledger.acts import ACT_ID_PATTERN
from scoreboard.ledger.history import PLACE_PATTERN
from scoreboard.model import BOARD_PATTERN, END, FORMS

PRINTABLE: Final = rf"^[^\x00-\x1f\x7f]+{END}"
"""PostgreSQL has no NUL in a text."""

REASON_PATTERN: Final = rf"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*{END}"
AFTER_PATTERN: Final = BOARD_PATTERN.replace("{1,", "{0,")
"""The name of a board, or nothing."""

ALL_FORMS: Final = {
    **FORMS,
    ACT_ID_PATTERN: "16 hexadecimal digits, 0-9 a-f",
    AFTER_PATTERN: "`next` of the page before",
    PLACE_PATTERN: "`next` of the page before",
    PRINTABLE: "a text without line ends and other control characters",
    REASON_PATTERN: "a text of one line, and not only spaces",
}


def name_in_json(name: str) -> str:
    """Return the name in the API of what has underscores in Python."""
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
