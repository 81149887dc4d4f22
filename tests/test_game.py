"""NeuralGame: determinism, states, batches, starts, wrong input; and that the shipped checkpoint obeys its keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.errors import ActionError, CheckpointError, DeviceError, OptionError
from engine.game import NeuralGame
from gamengen.autoencoder import Autoencoder
from gamengen.checkpoints import Checkpoint, shipped_checkpoints
from gamengen.latents import weights_hash

KEYS = np.random.default_rng(0).integers(0, 2, (12, 2)).astype(np.float32)


@pytest.fixture(scope="module", params=["camera", "geometry", "tally", "geometry and tally"])
def checkpoint(made_up: Callable[..., Checkpoint], request: pytest.FixtureRequest) -> Checkpoint:
    return made_up(geometry="geometry" in request.param, tally="tally" in request.param)


@pytest.fixture
def make(checkpoint: Checkpoint) -> Callable[..., NeuralGame]:
    return lambda **options: NeuralGame(checkpoint, **{"device": "cpu", **options})


def play(game: NeuralGame, keys: np.ndarray = KEYS) -> np.ndarray:
    return np.stack([game.step(action) for action in keys])


def test_face(make: Callable[..., NeuralGame], checkpoint: Checkpoint) -> None:
    game = make(steps=1)
    assert game.frame.shape == (game.height, game.width, 3) == (48, 80, 3)
    frame = game.step([1, 0])
    assert frame.dtype == np.uint8
    assert frame.shape == (48, 80, 3)
    assert frame is game.frame
    assert (game.name, game.fps, game.steps, game.device_name) == ("made-up", 30.0, 1, "cpu")
    assert game.action_set == checkpoint.config.action_set
    assert game.spawn_count == 3


def test_the_same_seed_gives_the_same_frames(make: Callable[..., NeuralGame]) -> None:
    first, again, other = (play(make(seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_reseeding_is_as_good_as_new(make: Callable[..., NeuralGame]) -> None:
    game = make(seed=1)
    play(game)
    game.reseed(2)
    game.reset()
    new = make(seed=2)
    assert game.spawn == new.spawn
    np.testing.assert_array_equal(play(game), play(new))
    with pytest.raises(OptionError, match="--seed"):
        game.reseed(-1)


def test_noise_and_keys_matter(make: Callable[..., NeuralGame]) -> None:
    games = [make(seed=seed) for seed in (1, 1, 2)]
    for game in games:
        game.reset(0)
    held, other, noise = (game.step(action) for game, action in zip(games, ([1, 0], [0, 1], [1, 0]), strict=True))
    assert (held != other).any(), "the key held now"
    assert (held != noise).any(), "the seed"


def test_the_key_before_matters_too(make: Callable[..., NeuralGame]) -> None:
    frames = []
    for first in ([1, 0], [0, 1]):
        game = make()
        game.reset(0)
        latents = game._latents
        game.step(first)
        game._latents = latents  # the same pictures, another memory of keys
        frames.append(game.step([0, 0]))
    assert (frames[0] != frames[1]).any()


def test_more_steps_give_another_frame(make: Callable[..., NeuralGame]) -> None:
    one, four = make(steps=1), make(steps=4)
    for game in (one, four):
        game.reset(0)
    assert (one.step([1, 0]) != four.step([1, 0])).any()
    one.steps = 4
    assert one.steps == 4
    for game in (one, four):
        game.reset(0)
    np.testing.assert_array_equal(one.step([0, 1]), four.step([0, 1]))


def test_save_and_load(make: Callable[..., NeuralGame]) -> None:
    game = make()
    play(game, KEYS[:3])
    state = game.save()
    shown, spawn = game.frame.copy(), game.spawn
    first = play(game)
    game.reset()
    np.testing.assert_array_equal(game.load(state), shown)
    assert game.spawn == spawn
    np.testing.assert_array_equal(play(game), first)
    np.testing.assert_array_equal(make().load(state), shown)  # in another game of the same seed as well
    assert sum(part.nbytes for part in (state.latents, state.actions, state.frame)) < 500_000


def test_a_loaded_state_goes_on_with_its_own_seed(make: Callable[..., NeuralGame]) -> None:
    game = make()
    state = game.save()
    first = play(game)
    game.reseed(9)
    game.load(state)
    np.testing.assert_array_equal(play(game), first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_must_be_exact_is_not_rounded(make: Callable[..., NeuralGame], checkpoint: Checkpoint, dtype: str) -> None:
    game = make(dtype=dtype)
    if checkpoint.geometry is not None:
        assert game._geometry is not None
        assert weights_hash(game._geometry.camera) == weights_hash(checkpoint.geometry.camera)
    else:
        assert game._autoencoder.compensation is not None and checkpoint.autoencoder.compensation is not None
        camera = checkpoint.autoencoder.compensation.camera
        assert weights_hash(game._autoencoder.compensation.camera) == weights_hash(camera)
    if checkpoint.tally is not None:
        assert game._teller is not None
        assert torch.equal(game._teller.pictures, checkpoint.tally.pictures)
    assert game._denoiser.last.weight.dtype == getattr(torch, dtype)


def test_a_state_is_not_changed_by_play(make: Callable[..., NeuralGame]) -> None:
    game = make()
    state = game.save()
    copies = state.latents.clone(), state.actions.clone(), state.frame.copy()
    play(game)
    game.load(state)
    play(game)
    game.frame[:] = 0
    assert torch.equal(state.latents, copies[0])
    assert torch.equal(state.actions, copies[1])
    np.testing.assert_array_equal(state.frame, copies[2])


def test_a_state_of_another_game_is_refused(
    make: Callable[..., NeuralGame], made_up: Callable[..., Checkpoint]
) -> None:
    game = make()
    for other in (make(batch=2), NeuralGame(made_up(64, 80), "cpu")):
        with pytest.raises(OptionError, match="another game"):
            game.load(other.save())


def test_batch(make: Callable[..., NeuralGame]) -> None:
    one, other = make(batch=3), make(batch=3)
    assert one.frame.shape == (3, 48, 80, 3)
    keys = np.zeros((3, 2), np.float32)
    changed = keys.copy()
    changed[1] = [1, 1]
    for _ in range(3):
        first, second = one.step(keys), other.step(changed)
    assert first.shape == (3, 48, 80, 3)
    same = [(a == b).all() for a, b in zip(first, second, strict=True)]
    assert same == [True, False, True], "games of a batch do not touch one another"
    state = one.save()
    np.testing.assert_array_equal(one.step(keys), (one.load(state), one.step(keys))[1])
    assert one.reset(1).shape == (3, 48, 80, 3)


def test_spawns(make: Callable[..., NeuralGame]) -> None:
    game = make()
    starts = [game.reset(spawn).copy() for spawn in range(3)]
    assert game.spawn == 2
    assert all((starts[a] != starts[b]).any() for a, b in ((0, 1), (1, 2), (0, 2)))
    np.testing.assert_array_equal(game.reset(0), starts[0])
    for _ in range(20):
        before = game.spawn
        game.reset()
        assert game.spawn != before, "a new start is not the same once more"
    for spawn in (-1, 3, 99):
        with pytest.raises(OptionError, match=f"no such spawn ; {spawn} ; use 0 to 2"):
            game.reset(spawn)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reset_from_frames(make: Callable[..., NeuralGame], dtype: str) -> None:
    game = make(dtype=dtype)
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 80, 3), np.uint8)
    actions = np.ones((4, 2), np.float32)
    shown = game.reset(frames=frames, actions=actions)
    assert shown.shape == (48, 80, 3)
    assert game.spawn == -1
    game.step([0, 0])
    np.testing.assert_array_equal(actions, 1.0), "what was given is not written to"
    first = game.reset(frames=frames).copy()
    np.testing.assert_array_equal(first, shown)
    frames[-1] = 255 - frames[-1]
    assert (game.reset(frames=frames) != first).any(), "the last frame is on screen"


def test_what_is_drawn_on_a_frame_is_not_seen_by_the_game(make: Callable[..., NeuralGame]) -> None:
    """The decoder sees the frame before; a window draws on the one that it was given."""
    expected = play(make())
    game = make()
    for number, key in enumerate(KEYS):
        game.frame[:] = 0
        np.testing.assert_array_equal(game.step(key), expected[number])


def test_the_frame_before_matters(make: Callable[..., NeuralGame]) -> None:
    first, other = (make() for _ in range(2))
    state = other.save()
    other.load(replace(state, frame=255 - state.frame))
    assert (first.step(KEYS[0]) != other.step(KEYS[0])).any()


def test_a_spawn_shows_its_own_frame(make: Callable[..., NeuralGame], checkpoint: Checkpoint) -> None:
    assert checkpoint.spawns.frames is not None
    for spawn in range(2):
        np.testing.assert_array_equal(make().reset(spawn), checkpoint.spawns.frames[spawn].numpy())


def test_a_decoder_that_sees_its_latent_alone(made_up: Callable[..., Checkpoint]) -> None:
    """As checkpoints were before motion compensation."""
    checkpoint = made_up()
    config = replace(checkpoint.config.autoencoder, compensation=0)
    alone = Autoencoder(config).eval()
    alone.load_state_dict({k: v for k, v in checkpoint.autoencoder.state_dict().items() if "compensation" not in k})
    spawns = replace(checkpoint.spawns, frames=None)
    plain = replace(
        checkpoint, config=replace(checkpoint.config, autoencoder=config), autoencoder=alone, spawns=spawns
    )  # fmt: skip
    game = NeuralGame(plain, "cpu", dtype="float32")
    state = game.save()
    shown = game.step(KEYS[0])
    game.load(replace(state, frame=255 - state.frame))
    np.testing.assert_array_equal(game.step(KEYS[0]), shown)


def test_wrong_start_frames(make: Callable[..., NeuralGame]) -> None:
    game = make()
    good = np.zeros((4, 48, 80, 3), np.uint8)
    for frames in (good[:3], good[:, :32], good.astype(np.float32), good[0]):
        with pytest.raises(OptionError, match=r"start frames must be \(4, 48, 80, 3\) uint8"):
            game.reset(frames=frames)
    for actions in (np.zeros((3, 2)), np.zeros((4, 3)), np.full((4, 2), np.nan)):
        with pytest.raises(ActionError):
            game.reset(frames=good, actions=actions)


@pytest.mark.parametrize(
    "action", [[1], [1, 0, 0], [], 1, None, "left", [[1, 0]], [np.nan, 0], [np.inf, 0], [2, 0], ["LEFT", 0]]
)
def test_wrong_actions(make: Callable[..., NeuralGame], action: Any) -> None:
    game, fresh = make(), make()
    with pytest.raises(ActionError) as caught:
        game.step(action)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(game.step([1, 0]), fresh.step([1, 0]))  # and nothing has happened


def test_wrong_actions_for_a_batch(make: Callable[..., NeuralGame]) -> None:
    game = make(batch=2)
    for action in ([1, 0], [[1, 0]], np.zeros((3, 2))):
        with pytest.raises(ActionError, match="one action for each of 2 games"):
            game.step(action)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"steps": 0}, OptionError, "steps must be 1 to 64, got 0 ; --steps"),
        ({"steps": 65}, OptionError, "steps must be 1 to 64"),
        ({"batch": 0}, OptionError, "--batch"),
        ({"seed": -1}, OptionError, "--seed"),
        ({"seed": 2**40}, OptionError, "--seed"),
        ({"dtype": "float16"}, OptionError, "use auto, bfloat16 or float32"),
        ({"device": "tpu"}, DeviceError, "use auto, cpu or cuda"),
        ({"device": "meta"}, DeviceError, "not supported"),
        ({"device": "cuda:99"}, DeviceError, "CUDA"),
    ],
)
def test_wrong_options(make: Callable[..., NeuralGame], options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make(**options)


def test_unknown_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        NeuralGame("nonsense", "cpu")


def test_games_of_one_checkpoint_do_not_disturb_each_other(
    make: Callable[..., NeuralGame], checkpoint: Checkpoint
) -> None:
    precise = make(dtype="float32")
    expected = play(make(dtype="float32"))
    play(make(dtype="bfloat16"))
    np.testing.assert_array_equal(play(precise), expected)
    np.testing.assert_array_equal(play(make(dtype="float32")), expected)
    assert {parameter.dtype for parameter in checkpoint.denoiser.parameters()} == {torch.float32}


def test_a_trained_game_plays(tiny: Path) -> None:
    game = NeuralGame(tiny, "cpu", seed=4)
    assert game.action_set.buttons == ("MOVE_LEFT", "MOVE_RIGHT", "ATTACK")
    for _ in range(3):
        frame = game.step(game.action_set.encode(["ATTACK"]))
    assert frame.shape == (240, 320, 3)
    assert frame.std() > 5, "a picture, not one colour"


# --- the checkpoints that are shipped ---

SPAWNS = 6


@pytest.fixture(scope="module", params=shipped_checkpoints())
def doom(request: pytest.FixtureRequest) -> NeuralGame:
    return NeuralGame(request.param, "cpu", steps=2, seed=0)


def hold(game: NeuralGame, spawn: int, keys: list[str], frames: int, rest: int = 2) -> np.ndarray:
    """The frame before ``keys`` were held and the ones after; nothing is held for ``rest`` frames before."""
    game.reset(spawn)
    for _ in range(rest):
        game.step(game.action_set.rest)
    return np.stack([game.frame, *(game.step(game.action_set.encode(keys)) for _ in range(frames))])


def test_shipped_keys_change_the_next_frame(doom: NeuralGame) -> None:
    keys = {"TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT"}
    for spawn in range(min(SPAWNS, doom.spawn_count)):
        doom.reset(spawn)
        state = doom.save()
        nothing = doom.step(doom.action_set.rest)
        for key in keys & set(doom.action_set.buttons):
            doom.load(state)
            moved = np.abs(doom.step(doom.action_set.encode([key])).astype(int) - nothing).mean()
            assert moved > (1.0 if key.startswith("TURN") else 0.3), (spawn, key)


def unroll(frame: np.ndarray) -> np.ndarray:
    """The wall of ``frame`` by angle: columns of equal angle, rows as seen from the room's middle, details alone."""
    angles = np.linspace(-np.pi / 4, np.pi / 4, 322)[1:-1]  # the view is 90 degrees wide
    columns = 159.5 + 160 * np.tan(angles)
    left = np.clip(columns.astype(int), 0, 318)
    grey = frame.astype(np.float32).mean(-1)
    strip = grey[:, left] + (columns - left) * (grey[:, left + 1] - grey[:, left])
    rows = (104 + np.arange(-45, 10)[:, None] / np.cos(angles)).astype(int)  # the horizon is at row 104
    wall = strip[rows, np.arange(320)]
    smooth = np.stack([np.convolve(row, np.full(31, 1 / 31), "same") for row in wall])
    return (wall - smooth)[:, 16:-16]


