"""Distribution matching: what moves the student, what the critic learns, going on after a stop, and the command."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents.errors import CheckpointError, OptionError
from engine.game import NeuralGame
from gamengen.autoencoder import Autoencoder, normalise
from gamengen.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from gamengen.cli import main
from gamengen.evaluation.lpips import Lpips
from gamengen.latents import LatentEpisodes, encode_recording, load_latents, weights_hash
from gamengen.looks import Looks
from gamengen.outcome import OutcomeConfig, OutcomeHead
from gamengen.single_stages import _check_ends, _check_same_score, train_autoencoder, train_denoiser
from gamengen.tally import Tally
from gamengen.train_matching import MatchingTask
from gamengen.training import Trainer, TrainOptions
from gamengen.work_folder import check_trained_by
from recorder.recording import Recording

Make = Callable[..., Recording]
MakeUp = Callable[..., Checkpoint]


@pytest.fixture
def make_task(make_recording: Make, made_up: MakeUp, tmp_path: Path) -> Callable[[], MatchingTask]:
    """Tasks with the same student and teacher."""
    checkpoint = made_up()
    recording = make_recording(tmp_path / "data", (30, 30, 20))
    encode_recording(recording, checkpoint.autoencoder, tmp_path / "latents")
    latents = load_latents(tmp_path / "latents", checkpoint.autoencoder)

    def make() -> MatchingTask:
        torch.manual_seed(0)
        student, teacher = copy.deepcopy(checkpoint.denoiser), copy.deepcopy(checkpoint.denoiser)
        with torch.no_grad():
            student.last.weight.normal_(std=0.05)
        return MatchingTask(student, teacher, checkpoint.autoencoder, *latents, 0, batch=8)

    return make


def play_once(task: MatchingTask) -> torch.Tensor:
    """The student's next latents (4, C, h, w) of fixed contexts and noise, normalised."""
    generator = torch.Generator().manual_seed(5)
    latents: LatentEpisodes = task._held_out
    context = task._denoiser.config.context
    past = torch.stack([latents.latents[n : n + context].float() for n in range(4)])
    held = torch.stack([latents.actions[n : n + context] for n in range(4)])
    noise = torch.randn(past[:, 0].shape, generator=generator)
    with torch.no_grad():
        return normalise(task._denoiser(noise, torch.ones(4), past, held, torch.zeros(4)).float())


def test_nothing_moves_where_critic_and_teacher_agree(make_task: Callable[[], MatchingTask]) -> None:
    task = make_task()  # whose critic begins as its teacher
    task._critic_optimizer.scale_lr(0.0)
    for step in range(3):
        assert float(task.loss(step, 0.5).detach()) == pytest.approx(0.0, abs=1e-9)


