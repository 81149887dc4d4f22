"""The training loop: exact resume, budgets, schedule, averages, logs, damaged states; and the optimizer."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import gamengen.training
from agents.errors import CheckpointError, DataError, OptionError
from gamengen.autoencoder import Autoencoder, normalise
from gamengen.autoencoder_stages import fit_autoencoder
from gamengen.checkpoints import Checkpoint, load_fitting
from gamengen.denoiser import Denoiser
from gamengen.diffusion import SamplerConfig
from gamengen.latents import LatentEpisodes
from gamengen.muon import MuonAdamW, orthogonalise
from gamengen.presets import PRESETS, Preset
from gamengen.stages import fit_denoiser
from gamengen.train_autoencoder import AutoencoderTask, FramePool
from gamengen.train_denoiser import DenoiserTask
from gamengen.train_student import StudentTask
from gamengen.training import Task, Trainer, TrainOptions, learning_rate_factor, load_finished
from gamengen.work_folder import Stage
from recorder.recording import Recording

ROOT = Path(__file__).parents[1]
TINY = PRESETS["tiny"]
STEPS = 12
# Trains the task of this module for ever, saves after each step, and says how far it is.
CHILD = """
import sys
from pathlib import Path
import gamengen.training
from gamengen.training import Trainer, TrainOptions
from test_training import STEPS, make_task

class Talking(Trainer):
    def _save(self):
        super()._save()
        print(self.step, flush=True)

gamengen.training.SAVE_SECONDS = 0
Talking(make_task(sys.argv[2]), TrainOptions(steps=STEPS), Path(sys.argv[1])).run()
"""


def make_task(name: str) -> Task:
    """A small task on made-up data; the denoiser's follows its own frames from 60 % on."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    autoencoder = Autoencoder(TINY.autoencoder)
    if name == "autoencoder":
        frames = rng.integers(0, 256, (6, 32, 48, 3), np.uint8)
        return AutoencoderTask(autoencoder, FramePool(frames, frames), seed=1, batch=2, crop=(16, 32))
    latents = normalise(torch.randn(40, 8, 2, 3)).half()
    episodes = LatentEpisodes(latents, torch.from_numpy(rng.integers(0, 2, (40, 3)).astype(np.float32)), (20, 20))
    denoiser = Denoiser(TINY.denoiser)
    if name == "student":
        return StudentTask(denoiser, copy.deepcopy(denoiser), autoencoder, episodes, episodes, seed=1, batch=8)
    return DenoiserTask(denoiser, autoencoder, episodes, episodes, seed=1, batch=8)


def test_half_of_the_free_plays_are_the_players() -> None:
    task = make_task("denoiser")
    assert isinstance(task, DenoiserTask)
    player = copy.deepcopy(task.model)
    assert isinstance(player, Denoiser)
    with torch.no_grad():
        player.last.bias[0] += 5
    led = DenoiserTask(task._denoiser, task._autoencoder, task._train, task._train, seed=1, batch=11, player=player)
    alone = DenoiserTask(task._denoiser, task._autoencoder, task._train, task._train, seed=1, batch=11)
    for each in (led, alone):
        each._plays.windows(np.random.default_rng(0))
        each._advance_plays(SamplerConfig(1), torch.Generator().manual_seed(0))
    made, own = (each._plays._latents[:, -1] for each in (led, alone))
    differs = (made - own).abs().flatten(1).amax(dim=1) > 0.1
    assert differs.tolist() == [True, True, False, False]


class Stopped(Exception):
    pass


class Slope(Task):
    """A task whose gradient is always 1: one weight, and no more."""

    name = "slope"

    def __init__(self, loss: float = 1.0, stop_at: int | None = None) -> None:
        self.model: nn.Module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.weight)
        self.seen: list[float] = []
        self._factor, self._stop_at = loss, stop_at

    @property
    def weight(self) -> torch.Tensor:
        return next(self.model.parameters())

    def loss(self, step: int, progress: float) -> torch.Tensor:
        if step == self._stop_at:
            raise Stopped
        self.seen.append(float(self.weight.detach()))
        return self._factor * self.weight.sum()

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        return {"weight": self.weight.item()}, {}


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final.safetensors")


def last_figures(folder: Path) -> dict[str, Any]:
    figures = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    del figures["seconds"]
    return figures


def assert_same_run(one: Path, other: Path) -> None:
    weights, others = final(one), final(other)
    assert list(weights) == list(others)
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name
    assert last_figures(one) == last_figures(other)


