"""Which episodes and which windows of them are measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents.errors import DataError
from gamengen.checkpoints import Checkpoint
from recorder.episodes import EpisodeInfo
from recorder.record import RecordOptions, record_episodes
from recorder.recording import HELD_OUT_EVERY, Recording

UNSEEN_SEED = 1_000_000_000
LEAD = 32  # frames before what is predicted, whatever the context: so that models with other contexts compare
Start = tuple[EpisodeInfo, int]


def check_fit(checkpoint: Checkpoint, recording: Recording) -> None:
    """Raise DataError unless the recording is of the checkpoint's game, size, speed and ActionSet."""
    config, header = checkpoint.config, recording.header
    for name in ("spec", "action_set", "height", "width", "frame_skip"):
        ours, theirs = getattr(config, name), getattr(header, name)
        if ours != theirs:
            what = f"the recording's {name} is {theirs}, the checkpoint's {ours}"
            raise DataError(what, recording.folder, "use a recording of the same game")


def unseen_episodes(recording: Recording, *checkpoints: Checkpoint) -> list[EpisodeInfo]:
    """Episodes whose seeds none of the checkpoints was ever trained on.

    Raises:
        DataError: there are none.
    """
    unseen = [info for info in recording.episodes() if not any(_was_seen(one, info) for one in checkpoints)]
    if not unseen:
        remedy = "record with another --seed, or evaluate with --record"
        who = "the checkpoint was" if len(checkpoints) == 1 else "one or the other checkpoint was"
        raise DataError(f"{who} trained on all of these episodes", recording.folder, remedy)
    return unseen


def seen_episodes(recording: Recording, *checkpoints: Checkpoint) -> list[EpisodeInfo]:
    """The other episodes; none where the recording was made for the evaluation."""
    return [info for info in recording.episodes() if any(_was_seen(one, info) for one in checkpoints)]


def _was_seen(checkpoint: Checkpoint, info: EpisodeInfo) -> bool:
    data = checkpoint.config.data
    first, last = data.get("seeds", (0, -1))
    base = data.get("seed", first)  # the seed of episode 0, and of every tenth after it, was held out
    return first <= info.seed <= last and (info.seed - base) % HELD_OUT_EVERY != 0


def record_for(checkpoint: Checkpoint, frames: int, folder: Path) -> Recording:
    """Record ``frames`` frames of the checkpoint's game with seeds far from any that it was trained on."""
    config = checkpoint.config
    record_episodes(
        RecordOptions(
            config.spec, folder, frames, seed=UNSEEN_SEED, frame_skip=config.frame_skip, height=config.height,
            width=config.width,
        )
    )  # fmt: skip
    return Recording.open(folder)


def spread_windows(episodes: list[EpisodeInfo], count: int, context: int, frames: int) -> list[Start]:
    """Starts of ``count`` windows of ``context`` frames and the ``frames`` after them.

    The frames after the context are the same for every context up to 32, unless most episodes are too short for
    that: then windows begin where the episodes do.

    Raises:
        DataError: no episode is long enough.
    """
    lead = max(context, LEAD)
    room = {before: sum(max(0, info.frames - before - frames + 1) for info in episodes) for before in (context, lead)}
    if room[lead] <= room[context] / 2:
        lead = context
    return [(info, start + lead - context) for info, start in spread(episodes, count, lead + frames)]


def spread(episodes: list[EpisodeInfo], count: int, window: int) -> list[Start]:
    """Starts of ``count`` windows of ``window`` frames, at even distances over all episodes laid end to end.

    Raises:
        DataError: no episode is so long.
    """
    spans = [max(0, info.frames - window + 1) for info in episodes]
    total = sum(spans)
    if not total:
        where = episodes[0].path.parent if episodes else "the recording"
        raise DataError(f"no held-out episode has {window} frames", where, "record more, or evaluate shorter windows")
    ends = np.cumsum(spans)
    picked = []
    for position in np.linspace(0, total - 1, count).astype(int):
        index = int(np.searchsorted(ends, position, side="right"))
        picked.append((episodes[index], int(position - (ends[index] - spans[index]))))
    return picked
