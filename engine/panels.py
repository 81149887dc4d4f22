"""What is drawn in the window: the frame, panels of text over it, and short marks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pygame

Row = tuple[str, str]

INK, ACCENT, DIM, RED = (236, 236, 240), (255, 200, 64), (168, 168, 178), (240, 70, 60)
PANEL = (14, 14, 18, 215)
SMALLEST_TEXT, LARGEST_TEXT = 12, 40
FINER = 2  # panels are drawn this much larger, then scaled down: letters are spaced better and edges smooth


def fit_frame(frame_size: tuple[int, int], window_size: tuple[int, int]) -> pygame.Rect:
    """The largest rectangle with the aspect of ``frame_size`` (width, height) in the middle of the window."""
    scale = min(window_size[0] / frame_size[0], window_size[1] / frame_size[1])
    size = (max(1, round(frame_size[0] * scale)), max(1, round(frame_size[1] * scale)))
    return pygame.Rect((window_size[0] - size[0]) // 2, (window_size[1] - size[1]) // 2, *size)


def draw_frame(screen: pygame.Surface, frame: np.ndarray, smooth: bool) -> pygame.Rect:
    """Draw ``frame`` (H, W, 3) uint8 as large as fits, black around it; where it lies."""
    height, width = frame.shape[:2]
    area = fit_frame((width, height), screen.get_size())
    if area.size != screen.get_size():
        screen.fill((0, 0, 0))
    picture = pygame.image.frombuffer(np.ascontiguousarray(frame).data, (width, height), "RGB").convert(screen)
    scale = pygame.transform.smoothscale if smooth else pygame.transform.scale
    scale(picture, area.size, screen.subsurface(area))
    return area


def draw_overlay(screen: pygame.Surface, area: pygame.Rect, rows: Sequence[Row]) -> None:
    """Draw figures, (what, value) a row, at the top left of ``area``."""
    font = _font(area)
    # Wide enough for most values, so that it does not jump about.
    width = max(_table_width(font, rows), font.get_height() * 14)
    panel = _panel((width, _line(font) * len(rows)), font)
    _draw_rows(panel, rows, font, (font.get_height() // 2,) * 2, DIM, INK)
    finished = _finish(panel, area)
    screen.blit(finished, area.move(8, 8))


def draw_help(screen: pygame.Surface, area: pygame.Rect, title: str, columns: Sequence[tuple[str, list[Row]]]) -> None:
    """Draw a page of keys in the middle of ``area``: columns of (heading, rows of (keys, meaning))."""
    font = _font(area)
    line, gap = _line(font), font.get_height()
    widths = [_table_width(font, rows) for _, rows in columns]
    tallest = max(len(rows) for _, rows in columns)
    panel = _panel((sum(widths) + 2 * gap * (len(columns) - 1), round(line * (tallest + 3))), font)
    left = top = gap // 2
    panel.blit(font.render(title, True, INK), (left, top))
    for width, (heading, rows) in zip(widths, columns, strict=True):
        panel.blit(font.render(heading, True, DIM), (left, top + round(1.5 * line)))
        _draw_rows(panel, rows, font, (left, top + round(2.8 * line)), ACCENT, INK)
        left += width + 2 * gap
    finished = _finish(panel, area)
    screen.blit(finished, finished.get_rect(center=area.center))


def draw_message(screen: pygame.Surface, area: pygame.Rect, message: str) -> None:
    """Draw one line at the bottom of ``area``, above Doom's status bar."""
    font = _font(area)
    text = font.render(message, True, INK)
    panel = _panel(text.get_size(), font)
    panel.blit(text, text.get_rect(center=panel.get_rect().center))
    finished = _finish(panel, area)
    screen.blit(finished, finished.get_rect(midbottom=(area.centerx, area.bottom - area.height // 6)))


def draw_marks(screen: pygame.Surface, area: pygame.Rect, marks: Sequence[str]) -> None:
    """Draw short words such as ``REC`` one under the other at the top right of ``area``."""
    font = _font(area)
    gap, top = font.get_height(), area.top + 8
    for mark in marks:
        text = font.render(mark, True, INK)
        dot = gap if mark == "REC" else 0
        panel = _panel((text.get_width() + dot, text.get_height()), font)
        middle = panel.get_height() // 2
        if dot:
            pygame.draw.circle(panel, RED, (gap * 0.9, middle), gap * 0.32)
        panel.blit(text, text.get_rect(midright=(panel.get_width() - gap // 2, middle)))
        finished = _finish(panel, area)
        screen.blit(finished, finished.get_rect(topright=(area.right - 8, top)))
        top += finished.get_height() + 4


def _font(area: pygame.Rect) -> pygame.font.Font:
    return _load_font(FINER * min(max(area.height // 32, SMALLEST_TEXT), LARGEST_TEXT))


@lru_cache(maxsize=8)
def _load_font(size: int) -> pygame.font.Font:
    return pygame.font.Font(None, size)


def _panel(inner: tuple[int, int], font: pygame.font.Font) -> pygame.Surface:
    """A dark rounded surface with half a line of margin around ``inner`` (width, height)."""
    margin = font.get_height()
    panel = pygame.Surface((inner[0] + margin, inner[1] + margin), pygame.SRCALPHA)
    panel.fill((*PANEL[:3], 0))  # or scaling down would mix black into the corners
    pygame.draw.rect(panel, PANEL, panel.get_rect(), border_radius=margin // 2)
    return panel


def _finish(panel: pygame.Surface, area: pygame.Rect) -> pygame.Surface:
    """The panel at its size on screen, inside ``area``."""
    scale = min(1 / FINER, 0.97 * area.width / panel.get_width(), 0.97 * area.height / panel.get_height())
    return pygame.transform.smoothscale_by(panel, scale)


def _table_width(font: pygame.font.Font, rows: Sequence[Row]) -> int:
    return _tab(font, rows) + max(font.size(last)[0] for _, last in rows)


def _line(font: pygame.font.Font) -> int:
    """From one row of text to the next."""
    return round(1.2 * font.get_linesize())


def _tab(font: pygame.font.Font, rows: Sequence[Row]) -> int:
    """Where the second column of a table starts."""
    return max(font.size(first)[0] for first, _ in rows) + round(0.7 * font.get_height())


def _draw_rows(
    panel: pygame.Surface,
    rows: Sequence[Row],
    font: pygame.font.Font,
    corner: tuple[int, int],
    first_ink: tuple[int, int, int],
    last_ink: tuple[int, int, int],
) -> None:
    tab = _tab(font, rows)
    for i, (first, last) in enumerate(rows):
        top = corner[1] + i * _line(font)
        panel.blit(font.render(first, True, first_ink), (corner[0], top))
        panel.blit(font.render(last, True, last_ink), (corner[0] + tab, top))
