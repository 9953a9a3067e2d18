"""Seasons: ids, bounds, and the hours that do not exist or exist twice."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from scoreboard.errors import Invalid
from scoreboard.model import Layout, Rules
from scoreboard.seasons import Season, next_season, require_season, season_at

HOUR = 3600


def at(text: str, zone: str = "UTC", *, fold: int = 0) -> int:
    """Return the moment of a local time, s since 1970."""
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(moment.timestamp())


def rules(season: str, zone: str = "UTC") -> Rules:
    return Rules(season=season, time_zone=zone)


@pytest.mark.parametrize(
    ("season", "zone", "now", "name", "start", "end"),
    [
        ("daily", "UTC", "2026-11-27T00:00", "2026-11-27", "2026-11-27", "2026-11-28"),
        ("daily", "UTC", "2026-11-27T23:59:59", "2026-11-27", "2026-11-27", "2026-11-28"),
        ("weekly", "Europe/Berlin", "2026-11-23T00:00", "2026-W48", "2026-11-23", "2026-11-30"),
        ("weekly", "Europe/Berlin", "2026-11-29T23:59", "2026-W48", "2026-11-23", "2026-11-30"),
        # The ISO year differs from the calendar's at both ends.
        ("weekly", "UTC", "2027-01-01T12:00", "2026-W53", "2026-12-28", "2027-01-04"),
        ("weekly", "UTC", "2025-12-29T00:00", "2026-W01", "2025-12-29", "2026-01-05"),
        ("monthly", "Asia/Tokyo", "2028-02-29T23:00", "2028-02", "2028-02-01", "2028-03-01"),
        ("monthly", "UTC", "2026-12-31T23:59", "2026-12", "2026-12-01", "2027-01-01"),
        # The clock skips midnight, so the day begins at 01:00.
        ("daily", "America/Sao_Paulo", "2018-11-04T05:00", "2018-11-04", "2018-11-04T01:00",
         "2018-11-05"),
        # A date that does not exist.
        ("daily", "Pacific/Apia", "2011-12-29T12:00", "2011-12-29", "2011-12-29", "2011-12-31"),
    ],
)  # fmt: skip
def test_a_season_has_the_bounds_of_its_time_zone(  # noqa: PLR0917 (a row of the table)
    season: str, zone: str, now: str, name: str, start: str, end: str
) -> None:
    found = season_at(rules(season, zone), at(now, zone))
    assert found == Season(name, at(start, zone), at(end, zone))


def test_days_on_which_clocks_change_have_23_and_25_hours() -> None:
    spring = season_at(rules("daily", "Europe/Berlin"), at("2026-03-29T12:00", "Europe/Berlin"))
    autumn = season_at(rules("daily", "Europe/Berlin"), at("2026-10-25T12:00", "Europe/Berlin"))
    assert spring.end_s - spring.start_s == 23 * HOUR
    assert autumn.end_s - autumn.start_s == 25 * HOUR


def test_a_midnight_that_comes_twice_begins_one_day() -> None:
    zone = "America/Havana"  # at 01:00 the clock goes back to 00:00
    first = season_at(rules("daily", zone), at("2026-11-01T00:30", zone))
    second = season_at(rules("daily", zone), at("2026-11-01T00:30", zone, fold=1))
    assert first == second
    assert first.end_s - first.start_s == 25 * HOUR


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Havana", "Australia/Lord_Howe"])
@pytest.mark.parametrize(
    "season",
    ["daily", "weekly", "monthly", "cron:30 2 * * *", "cron:0 */3 * * *", "cron:0 6 * * 1"],
)
def test_every_moment_of_a_year_is_in_one_season(season: str, zone: str) -> None:
    one = rules(season, zone)
    now = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    last = int(datetime(2027, 1, 10, tzinfo=UTC).timestamp())
    current = season_at(one, now)
    names = {current.id}
    while now < last:
        assert current.start_s <= now < current.end_s
        for moment in (current.start_s, (current.start_s + current.end_s) // 2, current.end_s - 1):
            assert season_at(one, moment) == current
        following = season_at(one, current.end_s)
        assert following.start_s == current.end_s
        assert following.id not in names
        names.add(following.id)
        now, current = current.end_s, following


def test_a_cron_season_is_named_by_its_start_in_utc() -> None:
    found = season_at(rules("cron:0 7 * * *", "Europe/Berlin"), at("2026-11-27T08:00"))
    assert found.id == "2026-11-27T0600Z"
    assert found.end_s - found.start_s == 24 * HOUR


def test_a_cron_hour_that_is_skipped_or_comes_twice_begins_one_season() -> None:
    zone, one = "Europe/Berlin", rules("cron:30 2 * * *", "Europe/Berlin")
    for day in ("2026-03-29", "2026-10-25"):
        noon = at(f"{day}T12:00", zone)
        found = season_at(one, noon)
        assert found.start_s <= noon
        assert noon - found.start_s < 12 * HOUR
        assert found.end_s == at(f"{day}T12:00", zone) + int(timedelta(hours=14.5).total_seconds())


@pytest.mark.parametrize(
    ("season", "zone"),
    [
        ("hourly", "UTC"),
        ("daily", "Mars/Olympus"),
        ("daily", "../etc/passwd"),
        ("daily", ""),
        ("cron:* * *", "UTC"),
        ("cron:*/5 * * * * *", "UTC"),
        ("cron:61 * * * *", "UTC"),
        ("cron:0 0 30 2 *", "UTC"),
        ("", "UTC"),
    ],
)
def test_a_season_that_cannot_be_computed_is_refused(season: str, zone: str) -> None:
    with pytest.raises(Invalid):
        require_season(rules(season, zone))


@pytest.mark.parametrize("season", ["", "daily", "weekly", "monthly", "cron:0 6,18 * * 1-5"])
def test_rules_with_seasons_are_part_of_a_layout(season: str) -> None:
    one = rules(season, "America/Argentina/ComodRivadavia" if season else "")
    require_season(one)
    layout = Layout(rules=one)
    assert Layout.parse(str(layout)) == layout
    assert " " not in str(layout)


@pytest.mark.parametrize(
    "text", ["", "2026-W48", "2026-W48:5:5", "2026-W48:6:5", "a:1:2", "X:1:2:3"]
)
def test_a_text_that_is_no_season_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="id:start:end"):
        Season.parse(text)


def test_the_rest_of_a_season_that_another_zone_file_ended_early_has_its_own_name() -> None:
    one, noon = rules("daily"), at("2026-11-27T12:00")
    ended = Season("2026-11-27", at("2026-11-27"), noon)
    assert next_season(one, ended, noon) == Season("2026-11-27T1200Z", noon, at("2026-11-28"))
    assert next_season(one, ended, at("2026-11-30T12:00")).id == "2026-11-30"


def test_a_season_is_read_as_it_was_written() -> None:
    one = Season("2026-11-27T0600Z", 1, 2)
    assert Season.parse(str(one)) == one
