"""Making a tally of a recording: its pictures, found at once, and the network that tells what changes.

What that network sees in play are the model's own frames, whose monsters look a little less like those that strike. So
once there is a student, it learns on from short free plays too: what changes in the recorded frames in their places
should be as likely there.

The hit that ends a game is in no recording, whose last frame is the one before it. But that there was one is known, and
that it was as large as what was left of the health: together such changes must be likely there, whichever it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from agents.errors import DataError
from gamengen.devices import place
from gamengen.free_plays import FreePlays
from gamengen.latents import LatentEpisodes, gather_windows, window_starts
from gamengen.player import PlayedTask, Player
from gamengen.processes import check_batch, even, share
from gamengen.tally import DIGITS, Tally, TallyConfig
from gamengen.train_outcome import LEVELS
from gamengen.training import step_generator
from recorder.episodes import EpisodeInfo, read_results
from recorder.recording import Recording, split_held_out

WEAPON, AMMUNITION = "SELECTED_WEAPON", "SELECTED_WEAPON_AMMO"
COUNTED = (*LEVELS, WEAPON)  # the held weapon by the number of its slot
MOST_CHANGES = 32  # kinds of change of a level
COVERED = 0.95  # of its changes they must be, or it is no count
RIDGE = 10.0  # frames that pull the pictures towards 0
VITAL = "HEALTH"  # of which nothing may be left
CLEAR = 0.5  # share of a position's variance that the counts must explain to be read there
READERS = 64  # positions that tell what is held
LATENT_NOISE = 0.3  # at most: generated latents are not as clean as encoded ones
CHUNK = 2048
READ_FRAMES = 512
MOST_SCORED = 8192
RECOUNT_RATE = 3e-4  # learning rate of a trained tally
PLAYS = 16  # free plays, beside a batch of recorded frames
MOST_PLAYED = 4096  # steps of held-out plays that are scored


def with_counts(
    recording: Recording, config: TallyConfig, latents: tuple[LatentEpisodes, LatentEpisodes]
) -> tuple[LatentEpisodes, LatentEpisodes]:
    """The same latents, (train, held out), with what the score bar counts, and which games were lost.

    Raises:
        DataError: the recording does not know it.
    """
    infos = recording.episodes()
    missing = sorted(set(config.levels) - set(infos[0].variable_names))
    if missing:
        raise DataError(f"it has no {', '.join(missing)}, which the model counts", recording.folder, "record anew")
    parts, lost = split_held_out([info.path for info in infos]), find_lost(infos, config)
    train, held_out = (
        replace(
            episodes,
            counts=torch.from_numpy(
                np.concatenate([read_counts(path, infos[0].variable_names, config) for path in paths])
            ),
            lost=tuple(path in lost for path in paths),
        )
        for episodes, paths in zip(latents, parts, strict=True)
    )
    return train, held_out


def find_lost(infos: Sequence[EpisodeInfo], config: TallyConfig) -> dict[Path, float]:
    """The episodes that were lost, with what their last step earned.

    Those are meant that ended by themselves where one of the changes leaves nothing of the vital level: a game may also
    end well.
    """
    if not config.vital:
        return {}
    largest = -min(config.changes[config.levels.index(config.vital)])
    lost = {}
    for info in infos:
        if info.terminated:
            rewards, variables = read_results(info.path)
            if variables[-1, info.variable_names.index(config.vital)] <= largest:
                lost[info.path] = float(rewards[-1])
    return lost


def read_counts(path: Path, names: Sequence[str], config: TallyConfig) -> np.ndarray:
    """What is counted in an episode (N, L) float32, whose variables are called ``names``."""
    counts = read_results(path)[1][:, [names.index(name) for name in config.levels]].round().astype(np.float32)
    return _with_none(counts, config.levels)


def _with_none(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The same values (N, L) of levels called ``names``, with no weapon in hand, which is -1 in Doom, as 0."""
    weapon = [name == WEAPON for name in names]
    return np.where(weapon, np.maximum(values, 0), values)


