"""The judge: a small network that reads frames: what was held, what a player would hold next, what the HUD says.

It is trained on real frames alone and then reads real and generated frames alike, so that both sides of a
comparison are measured with one instrument, and what it misreads on real frames shows beside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn import functional as F

from agents.actions import ActionSet
from agents.errors import ActionError, CheckpointError, DataError, OptionError
from gamengen.devices import place
from gamengen.evaluation.frame_pool import FramePool, gather_frames, shrink
from gamengen.evaluation.judge_network import FEATURES, PATCH, JudgeNetwork
from gamengen.evaluation.judge_network import JUDGE_FRAMES as JUDGE_FRAMES
from gamengen.muon import MuonAdamW
from gamengen.training import autocast, learning_rate_factor, step_generator
from recorder.episodes import EpisodeInfo, read_episode

FORMAT_VERSION = 1
BATCH = 64
MUON_RATE, ADAM_RATE = 0.02, 2e-3
WEIGHTS = {"held": 1.0, "next_action": 0.5, "kills": 1.0, "ends": 0.5}  # of the parts of the loss
VARIABLES_WEIGHT = 1.0
MOST_VALUES = 128  # that are told apart of one game variable
KILLS, HEALTH = "KILLCOUNT", "HEALTH"
# What no picture shows: where the player is, and what has been counted since the episode began.
UNSEEN = ("POSITION_", "ANGLE", "ITEMCOUNT", "SECRETCOUNT", "HIT", "DAMAGE", KILLS)
LAST_SHARE = 0.9


@dataclass(frozen=True)
class Reading:
    """What the judge reads in the windows ``frames[s : s + 4]`` of N consecutive frames, s = 0 … N - 4.

    Attributes:
        held: (N - 3, A) float32, what was held while ``frames[s]`` was on screen: probabilities of the buttons,
            values of the axes.
        next_action: (N - 3, A), what a player would hold while ``frames[s + 3]`` is on screen.
        variables: game variables at ``frames[s + 3]`` by name, each (N - 3,) in the game's units.
        kills: (N - 3,), the probability that an enemy dies between ``frames[s]`` and ``frames[s + 2]``; None
            where the game does not count kills.
        ends: (N - 3,), the probability that ``frames[s + 3]`` is the last of its game.
        features: (N - 3, 128), what all of this is read from.
    """

    held: np.ndarray
    next_action: np.ndarray
    variables: dict[str, np.ndarray]
    kills: np.ndarray | None
    ends: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class JudgeConfig:
    """What a judge reads, and in which frames.

    Attributes:
        height: of the frames in pixels, as the game draws them; so ``width``.
        values: of each game variable that is read, the values that are told apart, in rising order.
        counts_kills: whether the game counts them.
        last_health: nine in ten real games end at this health or below; None where that says nothing.
    """

    action_set: ActionSet
    height: int
    width: int
    values: dict[str, tuple[float, ...]]
    counts_kills: bool
    last_health: float | None
    format_version: int = FORMAT_VERSION

    @property
    def heads(self) -> dict[str, slice]:
        """Where each part lies in the network's outputs."""
        size = self.action_set.size
        sizes = {"held": size, "next_action": size, "kills": 1, "ends": 1}
        sizes |= {f"variable {name}": len(values) for name, values in self.values.items()}
        ends = np.cumsum(list(sizes.values())).tolist()
        return {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}

    @property
    def outputs(self) -> int:
        """How many outputs there are in all."""
        return int(list(self.heads.values())[-1].stop)


