"""Training an outcome head on recorded rewards, ends and game variables.

What it reads in play are the model's own frames, on which a head that has seen recorded ones alone finds ends that
are none. So it also learns from short free plays what their frames show, which is what the recorded ones show there
until one of the two games is hurt and the other is not; see :func:`trusted`. Plays that are told the recorded score are
hurt as the recorded game is, so what that shows, and where it ends, is learned from all of their frames.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gamengen.devices import place
from gamengen.latents import LatentEpisodes
from gamengen.outcome import OutcomeConfig, OutcomeHead, level_bins, reward_bins, two_hot
from gamengen.player import LONGEST_PLAY, PlayedTask, Player
from gamengen.processes import check_batch, even, share
from gamengen.training import step_generator
from recorder.episodes import read_results
from recorder.recording import Recording, split_held_out

LATENT_NOISE = 0.3  # at most: generated latents are not as clean as encoded ones
LEVELS = ("HEALTH", "ARMOR", "SELECTED_WEAPON_AMMO")  # what Doom's score bar shows
COUNTERS = ("KILLCOUNT",)
PLAYS = 8  # free plays, beside a batch of recorded frames
TRUSTED_FRAMES = 4  # of a play, in which it shows what is recorded
PLAYED_WEIGHT = 0.5  # of what they show, in the loss
MOST_PLAYED = 512  # steps of held-out plays that are scored
MOST_SCORED = 16_384  # frames: all of a few thousand, and a part of many


@dataclass(frozen=True)
class Results:
    """What came of each step, at the frame that it led to; episodes laid end to end as in :class:`LatentEpisodes`.

    Args:
        rewards: (N,) float32. An episode that ended gives its last reward, of the step that no frame follows,
            to its last frame.
        ends: (N,) float32, 1 at the last frame of an episode that ended by itself. Where a tally draws how games are
            lost, such an end and its reward are left to that.
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


def find_results(recording: Recording, config: OutcomeConfig, lost: Collection[Path] = ()) -> tuple[Results, Results]:
    """The recording's results: (train, held out), split and ordered as the latents are.

    The ends of the episodes that were ``lost``, as a tally tells, are not among them.
    """
    parts = split_held_out([info.path for info in recording.episodes()])
    ended = {info.path: info.terminated and info.path not in lost for info in recording.episodes()}
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