def likeness(before: np.ndarray, after: np.ndarray) -> dict[int, float]:
    """Correlation of the wall in both frames, by how far the scene moves to the right: steps of 0.28 degrees."""
    one, other = unroll(before), unroll(after)
    width, found = one.shape[1], {}
    for shift in range(-34, 35):
        a = one[:, max(0, -shift) : width - max(0, shift)]
        b = other[:, max(0, shift) : width + min(0, shift)]
        found[shift] = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    return found


def test_likeness_finds_a_turn() -> None:
    """What measures the turn is right itself: a made-up wall of random stones, seen before and after a turn."""
    rng = np.random.default_rng(0)
    stones = np.kron(rng.integers(60, 200, (1, 400)), np.ones((240, 3)))
    angles = np.arctan((np.arange(320) - 159.5) / 160)

    def look(direction: float) -> np.ndarray:
        at = 600 + (angles + direction) / (np.pi / 2 / 320)
        return np.repeat(stones[:, at.astype(int)][..., None], 3, axis=2).astype(np.uint8)

    for degrees in (3.5, -3.5, 7.0, 0.0):  # of a turn to the right, where that is positive
        found = likeness(look(0), look(np.radians(degrees)))
        assert max(found, key=lambda shift: found[shift]) == pytest.approx(-degrees / 90 * 320, abs=1.5)