def find_levels(recording: Recording) -> dict[str, tuple[tuple[float, float], tuple[float, ...]]]:
    """Which game variables of this game are shown and can be counted: the range of each, and what it changes by.

    Ammunition can be where it is of one weapon in nearly all frames. The held weapon is counted where that cannot: the
    changes of both would be drawn apart, and they come together.
    """
    infos = recording.episodes()
    names = infos[0].variable_names
    episodes = [_with_none(read_results(info.path)[1].round(), names) for info in infos]
    found = {}
    for name in COUNTED:
        if name not in names:
            continue
        values = [part[:, names.index(name)] for part in episodes]
        low, high = min(part.min() for part in values), max(part.max() for part in values)
        if low == high or low < 0 or high >= 10**DIGITS:
            continue
        changes = np.concatenate([np.diff(part) for part in values])
        kinds, often = np.unique(changes[changes != 0], return_counts=True)
        kept = np.argsort(-often, kind="stable")[:MOST_CHANGES]
        if often[kept].sum() >= COVERED * often.sum():
            found[name] = ((float(low), float(high)), tuple(sorted([0.0, *map(float, kinds[kept])])))
    if AMMUNITION in found:
        found.pop(WEAPON, None)
    return found


def make_tally(
    recording: Recording, latents: tuple[LatentEpisodes, LatentEpisodes], context: int, device: torch.device
) -> Tally:
    """A tally of what :func:`find_levels` finds, with its pictures, still to be trained."""
    found = find_levels(recording)
    channels, height, width = latents[0].latents.shape[1:]
    ranges, changes = zip(*found.values(), strict=True)
    config = TallyConfig(
        context, channels, latents[0].actions.shape[1], height, width, tuple(found), ranges, changes,
        named=(WEAPON,) if WEAPON in found else (),
    )  # fmt: skip
    if VITAL in found:
        mortal = replace(config, vital=VITAL)
        lost = find_lost(recording.episodes(), mortal)
        config = replace(mortal, lost_reward=float(np.mean(list(lost.values())))) if lost else config
    train = with_counts(recording, config, latents)[0]
    tally = Tally(config).to(device)
    find_pictures(tally, train)
    find_names(tally, train)
    tally.config = replace(config, late=find_delay(tally, train))
    return tally


@torch.no_grad()
def find_pictures(tally: Tally, episodes: LatentEpisodes) -> None:
    """Set the pictures: what each fact adds to the mean latent, by ridge regression over all frames."""
    frames, facts = len(episodes.latents), tally.config.facts
    device = tally.pictures.device
    gram = RIDGE * torch.eye(facts, dtype=torch.float64, device=device)
    seen = torch.zeros(facts, tally.pictures[0].numel(), dtype=torch.float64, device=device)
    for told, latents in _facts(tally, episodes):
        gram += (told.T @ told).double()
        seen += (told.T @ latents).double()
    solved = torch.linalg.solve(gram, seen)
    tally.pictures.copy_(solved.float().view_as(tally.pictures))
    mean = (seen[0] / frames).float()  # the first fact is 1
    left, whole = (torch.zeros_like(tally.clear) for _ in range(2))
    for told, latents in _facts(tally, episodes):
        for total, guess in ((left, told @ solved.float()), (whole, mean)):
            total += (latents - guess).square().sum(0).view_as(tally.pictures[0]).mean(0) / frames
    tally.clear.copy_(torch.where(left < (1 - CLEAR) * whole, 1 / left.clamp(min=1e-4), 0.0))