class OutcomeTask(PlayedTask):
    """Tell what came of a step from the latents on both sides of it; see :class:`gamengen.training.Task`.

    Args:
        model: the head.
        train: latents, and what came of their steps; so ``held_out``.
        seed: of what is drawn.
        batch: recorded frames a step.
        player: makes free plays, of whose frames the head learns levels and ends; None leaves them out.
    """

    name = "outcome"

    def __init__(
        self,
        model: OutcomeHead,
        train: tuple[LatentEpisodes, Results],
        held_out: tuple[LatentEpisodes, Results],
        seed: int,
        batch: int = 128,
        player: Player | None = None,
    ) -> None:
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        self.head, self._train, self._held_out = model, train, held_out
        self._seed, self._batch, self._player = seed, batch, player
        self._plays = self._begin_plays(train[0], even(PLAYS))
        check_batch(batch)
        truth = train[1]
        model.expect(float(truth.ends.mean()), truth.rises.mean(dim=0))

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Cross-entropy of all that is told, on frames drawn evenly, so that probabilities mean what they say.

        Kills and rewards are learned from recorded frames alone: a shot that hits there may miss in a free play.
        """
        generator = step_generator(self._seed, step, self._device)
        picks, inputs = self.draw(step)
        reward, ends, rises, levels = self._tell(inputs, generator)
        picks, truth = share(picks), self._train[1]
        loss = F.cross_entropy(reward, two_hot(truth.rewards[picks].to(self._device), reward_bins(self._device)))
        if rises.shape[1]:
            loss = loss + F.binary_cross_entropy_with_logits(rises, truth.rises[picks].to(self._device))
        loss = loss + self._shown(picks, ends, levels)
        if self._plays is not None and self._player is not None:
            self._plays.windows(np.random.default_rng([self._seed, step, 1]))  # another begins where one has ended
            self._player.advance(self._plays, generator)
            *played, frames, began = self._plays.newest()
            _, ends, _, levels = self._tell((played[0], played[1], played[2]), generator)
            frames, began = share(frames), share(began)
            known = self._trusted(self._train, frames, began)
            loss = loss + PLAYED_WEIGHT * self._shown(frames, ends, levels, known)
        return loss

    def _tell(
        self, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the head says in training of this process's share of (B, ...) steps, noised and with dropout."""
        before, now, action = inputs
        level = LATENT_NOISE * torch.rand(len(now), 1, 1, 1, generator=generator, device=self._device)
        noise = torch.randn(2, *now.shape, generator=generator, device=self._device)
        kept = [share(part) for part in self.head.draw_dropout(len(now), generator)]
        noised = share(before + level * noise[0]), share(now + level * noise[1])
        return self.head.parts(self.head(*noised, share(action), kept))

    def _shown(
        self, frames: torch.Tensor, ends: torch.Tensor, levels: torch.Tensor, known: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of what a frame shows: whether the game ends (B,), and levels (B, L, bins).

        What is not ``known`` (B, 1 + L) counts nothing.
        """
        truth = self._train[1]
        if known is None:
            known = torch.ones(len(frames), 1 + levels.shape[1], dtype=torch.bool)
        counts = known.to(self._device).float()
        cost = F.binary_cross_entropy_with_logits(ends, truth.ends[frames].to(self._device), reduction="none")
        loss = (cost * counts[:, 0]).mean()
        if levels.shape[1]:
            wanted = two_hot(truth.levels[frames].to(self._device), level_bins(self._device))
            cost = F.cross_entropy(levels.flatten(0, 1), wanted.flatten(0, 1), reduction="none")
            loss = loss + (cost * counts[:, 1:].flatten()).mean()
        return loss

    def draw(self, step: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Frames (B,), and the latents and actions that lead to them; see :func:`step_inputs`."""
        rng, usable = np.random.default_rng([self._seed, step]), self._train[1].usable
        picks = torch.from_numpy(usable[rng.integers(len(usable), size=self._batch)])
        return picks, step_inputs(self._train[0], picks, self._device)

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Accuracy on held-out frames, see :func:`score_outcomes`; and on those of free plays that begin there.

        ``played_ends`` is the mean probability of an end that is told there, ``played_ends_real`` the share of ends
        among the recorded frames in their places, and ``played_HEALTH_error`` (of each level) a mean absolute error,
        both where what the play shows is known, see :func:`trusted`.
        """
        return score_outcomes(self.head, *self._held_out, self._device) | self._score_plays(), {}

    @staticmethod
    def _trusted(part: tuple[LatentEpisodes, Results], frames: torch.Tensor, began: torch.Tensor) -> torch.Tensor:
        """As :func:`trusted`; of plays that are told the recorded score, all."""
        if part[0].tally is not None:
            return torch.ones(len(frames), 1 + part[1].levels.shape[1], dtype=torch.bool)
        return trusted(part[1], frames, began)

    def _score_plays(self) -> dict[str, float]:
        plays = self._begin_plays(self._held_out[0], PLAYS)
        if plays is None or self._player is None:
            return {}
        rng, generator = np.random.default_rng(self._seed), step_generator(self._seed, 0, self._device)
        steps = []
        for _ in range(max(1, min(MOST_PLAYED, len(self._held_out[1].usable)) // PLAYS)):
            plays.windows(rng)
            self._player.advance(plays, generator, together=False)  # the first process alone evaluates
            steps.append(plays.newest())
        before, now, actions, frames, began = (torch.cat(parts) for parts in zip(*steps, strict=True))
        found, truth = self.head.read(before, now, actions), self._held_out[1]
        known = self._trusted(self._held_out, frames, began).numpy()
        figures = {}
        if known[:, 0].any():
            figures["played_ends"] = float(found.ends[known[:, 0]].mean())
            figures["played_ends_real"] = float(truth.ends[frames].numpy()[known[:, 0]].mean())
        for n, name in enumerate(self.head.config.levels):
            real = truth.levels[frames, n].numpy() * self.head.config.scales[n]
            if known[:, 1 + n].any():
                wrong = np.abs(found.levels[name] - real)[known[:, 1 + n]]
                figures[f"played_{name}_error"] = float(wrong.mean())
        return figures


def trusted(truth: Results, frames: torch.Tensor, began: torch.Tensor) -> torch.Tensor:
    """What is known of frames of free plays from the recorded ones in their places.

    A play goes another way: one is hurt where the other is not. After its first frames it shows a recorded level only
    where that has not changed since the play began; whether it ends is unknown where the recorded game ends soon.

    Args:
        truth: of the recording.
        frames: the recorded frames (B,) in their places.
        began: those (B,) that the plays began after.

    Returns:
        (B, 1 + L) bool: whether the end is known, and each level.
    """
    young = (frames - began <= TRUSTED_FRAMES)[:, None]
    coming = frames[:, None] + torch.arange(LONGEST_PLAY)
    ends = truth.ends[coming.clamp(max=len(truth.ends) - 1)].any(dim=1, keepdim=True)
    return young | torch.cat([~ends, truth.levels[frames] == truth.levels[began]], dim=1)


def step_inputs(
    episodes: LatentEpisodes, picks: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The latents before the frames ``picks`` (B,) and at them, both (B, C, h, w), and the actions (B, A) between."""
    before, now = (episodes.latents[picks - back].float().to(device) for back in (1, 0))
    return before, now, episodes.actions[picks - 1].to(device)


def score_outcomes(
    head: OutcomeHead,
    episodes: LatentEpisodes,
    truth: Results,
    device: torch.device,
    lost: torch.Tensor | None = None,
    lost_reward: float = 0.0,
) -> dict[str, float]:
    """How right a head is on frames of episodes.

    Args:
        head: what is to be scored.
        episodes: the frames, as latents.
        truth: what came of their steps.
        device: to compute on.
        lost: beside it, how likely the game is lost after each frame (N,), as a tally tells; None where none does.
        lost_reward: what that earns.

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
    ends = np.concatenate([part.ends for part in found])
    if lost is not None:
        chance = lost[picks].numpy()
        reward, ends = reward + lost_reward * chance, 1 - (1 - ends) * (1 - chance)
    figures = {
        "reward_error": float(np.abs(reward - wanted).mean()),
        "reward_error_zero": float(np.abs(wanted).mean()),
    }
    events = {"ends": (ends, truth.ends[picks])}
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
