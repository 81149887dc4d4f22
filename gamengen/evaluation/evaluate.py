"""``gamengen evaluate``: all measures of a checkpoint, one after the other, and the folder they end in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.errors import DataError, EngineError
from gamengen.checkpoints import Checkpoint
from gamengen.devices import choose_device
from gamengen.evaluation.collapse import frame_statistics, shortest_judged
from gamengen.evaluation.drift import (
    CLIP_FRAMES,
    SETTLE_FRAMES,
    after_the_start,
    measure_rollouts,
    save_side_by_side,
    summarise_collapse,
    summarise_rollouts,
)
from gamengen.evaluation.options import EvaluateOptions
from gamengen.evaluation.parts import Parts, Values
from gamengen.evaluation.rare_parts import RareBlocks, RareSights
from gamengen.evaluation.results import PICTURES, VIDEOS, command_line, write_results
from gamengen.evaluation.subject import Subject
from gamengen.evaluation.teacher_forced import STEPS, measure_windows, summarise_windows
from gamengen.evaluation.turning import moves_view, summarise_turns
from gamengen.evaluation.windows import Start, check_fit, seen_episodes, spread_windows, unseen_episodes
from gamengen.latents import weights_hash
from recorder.episodes import EpisodeInfo, read_episode
from recorder.pictures import contact_sheet, save_png
from recorder.progress import progress
from recorder.recording import Recording, hash_file

if TYPE_CHECKING:
    from gamengen.evaluation.judge import Judge

CHUNK = 32  # windows measured between two saves
SIDE_BY_SIDE = 4  # free plays at once
LONG_SIDE_BY_SIDE = 8
SHEET_COLUMNS = 6
SHORTEST = 32  # frames of a free play that have a real one beside, where episodes are short
RETURNS = 8  # starts
QUIET_GAMES = 4  # starts of play without a key
REAL_EPISODES = 24  # at most, to learn what real play looks like
FILES = ("lpips_weights", "i3d", "agent")  # options that may name one; other figures come of another file there
NEED_JUDGE = {"actions", "agent", "long"}  # measures that read actions
NEED_LESSONS = {"collapse", *NEED_JUDGE}  # measures that learn what real play looks like
NO_REPLAY = "the game does not show the same frames again under the same seed and actions"
HOW_TO_I3D = "--i3d FILE takes the I3D TorchScript network and reports FVD"


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    recording: Recording,
    out: Path | None = None,
    options: EvaluateOptions | None = None,
    device: str = "auto",
    beside: Checkpoint | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint on a recording's held-out episodes.

    ``psnr`` is the mean over frames of each frame's own, against the real frame, at most 60 dB a frame. Still
    frames weigh much in it: copying them is perfect. ``pooled_psnr`` is that of the mean squared error.

    Args:
        checkpoint: what to evaluate.
        recording: of the same game; where the checkpoint was trained on its seeds, only the episodes
            that were held out are used.
        out: a folder for ``metrics.json``, pictures, videos and the parts that an interrupted run goes on from.
        options: what to evaluate.
        device: ``auto``, ``cpu`` or ``cuda``.
        beside: another that this one is compared with: only episodes that neither was trained on are used.

    Returns:
        The figures, by the schema of ``metrics.json``; null is what was not measured, and ``not_measured`` says why.

    Raises:
        DataError: the recording is of another game, size or ActionSet, or too short.
    """
    return _Evaluation(checkpoint, recording, out, options or EvaluateOptions(), device, beside).run()


