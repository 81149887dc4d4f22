"""Training an outcome head on recorded rewards, ends and game variables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gamengen.devices import place
from gamengen.latents import LatentEpisodes
from gamengen.outcome import OutcomeConfig, OutcomeHead, level_bins, reward_bins, two_hot
from gamengen.processes import check_batch, share
from gamengen.training import Task, step_generator
from recorder.episodes import read_results
from recorder.recording import Recording, split_held_out

LATENT_NOISE = 0.3  # at most: generated latents are not as clean as encoded ones
LEVELS = ("HEALTH", "ARMOR", "SELECTED_WEAPON_AMMO")  # what Doom's score bar shows
COUNTERS = ("KILLCOUNT",)
MOST_SCORED = 16_384  # frames: all of a few thousand, and a part of many


@dataclass(frozen=True)
class Results:
    """What came of each step, at the frame that it led to; episodes laid end to end as in :class:`LatentEpisodes`.

    Args:
        rewards: (N,) float32. An episode that ended gives its last reward, of the step that no frame follows,
            to its last frame.
        ends: (N,) float32, 1 at the last frame of an episode that ended by itself.
        rises: (N, M) float32, 1 where a counter rose.
        levels: (N, L) float32, as shares of their scales.
        usable: (U,) int64, frames that have one before them in their episode.
    """

    rewards: torch.Tensor
    ends: torch.Tensor
    rises: torch.Tensor
    levels: torch.Tensor
    usable: np.ndarray


def outcome_config(recording: Recording, latents: LatentEpisodes) -> OutcomeConfig:
    """What can be told of this game: reward and end, and those of Doom's variables that vary in the recording."""
    infos = recording.episodes()
    names = infos[0].variable_names
    variables = np.concatenate([read_results(info.path)[1] for info in infos])
    highest = {name: float(variables[:, names.index(name)].max()) for name in names}
    varying = {name for name in names if np.ptp(variables[:, names.index(name)]) > 0}
    levels = tuple(name for name in LEVELS if name in varying)
    counters = tuple(name for name in COUNTERS if name in varying)
    channels, height, width = latents.latents.shape[1:]
    scales = tuple(highest[name] for name in levels)
    return OutcomeConfig(channels, latents.actions.shape[1], height, width, levels, scales, counters)


def find_results(recording: Recording, config: OutcomeConfig) -> tuple[Results, Results]:
    """The recording's results: (train, held out), split and ordered as the latents are."""
    parts = split_held_out([info.path for info in recording.episodes()])
    ended = {info.path: info.terminated for info in recording.episodes()}
    names = recording.episodes()[0].variable_names
    return (read_all_results(parts[0], ended, names, config), read_all_results(parts[1], ended, names, config))


def read_all_results(
    paths: list[Path], ended: dict[Path, bool], names: tuple[str, ...], config: OutcomeConfig
) -> Results:
    """The results of the episodes ``paths``, laid end to end; ``ended`` says which ended by themselves."""
    columns: dict[str, list[np.ndarray]] = {"rewards": [], "ends": [], "rises": [], "levels": []}
    usable, first = [], 0
    for path in paths:
        earned, variables = read_results(path)
        count = len(earned)
        rewards = np.concatenate([[0.0], earned[:-1]])
        ends = np.zeros(count)
        if ended[path]:
            rewards[-1] += earned[-1]
            ends[-1] = 1
        picked = variables[:, [names.index(name) for name in config.counters]]
        rises = np.diff(picked, axis=0, prepend=picked[:1]) > 0
        levels = variables[:, [names.index(name) for name in config.levels]] / np.array(config.scales)
        for column, part in zip(columns.values(), (rewards, ends, rises, levels), strict=True):
            column.append(part.astype(np.float32))
        usable.append(np.arange(first + 1, first + count))
        first += count
    joined = {name: torch.from_numpy(np.concatenate(column)) for name, column in columns.items()}
    return Results(**joined, usable=np.concatenate(usable))


