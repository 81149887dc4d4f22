"""Choosing the starts that a checkpoint stores: many situations, none of them an end."""

from __future__ import annotations

import numpy as np
import torch

from agents.errors import DataError
from gamengen.checkpoints import Spawns
from gamengen.latents import gather_windows, window_starts
from gamengen.train_decoder import Footage

SPAWNS = 24
CANDIDATES = 512
AHEAD = 26  # frames that each start's episode went on, at least, where there are such episodes
ROUNDS = 10


def choose_spawns(footage: Footage, context: int, frames: bool, seed: int) -> Spawns:
    """Starts that stand for all that is seen: the middles of as many clusters of random windows, by their last latents.

    With ``frames``, the one on screen at each start is kept too, and the motions by which it came where they are known.
    """
    starts = _starts(footage.episodes.lengths, context)
    rng = np.random.default_rng([seed, 7])
    starts = rng.choice(starts, min(CANDIDATES, len(starts)), replace=False)
    latents, actions = gather_windows(footage.episodes, starts, context)
    chosen = middles(latents[:, -1].flatten(1).cpu(), SPAWNS)
    shown = None
    if frames:
        last = [footage.frames(int(starts[number]) + context - 1, 1) for number in chosen]
        shown = torch.from_numpy(np.concatenate(last))
    motions = None
    if footage.episodes.motions is not None:
        motions = footage.episodes.moving(torch.from_numpy(starts[chosen] + context - 1)).float().cpu()
    return Spawns(latents[chosen].half().cpu(), actions[chosen].float().cpu(), shown, motions)


def middles(points: torch.Tensor, count: int) -> list[int]:
    """Of points (N, D), those nearest the centres of ``count`` clusters (k-means, from farthest-point centres)."""
    chosen = [0]
    distance = (points - points[0]).square().sum(1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    centres = points[chosen].clone()
    for _ in range(ROUNDS):
        owner = torch.cdist(points, centres).argmin(1)
        for number in range(len(centres)):
            if (owner == number).any():
                centres[number] = points[owner == number].mean(0)
    found: list[int] = []
    for near in torch.cdist(centres, points):
        near[found] = torch.inf  # none twice
        found.append(int(near.argmin()))
    return found


def _starts(lengths: tuple[int, ...], context: int) -> np.ndarray:
    try:
        starts = window_starts(lengths, context + AHEAD)
    except DataError:
        return window_starts(lengths, context)
    return starts if len(starts) >= SPAWNS else window_starts(lengths, context)
