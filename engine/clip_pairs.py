"""Pairs of short clips for the human test: one of the real game, one of the neural game.

**The paper** (GameNGen, arXiv 2408.14837, section 5.1 and appendix A.8) showed 10 raters 130 random clips of
1.6 s and 3.2 s of the simulation side by side with the real game and asked which one is real: they chose the
real game 58 % and 60 % of the time. Of 150 more pairs of 3 s, taken after 5 to 10 minutes of play, they knew
the real game in 50 %. It does not say how long the model had played before the first kind of clip, whether both
clips show the same scene, nor how often raters might look.

**Here** both clips show the same moment under the same recorded actions: the model starts from K real frames of
a held-out episode, plays on its own for a time drawn between 0 and ``WAIT_SECONDS``, and only then the clip
begins; the real clip is what the episode holds at that time. Clips are at the game's own fps and loop until the
rater answers. We differ so: the actions are the recorded agent's, not a person's; free play before a clip is
seconds, not minutes, as held-out episodes are no longer; and with the same scene on both sides a rater may look
for differences, which makes the test harder for the model than two unrelated clips.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.errors import DataError, OptionError
from engine.rating import check_same_pairs
from gamengen.diffusion import check_seed
from gamengen.evaluation.subject import Subject, follow, short_hash
from gamengen.evaluation.windows import Start, spread
from recorder.episodes import PARTIAL_SUFFIX, EpisodeInfo, read_episode
from recorder.progress import progress
from recorder.recording import write_json

FORMAT_VERSION = 1
LENGTHS_SECONDS = (1.6, 3.2)
WAIT_SECONDS = 10.0
STRATUM = 16  # places that a pair's own stretch of the episodes is divided into; the seed picks one
SHARED = ("fps", "checkpoint", "checkpoint_hash")  # what all pairs of a set have in common


@dataclass(frozen=True)
class Pair:
    """A real and a neural clip of the same moment.

    Args:
        id: of the set of pairs, then the number in it: equal ids are equal pairs, for every rater.
        length_seconds: as asked for.
        frames: N of each clip.
        fps: at which they are shown.
        episode: the file's name; ``episode_seed`` is the seed it was played with.
        episode_seed: see above.
        start: frame of the episode at which the K real frames begin.
        wait: frames that the model plays before the clip begins.
        checkpoint: its name.
        checkpoint_hash: of its weights.
        path: the file of both clips.
    """

    id: str
    length_seconds: float
    frames: int
    fps: float
    episode: str
    episode_seed: int
    start: int
    wait: int
    checkpoint: str
    checkpoint_hash: str
    path: Path

    def clips(self) -> tuple[np.ndarray, np.ndarray]:
        """The real and the neural clip, each (N, H, W, 3) uint8.

        Raises:
            DataError: the file is missing or damaged.
        """
        remedy = "delete this file and run the command again: it is made anew"
        try:
            with np.load(self.path, allow_pickle=False) as file:
                real, neural = file["real"], file["neural"]
        except FileNotFoundError as error:
            raise DataError("the clips are missing", self.path, "run the command again: they are made anew") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            what = f"the clips are damaged ({' '.join(str(error).split())[:80]})"
            raise DataError(what, self.path, remedy) from error
        fits = real.shape == neural.shape and real.ndim == 4 and real.shape[3] == 3 and len(real) == self.frames
        if not fits or real.dtype != np.uint8 or neural.dtype != np.uint8:
            raise DataError(f"the clips have shapes {real.shape} and {neural.shape}", self.path, remedy)
        return real, neural


def check_pairs(pairs: int, lengths_seconds: Sequence[float] = LENGTHS_SECONDS) -> None:
    """Raise OptionError unless so many pairs of such lengths can be asked for."""
    if pairs < 1:
        raise OptionError(f"must be at least 1, got {pairs}", "--pairs", "for example --pairs 20")
    if not lengths_seconds or not all(0 < length < math.inf for length in lengths_seconds):
        raise OptionError("must be more than 0", f"lengths_seconds {lengths_seconds}", "for example 1.6 and 3.2")


def prepare_pairs(
    subject: Subject,
    episodes: list[EpisodeInfo],
    out: Path,
    pairs: int,
    lengths_seconds: Sequence[float] = LENGTHS_SECONDS,
    seed: int = 0,
    wait_seconds: float = WAIT_SECONDS,
) -> list[Pair]:
    """Make the clips of ``pairs`` pairs, or find them made: ``OUT/raters/clips``, one file a pair.

    The same subject, episodes, numbers and seed give the same pairs in the same order, so that all raters see
    the same; each pair comes from its own stretch of the episodes, at a place that the seed draws. Killed and
    called again, it goes on.

    Args:
        subject: the checkpoint under test.
        episodes: held-out ones; see ``gamengen.evaluation.windows.unseen_episodes``.
        out: folder of the report.
        pairs: how many in all, shared out evenly among the lengths.
        lengths_seconds: of the clips.
        seed: of the pairs and of the sampling noise.
        wait_seconds: the longest free play before a clip; less where episodes are short.

    Raises:
        OptionError: there are no pairs to make.
        DataError: no episode is long enough, the clips cannot be written, or ``OUT/raters`` holds answers about
            another checkpoint or other pairs.
    """
    check_pairs(pairs, lengths_seconds)
    check_seed(seed)
    folder = out / "raters" / "clips"
    starts, plan = _plan(subject, episodes, pairs, lengths_seconds, seed, wait_seconds)
    described = json.dumps(plan, sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()[:8]
    made = []
    for number, clip in enumerate(plan["clips"], 1):
        pair_id = f"{digest}-{number:03d}"
        path = folder / f"{pair_id}.npz"
        made.append(Pair(pair_id, **clip, **{name: plan[name] for name in SHARED}, path=path))
    check_same_pairs(folder.parent, made)
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_others(folder, digest)
        write_json(folder / "pairs.json", {"id": digest, **plan})
    missing = [number for number, pair in enumerate(made) if not pair.path.is_file()]
    if missing:
        total = sum(pair.wait + pair.frames for pair in made)
        done = total - sum(made[number].wait + made[number].frames for number in missing)
        with progress("Preparing clips", total, "frames") as show:
            show(done, "")
            for number in missing:
                pair = made[number]
                _save(pair.path, *_play(subject, pair, starts[number], show, done))
                done += pair.wait + pair.frames
    return made


def _plan(
    subject: Subject,
    episodes: list[EpisodeInfo],
    pairs: int,
    lengths_seconds: Sequence[float],
    seed: int,
    wait_seconds: float,
) -> tuple[list[Start], dict[str, Any]]:
    """Where each pair starts, and all that the clips depend on, as plain JSON."""
    config, rng = subject.config, np.random.default_rng(seed)
    longest = max((info.frames for info in episodes), default=0)
    drawn: list[tuple[Start, dict[str, Any]]] = []
    for first, seconds in enumerate(lengths_seconds):
        frames = max(1, round(seconds * config.fps))
        share = len(range(first, pairs, len(lengths_seconds)))
        most = max(0, min(round(wait_seconds * config.fps), longest - subject.context - frames))
        for part in range(share):
            wait = int(rng.integers(most + 1))
            places = spread(episodes, share * STRATUM, subject.context + wait + frames)
            info, start = places[part * STRATUM + int(rng.integers(STRATUM))]
            clip = {
                "length_seconds": float(seconds), "frames": frames, "episode": info.path.name,
                "episode_seed": info.seed, "start": start, "wait": wait,
            }  # fmt: skip
            drawn.append(((info, start), clip))
    drawn = [drawn[number] for number in rng.permutation(len(drawn))]
    plan = {
        "format_version": FORMAT_VERSION,
        "checkpoint": config.name,
        "checkpoint_hash": short_hash(subject.weights()),
        "spec": config.spec,
        "sampler": asdict(config.sampler),
        "fps": config.fps,
        "seed": seed,
        "clips": [clip for _, clip in drawn],
    }
    return [start for start, _ in drawn], plan


def _play(
    subject: Subject, pair: Pair, start: Start, show: Callable[[float, str], None], done: int
) -> tuple[np.ndarray, np.ndarray]:
    """The real and the neural clip (N, H, W, 3) uint8; the law of alignment is in ``recorder.episodes``."""
    context, played = subject.context, pair.wait + pair.frames
    episode = read_episode(start[0].path, pair.start, pair.start + context + played)
    frames, actions = episode.frames[None], episode.actions[None]
    noise_seed = int(hashlib.sha256(pair.id.encode()).hexdigest()[:7], 16)
    choose = follow(actions[:, context - 1 :])
    neural = np.empty((pair.frames, *frames.shape[2:]), np.uint8)
    playing = subject.play(frames[:, :context], actions[:, : context - 1], choose, played, noise_seed)
    for number, newest in enumerate(playing):
        if number >= pair.wait:
            neural[number - pair.wait] = newest[0]
        show(done + number + 1, "")
    return frames[0, context + pair.wait :], neural


def _save(path: Path, real: np.ndarray, neural: np.ndarray) -> None:
    """Write both clips whole or not at all."""
    unfinished = path.with_name(path.name + PARTIAL_SUFFIX)
    with _disk_errors(path):
        try:
            with unfinished.open("wb") as file:
                np.savez_compressed(file, real=real, neural=neural)
            unfinished.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


def _remove_others(folder: Path, digest: str) -> None:
    """Remove clips of other sets of pairs; nobody has answered them, or the folder would have been refused."""
    for path in folder.glob("????????-*.npz*"):
        if not path.name.startswith(f"{digest}-"):
            path.unlink()


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"cannot write the clips ({(error.strerror or str(error)).lower()})"
        raise DataError(what, path, "free some space, or choose another --out") from error
