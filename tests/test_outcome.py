"""The outcome head: what it is taught, what it learns, and what the game makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_game import FakeGame

import gamengen.train_outcome
import gamengen.training
from agents.actions import ActionSet
from agents.errors import CheckpointError, OptionError
from engine.environment import NeuralGameEnv
from engine.game import NeuralGame
from engine.session import RESPAWN_SECONDS, PlaySession
from gamengen.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from gamengen.diffusion import SamplerConfig
from gamengen.free_plays import FreePlays
from gamengen.latents import LatentEpisodes, weights_hash
from gamengen.outcome import Outcome, OutcomeConfig, OutcomeHead, level_bins, reward_bins, two_hot
from gamengen.player import Player
from gamengen.train_outcome import OutcomeTask, Results, find_results, outcome_config, score_outcomes, trusted
from gamengen.training import Trainer, TrainOptions
from recorder.episodes import EpisodeWriter
from recorder.recording import Recording, RecordingHeader

VARIABLES = ("HEALTH", "ARMOR", "KILLCOUNT")
ACTIONS = ActionSet(("LEFT", "RIGHT"))


def record(folder: Path, episodes: int = 6, length: int = 20) -> Recording:
    """Health falls by ten at every fifth frame, a kill is counted at frame 7 for the reward of frame 6's step, and
    death costs one; every other episode only runs out of time."""
    header = RecordingHeader("gym/stripes", ACTIONS, 32, 48, 1, 30.0, VARIABLES, {"random": ""}, 0, {})
    recording = Recording.create_or_resume(folder, header)
    for number in range(episodes):
        with EpisodeWriter(recording.episode_path(number), 32, 48, 2, VARIABLES, number, "random") as writer:
            for n in range(length):
                reward = 1.0 if n == 6 else -1.0 if n == length - 1 and number % 2 else 0.0
                values = {"HEALTH": 100.0 - 10 * (n // 5), "ARMOR": 0.0, "KILLCOUNT": float(n >= 7)}
                writer.append(np.full((32, 48, 3), n, np.uint8), ACTIONS.rest, reward, values)
            writer.finish(terminated=bool(number % 2), truncated=not number % 2)
    return recording


def telling_latents(recording: Recording, seed: int = 0) -> tuple[LatentEpisodes, LatentEpisodes]:
    """Latents (C = 8, 2 by 3) that show the frame's number in binary."""
    parts = []
    lengths = [info.frames for info in recording.episodes()]
    for part in (lengths[1:], lengths[:1]):
        numbers = np.concatenate([np.arange(length) for length in part])
        bits = (numbers[:, None] >> np.arange(8)) & 1
        latents = torch.from_numpy(2.0 * bits - 1)[:, :, None, None].expand(-1, -1, 2, 3)
        parts.append(LatentEpisodes(latents.half().contiguous(), torch.zeros(len(numbers), 2), tuple(part)))
    return parts[0], parts[1]


@pytest.mark.parametrize("bins", [reward_bins(), level_bins()])
def test_two_neighbours_share_a_value(bins: torch.Tensor) -> None:
    values = torch.linspace(float(bins[0]) * 0.999, float(bins[-1]) * 0.999, 301).view(7, 43)
    shares = two_hot(values, bins)
    assert shares.shape == (7, 43, len(bins))
    torch.testing.assert_close(shares.sum(-1), torch.ones(7, 43))
    torch.testing.assert_close(shares @ bins, values, rtol=1e-4, atol=1e-3)
    for share in shares.flatten(0, 1):
        at = share.nonzero()[:, 0]
        assert len(at) <= 2 and at[-1] - at[0] <= 1


def test_values_out_of_reach_go_to_the_last_bin() -> None:
    assert two_hot(torch.tensor([1e9, -1e9]), reward_bins())[[0, 1], [-1, 0]].tolist() == [1, 1]


def test_what_varies_is_told(tmp_path: Path) -> None:
    recording = record(tmp_path / "data")
    config = outcome_config(recording, telling_latents(recording)[0])
    assert (config.levels, config.scales, config.counters) == (("HEALTH",), (100.0,), ("KILLCOUNT",))
    assert (config.channels, config.height, config.width, config.actions) == (8, 2, 3, 2)


