"""What an agent is, and the roster that makes one from its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agents.actions import ActionSet
from agents.errors import OptionError


class Agent(Protocol):
    """Plays: sees a frame and ``info``, answers with an action."""

    name: str
    sensors: frozenset[str]

    def reset(self, seed: int) -> None:
        """Forget the last episode; all randomness of the next one comes from ``seed``."""

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """The action (A,) float32 to hold while ``frame`` (H, W, 3) is on screen."""


@dataclass(frozen=True)
class AgentShare:
    """One agent of a mix and the share of episodes that it plays."""

    name: str
    share: float


def default_mix(spec: str) -> str:
    """Who plays the game ``spec`` where nobody is named: the scripted agent knows Doom alone."""
    return "scripted:0.6,random:0.4" if spec.startswith("doom/") else "random"


def default_agent(spec: str) -> str:
    """Who plays it alone then."""
    return "scripted" if spec.startswith("doom/") else "random"


def parse_mix(text: str) -> tuple[AgentShare, ...]:
    """Read ``"scripted:0.6,random:0.4"`` or a single name; shares are scaled to sum to 1.

    Raises:
        OptionError: a share is not a positive number, or an agent is unknown.
    """
    shares = []
    for part in text.split(","):
        name, _, number = part.strip().rpartition(":") if _is_share(part) else (part.strip(), "", "1")
        if name not in ("random", "scripted") and not Path(name).is_file():
            raise OptionError("unknown agent", name or text, "use random, scripted, or the file of a trained agent")
        if not float(number) > 0 or not np.isfinite(float(number)):
            raise OptionError("an agent's share must be more than 0", part, "write it like scripted:0.6,random:0.4")
        shares.append(AgentShare(name, float(number)))
    total = sum(s.share for s in shares)
    return tuple(AgentShare(s.name, s.share / total) for s in shares)


def _is_share(part: str) -> bool:
    try:
        float(part.rpartition(":")[2])
    except ValueError:
        return False
    return ":" in part


def make_agent(name: str, action_set: ActionSet, frame_skip: int = 2) -> Agent:
    """The agent called ``random`` or ``scripted``, or the PPO agent stored in the file ``name``.

    Raises:
        OptionError: no such agent, or it was trained for another ActionSet.
    """
    if name == "random":
        from agents.random_agent import RandomAgent

        return RandomAgent(action_set, frame_skip)
    if name == "scripted":
        from agents.scripted_agent import ScriptedAgent

        return ScriptedAgent(action_set, frame_skip)
    if Path(name).is_file():
        from agents.ppo import PPOAgent

        return PPOAgent.load(Path(name), action_set, frame_skip)
    raise OptionError("unknown agent", name, "use random, scripted, or the file of a trained agent")
