"""How unusual a latent is where it stands: monsters, flashes and shots are rare, walls are not.

A squared error over the whole frame hardly asks for a monster, which fills a hundredth of it and is seen in a
tenth of the frames; the denoiser then learns to leave it out. Latents are compared with all that were seen at
their own position, so what the camera sweeps past is usual everywhere, and what stands before it is not.
"""

from __future__ import annotations

import torch

from gamengen.latents import LatentEpisodes, window_starts

RIDGE = 0.02  # added to every variance; a latent channel has about 1 over all positions
MOST_FRAMES = 8192  # that the statistics are taken from
GAIN, MOST = 2.0, 6.0
RARE = 2.5  # the distance of what is called rare: about one position in thirty, in a game with few monsters
STILL = 0.05  # squared difference a channel of a position that stays as it is; two unlike latents have 2
STEADY_STRIDE = 8  # of the pairs of frames that are looked at
CHUNK = 512


class Rarity:
    """The mean and the covariance at each position of latents (N, C, h, w), all finite, N at least 1."""

    def __init__(self, latents: torch.Tensor) -> None:
        stride = -(-len(latents) // MOST_FRAMES)
        chosen = latents[::stride]
        count, channels = chosen.shape[:2]
        self._mean = torch.stack([part.float().sum(0) for part in chosen.split(CHUNK)]).sum(0) / count
        gram = torch.zeros(*chosen.shape[2:], channels, channels, device=chosen.device)
        for part in chosen.split(CHUNK):
            away = self._away(part)
            gram += away.transpose(-1, -2) @ away
        variance = gram / count + RIDGE * torch.eye(channels, device=gram.device)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(variance))

    def distance(self, latents: torch.Tensor) -> torch.Tensor:
        """Squared Mahalanobis distance a channel of latents (B, C, h, w), (B, h, w); its mean is 1 at most."""
        with torch.autocast(latents.device.type, enabled=False):  # bfloat16 would lose small differences
            away = self._away(latents)
            return ((away @ self._inverse) * away).mean(-1).permute(2, 0, 1)

    def rare(self, latents: torch.Tensor) -> torch.Tensor:
        """Which positions of latents (B, C, h, w) are unusual, (B, h, w) bool."""
        return self.distance(latents) > RARE

    def weight(self, latents: torch.Tensor) -> torch.Tensor:
        """What an error at each position counts, (B, h, w): 1 where the latents (B, C, h, w) are usual, 13 at most."""
        return 1 + GAIN * (self.distance(latents) - 1).clamp(0, MOST)

    def frame_weights(self, latents: torch.Tensor) -> torch.Tensor:
        """The mean weight of each of many frames (N, C, h, w), (N,) on the CPU."""
        parts = (part.to(self._mean.device) for part in latents.split(CHUNK))  # which may not all fit there
        return torch.cat([self.weight(part).mean(dim=(1, 2)) for part in parts]).cpu()

    def _away(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents.float() - self._mean).permute(2, 3, 0, 1)  # (h, w, B, C)


def steady_positions(episodes: LatentEpisodes) -> torch.Tensor:
    """How often each position stays as it is while most of the picture moves, (h, w) in [0, 1]: 1 in a score bar.

    0 everywhere where the picture never moves.
    """
    first = torch.from_numpy(window_starts(episodes.lengths, 2)[::STEADY_STRIDE]).to(episodes.latents.device)
    still = []
    for part in first.split(CHUNK):
        change = episodes.latents[part + 1].float() - episodes.latents[part].float()
        still.append(change.square().mean(dim=1) < STILL)
    found = torch.cat(still)
    moving = found[found.float().mean(dim=(1, 2)) < 0.5].float()
    return moving.mean(dim=0) if len(moving) else torch.zeros_like(found[0], dtype=torch.float32)
