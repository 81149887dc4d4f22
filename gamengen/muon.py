"""Muon for the hidden convolutions, AdamW for everything else, as one optimizer.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found by
Newton-Schulz iterations. Convolution kernels are flattened to (out, in * kh * kw).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class MuonAdamW(torch.optim.Optimizer):
    """Muon on 4-D kernels that are neither a network's first nor its last, AdamW on the rest.

    Args:
        model: the model; edge convolutions have ``first`` or ``last`` in their names.
        muon_lr: learning rate of Muon's updates, whose RMS does not depend on the gradient.
        adam_lr: learning rate of AdamW.
        momentum: Nesterov momentum of Muon.
        weight_decay: decoupled, on Muon's matrices only.
    """

    def __init__(
        self,
        model: nn.Module,
        muon_lr: float = 0.02,
        adam_lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        hidden: list[nn.Parameter] = []
        other: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            edge = any("first" in part or "last" in part for part in name.split("."))
            (hidden if parameter.ndim == 4 and not edge else other).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": hidden, "lr": muon_lr, "base_lr": muon_lr, "muon": True, "weight_decay": weight_decay},
            {"params": other, "lr": adam_lr, "base_lr": adam_lr, "muon": False, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"momentum": momentum, "betas": (0.9, 0.95), "eps": 1e-8})

    def scale_lr(self, factor: float) -> None:
        """Set every group's learning rate to ``factor`` times its base."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters from their gradients."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    (self._muon if group["muon"] else self._adam)(parameter, group)

    def _muon(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(momentum, group["momentum"]).flatten(1)
        update = orthogonalise(matrix) * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.view(parameter.shape).to(parameter.dtype), alpha=-group["lr"])

    def _adam(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None
        beta1, beta2 = group["betas"]
        state["step"] += 1
        count = float(state["step"])
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (state["square"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], denominator, value=-group["lr"] / (1 - beta1**count))


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest (semi-)orthogonal matrix to ``matrix`` (m, n), in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