class _Evaluation:
    """One evaluation: what it needs, and its measures in their order."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        recording: Recording,
        out: Path | None,
        options: EvaluateOptions,
        device: str,
        beside: Checkpoint | None = None,
    ) -> None:
        check_fit(checkpoint, recording)
        self._checkpoint, self._recording, self._out, self._options = checkpoint, recording, out, options
        subjects = (checkpoint,) if beside is None else (checkpoint, beside)
        self._episodes, self._lessons = unseen_episodes(recording, *subjects), seen_episodes(recording, *subjects)
        if not self._lessons and NEED_LESSONS & set(self._options.measures) and len(self._episodes) > 1:
            # What the judge learns from is not judged.
            self._lessons, self._episodes = self._episodes[1::2], self._episodes[::2]
        if not self._lessons and NEED_JUDGE & set(self._options.measures):
            what = "it has one episode, and who judges actions learns from others than it judges"
            raise DataError(what, recording.folder, f"record more, or leave out {', '.join(sorted(NEED_JUDGE))}")
        self._subject = Subject(checkpoint, choose_device(device))
        self._parts = Parts(None if out is None else out / "parts", self._key())
        if out is not None and self._parts.begun_anew:
            for _, name in PICTURES:  # of what was measured before
                (out / name).unlink(missing_ok=True)
        self._not_measured: dict[str, str] = {}
        self._lpips = self._load_lpips()
        self._rare = RareBlocks.learn(self._episodes)
        self._known_sights: RareSights | None = None
        self._judge: Judge | None = None

    def run(self) -> dict[str, Any]:
        options, config = self._options, self._checkpoint.config
        metrics: dict[str, Any] = {
            "checkpoint": config.name, "spec": config.spec, "fps": config.fps, "episodes": len(self._episodes),
            "frames": options.windows, "seed": options.seed, "model": self._subject.weights(),
            "command": command_line(config.name, options),
        }  # fmt: skip
        metrics |= self._teacher_forced()
        if NEED_JUDGE & set(options.measures):
            self._judge = self._fit_judge()
        metrics |= self._free_play()
        for name, measure in (
            ("outcome", self._outcome), ("no_action", self._no_action), ("return", self._return),
            ("agent", self._agent), ("long", self._long),
        ):  # fmt: skip
            metrics[name] = self._guarded(name, measure) if name in options.measures else None
        metrics["not_measured"] = self._not_measured
        if self._out is not None:
            self._write(metrics)
        return metrics

    def _key(self) -> dict[str, object]:
        options = {name: value for name, value in asdict(self._options).items() if name != "measures"}
        seeds = [[info.seed, info.frames] for info in self._recording.episodes()]
        return {
            "options": {name: str(value) for name, value in options.items()},
            "files": {name: hash_file(options[name]) for name in FILES if options[name] is not None},
            "model": self._subject.weights(),
            "episodes": seeds,
            "judged": [info.seed for info in self._episodes],
            "sampler": asdict(self._checkpoint.config.sampler),
            "outcome": None if self._checkpoint.outcome is None else weights_hash(self._checkpoint.outcome),
        }

    # --- teacher-forced

    def _teacher_forced(self) -> dict[str, Any]:
        starts = spread_windows(self._episodes, self._options.windows, self._subject.context, 1)
        keep = {round(i) for i in np.linspace(0, len(starts) - 1, SHEET_COLUMNS)}
        parts: list[Values] = []
        columns: list[np.ndarray] = []
        with progress("teacher-forced", len(starts), "windows") as show:
            for first in range(0, len(starts), CHUNK):
                chunk = starts[first : first + CHUNK]

                def measure(chunk: list[Start] = chunk, first: int = first) -> Values:
                    values, pictures = measure_windows(
                        self._subject, chunk, first, self._options.seed, self._lpips, self._rare
                    )
                    kept = [picture for number, picture in enumerate(pictures, first) if number in keep]
                    return {**values, **({"pictures": np.stack(kept)} if kept else {})}

                values = self._parts.take(f"teacher_forced_{first:05}", measure)
                columns += list(values.pop("pictures", []))
                parts.append(values)
                show(first + len(chunk), "")
        self._windows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if self._out is not None:
            rows = [np.stack(row) for row in zip(*columns, strict=True)]
            labels = ["last real", "next real", *(f"{steps} step{'s' * (steps > 1)}" for steps in STEPS)]
            save_png(self._out / "teacher_forced.png", contact_sheet(rows, labels=labels))
        return summarise_windows(self._windows)

    # --- free play

    def _free_play(self) -> dict[str, Any]:
        names = ("drift", "turns", "collapse", "action_f1", "action_shift", "frechet")
        found: dict[str, Any] = dict.fromkeys(names)
        if not {"drift", "collapse", "actions", "frechet"} & set(self._options.measures):
            return found
        options = self._options
        longest = max(info.frames for info in self._episodes) - self._subject.context
        shortest = max(1, min(SHORTEST, longest, options.rollout_frames))
        starts = spread_windows(self._episodes, options.rollouts, self._subject.context, shortest)
        sights = self._sights()
        features = self._features() if "frechet" in options.measures else None
        more = "".join(f"_{name}" for name in ("actions", "frechet") if name in options.measures)
        parts: list[Values] = []
        total = len(starts) * options.rollout_frames
        with progress("free play", total, "frames") as show:
            for first in range(0, len(starts), SIDE_BY_SIDE):
                group = starts[first : first + SIDE_BY_SIDE]
                done = first * options.rollout_frames

                def measure(group: list[Start] = group, first: int = first, done: int = done) -> Values:
                    values, played = measure_rollouts(
                        self._subject, group, options.rollout_frames, options.seed + first,
                        lambda frames: show(done + frames, ""),
                        lpips=self._lpips, judge=self._judge if "actions" in options.measures else None,
                        features=features, rare=self._rare, sights=sights,
                    )  # fmt: skip
                    if first == 0:
                        self._show_play(played)
                    return values

                parts.append(self._parts.take(f"free_play{more}_{first:05}", measure))
                show(done + len(group) * options.rollout_frames, "")
        self._plays = {name: np.concatenate([part[name] for part in parts if name in part]) for name in parts[0]}
        found["drift"] = summarise_rollouts(self._plays, self._checkpoint.config.sampler.steps)
        found["turns"] = self._turns()
        if "collapse" in options.measures:
            found["collapse"] = self._guarded(
                "collapse", lambda: self._judge_collapse(self._plays, options.rollout_frames)
            )
        if self._judge is not None and "actions" in options.measures:
            found |= self._actions()
        if features is not None:
            found["frechet"] = self._guarded("frechet", lambda: self._frechet(features.name))
        return found

    def _sights(self) -> RareSights:
        if self._known_sights is None:
            self._known_sights = RareSights.learn(self._subject, self._episodes)
        return self._known_sights

    def _turns(self) -> dict[str, Any] | None:
        found = summarise_turns(self._plays)
        if found is None:
            self._not_measured["turns"] = "no recorded action turns the view"
        return found

    def _show_play(self, played: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """The contact sheet and the videos of the first free plays."""
        if self._out is None:
            return
        count = played[0][1].shape[0]
        at = np.unique(np.linspace(0, count - 1, SHEET_COLUMNS).astype(int))
        rows = []
        for real, neural, _ in played:
            dark = np.zeros_like(neural[0])
            rows += [np.stack([real[i] if i < len(real) else dark for i in at]), neural[at]]
        save_png(self._out / "rollout.png", contact_sheet(rows, labels=["real", "neural"] * len(played)))
        config = self._checkpoint.config
        for number, (real, neural, actions) in enumerate(played[:VIDEOS]):
            path = self._out / f"rollout_{number}.mp4"
            save_side_by_side(path, real, neural, actions, config.action_set, config.fps)

    def _judge_collapse(self, plays: Values, frames: int) -> dict[str, Any]:
        """Of plays of ``frames``, beside the lessons and the judged episodes of as many."""
        if len(after_the_start(np.empty(frames))) < shortest_judged():
            what = f"plays of {frames} frames are too short"
            raise DataError(what, "the collapse detector", f"give {SETTLE_FRAMES + shortest_judged()} or more")
        lessons, checks = (
            self._real_play(infos, label, frames)
            for infos, label in ((self._lessons, "lessons"), (self._episodes, "episodes"))
        )
        return summarise_collapse(plays, lessons, checks)

    def _real_play(
        self, infos: list[EpisodeInfo], label: str, frames: int
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Statistics of real episodes, and where the view was moved in them."""
        chosen = [info for info in infos if info.frames >= SHORTEST][:REAL_EPISODES]

        def measure() -> Values:
            found: Values = {}
            for number, info in enumerate(chosen):
                episode = read_episode(info.path, 0, frames + 1)
                found[f"{number:03}/statistics"] = frame_statistics(episode.frames)[1:]
                found[f"{number:03}/moving"] = moves_view(self._checkpoint.config.action_set, episode.actions[:-1])
            return found

        values = self._parts.take(f"real_play_{label}_{frames}", measure)
        return tuple(  # type: ignore[return-value]
            [part for name, part in values.items() if name.endswith(kind)] for kind in ("/statistics", "/moving")
        )

    def _features(self) -> Any:
        from gamengen.evaluation.frechet import I3DFeatures, ProjectFeatures

        if self._options.i3d is not None:
            return I3DFeatures(self._options.i3d, self._subject.device)
        self._not_measured["fvd"] = HOW_TO_I3D
        return ProjectFeatures()

    def _frechet(self, name: str) -> dict[str, Any]:
        from gamengen.evaluation.frechet import frechet_report

        found: dict[str, Any] = {"name": name}
        few: dict[int, DataError] = {}
        for length in CLIP_FRAMES:
            real, neural = (self._plays.get(f"{which}_clips_{length}") for which in ("real", "neural"))
            if real is not None and neural is not None:
                try:
                    found |= frechet_report(real, neural, length)
                except DataError as error:
                    few[length] = error
        if few and len(found) == 1:
            raise next(iter(few.values()))
        self._not_measured |= {f"frechet, clips of {length} frames": str(error) for length, error in few.items()}
        return found

    # --- actions and agents

    def _fit_judge(self) -> Judge:
        from gamengen.evaluation.judge import Judge, fit_judge

        path = None if self._parts.folder is None else self._parts.folder / "judge.safetensors"
        if path is not None and path.is_file():
            return Judge.load(path)
        with progress("training the judge", self._options.judge_steps, "steps") as show:
            judge = fit_judge(
                self._lessons, self._checkpoint.config.action_set, steps=self._options.judge_steps,
                seed=self._options.seed, show=show,
            )  # fmt: skip
        if path is not None:
            judge.save(path)
        return judge

    def _actions(self) -> dict[str, Any]:
        from gamengen.evaluation.action_reading import action_f1, shift_test

        names = self._checkpoint.config.action_set.names
        plays, found = self._plays, {}
        found["action_f1"] = {
            which: action_f1(plays[f"{which}_held"], plays["held"], names) for which in ("real", "neural")
        }
        found["action_shift"] = shift_test(
            plays["real_held"], plays["neural_held"], plays["held"], plays["held_lengths"]
        )
        return found

    def _agent(self) -> dict[str, Any]:
        from gamengen.evaluation.agent_play import compare_agent

        def measure() -> Values:
            assert self._judge is not None
            found = compare_agent(self._subject, self._judge, self._recording.header, self._options)
            return {"json": np.array(json.dumps(found))}

        return json.loads(str(self._parts.take("agent", measure)["json"]))

    def _long(self) -> dict[str, Any]:
        from gamengen.evaluation.agent_play import CLONED, make_player
        from gamengen.evaluation.long_play import measure_long_play, summarise_long_play

        assert self._judge is not None
        judge, header, options = self._judge, self._recording.header, self._options
        starts = spread_windows(self._episodes, options.long_starts, self._subject.context, 1)
        names = list(dict.fromkeys(["random", options.agent or CLONED]))
        total, found = len(names) * len(starts) * options.long_frames, {}
        sights = self._sights()
        with progress("long play", total, "frames") as show:
            for number, name in enumerate(names):
                parts = []
                for first in range(0, len(starts), LONG_SIDE_BY_SIDE):
                    group = starts[first : first + LONG_SIDE_BY_SIDE]
                    done = (number * len(starts) + first) * options.long_frames

                    def measure(
                        name: str = name, group: list[Start] = group, first: int = first, done: int = done
                    ) -> Values:
                        players = [make_player(name, judge, header) for _ in group]
                        return measure_long_play(
                            self._subject, group, players, options.long_frames, options.seed + first, self._rare,
                            sights, lambda frames: show(done + frames, ""),
                        )  # fmt: skip

                    parts.append(self._parts.take(f"long_{number}_{first:05}", measure))
                    show(done + len(group) * options.long_frames, "")
                self._long_plays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
                collapse = self._guarded(
                    "long_collapse", lambda: self._judge_collapse(self._long_plays, options.long_frames)
                )
                found[Path(name).stem] = summarise_long_play(self._long_plays, collapse)
        return found

    # --- outcomes

    def _outcome(self) -> dict[str, Any] | None:
        from gamengen.evaluation.outcomes import measure_outcomes

        head = self._checkpoint.outcome
        if head is None:
            self._not_measured["outcome"] = "the checkpoint has no outcome head; gamengen train outcome makes one"
            return None

        def measure() -> Values:
            found = measure_outcomes(head, self._checkpoint.tally, self._subject, self._episodes)
            return {"json": np.array(json.dumps(found))}

        return json.loads(str(self._parts.take("outcome", measure)["json"]))

    # --- against the real game

    def _no_action(self) -> dict[str, Any] | None:
        from gamengen.evaluation.real_game import RealGame
        from gamengen.evaluation.real_references import measure_no_action, summarise_no_action

        starts = spread_windows(self._episodes, QUIET_GAMES, self._subject.context, 1)
        count, parts = self._options.rollout_frames, []
        with progress("play without a key", len(starts), "games") as show, RealGame(self._recording.header) as game:
            for number, start in enumerate(starts):

                def measure(start: Start = start) -> Values | None:
                    return measure_no_action(self._subject, game, start, count, self._options.seed)

                values = self._parts.take(f"no_action_{number:03}", measure)
                parts += [values] if values else []
                show(number + 1, "")
        if not parts:
            self._not_measured["no_action"] = NO_REPLAY
        return summarise_no_action(parts) if parts else None

    def _return(self) -> dict[str, Any] | None:
        from gamengen.evaluation.real_game import RealGame
        from gamengen.evaluation.real_references import measure_return, summarise_return

        starts = spread_windows(self._episodes, RETURNS, self._subject.context, 1)
        found = []
        with progress("returning", len(starts), "games") as show, RealGame(self._recording.header) as game:
            for number, start in enumerate(starts):

                def measure(start: Start = start) -> Values:
                    parts = measure_return(self._subject, game, start, self._options.seed)
                    return {f"{name}/{key}": value for name, part in parts.items() for key, value in part.items()}

                values = self._parts.take(f"return_{number:03}", measure)
                part: dict[str, Values] = {}
                for name, value in values.items():
                    script, _, key = name.partition("/")
                    part.setdefault(script, {})[key] = value
                found.append((start[0].seed, part))
                show(number + 1, "")
        summary = summarise_return(found)
        if summary is None:
            self._not_measured["return"] = f"the ActionSet has no keys that undo one another, or {NO_REPLAY}"
        return summary

    def _guarded(self, name: str, measure: Callable[[], Any]) -> Any:
        """A measure for which there may be too little data: it says so, and the rest goes on."""
        try:
            return measure()
        except (DataError, EngineError) as error:
            self._not_measured[name] = str(error)
            return None

    def _load_lpips(self) -> Any:
        from gamengen.evaluation.lpips import HOW_TO, Lpips

        if self._options.lpips_weights is None:
            self._not_measured["lpips"] = HOW_TO
            return None
        return Lpips.load(self._options.lpips_weights, self._subject.device)

    def _write(self, metrics: dict[str, Any]) -> None:
        assert self._out is not None
        write_results(self._out, metrics, self.values())

    def values(self) -> dict[str, Any]:
        """The figures of each window and free play, for paired differences between checkpoints."""
        windows = self._windows
        names = ["autoencoder", "copy_last", *map(str, STEPS)]

        def figures(name: str) -> dict[str, list[float] | None]:
            lpips = windows.get(f"lpips/{name}")
            return {"psnr": windows[f"psnr/{name}"].tolist(), "lpips": None if lpips is None else lpips.tolist()}

        plays = getattr(self, "_plays", None)
        drift = [] if plays is None else [[None if np.isnan(x) else float(x) for x in row] for row in plays["psnr"]]
        return {
            "teacher_forced": {name: figures(name) for name in names},
            "owners": windows["owner"].astype(int).tolist(),
            "drift": drift,
            "drift_owners": [] if plays is None else plays["owner"].astype(int).tolist(),
        }
