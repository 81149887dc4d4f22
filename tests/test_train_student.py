"""Distillation: one step of the student goes where several of its teacher's go."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gamengen.autoencoder import Autoencoder, normalise
from gamengen.denoiser import Denoiser
from gamengen.diffusion import SamplerConfig, sample_next
from gamengen.latents import LatentEpisodes
from gamengen.presets import PRESETS
from gamengen.train_student import TEACHER_STEPS, StudentTask
from gamengen.training import Trainer, TrainOptions

TINY = PRESETS["tiny"]


def task_and_teacher(episodes: LatentEpisodes) -> tuple[StudentTask, Denoiser]:
    torch.manual_seed(0)
    teacher = Denoiser(TINY.denoiser)
    for parameter in teacher.last.parameters():  # what an untrained one has at zero
        nn.init.normal_(parameter, std=0.1)
    student = copy.deepcopy(teacher)
    return StudentTask(student, teacher, Autoencoder(TINY.autoencoder), episodes, episodes, seed=1, batch=16), teacher


def made_up_episodes() -> LatentEpisodes:
    latents = normalise(torch.randn(60, 8, 2, 3, generator=torch.Generator().manual_seed(2))).half()
    actions = np.random.default_rng(0).integers(0, 2, (60, 3)).astype(np.float32)
    return LatentEpisodes(latents, torch.from_numpy(actions), (30, 30))


def gap(model: nn.Module, teacher: Denoiser, steps: int, episodes: LatentEpisodes) -> float:
    """Mean squared distance of ``steps`` steps of ``model`` from the teacher's, from the same noise."""
    context = torch.stack([episodes.latents[n : n + 4].float() for n in range(20)])
    actions = torch.stack([episodes.actions[n : n + 4] for n in range(20)])
    noise = torch.randn(1, 20, 8, 2, 3, generator=torch.Generator().manual_seed(3))
    end = sample_next(teacher, context, actions, noise, SamplerConfig(TEACHER_STEPS))
    assert isinstance(model, Denoiser)
    return float((sample_next(model, context, actions, noise, SamplerConfig(steps)) - end).square().mean())


def test_the_student_nears_its_teacher_in_one_step(tmp_path: Path) -> None:
    episodes = made_up_episodes()
    task, teacher = task_and_teacher(episodes)
    weights = copy.deepcopy(teacher.state_dict())
    before = gap(task.model, teacher, 1, episodes)
    assert before > 0.01
    Trainer(task, TrainOptions(steps=150, muon_lr=0.01, ema=0.9), tmp_path).run()
    assert gap(task.model, teacher, 1, episodes) < 0.4 * before
    assert gap(task.model, teacher, TEACHER_STEPS, episodes) < 0.4 * before, "it knows the points between too"
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
