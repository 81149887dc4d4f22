"""A scripted Doom player: wanders, avoids walls, fetches items, aims, fires and dodges.

It reads ViZDoom's label and depth buffers, so it plays any bundled scenario without training, with
whatever buttons that scenario has.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agents.actions import ActionSet

TICS_PER_SECOND = 35
ENEMIES = frozenset({"Monster", "Player"})  # ViZDoom's own categories; the player himself is "Self"
GOODS = frozenset({"Health", "Armor", "Ammo", "Weapon", "Powerup", "Key", "Item"})
POISON = "Poison"  # an object of category Health that hurts
NEAR = 8  # depth buffer units (0-255) at which a wall is in the way
LOYALTY = 1.4  # how much larger on screen another enemy must be to be shot at instead
CLOSE = 60  # height in pixels of an enemy that is near enough
STUCK_UNITS = 4.0  # map units a walking player moves at least in the time below
STUCK_SECONDS = 0.4
CHASE_SECONDS = 6.0  # an item not reached by then is out of reach, or of no use
SWITCH_SECONDS = 1.5  # until a weapon asked for is in the hand
BLIND_SECONDS = 1.0  # without an enemy in sight, one who cannot turn begins to fire at nothing
MISSILE_UNITS = {5: 20.0, 6: 25.0}  # weapon slot: map units a tic that its missile flies
TRIGGER_TICS = 8  # from the trigger to the rocket's flight
PLAYER_RADIUS = 16.0
DODGE_TICS = 60  # a missile that is further away is no concern yet


class ScriptedAgent:
    """Skill, nerve and curiosity are drawn anew each episode: mixed data teaches a model more."""

    name = "scripted"
    sensors = frozenset({"labels", "depth"})

    def __init__(self, action_set: ActionSet, frame_skip: int = 2) -> None:
        self._actions = action_set
        self._seconds_per_frame = frame_skip / TICS_PER_SECOND
        self._tics_per_frame = frame_skip
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
        self._caution = self._rng.uniform(0.3, 0.9)
        self._agility = self._rng.uniform(0.0, 0.4)
        self._rushes = self._rng.random() < 0.3
        self._weapons = [*map(int, self._rng.permutation([3, 4, 5, 6])), 2]
        self._switch_left = 0.0
        self._blind = 0.0
        self._target: int | None = None
        self._walked = False
        self._chased: dict[int, float] = {}
        self._tracks: dict[int, deque[tuple[float, float]]] = {}

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """The action (A,) to hold now."""
        variables, labels = info["variables"], info.get("labels") or []
        stuck = self._is_stuck(variables)
        held = self._escape_a_corner(stuck) or self._follow_a_whim()
        if not held:
            held = self._play(labels, info.get("depth"), variables, frame.shape[1], stuck)
            held += self._draw_a_weapon(variables)
        self._walked = any(name.startswith("MOVE") for name in held)
        return self._actions.encode(dict.fromkeys(name for name in held if self._can(name)))

    def _play(
        self, labels: Sequence[Any], depth: Any, variables: dict[str, float], width: int, stuck: bool
    ) -> list[str]:
        enemy = self._choose_enemy(labels)
        goods = _nearest(labels, lambda label: self._wants(label, variables))
        self._blind = 0.0 if enemy is not None else self._blind + self._seconds_per_frame
        dodge = self._dodge(labels, variables)
        far = enemy is None or enemy.height < CLOSE
        rushes = self._rushes or (far and goods is not None and goods.object_category == "Weapon")
        if rushes and goods is not None and self._can("MOVE_FORWARD"):
            held = self._fetch(goods, labels, width)
            if enemy is not None and self._is_on_target(enemy, _middle(enemy), width):
                held.append("ATTACK")
        elif enemy is not None and (self._can("ATTACK") or not dodge):
            held = self._fight(enemy, variables, width)
        elif goods is not None and self._can("MOVE_FORWARD"):
            held = self._fetch(goods, labels, width)
        elif dodge:
            held = []
        else:
            held = self._wander(depth, stuck)
            held += self._shun_poison(labels, width)
        return [*(name for name in held if name not in ("MOVE_LEFT", "MOVE_RIGHT")), dodge] if dodge else held

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

    def _fight(self, enemy: Any, variables: dict[str, float], width: int) -> list[str]:
        aim = self._aim(enemy, variables, width)
        held = self._face(aim, width)
        if self._is_on_target(enemy, aim, width) and self._rng.random() < self._trigger:
            held.append("ATTACK")
        if self._can("MOVE_FORWARD") and enemy.height < CLOSE:
            held.append("MOVE_FORWARD")
        elif self._can("MOVE_BACKWARD") and self._rng.random() < self._caution:
            held.append("MOVE_BACKWARD")
        elif self._rng.random() < self._agility and self._can("TURN_LEFT"):
            held.append("MOVE_LEFT" if self._wander_turn == "TURN_LEFT" else "MOVE_RIGHT")
        return held

    def _choose_enemy(self, labels: Sequence[Any]) -> Any | None:
        """The nearest enemy, or the one of before unless another is much nearer: no wavering between two."""
        enemies = [label for label in labels if label.object_category in ENEMIES]
        enemy = _nearest(enemies, lambda label: True)
        before = _nearest(enemies, lambda label: label.object_id == self._target)
        if enemy is not None and before is not None and enemy.height < LOYALTY * before.height:
            enemy = before
        self._target = None if enemy is None else enemy.object_id
        return enemy

    def _is_on_target(self, enemy: Any, aim: float, width: int) -> bool:
        # Shots that just miss are wanted too, so the tolerance is wider than the monster.
        return abs(aim - width / 2) < max(enemy.width * 0.5, width * 0.02) * (1.6 - self._steadiness)

    def _aim(self, enemy: Any, variables: dict[str, float], width: int) -> float:
        """Where on screen to aim (pixels from the left): ahead of the enemy with a weapon that fires missiles."""
        track = self._tracks.setdefault(enemy.object_id, deque(maxlen=8))
        track.append((enemy.object_position_x, enemy.object_position_y))
        speed = MISSILE_UNITS.get(int(variables.get("SELECTED_WEAPON", 0)))
        if speed is None or len(track) < 4:
            return _middle(enemy)
        tics = (len(track) - 1) * self._tics_per_frame
        velocity = (np.array(track[-1]) - np.array(track[0])) / tics
        place = np.array([variables["POSITION_X"], variables["POSITION_Y"]])
        away = np.array(track[-1]) - place
        for _ in range(2):  # the flight takes the longer, the further the enemy gets
            away = np.array(track[-1]) - place + velocity * (TRIGGER_TICS + np.linalg.norm(away) / speed)
        left = math.remainder(math.atan2(away[1], away[0]) - math.radians(variables["ANGLE"]), math.tau)
        return width / 2 * (1 - math.tan(max(-1.2, min(1.2, left))))  # the picture spans 90 degrees

    def _face(self, x: float, width: int) -> list[str]:
        off = x - width / 2
        if abs(off) < width * 0.015 or self._rng.random() > self._steadiness:
            return []
        if self._can("TURN_LEFT"):
            return ["TURN_LEFT" if off < 0 else "TURN_RIGHT"]
        return ["MOVE_LEFT" if off < 0 else "MOVE_RIGHT"]

    def _wants(self, label: Any, variables: dict[str, float]) -> bool:
        category, name = label.object_category, label.object_name
        if category not in GOODS or POISON in name or self._chased.get(label.object_id, 0) > CHASE_SECONDS:
            return False
        if category == "Health" and "Bonus" not in name:
            return variables.get("HEALTH", 0) < 100
        if category == "Armor" and "Bonus" not in name:
            return variables.get("ARMOR", 0) < 100
        return True

    def _fetch(self, goods: Any, labels: Sequence[Any], width: int) -> list[str]:
        self._chased[goods.object_id] = self._chased.get(goods.object_id, 0) + self._seconds_per_frame
        shun = self._shun_poison([label for label in labels if label.height >= goods.height], width)
        return [*(shun or self._face(_middle(goods), width)), "MOVE_FORWARD"]

    def _shun_poison(self, labels: Sequence[Any], width: int) -> list[str]:
        poison = _nearest(labels, lambda label: POISON in label.object_name)
        if poison is None or poison.height < 12 or abs(_middle(poison) - width / 2) > poison.width / 2 + width * 0.12:
            return []
        return ["TURN_LEFT" if _middle(poison) > width / 2 else "TURN_RIGHT"]

    def _dodge(self, labels: Sequence[Any], variables: dict[str, float]) -> str:
        """Which way to step aside of the missile that hits first, or ""."""
        if not self._can("MOVE_LEFT"):
            return ""
        angle = math.radians(variables.get("ANGLE", 0))
        first, way = float(DODGE_TICS), ""
        for label in labels:
            vx, vy = label.object_velocity_x, label.object_velocity_y
            x = label.object_position_x - variables.get("POSITION_X", math.nan)
            y = label.object_position_y - variables.get("POSITION_Y", math.nan)
            speed = math.hypot(vx, vy)
            if label.object_category != "Explosive" or speed < 5:
                continue
            tics = -(x * vx + y * vy) / speed**2
            # How far to our left it passes, at its nearest.
            left = -(x + vx * tics) * math.sin(angle) + (y + vy * tics) * math.cos(angle)
            if 0 < tics < first and abs(left) < 3 * PLAYER_RADIUS:
                first, way = tics, "MOVE_RIGHT" if left > 0 else "MOVE_LEFT"
        return way if self._rng.random() < self._steadiness else ""

    def _draw_a_weapon(self, variables: dict[str, float]) -> list[str]:
        """Press the key of the favourite weapon that is loaded, unless it is in the hand."""
        self._switch_left -= self._seconds_per_frame
        for slot in self._weapons:
            if variables.get(f"WEAPON{slot}", 0) > 0 and variables.get(f"AMMO{slot}", 0) > 0:
                if slot == variables.get("SELECTED_WEAPON") or self._switch_left > 0:
                    return []
                self._switch_left = SWITCH_SECONDS
                return [f"SELECT_WEAPON{slot}"]
        return []

    def _wander(self, depth: np.ndarray | None, stuck: bool) -> list[str]:
        self._wander_left -= self._seconds_per_frame
        if self._wander_left <= 0:
            self._wander_left = float(self._rng.uniform(0.5, 4.0))
            if self._rng.random() < 0.5:
                self._turn_about()
        if not self._can("MOVE_FORWARD"):
            return self._sweep(stuck)
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

    def _sweep(self, stuck: bool) -> list[str]:
        """Look around from the spot, or step from wall to wall where one cannot turn."""
        if self._can("TURN_LEFT"):
            return [self._wander_turn]
        if stuck:
            self._turn_about()
        blind = self._blind > BLIND_SECONDS and self._rng.random() < self._trigger
        return [self._wander_turn.replace("TURN", "MOVE"), *(["ATTACK"] if blind else [])]

    def _turn_about(self) -> None:
        self._wander_turn = "TURN_RIGHT" if self._wander_turn == "TURN_LEFT" else "TURN_LEFT"

    def _is_stuck(self, variables: dict[str, float]) -> bool:
        """Whether the player walks but has not moved for a moment."""
        position = np.array([variables.get("POSITION_X", np.nan), variables.get("POSITION_Y", np.nan)])
        moved = float(np.abs(position - self._last_position).sum())
        self._last_position = position
        if not self._walked or not moved < STUCK_UNITS * self._seconds_per_frame / STUCK_SECONDS:
            self._still = 0.0
            return False
        self._still += self._seconds_per_frame
        if self._still <= STUCK_SECONDS:
            return False
        self._still = 0.0
        return True

    def _escape_a_corner(self, stuck: bool) -> list[str]:
        """Back off and turn for a moment."""
        self._escape_left -= self._seconds_per_frame
        if self._escape_left > 0:
            return self._escape
        if stuck and self._can("MOVE_FORWARD"):
            self._escape = ["MOVE_BACKWARD", str(self._rng.choice(["TURN_LEFT", "TURN_RIGHT"]))]
            if self._rng.random() < 0.5:
                self._escape.append("USE")
            self._escape_left = float(self._rng.uniform(0.3, 1.0))
        return []


def _middle(label: Any) -> float:
    return label.x + label.width / 2


def _nearest(labels: Sequence[Any], wanted: Callable[[Any], bool]) -> Any | None:
    """The largest wanted thing on screen, which is the nearest of its kind."""
    found = [label for label in labels if wanted(label) and label.width * label.height >= 12]
    return max(found, key=lambda label: label.height, default=None)
