"""A loss made of parts, each of which asks as strongly as it should."""

from __future__ import annotations

import torch

from gamengen import processes


def balanced(part: torch.Tensor, other: torch.Tensor, at: torch.Tensor, share: float) -> torch.Tensor:
    """``part`` of a loss, scaled so that its gradient at ``at`` is ``share`` as long as that of the loss ``other``.

    Lengths are those of the whole batch, so that any number of processes trains the same model.
    """
    squares = [
        float(torch.autograd.grad(loss, at, retain_graph=True)[0].float().square().sum()) for loss in (other, part)
    ]
    wanted, found = (processes.average(square, at.device) ** 0.5 for square in squares)
    return part * (share * wanted / (found + 1e-8))
