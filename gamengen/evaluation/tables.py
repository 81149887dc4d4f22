"""Numbers, intervals and tables in Markdown, as ``report.md`` shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

MISSING = "-"
WITH_INTERVAL = ("psnr", "psnr_neural", "mean")  # what a figure's ``ci95`` is of


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]


def number(value: float | None, digits: int = 2) -> str:
    """``value`` with so many digits, or that it is missing."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """A difference, with its sign; one that rounds to nothing is +0."""
    return MISSING if value is None else f"{round(value, digits) + 0.0:+.{digits}f}"


def minus(value: float | None, other: float | None) -> float | None:
    """``value`` - ``other``, None where either is missing."""
    return None if value is None or other is None else value - other


def with_interval(figure: dict[str, Any] | None, key: str, digits: int = 2, difference: bool = False) -> str:
    """The ``key`` of a figure with half of its 95 % interval, where ``ci95`` is of that ``key``."""
    if not figure or figure.get(key) is None:
        return MISSING
    half = figure.get("ci95") if key in WITH_INTERVAL else None
    told = signed(figure[key], digits) if difference else number(figure[key], digits)
    return told + ("" if half is None else f" ± {number(half, digits)}")


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage."""
    return "an unknown share" if share is None else f"{100 * share:.1f}".removesuffix(".0") + " %"


def steps_label(steps: str) -> str:
    """``1 step``, ``4 steps``."""
    return f"{steps} step" if steps == "1" else f"{steps} steps"
