"""The sections of ``report.md``: what each measure found, in words and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gamengen.evaluation import plots
from gamengen.evaluation.similarity import STILL_PSNR
from gamengen.evaluation.tables import MISSING, minus, number, percent, signed, steps_label, table, with_interval
from gamengen.evaluation.teacher_forced import TURNING_DEGREES

Metrics = dict[str, Any]
Lines = list[str]

# Valevski, Leviathan, Arar, Fruchter: Diffusion Models Are Real-Time Game Engines, arXiv 2408.14837.
PAPER_FVD = {"16": "114", "32": "186"}
PAPER_RATERS = {"1.6": "58 %", "3.2": "60 %"}

DRIFT_NOTE = """The model starts from real frames and then sees only its own, under the actions that were recorded;
each frame is compared with the real one at that moment. *Start held* is the last real frame shown all the time: below
it, free play has lost the scene (which may still look right, as small differences grow in the real game too).
*Sharpness*, the mean absolute Laplacian, falls where the picture blurs and rises where it breaks into noise; it needs
no aligned scene. *Unusual* is the share of the picture that is seldom seen where it stands, as monsters are, in
the neural game and in the real one: monsters that fade lower it, a red fog or a broken picture raise it. *Sights* is
the share of frames in which something unusual is in view, by the encoder's latents of the pictures shown: far below the
real game's, the monsters are gone, which makes every other figure of this table better."""

