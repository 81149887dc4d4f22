"""The reward of the GameNGen paper (arXiv 2408.14837, appendix "Agent reward"), from game variables."""

from __future__ import annotations

import math
from collections.abc import Mapping

CELL_UNITS = 128.0  # map units: twice the width of a Doom door, four times that of the player
# Slots 4 and 7 fire the ammunition of slots 2 and 6: counting them too would pay twice.
AMMO_NAMES = ("AMMO2", "AMMO3", "AMMO5", "AMMO6")
WEAPON_NAMES = tuple(f"WEAPON{slot}" for slot in range(1, 8))


class PaperReward:
    """What one step earned, from the variables before and after it.

    Player hit -100 each, death -5000, enemy hit 300, enemy kill 1000, item or weapon picked up 100,
    secret 500, new area 20 * (1 + 0.5 * L1 distance), health and armour 10 * delta, and for each kind
    of ammunition 10 * max(0, delta) + min(0, delta).

    The paper does not define "new area". Here the map is a grid of square cells of 128 map units; a
    cell is new the first time in an episode that a step ends in it, and its L1 distance is counted in
    cells from the cell where the episode began, which itself is not new.

    A variable that the game does not have changes nothing. Between the player's death and the step
    after a respawn nothing is earned, so that a respawn is no gift of health.
    """

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._start = (0, 0)
        self._visited: set[tuple[int, int]] = set()

    def reset(self, variables: Mapping[str, float]) -> None:
        """Begin an episode whose first frame has these variables."""
        self._last = dict(variables)
        cell = _cell(variables)
        self._start = cell or (0, 0)
        self._visited = {self._start} if cell else set()

    def __call__(self, variables: Mapping[str, float]) -> float:
        """The reward of the step that led to these variables."""
        before, self._last = self._last, dict(variables)

        def delta(*names: str) -> float:
            changes = (variables.get(name, math.nan) - before.get(name, math.nan) for name in names)
            return sum(change for change in changes if not math.isnan(change))

        if before.get("DEAD", 0) > 0:
            return 0.0
        reward = -100 * delta("HITS_TAKEN") - 5000 * max(0.0, delta("DEAD"))
        reward += 300 * delta("HITCOUNT") + 1000 * delta("KILLCOUNT") + 500 * delta("SECRETCOUNT")
        reward += 100 * (delta("ITEMCOUNT") + sum(max(0.0, delta(name)) for name in WEAPON_NAMES))
        reward += 10 * delta("HEALTH", "ARMOR")
        reward += sum(10 * max(0.0, d) + min(0.0, d) for d in map(delta, AMMO_NAMES))
        return reward + self._new_area(variables)

    def _new_area(self, variables: Mapping[str, float]) -> float:
        cell = _cell(variables)
        if cell is None or cell in self._visited:
            return 0.0
        self._visited.add(cell)
        distance = abs(cell[0] - self._start[0]) + abs(cell[1] - self._start[1])
        return 20 * (1 + 0.5 * distance)


def _cell(variables: Mapping[str, float]) -> tuple[int, int] | None:
    x, y = variables.get("POSITION_X", math.nan), variables.get("POSITION_Y", math.nan)
    if math.isnan(x) or math.isnan(y):
        return None
    return math.floor(x / CELL_UNITS), math.floor(y / CELL_UNITS)
