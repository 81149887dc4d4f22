"""Trains the PPO agent of the paper (GameNGen, arXiv 2408.14837, section 3.1) on stable-baselines3."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from safetensors.torch import save
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.actions import ActionSet
from agents.environments import FRAME_SKIP, make_environment
from agents.errors import EngineError, OptionError
from agents.policy import FORMAT_VERSION, POLICY, SHARED, View, check_fit, combinations, load_weights, read_agent
from agents.policy import PPOAgent as PPOAgent
from agents.rewards import PaperReward

REWARD_SCALE = 0.01  # a death is -5000: the value head learns smaller numbers better
SAVE_EVERY = 4_000  # decisions
ENGINE_STARTS = 3  # attempts, before a game that will not start is an error
POSITIVE = (
    "steps", "environments", "hold", "frame_skip", "max_frames", "n_steps", "batch_size", "epochs", "learning_rate",
)  # fmt: skip


class StepListener(Protocol):
    """Records what is played in training; ``recorder.record.StreamRecorder`` is one."""

    def begin(self, index: int) -> int:
        """The seed that the next episode of environment ``index`` is to be played with, so that it can be again."""

    def add(
        self, index: int, frame: np.ndarray, action: np.ndarray, reward: float, variables: dict[str, float]
    ) -> None:
        """One frame of environment ``index``: ``action`` is held while ``frame`` is on screen.

        ``variables`` are those of that frame; ``reward`` is the game's own for the step that follows it.
        """

    def end(self, index: int, terminated: bool, truncated: bool) -> None:
        """The episode of environment ``index`` ended with the step added last."""


@dataclass(frozen=True)
class PPOOptions:
    """How to train; the defaults are the paper's.

    Args:
        spec: the game.
        out: the agent's file; one that exists there is trained on.
        steps: decisions in all, over all environments; each holds its action for ``hold`` frames.
        minutes: stop after this time, where ``steps`` are not done by then.
        environments: games played side by side.
        hold: frames that a decision is held: 2 frames of 2 tics are the paper's 4 tics.
        frame_skip: tics a frame.
        max_frames: longest episode.
        inside: name of the neural game that it is trained in; None is the real one.
    """

    spec: str
    out: Path
    steps: int = 1_000_000
    minutes: float | None = None
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
    inside: str | None = None

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"must be more than 0, got {getattr(self, name)}", flag, "give a positive number")
        if self.minutes is not None and not self.minutes > 0:
            raise OptionError(f"must be more than 0, got {self.minutes}", "--minutes", "give a positive number")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"must be from 0 to {2**32 - 1}, got {self.seed}", "--seed", "give 0 or more")
        if not self.learning_rate <= 1:
            raise OptionError(f"must be at most 1, got {self.learning_rate}", "--learning-rate", "use 1e-4")
        if not 0 <= self.entropy < float("inf"):
            raise OptionError(f"must be 0 or more, got {self.entropy}", "--entropy", "use 0.1")
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
    """What training did; rewards are summed over an episode, of the first and the last 100 episodes.

    They are the paper's, or of an agent trained inside a neural game those that this tells.
    """

    agent: str
    spec: str
    steps: int
    episodes: int
    first_episodes_reward: float | None
    last_episodes_reward: float | None


class DecisionEnvironment(gymnasium.Env[Any, Any]):
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
        for attempt in range(ENGINE_STARTS):
            try:
                start = int(self.np_random.integers(2**31)) if seed is None else seed
                if self._listener is not None:
                    start = self._listener.begin(self._index)
                self._frame, self._info = self._env.reset(seed=start)
                break
            except EngineError:
                if attempt == ENGINE_STARTS - 1:
                    raise
        self._reward.reset(self._info["variables"])
        self.view.reset()
        self.total = 0.0
        return self.view.look(self._frame, self._info), {}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Hold a combination for some frames; the reward is the paper's, scaled.

        An engine that dies cuts the episode short; the frames until then were whole.
        """
        held = self.table[int(action)]
        earned, terminated, truncated = 0.0, False, False
        for _ in range(self._hold):
            frame, info = self._frame, self._info
            try:
                self._frame, game_reward, terminated, truncated, self._info = self._env.step(held)
            except EngineError:
                truncated = True
                break
            # A game without variables has only its own reward.
            variables = self._info["variables"]
            reward = self._reward(variables) if variables else game_reward
            if self._listener is not None:
                self._listener.add(self._index, frame, held, game_reward, info["variables"])
            earned += reward
            if terminated or truncated:
                break
        if self._listener is not None and (terminated or truncated):
            self._listener.end(self._index, terminated, truncated)
        self.view.remember(held)
        self.total += earned
        info = {"total_reward": self.total} if terminated or truncated else {}
        scale = REWARD_SCALE if self._info["variables"] else 1.0
        return self.view.look(self._frame, self._info), earned * scale, terminated, truncated, info

    def close(self) -> None:
        """End the game."""
        self._env.close()


def train_ppo(
    options: PPOOptions,
    listener: StepListener | None = None,
    show: Callable[[float, str], None] | None = None,
    games: VecEnv | None = None,
) -> PPOSummary:
    """Train an agent, saving it as it learns; an agent that exists at ``options.out`` goes on.

    Args:
        options: how.
        listener: told every frame that is played, from no skill to full skill.
        show: called with the decisions made so far and a note.
        games: played instead of the real game, with the ``action_set`` and ``table`` of a DecisionEnvironment.

    Raises:
        OptionError: an option, or the agent at ``options.out``, cannot be used.
        SpecError: the game cannot be made.
    """
    if games is None:
        games = DummyVecEnv([_Maker(options, index, listener) for index in range(options.environments)])
    try:
        (action_set, *_), (table, *_) = games.get_attr("action_set"), games.get_attr("table")
        header, weights = read_agent(options.out) if options.out.is_file() else ({"steps": 0}, {})
        if weights:
            check_fit(header, action_set, options.out)
            if not np.array_equal(np.asarray(header["table"], np.float32), table):
                raise OptionError("the agent chooses among other combinations", options.out, "choose another --out")
        done = header["steps"]
        # An agent that goes on plays new episodes.
        model = PPO(
            "MultiInputPolicy", games, options.learning_rate, options.n_steps,
            min(options.batch_size, options.n_steps * games.num_envs), options.epochs, options.gamma,
            ent_coef=options.entropy, policy_kwargs=POLICY, seed=(options.seed + done) % 2**32, device=options.device,
        )  # fmt: skip
        if weights:
            load_weights(model.policy, weights, options.out)
        watcher = _Watcher(options, action_set, table, done, show)
        if done < options.steps:  # else it stays as it was trained, whatever the options are now
            watcher.save(model.policy)  # a file that cannot be written is told now
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
        self._end = time.monotonic() + 60 * (options.minutes or float("inf"))

    def _on_step(self) -> bool:
        self.rewards += [info["total_reward"] for info in self.locals["infos"] if "total_reward" in info]
        if self._show is not None:
            note = f"reward {np.mean(self.rewards[-100:]):.1f} in the last episodes" if self.rewards else ""
            self._show(self._done + self.num_timesteps, note)
        return time.monotonic() < self._end

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