@torch.no_grad()
def find_names(tally: Tally, episodes: LatentEpisodes) -> None:
    """Set by what named levels are read: by ridge regression of which value it is on the positions that tell most.

    A weapon stands before a world that moves: to compare it with a mean picture is wrong in a tenth of all frames.
    """
    config, counts, device = tally.config, episodes.counts, tally.pictures.device
    assert counts is not None
    frames, size = len(counts), tally.pictures[0].numel()
    for name in config.named:
        level, where = config.levels.index(name), config.names(name)
        values = torch.arange(where.stop - where.start) + int(config.ranges[level][0])
        is_value = (counts[:, level, None].cpu() == values).float().to(device)
        often = is_value.mean(0)
        mean, square = torch.zeros(2, size, device=device)
        means = torch.zeros(len(values), size, device=device)
        for part, latents in _parts(episodes, device):
            mean += latents.sum(0) / frames
            square += latents.square().sum(0) / frames
            means += is_value[part].T @ latents / frames
        between = (means / often.clamp(min=1 / frames)[:, None] - mean).square() * often[:, None]
        told = between.sum(0) / (square - mean.square()).clamp(min=1e-6)
        positions = told.view(config.channels, -1).mean(0).topk(min(READERS, config.height * config.width)).indices
        kept = torch.arange(size, device=device).view(config.channels, -1)[:, positions].flatten()
        gram = RIDGE * torch.eye(len(kept), dtype=torch.float64, device=device)
        seen = torch.zeros(len(kept), len(values), dtype=torch.float64, device=device)
        for part, latents in _parts(episodes, device):
            beside = (latents - mean)[:, kept]
            gram += (beside.T @ beside).double()
            seen += (beside.T @ (is_value[part] - often)).double()
        readers = torch.zeros(len(values), size, device=device)
        readers[:, kept] = torch.linalg.solve(gram, seen).T.float()
        tally.readers[where] = readers.view_as(tally.readers[where])
        tally.usual[where] = torch.stack([often - readers @ mean, often], dim=1)


