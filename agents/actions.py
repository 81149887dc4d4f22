"""ActionSet: the only way that actions are named, encoded and checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.errors import ActionError


@dataclass(frozen=True)
class ActionSet:
    """The channels of an action vector: first the buttons, then the axes.

    An action is float32 of shape (A,): a button is 1 while held and 0 otherwise, an axis is in
    [-1, 1]. Any combination of buttons can be held at once.

    Args:
        buttons: button names, such as ``("TURN_LEFT", "TURN_RIGHT", "ATTACK")``.
        axes: axis names.
        exclusive: exactly one button at a time, one-hot (Gymnasium's ``Discrete``); at rest the first.
    """

    buttons: tuple[str, ...]
    axes: tuple[str, ...] = ()
    exclusive: bool = False

    def __post_init__(self) -> None:
        names = self.names
        if not names or len(set(names)) != len(names) or not all(isinstance(n, str) for n in names):
            raise ActionError("an action set needs distinct names", names, "name each button once")

    @property
    def names(self) -> tuple[str, ...]:
        """All channel names, buttons first."""
        return self.buttons + self.axes

    @property
    def size(self) -> int:
        """A, the number of channels."""
        return len(self.names)

    @property
    def rest(self) -> np.ndarray:
        """The action (A,) when the player touches nothing."""
        action = np.zeros(self.size, np.float32)
        if self.exclusive:
            action[0] = 1
        return action

    def encode(self, held: Iterable[str] = (), **axes: float) -> np.ndarray:
        """The action (A,) with these buttons held and these axes set.

        Raises:
            ActionError: a name is not in this set.
        """
        settings = [*((name, 1.0) for name in held), *axes.items()]
        action = np.zeros(self.size, np.float32) if settings else self.rest
        for name, value in settings:
            if name not in self.names:
                raise ActionError("no such button or axis", name, f"use {', '.join(self.names)}")
            if self.exclusive:
                action[:] = 0
            action[self.names.index(name)] = value
        return action

    def check(self, action: Any) -> np.ndarray:
        """``action`` as float32 (A,), or (..., A) for several.

        Raises:
            ActionError: the length is not A, or a value is not finite or outside [-1, 1].
        """
        try:
            checked = np.asarray(action, np.float32)
        except (TypeError, ValueError):
            raise ActionError("an action must be numbers", repr(action), self._remedy()) from None
        if checked.ndim < 1 or checked.shape[-1] != self.size:
            raise ActionError(f"an action has {self.size} values", f"shape {checked.shape}", self._remedy())
        if not np.isfinite(checked).all() or np.abs(checked).max(initial=0) > 1:
            raise ActionError("action values must be finite and in [-1, 1]", checked.tolist(), self._remedy())
        return checked

    def held(self, action: np.ndarray) -> list[str]:
        """Names of what is held in ``action`` (A,); an axis shows its value."""
        names = [name for name, value in zip(self.buttons, action, strict=False) if value > 0.5]
        for name, value in zip(self.axes, action[len(self.buttons) :], strict=True):
            if abs(value) > 0.05:
                names.append(f"{name} {value:+.2f}")
        return names

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON; the inverse of :meth:`from_json`."""
        return {"buttons": list(self.buttons), "axes": list(self.axes), "exclusive": self.exclusive}

    @classmethod
    def from_json(cls, data: Any) -> ActionSet:
        """Read what :meth:`to_json` wrote.

        Raises:
            ActionError: ``data`` is not an action set.
        """
        try:
            return cls(tuple(data["buttons"]), tuple(data["axes"]), bool(data["exclusive"]))
        except (KeyError, TypeError):
            raise ActionError("not an action set", repr(data)[:80], "use a file this program wrote") from None

    def _remedy(self) -> str:
        return f"give {', '.join(self.names)} in this order"
