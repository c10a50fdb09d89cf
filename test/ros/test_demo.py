"""What the demo has found out is told and written before its last stages, which may fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ep2ploc_core.errors import Ep2plocError
from ep2ploc_core.evaluation.metrics import summarize
from ep2ploc_ros import demo
from ep2ploc_ros.demo_replay import ReplayedImage, ReplayResult

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))  # where they are run, they are beside each other

from evidence_tables import demo_tables

ROW = {"query": 0, "status": "ok", "translation_error_m": 0.1, "rotation_error_deg": 0.2}


@pytest.fixture
def last_stages(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All that comes before the nodes is done at once."""

    def evaluated(*_: Any) -> dict[str, Any]:
        return {"adapted": {"start_results": [ROW], "results": [ROW], "summary": summarize([ROW])}}

    for name, given in {
        "KittiDrive": lambda path: SimpleNamespace(path=path),
        "split_drive": lambda drive: demo.Split([0], []),
        "write_queries": lambda *_: SimpleNamespace(map_from_camera=np.eye(4)[None]),
        "_build": lambda *_: SimpleNamespace(path=Path("map")),
        "PointMap": SimpleNamespace(open=lambda path: SimpleNamespace(path=path)),
        "run_everywhere": lambda *_: None,
        "_evaluate": evaluated,
        "_evaluate_without_guess": evaluated,
        "distance_to_mapping": lambda *_: np.zeros(1),
        "_write_bag": lambda *_: Path("bag"),
    }.items():
        monkeypatch.setattr(demo, name, given)
    return monkeypatch


def fail(*_: Any, **__: Any) -> None:
    raise Ep2plocError("it does not work")


def test_tables_and_report_are_there_when_the_nodes_fail(last_stages: pytest.MonkeyPatch, tmp_path: Path) -> None:
    last_stages.setattr(demo, "replay", fail)
    with pytest.raises(Ep2plocError):
        demo.run_demo(tmp_path, tmp_path / "out", 1)
    assert "adapted" in (tmp_path / "out" / "tables.md").read_text()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["tables"] and "ros" not in report


def test_the_report_of_the_nodes_is_there_when_the_pictures_fail(
    last_stages: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = [ReplayedImage(1, truth=np.eye(4)), ReplayedImage(2, truth=np.eye(4), worked_on=True)]
    last_stages.setattr(demo, "replay", lambda *_, **__: ReplayResult(images, Path("bag")))
    last_stages.setattr(demo, "draw_results", fail)
    with pytest.raises(Ep2plocError):
        demo.run_demo(tmp_path, tmp_path / "out", 1)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["ros"]["accuracy"]["dropped"], report["ros"]["accuracy"]["refused"]) == (1, 1)
    last_stages.setattr(demo, "draw_results", lambda *_: None)
    demo.run_demo(tmp_path, tmp_path / "out", 1)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "pictures" in report["seconds"]
    tables = demo_tables("street", report)  # as the README has them
    assert "| adapted | 1 | - | - | 1 | 100% | 0.10 |" in tables["street_answers"]
    assert "pictures" in tables["street_minutes"]
    assert "| 2 | - | 0 | 1 | 1 |" in tables["street_nodes"]  # images, a second, answered, refused, dropped
