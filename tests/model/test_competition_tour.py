"""A fixed sequence of steps that random ones seldom combine, with the same model and checks."""

import asyncio
from itertools import count

import pytest

from scoreboard.moderation.plans import BanChange, Correction, Request, Undo, Void
from tests.model.competition_machine import KINDS, USERS, CompetitionMachine, machine_of
from tests.model.plain_board import Act, Refusal
from tests.model.real_board import Servers

pytestmark = pytest.mark.slow


class Tour:
    """Takes the steps that random ones seldom combine, with the same checks after each."""

    def __init__(self, machine: CompetitionMachine) -> None:
        self.machine = machine
        self.model = machine.model
        self._numbers = count(1)

    def act(self, request: Request, planned: Act | Refusal) -> str:
        """Perform an act, flush, and return its id."""
        self.machine.perform(request, planned)
        self.machine.the_board_equals_its_model()
        self.machine.flush()
        self.machine.the_board_equals_its_model()
        return list(self.model.acts)[-1]

    def check(self) -> None:
        self.machine.the_board_equals_its_model()
        self.machine.verify()

    def play(self, user: str, *numbers: int) -> list[str]:
        """Send actions, and return their ids."""
        names = [f"win:{next(self._numbers)}" for _ in numbers]
        self.machine.submit(
            [(user, name, n, True, "") for name, n in zip(names, numbers, strict=True)]
        )
        self.check()
        return names

    def void(self, user: str, action: str) -> str:
        return self.act(Void(user, action), self.model.void(user, action))

    def undo(self, act_id: str) -> str:
        return self.act(Undo(act_id), self.model.undo(act_id))

    def correct(self, user: str, delta: int) -> str:
        return self.act(Correction(user, delta), self.model.correction(user, delta))

    def ban(self, user: str) -> str:
        return self.act(BanChange(user, "ban"), self.model.ban(user))

    def unban(self, user: str) -> str:
        return self.act(BanChange(user, "unban"), self.model.unban(user))

    def take(self) -> None:
        """Take the tour: the same in two seasons, and what is between them."""
        rules = self.machine.board_rules
        good, better = (30, 20) if rules.order == "lowest" else (20, 30)
        # The second or the last one is held where there are limits, and may count later.
        first = {
            ("add", "highest"): (20, 1000, 30, 20),
            ("add", "lowest"): (60, -11, -9, -8, -7),
            ("best", "highest"): (60, 20, 30),
        }.get((rules.operator, rules.order), (60, 10, 30, 20))
        for _ in range(2):
            ann, bob, cem, dan = USERS
            held = [name for user in (cem, dan) for name in self.play(user, *first)]
            [won] = self.play(ann, good)
            self.play(bob, good)
            self.machine.flush()
            # Among equals, and banned: the score is corrected off the board.
            self.ban(ann)
            self.correct(ann, 2)
            self.undo(self.correct(ann, 3))
            self.play(ann, better)
            self.unban(ann)
            # A void is undone, and the action voided again.
            self.undo(self.void(ann, won))
            self.void(ann, won)
            for which in range(6):
                self.machine.repeat_an_act(which, which % 2 == 1)
            for which in range(4):
                self.machine.repeat_late(2 * which)
            self.decide(held)
            self.machine.repeat_every_action()
            for which in range(4):
                self.machine.repeat_late(which)
            self.correct(bob, -1)
            self.ban(bob)
            if self.machine.board_rules.season:
                self.play(cem, better + 1)  # not committed when the season ends
                self.machine.end_season()
                self.play(ann, good)
                self.correct(bob, 9)
                self.machine.kill_flusher(0)
                self.machine.flush()
                self.machine.freeze()
                self.machine.end_season()
                self.play(ann, better)  # the other partition is not turned
                self.machine.reseed(is_emptied=False)
            self.check()
            self.machine.reseed(is_emptied=True)
            self.unban(bob)
            self.check()

    def decide(self, actions: list[str]) -> None:
        """Release what was held, undo it, release again; void the rest."""
        for which in range(len([one for one in self.model.held if one[1] in actions])):
            self.machine.release(2 * which + 1)
            self.machine.flush()
            for act in list(self.model.acts.values()):
                if act.kind == "release" and which == 0:
                    self.undo(act.id)
            self.machine.release(2 * which + 1)
            self.machine.flush()
            self.machine.void_held(2 * which)
            self.check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tour_of_rare_combinations_equals_the_model(
    kind: str, servers: tuple[asyncio.Runner, Servers]
) -> None:
    machine = machine_of(kind, servers)()
    machine.start([])
    Tour(machine).take()
    machine.teardown()
