"""Draw the dated results of this folder: ``python benchmarks/draw.py``, into ``frames_per_second.png``.

Each line is one result of ``gamengen bench --json``, frames a second over sampling steps, for one player, in the mode
and the number format that were quickest there.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent


def main() -> None:
    """Read every result and write the picture."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for path in sorted(FOLDER.glob("*.json")):
        if path.stem.endswith("training"):
            continue
        result = json.loads(path.read_text())
        best: dict[int, float] = {}
        for row in result["rows"]:
            if row["batch"] == 1:
                best[row["steps"]] = max(best.get(row["steps"], 0.0), row["fps"])
        steps = sorted(best)
        axes.plot(steps, [best[count] for count in steps], marker="o", label=path.stem)
    axes.axhline(35, color="grey", linewidth=1, linestyle="--")
    axes.annotate("Doom's own clock", (axes.get_xlim()[1], 35), ha="right", va="bottom", color="grey")
    axes.set(xlabel="sampling steps", ylabel="frames a second, 320x240", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(FOLDER / "frames_per_second.png", dpi=100)


if __name__ == "__main__":
    main()
