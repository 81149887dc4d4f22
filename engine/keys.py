"""From keys, mouse and gamepad to the action of any game; knows no window.

Inputs go by plain names: keys as ``pygame.key.name`` has them (``"w"``, ``"left ctrl"``), ``"mouse left"``,
and for a gamepad ``"pad a"``, ``"pad stick left"``, ``"pad right trigger"``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.actions import ActionSet
from agents.random_agent import OPPOSITES

# Mouse travel in pixels that turns as far as holding the turn key for one frame does.
PIXELS_PER_TURN = 20.0
# Frames that a fast mouse movement may go on turning: more would feel like ice.
LONGEST_TURN = 3.0
STICK_THRESHOLD, AXIS_DEAD_ZONE = 0.4, 0.15


@dataclass(frozen=True)
class Target:
    """What an input does: a channel of the action and the value it gets."""

    channel: str
    value: float = 1.0


_FORWARD = (Target("MOVE_FORWARD"), Target("MOVE_FORWARD_BACKWARD_DELTA"))
_BACKWARD = (Target("MOVE_BACKWARD"), Target("MOVE_FORWARD_BACKWARD_DELTA", -1.0))
_STRAFE_LEFT = (Target("MOVE_LEFT"), Target("MOVE_LEFT_RIGHT_DELTA", -1.0))
_STRAFE_RIGHT = (Target("MOVE_RIGHT"), Target("MOVE_LEFT_RIGHT_DELTA"))
_TURN_LEFT = (Target("TURN_LEFT"), Target("TURN_LEFT_RIGHT_DELTA", -1.0))
_TURN_RIGHT = (Target("TURN_RIGHT"), Target("TURN_LEFT_RIGHT_DELTA"))
_FIRE, _USE, _RUN = (Target("ATTACK"),), (Target("USE"),), (Target("SPEED"),)
# What an input does, best first: each game takes the first that it has. So the arrows strafe where a game
# cannot turn, and Space fires where there is nothing to use.
_WISHES: dict[str, tuple[Target, ...]] = {
    "w": _FORWARD, "up": _FORWARD, "s": _BACKWARD, "down": _BACKWARD,
    "a": _STRAFE_LEFT + _TURN_LEFT, "left": _TURN_LEFT + _STRAFE_LEFT,
    "d": _STRAFE_RIGHT + _TURN_RIGHT, "right": _TURN_RIGHT + _STRAFE_RIGHT,
    "left ctrl": _FIRE, "right ctrl": _FIRE, "mouse left": _FIRE,
    "space": _USE + _FIRE, "e": _USE, "left shift": _RUN, "right shift": _RUN,
    **{str(i): (Target(f"SELECT_WEAPON{i}"),) for i in range(1, 8)},
    "pad stick up": _FORWARD, "pad up": _FORWARD, "pad stick down": _BACKWARD, "pad down": _BACKWARD,
    "pad stick left": _STRAFE_LEFT + _TURN_LEFT, "pad left": _TURN_LEFT + _STRAFE_LEFT,
    "pad stick right": _STRAFE_RIGHT + _TURN_RIGHT, "pad right": _TURN_RIGHT + _STRAFE_RIGHT,
    "pad right trigger": _FIRE, "pad x": _FIRE, "pad a": _USE + _FIRE, "pad left trigger": _RUN,
}  # fmt: skip
# The arrow keys in Gymnasium's own games with so many actions: CartPole, MountainCar, LunarLander, CarRacing.
_ARROWS: dict[int, dict[str, int]] = {
    2: {"left": 0, "right": 1},
    3: {"left": 0, "down": 1, "right": 2},
    4: {"down": 0, "left": 1, "up": 2, "right": 3},
    5: {"right": 1, "left": 2, "up": 3, "down": 4},
}
_ATARI = {"space": 1, "left ctrl": 1, "pad a": 1, "up": 2, "right": 3, "left": 4, "down": 5}
_BUTTON_ARROWS = {"left": 0, "right": 1, "up": 2, "down": 3}
_AXIS_PAIRS = (("left", "right"), ("down", "up"), ("a", "d"), ("s", "w"), ("j", "l"), ("k", "i"), ("f", "h"))
# Inputs that mean the same as an arrow key where a game gives them no meaning of their own.
_LIKE_ARROWS = {
    "left": ("a", "pad left", "pad stick left"), "right": ("d", "pad right", "pad stick right"),
    "up": ("w", "pad up", "pad stick up"), "down": ("s", "pad down", "pad stick down"),
}  # fmt: skip
# Keys that the window does not need, for buttons that have no usual key.
_SPARE_KEYS = "1234567890zxcvbqetyuioghjkl"
_STICKS = {
    "pad left x": ("pad stick left", "pad stick right"),
    "pad left y": ("pad stick up", "pad stick down"),
    "pad left trigger": ("", "pad left trigger"),
    "pad right trigger": ("", "pad right trigger"),
}
TURN_STICK = "pad right x"


def bind_inputs(action_set: ActionSet) -> dict[str, Target]:
    """What each input does in a game with this ActionSet.

    Doom's buttons get their usual keys. ``ACTION_i`` and ``BUTTON_i`` of Gymnasium games get the number key
    i and the arrows, ``AXIS_i`` pairs of keys, and every other button a spare key.
    """
    bound = {
        name: next(target for target in wishes if target.channel in action_set.names)
        for name, wishes in _WISHES.items()
        if any(target.channel in action_set.names for target in wishes)
    }
    for name, target in _gymnasium_targets(action_set).items():
        bound.setdefault(name, target)
    for arrow, others in _LIKE_ARROWS.items():
        for other in others:
            if arrow in bound:
                bound.setdefault(other, bound[arrow])
    reached = {target.channel for target in bound.values()}
    spare = [key for key in _SPARE_KEYS if key not in bound]
    missing = [button for button in action_set.buttons if button not in reached]
    bound |= {key: Target(button) for key, button in zip(spare, missing, strict=False)}
    return bound


def _gymnasium_targets(action_set: ActionSet) -> dict[str, Target]:
    bound: dict[str, Target] = {}
    actions = [name for name in action_set.buttons if name.startswith("ACTION_")]
    buttons = [name for name in action_set.buttons if name.startswith("BUTTON_")]
    axes = [name for name in action_set.axes if name.startswith("AXIS_")]
    for names, arrows in ((actions, _ARROWS.get(len(actions), _ATARI)), (buttons, _BUTTON_ARROWS)):
        bound |= {str(i): Target(name) for i, name in enumerate(names[:10])}
        bound |= {key: Target(names[i]) for key, i in arrows.items() if i < len(names)}
    for axis, (less, more) in zip(axes, _AXIS_PAIRS, strict=False):
        bound |= {less: Target(axis, -1.0), more: Target(axis, 1.0)}
    return bound


class Controls:
    """What the player holds now, and the action that it makes.

    A press and release between two frames still counts as held for one frame. Of two opposite keys the
    newer wins; in an exclusive ActionSet the newest key of all.

    Args:
        action_set: the game's.
        mouse_speed: 1 turns as far for ``PIXELS_PER_TURN`` pixels as one frame of the turn key; 2 twice as far.
    """

    def __init__(self, action_set: ActionSet, mouse_speed: float = 1.0) -> None:
        self.action_set = action_set
        self.bindings = bind_inputs(action_set)
        self._pixels_per_turn = PIXELS_PER_TURN / mouse_speed
        self._opposite = dict(OPPOSITES) | {b: a for a, b in OPPOSITES}
        self._pressed: dict[str, float] = {}  # oldest first, with how far a stick is pushed
        self._fresh: set[str] = set()  # pressed since the last frame
        self._ended: set[str] = set()  # let go before a frame saw them
        self._stick_turn = self._turn_owed = 0.0  # in frames of the turn key; right is positive

    @property
    def can_turn(self) -> bool:
        """Whether the mouse has something to turn."""
        return "left" in self.bindings and "right" in self.bindings

    def press(self, name: str) -> None:
        """The input ``name`` goes down; one that the game does not use is ignored."""
        if name in self.bindings:
            self._pressed.pop(name, None)  # the newest goes last
            self._pressed[name] = 1.0
            self._fresh.add(name)
            self._ended.discard(name)

    def release(self, name: str) -> None:
        """The input ``name`` goes up."""
        if name in self._fresh:
            self._ended.add(name)  # no frame has seen it yet: the next one must
        else:
            self._pressed.pop(name, None)

    def move_mouse(self, pixels: float) -> None:
        """The mouse moved to the right by ``pixels`` (negative: left)."""
        owed = self._turn_owed + pixels / self._pixels_per_turn
        self._turn_owed = float(np.clip(owed, -LONGEST_TURN, LONGEST_TURN))

    def stop_mouse(self) -> None:
        """Forget mouse travel that has not turned yet."""
        self._turn_owed = 0.0

    def move_stick(self, name: str, value: float) -> None:
        """A stick or trigger, such as ``"pad left x"``, stands at ``value`` in [-1, 1]."""
        if name == TURN_STICK:
            self._stick_turn = value if abs(value) > AXIS_DEAD_ZONE else 0.0
            self._turn_owed *= bool(self._stick_turn)  # a stick let go stops at once
            return
        for side, end in zip((-1, 1), _STICKS.get(name, ()), strict=False):
            if end not in self.bindings:
                continue
            on_axis = self.bindings[end].channel in self.action_set.axes
            if side * value > (AXIS_DEAD_ZONE if on_axis else STICK_THRESHOLD):
                if end not in self._pressed or end in self._ended:
                    self.press(end)
                self._pressed[end] = abs(value)
            elif end in self._pressed:
                self.release(end)

    def release_all(self) -> None:
        """Let go of everything, taps included: the window lost the keyboard."""
        for collection in (self._pressed, self._fresh, self._ended):
            collection.clear()
        self._stick_turn = self._turn_owed = 0.0

    def take(self) -> np.ndarray:
        """The action (A,) float32 to hold for the next frame; taps and mouse travel are used up."""
        action = self.action_set.rest
        for name, strength in self._pressed.items():
            self._apply(action, self.bindings[name], strength)
        if self.can_turn:
            self._apply_turn(action)
        for name in self._ended:
            self._pressed.pop(name, None)
        self._fresh.clear()
        self._ended.clear()
        return action

    def _apply(self, action: np.ndarray, target: Target, strength: float) -> None:
        names = self.action_set.names
        if self.action_set.exclusive:
            action[:] = 0
        opposite = self._opposite.get(target.channel)
        if opposite in names:
            action[names.index(opposite)] = 0
        on_axis = target.channel in self.action_set.axes
        action[names.index(target.channel)] = target.value * (strength if on_axis else 1.0)

    def _apply_turn(self, action: np.ndarray) -> None:
        """Mouse and right stick: straight onto an axis, or by pressing the turn button in part of the frames."""
        targets = self.bindings["left"], self.bindings["right"]
        if any(self.bindings[name] in targets for name in self._pressed):
            self._turn_owed = 0.0
            return
        self._turn_owed += self._stick_turn
        target = targets[self._turn_owed > 0]
        if target.channel in self.action_set.axes:
            if self._turn_owed:
                self._apply(action, target, min(abs(self._turn_owed), 1.0))
            self._turn_owed = 0.0
        elif abs(self._turn_owed) > 0.5:  # half a turn is not worth one: the next would have to turn back
            self._apply(action, target, 1.0)
            self._turn_owed -= float(np.copysign(1.0, self._turn_owed))


_COMMON_NAMES = {
    "left ctrl": "Ctrl", "right ctrl": "Ctrl", "left shift": "Shift", "right shift": "Shift",
    "mouse left": "Left mouse",
}  # fmt: skip


def describe_controls(action_set: ActionSet) -> list[tuple[str, str]]:
    """Rows for a help page: (keys, what they do), keyboard and mouse first, then the gamepad."""
    bindings = bind_inputs(action_set)
    rows: dict[str, list[str]] = {}
    for name, target in bindings.items():
        if not name.startswith("pad "):
            label = _COMMON_NAMES.get(name, name.capitalize())
            keys = rows.setdefault(_describe(target, action_set), [])
            if label not in keys:
                keys.append(label)
    if len(rows.get("weapons", ())) > 2:
        rows["weapons"] = [f"{rows['weapons'][0]}-{rows['weapons'][-1]}"]
    table = [(", ".join(keys), words) for words, keys in rows.items()]
    if "left" in bindings and "right" in bindings:
        ways = (_describe(bindings[way], action_set) for way in ("left", "right"))
        table.append(("Mouse", ", ".join(ways)))
    reached = {target.channel for target in bindings.values()}
    table += [("no key", _describe(Target(name), action_set)) for name in action_set.names if name not in reached]
    pad = [("RT", "pad right trigger"), ("A", "pad a"), ("LT", "pad left trigger")]
    uses = [f"{label}: {_describe(bindings[name], action_set)}" for label, name in pad if name in bindings]
    table.append(("Gamepad", "; ".join(["sticks, D-pad", *uses])))
    return table


def _describe(target: Target, action_set: ActionSet) -> str:
    if target.channel.startswith("SELECT_WEAPON"):
        return "weapons"
    words = {"ATTACK": "fire", "SPEED": "run"}.get(target.channel, target.channel.replace("_", " ").lower())
    if target.channel in action_set.axes:
        return f"{words} {'+' if target.value > 0 else '-'}"
    return words
