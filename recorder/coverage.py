"""Where a recording has been: every place, and every direction there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recorder.episodes import EpisodeInfo, read_results

POSITION = ("POSITION_X", "POSITION_Y", "ANGLE")
CELL = 64.0  # map units: the floor tile of a Doom map, four steps of a player
DIRECTIONS = 8


@dataclass(frozen=True)
class Coverage:
    """Frames by place and direction.

    Args:
        frames: (X, Y, 8) int64, frames spent in each cell of 64x64 map units, looking in each of 8 directions.
        corner: map units of the cell (0, 0)'s lower left corner.
    """

    frames: np.ndarray
    corner: tuple[float, float]

    @property
    def cells(self) -> int:
        """Cells that were entered."""
        return int((self.frames.sum(2) > 0).sum())

    @property
    def directions(self) -> float:
        """The share of directions that was looked in, in [0, 1], mean over the cells that were entered."""
        entered = self.frames[self.frames.sum(2) > 0]
        return float((entered > 0).mean()) if len(entered) else 0.0


def measure_coverage(infos: list[EpisodeInfo]) -> Coverage | None:
    """The coverage of episodes; None where the game tells no positions or the player cannot walk."""
    if not infos or any(name not in infos[0].variable_names for name in POSITION):
        return None
    columns = [infos[0].variable_names.index(name) for name in POSITION]
    rows = np.concatenate([read_results(info.path)[1][:, columns] for info in infos]).astype(np.float64)
    x, y, angle = rows[np.isfinite(rows).all(1)].T
    places = np.stack([np.floor(x / CELL), np.floor(y / CELL)], axis=1).astype(np.int64)
    if len(np.unique(places, axis=0)) < 2:
        return None
    first = places.min(0)
    facing = (np.round(angle / (360 / DIRECTIONS)) % DIRECTIONS).astype(np.int64)
    frames = np.zeros((*(places.max(0) - first + 1), DIRECTIONS), np.int64)
    np.add.at(frames, (*(places - first).T, facing), 1)
    return Coverage(frames, (float(first[0] * CELL), float(first[1] * CELL)))


def draw_coverage(coverage: Coverage, path: Path) -> None:
    """Write a map as a PNG: frames in each cell, and the share of directions that was looked in there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = coverage.frames.sum(2).astype(float)
    total[total == 0] = np.nan
    looked = np.where(np.isnan(total), np.nan, (coverage.frames > 0).mean(2))
    left, bottom = coverage.corner
    extent = (left, left + CELL * total.shape[0], bottom, bottom + CELL * total.shape[1])
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    parts = ((np.log10(total), "frames in a cell of 64x64 map units, log10", None), (looked, "directions seen", (0, 1)))
    for axes, (values, title, limits) in zip(figure.subplots(1, 2), parts, strict=True):
        shown = axes.imshow(values.T, origin="lower", extent=extent, clim=limits)
        axes.set(title=title, aspect="equal")
        figure.colorbar(shown, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=80)
