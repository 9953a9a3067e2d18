"""Signals that stop a command."""

import os
import signal
import threading

import pytest

from cli.signals import SIGNALS, StopFlag, stop_on_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_the_event_and_the_second_interrupts(number: signal.Signals) -> None:
    outer = signal.signal(number, signal.default_int_handler)  # SIGHUP is ignored under nohup
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), number)
            assert stop.is_set()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, outer)


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_is_handled_at_any_moment_of_a_wait() -> None:
    """A handler that needs a lock which its thread holds would wait for ever."""
    before = signal.getsignal(signal.SIGALRM)
    try:
        for _ in range(300):
            stop = StopFlag()
            signal.signal(signal.SIGALRM, lambda _number, _frame, stop=stop: stop.set())
            signal.setitimer(signal.ITIMER_REAL, 0.0002)
            while not stop.wait(0.00001):
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_all_who_wait_are_woken() -> None:
    stop = StopFlag()
    assert not stop.wait(0)
    waiting = [threading.Thread(target=stop.wait, args=[30]) for _ in range(3)]
    for one in waiting:
        one.start()
    stop.set()
    for one in waiting:
        one.join(30)
    assert not any(one.is_alive() for one in waiting)
    assert stop.wait()
