"""Many players at one model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from test_outcome import telling

from agents.errors import ActionError, OptionError
from engine.game import NeuralGame
from engine.players import Clock, Players
from gamengen.checkpoints import Checkpoint

MakeUp = Callable[..., Checkpoint]


def players(made_up: MakeUp, seats: int = 3) -> Players:
    return Players(NeuralGame(made_up(), "cpu", 2, batch=seats, dtype="float32"))


def alone(made_up: MakeUp, seed: int, actions: list[list[float]], steps: int = 2) -> list[np.ndarray]:
    """What somebody sees who plays alone with this seed."""
    game = NeuralGame(made_up(), "cpu", steps, dtype="float32")
    return [game.seat(0, seed, None, steps), *(game.step(action) for action in actions)]


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """But for rounding: a batch adds up in another order."""
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 2


def test_everybody_sees_what_they_would_alone(made_up: MakeUp) -> None:
    """Others come, play with other keys, and leave."""
    table, keys = players(made_up), [[1, 0], [0, 1], [0, 0], [1, 1], [1, 0]]
    expected = alone(made_up, 11, keys)
    seat, first = table.join(11)
    seen = [first.frame]
    for number, key in enumerate(keys):
        if number == 1:
            other, _ = table.join(12)
            table.hold(other, [1, 1])
        if number == 3:
            table.leave(other)
            table.join(13, spawn=2)
        table.hold(seat, key)
        seen.append(table.step()[seat].frame)
    assert all(near(one, two) for one, two in zip(seen, expected, strict=True))
    assert not near(seen[1], seen[3])


def test_each_has_its_own_steps(made_up: MakeUp) -> None:
    table, keys = players(made_up), [[1, 0], [0, 1]]
    seats = {steps: table.join(5, steps=steps)[0] for steps in (1, 2, 4)}
    expected = {steps: alone(made_up, 5, keys, steps) for steps in seats}
    for number, key in enumerate(keys, 1):
        for seat in seats.values():
            table.hold(seat, key)
        pictures = table.step()
        for steps, seat in seats.items():
            assert near(pictures[seat].frame, expected[steps][number]), steps
    assert not near(expected[1][-1], expected[4][-1])


def test_who_leaves_takes_their_steps_along(made_up: MakeUp) -> None:
    """An empty seat would hold everybody up."""
    table = players(made_up)
    slow, other = table.join(5, steps=64)[0], table.join(6)[0]
    assert table._game._each == [64, 2, 2]
    table.leave(slow)
    assert table._game._each is None
    assert table.step()[other].number == 1


def test_seats(made_up: MakeUp) -> None:
    table = players(made_up, 2)
    assert (table.seats, table.taken, table.step()) == (2, (), {})
    assert [table.join(seed)[0] for seed in (1, 2)] == [0, 1]
    with pytest.raises(OptionError, match="all 2 seats are taken"):
        table.join(3)
    table.leave(0)
    assert table.taken == (1,)
    for use in (lambda: table.leave(0), lambda: table.hold(0, [0, 0])):
        with pytest.raises(OptionError, match="nobody plays there"):
            use()
    assert table.join(4)[0] == 0
    assert [picture.number for picture in table.step().values()] == [1, 1]


def test_what_cannot_be(made_up: MakeUp) -> None:
    table = players(made_up)
    for wrong in ({"seed": -1}, {"seed": 0, "spawn": 99}, {"seed": 0, "steps": 0}):
        with pytest.raises(OptionError):
            table.join(**wrong)
    assert table.taken == ()
    seat, _ = table.join(0)
    with pytest.raises(ActionError):
        table.hold(seat, [2, 0])


def test_a_game_that_ends_starts_anew(made_up: MakeUp) -> None:
    table = Players(NeuralGame(telling(made_up, ends=9.0), "cpu", 1, batch=2, dtype="float32"))
    seat, _ = table.join(0)
    picture = table.step()[seat]
    assert picture.ended and picture.number == 1
    assert table.step()[seat].number == 2


def test_an_ended_game_is_shown_to_its_end_and_the_next_stands_at_a_start(made_up: MakeUp) -> None:
    checkpoint = telling(made_up, ends=9.0)
    game = NeuralGame(checkpoint, "cpu", 1, batch=2, dtype="float32")
    table = Players(game)
    seat, _ = table.join(0)
    assert checkpoint.spawns.frames is not None
    picture, starts = table.step()[seat], checkpoint.spawns.frames.numpy()
    assert picture.ended and not any(np.array_equal(picture.frame, start) for start in starts)
    assert any(np.array_equal(game.frame[seat], start) for start in starts)


def test_the_next_game_depends_on_nobody_else(made_up: MakeUp) -> None:
    """Who ends when beside one does not say where one starts anew."""

    def start_after(*others: int) -> np.ndarray:
        game = NeuralGame(made_up(), "cpu", 1, batch=3, dtype="float32")
        game.seat(0, 7)
        for other in others:
            game.respawn([other])
        return game.respawn([0])[0].copy()

    assert (start_after() == start_after(1, 2, 1)).all()
    game = NeuralGame(made_up(), "cpu", 1, dtype="float32")
    assert {game._spawn_of(7, frames) for frames in range(30)} == set(range(game.spawn_count))


def test_one_seat(made_up: MakeUp) -> None:
    table = players(made_up, 1)
    seat, first = table.join(0)
    assert table.step()[seat].frame.shape == first.frame.shape == (48, 80, 3)


def test_late_frames_are_dropped_not_queued() -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    clock = Clock(10, lambda: now[0], sleep)
    clock.wait()
    for took in (0.03, 0.35, 0.03):
        now[0] += took
        clock.wait()
    assert slept == pytest.approx([0, 0.07, 0.0, 0.07 - 0.05], abs=1e-9)
    assert clock.dropped == 2, "of the third frame's time two more had passed"