def test_a_game_without_variables_tells_reward_and_end(
    make_recording: Callable[..., Recording], tmp_path: Path
) -> None:
    recording = make_recording(tmp_path / "data")
    config = outcome_config(recording, LatentEpisodes(torch.zeros(1, 8, 2, 3), torch.zeros(1, 2), (1,)))
    assert (config.levels, config.counters) == ((), ())
    assert OutcomeHead(config).read(*torch.zeros(2, 1, 8, 2, 3), torch.zeros(1, 2)).levels == {}


def test_results_stand_at_the_frame_they_led_to(tmp_path: Path) -> None:
    """By the alignment law, what step 6 earned shows at frame 7; the last step, which no frame follows, at the last."""
    recording = record(tmp_path / "data")
    train, held_out = find_results(recording, outcome_config(recording, telling_latents(recording)[0]))
    assert (len(train.rewards), len(held_out.rewards)) == (100, 20)
    assert train.rewards.view(5, 20).nonzero().tolist() == [
        [0, 7], [0, 19], [1, 7], [2, 7], [2, 19], [3, 7], [4, 7], [4, 19]
    ]  # fmt: skip
    assert train.rewards.view(5, 20)[:, [7, 19]].tolist() == [[1, -1], [1, 0], [1, -1], [1, 0], [1, -1]]
    assert train.ends.nonzero()[:, 0].tolist() == [19, 59, 99]
    assert train.rises[:, 0].nonzero()[:, 0].tolist() == [7, 27, 47, 67, 87]
    assert train.levels[[0, 5, 19], 0].tolist() == pytest.approx([1.0, 0.9, 0.7])
    assert set(range(100)) - set(train.usable.tolist()) == {0, 20, 40, 60, 80}


def test_it_learns_what_the_latents_show(tmp_path: Path) -> None:
    recording = record(tmp_path / "data")
    train, held_out = telling_latents(recording)
    config = replace(outcome_config(recording, train), features=16)
    results = find_results(recording, config)
    torch.manual_seed(0)
    task = OutcomeTask(OutcomeHead(config), (train, results[0]), (held_out, results[1]), 0, 64)
    blank = torch.zeros(1, *train.latents.shape[1:])
    assert task.head.read(blank, blank, torch.zeros(1, 2)).ends == pytest.approx(0.03), "at first, the recording's rate"
    figures = Trainer(task, TrainOptions(steps=500, ema=0.9), tmp_path / "outcome").run()
    assert figures["reward_error"] < figures["reward_error_zero"]
    assert figures["HEALTH_error"] < 2
    assert figures["KILLCOUNT_auc"] > 0.99
    assert figures["KILLCOUNT_expected"] == pytest.approx(1, abs=0.2)
    told = task.head.read(train.latents[[18, 6, 9]].float(), train.latents[[19, 7, 10]].float(), torch.zeros(3, 2))
    assert told.reward == pytest.approx([-0.6, 1, 0], abs=0.2)
    ends = told.ends
    assert ends[0] == pytest.approx(0.6, abs=0.2), "three of five such frames were the last: so likely is the end"
    assert ends[1:].max() < 0.05


class Negating(Player):
    """Plays whose latents are the negatives of those that the recording has in their place."""

    def advance(self, plays: FreePlays, generator: torch.Generator, together: bool = True) -> None:
        def sample(context: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            newest = context[:, -1, :, 0, 0]
            recorded = newest * -newest[:, 7:].sign()  # the highest bit of so small a number is 0
            number = ((recorded > 0) << torch.arange(8)).sum(1, keepdim=True)
            bits = ((number + 1) >> torch.arange(8)) & 1
            return (1.0 - 2 * bits)[:, :, None, None].expand(-1, -1, 2, 3)

        plays.advance(sample)


def negating(made_up: Callable[..., Checkpoint]) -> Player:
    return Negating(made_up().denoiser, SamplerConfig(1))


def test_it_learns_what_its_own_frames_show(made_up: Callable[..., Checkpoint], tmp_path: Path) -> None:
    recording = record(tmp_path / "data")
    latents = telling_latents(recording)
    config = replace(outcome_config(recording, latents[0]), features=16)
    train, held_out = zip(latents, find_results(recording, config), strict=True)
    found = {}
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gamengen.train_outcome, "PLAYED_WEIGHT", weight)
            task = OutcomeTask(OutcomeHead(config), train, held_out, 0, 64, negating(made_up))
            found[weight] = Trainer(task, TrainOptions(steps=400, ema=0.9), tmp_path / str(weight)).run()
    assert found[0.0]["played_HEALTH_error"] > 5
    assert found[0.5]["played_HEALTH_error"] < 2.5
    assert found[0.5]["HEALTH_error"] < 2.5, "recorded frames are read as well"
    assert found[0.5]["played_ends"] < 0.1, "held-out episodes only run out of time"
    assert found[0.5]["played_ends_real"] == 0


