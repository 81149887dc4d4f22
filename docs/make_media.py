"""Make the README's pictures from the shipped checkpoints: ``python docs/make_media.py [NAME ...]``.

``media/NAME.webp`` is free play under a fixed script of keys, ``media/NAME.mp4`` a minute of it, and
``media/NAME_minute.webp`` shows every 64th frame of that.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from engine.game import NeuralGame
from gamengen.checkpoints import shipped_checkpoints
from recorder.pictures import VideoWriter, contact_sheet, draw_held_keys

MEDIA = Path(__file__).parent / "media"
# A spawn where something is near, and what is held, for how many frames.
SCRIPTS = {
    "defend_the_center": (4, (
        ("", 3), ("TURN_LEFT", 5), ("", 4), ("ATTACK", 6), ("", 6), ("TURN_RIGHT", 22), ("TURN_RIGHT ATTACK", 5),
        ("", 6), ("ATTACK", 4), ("TURN_LEFT", 26), ("", 10), ("TURN_LEFT ATTACK", 4), ("TURN_RIGHT", 9), ("ATTACK", 5),
        ("", 11),
    )),
    "deathmatch": (18, (
        ("", 3), ("TURN_LEFT", 12), ("MOVE_FORWARD", 10), ("ATTACK", 5), ("MOVE_FORWARD TURN_RIGHT", 16), ("", 3),
        ("TURN_RIGHT", 10), ("MOVE_FORWARD", 12), ("ATTACK", 5), ("MOVE_LEFT", 6), ("TURN_LEFT", 12),
        ("MOVE_FORWARD SPEED", 14), ("MOVE_FORWARD ATTACK", 6), ("TURN_RIGHT", 14), ("MOVE_BACKWARD", 8), ("", 6),
    )),
}  # fmt: skip
SECONDS = 60
CRF = "36"  # smaller files than those recorded in play
SHOWN_FRAMES = 96
SHOWN_SKIP = 2
QUALITY = 70  # of WebP
SHEET_EVERY = 64


def main() -> None:
    """Play and write the pictures of the checkpoints that are named, or of all."""
    MEDIA.mkdir(exist_ok=True)
    for name in sys.argv[1:] or shipped_checkpoints():
        play(name)


def play(name: str) -> None:
    """Play a minute of the checkpoint ``name`` and write its pictures."""
    game = NeuralGame(name, seed=1)
    spawn, keys = SCRIPTS[name]
    game.reset(spawn)
    script = itertools.cycle(held.split() for held, count in keys for _ in range(count))
    frames = []
    with VideoWriter(MEDIA / f"{name}.mp4", game.fps, *game.frame.shape[:2], CRF) as video:
        for _, held in zip(range(round(SECONDS * game.fps)), script, strict=False):
            action = game.action_set.encode(held)
            frames.append(draw_held_keys(game.step(action), game.action_set, action))
            video.append(frames[-1])
            if game.ended.any():
                game.reset()  # the next game, as in the window
    shown = [Image.fromarray(frame) for frame in frames[:SHOWN_FRAMES:SHOWN_SKIP]]
    pause = round(1000 * SHOWN_SKIP / game.fps)
    moving = {"save_all": True, "append_images": shown[1:], "duration": pause, "loop": 0}
    shown[0].save(MEDIA / f"{name}.webp", quality=QUALITY, method=6, **moving)
    rows = np.stack(frames[SHEET_EVERY - 1 : 16 * SHEET_EVERY : SHEET_EVERY]).reshape(-1, 4, *frames[0].shape)
    labels = [f"frames {1 + 4 * SHEET_EVERY * i} to {4 * SHEET_EVERY * (i + 1)}" for i in range(len(rows))]
    sheet = Image.fromarray(contact_sheet(list(rows), labels=labels)).reduce(2)
    sheet.save(MEDIA / f"{name}_minute.webp", quality=QUALITY, method=6)


if __name__ == "__main__":
    main()