@pytest.mark.parametrize(("key", "side"), [("TURN_LEFT", 1), ("TURN_RIGHT", -1)])
def test_shipped_turns_the_right_way(doom: NeuralGame, key: str, side: int) -> None:
    """Turning left moves the scene to the right, and the other way round: by 3.5 degrees a frame, later by 7."""
    scores = []
    for spawn in range(min(8, doom.spawn_count)):
        frames = hold(doom, spawn, [key], 5)
        for before, after in itertools.pairwise(frames):
            found = likeness(before, after)
            scores.append(max(found[side * s] for s in range(8, 31)) - max(found[-side * s] for s in range(8, 31)))
    assert np.mean(scores) > 0.025, scores
    assert np.mean(np.array(scores) > 0) > 0.6, scores


# Of so many spawns, the share that flashes: in the second game one may hold a fist, or no ammunition.
FLASHES = {"defend_the_center": (8, 0.6), "deathmatch": (24, 0.35)}


def flash(frames: np.ndarray) -> np.ndarray:
    """Bright orange or white pixels above the gun, in each frame."""
    box = frames[:, 100:150, 135:185].astype(int)
    return ((box[..., 0] > 200) & (box[..., 1] > 120)).sum(axis=(1, 2))


def test_shipped_fire_flashes(doom: NeuralGame) -> None:
    """The real game's pistol flashes by the third frame after the key, with 430 such pixels; else hardly any are."""
    count, share = FLASHES[doom.name]
    flashes = 0
    for spawn in range(count):
        fired, still = (flash(hold(doom, spawn, keys, 4)[1:]) for keys in (["ATTACK"], []))
        flashes += bool((fired > 150).any() and (fired > still + 100).any())
    assert flashes > share * count, f"{flashes} of {count}"
