"""A scripted Doom player: wanders, avoids walls, fetches items, aims and fires.

It reads ViZDoom's label and depth buffers, so it plays any bundled scenario without training, with
whatever buttons that scenario has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.actions import ActionSet

TICS_PER_SECOND = 35
GOODS = frozenset({"Health", "Armor", "Ammo", "Weapon", "Powerup", "Key", "Item"})
BAD_GOODS = frozenset({"Poison"})
NEAR = 8  # depth buffer units (0-255) at which a wall is in the way
STUCK_UNITS = 4.0  # map units a walking player moves at least in the time below
STUCK_SECONDS = 0.4


class ScriptedAgent:
    """Skill, nerve and curiosity are drawn anew each episode: mixed data teaches a model more."""

    name = "scripted"
    sensors = frozenset({"labels", "depth"})

    def __init__(self, action_set: ActionSet, frame_skip: int = 2) -> None:
        self._actions = action_set
        self._seconds_per_frame = frame_skip / TICS_PER_SECOND
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start anew from ``seed``."""
        self._rng = np.random.default_rng(seed)
        self._steadiness = self._rng.uniform(0.5, 1.0)
        self._trigger = self._rng.uniform(0.3, 0.95)
        self._whim_seconds = self._rng.uniform(2.0, 8.0)
        self._whim: list[str] = []
        self._whim_left = 0.0
        self._wander_turn = str(self._rng.choice(["TURN_LEFT", "TURN_RIGHT"]))
        self._wander_left = 0.0
        self._escape: list[str] = []
        self._escape_left = 0.0
        self._still = 0.0
        self._last_position = np.full(2, np.nan)

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """The action (A,) to hold now."""
        labels, depth = info.get("labels"), info.get("depth")
        held = self._escape_a_corner(info["variables"]) or self._follow_a_whim()
        if not held:
            width = frame.shape[1]
            enemy = _nearest(labels or [], _is_enemy)
            goods = _nearest(labels or [], _is_goods)
            if enemy is not None:
                held = self._fight(enemy, width)
            elif goods is not None and self._can("MOVE_FORWARD"):
                held = [*self._face(goods, width), "MOVE_FORWARD"]
            else:
                held = self._wander(depth)
        return self._actions.encode(dict.fromkeys(name for name in held if self._can(name)))

    def _can(self, name: str) -> bool:
        return name in self._actions.buttons

    def _follow_a_whim(self) -> list[str]:
        """Now and then do something pointless for a moment, so that the model sees that too."""
        self._whim_left -= self._seconds_per_frame
        if self._whim_left > 0:
            return self._whim
        if self._rng.random() < self._seconds_per_frame / self._whim_seconds:
            count = int(self._rng.integers(1, 3))
            self._whim = [str(n) for n in self._rng.choice(self._actions.names, min(count, self._actions.size), False)]
            self._whim_left = float(self._rng.uniform(0.1, 0.7))
        return []

    def _fight(self, enemy: Any, width: int) -> list[str]:
        held = self._face(enemy, width)
        off = abs(enemy.x + enemy.width / 2 - width / 2)
        # Shots that just miss are wanted too, so the tolerance is wider than the monster.
        on_target = off < max(enemy.width * 0.5, width * 0.02) * (1.6 - self._steadiness)
        if on_target and self._rng.random() < self._trigger:
            held.append("ATTACK")
        if self._can("MOVE_FORWARD") and enemy.height < 60:
            held.append("MOVE_FORWARD")
        elif self._rng.random() < 0.5:
            held.append("MOVE_LEFT" if self._wander_turn == "TURN_LEFT" else "MOVE_RIGHT")
        return held

    def _face(self, thing: Any, width: int) -> list[str]:
        off = thing.x + thing.width / 2 - width / 2
        if abs(off) < width * 0.015 or self._rng.random() > self._steadiness:
            return []
        if self._can("TURN_LEFT"):
            return ["TURN_LEFT" if off < 0 else "TURN_RIGHT"]
        return ["MOVE_LEFT" if off < 0 else "MOVE_RIGHT"]

    def _wander(self, depth: np.ndarray | None) -> list[str]:
        self._wander_left -= self._seconds_per_frame
        if self._wander_left <= 0:
            self._wander_left = float(self._rng.uniform(0.5, 4.0))
            if self._rng.random() < 0.5:
                self._wander_turn = "TURN_RIGHT" if self._wander_turn == "TURN_LEFT" else "TURN_LEFT"
        sideways = self._wander_turn.replace("TURN", "MOVE")
        if not self._can("MOVE_FORWARD"):
            return [self._wander_turn if self._can("TURN_LEFT") else sideways]
        if depth is None:
            return ["MOVE_FORWARD", *([self._wander_turn] if self._rng.random() < 0.2 else [])]
        row = depth[int(depth.shape[0] * 0.45) : int(depth.shape[0] * 0.6)].min(0).astype(float)
        thirds = [part.mean() for part in np.array_split(row, 3)]
        if thirds[1] < NEAR:
            door = ["USE"] if self._rng.random() < 0.3 else []
            return ["TURN_LEFT" if thirds[0] > thirds[2] + 1 else self._wander_turn, *door]
        held = ["MOVE_FORWARD"]
        if self._rng.random() < 0.3:
            held.append("SPEED")
        if max(thirds[0], thirds[2]) > 1.3 * thirds[1]:
            held.append("TURN_LEFT" if thirds[0] > thirds[2] else "TURN_RIGHT")
        elif self._wander_left < 0.4:
            held.append(self._wander_turn)
        return held

    def _escape_a_corner(self, variables: dict[str, float]) -> list[str]:
        """Walked but did not move: back off and turn for a moment."""
        self._escape_left -= self._seconds_per_frame
        if self._escape_left > 0:
            return self._escape
        position = np.array([variables.get("POSITION_X", np.nan), variables.get("POSITION_Y", np.nan)])
        moved = float(np.abs(position - self._last_position).sum())
        self._last_position = position
        if not self._can("MOVE_FORWARD") or not moved < STUCK_UNITS * self._seconds_per_frame / STUCK_SECONDS:
            self._still = 0.0
            return []
        self._still += self._seconds_per_frame
        if self._still > STUCK_SECONDS:
            self._still = 0.0
            self._escape = ["MOVE_BACKWARD", str(self._rng.choice(["TURN_LEFT", "TURN_RIGHT"]))]
            if self._rng.random() < 0.5:
                self._escape.append("USE")
            self._escape_left = float(self._rng.uniform(0.3, 1.0))
        return []


def _is_enemy(label: Any) -> bool:
    return label.object_category in ("Monster", "Monsters", "Player", "Players")


def _is_goods(label: Any) -> bool:
    return label.object_category in GOODS and not any(bad in label.object_name for bad in BAD_GOODS)


def _nearest(labels: Any, wanted: Any) -> Any | None:
    """The largest wanted thing on screen, which is the nearest of its kind."""
    found = [label for label in labels if wanted(label) and label.width * label.height >= 12]
    return max(found, key=lambda label: label.height, default=None)
