"""Which number an update has on boards of all rules, and who may send it."""

from typing import cast

import pytest

from api.endpoints.points import points_of
from scoreboard.errors import Forbidden, Invalid, ScoreboardError, UnknownKind
from scoreboard.model import POINTS_MAX, SCORE_MAX, Rules
from scoreboard.store.catalogue import Catalogue


class FixedCatalogue:
    """The kind ``win`` has 10 points."""

    def points_of(self, action_id: str) -> int:
        if not action_id.startswith("win:"):
            raise UnknownKind
        return 10


CATALOGUE = cast("Catalogue", FixedCatalogue())
PLAIN = Rules()
STATED = Rules(points="stated")
TRUSTED = Rules(lowering="trusted", points="stated")
PLAYERS = Rules(lowering="players", points="stated")
BEST = Rules(operator="best", points="stated")
LAST = Rules(operator="last", order="lowest", score_min=5, score_max=500, points="stated")
CATALOGUE_BEST = Rules(operator="best")


def chosen(rules: Rules, stated: int | None, *, trusted: bool, action: str = "win:1") -> int:
    return points_of(action, stated, rules, CATALOGUE, trusted=trusted)


@pytest.mark.parametrize(
    ("rules", "trusted", "stated", "expected"),
    [
        (PLAIN, False, None, 10),
        (PLAIN, True, None, 10),
        (PLAIN, True, 1, 1),
        (PLAIN, True, POINTS_MAX, POINTS_MAX),
        (STATED, False, 7, 7),
        (TRUSTED, False, 7, 7),
        (TRUSTED, True, -POINTS_MAX, -POINTS_MAX),
        (PLAYERS, False, -7, -7),
        (BEST, False, 0, 0),
        (BEST, False, SCORE_MAX, SCORE_MAX),
        (LAST, True, 500, 500),
        (CATALOGUE_BEST, False, None, 10),
        (CATALOGUE_BEST, True, 0, 0),
    ],
)
def test_a_number_that_the_board_takes_is_used(
    rules: Rules, trusted: bool, stated: int | None, expected: int
) -> None:
    assert chosen(rules, stated, trusted=trusted) == expected


@pytest.mark.parametrize(
    ("rules", "trusted", "stated", "error", "words"),
    [
        (PLAIN, False, 5, Forbidden, "Omit points"),
        (CATALOGUE_BEST, False, 5, Forbidden, "Omit points"),
        (PLAIN, True, 0, Invalid, "an integer from 1 to 1000000"),
        (PLAIN, True, -1, Invalid, "an integer from 1 to 1000000"),
        (PLAIN, True, POINTS_MAX + 1, Invalid, "an integer from 1 to 1000000"),
        (STATED, False, None, Invalid, "Add points, an integer from 1 to 1000000"),
        (STATED, True, None, Invalid, "Add points"),
        (STATED, False, -1, Invalid, "from 1 to"),
        (STATED, True, -1, Invalid, "from 1 to"),
        (TRUSTED, False, -1, Forbidden, "lowering a score"),
        (TRUSTED, True, 0, Invalid, "from -1000000 to 1000000 and not 0"),
        (PLAYERS, False, 0, Invalid, "and not 0"),
        (PLAYERS, False, -POINTS_MAX - 1, Invalid, "and not 0"),
        (BEST, False, -1, Invalid, "the value, an integer from 0 to 2147483647"),
        (LAST, False, None, Invalid, "Add points, the value, an integer from 5 to 500"),
    ],
)
def test_another_number_is_refused_with_the_right_one(
    rules: Rules, trusted: bool, stated: int | None, error: type[ScoreboardError], words: str
) -> None:
    with pytest.raises(error, match=words):
        chosen(rules, stated, trusted=trusted)


def test_a_kind_must_be_known_only_if_the_catalogue_decides() -> None:
    assert chosen(STATED, 5, trusted=False, action="other:1") == 5
    with pytest.raises(UnknownKind):
        chosen(PLAIN, None, trusted=False, action="other:1")