class Judge:
    """A trained judge, ready to read on ``device``."""

    def __init__(self, config: JudgeConfig, network: JudgeNetwork, device: torch.device) -> None:
        self.config, self.device = config, device
        self._network = place(network.eval(), device)

    def shrink(self, frames: np.ndarray) -> np.ndarray:
        """The game's frames (N, H, W, 3) uint8 as the judge sees them, (N, h, w, 3) uint8."""
        assert frames.shape[1:] == (self.config.height, self.config.width, 3), frames.shape
        return shrink(frames, PATCH)

    def read(self, frames: np.ndarray) -> Reading:
        """Read N consecutive frames (N, H, W, 3) uint8; of fewer than four nothing is read."""
        return self.read_small(self.shrink(frames))

    @torch.inference_mode()
    def read_small(self, frames: np.ndarray) -> Reading:
        """Read N consecutive frames as :meth:`shrink` leaves them."""
        pool, heads = torch.from_numpy(frames), self.config.heads
        starts = torch.arange(max(0, len(frames) - JUDGE_FRAMES + 1))
        features = np.zeros((len(starts), FEATURES), np.float32)
        outputs = np.zeros((len(starts), self.config.outputs), np.float32)
        for part in starts.split(BATCH) if len(starts) else ():
            rows = slice(int(part[0]), int(part[-1]) + 1)
            features[rows], outputs[rows] = self._run(_windows(pool, part))
        variables = {
            name: _median(outputs[:, heads[f"variable {name}"]], values) for name, values in self.config.values.items()
        }
        return Reading(
            self._action(outputs[:, heads["held"]]),
            self._action(outputs[:, heads["next_action"]]),
            variables,
            _sigmoid(outputs[:, heads["kills"]])[:, 0] if self.config.counts_kills else None,
            _sigmoid(outputs[:, heads["ends"]])[:, 0],
            features,
        )

    @torch.inference_mode()
    def next_action(self, window: np.ndarray) -> np.ndarray:
        """What a player would hold (A,) while the last of four small frames (4, h, w, 3) is on screen."""
        _, outputs = self._run(torch.from_numpy(window)[None])
        return self._action(outputs[0, self.config.heads["next_action"]].numpy())

    def save(self, path: Path) -> None:
        """Write the judge to one safetensors file, whole or not at all.

        Raises:
            DataError: it cannot be written.
        """
        weights = {name: value.cpu().contiguous() for name, value in self._network.state_dict().items()}
        header = {**asdict(self.config), "action_set": self.config.action_set.to_json()}
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_bytes(save(weights, {"gamengen_judge": json.dumps(header)}))
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DataError(f"cannot save the judge ({error.strerror})", path, "free some space") from error

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Judge:
        """Load what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, foreign or of another version.
        """
        remedy = "delete the file: the judge is then trained anew"
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["gamengen_judge"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header["format_version"] != FORMAT_VERSION:
                what = f"the judge has format version {header['format_version']}, not {FORMAT_VERSION}"
                raise CheckpointError(what, path, remedy)
            values = {name: tuple(row) for name, row in header["values"].items()}
            config = JudgeConfig(
                **{**header, "action_set": ActionSet.from_json(header["action_set"]), "values": values}
            )
            network = _build(config)
            network.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError, ActionError) as error:
            raise CheckpointError("this is no judge, or a damaged one", path, remedy) from error
        return cls(config, network, torch.device(device))

    def _run(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(self.device):
            features, outputs = self._network(windows.to(self.device))
        return features.cpu(), outputs.cpu()

    def _action(self, outputs: np.ndarray) -> np.ndarray:
        buttons = len(self.config.action_set.buttons)
        return np.concatenate([_sigmoid(outputs[..., :buttons]), np.tanh(outputs[..., buttons:])], -1)


def fit_judge(
    episodes: list[EpisodeInfo],
    action_set: ActionSet,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    show: Callable[[float, str], None] | None = None,
) -> Judge:
    """Train a judge on real episodes of one game.

    Args:
        episodes: of one recording. ``next_action`` is learned from those that no random agent played, where
            there are any: it is a clone of the players (behaviour cloning).
        action_set: the recording's.
        seconds: time to train, reading the frames not counted; or
        steps: batches of 64 windows. The same seed and steps give the same judge.
        seed: of the weights and the batches.
        device: where to train, and where the judge will read.
        show: called with the steps, or the seconds, that are done and a note.

    Raises:
        OptionError: not exactly one of seconds and steps is given, or it is not positive.
        DataError: no episode has four frames, or one is damaged.
    """
    if (seconds is None) == (steps is None) or not (seconds or steps or 0) > 0:
        raise OptionError("give either seconds or steps, more than 0", "fit_judge", "for example seconds=120")
    pool = gather_frames(episodes, JUDGE_FRAMES, PATCH)
    config = _configure(pool, episodes, action_set)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = place(_build(config), torch.device(device))
    optimizer = MuonAdamW(network, MUON_RATE, ADAM_RATE)
    targets = _targets(pool, config)
    step, began, spent = 0, time.monotonic(), 0.0
    while spent < 1:
        optimizer.scale_lr(learning_rate_factor(spent))
        picked = torch.randint(len(pool.starts), (BATCH,), generator=step_generator(seed, step))
        with autocast(torch.device(device)):
            _, outputs = network(_windows(pool.frames, pool.starts[picked]).to(device))
        loss = _loss(outputs, {name: part[picked].to(device) for name, part in targets.items()}, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        spent = step / steps if steps is not None else (time.monotonic() - began) / (seconds or 1)
        if show is not None and (step % 20 == 0 or spent >= 1):
            show(spent * (steps or seconds or 1), f"loss {float(loss.detach()):.3f}")
    return Judge(config, network, torch.device(device))


def _build(config: JudgeConfig) -> JudgeNetwork:
    height, width = shrink(np.zeros((1, config.height, config.width, 3), np.uint8), PATCH).shape[1:3]
    return JudgeNetwork(height, width, config.outputs)


def _windows(frames: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The windows (B, 4, h, w, 3) of ``frames`` (N, h, w, 3) that begin at ``starts`` (B,)."""
    return frames[starts[:, None] + torch.arange(JUDGE_FRAMES)]


def _configure(pool: FramePool, episodes: list[EpisodeInfo], action_set: ActionSet) -> JudgeConfig:
    values = {}
    for name, column in pool.variables.items():
        known = np.unique(column[np.isfinite(column)])
        if len(known) > 1 and not name.startswith(UNSEEN):
            if len(known) > MOST_VALUES:
                known = np.unique(np.quantile(known, np.linspace(0, 1, MOST_VALUES)))
            values[name] = tuple(known.tolist())
    first = episodes[0]
    counts = KILLS in pool.variables and len(np.unique(pool.variables[KILLS])) > 1
    last = _last_health(episodes) if HEALTH in values else None
    return JudgeConfig(action_set, first.height, first.width, values, counts, last)


def _last_health(episodes: list[EpisodeInfo]) -> float | None:
    """The health at or below which nine in ten games end; None where games end in good health too."""
    ended = [info for info in episodes if info.terminated]
    if not ended:
        return None
    column = ended[0].variable_names.index(HEALTH)
    lasts = [float(read_episode(info.path, info.frames - 1).variables[0, column]) for info in ended[:200]]
    firsts = [float(read_episode(info.path, 0, 1).variables[0, column]) for info in ended[:200]]
    level = float(np.quantile(lasts, LAST_SHARE))
    return level if level < 0.5 * np.median(firsts) else None


def _targets(pool: FramePool, config: JudgeConfig) -> dict[str, torch.Tensor]:
    """What the judge should say of each window of the pool, (W, ...) by head; NaN or -1 where nobody knows."""
    starts = pool.starts
    newest = starts + JUDGE_FRAMES - 1
    targets = {
        "held": pool.actions[starts],
        "next_action": torch.where(pool.skilled[starts, None], pool.actions[newest], torch.nan),
        "ends": pool.last[newest, None].float(),
    }
    if config.counts_kills:
        kills = torch.from_numpy(pool.variables[KILLS])
        targets["kills"] = (kills[starts + 2] > kills[starts])[:, None].float()
    for name, values in config.values.items():
        column, known = pool.variables[name][newest.numpy()], np.array(values)
        nearest = np.abs(np.nan_to_num(column)[:, None] - known).argmin(1)
        targets[f"variable {name}"] = torch.from_numpy(np.where(np.isfinite(column), nearest, -1))
    return targets


def _loss(outputs: torch.Tensor, targets: dict[str, torch.Tensor], config: JudgeConfig) -> torch.Tensor:
    total = outputs.new_zeros(())
    buttons = len(config.action_set.buttons)
    for name, target in targets.items():
        output = outputs[:, config.heads[name]]
        if name.startswith("variable "):
            total = total + VARIABLES_WEIGHT * F.cross_entropy(output, target, ignore_index=-1) / len(config.values)
            continue
        known = torch.isfinite(target)
        error = F.binary_cross_entropy_with_logits(output, target.nan_to_num().clamp(0, 1), reduction="none")
        if name in ("held", "next_action"):
            axes = (torch.tanh(output[:, buttons:]) - target[:, buttons:].nan_to_num()) ** 2
            error = torch.cat([error[:, :buttons], axes], 1)
        total = total + WEIGHTS[name] * error[known].sum() / known.sum().clamp(min=1)
    return total


def _median(outputs: np.ndarray, values: tuple[float, ...]) -> np.ndarray:
    """The median (N,) of the distributions over ``values`` whose logits are ``outputs`` (N, V)."""
    chances = np.exp(outputs - outputs.max(1, keepdims=True))
    below = np.cumsum(chances / chances.sum(1, keepdims=True), axis=1)
    return np.array(values)[np.minimum((below < 0.5).sum(1), len(values) - 1)]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))
