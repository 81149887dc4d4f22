"""What raters answer: kept on disk as it comes, taken back, merged and summed up; knows no window.

``OUT/raters/<rater>.jsonl`` holds one JSON object a line: ``pair``, ``length`` (seconds), ``side`` (where the
real game was), ``answer``, ``correct``, ``seconds`` (from first sight to the answer), ``checkpoint`` and
``checkpoint_hash``. Raters on several machines copy their files into one such folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.errors import DataError, OptionError

if TYPE_CHECKING:
    from engine.clip_pairs import Pair

SIDES = ("left", "right")
PAPER_RATES = {1.6: 0.58, 3.2: 0.60}  # GameNGen, section 5.1: how often raters chose the real game
NORMAL_95 = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
LONGEST_NAME = 64
DAMAGED_REMEDY = "restore the file, or delete this line"
SPLIT_REMEDY = "keep the answers about each checkpoint and its pairs in a folder of their own: choose another --out"


@dataclass(frozen=True)
class Answer:
    """One line of a rater's file; see the module."""

    pair: str
    length: float
    side: str
    answer: str
    correct: bool
    seconds: float
    checkpoint: str
    checkpoint_hash: str

    def __post_init__(self) -> None:
        for name in ("pair", "checkpoint", "checkpoint_hash"):
            if not isinstance(getattr(self, name), str) or not self.pair:
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        for name in ("length", "seconds"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < math.inf or not self.length:
                raise ValueError(f"{name} is {value!r}")
        if self.side not in SIDES or self.answer not in SIDES or self.correct is not (self.side == self.answer):
            raise ValueError(f"side, answer and correct are {self.side!r}, {self.answer!r}, {self.correct!r}")

    @property
    def pair_set(self) -> str:
        """Which set the pair is of."""
        return self.pair.partition("-")[0]


def check_rater(name: str) -> None:
    """Raise OptionError unless ``name`` is letters, digits, - and _ only: it becomes a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or len(name) > LONGEST_NAME:
        remedy = f"use at most {LONGEST_NAME} letters, digits, - and _, for example --raters anna"
        raise OptionError("this cannot be a rater's name", f"--raters {name!r}", remedy)


def read_answers(path: Path) -> list[Answer]:
    """The answers in a rater's file; a last line that was cut short by a kill is left out.

    Raises:
        DataError: another line is damaged, a pair was answered twice, or the file cannot be read.
    """
    return [answer for answer, _ in _read_lines(path)]


def read_ratings(folder: Path) -> dict[str, list[Answer]]:
    """The answers of every rater in ``OUT/raters``, by rater; who has not answered yet is left out.

    Raises:
        DataError: as :func:`read_answers`, or the answers are not all of one checkpoint and one set of pairs.
    """
    ratings = {path.stem: read_answers(path) for path in sorted(folder.glob("*.jsonl"))}
    ratings = {rater: answers for rater, answers in ratings.items() if answers}
    first_rater, first = next(((rater, answers[0]) for rater, answers in ratings.items()), ("", None))
    for rater, answers in ratings.items():
        for answer in answers:
            assert first is not None
            _check_same(answer, first, folder / f"{rater}.jsonl", f"those in {first_rater}.jsonl")
    return ratings


def check_same_pairs(folder: Path, pairs: Sequence[Pair]) -> None:
    """See that all answers in ``folder`` are about these pairs.

    Raises:
        DataError: they are of another checkpoint or other pairs, or as :func:`read_answers`.
    """
    pair = pairs[0]
    ours = Answer(pair.id, pair.length_seconds, "left", "left", True, 0.0, pair.checkpoint, pair.checkpoint_hash)
    for rater, answers in read_ratings(folder).items():
        for answer in answers:
            _check_same(answer, ours, folder / f"{rater}.jsonl", "what is asked for now")


def _check_same(answer: Answer, other: Answer, path: Path, others: str) -> None:
    models = [f"{one.checkpoint} ({one.checkpoint_hash})" for one in (answer, other)]
    if models[0] != models[1]:
        raise DataError(
            f"these answers are about checkpoint {models[0]}, {others} about {models[1]}", path, SPLIT_REMEDY
        )
    if answer.pair_set != other.pair_set:
        what = f"these answers are about other pairs than {others}: another --pairs, --seed or recording"
        raise DataError(what, path, SPLIT_REMEDY)


class RatingSession:
    """One rater's way through the pairs, gone on with where it was left.

    Which side shows the real game is a coin toss for each rater and pair: nobody's liking for one side can
    favour a game.

    Args:
        pairs: in the order they are shown; those that this rater has answered are skipped.
        folder: ``OUT/raters``.
        rater: the rater's name.
        clock: seconds, rising.

    Raises:
        OptionError: there are no pairs, or the name cannot be a file's.
        DataError: the rater's file is damaged, of another checkpoint or other pairs, or cannot be written.
    """

    def __init__(
        self, pairs: Sequence[Pair], folder: Path, rater: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        check_rater(rater)
        if not pairs:
            raise OptionError("there are no pairs to rate", "--pairs", "for example --pairs 20")
        check_same_pairs(folder, pairs)
        self.pairs, self.rater = list(pairs), rater
        self._path, self._clock = folder / f"{rater}.jsonl", clock
        lines = _read_lines(self._path) if self._path.exists() else []
        self._answers = [answer for answer, _ in lines]
        self._ends = [end for _, end in lines]
        self._size = self._path.stat().st_size if self._path.exists() else 0
        self._since: tuple[str, float] | None = None
        self._mend()

    @property
    def answered(self) -> int:
        """How many pairs this rater has answered."""
        return len(self._answers)

    @property
    def pair(self) -> Pair | None:
        """The pair to rate now; None when all are answered."""
        done = {answer.pair for answer in self._answers}
        return next((pair for pair in self.pairs if pair.id not in done), None)

    @property
    def side(self) -> str:
        """Where the real game of the current pair is shown: ``left`` or ``right``."""
        assert self.pair is not None
        return side_of(self.pair.id, self.rater)

    def show(self) -> tuple[np.ndarray, np.ndarray]:
        """The clips of the current pair, (left, right), each (N, H, W, 3) uint8; its time starts at the first call.

        Raises:
            DataError: they are missing or damaged.
        """
        assert self.pair is not None
        real, neural = self.pair.clips()
        if self._since is None or self._since[0] != self.pair.id:
            self._since = (self.pair.id, self._clock())
        return (real, neural) if self.side == "left" else (neural, real)

    def answer(self, side: str) -> Answer:
        """Take down that the rater holds ``side`` for the real game; it is on the disk when this returns.

        Raises:
            DataError: it cannot be written.
        """
        pair = self.pair
        assert pair is not None
        assert side in SIDES
        assert self._since is not None, "the clips were not shown"
        seconds = round(self._clock() - self._since[1], 2)
        given = Answer(
            pair.id, pair.length_seconds, self.side, side, side == self.side, seconds, pair.checkpoint,
            pair.checkpoint_hash,
        )  # fmt: skip
        self._write(self._end, json.dumps(asdict(given)).encode() + b"\n")
        self._answers.append(given)
        self._ends.append(self._size)
        self._since = None
        return given

    def take_back(self) -> Answer | None:
        """Forget the last answer, also one of an earlier session; what it was, or None where there is none.

        Raises:
            DataError: the file cannot be written.
        """
        if not self._answers:
            return None
        self._write(self._ends[-2] if len(self._ends) > 1 else 0, b"")
        self._ends.pop()
        self._since = None
        return self._answers.pop()

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _mend(self) -> None:
        """Drop what a kill cut short, and end the last line where only that is missing."""
        unended = bool(self._ends) and self._path.read_bytes()[self._end - 1 : self._end] != b"\n"
        if unended or self._size != self._end:
            self._write(self._end, b"\n" if unended else b"")
        if unended:
            self._ends[-1] += 1

    def _write(self, start: int, data: bytes) -> None:
        """Let ``data`` follow the first ``start`` bytes of the file, and nothing after it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("r+b" if self._path.exists() else "w+b") as file:
                if os.fstat(file.fileno()).st_size != self._size:
                    what = "somebody else is writing this rater's answers"
                    raise DataError(what, self._path, "close the other window, or take another name")
                file.truncate(start)
                file.seek(start)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._size = start + len(data)
        except OSError as error:
            what = f"cannot write the answer ({(error.strerror or str(error)).lower()})"
            raise DataError(what, self._path, "free some space; earlier answers are safe") from error


def side_of(pair_id: str, rater: str) -> str:
    """The side on which ``rater`` sees the real game of a pair: a fair coin, the same at every call."""
    return SIDES[hashlib.sha256(f"{pair_id} {rater}".encode()).digest()[0] % 2]


def wilson_interval(successes: int, trials: int, z: float = NORMAL_95) -> tuple[float, float]:
    """The Wilson score interval of a rate (Wilson, 1927): within 0 and 1, and sound for few trials."""
    assert 0 <= successes <= trials
    assert trials > 0
    rate, shrink = successes / trials, 1 + z * z / trials
    middle = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def summarise_ratings(folder: Path) -> dict[str, Any]:
    """Merge all raters' files in ``OUT/raters``.

    The interval is Wilson's at 95 %. Over all raters it takes every answer as independent, though raters saw
    the same pairs: with few pairs the truth may lie further off.

    Returns:
        ``checkpoint``, ``checkpoint_hash``, ``raters`` (names), ``answers``, and ``rows``: for all raters together
        (``rater`` is None) and for each one, by length: ``rater``, ``length`` (seconds), ``picked_real``, ``n``,
        ``rate``, ``ci95`` (two numbers), ``paper`` (the paper's rate, or None) and ``seconds`` (median to answer).

    Raises:
        DataError: there are no answers, a line is damaged, or the files are not of one checkpoint and one set
            of pairs.
    """
    ratings = read_ratings(folder)
    if not ratings:
        raise DataError("nobody has answered yet", folder, "run gamengen evaluate --raters NAME --out OUT")
    everybody = [answer for answers in ratings.values() for answer in answers]
    groups: list[tuple[str | None, list[Answer]]] = [(None, everybody), *ratings.items()]
    rows = [
        _row(rater, length, [answer for answer in answers if answer.length == length])
        for rater, answers in groups
        for length in sorted({answer.length for answer in answers})
    ]
    return {
        "checkpoint": everybody[0].checkpoint,
        "checkpoint_hash": everybody[0].checkpoint_hash,
        "raters": list(ratings),
        "answers": len(everybody),
        "rows": rows,
    }


def _row(rater: str | None, length: float, answers: list[Answer]) -> dict[str, Any]:
    picked = sum(answer.correct for answer in answers)
    return {
        "rater": rater,
        "length": length,
        "picked_real": picked,
        "n": len(answers),
        "rate": round(picked / len(answers), 4),
        "ci95": [round(bound, 4) for bound in wilson_interval(picked, len(answers))],
        "paper": PAPER_RATES.get(length),
        "seconds": round(float(np.median([answer.seconds for answer in answers])), 2),
    }


def print_ratings(summary: dict[str, Any]) -> None:
    """Print the rows of :func:`summarise_ratings` as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="how often raters picked the real game (chance: 50 %)", title_justify="left")
    for name in ("rater", "clips", "picked real", "rate", "95 % interval", "paper", "median time"):
        table.add_column(name, justify="left" if name == "rater" else "right")
    for row in summary["rows"]:
        low, high = row["ci95"]
        paper = f"{100 * row['paper']:.0f} %" if row["paper"] is not None and row["rater"] is None else ""
        table.add_row(
            row["rater"] or "all", f"{row['length']:g} s", f"{row['picked_real']} of {row['n']}",
            f"{100 * row['rate']:.0f} %", f"{100 * low:.0f} to {100 * high:.0f} %", paper, f"{row['seconds']:.1f} s",
        )  # fmt: skip
    Console().print(table)


def _read_lines(path: Path) -> list[tuple[Answer, int]]:
    """Answers, each with where its line ends in the file."""
    try:
        pieces = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read the answers ({error.strerror})", path, "check its permissions") from error
    found: list[tuple[Answer, int]] = []
    end, seen = 0, set()
    for number, piece in enumerate(pieces, 1):
        last = number == len(pieces)
        try:
            answer = _parse(piece)
        except (ValueError, TypeError) as error:
            if last:  # nothing, or what a kill cut short
                break
            what = f"the line is damaged ({' '.join(str(error).split())[:80]})"
            raise DataError(what, f"{path}, line {number}", DAMAGED_REMEDY) from error
        if answer.pair in seen:
            raise DataError(
                f"pair {answer.pair} is answered twice", f"{path}, line {number}", "delete one of the lines"
            )
        seen.add(answer.pair)
        end += len(piece) + (0 if last else 1)
        found.append((answer, end))
    return found


def _parse(line: bytes) -> Answer:
    data = json.loads(line)
    names = {field.name for field in fields(Answer)}
    if not isinstance(data, dict) or set(data) != names:
        raise ValueError(f"it is no object with {', '.join(sorted(names))}")
    return Answer(**data)