class OutcomeTask(Task):
    """Tell what came of a step from the latents on both sides of it; see :class:`gamengen.training.Task`."""

    name = "outcome"

    def __init__(
        self,
        model: OutcomeHead,
        train: tuple[LatentEpisodes, Results],
        held_out: tuple[LatentEpisodes, Results],
        seed: int,
        batch: int = 128,
    ) -> None:
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        self.head, self._train, self._held_out = model, train, held_out
        self._seed, self._batch = seed, batch
        check_batch(batch)
        truth = train[1]
        model.expect(float(truth.ends.mean()), truth.rises.mean(dim=0))

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Cross-entropy of all that is told, on frames drawn evenly, so that probabilities mean what they say."""
        generator = step_generator(self._seed, step, self._device)
        picks, (before, now, action) = self.draw(step)
        level = LATENT_NOISE * torch.rand(len(picks), 1, 1, 1, generator=generator, device=self._device)
        noise = torch.randn(2, *now.shape, generator=generator, device=self._device)
        before, now = share(before + level * noise[0]), share(now + level * noise[1])
        picks, action = share(picks), share(action)
        kept = [share(part) for part in self.head.draw_dropout(self._batch, generator)]
        logits = self.head(before, now, action, kept)
        reward, ends, rises, levels = self.head.parts(logits)
        truth = self._train[1]

        def at(values: torch.Tensor) -> torch.Tensor:
            return values[picks].to(self._device)

        loss = F.cross_entropy(reward, two_hot(at(truth.rewards), reward_bins(self._device)))
        loss = loss + F.binary_cross_entropy_with_logits(ends, at(truth.ends))
        if rises.shape[1]:
            loss = loss + F.binary_cross_entropy_with_logits(rises, at(truth.rises))
        if levels.shape[1]:
            wanted = two_hot(at(truth.levels), level_bins(self._device))
            loss = loss + F.cross_entropy(levels.flatten(0, 1), wanted.flatten(0, 1))
        return loss

    def draw(self, step: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Frames (B,), and the latents and actions that lead to them; see :func:`step_inputs`."""
        rng, usable = np.random.default_rng([self._seed, step]), self._train[1].usable
        picks = torch.from_numpy(usable[rng.integers(len(usable), size=self._batch)])
        return picks, step_inputs(self._train[0], picks, self._device)

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Accuracy on held-out frames; see :func:`score_outcomes`."""
        return score_outcomes(self.head, *self._held_out, self._device), {}


def step_inputs(
    episodes: LatentEpisodes, picks: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The latents before the frames ``picks`` (B,) and at them, both (B, C, h, w), and the actions (B, A) between."""
    before, now = (episodes.latents[picks - back].float().to(device) for back in (1, 0))
    return before, now, episodes.actions[picks - 1].to(device)


def score_outcomes(
    head: OutcomeHead, episodes: LatentEpisodes, truth: Results, device: torch.device
) -> dict[str, float]:
    """How right a head is on frames of episodes.

    Returns:
        ``reward_error`` and ``HEALTH_error`` (of each level) are mean absolute errors, ``reward_error_zero`` that of
        answering 0. ``ends_auc`` and ``KILLCOUNT_auc`` are areas under the ROC curve; ``ends_expected`` and the like
        are what is expected in all, as a share of what happened: 1 is right.
    """
    from torchmetrics.functional.classification import binary_auroc

    usable = truth.usable
    picks = torch.from_numpy(usable[:: max(1, len(usable) // MOST_SCORED)])
    found = [head.read(*step_inputs(episodes, part, device)) for part in picks.split(512)]
    reward, wanted = np.concatenate([part.reward for part in found]), truth.rewards[picks].numpy()
    figures = {
        "reward_error": float(np.abs(reward - wanted).mean()),
        "reward_error_zero": float(np.abs(wanted).mean()),
    }
    events = {"ends": (np.concatenate([part.ends for part in found]), truth.ends[picks])}
    for n, name in enumerate(head.config.counters):
        events[name] = (np.concatenate([part.rises[name] for part in found]), truth.rises[picks, n])
    for name, (chance, happened) in events.items():
        if 0 < happened.sum() < len(happened):
            figures[f"{name}_auc"] = float(binary_auroc(torch.from_numpy(chance), happened.long()))
            figures[f"{name}_expected"] = float(chance.sum() / happened.sum())
    for n, name in enumerate(head.config.levels):
        told = np.concatenate([part.levels[name] for part in found])
        real = truth.levels[picks, n].numpy() * head.config.scales[n]
        figures[f"{name}_error"] = float(np.abs(told - real).mean())
    return figures