PICTURES = {
    "autoencoder": "autoencoder ceiling",
    "autoencoder_alone": "autoencoder, from the latent alone",
    "copy_last": "copy last frame",
}
AGENT_SIDES = {
    "real": "real game, read from its frames",
    "neural": "neural game, read from its frames",
    "difference": "neural minus real, game by game",
    "real_true": "real game, its own counters",
}
AGENT_ROWS = {
    "kills": "kills",
    "survival_frames": "survival, frames",
    "ammo_used": "ammunition used",
    "health_lost": "health lost",
}
RETURNS = {"there_and_back": "turned away and back", "full_circle": "turned a full circle"}


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Args:
        title: its heading.
        keys: what it tells of in ``metrics.json``; where all are null, it was not measured.
        write: its paragraphs and tables.
        plots: file names of what is drawn in it.
    """

    title: str
    keys: tuple[str, ...]
    write: Callable[[Metrics], list[Lines]]
    plots: tuple[str, ...] = ()


def find_figure(metrics: Metrics, key: str) -> dict[str, Any] | None:
    """The figures of ``autoencoder``, ``copy_last`` or a number of steps; None where not measured."""
    return metrics.get(key) if key in PICTURES else (metrics.get("teacher_forced") or {}).get(key)


def _teacher_forced(metrics: Metrics) -> list[Lines]:
    copied = find_figure(metrics, "copy_last") or {}
    rows = []
    for key in ("copy_last", "autoencoder", "autoencoder_alone", *metrics["teacher_forced"]):
        if key == "autoencoder_alone" and not metrics.get(key):
            continue
        figure = find_figure(metrics, key) or {}
        over = [signed(minus(figure.get(name), copied.get(name))) for name in ("psnr", "pooled_psnr")]
        row = [PICTURES.get(key) or steps_label(key), with_interval(figure, "psnr"), over[0]]
        row += [number(figure.get("pooled_psnr")), over[1], number(figure.get("ssim"), 3)]
        rows.append([*row, number(figure.get("lpips"), 3)])
    head = ["picture", "PSNR, mean over frames", "over copying", "PSNR of the mean error", "over copying"]
    return [
        ["Each frame is predicted from real frames. The ceiling is the true latent, decoded as a predicted one is."],
        table([*head, "SSIM", "LPIPS"], rows),
    ]


def _regions(metrics: Metrics) -> list[Lines]:
    return [_by_picture("region", list(metrics["regions"].items()))]


def _motion(metrics: Metrics) -> list[Lines]:
    text = (
        f"*Still*: the real frame before is {STILL_PSNR:g} dB or nearer to the real frame. *Moving*: all others. "
        f"*Turning*: the view turns by {TURNING_DEGREES:g} degrees a frame or more, where the game tells its angle."
    )
    found = [(kind, values) for kind, values in metrics["motion"].items() if values]
    rows = [(f"{kind} ({percent(values.get('share'))} of frames)", values) for kind, values in found]
    return [[text], _by_picture("frames", rows)]


def _by_picture(head: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> Lines:
    keys = list(dict.fromkeys(key for _, values in rows for key in values if key != "share"))
    cells = [[label, *(number(values.get(key)) for key in keys)] for label, values in rows]
    return table([f"{head}, PSNR in dB", *(PICTURES.get(key) or steps_label(key) for key in keys)], cells)


def _rare(metrics: Metrics) -> list[Lines]:
    rare = metrics["rare"]
    text = (
        "*Unusual*: blocks of 16 by 16 pixels whose colours in the real frame are seldom seen where they stand: "
        f"monsters, blood, flashes; {percent(rare.get('share'))} of all pixels. *Shot*, *hurt* and *kill*: "
        "whole frames at which ammunition falls, health falls, or a kill is counted."
    )
    rows = []
    if rare.get("frames"):
        cells = {name: value for name, value in rare.items() if name not in ("share", "frames")}
        rows.append((f"unusual blocks, in {rare['frames']} frames", cells))
    for event, values in (metrics.get("events") or {}).items():
        cells = {name: value for name, value in values.items() if name != "frames"}
        rows.append((f"{event}, {values['frames']} frames", cells))
    return [[text], _by_picture("where", rows) if rows else []]


OUTCOME_ROWS = {
    "reward_error": "reward, mean absolute error",
    "reward_error_zero": "the same of always answering 0",
    "ends_auc": "the game's end, area under the ROC curve",
    "ends_expected": "ends expected for each that came",
}


def _outcome(metrics: Metrics) -> list[Lines]:
    found = metrics["outcome"]
    text = (
        f"What the model reads from the true latents of {found['frames']} held-out frames with {found['ends']} "
        "ends of a game. A rise of a counter, or an end, is told as a probability: expected in all for each that came, "
        "1 is right."
    )
    rows = []
    for name, value in found.items():
        if name not in ("frames", "ends"):
            variable, _, kind = name.rpartition("_")
            kinds = {
                "error": "mean absolute error",
                "auc": "area under the ROC curve",
                "expected": "rises expected for each",
            }
            rows.append([OUTCOME_ROWS.get(name) or f"{variable}, {kinds.get(kind, kind)}", number(value, 3)])
    return [[text], table(["what", "figure"], rows)]


def _drift(metrics: Metrics) -> list[Lines]:
    drift = metrics["drift"]
    starts = f"{drift['starts']} starts, " if drift.get("starts") else ""
    text = f"{starts}{len(drift['frames'])} frames each, {steps_label(str(drift['steps']))} a frame. {DRIFT_NOTE}"
    compared = drift.get("compared")
    if compared and min(compared) < max(compared):
        text += (
            f" Some recorded episodes end early: the first frame is compared in {compared[0]} plays, the last in "
            f"{compared[-1]}, so later segments are of fewer and of longer episodes."
        )
    rows = []
    for part in drift.get("segments") or []:
        held = part["still_psnr"] if "still_psnr" in part else _mean(drift.get("still_psnr"), part["from"], part["to"])
        row = [f"{part['from']}-{part['to']}", number(part.get("psnr")), number(held), number(part.get("lpips"), 3)]
        row += [number(part.get("sharpness")), number(part.get("real_sharpness"))]
        row += [number(part.get(name), 4) for name in ("unusual", "real_unusual")]
        seen = [part.get(name) for name in ("sights", "real_sights")]
        rows.append([*row, *(MISSING if share is None else percent(share) for share in seen)])
    head = ["frames", "PSNR", "PSNR, start held", "LPIPS", "sharpness", "real sharpness", "unusual", "real unusual"]
    head += ["sights", "real sights"]
    return [[text], table(head, rows) if rows else []]


def _turns(metrics: Metrics) -> list[Lines]:
    text = (
        "In the same free plays, while a key to turn is held and was in the frame before: how often does the picture "
        "turn that way, and how far? The turn is read from real and neural pictures in the same way, as the one that "
        "fits best, so the real ones show how far that reading can be trusted. A model that stands still may make "
        "good single pictures; this tells."
    )
    rows = []
    for span in metrics["turns"]["spans"]:
        row = [f"{span['from']}-{span['to']}", str(span["turns"])]
        row += [percent(span[side]["right_way"]) for side in ("real", "neural")]
        rows.append([*row, *(number(span[side]["degrees"]) for side in ("real", "neural"))])
    head = ["frames", "turns", "right way, real", "right way, neural", "degrees, real", "degrees, neural"]
    return [[text], table(head, rows)]


def _no_action(metrics: Metrics) -> list[Lines]:
    quiet = metrics["no_action"]
    count = len(quiet["frames"])
    bounds = [(part["from"], part["to"]) for part in (metrics.get("drift") or {}).get("segments") or []]
    rows = []
    for begin, end in bounds if bounds and bounds[-1][1] == count else [(1, count)]:
        means = [_mean(quiet.get(name), begin, end) for name in ("psnr", "sharpness", "real_sharpness")]
        rows.append([f"{begin}-{end}", *map(number, means)])
    text = "Free play in which nothing is held, beside the real game played the same way."
    if not quiet.get("psnr"):
        text += " The real game's frames were not at hand for a PSNR."
    return [[text], table(["frames", "PSNR", "sharpness", "real sharpness"], rows)]


def _mean(curve: Sequence[float | None] | None, begin: int, end: int) -> float | None:
    """Mean of a curve from frame ``begin`` to ``end``, which is in; frames count from 1."""
    known = [value for value in (curve or [])[begin - 1 : end] if value is not None]
    return sum(known) / len(known) if known else None


def _collapse(metrics: Metrics) -> list[Lines]:
    collapse = metrics["collapse"]
    real = f"{collapse['real_episodes']} real episodes" if collapse.get("real_episodes") else "real episodes"
    text = (
        f"{collapse['collapsed']} of {collapse['starts']} free plays collapse. The same detector raises a false alarm "
        f"in {percent(collapse['false_alarm_rate'])} of {real}."
    )
    if collapse.get("unlike_at_the_start") is not None:
        text += (
            f" Changes are measured from each play's own second second; in {collapse['unlike_at_the_start']} of"
            f" {collapse['starts']} plays the first seconds already differ from real play, as a blurred picture does."
        )
    first = sorted(frame for frame in collapse.get("first") or [] if frame is not None)
    if first:
        text += f" First frames of the collapses: {', '.join(map(str, first))}."
    if collapse.get("detector"):
        text += f" Detector: {collapse['detector'].rstrip('.')}."
    return [[text]]


def _long(metrics: Metrics) -> list[Lines]:
    parts: list[Lines] = []
    for player, row in metrics["long"].items():
        spans = {name: "frames {}-{}".format(*row[name]) for name in ("early", "late")}
        first = ", ".join(map(str, sorted(frame for frame in row["first"] or [] if frame is not None)))
        fate = f", of which {row['collapsed']} collapse" if row["collapsed"] is not None else ""
        text = (
            f"Under {'random keys' if player == 'random' else f'the agent *{player}*, which sees its frames'}: "
            f"{row['starts']} plays of {row['frames']} frames{fate}{f', at frames {first}' if first else ''}."
        )
        if row.get("lost"):
            text += f" {row['lost']} games were lost in them; the next one starts then, from another recorded moment."
        rows = []
        for look, values in row["looks"].items():
            early, late = values["early"], values["late"]
            change = None if not early or late is None else 100 * (late / early - 1)
            told = MISSING if change is None else f"{change:+.1f} %"
            rows.append([look, number(early, 3), number(late, 3), told])
        parts += [[text], table(["look, mean", *spans.values(), "change"], rows)]
    return [
        [
            "Long plays go on for longer than a real game; nothing but the picture itself tells how they "
            "look. Brightness, contrast and colourfulness are shares of full scale, sharpness and motion grey levels, "
            "*unusual* the share of the picture that is seldom seen where it stands, *sights* the share of frames with "
            "something unusual in view."
        ],
        *parts,
    ]


def _actions(metrics: Metrics) -> list[Lines]:
    parts: list[Lines] = []
    found, shift = metrics.get("action_f1"), metrics.get("action_shift")
    if found:
        real, neural = found.get("real") or {}, found.get("neural") or {}
        names = [name for name in dict.fromkeys([*real, *neural]) if name != "mean"]
        rows = [[name, number(real.get(name), 3), number(neural.get(name), 3)] for name in (*names, "mean")]
        text = "An inverse-dynamics model that learned from real frames alone reads from frames what was held. What it "
        parts.append([text + "reads from real frames is the best that can be asked of neural ones."])
        parts.append(table(["F1", "real frames", "neural frames"], rows))
    if shift:
        peaks = {side: shift.get(f"{side}_peak") for side in ("real", "neural")}
        labels = {side: MISSING if peak is None else f"{peak:+d}" if peak else "0" for side, peak in peaks.items()}
        verdict = "the same" if peaks["real"] == peaks["neural"] else "**not the same**"
        text = (
            "Shift test: mean F1 of the actions read against those held some frames later. A peak at 0 says that an "
            "action shows in the very next frame, at -1 that it shows one frame late. The peak is at "
            f"{labels['real']} in the real game and at {labels['neural']} in the "
            f"neural game: {verdict}."
        )
        offsets = [f"{offset:+d}" if offset else "0" for offset in shift["offsets"]]
        rows = []
        for side, label in labels.items():
            values = shift.get(side) or [None] * len(offsets)
            rows.append([f"{side} frames", *(number(value, 3) for value in values), label])
        parts += [[text], table(["frames apart", *offsets, "peak"], rows)]
    return parts


def _agent(metrics: Metrics) -> list[Lines]:
    agent = metrics["agent"]
    text = (
        f"The same frozen agent ({agent.get('agent', 'unnamed')}) plays {agent.get('seeds', MISSING)} games of "
        f"{agent.get('frames', MISSING)} frames in the real and in the neural game. Both are read from their "
        "frames in the same way; the real game's own counters show how far that reading "
        "can be trusted. Everything is counted up to the end of the agent's life or of the game."
    )
    sides = [side for side in AGENT_SIDES if agent.get(side)]
    names = dict.fromkeys([*AGENT_ROWS, *(name for side in sides for name in agent[side])])
    rows = []
    for name in names:
        found = [agent[side].get(name) for side in sides]
        if any(isinstance(figure, dict) for figure in found):
            label = AGENT_ROWS.get(name) or name.replace("_", " ")
            cells = [
                with_interval(figure, "mean", difference=side == "difference")
                for side, figure in zip(sides, found, strict=True)
            ]
            rows.append([label, *cells])
    return [[text], table(["a game", *(AGENT_SIDES[side] for side in sides)], rows)]


def _frechet(metrics: Metrics) -> list[Lines]:
    found = metrics["frechet"]
    is_fvd = found["name"] == "fvd"
    what = f"`{found['name']}`: the project's own clip features. **This is not FVD** and is not to be set beside one."
    if is_fvd:
        what = "FVD, with the I3D network that was given."
    text = f"{what} Few clips make it larger than it is: read it beside one half of the real clips against the other, "
    text += "which are fewer still."
    rows = []
    for length, paper in PAPER_FVD.items():
        clips = found.get(f"clips_{length}")
        counts = f"{clips['neural']} against {clips['real']}" if clips else MISSING
        row = [length, counts, number(found.get(length)), number(found.get(f"real_halves_{length}"))]
        rows.append([*row, paper if is_fvd else MISSING])
    head = ["frames a clip", "clips", "neural against real", "real against real", "paper's FVD"]
    return [[text], table(head, rows)]


def _return(metrics: Metrics) -> list[Lines]:
    text = (
        "Does what was left come back? Each picture is compared with the real game's last frame under the same "
        "actions: the neural game's last frame; the start frame, which shows how truly the real game itself returns; "
        "and a frame that does not belong there."
    )
    rows = []
    for name, found in metrics["return"].items():
        if found:
            frames = MISSING if found.get("frames") is None else f"{found['frames']:g}"
            row = [RETURNS.get(name) or name.replace("_", " "), str(found.get("starts", MISSING)), frames]
            elsewhere = found.get("psnr_away", found.get("psnr_copy"))
            row += [with_interval(found, "psnr_neural"), number(found.get("psnr_real")), number(elsewhere)]
            rows.append(row)
    return [[text], table(["path", "starts", "frames", "neural, PSNR", "start frame, PSNR", "elsewhere, PSNR"], rows)]


def _raters(metrics: Metrics) -> list[Lines]:
    rows = []
    for seconds, found in metrics["raters"].items():
        interval = f"{percent(found['low'])} to {percent(found['high'])}"
        paper = PAPER_RATERS.get(seconds, MISSING)
        rows.append([f"{seconds} s", percent(found["rate"]), interval, str(found["n"]), paper])
    text = "People see two clips, real and neural, and pick the one they take for the real game; guessing gives 50 %."
    return [[text], table(["clips", "picked the real game", "95 % interval", "answers", "paper"], rows)]


SECTIONS = (
    Section("Next frame from real frames", ("teacher_forced",), _teacher_forced, (plots.STEPS,)),
    Section("Regions of the picture", ("regions",), _regions),
    Section("Still, moving and turning", ("motion",), _motion),
    Section("What is rare", ("rare",), _rare),
    Section("Free play", ("drift",), _drift, (plots.DRIFT, plots.SHARPNESS)),
    Section("Turns in free play", ("turns",), _turns),
    Section("Free play without a key", ("no_action",), _no_action),
    Section("Collapse", ("collapse",), _collapse),
    Section("Long play", ("long",), _long),
    Section("Actions", ("actions", "action_f1", "action_shift"), _actions, (plots.ACTION_F1, plots.ACTION_SHIFT)),
    Section("An agent in the loop", ("agent",), _agent),
    Section("Fréchet distance of clips", ("frechet",), _frechet),
    Section("Coming back", ("return",), _return),
    Section("Outcomes", ("outcome",), _outcome),
    Section("Human raters", ("raters",), _raters),
)
