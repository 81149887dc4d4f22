"""Progress bars for long work: a live bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG_SECONDS = 30.0


@contextmanager
def progress(description: str, total: float, unit: str = "") -> Iterator[Callable[[float, str], None]]:
    """Show progress; yields ``show(completed, note)`` where ``completed`` counts up to ``total``."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total, note="")

            def show(completed: float, note: str = "") -> None:
                bar.update(task, completed=completed, note=note)

            yield show
        return

    started = last = time.monotonic()
    print(f"{description} …", file=sys.stderr, flush=True)

    def log(completed: float, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LOG_SECONDS or completed >= total > 0:
            last = now
            elapsed = now - started
            left = elapsed * (total / completed - 1) if completed > 0 else float("nan")
            amount = f"{completed:,.0f}/{total:,.0f} {unit}".strip()
            print(f"{description}: {amount}, {elapsed:.0f} s, {left:.0f} s left {note}", file=sys.stderr, flush=True)

    yield log
