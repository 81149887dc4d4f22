"""A play session without a window: how far it goes back, what it says, and what its times count."""

import numpy as np
import pytest
from fake_game import DEFEND, FakeGame

from engine.frame_times import FrameTimes
from engine.session import HISTORY_FRAMES, MESSAGE_SECONDS, PlaySession


def test_history_is_bounded():
    game = FakeGame()
    session = PlaySession(game)
    for _ in range(HISTORY_FRAMES + 20):
        session.advance(DEFEND.rest)
    session.hold_rewind()
    for _ in range(HISTORY_FRAMES + 40):
        session.advance(DEFEND.rest)
    assert game.number == 20


def test_messages_go_away():
    now = [0.0]
    session = PlaySession(FakeGame(), clock=lambda: now[0])
    session.quick_save()
    now[0] = 60.0  # the frame took a minute
    session.advance(DEFEND.rest)
    assert session.message == "saved (F9 loads)"
    now[0] += MESSAGE_SECONDS + 0.1
    assert session.message == ""


def test_frame_times_leave_out_pauses():
    now = [0.0]
    times = FrameTimes(lambda: now[0])

    def make_frame() -> np.ndarray:
        now[0] += 0.010
        return np.zeros(0)

    assert (times.fps(), times.percentiles()) == (0.0, (0.0, 0.0))
    for _ in range(10):
        times.measure(make_frame)
        now[0] += 0.010
    times.interrupt()
    now[0] += 100
    times.measure(make_frame)
    summary = times.summary()
    assert summary.frames == 11
    assert summary.seconds == pytest.approx(0.010 + 9 * 0.020 + 0.010)
    assert summary.p50_ms == pytest.approx(10)
    assert times.fps() == pytest.approx(summary.fps)
