"""Rules for names and ids, and the escaping of text for a terminal. No I/O.

Names may contain ZWNJ (Persian), ZWJ (Sinhala, emoji), ideographic and no-break spaces. They may
not contain what changes the text around it or is not text: control characters, line and paragraph
separators, the embeddings, overrides and isolates of UAX #9 (UTS #39, section 3.1, does not allow
them in identifiers either), surrogates and noncharacters. Unassigned characters are allowed:
the next version of Unicode may assign them.
"""

import re
import unicodedata
from typing import Final

_BIDI: Final = "\u202a-\u202e\u2066-\u2069"
_NONCHARACTERS: Final = "\ufdd0-\ufdef" + "".join(
    chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)
_UNSAFE: Final = re.compile(
    f"[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029{_BIDI}\\ud800-\\udfff{_NONCHARACTERS}]"
)


def find_unsafe(text: str) -> str | None:
    """Describe the first character that a name may not contain and its position, or return None."""
    match = _UNSAFE.search(text)
    if match is None:
        return None
    character = match[0]
    name = unicodedata.name(character, "") or _category_of(character)
    return f"{name.lower()} (U+{ord(character):04X}) at character {match.start() + 1}"


def escape_unsafe(text: str) -> str:
    """Return a text for a terminal, with unsafe characters replaced by backslash escapes."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _category_of(character: str) -> str:
    match unicodedata.category(character):
        case "Cc":
            return "control character"
        case "Cs":
            return "half of a surrogate pair"
        case _:
            return "noncharacter"
