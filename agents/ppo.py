"""The PPO agent of the paper (GameNGen, arXiv 2408.14837, section 3.1), on stable-baselines3.

It sees the frame at 160x120 with the map beside it where the game offers one, and what was held in the last 32
decisions. A discrete policy chooses among combinations of buttons. An agent is one safetensors file
whose metadata says all else as JSON: loading it runs no pickle.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from agents.actions import ActionSet
from agents.environments import FRAME_SKIP, make_environment
from agents.errors import ActionError, OptionError
from agents.rewards import PaperReward

FORMAT_VERSION = 1
IMAGE_HEIGHT, IMAGE_WIDTH = 120, 160
REMEMBERED = 32  # last decisions that the policy sees
FEATURES = 512
HEADS = (256, 256)
REWARD_SCALE = 0.01  # a death is -5000: the value head learns smaller numbers better
SAVE_EVERY = 20_000  # decisions
# One choice of each group is held; the product of the groups is the policy's table of combinations.
GROUPS = (
    ("MOVE_FORWARD", "MOVE_BACKWARD"), ("TURN_LEFT", "TURN_RIGHT"), ("MOVE_LEFT", "MOVE_RIGHT"), ("ATTACK",),
)  # fmt: skip
ALONE = ("USE", "SPEED")
POSITIVE = (
    "steps", "environments", "hold", "frame_skip", "max_frames", "n_steps", "batch_size", "epochs", "learning_rate",
)  # fmt: skip
AXIS_LEVELS = (-1.0, -0.5, 0.0, 0.5, 1.0)
MOST_COMBINATIONS = 256


class StepListener(Protocol):
    """Records what is played in training; ``recorder.record.StreamRecorder`` is one."""

    def add(
        self, index: int, frame: np.ndarray, action: np.ndarray, reward: float, variables: dict[str, float]
    ) -> None:
        """One frame of environment ``index``: ``action`` is held while ``frame`` is on screen."""

    def end(self, index: int, terminated: bool, truncated: bool) -> None:
        """The episode of environment ``index`` ended with the step added last."""


@dataclass(frozen=True)
class PPOOptions:
    """How to train; the defaults are the paper's.

    Args:
        spec: the game.
        out: the agent's file; one that exists there is trained on.
        steps: decisions in all, over all environments; each holds its action for ``hold`` frames.
        environments: games played side by side.
        hold: frames that a decision is held: 2 frames of 2 tics are the paper's 4 tics.
        frame_skip: tics a frame.
        max_frames: longest episode.
    """

    spec: str
    out: Path
    steps: int = 1_000_000
    environments: int = 8
    hold: int = 2
    frame_skip: int = FRAME_SKIP
    max_frames: int = 2100
    n_steps: int = 512
    batch_size: int = 64
    epochs: int = 10
    learning_rate: float = 1e-4
    gamma: float = 0.99
    entropy: float = 0.1
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"must be more than 0, got {getattr(self, name)}", flag, "give a positive number")
        if self.seed < 0:
            raise OptionError(f"must not be negative, got {self.seed}", "--seed", "give 0 or more")
        if self.n_steps * self.environments < 2 or self.batch_size < 2:
            raise OptionError("PPO needs at least two samples a batch", "--n-steps, --batch-size", "give larger ones")
        if self.device not in ("auto", "cpu", "cuda"):
            raise OptionError("unknown device", self.device, "use auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise OptionError("no CUDA device was found", self.device, "use --device cpu")
        if self.out.is_dir():
            raise OptionError("this is a folder, an agent is a file", self.out, "give a name such as agent.safetensors")


@dataclass(frozen=True)
class PPOSummary:
    """What training did; rewards are the paper's, summed over an episode, of the last 100 episodes."""

    agent: str
    spec: str
    steps: int
    episodes: int
    first_episodes_reward: float | None
    last_episodes_reward: float | None


