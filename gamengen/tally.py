"""Tally: what the score bar counts, drawn before the frame that shows it.

A health that falls by twelve, a shot that takes a bullet: such events are rare and certain, there is nothing between.
A denoiser of few steps loses what is rare, and hardly learns to count from a recording's few examples. So the model
keeps the counts beside its latents. A small network tells from the past by how much each changes now, and how likely
that is; the change is drawn, and the denoiser is told it with one more latent, the mean of all recorded ones with such
counts and such changes: the digits of the score bar, the red of a hit, the flash of a shot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from agents.errors import OptionError

DIGITS = 3
BLANK = 10  # the place of a leading zero
TELLING = 4  # newest changes that a frame shows
LARGE = 40.0  # a change that counts fully; a larger one counts no more
SEEN = 3  # newest latents from which a change is told
DROPOUT = 0.3
SHARP = 50.0  # one over the squared error of a picture that is as good as a frame; latents have an RMS of 1
ROUNDS = 2  # of reading each count while the others stay


@dataclass(frozen=True)
class TallyConfig:
    """Sizes of a tally, and what it counts.

    Args:
        context: K, past frames whose actions it sees.
        channels: C, channels of a latent.
        actions: A, channels of an action.
        height: h, of a latent; so ``width``.
        levels: game variables that the score bar shows, by name, such as health; L of them.
        ranges: the lowest and the highest value of each.
        changes: what each may change by in one frame.
        vital: the level that must stay above 0: a change that leaves nothing of it loses the game. "" where none does.
        lost_reward: what the step that loses the game earns.
        named: levels that name what is held, such as a weapon, by a number that the score bar does not show.
        late: frames until the score bar shows a change, 0 or 1.
        features: width of the layers.
    """

    context: int
    channels: int
    actions: int
    height: int
    width: int
    levels: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    changes: tuple[tuple[float, ...], ...]
    late: int = 0
    features: int = 64
    vital: str = ""
    lost_reward: float = 0.0
    named: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("levels", "named"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("ranges", "changes"):  # which JSON gives as lists
            object.__setattr__(self, name, tuple(tuple(map(float, part)) for part in getattr(self, name)))
        if min(self.context, self.channels, self.actions, self.height, self.width, self.features) < 1:
            raise OptionError("a tally's sizes must be at least 1", "tally", "restore config.json")
        if not self.levels or not len(self.levels) == len(self.ranges) == len(self.changes):
            raise OptionError("a tally needs levels, and a range and changes for each", "tally", "restore config.json")
        if any(len(part) != 2 or not 0 <= part[0] <= part[1] < 10**DIGITS for part in self.ranges):
            raise OptionError(f"a level counts from 0 to {10**DIGITS - 1}", "tally", "restore config.json")
        if any(0 not in part or not all(map(math.isfinite, part)) for part in self.changes) or self.late not in (0, 1):
            raise OptionError("a level may change by 0 too, and shows at most a frame late", "tally", "restore it")
        if (self.vital and self.vital not in self.levels) or not math.isfinite(self.lost_reward):
            raise OptionError("what must stay above 0 is one of the levels", "tally", "restore config.json")
        if not set(self.named) <= set(self.levels) - {self.vital}:
            raise OptionError("what is named is one of the levels, and cannot be lost", "tally", "restore config.json")

    @property
    def facts(self) -> int:
        """T, numbers in which counts and their changes are written; see :meth:`Tally.facts`."""
        return 1 + len(self.levels) * (2 * DIGITS * (BLANK + 1) + 4 * TELLING)

    def names(self, level: str) -> slice:
        """Where the values of a ``named`` level stand among those of all of them."""
        first = sum(self._values(other) for other in self.named[: self.named.index(level)])
        return slice(first, first + self._values(level))

    def _values(self, level: str) -> int:
        low, high = self.ranges[self.levels.index(level)]
        return math.floor(high) - math.floor(low) + 1


class Tally(nn.Module):
    """Counts of B games. Their newest TELLING + 1 are kept, (B, TELLING + 1, L) float32, oldest first.

    Its pictures, and by what names are read, are not trained but found at once, see
    :func:`gamengen.train_tally.find_pictures` and :func:`gamengen.train_tally.find_names`.
    """

    pictures: torch.Tensor
    clear: torch.Tensor
    digits: torch.Tensor
    readers: torch.Tensor
    usual: torch.Tensor

    def __init__(self, config: TallyConfig) -> None:
        super().__init__()
        self.config = config
        size = config.height, config.width
        self.register_buffer("pictures", torch.zeros(config.facts, config.channels, *size))
        self.register_buffer("clear", torch.zeros(size))
        if config.named:
            values = config.names(config.named[-1]).stop
            self.register_buffer("readers", torch.zeros(values, config.channels, *size))
            self.register_buffer("usual", torch.zeros(values, 2))  # what is added, and how often each was seen
        self.register_buffer("digits", _digits(torch.arange(10.0**DIGITS)), persistent=False)
        wide, told = config.features, config.context * config.actions + config.facts
        self.seen = min(SEEN, config.context)
        self.first = nn.Conv2d(self.seen * config.channels, wide, 1)
        self.told = nn.Linear(told, wide)
        self.near = nn.Conv2d(wide, 2 * wide, 3, stride=2, padding=1)
        self.far = nn.Conv2d(2 * wide, 2 * wide, 3, stride=2, padding=1)
        positions = -(-config.height // 4) * -(-config.width // 4)
        self.hidden = nn.Linear(2 * wide * positions + told, 4 * wide)
        self.last = nn.Linear(4 * wide, sum(map(len, config.changes)))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def exact(self) -> Self:
        """Keep the pictures in float32 whatever the rest computes in: a digit must be read exactly."""
        self.pictures, self.clear = self.pictures.float().contiguous(), self.clear.float()
        if self.config.named:
            self.readers, self.usual = self.readers.float(), self.usual.float()
        self.digits = self.digits.float()
        return self

    def facts(self, counts: torch.Tensor) -> torch.Tensor:
        """Counts (B, TELLING + 1, L) written as numbers (B, T): digits now and a frame ago, one-hot, and changes."""
        newest = counts[:, -2:].flip(1).transpose(1, 2).round().clamp(0, len(self.digits) - 1).long()  # (B, L, 2)
        change = counts.diff(dim=1).flip(1).transpose(1, 2)  # (B, L, TELLING)
        size = change.clamp(-LARGE, LARGE) / LARGE
        signs = [(change < 0).to(counts), (change > 0).to(counts), (-size).clamp(min=0), size.clamp(min=0)]
        written = torch.cat([self.digits[newest].flatten(2), *signs], dim=2).flatten(1)
        return torch.cat([torch.ones_like(written[:, :1]), written], dim=1)

    def picture(self, counts: torch.Tensor) -> torch.Tensor:
        """The mean latent of frames with such counts (B, TELLING + 1, L), (B, C, h, w) float32."""
        with torch.autocast(counts.device.type, enabled=False):
            return (self.facts(counts) @ self.pictures.flatten(1)).unflatten(1, self.pictures.shape[1:])

    def tell(self, past: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """The context of a frame with such counts.

        Args:
            past: latents (B, K, C, h, w), oldest first; after them the last frame moved, where the denoiser sees it.
            counts: of the frame to come (B, TELLING + 1, L).

        Returns:
            The same with one latent more, the picture of the counts, which comes first. Where that is as good as a
            frame, in the score bar, it takes the newest latent's place too: what is copied from there is right.
        """
        picture = self.picture(counts).to(past)
        newest = self.config.context - 1
        shown = torch.where(self.clear > SHARP, picture, past[:, newest])
        return torch.cat([picture[:, None], past[:, :newest], shown[:, None], past[:, newest + 1 :]], dim=1)

    def forward(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        counts: torch.Tensor,
        kept: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """How likely each change is in the next frame.

        Args:
            latents: past latents (B, K, C, h, w), oldest first; the newest three count.
            actions: (B, K, A); the last is held now.
            counts: of the newest frame (B, TELLING + 1, L).
            kept: what dropout multiplies with in training, as of :meth:`draw_dropout`.

        Returns:
            Logits (B, all changes of all levels).
        """
        told = torch.cat([actions.flatten(1), self.facts(counts).to(actions)], dim=1).to(latents)
        hidden = self.first(latents[:, -self.seen :].flatten(1, 2)) + self.told(told)[:, :, None, None]
        hidden = F.silu(self.far(F.silu(self.near(F.silu(hidden))))).flatten(1)
        hidden = F.silu(self.hidden(torch.cat([hidden if kept is None else hidden * kept[0], told], dim=1)))
        return self.last(hidden if kept is None else hidden * kept[1])

    def draw_dropout(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What dropout leaves of features (B, F) and hidden units (B, H): 0, or 1 over the share that is kept."""
        device = self.last.weight.device

        def draw(width: int) -> torch.Tensor:
            chance = torch.rand(batch, width, generator=generator, device=device)
            return (chance >= DROPOUT).float() / (1 - DROPOUT)

        return draw(self.hidden.in_features - self.told.in_features), draw(self.last.in_features)

    def split(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of each level's changes, (B, changes) float32 each."""
        return logits.float().split([len(part) for part in self.config.changes], dim=1)

    def advance(
        self, latents: torch.Tensor, actions: torch.Tensor, counts: torch.Tensor, draws: torch.Tensor | None
    ) -> torch.Tensor:
        """Counts of the next frame (B, TELLING + 1, L), from those of the newest.

        Where nothing is left of the vital level the game is lost, see :meth:`lost`. Played on all the same, it goes on
        at its lowest.

        Args:
            latents: as of :meth:`forward`; so ``actions``.
            counts: of the newest frame.
            draws: numbers from 0 to 1 that draw the changes (B, L); None takes the likeliest.
        """
        following = []
        for level, logits in enumerate(self.split(self(latents, actions, counts))):
            changes = torch.tensor(self.config.changes[level], device=logits.device)
            before = counts[:, -1, level]
            if (name := self.config.levels[level]) in self.config.named:
                logits = logits.masked_fill(~self._known(name, before[:, None] + changes), -torch.inf)
            if draws is None:
                chosen = logits.argmax(dim=1)
            else:
                likely = logits.softmax(dim=1).cumsum(dim=1)
                chosen = (likely < draws[:, level, None]).sum(dim=1).clamp(max=len(changes) - 1)
            low, high = self.config.ranges[level]
            least = torch.full_like(before, low)
            if name == self.config.vital:
                least[before > 0] = 0
            following.append((before + changes[chosen]).clamp(max=high).maximum(least))
        return torch.cat([counts[:, 1:], torch.stack(following, dim=1)[:, None]], dim=1)

    def _known(self, level: str, values: torch.Tensor) -> torch.Tensor:
        """Which of ``values`` of a named level were seen, and the present one, (B, changes) bool."""
        low, seen = math.floor(self.config.ranges[self.config.levels.index(level)][0]), self.usual[:, 1]
        seen = seen[self.config.names(level)]
        index = values.round().long() - low
        inside = (index >= 0) & (index < len(seen))
        known = inside & (seen[index.clamp(0, len(seen) - 1)] > 0)
        still = torch.tensor(self.config.changes[self.config.levels.index(level)], device=values.device) == 0
        return known | still

    def fatal(self, counts: torch.Tensor) -> torch.Tensor:
        """Which changes of the vital level lose a game with such counts (B, TELLING + 1, L), (B, changes) bool."""
        level = self.config.levels.index(self.config.vital)
        changes = torch.tensor(self.config.changes[level], device=counts.device)
        return counts[:, -1, level, None] + changes <= 0

    def chance_to_lose(self, logits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """How likely games with such counts (B, TELLING + 1, L) are lost now, (B,) float32, by the changes' logits."""
        likely = self.split(logits)[self.config.levels.index(self.config.vital)].softmax(dim=1)
        return (likely * self.fatal(counts)).sum(dim=1)

    def lost(self, counts: torch.Tensor) -> torch.Tensor:
        """Whether games with such counts (B, TELLING + 1, L) are lost, (B,) bool."""
        if not self.config.vital:
            return torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
        return counts[:, -1, self.config.levels.index(self.config.vital)] <= 0

    def read(self, latents: torch.Tensor) -> torch.Tensor:
        """What latents (B, C, h, w) show, (B, L) whole numbers: of digits those whose picture is nearest."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._read(latents.float())

    def _read(self, latents: torch.Tensor) -> torch.Tensor:
        found = torch.tensor([high for _, high in self.config.ranges], device=latents.device).repeat(len(latents), 1)
        for name in self.config.named:
            level, where = self.config.levels.index(name), self.config.names(name)
            likely = latents.flatten(1) @ self.readers[where].flatten(1).T + self.usual[where, 0]
            found[:, level] = likely.argmax(dim=1) + math.floor(self.config.ranges[level][0])
        weighed = latents * self.clear
        for _ in range(ROUNDS):
            for level, (low, high) in enumerate(self.config.ranges):
                if self.config.levels[level] in self.config.named:
                    continue
                values = torch.arange(math.floor(low), math.ceil(high) + 1, device=latents.device, dtype=torch.float32)
                found = found.clone()
                found[:, level] = 0
                rest = self.picture(_still(found))
                alone = torch.zeros(len(values), found.shape[1], device=latents.device)
                zero = self.picture(_still(alone[:1]))
                alone[:, level] = values
                shown = (self.picture(_still(alone)) - zero).flatten(1)  # what each value adds to the rest
                near = shown * self.clear.flatten().repeat(self.config.channels)
                distance = (near * shown).sum(dim=1) - 2 * (weighed - rest * self.clear).flatten(1) @ shown.T
                found[:, level] = values[distance.argmin(dim=1)]
        return found

    def settle(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Counts of the newest frame (B, TELLING + 1, L) where nothing but a start is known: what its frames show.

        Args:
            latents: past latents (B, K, C, h, w), oldest first.
            actions: (B, K, A); the last is held now, which no frame shows yet.
        """
        newest = latents[:, -(TELLING + 1) :]
        counts = torch.stack([self.read(part) for part in newest.unbind(1)], dim=1)
        missing = TELLING + 1 - counts.shape[1]
        counts = torch.cat([counts[:, :1].expand(-1, missing, -1), counts], dim=1)
        if not self.config.late:
            return counts
        # What the frames show are the counts up to the one before the newest, which is told from the past.
        held = torch.cat([actions[:, :1], actions[:, :-1]], dim=1)
        past = torch.cat([latents[:, :1], latents[:, :-1]], dim=1)
        return self.advance(past, held, counts, None)


def _still(values: torch.Tensor) -> torch.Tensor:
    """Counts that have long been ``values`` (B, L)."""
    return values[:, None].expand(-1, TELLING + 1, -1)


def _digits(values: torch.Tensor) -> torch.Tensor:
    """Values (B,) from 0 to 999 as three digits, one-hot (B, 33); leading zeros are blank."""
    whole = values.round().clamp(0, 10**DIGITS - 1).long()
    places = []
    for place in reversed(range(DIGITS)):
        digit = whole // 10**place % 10
        if place:
            digit = torch.where(whole < 10**place, BLANK, digit)
        places.append(F.one_hot(digit, BLANK + 1))
    return torch.cat(places, dim=1).to(values.dtype)
