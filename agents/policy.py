"""What a PPO agent sees, what it chooses among, its network, its file, and the agent itself.

It sees the frame at 160x120 with the map beside it where the game offers one, and what was held in the last 32
decisions. A discrete policy chooses among combinations of buttons. An agent is one safetensors file
whose metadata says all else as JSON: loading it runs no pickle.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from agents.actions import ActionSet
from agents.environments import FRAME_SKIP
from agents.errors import ActionError, OptionError

FORMAT_VERSION = 1
IMAGE_HEIGHT, IMAGE_WIDTH = 120, 160
REMEMBERED = 32  # last decisions that the policy sees
FEATURES = 512
HEADS = (256, 256)
# One choice of each group is held; the product of the groups is the policy's table of combinations.
GROUPS = (
    ("MOVE_FORWARD", "MOVE_BACKWARD"), ("TURN_LEFT", "TURN_RIGHT"), ("MOVE_LEFT", "MOVE_RIGHT"), ("ATTACK",),
)  # fmt: skip
ALONE = ("USE", "SPEED")
AXIS_LEVELS = ((-1.0, -0.5, 0.0, 0.5, 1.0), (-1.0, 0.0, 1.0))
MOST_COMBINATIONS = 256
HEADER = ("format_version", "spec", "action_set", "table", "steps", "options")


def combinations(action_set: ActionSet) -> np.ndarray:
    """The actions (M, A) that a discrete policy chooses from; resting is the first.

    Buttons that a hand holds together are combined (forward, turn and fire at once), others stand alone.
    Where no button is known all are combined freely, if there are few. Exclusive buttons stand alone,
    and axes take a few levels, all of them together or, where there are many, one at a time.
    """
    if action_set.exclusive:
        return np.eye(action_set.size, dtype=np.float32)
    buttons, known = action_set.buttons, set(itertools.chain(*GROUPS))
    groups: Any = [[(), *((name,) for name in group if name in buttons)] for group in GROUPS]
    if not known & set(buttons) and 2 ** len(buttons) <= MOST_COMBINATIONS:
        groups = [[(), (name,)] for name in buttons]
    held = [tuple(itertools.chain(*choice)) for choice in itertools.product(*groups)]
    held += [(name,) for name in buttons if name not in known]
    held += [("MOVE_FORWARD", name) for name in ALONE if {"MOVE_FORWARD", name} <= set(buttons)]
    rows = [action_set.rest, *(action_set.encode(names) for names in held), *_settings(action_set)]
    return np.array(list(dict.fromkeys(tuple(row.tolist()) for row in rows)), np.float32)


def _settings(action_set: ActionSet) -> list[np.ndarray]:
    """Actions that move the axes alone."""
    axes = action_set.axes
    if not axes:
        return []
    for levels in AXIS_LEVELS:
        if len(levels) ** len(axes) <= MOST_COMBINATIONS:
            settings = itertools.product(levels, repeat=len(axes))
            return [action_set.encode((), **dict(zip(axes, values, strict=True))) for values in settings]
    return [action_set.encode((), **{name: value}) for name in axes for value in AXIS_LEVELS[-1]]


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


class PPOAgent:
    """A trained agent that plays: it samples from its policy, each decision held for some frames."""

    def __init__(
        self, name: str, policy: Any, table: np.ndarray, action_set: ActionSet, hold: int, sees_map: bool = True
    ) -> None:
        self.name = name
        self.sensors = frozenset({"automap"}) if sees_map else frozenset()
        self._policy, self._table, self._hold = policy, table, hold
        self._view = View(action_set)
        self.reset(0)

    @classmethod
    def load(cls, path: Path, action_set: ActionSet, frame_skip: int = FRAME_SKIP) -> PPOAgent:
        """Load an agent for a game with this ActionSet; it holds its decisions as long as in training.

        Raises:
            OptionError: the file is damaged, foreign, or of an agent with other actions.
        """
        header, weights = read_agent(path)
        check_fit(header, action_set, path)
        table = np.asarray(header["table"], np.float32)
        spaces = View(action_set).space, gymnasium.spaces.Discrete(len(table))
        policy = MultiInputActorCriticPolicy(*spaces, lambda _: 0.0, **POLICY)
        load_weights(policy, weights, path)
        policy.set_training_mode(False)
        tics = header["options"]["hold"] * header["options"]["frame_skip"]
        sees_map = header["options"].get("inside") is None  # a neural game has none
        return cls(str(path), policy, table, action_set, max(1, round(tics / frame_skip)), sees_map)

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


def read_agent(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and weights of an agent's file.

    Raises:
        OptionError: the file is missing, damaged, foreign or of another version.
    """
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
    if missing := [name for name in HEADER if name not in header]:
        raise OptionError(f"the agent's file does not tell its {', '.join(missing)}", path, remedy)
    return header, tensors


def load_weights(policy: Any, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put an agent's weights into a policy; those of :data:`SHARED` are stored once.

    Raises:
        OptionError: they do not fit.
    """
    shared = {name: value for name, value in policy.state_dict().items() if name.startswith(SHARED)}
    copies = {name: weights.get(name.partition("_")[2]) for name in shared}
    try:
        policy.load_state_dict({**weights, **copies})
    except (RuntimeError, TypeError, AttributeError) as error:
        raise OptionError("the agent's weights do not fit", path, "train it again") from error


def check_fit(header: dict[str, Any], action_set: ActionSet, path: Path) -> None:
    """See that an agent was trained for this ActionSet.

    Raises:
        OptionError: it was not.
    """
    try:
        theirs = ActionSet.from_json(header["action_set"])
    except ActionError as error:
        raise OptionError("this agent is damaged", path, "train it again") from error
    if theirs != action_set:
        what = f"the agent plays with {', '.join(theirs.names)}, the game has {', '.join(action_set.names)}"
        raise OptionError(what, path, "train an agent for this game")
