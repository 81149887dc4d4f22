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

    def set_rates(self, muon_lr: float, adam_lr: float) -> None:
        """Other base learning rates, of Muon's parameters and of the others."""
        for group in self.param_groups:
            group["base_lr"] = muon_lr if group["muon"] else adam_lr

    def scale_lr(self, factor: float) -> None:
        """Set every group's learning rate to ``factor`` times its base."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters from their gradients; on a GPU, which wants few calls, those of one shape together."""
        assert closure is None
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                groups: dict[tuple[int, ...], list[torch.Tensor]] = {}
                for number, parameter in enumerate(given):
                    alone = () if parameter.is_cuda else (number,)  # a CPU would only copy more
                    groups.setdefault((len(parameter), parameter[0].numel(), *alone), []).append(parameter)
                for alike in groups.values():
                    self._muon(alike, group)
            elif given:
                self._adam(given, group)

    def _muon(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = _gradients(parameters)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        flat = [matrix.flatten(1) for matrix in ahead]
        matrices = torch.stack(flat) if len(flat) > 1 else flat[0][None]
        updates = orthogonalise(matrices) * max(1.0, matrices.shape[1] / matrices.shape[2]) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        shaped = [
            update.view(parameter.shape).to(parameter.dtype)
            for update, parameter in zip(updates.unbind(), parameters, strict=True)
        ]
        torch._foreach_add_(parameters, shaped, alpha=-group["lr"])

    def _adam(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "mean": torch.zeros_like(parameter),
                    "square": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        gradients = _gradients(parameters)
        means, squares = [state["mean"] for state in states], [state["square"] for state in states]
        beta1, beta2 = group["betas"]
        for state in states:
            state["step"] += 1
        counts = [float(state["step"]) for state in states]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(torch._foreach_div(squares, [1 - beta2**count for count in counts]))
        torch._foreach_add_(roots, group["eps"])
        rates = [-group["lr"] / (1 - beta1**count) for count in counts]
        torch._foreach_addcdiv_(parameters, means, roots, rates)


def _gradients(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """About the nearest (semi-)orthogonal matrix to each of ``matrices`` (..., m, n), in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16().reshape(-1, *matrices.shape[-2:])
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)
