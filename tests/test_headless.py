"""Playing without a window."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest
from fake_game import DEFEND, FakeGame

from agents.errors import ActionError, DataError, OptionError
from engine.headless import HeadlessOptions, load_actions, play_headless


def read_video(path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def test_random_play_repeats_with_its_seed():
    games = [FakeGame() for _ in range(3)]
    for game, seed in zip(games, (1, 1, 2), strict=True):
        summary = play_headless(game, HeadlessOptions(200, seed=seed))
        assert summary.frames == len(game.actions) == 200
        assert summary.files == ()
    first, second, other = (np.stack(game.actions) for game in games)
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert first.any(axis=0).all(), "all keys are pressed now and then"


def test_a_game_that_ends_gives_way_to_the_next(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([[]] * 9))
    for actions, longest in (("none", 3), (str(path), 9)):
        game, numbers = FakeGame(), []
        step = game.step

        def ending(action, game=game, step=step, numbers=numbers):
            step(action)
            numbers.append(game.number)
            game.ended = np.array([game.number == 3])
            return game.frame

        game.step = ending
        assert play_headless(game, HeadlessOptions(9, actions=actions)).frames == 9
        assert max(numbers) == longest, "a list of keys goes on with the game that it is of"


def test_no_keys():
    game = FakeGame()
    play_headless(game, HeadlessOptions(5, actions="none"))
    assert not np.stack(game.actions).any()


@pytest.mark.parametrize("draw_keys", [True, False])
def test_the_video_holds_every_frame(tmp_path, draw_keys):
    game, path = FakeGame(height=96, width=128), tmp_path / "out" / "play.mp4"
    summary = play_headless(game, HeadlessOptions(12, path, "none", draw_keys=draw_keys))
    frames = read_video(path)
    assert frames.shape == (12, 96, 128, 3)
    assert summary.files == (str(path),)
    near = np.abs(frames[-1].astype(int) - game.frame)
    assert np.median(near) < 12
    assert (near[:32, :32].max() > 60) == draw_keys, "key caps are at the top left"


def test_names_or_numbers_from_a_json_file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([["TURN_LEFT", "ATTACK"], [], [0, 1, 0]]))
    game = FakeGame()
    play_headless(game, HeadlessOptions(3, actions=str(path)))
    np.testing.assert_array_equal(np.stack(game.actions), [[1, 0, 1], [0, 0, 0], [0, 1, 0]])


def test_numbers_from_an_npy_file(tmp_path):
    actions = np.eye(3, dtype=np.float64)
    np.save(tmp_path / "keys.npy", actions)
    loaded = load_actions(tmp_path / "keys.npy", DEFEND)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, actions)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ('[["TURN_LEFT"], ["JUMP"]]', ActionError, "frame 1: JUMP ; use TURN_LEFT, TURN_RIGHT, ATTACK"),
        ("[[0, 1, 0], [0, 1]]", ActionError, "frame 1: shape (2,)"),
        ("[[0, NaN, 0]]", ActionError, "finite"),
        ("[[0, 9, 0]]", ActionError, "[-1, 1]"),
        ('[[0, "ATTACK", 0]]', ActionError, "numbers"),
        ("[[[0, 1, 0]]]", ActionError, "flat list"),
        ("[3]", ActionError, "shape ()"),
        ("[]", ActionError, "no actions"),
        ("{}", OptionError, "not a list"),
        ("[[0, 1", OptionError, "cannot read"),
    ],
)
def test_bad_json(tmp_path, text, error, words):
    path = tmp_path / "keys.json"
    path.write_text(text)
    game = FakeGame()
    with pytest.raises(error) as caught:
        play_headless(game, HeadlessOptions(1, tmp_path / "x.mp4", str(path)))
    message = str(caught.value)
    assert words in message
    assert str(path) in message
    assert "\n" not in message
    assert game.actions == []
    assert not (tmp_path / "x.mp4").exists()


def test_bad_npy(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "wide.npy", np.zeros((2, 4)))
    np.save(tmp_path / "nan.npy", np.full((2, 3), np.nan))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "junk.npy").write_bytes(b"\x93NUMPY junk")
    whole = (tmp_path / "wide.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-9])
    for name in ("flat", "pickle", "junk", "cut"):
        with pytest.raises(OptionError, match=f"cannot read.*{name}.npy"):
            load_actions(tmp_path / f"{name}.npy", DEFEND)
    for name in ("wide", "nan"):
        with pytest.raises(ActionError, match=f"{name}.npy, frame 0"):
            load_actions(tmp_path / f"{name}.npy", DEFEND)


def test_too_few_actions(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text("[[], []]")
    with pytest.raises(ActionError, match=r"2 actions for 3 frames.*--frames 2"):
        play_headless(FakeGame(), HeadlessOptions(3, actions=str(path)))


def test_bad_options(tmp_path):
    with pytest.raises(OptionError, match="no such file of actions ; rnadom ; give random, none"):
        play_headless(FakeGame(), HeadlessOptions(1, actions="rnadom"))
    for frames in (0, -3):
        with pytest.raises(OptionError, match=f"got {frames} ; --frames"):
            HeadlessOptions(frames)
    with pytest.raises(OptionError, match=r"\.mp4"):
        HeadlessOptions(1, tmp_path / "play.avi")
    (tmp_path / "file").touch()
    with pytest.raises(DataError):
        play_headless(FakeGame(), HeadlessOptions(1, tmp_path / "file" / "play.mp4"))


def test_pygame_is_not_needed():
    code = "import sys, engine.headless; sys.exit('pygame' in sys.modules or 'vizdoom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
