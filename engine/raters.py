"""The window of the human test: two clips side by side, and one question: which is the real game?"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # or importing pygame prints

import numpy as np
import pygame

from agents.errors import DisplayError
from engine.clip_pairs import Pair, check_pairs
from engine.panels import ACCENT, DIM, FINER, INK, fit_frame
from engine.rating import RatingSession, check_rater, print_ratings, read_ratings, summarise_ratings
from engine.window import HEADLESS_REMEDY, LARGEST_SHARE, check_display
from recorder.recording import write_json

TICKS_PER_SECOND = 60.0
LOOP_PAUSE_SECONDS = 0.6  # on the last frame, before a clip begins again
DEAF_SECONDS = 0.4  # a key so soon after a pair appears was meant for the one before
MESSAGE_SECONDS = 2.0
QUESTION = "Which one is the real game?"
SCREEN_REMEDY = "people rate at a screen: run this where there is one, with the same --out folder"

GROUND, EDGE, CAP = (18, 18, 22), (58, 58, 66), (44, 44, 52)
ANSWER_KEYS = {pygame.K_LEFT: "left", pygame.K_RIGHT: "right"}
Hint = tuple[str, str]  # the key, what it does
TAKE_BACK: Hint = ("Backspace", "take the last answer back")
HINTS: list[Hint] = [("Space", "from the start"), TAKE_BACK, ("Esc", "leave, go on later")]
LAST_HINTS: list[Hint] = [TAKE_BACK, ("Esc", "close")]
ARROWS = {"left": [(0.72, 0.25), (0.28, 0.5), (0.72, 0.75)], "right": [(0.28, 0.25), (0.72, 0.5), (0.28, 0.75)]}


def check_raters(rater: str, pairs: int) -> None:
    """See, before any clip is made, that the test can be held here.

    Raises:
        OptionError: the rater's name or the number of pairs cannot be used.
        DisplayError: no window can be opened here.
    """
    check_rater(rater)
    check_pairs(pairs)
    try:
        check_display()
    except DisplayError as error:
        remedy = SCREEN_REMEDY if error.remedy == HEADLESS_REMEDY else error.remedy
        raise DisplayError(error.what, error.where, remedy) from error


def run_raters(pairs: Sequence[Pair], out: Path, rater: str) -> dict[str, Any]:
    """Show the pairs that ``rater`` has not answered yet, until all are answered or the rater leaves.

    Args:
        pairs: see :func:`engine.clip_pairs.prepare_pairs`.
        out: folder of the report; answers go to ``OUT/raters/<rater>.jsonl`` and the figures of all raters
            to ``OUT/raters/summary.json``.
        rater: letters, digits, - and _.

    Returns:
        What :func:`engine.rating.summarise_ratings` does, with this rater's ``answered`` and ``pairs``.

    Raises:
        OptionError: the name cannot be used, or there are no pairs.
        DisplayError: no window can be opened here.
        DataError: a rater's file or a clip is damaged or cannot be written.
    """
    folder = out / "raters"
    session = RatingSession(pairs, folder, rater)
    if session.pair is not None:
        check_raters(rater, len(pairs))
        window = RatersWindow(session)
        try:
            window.run()
        finally:
            window.close()
    own = {"rater": rater, "answered": session.answered, "pairs": len(pairs)}
    if not read_ratings(folder):
        return {**own, "answers": 0}
    summary = summarise_ratings(folder)
    write_json(folder / "summary.json", summary)
    print_ratings(summary)
    return {**own, **summary}


class RatersWindow:
    """A window on a :class:`RatingSession`; :func:`run_raters` runs one to its end.

    Args:
        session: whose pairs are shown.
        clock: seconds, rising.

    Raises:
        DisplayError: no window can be opened here.
        DataError: a clip is damaged.
    """

    def __init__(self, session: RatingSession, clock: Callable[[], float] = time.monotonic) -> None:
        self._session, self._clock = session, clock
        self._clips: tuple[np.ndarray, np.ndarray] | None = None
        self._message, self._message_until = "", -math.inf
        self._began = self._deaf_until = -math.inf
        self._closed = False
        self._turn()
        assert self._clips is not None, "there is a pair to rate"
        height, width = self._clips[0].shape[1:3]
        self.screen: pygame.Surface = _open_screen(width, height)

    @property
    def frame(self) -> int:
        """Which frame of the clips is shown; the last one for a moment before the first comes again."""
        pair = self._session.pair
        assert pair is not None
        loop = pair.frames / pair.fps + LOOP_PAUSE_SECONDS
        return min(pair.frames - 1, int((self._clock() - self._began) % loop * pair.fps))

    def run(self) -> None:
        """Show pairs until the rater leaves."""
        while self.tick():
            time.sleep(1 / TICKS_PER_SECOND)

    def tick(self) -> bool:
        """Read the events and show what is to be seen now; whether to go on."""
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                self._closed = True
            elif event.type == pygame.KEYDOWN:
                self._press(event.key)
        if not self._closed:
            self._draw()
        return not self._closed

    def close(self) -> None:
        """Close the window."""
        pygame.display.quit()

    def _press(self, key: int) -> None:
        session = self._session
        if key == pygame.K_ESCAPE:
            self._closed = True
        elif key == pygame.K_BACKSPACE:
            taken = session.take_back()
            self._turn()
            self._say("the last answer is taken back" if taken else "there is no answer to take back")
        elif session.pair is None or self._clock() < self._deaf_until:
            return
        elif key == pygame.K_SPACE:
            self._began = self._clock()
        elif key in ANSWER_KEYS:
            given = session.answer(ANSWER_KEYS[key])
            self._turn()
            self._say(f"noted: {given.answer}")

    def _turn(self) -> None:
        """Show the session's current pair, from its first frame."""
        self._clips = self._session.show() if self._session.pair is not None else None
        self._began = self._clock()
        self._deaf_until = self._began + DEAF_SECONDS

    def _say(self, message: str) -> None:
        self._message, self._message_until = message, self._clock() + MESSAGE_SECONDS

    def _draw(self) -> None:
        screen, session = self.screen, self._session
        screen.fill(GROUND)
        message = self._message if self._clock() < self._message_until else ""
        if self._clips is None:
            _draw_end(screen, f"All {len(session.pairs)} pairs are answered. Thank you!", message)
        else:
            height, width = self._clips[0].shape[1:3]
            areas = lay_out(screen.get_size(), (width, height))
            frame = self.frame
            for side, clip, area in zip(ANSWER_KEYS.values(), self._clips, areas, strict=True):
                _draw_clip(screen, clip[frame], area)
                _draw_choice(screen, area, side)
            _draw_header(screen, areas, session.answered, len(session.pairs))
            share = (frame + 1) / len(self._clips[0])
            _draw_footer(screen, areas, share, message)
        pygame.display.flip()


