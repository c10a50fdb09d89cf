"""A recording for the rerun viewer holds what was logged, at the stamps of the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ep2ploc_core.camera import Camera
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_core.visualization.rerun_log import TIMELINE, RerunLog

dataframe = pytest.importorskip("rerun.dataframe", reason="rerun-sdk is not installed")
ORIGIN = np.array([458_000.0, 5_428_000.0, 110.0])  # UTM: too large for single precision
STAMPS = [1_317_042_145_000_000_001 + k * 100_000_000 for k in range(3)]


def _pose(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = ORIGIN + [x, 0, 0]
    return pose


@pytest.fixture
def recording(tmp_path: Path) -> Any:
    """Two poses and a refusal, in a map of 100 points."""
    numbers = np.random.default_rng(0)
    points = MapPoints(
        numbers.uniform(-9, 9, (100, 3)).astype(np.float32),
        numbers.uniform(0, 1, (100, 6)).astype(np.float32),
        np.zeros((100, 2), np.uint16),
    )
    image = numbers.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    camera = Camera(64, 48, 50, 50, 32, 24, "plumb_bob", (0.1, 0, 0, 0, 0))
    with RerunLog(tmp_path / "new" / "way.rrd", ORIGIN, 0.2) as log:
        log.log_map(points)
        log.log_truth(np.stack([_pose(x) for x in (0, 1, 2)]))
        for stamp in STAMPS:
            log.log_image(stamp, image, camera)
        log.log_overlay(STAMPS[0], image)
        log.log_pose(STAMPS[0], _pose(0.25), np.diag([0.04, 0.01, 0.01, 1e-4, 1e-4, 1e-4]), _pose(0), "0.25 m off")
        log.log_refusal(STAMPS[1], "few matches", _pose(1))
        log.log_pose(STAMPS[2], _pose(2))
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["way.rrd"]
    return dataframe.load_recording(tmp_path / "new" / "way.rrd")


def _rows(recording: Any, entity: str, component: str) -> list[tuple[int, Any]]:
    """What an entity's component was, with the stamps (ns) at which it was logged."""
    column = f"{entity}:{component}"
    table = recording.view(index=TIMELINE, contents=entity).select().read_all()
    stamps = table.column(TIMELINE).cast("int64").to_pylist()
    values = table.column(column).to_pylist()
    return [(stamp, value) for stamp, value in zip(stamps, values, strict=True) if value]


def test_recording_holds_everything(recording: Any) -> None:
    entities = {column.entity_path for column in recording.schema().component_columns()}
    names = "map truth camera estimates errors uncertainty refused"
    assert {f"/world/{name}" for name in names.split()} | {"/image", "/overlay", "/log"} <= entities


def test_poses_keep_stamp_and_precision_far_from_the_origin(recording: Any) -> None:
    places = _rows(recording, "/world/estimates", "Points3D:positions")
    assert [stamp for stamp, _ in places] == [STAMPS[0], STAMPS[2]]
    assert np.allclose([value[0] for _, value in places], [[0.25, 0, 0], [2, 0, 0]])
    refused = _rows(recording, "/world/refused", "Points3D:positions")
    assert [stamp for stamp, _ in refused] == [STAMPS[1]]
    assert np.allclose(refused[0][1], [[1, 0, 0]])


def test_ellipsoid_is_that_of_the_covariance(recording: Any) -> None:
    ((_, sizes),) = _rows(recording, "/world/uncertainty", "Ellipsoids3D:half_sizes")
    assert np.allclose(np.sort(sizes[0]), np.sqrt(6.2514) * np.array([0.1, 0.1, 0.2]), rtol=1e-3)


def test_log_says_why(recording: Any) -> None:
    assert [value[0] for _, value in _rows(recording, "/log", "TextLog:text")] == ["0.25 m off", "few matches", "pose"]


def test_nothing_is_left_of_a_recording_that_was_broken_off(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), RerunLog(tmp_path / "way.rrd", ORIGIN, 0.2):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
