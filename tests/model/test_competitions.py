"""Boards with rules, seasons, limits, acts and bans equal a plain model after any calls.

`make model` takes more sequences.
"""

import asyncio

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.competition_machine import KINDS, machine_of
from tests.model.real_board import Servers

pytestmark = pytest.mark.slow


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_competition_equals_its_model(kind: str, servers: tuple[asyncio.Runner, Servers]) -> None:
    run_state_machine_as_test(
        machine_of(kind, servers),
        settings=settings(
            max_examples=settings.default.max_examples // 50,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