def test_resumed_with_its_plays_it_is_the_same(
    made_up: Callable[..., Checkpoint], train_until: Callable[..., Trainer], tmp_path: Path
) -> None:
    recording = record(tmp_path / "data")
    latents = telling_latents(recording)
    config = replace(outcome_config(recording, latents[0]), features=16)
    train, held_out = zip(latents, find_results(recording, config), strict=True)

    def make_task() -> OutcomeTask:
        torch.manual_seed(0)
        return OutcomeTask(OutcomeHead(config), train, held_out, 0, 16, negating(made_up))

    whole, stopped, resumed = make_task(), make_task(), make_task()
    Trainer(whole, TrainOptions(steps=8), tmp_path / "whole").run()
    train_until(stopped, TrainOptions(steps=8), tmp_path / "parts", 5)
    Trainer(resumed, TrainOptions(steps=8), tmp_path / "parts").run()
    assert weights_hash(resumed.model) == weights_hash(whole.model)


def telling(made_up: Callable[..., Checkpoint], ends: float = 0.0, **changes: Any) -> Checkpoint:
    """A checkpoint whose head says the reward 1, ends with the logit ``ends``, and half a health of 100."""
    config = OutcomeConfig(8, 2, 3, 5, ("HEALTH",), (100.0,), ("KILLCOUNT",), features=8)
    head, plain = OutcomeHead(config), made_up(**changes)
    with torch.no_grad():
        reward = two_hot(torch.tensor(1.0), reward_bins()).clamp(min=1e-9).log()
        head.last.bias.copy_(torch.cat([reward, torch.tensor([ends, 0.0]), torch.zeros(len(level_bins()))]))
    return replace(plain, config=replace(plain.config, outcome=config), outcome=head.eval())


