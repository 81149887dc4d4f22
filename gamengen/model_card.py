"""The model card: what a checkpoint is, how good, and how to use it."""

from __future__ import annotations

from typing import Any

from gamengen.checkpoints import CheckpointConfig
from gamengen.evaluation.tables import steps_label


def write_card(config: CheckpointConfig, metrics: dict[str, Any]) -> str:
    """The checkpoint's ``README.md``, with the figures of ``metrics``."""
    minutes = ", ".join(f"{name} {value} min" for name, value in config.training.get("minutes", {}).items())
    keys = ", ".join(config.action_set.names)
    notes = f"\n- {config.training['notes']}" if config.training.get("notes") else ""
    return f"""# {config.name}

A neural copy of `{config.spec}`, {config.width}x{config.height} at {config.fps:.4g} frames a second, preset
`{config.preset}`. It plays with nothing behind it but the model (give this folder's path where it is not shipped):

    gamengen play --checkpoint {config.name}

- Actions: {keys}
- Context: {config.denoiser.context} frames; sampling steps: {config.sampler.steps}
- Recorded: {config.data.get("frames", 0):,} frames of {config.data.get("episodes", 0)} episodes played by
  {", ".join(config.data.get("agents", []))} agents; a tenth was held out of training
- Trained on: {config.training.get("device", "")}
- Time: {minutes}
- Started from: {config.training.get("init") or "fresh weights"}{notes}

## Fidelity

On {metrics.get("episodes", 0)} episodes that were held out of training; PSNR is against the real frame, its
interval 95 % by episode. Where nothing moves, copying the last frame is perfect, so the mean over frames flatters it;
the PSNR of the mean squared error does not.

{fidelity_table(metrics)}

{_drift_line(metrics)}

{config.notice}
"""


def fidelity_table(metrics: dict[str, Any]) -> str:
    """The figures of ``metrics.json`` as a Markdown table."""
    rows = [("autoencoder ceiling", metrics["autoencoder"]), ("copy last frame", metrics["copy_last"])]
    rows += [(f"teacher-forced, {steps} steps", figure) for steps, figure in metrics["teacher_forced"].items()]
    lines = ["| measure | PSNR, dB, mean over frames | PSNR, dB, of the mean error |", "| --- | --- | --- |"]
    for name, figure in rows:
        interval = f" ± {figure['ci95']:.2f}" if figure["ci95"] is not None else ""
        label = name.replace("1 steps", "1 step")
        lines.append(f"| {label} | {figure['psnr']:.2f}{interval} | {figure['pooled_psnr']:.2f} |")
    return "\n".join(lines)


def _drift_line(metrics: dict[str, Any]) -> str:
    drift = metrics["drift"]
    if drift is None:
        return ""
    known = len(drift["frames"])
    marks = [frame for frame in (1, 16, 64, 256, 512) if frame <= known and drift["psnr"][frame - 1] is not None]
    points = ", ".join(f"{drift['psnr'][frame - 1]:.2f} dB after {frame}" for frame in marks)
    return f"Free play under recorded actions ({steps_label(str(drift['steps']))} a frame): {points} frames."