def combinations(action_set: ActionSet) -> np.ndarray:
    """The actions (M, A) that a discrete policy chooses from; resting is the first.

    Buttons that a hand holds together are combined (forward, turn and fire at once), others stand alone.
    Exclusive buttons stand alone too, and each axis takes a few levels.
    """
    if action_set.exclusive:
        return np.eye(action_set.size, dtype=np.float32)
    grouped = [[(), *((name,) for name in group if name in action_set.buttons)] for group in GROUPS]
    held = [tuple(itertools.chain(*choice)) for choice in itertools.product(*grouped)]
    known = set(itertools.chain(*GROUPS))
    held += [(name,) for name in action_set.buttons if name not in known]
    held += [("MOVE_FORWARD", name) for name in ALONE if {"MOVE_FORWARD", name} <= set(action_set.buttons)]
    rows = [action_set.encode(names) for names in held]
    if action_set.axes:
        levels = itertools.product(AXIS_LEVELS, repeat=len(action_set.axes))
        settings = list(itertools.islice(levels, MOST_COMBINATIONS))
        rows = [action_set.encode(**dict(zip(action_set.axes, values, strict=True))) for values in settings]
    return np.unique(np.stack(rows)[:MOST_COMBINATIONS], axis=0)


class DecisionEnvironment(gymnasium.Env[dict[str, np.ndarray], int]):
    """A game as the policy sees it: an index of the table in, picture and last decisions out.

    Every frame that lies within a decision is told to ``listener``, so that a recording of it keeps
    the alignment law of ``recorder.episodes``.
    """

    def __init__(self, options: PPOOptions, index: int, listener: StepListener | None = None) -> None:
        sensors = frozenset({"automap"}) if options.spec.startswith("doom/") else frozenset()
        self._env: Any = make_environment(
            options.spec, frame_skip=options.frame_skip, sensors=sensors, max_frames=options.max_frames
        )
        self._hold, self._index, self._listener = options.hold, index, listener
        self.action_set: ActionSet = self._env.action_set
        self.table = combinations(self.action_set)
        self.view = View(self.action_set)
        self.observation_space = self.view.space
        self.action_space = gymnasium.spaces.Discrete(len(self.table))
        self._reward = PaperReward()
        self.total = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self._frame, self._info = self._env.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        self._reward.reset(self._info["variables"])
        self.view.reset()
        self.total = 0.0
        return self.view.look(self._frame, self._info), {}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Hold a combination for some frames; the reward is the paper's, scaled."""
        held = self.table[int(action)]
        earned, terminated, truncated = 0.0, False, False
        for _ in range(self._hold):
            frame, info = self._frame, self._info
            self._frame, game_reward, terminated, truncated, self._info = self._env.step(held)
            # A game without variables has only its own reward.
            variables = self._info["variables"]
            reward = self._reward(variables) if variables else game_reward / REWARD_SCALE
            if self._listener is not None:
                self._listener.add(self._index, frame, held, reward, info["variables"])
            earned += reward
            if terminated or truncated:
                break
        if self._listener is not None and (terminated or truncated):
            self._listener.end(self._index, terminated, truncated)
        self.view.remember(held)
        self.total += earned
        info = {"paper_reward": self.total} if terminated or truncated else {}
        return self.view.look(self._frame, self._info), earned * REWARD_SCALE, terminated, truncated, info

    def close(self) -> None:
        """End the game."""
        self._env.close()


class View:
    """What the policy sees: ``image`` (6, 120, 160) uint8, frame above map, and ``actions`` (32 A,) float32.

    A game without a map leaves those channels black.
    """

    def __init__(self, action_set: ActionSet) -> None:
        self._actions = action_set
        self.space = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (6, IMAGE_HEIGHT, IMAGE_WIDTH), np.uint8),
                "actions": gymnasium.spaces.Box(-1, 1, (REMEMBERED * action_set.size,), np.float32),
            }
        )
        self.reset()

    def reset(self) -> None:
        """Forget what was held."""
        self._held = np.zeros((REMEMBERED, self._actions.size), np.float32)

    def remember(self, action: np.ndarray) -> None:
        """A decision was made."""
        self._held = np.concatenate([self._held[1:], action[None]])

    def look(self, frame: np.ndarray, info: dict[str, Any]) -> dict[str, np.ndarray]:
        """The observation of a frame (H, W, 3) uint8."""
        plan = info.get("automap")
        pictures = [_shrink(frame), _shrink(plan) if plan is not None else np.zeros_like(_shrink(frame))]
        return {"image": np.concatenate(pictures), "actions": self._held.flatten()}