def test_saved_and_loaded_it_says_the_same(made_up: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = telling(made_up)
    save_checkpoint(checkpoint, tmp_path / "game", "")
    loaded = load_checkpoint(tmp_path / "game")
    assert loaded.config.outcome == checkpoint.config.outcome
    inputs = (torch.randn(1, 8, 3, 5), torch.randn(1, 8, 3, 5), torch.zeros(1, 2))
    assert checkpoint.outcome is not None and loaded.outcome is not None
    assert loaded.outcome.read(*inputs).reward == pytest.approx(checkpoint.outcome.read(*inputs).reward, rel=1e-2)

    (tmp_path / "game" / "outcome.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint(tmp_path / "game")


@pytest.mark.parametrize("change", [{"channels": 9}, {"scales": [0.0]}, {"levels": []}, {"width": 4}, {"nonsense": 1}])
def test_a_config_that_does_not_fit(change: dict[str, Any], made_up: Callable[..., Checkpoint], tmp_path: Path) -> None:
    save_checkpoint(telling(made_up), tmp_path / "game", "")
    path = tmp_path / "game" / "config.json"
    config = json.loads(path.read_text())
    config["outcome"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "game")


def test_a_config_refuses_nonsense() -> None:
    with pytest.raises(OptionError):
        OutcomeConfig(8, 2, 3, 5, ("HEALTH",), ())
    with pytest.raises(OptionError):
        OutcomeConfig(8, 0, 3, 5)


def test_the_game_tells_what_a_step_came_to(made_up: Callable[..., Checkpoint]) -> None:
    game = NeuralGame(telling(made_up, ends=-9.0), "cpu", dtype="float32")
    assert game.tells_outcome and game.outcome is None
    game.step([1, 0])
    outcome = game.outcome
    assert outcome is not None
    assert outcome.reward == pytest.approx([1.0], rel=1e-3)
    assert outcome.rises["KILLCOUNT"] == pytest.approx([0.5])
    assert outcome.levels["HEALTH"] == pytest.approx([50.0], rel=1e-3)
    assert not game.ended.any()
    state = game.save()
    game.load(state)
    assert game.outcome is None


def test_games_end_as_often_as_the_head_says_and_alike_for_the_same_seed(made_up: Callable[..., Checkpoint]) -> None:
    checkpoint, ends = telling(made_up, ends=-1.0), []
    for seed in (3, 3, 4):
        game = NeuralGame(checkpoint, "cpu", 1, seed, batch=8, dtype="float32")
        ends.append(np.stack([game.step(np.zeros((8, 2))) is not None and game.ended for _ in range(40)]))
    assert (ends[0] == ends[1]).all()
    assert (ends[0] != ends[2]).any()
    assert np.mean(ends) == pytest.approx(1 / (1 + np.e), abs=0.05)


def test_a_game_of_a_batch_starts_anew_and_the_others_go_on(made_up: Callable[..., Checkpoint]) -> None:
    games = [NeuralGame(telling(made_up), "cpu", 1, batch=3, dtype="float32") for _ in range(2)]
    for game in games:
        for _ in range(3):
            game.step(np.ones((3, 2)))
    before = games[0].frame.copy()
    shown = games[0].respawn([1])
    assert np.array_equal(shown[[0, 2]], before[[0, 2]])
    spawns = made_up().spawns
    assert spawns.frames is not None
    assert any(np.array_equal(shown[1], frame) for frame in spawns.frames.numpy())
    after = [game.step(np.ones((3, 2))) for game in games]
    assert np.array_equal(after[0][[0, 2]], after[1][[0, 2]]), "they do not notice"
    assert not np.array_equal(after[0][1], after[1][1])


def test_the_environment_gives_reward_and_end(made_up: Callable[..., Checkpoint]) -> None:
    env = NeuralGameEnv(telling(made_up, ends=9.0), "cpu", 1)
    _, info = env.reset(seed=0)
    assert info["outcome"] == "predicted"
    _, reward, terminated, truncated, info = env.step(env.action_set.rest)
    assert reward == pytest.approx(1.0, rel=0.02)  # bfloat16
    assert terminated and not truncated
    assert info["levels"]["HEALTH"] == pytest.approx(50, rel=0.02)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def dying(frames: int) -> tuple[PlaySession, FakeGame, Clock]:
    """A session whose game ends at its frame number ``frames``, after as many kills."""
    game, clock = FakeGame(), Clock()
    step = game.step

    def ending(action: np.ndarray) -> np.ndarray:
        frame = step(action)
        game.outcome = Outcome(np.ones(1), np.ones(1), {"KILLCOUNT": np.ones(1)})
        game.ended = np.array([game.number == frames])
        return frame

    game.step = ending  # type: ignore[method-assign]
    return PlaySession(game, clock=clock), game, clock


def test_the_end_is_shown_and_the_next_game_starts() -> None:
    session, game, clock = dying(3)
    for _ in range(3):
        assert session.playing
        session.advance(game.action_set.rest)
    assert session.over and not session.playing
    assert "game over: 3 kills, 3 frames" in session.message
    played = len(game.actions)
    clock.now += 0.9 * RESPAWN_SECONDS
    session.advance(game.action_set.rest)
    assert len(game.actions) == played, "it waits"
    clock.now += 0.2 * RESPAWN_SECONDS
    session.advance(game.action_set.rest)
    assert not session.over
    assert session.tally.frames == 1 and len(game.actions) == played + 1


def test_the_next_game_does_not_start_behind_the_help() -> None:
    session, game, clock = dying(3)
    for _ in range(3):
        session.advance(game.action_set.rest)
    session.toggle_help()
    clock.now += 2 * RESPAWN_SECONDS
    session.advance(game.action_set.rest)
    assert session.over
    session.toggle_help()
    session.advance(game.action_set.rest)
    assert not session.over


def test_nobody_goes_back_to_where_the_game_is_over() -> None:
    """Where the next game has begun, Backspace and F9 lead to the last moments before the end."""
    session, game, _ = dying(3)
    for frame in range(3):
        session.quick_save()
        assert "saved" in session.message
        session.advance(game.action_set.rest)
        assert session.over == (frame == 2)
    session.quick_save()
    assert "not saved" in session.message
    session.respawn()
    assert not session.over
    session.hold_rewind()
    session.advance(game.action_set.rest)
    assert game.number == 2, "the frame before the last"
    session.release_rewind()
    session.quick_load()
    assert game.number == 2


def test_the_end_can_be_rewound() -> None:
    session, game, _ = dying(3)
    for _ in range(3):
        session.advance(game.action_set.rest)
    session.hold_rewind()
    session.advance(game.action_set.rest)
    session.release_rewind()
    assert session.playing and game.number == 2
    assert (session.tally.frames, session.tally.kills, session.tally.reward) == (2, 2, 2)


def test_a_saved_moment_keeps_its_score() -> None:
    session, game, _ = dying(5)
    session.advance(game.action_set.rest)
    session.quick_save()
    for _ in range(4):
        session.advance(game.action_set.rest)
    assert session.over
    session.quick_load()
    assert session.playing and session.tally.frames == 1


def test_of_a_play_only_what_it_must_share_with_the_recording_is_learned() -> None:
    levels, ends = torch.ones(80, 1), torch.zeros(80)
    levels[8:] = 0.5
    ends[60] = 1
    truth = Results(torch.zeros(80), ends, torch.zeros(80, 0), levels, np.arange(1, 80))
    frames, began = torch.tensor([7, 8, 8, 60, 60, 50, 79]), torch.tensor([0, 0, 5, 58, 40, 40, 70])
    known = trusted(truth, frames, began)
    assert known[:, 1].tolist() == [True, False, True, True, True, True, True], "as at the start, or a play just begun"
    assert known[:, 0].tolist() == [True, True, True, True, False, False, True], "where an end is near, it may not end"


def test_ends_that_a_tally_draws_count_beside_the_heads() -> None:
    def read(before: torch.Tensor, now: torch.Tensor, actions: torch.Tensor) -> Outcome:
        count = len(before)
        rises, levels = {"KILLCOUNT": np.full(count, 0.25)}, {"HEALTH": np.full(count, 90.0)}
        return Outcome(np.zeros(count), np.full(count, 0.2), rises, levels)

    config = SimpleNamespace(counters=("KILLCOUNT",), levels=("HEALTH",), scales=(100.0,))
    head: Any = SimpleNamespace(config=config, read=read)
    episodes = LatentEpisodes(torch.zeros(6, 8, 2, 3), torch.zeros(6, 2), (3, 3))
    rewards, ends, rises, levels = torch.zeros(6), torch.zeros(6), torch.zeros(6, 1), torch.ones(6, 1)
    rewards[2], ends[2], rises[1], levels[2] = -1, 1, 1, 0.5
    truth = Results(rewards, ends, rises, levels, np.array([1, 2, 4, 5]))
    lost = torch.tensor([0, 0, 0.5, 0, 0, 0.1])
    alone, both = (score_outcomes(head, episodes, truth, torch.device("cpu"), *more) for more in ((), (lost, -1.0)))
    assert (alone["reward_error"], alone["ends_expected"]) == pytest.approx((0.25, 0.8))
    assert both["reward_error"] == pytest.approx((0.5 + 0.1) / 4)
    assert both["ends_expected"] == pytest.approx(0.2 + 0.6 + 0.2 + 0.28)  # 1 - 0.8 * 0.5, 1 - 0.8 * 0.9
    assert (both["ends_auc"], both["KILLCOUNT_expected"], both["HEALTH_error"]) == pytest.approx((1, 1, 17.5))