def lay_out(window_size: tuple[int, int], frame_size: tuple[int, int]) -> tuple[pygame.Rect, pygame.Rect]:
    """Where the two clips lie, side by side, of equal size and with the aspect of ``frame_size`` (width, height)."""
    width, height = window_size
    line = _line(window_size)
    top, bottom, gap = 4 * line, 6 * line, line
    room = (max(1, (width - 3 * gap) // 2), max(1, height - top - bottom))
    size = fit_frame(frame_size, room).size
    left = (width - 2 * size[0] - gap) // 2
    y = top + max(0, room[1] - size[1]) // 2
    return pygame.Rect((left, y), size), pygame.Rect((left + size[0] + gap, y), size)


def _line(window_size: tuple[int, int]) -> int:
    """The height of a line of text."""
    return min(max(min(window_size[0] // 52, window_size[1] // 28), 8), 40)


def _draw_clip(screen: pygame.Surface, frame: np.ndarray, area: pygame.Rect) -> None:
    picture = pygame.image.frombuffer(np.ascontiguousarray(frame).data, frame.shape[1::-1], "RGB")
    pygame.draw.rect(screen, EDGE, area.inflate(4, 4), border_radius=3)
    screen.blit(pygame.transform.smoothscale(picture.convert(screen), area.size), area)


def _draw_header(screen: pygame.Surface, areas: Sequence[pygame.Rect], answered: int, total: int) -> None:
    line, left, right = _line(screen.get_size()), areas[0].left, areas[1].right
    base = areas[0].top - round(1.5 * line)
    title = _text(QUESTION, round(1.6 * line), INK)
    screen.blit(title, title.get_rect(bottomleft=(left, base)))
    count = _text(f"{answered + 1} / {total}", round(1.3 * line), ACCENT)
    screen.blit(count, count.get_rect(bottomright=(right, base)))
    _draw_bar(screen, pygame.Rect(left, base + line // 3, right - left, max(2, line // 5)), answered / total, ACCENT)


def _draw_choice(screen: pygame.Surface, area: pygame.Rect, side: str) -> None:
    """Below a clip: the key that chooses it."""
    line = _line(screen.get_size())
    parts = [_arrow_cap(side, 2 * line), _text(f"the {side} one is real", round(1.1 * line), INK)]
    _draw_row(screen, parts, (area.centerx, area.bottom + round(2.1 * line)), line // 2)


def _draw_footer(screen: pygame.Surface, areas: Sequence[pygame.Rect], share: float, message: str) -> None:
    line = _line(screen.get_size())
    for area in areas:
        bar = pygame.Rect(area.left, area.bottom + line // 4, area.width, max(2, line // 6))
        _draw_bar(screen, bar, share, DIM)
    middle = (screen.get_width() // 2, areas[0].bottom + round(4.6 * line))
    if message:
        _draw_row(screen, [_text(message, line, ACCENT)], middle, 0)
    else:
        _draw_row(screen, _hint_parts(HINTS, line), middle, line // 2)


def _draw_end(screen: pygame.Surface, text: str, message: str) -> None:
    line, (x, y) = _line(screen.get_size()), screen.get_rect().center
    _draw_row(screen, [_text(text, 2 * line, INK)], (x, y - line), 0)
    hints = [_text(message, line, ACCENT)] if message else _hint_parts(LAST_HINTS, line)
    _draw_row(screen, hints, (x, y + 3 * line), line // 2)


def _draw_bar(screen: pygame.Surface, area: pygame.Rect, share: float, ink: tuple[int, int, int]) -> None:
    pygame.draw.rect(screen, EDGE, area, border_radius=area.height // 2)
    filled = pygame.Rect(area.topleft, (round(area.width * min(1.0, share)), area.height))
    if filled.width:
        pygame.draw.rect(screen, ink, filled, border_radius=area.height // 2)


def _draw_row(screen: pygame.Surface, parts: Sequence[pygame.Surface], middle: tuple[int, int], gap: int) -> None:
    """Draw ``parts`` one beside the other, in the middle of the point ``middle``; smaller where it is too narrow."""
    width = sum(part.get_width() for part in parts) + gap * (len(parts) - 1)
    row = pygame.Surface((width, max(part.get_height() for part in parts)), pygame.SRCALPHA)
    x = 0
    for part in parts:
        row.blit(part, part.get_rect(midleft=(x, row.get_height() // 2)))
        x += part.get_width() + gap
    if width > 0.97 * screen.get_width():
        row = pygame.transform.smoothscale_by(row, 0.97 * screen.get_width() / width)
    screen.blit(row, row.get_rect(center=middle))


def _hint_parts(hints: Sequence[Hint], line: int) -> list[pygame.Surface]:
    space = pygame.Surface((line, 1), pygame.SRCALPHA)
    parts: list[pygame.Surface] = []
    for key, meaning in hints:
        parts += [*([space] if parts else []), _word_cap(key, line), _text(meaning, line, DIM)]
    return parts


@lru_cache(maxsize=64)
def _text(text: str, height: int, ink: tuple[int, int, int]) -> pygame.Surface:
    """A line of text on nothing, drawn larger and scaled down: letters are spaced better and edges smooth."""
    large = pygame.font.Font(None, round(1.35 * FINER * height)).render(text, True, ink)
    return pygame.transform.smoothscale_by(large, 1 / FINER)


@lru_cache(maxsize=16)
def _word_cap(word: str, line: int) -> pygame.Surface:
    text = _text(word, line, INK)
    cap = _cap(text.get_width() + line, text.get_height() + line // 2)
    cap.blit(text, text.get_rect(center=cap.get_rect().center))
    return cap


@lru_cache(maxsize=4)
def _arrow_cap(side: str, size: int) -> pygame.Surface:
    large = _cap(FINER * size, FINER * size)
    pygame.draw.polygon(large, ACCENT, [(x * FINER * size, y * FINER * size) for x, y in ARROWS[side]])
    return pygame.transform.smoothscale_by(large, 1 / FINER)


def _cap(width: int, height: int) -> pygame.Surface:
    """An empty key."""
    cap = pygame.Surface((width, height), pygame.SRCALPHA)
    cap.fill((*CAP, 0))
    pygame.draw.rect(cap, CAP, cap.get_rect(), border_radius=height // 5)
    return cap


def _open_screen(frame_width: int, frame_height: int) -> pygame.Surface:
    try:
        pygame.display.init()
        pygame.font.init()
        pygame.display.set_caption("Which one is the real game? - gamengen")
        desktop = pygame.display.get_desktop_sizes()[0]
        scale = 0.9 * LARGEST_SHARE * min(desktop[0] / (2.1 * frame_width), desktop[1] / (1.5 * frame_height))
        scale = max(1.0, scale)
        return pygame.display.set_mode(
            (round(2.1 * frame_width * scale), round(1.5 * frame_height * scale)), pygame.RESIZABLE
        )
    except pygame.error as error:
        pygame.display.quit()
        raise DisplayError(f"cannot open a window ({error})", "the display", SCREEN_REMEDY) from error
