"""The number of an update: points or a value, chosen and checked by the rules of its board."""

from scoreboard.errors import Forbidden, Invalid
from scoreboard.model import POINTS_MAX, SCORE_MAX, Rules
from scoreboard.security.tokens import UPDATE_ANY
from scoreboard.store.catalogue import Catalogue


def points_of(
    action_id: str, stated: int | None, rules: Rules, catalogue: Catalogue, *, trusted: bool
) -> int:
    """Return the points of an action, or its value if the board takes values.

    ``stated`` is what the request contains. ``trusted`` callers may state it on every board.

    Raises Forbidden for a number that this caller may not send, Invalid for one that the board does
    not take or if it needs one, UnknownKind.
    """
    if stated is None:
        if rules.points == "stated":
            raise Invalid(f"Add points, {_expected(rules)}: this board does not use the catalogue")
        return catalogue.points_of(action_id)
    if not trusted and rules.points == "catalogue":
        raise Forbidden(f"Omit points: setting them needs the scope {UPDATE_ANY}", scope=UPDATE_ANY)
    least, most = _limits(rules)
    if not least <= stated <= most or (stated == 0 and not rules.takes_values):
        raise Invalid(f"points must be {_expected(rules)}")
    if stated < 0 and rules.lowering == "trusted" and not trusted:
        raise Forbidden(
            f"points must be positive: lowering a score needs the scope {UPDATE_ANY}",
            scope=UPDATE_ANY,
        )
    return stated


def _limits(rules: Rules) -> tuple[int, int]:
    if rules.takes_values:
        return 0, SCORE_MAX  # the script knows the bounds of the board
    return (1 if rules.lowering == "nobody" else -POINTS_MAX), POINTS_MAX


def _expected(rules: Rules) -> str:
    least, most = _limits(rules)
    if rules.takes_values:
        return f"the value, an integer from {rules.score_min} to {rules.score_max}"
    other = "" if least > 0 else " and not 0"
    return f"an integer from {least} to {most}{other}"