@pytest.mark.parametrize("name", ["autoencoder", "denoiser", "student"])
def test_resumed_equals_uninterrupted(name: str, train_until: Callable[..., Trainer], tmp_path: Path) -> None:
    options = TrainOptions(steps=STEPS)
    Trainer(make_task(name), options, tmp_path / "whole").run()
    for stop_at in (3, 9):  # twice, once before and once after the unroll begins
        trainer = train_until(make_task(name), options, tmp_path / "parts", stop_at)
        assert trainer.step == stop_at
        assert not load_finished(make_task(name).model, tmp_path / "parts", options)
    trainer = Trainer(make_task(name), options, tmp_path / "parts")
    assert trainer.step == 9
    trainer.run()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resumed_with_other_rates_it_takes_those(train_until: Callable[..., Trainer], tmp_path: Path) -> None:
    """A training that diverged says to lower them."""
    train_until(make_task("autoencoder"), TrainOptions(steps=STEPS), tmp_path, 3)
    options = TrainOptions(steps=STEPS, muon_lr=2e-3, adam_lr=1e-5)
    trainer = Trainer(make_task("autoencoder"), options, tmp_path)
    assert trainer.step == 3
    trainer.optimizer.scale_lr(1.0)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [2e-3, 1e-5]


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    options = TrainOptions(steps=STEPS)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    command = [sys.executable, str(script), str(tmp_path / "killed"), "denoiser"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = next(line for line in child.stdout if int(line) >= 4)
        child.kill()
    trainer = Trainer(make_task("denoiser"), options, tmp_path / "killed")
    assert int(said) <= trainer.step <= STEPS
    trainer.run()
    Trainer(make_task("denoiser"), options, tmp_path / "whole").run()
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_finished_training_is_loaded_not_repeated(tmp_path: Path) -> None:
    options = TrainOptions(steps=3)
    task = make_task("autoencoder")
    Trainer(task, options, tmp_path).run()
    fresh = make_task("autoencoder").model
    assert load_finished(fresh, tmp_path, options)
    for name, value in task.model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    assert load_finished(fresh, tmp_path, None)
    assert not load_finished(fresh, tmp_path, TrainOptions(steps=4)), "a larger budget goes on"
    trainer = Trainer(make_task("autoencoder"), TrainOptions(steps=4), tmp_path)
    assert trainer.step == 3
    trainer.run()
    assert load_finished(fresh, tmp_path, TrainOptions(steps=4))


def test_time_spent_before_a_stop_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(gamengen.training.time, "monotonic", clock)
    monkeypatch.setattr(gamengen.training, "SAVE_SECONDS", 0.0)
    options = TrainOptions(minutes=0.5)
    with pytest.raises(Stopped):
        Trainer(Slope(stop_at=7), options, tmp_path).run()
    trainer = Trainer(Slope(), options, tmp_path)
    assert trainer.step == 7
    assert trainer.seconds == 7.0
    assert trainer.done == pytest.approx(7 / 30)
    trainer.run()
    assert trainer.step == 30


def test_the_averaged_weights_are_what_is_left(tmp_path: Path) -> None:
    task, options = Slope(), TrainOptions(steps=40, ema=0.8)
    trainer = Trainer(task, options, tmp_path)
    trainer.run()
    weights = [*task.seen[1:], trainer.optimizer.param_groups[1]["params"][0]]  # after each step but the last
    average = 0.0
    for step, weight in enumerate(weights[:-1]):
        decay = min(0.8, (1 + step) / (10 + step))
        average += (1 - decay) * (weight - average)
    left = float(final(tmp_path)["weight"])
    assert left == pytest.approx(average, rel=0.01)
    assert float(task.weight.detach()) == left, "the model ends with them too"
    assert left > weights[-2], "they trail behind the trained ones, which only fall"
    assert last_figures(tmp_path)["weight"] == left, "they are what is evaluated"


def test_schedule() -> None:
    factors = [learning_rate_factor(done) for done in np.linspace(0, 1, 201)]
    assert 0 < factors[0] < 0.1
    assert learning_rate_factor(0.02) == learning_rate_factor(0.3) == learning_rate_factor(0.6) == 1
    assert learning_rate_factor(0.8) == pytest.approx(0.5)
    assert learning_rate_factor(1.0) == 0
    assert max(factors) == 1
    top = factors.index(1)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({}, "--minutes, --steps"),
        ({"minutes": 1.0, "steps": 5}, "--minutes, --steps"),
        ({"minutes": 0.0}, "--minutes"),
        ({"minutes": -1.0}, "--minutes"),
        ({"minutes": math.nan}, "--minutes"),
        ({"minutes": math.inf}, "--minutes"),
        ({"steps": 0}, "--steps"),
        ({"steps": -3}, "--steps"),
        ({"steps": 3, "muon_lr": 0.0}, "--muon-lr"),
        ({"steps": 3, "muon_lr": math.nan}, "--muon-lr"),
        ({"steps": 3, "seed": -1}, "--seed"),
        ({"steps": 3, "seed": 2**40}, "--seed"),
    ],
)
def test_budgets_that_cannot_be(values: dict[str, Any], flag: str) -> None:
    with pytest.raises(OptionError) as caught:
        TrainOptions(**values)
    assert caught.value.where == flag


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _change(path: Path, **changes: Any) -> None:
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_truncate, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_text("hello"), "damaged"),
        (lambda path: path.write_bytes(pickle.dumps(Bomb(path.with_name("bomb")), 2)), "not one of ours"),
        (lambda path: torch.save(Bomb(path.with_name("bomb")), path), "not one of ours"),
        (lambda path: torch.save([1, 2], path), "damaged"),
        (lambda path: _change(path, version=99), "another version or task"),
        (lambda path: _change(path, task="denoiser"), "another version or task"),
        (lambda path: _change(path, model={"weight": torch.zeros(7)}), "of another shape"),
        (lambda path: _change(path, optimizer={}), "damaged"),
    ],
)
def test_damaged_or_foreign_state(damage: Callable[[Path], None], text: str, tmp_path: Path) -> None:
    Trainer(Slope(), TrainOptions(steps=2), tmp_path).run()
    state = tmp_path / "state.pt"
    damage(state)
    with pytest.raises(CheckpointError, match=text) as caught:
        Trainer(Slope(), TrainOptions(steps=2), tmp_path)
    assert caught.value.where == str(state)
    assert "delete the file" in caught.value.remedy
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bomb").exists(), "nothing in the file may run"


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"weight": 1})])
def test_damaged_final_weights(content: bytes, tmp_path: Path) -> None:
    Trainer(Slope(), TrainOptions(steps=2), tmp_path).run()
    (tmp_path / "final.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_finished(Slope().model, tmp_path, None)
    assert "\n" not in str(caught.value)


def test_divergence_is_told_and_not_saved(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="diverged"):
        Trainer(Slope(math.nan), TrainOptions(steps=5), tmp_path).run()
    assert not (tmp_path / "state.pt").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot make the folder"):
        Trainer(Slope(), TrainOptions(steps=5), tmp_path / "file" / "run")


def test_a_full_disk_keeps_the_older_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(Slope(), TrainOptions(steps=2), tmp_path).run()
    before = (tmp_path / "state.pt").read_bytes()

    def full(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DataError, match="free some space"):
        Trainer(Slope(), TrainOptions(steps=4), tmp_path).run()
    assert (tmp_path / "state.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_tensorboard_holds_scalars_and_images(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(make_task("autoencoder"), TrainOptions(steps=20), tmp_path).run()
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert {"loss", "psnr"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("loss")] == [20]
    (image,) = board.Images("original_above_reconstruction")
    assert (image.width, image.height) == (6 * 48, 2 * 32)


def test_held_out_episodes_shorter_than_a_window_are_told_at_once() -> None:
    long, short = (LatentEpisodes(torch.zeros(n, 8, 2, 3), torch.zeros(n, 3), (n,)) for n in (20, 4))
    model, autoencoder = Denoiser(TINY.denoiser), Autoencoder(TINY.autoencoder)
    with pytest.raises(DataError, match="no held-out episode has the 5 frames"):
        DenoiserTask(model, autoencoder, long, short, seed=0)
    with pytest.raises(DataError, match="no episode has the 5 frames"):
        DenoiserTask(model, autoencoder, short, long, seed=0)


def test_episodes_of_one_window_train_without_unroll() -> None:
    episodes = LatentEpisodes(normalise(torch.randn(10, 8, 2, 3)), torch.zeros(10, 3), (5, 5))
    task = DenoiserTask(Denoiser(TINY.denoiser), Autoencoder(TINY.autoencoder), episodes, episodes, seed=0, batch=4)
    assert task.loss(0, 0.9).isfinite()
    figures, pictures = task.evaluate(task.model)
    assert all(map(math.isfinite, figures.values()))
    assert next(iter(pictures.values())).ndim == 3


# --- starting from a checkpoint ---


@pytest.fixture
def stage(
    tmp_path: Path,
    make_recording: Callable[..., Recording],
    made_up: Callable[..., Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> Stage:
    init = made_up(32, 48)
    preset = Preset(init.config.autoencoder, init.config.denoiser, "for this test")
    monkeypatch.setitem(PRESETS, "made-up", preset)
    return Stage(make_recording(tmp_path / "data"), tmp_path / "work", "made-up", torch.device("cpu"), init, 0)


def test_init_starts_from_the_checkpoint(stage: Stage) -> None:
    still = TrainOptions(steps=1, muon_lr=1e-9, adam_lr=1e-9)
    assert stage.init is not None
    autoencoder = fit_autoencoder(stage, still)
    episodes = LatentEpisodes(normalise(torch.randn(20, 8, 2, 3)), torch.zeros(20, 2), (20,))
    denoiser = fit_denoiser(stage, autoencoder, (episodes, episodes), still)
    for model, source in ((autoencoder, stage.init.autoencoder), (denoiser, stage.init.denoiser)):
        for name, value in source.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-5)


def test_init_of_another_preset_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "made-up", PRESETS["base"])
    with pytest.raises(CheckpointError, match="nothing of the checkpoint fits the preset"):
        fit_autoencoder(stage, TrainOptions(steps=1))


def test_what_fits_is_taken_when_the_actions_differ() -> None:
    torch.manual_seed(0)
    source, model = (Denoiser(replace(TINY.denoiser, actions=actions)) for actions in (3, 5))
    fresh = load_fitting(model, source)
    assert "actions.0.weight" in fresh
    own, found = model.state_dict(), source.state_dict()
    assert all(own[name].shape != found[name].shape for name in fresh)
    assert all(torch.equal(own[name], value) for name, value in found.items() if name not in fresh)
    assert len(fresh) < 5


# --- the optimizer ---


@pytest.mark.parametrize("shape", [(8, 8), (16, 72), (72, 16)])
def test_orthogonalise(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(matrix).float()
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.4
    # The same directions: it is about the nearest orthogonal matrix.
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_muon_takes_hidden_kernels_alone() -> None:
    model = Autoencoder(TINY.autoencoder)
    hidden, other = MuonAdamW(model).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in hidden["params"]} == {
        name for name, p in model.named_parameters() if p.ndim == 4 and "first" not in name and "last" not in name
    }
    assert len(hidden["params"]) + len(other["params"]) == len(names)


def test_muon_updates_alike_kernels_together_as_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, 2, 8, 4, 3, 3, generator=generator)  # of two steps, for two kernels
    found = []
    for together in (False, True):
        kernels = [nn.Parameter(torch.ones(8, 4, 3, 3)) for _ in range(2)]
        optimizer = MuonAdamW(nn.ParameterList(kernels))
        group = optimizer.param_groups[0]
        assert len(group["params"]) == 2
        for step in gradients:
            for kernel, gradient in zip(kernels, step, strict=True):
                kernel.grad = gradient.clone()
            if together:  # as on a GPU
                with torch.no_grad():
                    optimizer._muon(group["params"], group)
            else:
                optimizer.step()
        found.append(torch.stack([kernel.detach() for kernel in kernels]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-3)  # of bfloat16's rounding in another order
    assert (found[0][0] != found[0][1]).any()


def test_muon_steps_do_not_depend_on_the_gradients_size() -> None:
    moved = []
    for scale in (1e-3, 1e3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 8, 3))
        before = model[0].weight.detach().clone()
        model[0].weight.grad = scale * torch.randn(8, 8, 3, 3)
        MuonAdamW(model, weight_decay=0.0).step()
        moved.append(model[0].weight.detach() - before)
    torch.testing.assert_close(*moved, rtol=0.05, atol=1e-4)
    assert moved[0].flatten(1).norm() == pytest.approx(0.02 * 8**0.5, rel=0.3)


def test_learning_rates_scale_together() -> None:
    optimizer = MuonAdamW(nn.Sequential(nn.Conv2d(8, 8, 3)), muon_lr=0.02, adam_lr=0.001)
    optimizer.scale_lr(0.5)
    optimizer.scale_lr(0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.00025]