def _parts(episodes: LatentEpisodes, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All frames, some at a time: their numbers (B,), and their latents (B, C h w) on ``device``."""
    for part in torch.arange(len(episodes.latents)).split(CHUNK):
        yield part, episodes.latents[part].to(device).float().flatten(1)


def _facts(tally: Tally, episodes: LatentEpisodes) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All frames, some at a time: their facts (B, T), and their latents (B, C h w)."""
    for part, latents in _parts(episodes, tally.pictures.device):
        yield tally.facts(episodes.history(part).to(latents.device)), latents


@torch.no_grad()
def find_delay(tally: Tally, episodes: LatentEpisodes) -> int:
    """Frames until the score bar shows a change, 0 or 1: which of the two the frames in which one changes show."""
    counts = episodes.counts
    assert counts is not None
    frames = torch.from_numpy(window_starts(episodes.lengths, 2) + 1)
    changed = frames[(counts[frames] != counts[frames - 1]).any(dim=1).cpu()]
    changed = changed[:: max(1, len(changed) // READ_FRAMES)]
    if not len(changed):
        return 0
    shown = tally.read(episodes.latents[changed].to(tally.pictures.device)).to(counts)
    now, before = (float((shown - counts[changed - back]).abs().mean()) for back in (0, 1))
    return int(before < now)


class TallyTask(PlayedTask):
    """Tell by how much each count changes in the next frame; see :class:`gamengen.training.Task`.

    Args:
        model: a tally with its pictures.
        train: latents with counts; so ``held_out``.
        seed: of what is drawn.
        batch: frames a step.
        player: makes free plays, from whose frames a trained tally learns on; None begins a new one, without.
    """

    name = "tally"

    def __init__(
        self,
        model: Tally,
        train: LatentEpisodes,
        held_out: LatentEpisodes,
        seed: int,
        batch: int = 128,
        player: Player | None = None,
    ) -> None:
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        self.tally, self._seed, self._batch = model, seed, batch
        self._train, self._held_out = train, held_out
        check_batch(batch)
        self._starts = self._all_starts(train)
        self._player = player
        self._plays = self._begin_plays(train, even(PLAYS))
        if player is None:
            with torch.no_grad():
                model.last.bias.copy_(torch.cat(self._often(train)).log())

    def _all_starts(self, episodes: LatentEpisodes) -> np.ndarray:
        """First frames of all contexts of which something is known that comes next: another frame, or the end."""
        context = self.tally.config.context
        starts = window_starts(episodes.lengths, context + 1)
        if not any(episodes.lost):
            return starts
        lost = np.array(episodes.lost) & (np.array(episodes.lengths) >= context)
        return np.sort(np.concatenate([starts, (np.cumsum(episodes.lengths) - context)[lost]]))

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Negative log-likelihood of the changes, on frames drawn evenly, so that probabilities mean what they say."""
        generator = step_generator(self._seed, step, self._device)
        loss = self._cost(self.draw(step), generator)
        if self._plays is not None and self._player is not None:
            self._plays.windows(np.random.default_rng([self._seed, step, 1]))  # another begins where one has ended
            self._player.advance(self._plays, generator)
            loss = loss + self._cost(self._played(self._plays, self._train), generator)
        return loss

    def _cost(
        self, windows: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], generator: torch.Generator
    ) -> torch.Tensor:
        latents, actions, counts, possible = windows
        level = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, 1, generator=generator, device=self._device)
        noise = torch.randn(latents.shape, generator=generator, device=self._device)
        kept = [share(part) for part in self.tally.draw_dropout(len(latents), generator)]
        given = (share(part) for part in (latents + level * noise, actions, counts))
        logits = self.tally.split(self.tally(*given, (kept[0], kept[1])))
        parts = zip(logits, self.tally.split(share(possible)), strict=True)
        return torch.stack([unlikelihood(told, came > 0).mean() for told, came in parts]).sum()

    def _played(
        self, plays: FreePlays, episodes: LatentEpisodes
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """As :meth:`draw`, of free plays: what changes in the recorded frames in their places."""
        latents, actions, frames = plays.past()
        counts, possible = episodes.history(frames - 1), self._possible(episodes, frames - 1)
        return latents, actions, counts.to(self._device), possible.to(self._device)

    def draw(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Past latents (B, K, C, h, w) and actions, counts, and what may have come, of :meth:`_possible`."""
        rng = np.random.default_rng([self._seed, step])
        return self._windows(self._train, self._starts[rng.integers(len(self._starts), size=self._batch)])

    def _windows(
        self, episodes: LatentEpisodes, starts: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        context = self.tally.config.context
        latents, actions = gather_windows(episodes, starts, context)
        newest = torch.from_numpy(starts + context - 1)
        given = latents, actions, episodes.history(newest), self._possible(episodes, newest)
        latents, actions, counts, possible = (part.to(self._device) for part in given)
        return latents, actions, counts, possible

    def _possible(self, episodes: LatentEpisodes, newest: torch.Tensor) -> torch.Tensor:
        """Which changes of each level may have come after the recorded frames ``newest`` (B,): (B, all changes) bool.

        One of each level where a frame follows. After the last frame of a lost game those that lose it, and of the
        other levels all; all after that of another.
        """
        assert episodes.counts is not None
        last, lost = (part.to(episodes.counts.device) for part in episodes.closes(newest))
        newest = newest.to(episodes.counts.device)
        now = episodes.counts[newest]
        change = episodes.counts[(newest + 1).clamp(max=len(episodes.counts) - 1)] - now
        possible = []
        for n, (name, part) in enumerate(zip(self.tally.config.levels, self.tally.config.changes, strict=True)):
            kinds = torch.tensor(part, device=change.device)
            came = F.one_hot((change[:, n, None] - kinds).abs().argmin(1), len(kinds)).bool() | last[:, None]
            if name == self.tally.config.vital:
                came &= ~(last & lost)[:, None] | self.tally.fatal(now[:, None])
            possible.append(came)
        return torch.cat(possible, dim=1)

    def _often(self, episodes: LatentEpisodes) -> list[torch.Tensor]:
        """How often each change of each level comes, none never (changes,)."""
        frames = torch.from_numpy(window_starts(episodes.lengths, 2))
        came = self._possible(episodes, frames).to(self._device).sum(0) + 0.5
        return list(came.split([len(part) for part in self.tally.config.changes]))

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """How right it is on held-out frames.

        Returns:
            Of each level: ``HEALTH_nll``, the mean negative log-likelihood of what happened, and ``HEALTH_nll_rates``,
            that of always telling how often each change comes; ``HEALTH_expected``, the changes that are expected in
            all as a share of those that happened, 1 is right; ``HEALTH_read``, the share of frames whose score bar is
            read right; ``lost_expected``, the games that are expected to be lost as a share of those that were; with a
            player ``HEALTH_played_expected``, as the other, in free plays, as a share of those that happened in the
            recorded frames in their places.
        """
        starts = self._all_starts(self._held_out)
        starts = starts[:: max(1, len(starts) // MOST_SCORED)]
        rates = self._often(self._train)
        told: list[list[torch.Tensor]] = [[] for _ in rates]
        happened, right, losing = [], [], []
        for number in range(0, len(starts), 256):
            latents, actions, counts, possible = self._windows(self._held_out, starts[number : number + 256])
            logits = self.tally(latents, actions, counts)
            for column, part in zip(told, self.tally.split(logits), strict=True):
                column.append(part.log_softmax(1))
            happened.append(possible)
            if self.tally.config.vital:
                losing.append(self.tally.chance_to_lose(logits, counts))
            if number < READ_FRAMES:
                late = self.tally.config.late
                right.append(self.tally.read(latents[:, -1]) == counts[:, -1 - late].to(latents))
        figures = {}
        levels, changes = self.tally.config.levels, self.tally.config.changes
        came = torch.cat(happened).split([len(part) for part in changes], dim=1)
        for n, (name, rate) in enumerate(zip(levels, rates, strict=True)):
            likely, none = torch.cat(told[n]), changes[n].index(0.0)
            constant = (rate / rate.sum()).log().expand_as(likely)
            figures[f"{name}_nll"] = float(unlikelihood(likely, came[n]).mean())
            figures[f"{name}_nll_rates"] = float(unlikelihood(constant, came[n]).mean())
            known = ~came[n].all(dim=1)
            changed = known & ~came[n][:, none]
            if changed.any():
                figures[f"{name}_expected"] = float((1 - likely[known, none].exp()).sum() / changed.sum())
            figures[f"{name}_read"] = float(torch.cat(right)[:, n].float().mean())
        last, lost = self._held_out.closes(torch.from_numpy(starts + self.tally.config.context - 1))
        if losing and (last & lost).any():
            figures["lost_expected"] = float(torch.cat(losing).sum() / (last & lost).sum())
        return figures | self._score_plays(), {}

    def _score_plays(self) -> dict[str, float]:
        plays = self._begin_plays(self._held_out, PLAYS)
        if plays is None or self._player is None:
            return {}
        rng, generator = np.random.default_rng(self._seed), step_generator(self._seed, 0, self._device)
        expected, happened = (torch.zeros(len(self.tally.config.levels)) for _ in range(2))
        for _ in range(max(1, min(MOST_PLAYED, len(self._starts)) // PLAYS)):
            plays.windows(rng)
            self._player.advance(plays, generator, together=False)  # the first process alone evaluates
            *given, possible = self._played(plays, self._held_out)
            parts = self.tally.split(self.tally(*given)), self.tally.split(possible)
            for n, (logits, came) in enumerate(zip(*parts, strict=True)):
                none, known = self.tally.config.changes[n].index(0.0), ~(came > 0).all(dim=1)
                expected[n] += (1 - logits.softmax(1)[known, none]).sum().cpu()
                happened[n] += (came[known, none] == 0).sum().cpu()
        shares = zip(self.tally.config.levels, expected, happened, strict=True)
        return {f"{name}_played_expected": float(told / real) for name, told, real in shares if real}


def unlikelihood(logits: torch.Tensor, possible: torch.Tensor) -> torch.Tensor:
    """Minus the log-likelihood (B,) that one of the ``possible`` changes (B, changes) came, by their ``logits``."""
    return logits.logsumexp(dim=1) - logits.where(possible, -torch.inf).logsumexp(dim=1)
