"""The documentation tells the figures that were measured: the same in the report, the README and the model card."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from gamengen.checkpoints import DEFAULT_CHECKPOINT, SHIPPED, load_checkpoint, read_config
from gamengen.latents import weights_hash
from gamengen.model_card import write_card

ROOT = Path(__file__).parents[1]
WEIGHTS = SHIPPED / DEFAULT_CHECKPOINT


@pytest.fixture(scope="module")
def make_report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_report", ROOT / "docs" / "make_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_same_figures_everywhere(make_report: ModuleType) -> None:
    metrics, bench = make_report.read_metrics(), make_report.newest_benchmark()
    assert json.loads((WEIGHTS / "metrics.json").read_text()) == metrics
    assert (WEIGHTS / "README.md").read_text() == write_card(read_config(WEIGHTS), metrics)
    assert make_report.read_block(ROOT / "README.md") == make_report.readme_figures(metrics, bench).strip()
    assert make_report.read_block(ROOT / "docs" / "paper.md") == make_report.paper_figures(metrics, bench).strip()
    for steps, figure in metrics["teacher_forced"].items():
        assert f"{figure['psnr']:.2f}" in (ROOT / "docs" / "report" / "report.md").read_text(), steps


def test_the_report_is_of_the_shipped_weights(make_report: ModuleType) -> None:
    model = make_report.read_metrics()["model"]
    checkpoint = load_checkpoint()
    assert model == [weights_hash(checkpoint.autoencoder), weights_hash(checkpoint.denoiser)]


def test_what_the_pages_show_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} shows {target}"


def test_the_floors_of_the_shipped_checkpoint(make_report: ModuleType) -> None:
    """What it was measured to reach; the command that measures it is ``gamengen evaluate``."""
    metrics, bench = make_report.read_metrics(), make_report.newest_benchmark()
    own = str(metrics["drift"]["steps"])
    forced, copied = metrics["teacher_forced"][own], metrics["copy_last"]
    assert metrics["autoencoder"]["psnr"] >= 31
    assert forced["psnr"] >= 29.4
    assert forced["pooled_psnr"] >= copied["pooled_psnr"] + 1.5
    assert metrics["motion"]["moving"][own] >= metrics["motion"]["moving"]["copy_last"] + 1.5
    fps = {steps: row["fps"] for steps, row in make_report.quickest(bench).items()}
    assert fps[own] >= 35
    assert fps["4"] >= 20
