"""Progress bars for long work: a live bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG_SECONDS = 30.0


@contextmanager
def progress(description: str, total: float, unit: str = "") -> Iterator[Callable[[float, str], None]]:
    """Show progress; yields ``show(completed, note)`` where ``completed`` counts up to ``total``.

    Of several processes that torchrun started, the first alone shows any.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda completed, note: None
        return
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
    first: float | None = None
    print(f"{description} …", file=sys.stderr, flush=True)

    def log(completed: float, note: str = "") -> None:
        nonlocal last, first
        now = time.monotonic()
        first = completed if first is None else first  # work that is gone on with was not done in this time
        if now - last < LOG_SECONDS and not completed >= total > 0:
            return
        last, elapsed = now, now - started
        text = f"{description}: {completed:,.0f}/{total:,.0f} {unit}".rstrip() + f", {elapsed:.0f} s"
        if first < completed < total:
            text += f", {elapsed * (total - completed) / (completed - first):.0f} s left"
        print(text, note, file=sys.stderr, flush=True)

    yield log
