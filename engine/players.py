"""Many players, one model: their games are computed together, and each of them comes and goes as it likes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.errors import OptionError
from engine.game import NeuralGame


@dataclass(frozen=True)
class Picture:
    """What a player is shown.

    Args:
        frame: (H, W, 3) uint8.
        number: frames since the player came.
        ended: whether the game ended with this frame; the next one is of another start.
    """

    frame: np.ndarray
    number: int
    ended: bool


class Players:
    """Seats at a batched :class:`NeuralGame`.

    A step computes all seats in one forward pass, so nobody waits for another's frame. Only the newest action of a
    player counts and only the newest frame is kept: under overload frames are made less often, never queued.

    Args:
        game: its batch is the number of seats.
    """

    def __init__(self, game: NeuralGame) -> None:
        self._game = game
        self._held: dict[int, np.ndarray] = {}  # of the taken seats
        self._numbers: dict[int, int] = {}

    @property
    def seats(self) -> int:
        """How many there are in all."""
        return self._game.batch

    @property
    def taken(self) -> tuple[int, ...]:
        """The seats that somebody plays at."""
        return tuple(sorted(self._held))

    def join(self, seed: int, spawn: int | None = None, steps: int | None = None) -> tuple[int, Picture]:
        """Take a free seat; its number, and the first picture.

        Raises:
            OptionError: no seat is free, or the seed, the spawn or the steps cannot be used.
        """
        free = next((seat for seat in range(self.seats) if seat not in self._held), None)
        if free is None:
            raise OptionError(f"all {self.seats} seats are taken", "join", "try again when a player has left")
        frame = self._game.seat(free, seed, spawn, steps)
        self._held[free], self._numbers[free] = self._game.action_set.rest, 0
        return free, Picture(frame, 0, False)

    def leave(self, seat: int) -> None:
        """Give a seat back.

        Raises:
            OptionError: nobody plays there.
        """
        self._check(seat)
        del self._held[seat], self._numbers[seat]
        self._game.vacate(seat)

    def hold(self, seat: int, action: Any) -> None:
        """What a player holds from now on, (A,); it stays held until it is told otherwise.

        Raises:
            OptionError: nobody plays there.
            ActionError: the action does not fit.
        """
        self._check(seat)
        self._held[seat] = self._game.action_set.check(action)

    def step(self) -> dict[int, Picture]:
        """One frame on for everybody; the pictures by seat. Without a player nothing is computed."""
        if not self._held:
            return {}
        actions = np.stack([self._held.get(seat, self._game.action_set.rest) for seat in range(self.seats)])
        frames = self._game.step(actions if self.seats > 1 else actions[0])
        frames = frames if self.seats > 1 else frames[None]
        pictures = {}
        for seat in self.taken:
            self._numbers[seat] += 1
            pictures[seat] = Picture(frames[seat], self._numbers[seat], bool(self._game.ended[seat]))
        ended = [seat for seat in self.taken if pictures[seat].ended]
        if ended:
            self._game.respawn(ended)
        return pictures

    def _check(self, seat: int) -> None:
        if seat not in self._held:
            raise OptionError("nobody plays there", seat, f"taken seats: {', '.join(map(str, self.taken)) or 'none'}")


class Clock:
    """Frames at a steady rate; one that comes late is not made up for.

    Args:
        fps: frames a second.
        now: seconds, rising.
        sleep: waits so many seconds.
    """

    def __init__(
        self, fps: float, now: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._period, self._now, self._sleep = 1 / fps, now, sleep
        self._due = now()
        self.dropped = 0

    def wait(self) -> None:
        """Until the next frame is due; counts those whose time has passed already."""
        late = self._now() - self._due
        missed = max(0, int(late / self._period))
        self.dropped += missed
        self._due += missed * self._period
        self._sleep(max(0.0, self._due - self._now()))
        self._due += self._period
