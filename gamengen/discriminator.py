"""Small patch discriminators: they tell what is real from what was made, frames or latents. Used in training alone.

An absolute or squared error asks a decoder for the mean of all that may come, which is blurred. A discriminator asks
for one that may be real (Isola et al., arXiv 1611.07004; hinge loss as in Lim and Ye, arXiv 1705.02894; its weight by
gradients as in Esser et al., arXiv 2012.09841, equation 7). A student that is matched to a teacher is told by one what
its plays hold that the game's frames do not, whatever the teacher makes of them (as in arXiv 2405.14867).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gamengen import processes
from gamengen.autoencoder import PATCH
from gamengen.balance import balanced
from gamengen.devices import place

WIDTHS = (64, 128, 128)  # at 1/4, 1/8 and 1/16 of the frame's size
LATENT_WIDTHS = (96, 128)  # at the latents' size and half of it
LEARNING_RATE = 4e-4


class Discriminator(nn.Module):
    """Pixels (B, 3, H, W) to logits (B, 1, H/16, W/16): positive where a patch looks real."""

    def __init__(self) -> None:
        super().__init__()
        near, middle, far = WIDTHS
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(3 * PATCH**2, near, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(near, middle, 4, stride=2, padding=1),
            nn.GroupNorm(8, middle),
            nn.LeakyReLU(0.2),
            nn.Conv2d(middle, far, 4, stride=2, padding=1),
            nn.GroupNorm(8, far),
            nn.LeakyReLU(0.2),
            nn.Conv2d(far, 1, 3, padding=1),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.layers(pixels)


class LatentDiscriminator(nn.Module):
    """Latents (B, C, h, w) to logits (B, 1, h/2, w/2): positive where a patch of 12 positions looks real."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        near, far = LATENT_WIDTHS
        self.layers = nn.Sequential(
            nn.Conv2d(channels, near, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(near, far, 4, stride=2, padding=1),
            nn.GroupNorm(8, far),
            nn.LeakyReLU(0.2),
            nn.Conv2d(far, far, 3, padding=1),
            nn.GroupNorm(8, far),
            nn.LeakyReLU(0.2),
            nn.Conv2d(far, 1, 1),
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.layers(latents)


class Critic:
    """A discriminator that learns beside what it criticises: pixels (B, 3, H, W) or latents (B, C, h, w)."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = place(model, device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), LEARNING_RATE, betas=(0.5, 0.9), weight_decay=0)

    def learn(self, real: torch.Tensor, made: torch.Tensor) -> None:
        """One step at telling ``real`` from ``made``."""
        loss = F.relu(1 - self._model(real).float()).mean() + F.relu(1 + self._model(made.detach()).float()).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.average_gradients(self._model)
        self._optimizer.step()

    def loss(self, made: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
        """What is to be added to the loss ``other`` of ``made``.

        Its gradient there is ``share`` as long as that of ``other``.
        """
        self._model.requires_grad_(False)
        blame = -self._model(made).float().mean()
        self._model.requires_grad_(True)
        return balanced(blame, other, made, share)

    def state(self) -> dict[str, torch.Tensor]:
        """For the training state."""
        state = {f"critic.{name}": value for name, value in self._model.state_dict().items()}
        for number, parts in self._optimizer.state_dict()["state"].items():
            state |= {f"critic_optimizer.{number}.{name}": torch.as_tensor(value) for name, value in parts.items()}
        return state

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`; a state without one begins anew."""
        weights = {name.removeprefix("critic."): value for name, value in state.items() if name.startswith("critic.")}
        if not weights:
            return
        self._model.load_state_dict(weights)
        whole = self._optimizer.state_dict()
        for key, value in state.items():
            if key.startswith("critic_optimizer."):
                _, number, name = key.split(".")
                whole["state"].setdefault(int(number), {})[name] = value
        self._optimizer.load_state_dict(whole)