def _shrink(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture).resize((IMAGE_WIDTH, IMAGE_HEIGHT), Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1)


class ImageFeatures(BaseFeaturesExtractor):
    """A CNN to 512 features of the image, beside the last decisions as they are."""

    def __init__(self, space: gymnasium.spaces.Dict) -> None:
        actions = space["actions"].shape
        assert actions is not None
        super().__init__(space, FEATURES + actions[0])
        self.cnn = nn.Sequential(
            nn.Conv2d(6, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            size = self.cnn(torch.zeros(1, 6, IMAGE_HEIGHT, IMAGE_WIDTH)).shape[1]
        self.linear = nn.Sequential(nn.Linear(size, FEATURES), nn.ReLU())

    def forward(self, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        """``image`` (B, 6, 120, 160) in [0, 1] and ``actions`` (B, 32 A) -> (B, 512 + 32 A)."""
        return torch.cat([self.linear(self.cnn(seen["image"])), seen["actions"]], dim=1)


SHARED = ("pi_features_extractor", "vf_features_extractor")  # other names of features_extractor's weights
POLICY: dict[str, Any] = {
    "features_extractor_class": ImageFeatures,
    "net_arch": {"pi": list(HEADS), "vf": list(HEADS)},
}


def train_ppo(
    options: PPOOptions,
    listener: StepListener | None = None,
    show: Callable[[float, str], None] | None = None,
) -> PPOSummary:
    """Train an agent, saving it as it learns; an agent that exists at ``options.out`` goes on.

    Args:
        options: how.
        listener: told every frame that is played, from no skill to full skill.
        show: called with the decisions made so far and a note.

    Raises:
        OptionError: an option, or the agent at ``options.out``, cannot be used.
        SpecError: the game cannot be made.
    """
    environments = [_Maker(options, index, listener) for index in range(options.environments)]
    games = DummyVecEnv(environments)  # type: ignore[arg-type]
    try:
        first: DecisionEnvironment = games.envs[0]  # type: ignore[assignment]
        model = PPO(
            "MultiInputPolicy", games, options.learning_rate, options.n_steps,
            min(options.batch_size, options.n_steps * options.environments), options.epochs, options.gamma,
            ent_coef=options.entropy, policy_kwargs=POLICY, seed=options.seed, device=options.device,
        )  # fmt: skip
        done = 0
        if options.out.is_file():
            header, weights = _read(options.out)
            _check_fit(header, first.action_set, options.out)
            _load_weights(model.policy, weights, options.out)
            done = header["steps"]
        watcher = _Watcher(options, first.action_set, first.table, done, show)
        if done < options.steps:
            model.learn(options.steps - done, watcher)
        watcher.save(model.policy)
    finally:
        games.close()
    early, late = watcher.rewards[:100], watcher.rewards[-100:]
    return PPOSummary(
        str(options.out), options.spec, done + watcher.num_timesteps, len(watcher.rewards),
        float(np.mean(early)) if early else None, float(np.mean(late)) if late else None,
    )  # fmt: skip


class _Maker:
    """Makes one environment; a lambda in a loop would make the last one each time."""

    def __init__(self, options: PPOOptions, index: int, listener: StepListener | None) -> None:
        self._arguments = (options, index, listener)

    def __call__(self) -> DecisionEnvironment:
        return DecisionEnvironment(*self._arguments)


class _Watcher(BaseCallback):
    """Counts, shows progress and saves now and then."""

    def __init__(
        self,
        options: PPOOptions,
        action_set: ActionSet,
        table: np.ndarray,
        done: int,
        show: Callable[[float, str], None] | None,
    ) -> None:
        super().__init__()
        self.rewards: list[float] = []
        self._options, self._action_set, self._table = options, action_set, table
        self._done, self._saved, self._show = done, 0, show

    def _on_step(self) -> bool:
        self.rewards += [info["paper_reward"] for info in self.locals["infos"] if "paper_reward" in info]
        if self._show is not None:
            note = f"reward {np.mean(self.rewards[-100:]):.0f} in the last episodes" if self.rewards else ""
            self._show(self._done + self.num_timesteps, note)
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._saved >= SAVE_EVERY:
            self._saved = self.num_timesteps
            self.save(self.model.policy)

    def save(self, policy: Any) -> None:
        """Write the agent whole or not at all."""
        options = {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self._options).items()
        }
        header = {
            "format_version": FORMAT_VERSION,
            "spec": self._options.spec,
            "action_set": self._action_set.to_json(),
            "table": self._table.tolist(),
            "steps": self._done + self.num_timesteps,
            "options": options,
        }
        weights = policy.state_dict().items()
        tensors = {name: value.cpu().contiguous() for name, value in weights if not name.startswith(SHARED)}
        out = self._options.out
        partial = out.with_name(out.name + ".partial")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(save(tensors, {"gamengen_agent": json.dumps(header)}))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(out)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OptionError(f"cannot write the agent ({error.strerror})", out, "choose another --out") from error


class PPOAgent:
    """A trained agent that plays: it samples from its policy, each decision held for some frames."""

    def __init__(self, name: str, policy: Any, table: np.ndarray, action_set: ActionSet, hold: int) -> None:
        self.name = name
        self.sensors = frozenset({"automap"})
        self._policy, self._table, self._hold = policy, table, hold
        self._view = View(action_set)
        self.reset(0)

    @classmethod
    def load(cls, path: Path, action_set: ActionSet, frame_skip: int = FRAME_SKIP) -> PPOAgent:
        """Load an agent for a game with this ActionSet; it holds its decisions as long as in training.

        Raises:
            OptionError: the file is damaged, foreign, or of an agent with other actions.
        """
        header, weights = _read(path)
        _check_fit(header, action_set, path)
        table = np.asarray(header["table"], np.float32)
        spaces = View(action_set).space, gymnasium.spaces.Discrete(len(table))
        policy = MultiInputActorCriticPolicy(*spaces, lambda _: 0.0, **POLICY)
        _load_weights(policy, weights, path)
        policy.set_training_mode(False)
        tics = header["options"]["hold"] * header["options"]["frame_skip"]
        return cls(str(path), policy, table, action_set, max(1, round(tics / frame_skip)))

    def reset(self, seed: int) -> None:
        """Forget the last episode."""
        self._rng = np.random.default_rng(seed)
        self._view.reset()
        self._left = 0

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """The action (A,) to hold now."""
        if self._left == 0:
            seen = {name: torch.from_numpy(value)[None] for name, value in self._view.look(frame, info).items()}
            with torch.no_grad():
                chances = self._policy.get_distribution(seen).distribution.probs[0].double().numpy()
            index = self._rng.choice(len(self._table), p=chances / chances.sum())
            self._held = self._table[index]
            self._view.remember(self._held)
            self._left = self._hold
        self._left -= 1
        return self._held.copy()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    remedy = "use a file made by gamengen agent train"
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["gamengen_agent"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise OptionError("this is no agent, or a damaged one", path, remedy) from error
    if header.get("format_version") != FORMAT_VERSION:
        what = f"the agent has format version {header.get('format_version')}, not {FORMAT_VERSION}"
        raise OptionError(what, path, remedy)
    return header, tensors


def _load_weights(policy: Any, weights: dict[str, torch.Tensor], path: Path) -> None:
    shared = {name: value for name, value in policy.state_dict().items() if name.startswith(SHARED)}
    copies = {name: weights.get(name.partition("_")[2]) for name in shared}
    try:
        policy.load_state_dict({**weights, **copies})
    except (RuntimeError, TypeError, AttributeError) as error:
        raise OptionError("the agent's weights do not fit", path, "train it again") from error


def _check_fit(header: dict[str, Any], action_set: ActionSet, path: Path) -> None:
    try:
        theirs = ActionSet.from_json(header["action_set"])
    except ActionError as error:
        raise OptionError("this agent is damaged", path, "train it again") from error
    if theirs != action_set:
        what = f"the agent plays with {', '.join(theirs.names)}, the game has {', '.join(action_set.names)}"
        raise OptionError(what, path, "train an agent for this game")
