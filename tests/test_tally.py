"""The tally: how counts are written, told, drawn and read, how it is made of a recording, and a game that counts."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.actions import ActionSet
from agents.errors import CheckpointError, DataError, OptionError
from engine.game import NeuralGame
from gamengen.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from gamengen.denoiser import Denoiser, DenoiserConfig, seeing
from gamengen.diffusion import SamplerConfig
from gamengen.evaluation.subject import Subject
from gamengen.free_plays import FreePlays
from gamengen.latents import LatentEpisodes, gather_steps, weights_hash
from gamengen.outcome import OutcomeConfig, OutcomeHead
from gamengen.player import Player
from gamengen.single_stages import match, tell_score, train_autoencoder, train_denoiser, train_tally
from gamengen.tally import TELLING, Tally, TallyConfig
from gamengen.train_outcome import OutcomeTask, Results
from gamengen.train_tally import TallyTask, find_delay, find_levels, find_lost, find_pictures
from gamengen.training import Trainer, TrainOptions
from recorder.episodes import EpisodeWriter
from recorder.recording import Recording, RecordingHeader

CONFIG = TallyConfig(
    4, 8, 2, 3, 4, ("HEALTH", "SELECTED_WEAPON_AMMO"), ((0, 100), (0, 26)), ((-8, 0, 1), (-1, 0)), features=16
)
LENGTHS = (150, 250)


def a_tally(seed: int = 0, late: int = 0) -> Tally:
    """A tally of random weights whose pictures are clear everywhere: of the digits now, and a little of changes."""
    torch.manual_seed(seed)
    tally = Tally(replace(CONFIG, late=late))
    with torch.no_grad():
        tally.pictures.normal_()
        for first in (34, 116):
            tally.pictures[first : first + 33] = 0
            tally.pictures[first + 33 : first + 49] *= 0.3
        tally.clear.fill_(1.0)
        tally.last.weight.normal_(std=0.1)
    return tally.eval().requires_grad_(False)


def episodes(tally: Tally, late: int = 0) -> LatentEpisodes:
    """Two episodes in which a shot, two frames after its key, takes a bullet; latents are pictures of the counts."""
    generator = torch.Generator().manual_seed(1)
    frames = sum(LENGTHS)
    actions = (torch.rand(frames, 2, generator=generator) < 0.15).float()
    counts = torch.zeros(frames, 2)
    for first, length in zip((0, LENGTHS[0]), LENGTHS, strict=True):
        health, ammo = 100.0, 26.0
        for frame in range(first, first + length):
            if frame >= first + 2 and actions[frame - 2, 1]:
                ammo = 26.0 if ammo == 0 else ammo - 1
            counts[frame] = torch.tensor([health, ammo])
            health = 100.0 if health < 20 else health - 8 * float(torch.rand(1, generator=generator) < 0.05)
    made = LatentEpisodes(torch.zeros(frames, 8, 3, 4), actions, LENGTHS, counts=counts)
    shown = made.history(torch.arange(frames).sub(late).clamp(min=0))
    return replace(made, latents=tally.picture(shown).half())


def still(*values: float) -> torch.Tensor:
    return torch.tensor(values).expand(1, TELLING + 1, -1).clone()


def test_counts_are_written_as_digits_with_blanks_and_as_changes() -> None:
    tally = Tally(CONFIG)
    counts = still(100, 7)
    counts[0, -2:, 0] = 92  # a hit a frame ago
    facts = tally.facts(counts)[0]
    assert len(facts) == CONFIG.facts
    health, before = facts[1:34].view(3, 11), facts[34:67].view(3, 11)
    assert health.argmax(1).tolist() == [10, 9, 2]
    assert before.argmax(1).tolist() == [10, 9, 2]
    fell, rose, fell_by, rose_by = facts[67:83].view(4, TELLING)
    assert fell.tolist() == [0, 1, 0, 0]
    assert fell_by.tolist() == pytest.approx([0, 0.2, 0, 0])
    assert not rose.any()
    assert not rose_by.any()
    assert facts[83:116].view(3, 11).argmax(1).tolist() == [10, 10, 7]
    assert tally.facts(still(0, 0))[0, 1:34].view(3, 11).argmax(1).tolist() == [10, 10, 0]


def test_changes_are_drawn_as_often_as_they_are_likely_and_stay_within_the_range() -> None:
    tally = Tally(CONFIG)
    with torch.no_grad():
        tally.last.bias.copy_(torch.tensor([0.2, 0.7, 0.1, 0.5, 0.5]).log())
    many = 4000
    counts = still(50, 5).expand(many, -1, -1)
    latents, actions = torch.zeros(many, 4, 8, 3, 4), torch.zeros(many, 4, 2)
    draws = torch.rand(many, 2, generator=torch.Generator().manual_seed(0))
    drawn = tally.advance(latents, actions, counts, draws)
    assert torch.equal(drawn[:, :-1], counts[:, 1:])
    for value, share in ((42, 0.2), (50, 0.7), (51, 0.1)):
        assert (drawn[:, -1, 0] == value).float().mean().item() == pytest.approx(share, abs=0.03)
    assert tally.advance(latents, actions, counts, None)[:, -1, 0].unique().tolist() == [50], "the likeliest"
    low = tally.advance(latents[:1], actions[:1], still(3, 0), torch.zeros(1, 2))
    assert low[0, -1].tolist() == [0, 0]
    assert tally.advance(latents[:1], actions[:1], still(100, 26), torch.ones(1, 2))[0, -1].tolist() == [100, 26]


@pytest.mark.parametrize("late", [0, 1])
def test_what_a_score_bar_shows_is_read_and_a_late_one_is_told(late: int) -> None:
    tally = a_tally(late=late)
    played = episodes(tally, late)
    frames = torch.arange(60, 140)
    shown = played.history(frames - late)[:, -1]
    settled = (played.counts[frames - 4] == shown).all(1)  # type: ignore[index]  # nothing in it is of a change
    assert settled.sum() > 10
    assert torch.equal(tally.read(played.latents[frames].float())[settled], shown[settled])
    past = torch.stack([played.latents[frame - 3 : frame + 1].float() for frame in frames])
    counts = tally.settle(past, torch.zeros(len(frames), 4, 2))
    assert counts.shape == (len(frames), TELLING + 1, 2)
    told = counts[:, -1 - late]
    assert torch.equal(told[settled], shown[settled])


def test_a_history_begins_with_its_episode() -> None:
    played = episodes(a_tally())
    assert played.counts is not None
    history = played.history(torch.tensor([150, 152, 10]))
    assert torch.equal(history[0], played.counts[150].expand(TELLING + 1, -1))
    assert torch.equal(history[1], played.counts[[150, 150, 150, 151, 152]])
    assert torch.equal(history[2], played.counts[6:11])


@pytest.mark.parametrize("late", [0, 1])
def test_pictures_and_the_delay_are_found(late: int) -> None:
    truth = a_tally()
    played = episodes(truth, late)
    played.latents[:, :, 0] = torch.randn(sum(LENGTHS), 8, 4, generator=torch.Generator().manual_seed(2)).half()
    tally = Tally(CONFIG)
    find_pictures(tally, played)
    assert not tally.clear[0].any(), "what no count explains"
    assert tally.clear[1:].all()
    assert find_delay(tally, played) == late
    guess = tally.picture(played.history(torch.arange(sum(LENGTHS))))[:, :, 1:]
    assert (guess - played.latents[:, :, 1:].float()).square().mean() < 0.2 * played.latents[:, :, 1:].float().var()


def test_it_learns_what_is_certain_and_how_often_what_is_not(tmp_path: Path) -> None:
    tally = a_tally()
    parts = [episodes(tally) for _ in range(2)]
    task = TallyTask(tally.requires_grad_(True), *parts, 0, batch=64)
    figures = Trainer(task, TrainOptions(steps=400, adam_lr=3e-3, ema=0.98), tmp_path).run()
    assert figures["SELECTED_WEAPON_AMMO_nll"] < 0.25 * figures["SELECTED_WEAPON_AMMO_nll_rates"]
    assert figures["SELECTED_WEAPON_AMMO_expected"] == pytest.approx(1, abs=0.15)
    assert figures["HEALTH_expected"] == pytest.approx(1, abs=0.5)
    assert figures["HEALTH_read"] > 0.7


def test_it_learns_on_in_free_plays_and_goes_on_after_a_stop(
    train_until: Callable[..., Trainer], tmp_path: Path
) -> None:
    """In plays whose frames are noise the hits of the recorded frames in their places are as likely as there."""
    config = DenoiserConfig(context=4, channels=8, actions=2, widths=(16, 24), embedding=32, told=True)
    torch.manual_seed(0)
    player = Player(Denoiser(config).eval().requires_grad_(False), SamplerConfig(1))
    teller = a_tally()

    def make() -> TallyTask:
        parts = [replace(episodes(teller), tally=teller) for _ in range(2)]
        return TallyTask(copy.deepcopy(teller).requires_grad_(True), *parts, 0, 64, player)

    task = make()
    assert torch.equal(task.tally.last.bias, teller.last.bias), "what it has learned stays"
    figures = Trainer(task, TrainOptions(steps=120, adam_lr=3e-3, ema=0.9), tmp_path / "whole").run()
    assert figures["HEALTH_played_expected"] == pytest.approx(1, abs=0.6)
    stopped, resumed = make(), make()
    train_until(stopped, TrainOptions(steps=6), tmp_path / "parts", 4)
    Trainer(resumed, TrainOptions(steps=6), tmp_path / "parts").run()
    whole = make()
    Trainer(whole, TrainOptions(steps=6), tmp_path / "six").run()
    assert weights_hash(whole.model) == weights_hash(resumed.model)
    assert torch.equal(task.tally.pictures, teller.pictures)


def lost_games(tally: Tally, count: int = 120) -> LatentEpisodes:
    """Games that begin with a health of 16 and lose 8 of it in one of ten frames; the second such hit loses them."""
    rng = np.random.default_rng(0)
    lives = [np.cumsum(rng.geometric(0.1, 2)) for _ in range(count)]
    healths = [16.0 - 8 * (np.arange(int(second)) >= first) for first, second in lives]
    lengths = tuple(map(len, healths))
    counts = torch.from_numpy(np.concatenate(healths)).float()[:, None].repeat(1, 2)
    counts[:, 1] = 9
    frames = len(counts)
    made = LatentEpisodes(
        torch.zeros(frames, 8, 3, 4), torch.zeros(frames, 2), lengths, counts=counts, lost=(True,) * count
    )
    return replace(made, latents=tally.picture(made.history(torch.arange(frames))).half())


def test_the_hit_that_loses_a_game_is_as_likely_as_any_other(tmp_path: Path) -> None:
    """No frame shows it, so without what is known of it a player of little health would hardly be hit any more."""
    hits = {}
    for vital in ("HEALTH", ""):
        tally = a_tally()
        tally.config = replace(tally.config, vital=vital)
        played = lost_games(tally)
        played = played if vital else replace(played, lost=())
        task = TallyTask(tally.requires_grad_(True), played, played, 0, batch=64)
        figures = Trainer(task, TrainOptions(steps=250, adam_lr=3e-3, ema=0.98), tmp_path / f"tally{vital}").run()
        likely = tally.split(tally(torch.zeros(1, 4, 8, 3, 4), torch.zeros(1, 4, 2), still(8, 9)))[0].softmax(1)
        hits[vital] = float(likely[0, 0].detach())
        assert figures.get("lost_expected", 1) == pytest.approx(1, abs=0.2)
    assert hits["HEALTH"] == pytest.approx(0.1, abs=0.05)
    assert hits[""] < 0.03


def test_what_may_have_come_after_the_last_frame() -> None:
    tally = a_tally()
    tally.config = replace(tally.config, vital="HEALTH")
    played = lost_games(tally, 2)
    played = replace(played, lost=(True, False))
    task = TallyTask(tally, played, played, 0, batch=4)
    ends = torch.tensor(played.lengths).cumsum(0) - 1
    assert task._possible(played, ends[:1]).tolist() == [[True, False, False, True, True]]
    assert task._possible(played, ends[1:]).all(), "nothing is known"
    assert task._possible(played, ends[:1] - 1).sum(1).tolist() == [2]
    starts = task._all_starts(played)
    assert ends[0] - 3 in starts
    assert ends[1] - 3 not in starts


def test_a_game_is_lost_where_nothing_is_left_and_may_be_played_on() -> None:
    tally = Tally(replace(CONFIG, vital="HEALTH", ranges=((3, 100), (0, 26))))
    with torch.no_grad():
        tally.last.bias.copy_(torch.tensor([40.0, 0, 0, 0, 40]))
    given = torch.zeros(3, 4, 8, 3, 4), torch.zeros(3, 4, 2)
    counts = torch.cat([still(9, 5), still(7, 5), still(0, 5)])
    assert tally.fatal(counts).tolist() == [[False] * 3, [True, False, False], [True, True, False]]
    after = tally.advance(*given, counts, torch.zeros(3, 2))
    assert after[:, -1, 0].tolist() == [1, 0, 3]
    assert tally.lost(after).tolist() == [False, True, False]
    untold = Tally(CONFIG)
    assert not untold.lost(after).any()


def test_lost_games_of_a_recording_are_found(tmp_path: Path) -> None:
    """Those that ended by themselves where a known hit leaves nothing; others ended well, or ran out of time."""
    names, actions = ("HEALTH",), ActionSet(("LEFT", "RIGHT"))
    header = RecordingHeader("gym/stripes", actions, 32, 48, 1, 30.0, names, {"random": ""}, 0, {})
    recording = Recording.create_or_resume(tmp_path / "data", header)
    last = ((20, True), (20, False), (90, True), (30, True))
    for number, (health, terminated) in enumerate(last):
        with EpisodeWriter(recording.episode_path(number), 32, 48, 2, names, number, "random") as writer:
            for value in (100, 60, 60, health):
                reward = -1.0 - number if value == health else 0.0
                writer.append(np.zeros((32, 48, 3), np.uint8), actions.rest, reward, {"HEALTH": value})
            writer.finish(terminated=terminated, truncated=not terminated)
    episodes = recording.episodes()
    config = replace(CONFIG, levels=("HEALTH",), ranges=((20, 100),), changes=((-40.0, -30.0, 0.0),), vital="HEALTH")
    assert find_lost(episodes, config) == {episodes[0].path: -1.0, episodes[3].path: -4.0}
    assert find_lost(episodes, replace(config, vital="")) == {}


def test_contexts_of_training_and_of_free_plays_begin_with_what_is_told() -> None:
    tally = a_tally()
    played = replace(episodes(tally), tally=tally)
    starts = np.array([3, 160])
    context, _, _ = gather_steps(played, starts, 4)
    assert context.shape == (2, 5, 8, 3, 4)
    told = tally.picture(played.history(torch.from_numpy(starts) + 4))
    assert torch.equal(context[:, 0], told)
    assert torch.equal(context[:, 1:], torch.stack([played.latents[n : n + 4].float() for n in starts]))
    plays = FreePlays(played, 3, 4)
    given, _, following = plays.windows(np.random.default_rng(0))
    assert given.shape == (3, 5, 8, 3, 4)
    torch.testing.assert_close(given[:, 0], following, atol=0.01, rtol=0.01)  # here a frame is what it is told
    plays.advance(lambda context, actions: context[:, 0])
    torch.testing.assert_close(plays.newest()[1], following, atol=0.01, rtol=0.01)


def test_plays_that_are_told_the_score_show_what_is_recorded() -> None:
    """An outcome head learns from all of their frames; from others until one of the two games is hurt."""
    played = episodes(a_tally())
    frames = sum(LENGTHS)
    levels = played.counts / 100  # type: ignore[operator]
    ends = torch.zeros(frames)
    ends[-1] = 1
    truth = Results(torch.zeros(frames), ends, torch.zeros(frames, 0), levels, np.arange(1, frames))
    began = torch.tensor([0, 100, frames - 20])
    late = began + 15
    assert not OutcomeTask._trusted((played, truth), late, began).all()
    told = replace(played, tally=a_tally())
    assert OutcomeTask._trusted((told, truth), late, began).shape == (3, 3)
    assert OutcomeTask._trusted((told, truth), late, began).all()


@pytest.mark.parametrize("moved", [False, True])
def test_a_denoiser_that_is_told_begins_as_the_one_before_and_may_unlearn_it(moved: bool) -> None:
    torch.manual_seed(0)
    config = DenoiserConfig(context=4, channels=8, actions=2, widths=(16, 24), embedding=32, moved=moved)
    source = Denoiser(config)
    with torch.no_grad():
        source.last.weight.normal_(std=0.1)
    model = seeing(source, moved=moved, told=True)
    past, told = torch.randn(2, config.latents, 8, 3, 5), torch.randn(2, 1, 8, 3, 5)
    rest = torch.rand(2, 4, 2), torch.zeros(2)
    noisy, sigma = torch.randn(2, 8, 3, 5), torch.ones(2)
    before = source(noisy, sigma, past, *rest)
    torch.testing.assert_close(model(noisy, sigma, torch.cat([told, past], 1), *rest), before)
    assert model.config.newest == 4
    again = seeing(model, moved=moved, told=False)
    torch.testing.assert_close(again(noisy, sigma, past, *rest), before)
    assert seeing(source, moved=moved, told=False) is not source


def test_a_game_tells_what_its_score_bar_counts(made_up: Callable[..., Checkpoint]) -> None:
    checkpoint = made_up(tally=True)
    assert checkpoint.tally is not None
    with torch.no_grad():
        checkpoint.tally.last.weight.zero_()
        checkpoint.tally.last.bias.copy_(torch.tensor([0.0, 0, 40, 0, 0, 40]))  # nothing changes
    game = NeuralGame(checkpoint, "cpu", dtype="float32")
    game.step([0, 0])
    before = game.save().tally
    with torch.no_grad():
        game._teller.last.bias.copy_(torch.tensor([40.0, 0, 0, 0, 40, 0]))  # type: ignore[union-attr]
    frame = game.step([0, 0])
    assert not game.ended.any()
    after = game.save().tally
    assert after[0, -1].tolist() == [max(0, before[0, -1, 0] - 8), max(0, before[0, -1, 1] - 1)]
    game.load(replace(game.save(), tally=before))
    assert torch.equal(game.save().tally, before)
    assert frame.any()


def test_a_game_that_counts_is_lost_and_the_next_one_starts(made_up: Callable[..., Checkpoint]) -> None:
    checkpoint = made_up(tally=True)
    assert checkpoint.tally is not None
    config = replace(checkpoint.tally.config, vital="HEALTH", lost_reward=-2.5, ranges=((1, 100), (0, 26)))
    checkpoint.tally.config = config
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, tally=config))
    head = OutcomeHead(OutcomeConfig(8, 2, 3, 5, ("HEALTH",), (100.0,)))
    head.expect(1e-4, torch.zeros(0))
    with torch.no_grad():
        checkpoint.tally.last.weight.zero_()
        checkpoint.tally.last.bias.copy_(torch.tensor([40.0, 0, 0, 0, 0, 40]))  # a hit each frame
    bare, told = (NeuralGame(replace(checkpoint, outcome=part), "cpu", dtype="float32") for part in (None, head.eval()))
    for game in (bare, told):
        counts = game.save().tally.clone()
        counts[:, -1, 0] = 9
        game.load(replace(game.save(), tally=counts))
        game.step([0, 0])
        assert not game.ended.any()
        before = game.outcome
        game.step([0, 0])
        assert game.ended.all()
        if before is not None:
            assert game.outcome is not None
            assert before.ends.max() < 0.01
            assert (game.outcome.ends, game.outcome.levels["HEALTH"]) == ([1], [0])
            assert game.outcome.reward == pytest.approx(before.reward - 2.5, abs=0.2)
        game.step([0, 0])
        assert not game.ended.any(), "played on, at the lowest health"
        game.reset(0)
        assert not game.ended.any()


def test_plays_that_are_lost_start_anew_where_asked(made_up: Callable[..., Checkpoint]) -> None:
    checkpoint = made_up(tally=True, geometry=True)
    assert checkpoint.tally is not None
    checkpoint.tally.config = replace(checkpoint.tally.config, vital="HEALTH", ranges=((1, 16), (0, 26)))
    with torch.no_grad():
        checkpoint.tally.last.weight.zero_()
        checkpoint.tally.last.bias.copy_(torch.tensor([40.0, 0, 0, 0, 0, 40]))  # a hit of 8 each frame
    subject = Subject(checkpoint, torch.device("cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 48, 80, 3), np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (2, 4, 48, 80, 3), np.uint8)
    held, told, seen = np.zeros((2, 3, 2), np.float32), [], []

    def choose(step: int, newest: np.ndarray) -> np.ndarray:
        seen.append(newest.copy())
        return np.zeros((2, 2), np.float32)

    def lose(step: int, games: list[int]) -> tuple[np.ndarray, np.ndarray]:
        told.append((step, games))
        return other[games], held[games]

    made = list(subject.play(frames, held, choose, 8, 0, lose))
    assert made[0].shape == (2, 48, 80, 3)
    step, games = told[0]
    for game in range(2):
        shown = seen[step + 1][game]
        assert np.array_equal(shown, other[game, -1] if game in games else made[step][game])
    assert {game for _, games in told for game in games} == {0, 1}
    played_on = list(subject.play(frames, held, choose, 8, 0))
    for before in range(step + 1):
        assert np.array_equal(made[before], played_on[before])
    assert not np.array_equal(made[step + 1], played_on[step + 1])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"vital": "ARMOR"}, "one of the levels"),
        ({"lost_reward": float("nan")}, "one of the levels"),
        ({"levels": ()}, "needs levels"),
        ({"ranges": ((0, 100),)}, "a range and changes"),
        ({"ranges": ((0, 1000), (0, 26))}, "0 to 999"),
        ({"changes": ((-8, 1), (-1, 0))}, "by 0 too"),
        ({"late": 2}, "a frame late"),
        ({"height": 0}, "at least 1"),
    ],
)
def test_impossible_tallies(values: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        TallyConfig(**{**asdict(CONFIG), **values})


def test_a_checkpoint_keeps_it_and_does_without_no_more(made_up: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = made_up(tally=True)
    save_checkpoint(checkpoint, tmp_path / "made", "card")
    loaded = load_checkpoint(tmp_path / "made")
    assert loaded.config.tally == checkpoint.config.tally
    assert loaded.tally is not None
    assert checkpoint.tally is not None
    torch.testing.assert_close(loaded.tally.pictures, checkpoint.tally.pictures, atol=0.05, rtol=0)
    path = tmp_path / "made" / "config.json"
    config = json.loads(path.read_text())
    for wrong in (None, {**config["tally"], "height": 2}, {**config["tally"], "levels": ["HEALTH"]}):
        path.write_text(json.dumps({**config, "tally": wrong}))
        with pytest.raises(CheckpointError, match="tally"):
            load_checkpoint(tmp_path / "made")


def test_stages_by_hand(basic_recording: Path, tmp_path: Path) -> None:
    """A checkpoint that is not told the score, then a tally, a denoiser and a student that are."""
    data, few = basic_recording, TrainOptions(steps=2)
    levels = find_levels(Recording.open(data))
    assert set(levels) == {"SELECTED_WEAPON_AMMO"}
    assert levels["SELECTED_WEAPON_AMMO"][1] == (-1.0, 0.0)
    train_autoencoder(data, tmp_path / "first", "tiny", None, few, "cpu")
    train_denoiser(data, tmp_path / "first", tmp_path / "untold", "tiny", None, few, "cpu")
    untold, work = str(tmp_path / "untold"), tmp_path / "work"
    assert not load_checkpoint(untold).config.denoiser.told
    figures = train_tally(data, work, "tiny", untold, few, "cpu")
    assert {"SELECTED_WEAPON_AMMO_nll", "SELECTED_WEAPON_AMMO_read"} <= set(figures)
    assert train_tally(data, work, "tiny", untold, few, "cpu") == figures, "done already"
    train_denoiser(data, work, tmp_path / "told", "tiny", untold, few, "cpu", faithful=True)
    told = load_checkpoint(tmp_path / "told")
    assert told.config.denoiser.told
    assert told.config.training["minutes"].keys() == {"tally", "denoiser"}
    match(data, work, tmp_path / "matched", untold, few, 0.01, "cpu")
    matched = load_checkpoint(tmp_path / "matched")
    assert matched.tally is not None, "the student is told, as its teacher is"
    assert told.tally is not None
    assert torch.equal(matched.tally.pictures, told.tally.pictures)
    assert not torch.equal(matched.tally.first.weight, told.tally.first.weight), "it has learned on in free plays"
    assert matched.config.training["minutes"].keys() == {"tally", "denoiser", "matched", "recount", "outcome"}
    game = NeuralGame(matched, "cpu")
    assert game.step([0] * game.action_set.size).any()
    (work / "denoiser" / "tally.json").write_text('{"tally": "before"}')
    with pytest.raises(CheckpointError, match="the denoiser in the work folder was trained for another tally"):
        match(data, work, tmp_path / "matched", untold, few, 0.01, "cpu")
    with pytest.raises(CheckpointError, match="recount .* another denoiser"):
        tell_score(data, work, tmp_path / "at-once", untold, few, 0.01, "cpu")
    shutil.rmtree(work / "recount")
    shutil.rmtree(work / "outcome")
    tell_score(data, work, tmp_path / "at-once", untold, few, 0.01, "cpu")
    at_once, before = load_checkpoint(tmp_path / "at-once"), load_checkpoint(untold)
    assert at_once.tally is not None
    assert at_once.config.outcome is not None
    assert weights_hash(at_once.denoiser) == weights_hash(seeing(before.denoiser, False, True)), "it stays as it is"
    assert at_once.config.training["init"] == "untold"
    assert at_once.config.training["minutes"].keys() == {"tally", "recount", "outcome"}
    for init, minutes, wrong in ((None, 0.01, "--init"), (untold, 0.0, "--outcome-minutes")):
        with pytest.raises(OptionError, match=wrong):
            tell_score(data, work, tmp_path / "out", init, few, minutes, "cpu")


def test_a_game_without_a_score_bar(make_recording: Callable[..., Recording], tmp_path: Path) -> None:
    make_recording(tmp_path / "data", (40, 40, 40))
    train_autoencoder(tmp_path / "data", tmp_path / "work", "tiny", None, TrainOptions(steps=1), "cpu")
    with pytest.raises(DataError, match=r"nothing in it is counted .* leave this stage out"):
        train_tally(tmp_path / "data", tmp_path / "work", "tiny", None, TrainOptions(steps=1), "cpu")
