"""The documentation tells the figures that were measured: the same in the report, the README and the model card."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gamengen.checkpoints import SHIPPED, load_checkpoint, read_config, shipped_checkpoints
from gamengen.evaluation.subject import Subject
from gamengen.model_card import write_card

ROOT = Path(__file__).parents[1]
FLOORS = {  # PSNR in dB; frames a second at its own number of steps
    "defend_the_center": {"ceiling": 31, "psnr": 29.4, "fps": 30},
    "deathmatch": {"ceiling": 29.5, "psnr": 23, "fps": 20},
}


@pytest.fixture(scope="module")
def make_report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_report", ROOT / "docs" / "make_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", shipped_checkpoints())
def test_the_same_figures_everywhere(name: str, make_report: ModuleType) -> None:
    metrics, weights = make_report.read_metrics(name), SHIPPED / name
    assert json.loads((weights / "metrics.json").read_text()) == metrics
    assert (weights / "README.md").read_text() == write_card(read_config(weights), metrics)
    report = (ROOT / "docs" / "report" / name / "report.md").read_text()
    for steps, figure in metrics["teacher_forced"].items():
        assert f"{figure['psnr']:.2f}" in report, steps


def test_the_tables_of_the_pages(make_report: ModuleType) -> None:
    assert make_report.read_block(ROOT / "README.md") == make_report.readme_figures().strip()
    assert make_report.read_block(ROOT / "docs" / "paper.md") == make_report.paper_figures().strip()


@pytest.mark.parametrize("name", shipped_checkpoints())
def test_the_report_is_of_the_shipped_weights(name: str, make_report: ModuleType) -> None:
    own = Subject(load_checkpoint(name), torch.device("cpu")).weights()
    assert make_report.read_metrics(name)["model"] == own


def test_what_the_pages_show_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} shows {target}"


@pytest.mark.parametrize("name", shipped_checkpoints())
def test_the_floors_of_a_shipped_checkpoint(name: str, make_report: ModuleType) -> None:
    """What it was measured to reach; the command that measures it is ``gamengen evaluate``."""
    floor = FLOORS[name]
    metrics, bench = make_report.read_metrics(name), make_report.newest_benchmark(name)
    own = str(metrics["drift"]["steps"])
    forced, copied = metrics["teacher_forced"][own], metrics["copy_last"]
    assert metrics["autoencoder"]["psnr"] >= floor["ceiling"]
    assert forced["psnr"] >= floor["psnr"]
    assert forced["pooled_psnr"] >= copied["pooled_psnr"] + 1.5
    assert metrics["motion"]["moving"][own] >= metrics["motion"]["moving"]["copy_last"] + 1.5
    fps = {steps: row["fps"] for steps, row in make_report.quickest(bench).items()}
    assert fps[own] >= floor["fps"]
    assert fps["4"] >= 20
