"""Pictures and videos of frames: contact sheets, held keys drawn in, PNG and MP4 files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agents.actions import ActionSet
from agents.errors import DataError

PARTIAL_SUFFIX = ".partial"
BACKGROUND = (20, 20, 24)
TEXT = (214, 214, 220)
LABEL_HEIGHT = 16
CRF = "18"  # x264's scale of loss: 0 is lossless, 18 can hardly be told from the original

# Where the arrow keys lie, as on a keyboard; strafing is drawn with double arrows.
ARROW_GRID = (("MOVE_LEFT", "MOVE_FORWARD", "MOVE_RIGHT"), ("TURN_LEFT", "MOVE_BACKWARD", "TURN_RIGHT"))
ARROWS = {"MOVE_FORWARD": "up", "MOVE_BACKWARD": "down", "TURN_LEFT": "left", "TURN_RIGHT": "right"}
DOUBLE_ARROWS = {"MOVE_LEFT": "left", "MOVE_RIGHT": "right"}
WORDS = {"ATTACK": "FIRE", "ALTATTACK": "ALT", "SPEED": "RUN", "CROUCH": "DUCK"}
SHORTENED = ("SELECT_WEAPON", "ACTION_", "BUTTON_")
LONGEST_WORD = 7
CAP = 15  # pixels of a key cap on a frame 240 high
FINER = 4  # caps are drawn this much larger, then scaled down, for smooth edges
DIM_FILL, DIM_EDGE, DIM_INK = (16, 16, 20, 120), (235, 235, 240, 90), (240, 240, 245, 165)
LIT_FILL, LIT_EDGE, LIT_INK = (255, 200, 64, 235), (255, 232, 170, 255), (30, 20, 0, 255)


def contact_sheet(rows: Sequence[np.ndarray], *, gap: int = 2, labels: Sequence[str] | None = None) -> np.ndarray:
    """Lay rows of frames out as one picture.

    Args:
        rows: each (N, H, W, 3) uint8; rows may differ in length and size.
        gap: pixels between frames and around them.
        labels: a short text above each row; "" for none.

    Returns:
        (H', W', 3) uint8.
    """
    assert rows
    assert all(row.ndim == 4 and row.shape[3] == 3 and row.dtype == np.uint8 for row in rows)
    texts = list(labels) if labels is not None else [""] * len(rows)
    assert len(texts) == len(rows), "one label a row"
    width = gap + max(len(row) * (row.shape[2] + gap) for row in rows)
    height = gap + sum(
        row.shape[1] + gap + (LABEL_HEIGHT if text else 0) for row, text in zip(rows, texts, strict=True)
    )
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw, top = ImageDraw.Draw(sheet), gap
    for row, text in zip(rows, texts, strict=True):
        if text:
            draw.text((gap + 3, top + LABEL_HEIGHT / 2), text, TEXT, _font(12), anchor="lm")
            top += LABEL_HEIGHT
        for i, frame in enumerate(row):
            sheet.paste(Image.fromarray(frame), (gap + i * (row.shape[2] + gap), top))
        top += row.shape[1] + gap
    return np.array(sheet)


def save_png(path: Path | str, picture: np.ndarray) -> None:
    """Write ``picture`` (H, W, 3) uint8 as PNG, whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with _file_errors("picture", path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            Image.fromarray(picture).save(file, "PNG")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def draw_held_keys(frame: np.ndarray, action_set: ActionSet, action: np.ndarray) -> np.ndarray:
    """A copy of ``frame`` (H, W, 3) uint8 with a key cap for each button, lit while held.

    Args:
        frame: the picture to draw on; the caps scale with its height.
        action_set: names the channels of ``action``.
        action: (A,) held state; an axis is drawn as a bar from its middle.
    """
    height, width = frame.shape[:2]
    buttons = len(action_set.buttons)
    held = tuple(bool(value > 0.5) for value in action[:buttons])
    axes = tuple(round(float(value), 1) for value in action[buttons:])
    colour, alpha = _caps(action_set, held, axes, height, width)
    drawn = frame.copy()
    area = drawn[: colour.shape[0], : colour.shape[1]]
    area[:] = (area * (1 - alpha) + colour * alpha + 0.5).astype(np.uint8)
    return drawn


class VideoWriter:
    """Writes frames as an H.264 MP4 (yuv420p, plays everywhere); use it as a context manager.

    The file gets its name only when it is whole; an error inside the block removes what was written.
    Frames of odd height or width get their last row or column twice: the codec wants even sizes.

    Args:
        path: ends in ``.mp4``.
        fps: frames a second; 17.5 is as good as any.
        height: frame height in pixels.
        width: frame width in pixels.
        crf: H.264's rate factor; a higher one makes a smaller and coarser file.

    Raises:
        DataError: the file cannot be written, has another suffix, got no frame, or PyAV has no H.264.
    """

    def __init__(self, path: Path | str, fps: float | Fraction, height: int, width: int, crf: str = CRF) -> None:
        self.path, self._crf = Path(path), crf
        if self.path.suffix.lower() != ".mp4":
            raise DataError("videos are written as MP4", self.path, "give a name that ends in .mp4")
        assert min(fps, height, width) > 0
        self.frames = 0
        self._rate = Fraction(fps).limit_denominator(1001)
        self._shape = (height, width, 3)
        self._partial = self.path.with_name(self.path.name + PARTIAL_SUFFIX)
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        import av

        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            self._partial.touch()  # a folder that cannot be written is told now, not after the first frames
            self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "faststart"})
            self._stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": self._crf})
            self._stream.height, self._stream.width = (side + side % 2 for side in self._shape[:2])
            self._stream.pix_fmt = "yuv420p"
        return self

    def append(self, frame: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8."""
        import av

        assert frame.shape == self._shape, (frame.shape, self._shape)
        assert frame.dtype == np.uint8, frame.dtype
        height, width = self._shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        with self._errors():
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            picture.pts, picture.time_base = self.frames, 1 / self._rate
            self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._discard()
            return
        with self._errors():
            if not self.frames:
                raise ValueError("it has no frames")
            self._container.mux(self._stream.encode(None))
            self._container.close()
            with self._partial.open("r+b") as file:  # Windows syncs only what may be written
                os.fsync(file.fileno())
            self._partial.replace(self.path)

    def _discard(self) -> None:
        if self._container is not None:
            with contextlib.suppress(Exception):
                self._container.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        import av

        try:
            with _file_errors("video", self.path, self._partial):
                yield
        except BaseException as error:
            self._discard()
            if isinstance(error, av.codec.codec.UnknownCodecError):
                raise DataError("this PyAV has no H.264 encoder", self.path, "reinstall av from PyPI") from error
            if isinstance(error, (av.FFmpegError, ValueError)):
                raise DataError(f"cannot write the video ({error})", self.path, "choose another file") from error
            raise


@contextlib.contextmanager
def _file_errors(kind: str, path: Path, partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"cannot write the {kind} ({reason})", path, "choose another place, with space") from error


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


@lru_cache(maxsize=256)
def _caps(
    action_set: ActionSet, held: tuple[bool, ...], axes: tuple[float, ...], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The caps as colour (h, w, 3) and alpha (h, w, 1) in [0, 1], for the top left of a frame."""
    unit = max(9, round(height * CAP / 240))
    lit = dict(zip(action_set.buttons, held, strict=True))
    sheet = Image.new("RGBA", (width * FINER, height * FINER), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    margin, pitch = max(2, unit // 4), unit + max(1, unit // 8)
    left = top = margin
    grid = [row for row in ARROW_GRID if any(name in lit for name in row)]
    for y, row in enumerate(grid):
        # Without a key in the middle column the other two move together.
        columns = row if any(in_row[1] in lit for in_row in grid) else (row[0], row[2])
        for x, name in enumerate(columns):
            if name in lit:
                _draw_cap(draw, margin + x * pitch, margin + y * pitch, unit, unit, name, lit[name])
                left = max(left, margin + (x + 1) * pitch)
    indent = left = left + margin if grid else margin
    for name in action_set.buttons:
        if name in ARROWS or name in DOUBLE_ARROWS:
            continue
        wide = max(unit, round(_font(unit * FINER * 5 // 8).getlength(_word(name)) / FINER) + unit // 2)
        if left + wide > width and left > indent:
            left, top = indent, top + pitch
        _draw_cap(draw, left, top, wide, unit, name, lit[name])
        left += wide + pitch - unit
    if left > indent:
        top += pitch
    for value in axes:
        _draw_axis(draw, indent, top, unit * 3, unit // 2, value)
        top += unit // 2 + max(1, unit // 8)
    bottom = max(top, margin + len(grid) * pitch)
    small = np.asarray(sheet.crop((0, 0, width * FINER, min(height, bottom) * FINER)).reduce(FINER), np.float32)
    return small[..., :3], small[..., 3:] / 255


def _draw_cap(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, height: int, name: str, lit: bool) -> None:
    box = (x * FINER, y * FINER, (x + width) * FINER - 1, (y + height) * FINER - 1)
    fill, edge, ink = (LIT_FILL, LIT_EDGE, LIT_INK) if lit else (DIM_FILL, DIM_EDGE, DIM_INK)
    draw.rounded_rectangle(box, height * FINER // 5, fill, edge, FINER)
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    size = height * FINER
    if name in ARROWS:
        _draw_arrow(draw, middle, size * 0.3, ARROWS[name], ink)
    elif name in DOUBLE_ARROWS:
        for shift in (-0.15, 0.15):
            _draw_arrow(draw, (middle[0] + shift * size, middle[1]), size * 0.22, DOUBLE_ARROWS[name], ink)
    else:
        draw.text(middle, _word(name), ink, _font(size * 5 // 8), anchor="mm")


def _draw_arrow(draw: ImageDraw.ImageDraw, middle: tuple[float, float], radius: float, way: str, ink: Any) -> None:
    triangle = {"up": ((-1, 0.75), (1, 0.75), (0, -0.9)), "left": ((0.75, -1), (0.75, 1), (-0.9, 0))}
    sign = -1 if way in ("down", "right") else 1
    points = triangle["up" if way in ("up", "down") else "left"]
    draw.polygon([(middle[0] + sign * radius * px, middle[1] + sign * radius * py) for px, py in points], ink)


def _draw_axis(draw: ImageDraw.ImageDraw, x: int, y: int, width: int, height: int, value: float) -> None:
    box = (x * FINER, y * FINER, (x + width) * FINER - 1, (y + height) * FINER - 1)
    draw.rounded_rectangle(box, height * FINER // 4, DIM_FILL, DIM_EDGE, FINER)
    middle = (box[0] + box[2]) / 2
    end = middle + value * (box[2] - box[0]) / 2
    inset = height * FINER // 4
    draw.rectangle((min(middle, end) - FINER, box[1] + inset, max(middle, end) + FINER, box[3] - inset), LIT_FILL)


def _word(name: str) -> str:
    for prefix in SHORTENED:
        if name.startswith(prefix) and name != prefix:
            return name.removeprefix(prefix)
    return WORDS.get(name, name)[:LONGEST_WORD]
