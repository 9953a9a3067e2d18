"""The windows of one board that viewers see beside its top: when to read them, what was read.

Changes below the top are not published. Windows that reach into the top are read with every read of
it, all of them at most once a second, and then only if the board has a newer seq. A new window is
read at once, without the others.

Invariants: a window without viewers is dropped after ``IDLE_S``; a board without windows costs
nothing.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Final

from scoreboard.broadcast.messages import now_ms
from scoreboard.broadcast.state import NO_NAMES, BoardState, ReadResult
from scoreboard.model import TOP, Span, Window

KnownNames = Callable[[Iterable[str], Mapping[str, str]], Mapping[str, str]]
"""Returns the names that are known of users, by user id; also called with the names shown now."""

SAMPLE_S: Final = 1.0
"""Interval of reads of rows below the top."""

IDLE_S: Final = 5.0
"""Time after which a window without viewers is dropped."""

MAKE_ROOM_IDLE_S: Final = 2.5
"""The same at a limit of windows: longer than the first read, for which its viewer waits."""

MERGED_DEPTH_MAX: Final = 1_000
"""Deepest row of a window of a board of several partitions: each is read from its first row on."""


def no_names(_: Iterable[str], __: Mapping[str, str]) -> Mapping[str, str]:
    """Return no names: those of a process without a database."""
    return NO_NAMES


class WatchedWindow:
    """One window: its state, and whether it was read."""

    __slots__ = ("first_read", "state", "used_at_s")

    def __init__(self, board: str, span: Span) -> None:
        self.state = BoardState(board, span)
        self.first_read = asyncio.Event()
        """Set when the first read has succeeded, or the window is dropped."""
        self.used_at_s = time.monotonic()


class BoardWindows:
    """The windows of one board; ``due_at_s`` is the loop's time of their next read, or inf."""

    __slots__ = ("_by_span", "_new", "_sample_at_s", "_seen", "due_at_s")

    def __init__(self) -> None:
        self._by_span: dict[Span, WatchedWindow] = {}
        self._new: set[Span] = set()
        """Windows that were not read yet."""
        self._seen: tuple[tuple[int, int], ...] = ()
        """Epoch and seq of each partition at the last read of all windows."""
        self._sample_at_s = inf
        """The loop's time of the next read of all windows."""
        self.due_at_s = inf

    def __len__(self) -> int:
        return len(self._by_span)

    def find(self, span: Span) -> WatchedWindow | None:
        """Return the window of a span, if it is watched."""
        return self._by_span.get(span)

    def add(self, board: str, span: Span) -> WatchedWindow:
        """Add a window, which is due at once, and does not make the others due."""
        if not self._by_span:
            self._sample_at_s = 0.0
        found = self._by_span[span] = WatchedWindow(board, span)
        self._new.add(span)
        self.due_at_s = 0.0
        return found

    def drop(self, span: Span) -> None:
        """Drop a window."""
        self._by_span.pop(span).first_read.set()  # for those who wait; they find no message
        self._new.discard(span)
        if not self._by_span:
            self._sample_at_s = self.due_at_s = inf

    def clear(self) -> None:
        """Drop all windows."""
        for span in tuple(self._by_span):
            self.drop(span)

    def unused(self, is_viewed: Callable[[Span], bool], idle_s: float) -> list[tuple[float, Span]]:
        """Return the windows without viewers for a time, with when they last had one (monotonic).

        The longest unused comes first.
        """
        now_s = time.monotonic()
        idle: list[tuple[float, Span]] = []
        for span, window in self._by_span.items():
            if is_viewed(span):
                window.used_at_s = now_s
            elif now_s - window.used_at_s >= idle_s:
                idle.append((window.used_at_s, span))
        return sorted(idle, key=lambda one: one[0])

    def too_deep(self) -> list[Span]:
        """Return the windows that a board of several partitions does not have."""
        return [span for span in self._by_span if span.end > MERGED_DEPTH_MAX]

    def have_changed(self, positions: tuple[tuple[int, int], ...], now_s: float) -> bool:
        """Return whether a board at these positions has to be read; else its read is put off."""
        if self._new or positions != self._seen:
            return True
        self.put_off(now_s)
        return False

    def put_off(self, now_s: float) -> None:
        """Put off the next read of all windows, if there are any."""
        if self._by_span:
            self._sample_at_s = self.due_at_s = now_s + SAMPLE_S

    def to_read(self, now_s: float) -> Sequence[Span]:
        """Return the windows to read together with the top."""
        if now_s >= self._sample_at_s:
            return tuple(self._by_span)
        return [span for span in self._by_span if span.offset < TOP.rows or span in self._new]

    def apply(
        self,
        top: Window,
        read: Iterable[tuple[Span, Window]],
        now_s: float,
        known: KnownNames = no_names,
    ) -> Sequence[BoardState]:
        """Take what was read with the top; return the state of each window that has changed.

        ``now_s`` is the time for which ``to_read`` was called; ``known`` returns users' names.
        """
        at_ms = now_ms()
        changed: list[BoardState] = []
        for span, window in read:
            found = self._by_span.get(span)
            if found is None:
                continue
            names = known([row.user_id for row in window.rows], found.state.names)
            if found.state.apply(window, at_ms, names) is ReadResult.CHANGED:
                changed.append(found.state)
            self._new.discard(span)
            found.first_read.set()
        if now_s >= self._sample_at_s:
            self._seen, self._sample_at_s = top.positions, now_s + SAMPLE_S
        # One that was added during the read is due at once.
        self.due_at_s = 0.0 if self._new else self._sample_at_s
        return changed

    def rename(self, known: KnownNames) -> Sequence[BoardState]:
        """Add the names known now; return the state of each window whose names have changed."""
        states = [window.state for window in self._by_span.values()]
        return [state for state in states if state.rename(known(state.user_ids, state.names))]

    @property
    def user_ids(self) -> frozenset[str]:
        """The users of all windows."""
        return frozenset[str]().union(*(one.state.user_ids for one in self._by_span.values()))