def test_the_student_moves_from_the_critic_to_the_teacher(
    make_task: Callable[[], MatchingTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    before = play_once(task)

    def follow(noisy: torch.Tensor, sigma: torch.Tensor, given: Any, *_: Any) -> torch.Tensor:
        """A critic that says that the student makes the first channel too large."""
        guess = task._teacher(noisy, sigma, *given).float().detach().clone()
        guess[:, 0] += 0.5
        return guess

    monkeypatch.setattr(task, "_follow", follow)
    Trainer(task, TrainOptions(steps=30, ema=0.5), tmp_path).run()
    change = (play_once(task) - before).mean(dim=(0, 2, 3))
    assert change[0] < -0.05
    assert change[0] == change.min()


def test_what_follows_real_frames_is_looked_at_beside(
    make_task: Callable[[], MatchingTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And beside the recorded frame; what follows own frames is not."""

    class Darkness(nn.Module):
        def forward(self, real: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return other.mean(dim=(1, 2, 3)) + 1

    task = make_task()
    with torch.no_grad():  # a decoder whose pictures are not all grey
        task._autoencoder.decoder[-1].last.weight.normal_(std=0.3)
    task._looks = Looks(task._autoencoder, Darkness(), torch.device("cpu"), 8)
    blind = make_task()
    for one in (task, blind):
        with torch.no_grad():  # else critic and teacher agree, and nothing moves
            one._critic.last.bias.add_(0.5)
    decoder = weights_hash(task._autoencoder)
    wanted: list[torch.Tensor] = []
    distance = task._looks.distance

    def note(predicted: torch.Tensor, recorded: torch.Tensor, *rest: Any) -> torch.Tensor:
        wanted.append(recorded)
        assert rest[-1] == 5, "of a batch of 8 three are of free plays"
        return distance(predicted, recorded, *rest)

    monkeypatch.setattr(task._looks, "distance", note)
    drawn = copy.deepcopy(task)._draw(np.random.default_rng([0, 0]), 3)
    with_eyes = task.loss(0, 0.5)
    with_eyes.backward()
    assert torch.equal(wanted[0][:5], drawn[2][:5])
    assert weights_hash(task._autoencoder) == decoder
    assert all(parameter.grad is None for parameter in task._autoencoder.parameters())
    changed = [parameter.grad.clone() for parameter in task.model.parameters() if parameter.grad is not None]
    blind.loss(0, 0.5).backward()
    others = [parameter.grad for parameter in blind.model.parameters() if parameter.grad is not None]
    assert any(not torch.equal(one, other) for one, other in zip(changed, others, strict=True))
    assert task.loss(1, 0.0).detach() == 0, "not before the critic knows the student"


def test_first_the_critic_learns_alone_what_the_student_makes(make_task: Callable[[], MatchingTask]) -> None:
    task = make_task()
    student, errors = weights_hash(task.model), []
    follow = task._follow

    def note(noisy: torch.Tensor, sigma: torch.Tensor, given: Any, shown: torch.Tensor, weight: Any) -> torch.Tensor:
        guess = follow(noisy, sigma, given, shown, weight)
        errors.append(float((guess - shown).square().mean()))
        return guess

    task._follow = note  # type: ignore[method-assign]
    for step in range(40):
        loss = task.loss(step, 0.0)
        loss.backward()
        assert not loss.detach().any()
    assert all(not p.grad.any() for p in task.model.parameters() if p.grad is not None)
    assert weights_hash(task.model) == student
    assert sum(errors[-10:]) < 0.8 * sum(errors[:10])


def test_the_discriminator_tells_what_was_made_from_what_the_game_showed(
    make_task: Callable[[], MatchingTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    seen = []
    learn = task._judge.learn

    def note(real: torch.Tensor, made: torch.Tensor) -> None:
        seen.append((real, made))
        learn(real, made)

    monkeypatch.setattr(task._judge, "learn", note)
    for step in range(40):
        task.loss(step, 0.5)
    told = [[float(task._judge._model(part).detach().mean()) for part in pair] for pair in seen[-10:]]
    assert all(real > made for real, made in told)
    # Beside a play stands the frame that was recorded at its moment.
    monkeypatch.setattr("gamengen.train_matching.JUDGE_NOISE", 0.0)
    following = task._plays.past()[2]
    going_on = task._plays._left > 0
    task.loss(40, 0.5)
    assert going_on.any()
    recorded = task._train.latents[following[going_on]].float()
    assert torch.equal(seen[-1][0][-len(following) :][going_on].float(), recorded)


def test_resumed_equals_uninterrupted(
    make_task: Callable[[], MatchingTask], train_until: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole, stopped, resumed = (make_task() for _ in range(3))
    Trainer(whole, TrainOptions(steps=6), tmp_path / "whole").run()
    train_until(stopped, TrainOptions(steps=6), tmp_path / "parts", 4)
    Trainer(resumed, TrainOptions(steps=6), tmp_path / "parts").run()
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert weights_hash(resumed._critic) == weights_hash(whole._critic)
    assert weights_hash(resumed._judge._model) == weights_hash(whole._judge._model)


def test_a_finished_training_is_not_taken_for_one_with_eyes(tmp_path: Path) -> None:
    check_trained_by(tmp_path, None)
    check_trained_by(tmp_path, None)
    with pytest.raises(CheckpointError, match="was trained without LPIPS weights"):
        check_trained_by(tmp_path, Lpips("vgg"))
    check_trained_by(tmp_path / "seen", Lpips("vgg"))
    with pytest.raises(CheckpointError, match="was trained with LPIPS weights"):
        check_trained_by(tmp_path / "seen", None)


def test_no_game_is_ended_twice(made_up: MakeUp) -> None:
    """By an outcome head that learned all ends, and by a tally that the checkpoint did not have."""
    head = OutcomeHead(OutcomeConfig(8, 2, 3, 5))
    told, untold = replace(made_up(tally=True), outcome=head), replace(made_up(), outcome=head)
    assert told.tally is not None
    mortal = replace(told.tally.config, vital="HEALTH")
    tally = Tally(mortal)
    with pytest.raises(OptionError, match="would end games that the score ends too ; --outcome-minutes ; for example"):
        _check_ends(untold, tally, "--outcome-minutes", "for example 6")
    _check_ends(replace(told, tally=tally), tally, "", "")
    _check_ends(replace(untold, outcome=None), tally, "", "")
    _check_ends(untold, Tally(replace(mortal, vital="")), "", "")


def test_an_untrained_denoiser_is_not_told_of_another_score(made_up: MakeUp) -> None:
    told = made_up(tally=True)
    assert told.tally is not None
    _check_same_score(told, told.tally.config.levels, "game")
    _check_same_score(made_up(), ("ARMOR",), "game")
    with pytest.raises(OptionError, match="is told HEALTH, SELECTED_WEAPON_AMMO, and would be told ARMOR ; --init"):
        _check_same_score(told, ("ARMOR",), "game")


def test_the_command(make_recording: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_recording(tmp_path / "data", (12, 13, 14))
    few = TrainOptions(steps=2)
    train_autoencoder(tmp_path / "data", tmp_path / "first", "tiny", None, few, "cpu")
    train_denoiser(tmp_path / "data", tmp_path / "first", tmp_path / "game", "tiny", None, few, "cpu")

    def train(stage: str, *more: str) -> str:
        """What the command says where it refuses; "" where it runs."""
        given = ["--data", "data", "--work", "work", "--init", "game", "--steps", "2", "--device", "cpu", *more]
        folders = ("data", "work", "first", "game", "out", "other", "teacher", "alien")
        paths = [str(tmp_path / word) if word in folders else word for word in given]
        with contextlib.suppress(SystemExit):
            main(["train", stage, *paths])
        return capsys.readouterr().err

    assert "the work folder has no finished denoiser" in train("match", "--out", "out")
    assert "error" not in train("denoiser", "--preset", "tiny", "--faithful", "--out", "teacher")
    assert "--outcome-minutes" in train("match", "--out", "out", "--outcome-minutes", "-1")
    assert "error" not in train("match", "--out", "out", "--outcome-minutes", "0.01")
    plain, teacher, made = (load_checkpoint(tmp_path / name) for name in ("game", "teacher", "out"))
    assert (plain.config.sampler.steps, made.config.sampler.steps) == (4, 1)
    assert weights_hash(teacher.autoencoder) == weights_hash(plain.autoencoder) == weights_hash(made.autoencoder)
    assert len({weights_hash(checkpoint.denoiser) for checkpoint in (plain, teacher, made)}) == 3
    assert made.config.training["init"] == "game"
    assert list(made.config.training["minutes"]) == ["denoiser", "matched", "outcome"]
    assert NeuralGame(made, "cpu").tells_outcome

    # A teacher of fresh weights: the student still began as the checkpoint's.
    shutil.rmtree(tmp_path / "first" / "latents")  # of the encoder before it was stored
    assert "error" not in train("match", "--work", "first", "--out", "other")
    assert load_checkpoint(tmp_path / "other").config.training["init"] == "game"

    # Asked again for no more, the outcome head that is there learned from this very student.
    assert "error" not in train("match", "--out", "out", "--outcome-minutes", "0.01")
    (tmp_path / "work" / "outcome" / "player.json").write_text('{"player": "before"}')
    assert "outcome in the work folder was trained for another player" in train(
        "match", "--out", "out", "--outcome-minutes", "0.01"
    )

    train("denoiser", "--preset", "tiny", "--faithful", "--steps", "3", "--out", "teacher")
    assert "was trained for another teacher" in train("match", "--out", "out")
    assert "error" not in train("denoiser", "--preset", "tiny", "--steps", "4", "--plays-of", "out", "--out", "teacher")
    torch.manual_seed(1)
    alien = replace(plain, autoencoder=Autoencoder(plain.config.autoencoder))
    save_checkpoint(alien, tmp_path / "alien", "")
    assert "its encoder is another" in train(
        "denoiser", "--preset", "tiny", "--steps", "5", "--plays-of", "alien", "--out", "teacher"
    )
