"""How predicted latents look beside what they should show: crops of both, decoded alone, compared by a network.

That network is LPIPS of VGG (Zhang et al., arXiv 1801.03924): it sees as people do, forgives a brick that is a little
off, and does not forgive one that is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from agents.errors import OptionError
from gamengen import processes
from gamengen.autoencoder import Autoencoder
from gamengen.devices import place
from gamengen.evaluation.lpips import Lpips

CROP = (8, 10)  # positions of a latent that are decoded and compared


def load_eyes(path: Path) -> Lpips:
    """LPIPS of VGG, to train by.

    Raises:
        DataError: the file cannot be used.
        OptionError: it is of AlexNet, by which ``gamengen evaluate`` measures: that would measure what was trained.
    """
    eyes = Lpips.load(path)
    if eyes.network != "vgg":
        what = f"it is LPIPS of {eyes.network}, which measures what was trained and must not train it"
        raise OptionError(what, f"--lpips-weights {path}", "make those of VGG: gamengen lpips --network vgg")
    return eyes


class Looks:
    """Compares some of a batch.

    Args:
        autoencoder: whose decoder, without the last frame in view, makes what is compared; it stays as it is.
        eyes: tells how far pictures (B, 3, H, W) are from others, (B,): LPIPS of VGG.
        device: where it computes.
        count: how many of a batch it looks at: to decode and compare one takes eight times as long as to predict it.
    """

    def __init__(self, autoencoder: Autoencoder, eyes: nn.Module, device: torch.device, count: int) -> None:
        self._autoencoder, self._count = autoencoder.requires_grad_(False), max(1, count)
        self._eyes = place(eyes, device)

    def distance(
        self,
        predicted: torch.Tensor,
        wanted: torch.Tensor,
        weight: torch.Tensor,
        rng: np.random.Generator,
        among: int | None = None,
    ) -> torch.Tensor:
        """Mean distance of crops of some of the latents.

        Args:
            predicted: this process's share of the batch (B / processes, C, h, w).
            wanted: what it should show, of the whole batch (B, C, h, w).
            weight: (B, h, w); a crop holds a position that is drawn by it.
            rng: the same in all processes.
            among: how many, the first of the batch, it picks from; all by default.
        """
        among = len(wanted) if among is None else among
        sizes = wanted.shape[2:]
        crop = [min(most, size) for most, size in zip(CROP, sizes, strict=True)]
        first, own = len(predicted) * processes.rank(), len(predicted)
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        picks = rng.permutation(among)[: self._count]
        for pick in picks:
            chances = weight[pick].flatten().double().cpu().numpy()
            position = np.unravel_index(rng.choice(len(chances), p=chances / chances.sum()), sizes)
            top, left = (
                int(np.clip(at - rng.integers(length), 0, size - length))
                for at, length, size in zip(position, crop, sizes, strict=True)
            )
            rows, columns = slice(top, top + crop[0]), slice(left, left + crop[1])
            if first <= pick < first + own:
                pairs.append((predicted[pick - first, :, rows, columns], wanted[pick, :, rows, columns]))
        if not pairs:
            return predicted.sum() * 0
        shown, real = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        with torch.no_grad():
            target = self._autoencoder.decode(real).float()
        seen = self._eyes(target, self._autoencoder.decode(shown).float())
        return seen.sum() * processes.count() / len(picks)

    def whole(self, predicted: torch.Tensor, wanted: torch.Tensor) -> float:
        """Mean distance of whole latents (B, C, h, w) from others."""
        pairs = zip(wanted.float().split(4), predicted.float().split(4), strict=True)
        decoded = ((self._autoencoder.decode(part).float() for part in pair) for pair in pairs)
        return float(torch.cat([self._eyes(*pair) for pair in decoded]).mean())
