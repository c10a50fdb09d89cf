"""`ep2ploc localize --refine align --rerun` shows a refinement step by step, in the frames that it says. The head that
aligns is untrained: what it does to the pose is of no interest here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ep2ploc_core import cli, se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.kitti import KittiDrive, read_camera_file, read_image
from ep2ploc_core.datasets.queries import write_queries
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.errors import InputError
from ep2ploc_core.localization import Localization
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.build import accumulate
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.point_map import MapInfo, PointMap, write_map
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.model.checkpoint import load_network, save_network
from ep2ploc_core.options import parse_pose
from ep2ploc_core.visualization import rerun_log
from ep2ploc_core.visualization.alignment_log import TIMELINE

ORIGIN = np.array([458_000.0, 5_428_000.0, 110.0])  # UTM: too large for single precision
IMAGE, CAMERA = "queries/images/0000000004.jpg", "queries/camera.yaml"
VOXEL = 0.1  # the network's unit is half a metre


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a map that lies far from its origin and whose unit is no metre, a network, and a query."""
    path = tmp_path_factory.mktemp("aligned")
    torch.manual_seed(0)
    save_network(load_network("edge").with_alignment(16), path / "network.safetensors")
    drive = KittiDrive(write_synthetic_drive(path, frames=9, seed=2))
    points = accumulate(KittiSource(drive.path).scans(), VOXEL)
    point_map = write_map(path / "map", points, MapInfo(voxel_size=VOXEL, origin=ORIGIN.tolist()))
    encode_map(point_map, load_network(path / "network.safetensors"))
    write_queries(drive, [4], path / "queries")
    prior = drive.map_from_camera(drive.frame(4))
    prior[:3, 3] += ORIGIN
    np.save(path / "prior.npy", prior)
    return path


@pytest.fixture(scope="module")
def row_and_recording(place: Path) -> tuple[dict[str, Any], Any]:
    """What the command printed, and the recording that it wrote."""
    dataframe = pytest.importorskip("rerun.dataframe", reason="rerun-sdk is not installed")
    arguments = [
        "localize", place / "map", place / IMAGE, "--camera", place / CAMERA, "--prior", _numbers(place),
        "--checkpoint", place / "network.safetensors", "--refine", "align", "--rerun", place / "new/steps.rrd",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "ep2ploc_core.cli", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), dataframe.load_recording(place / "new/steps.rrd")


def _numbers(place: Path) -> str:
    """The prior as the command line takes it."""
    prior = np.load(place / "prior.npy")
    return ",".join(f"{number:.9f}" for number in (*prior[:3, 3], *se3.to_quaternion(prior)))


def _rows(recording: Any, entity: str, component: str) -> dict[int, Any]:
    """What an entity's component was, by the step at which it was logged."""
    table = recording.view(index=TIMELINE, contents=entity).select().read_all()
    steps, values = (table.column(name).to_pylist() for name in (TIMELINE, f"{entity}:{component}"))
    return {step: value for step, value in zip(steps, values, strict=True) if value}


def _localized(place: Path, trace: bool) -> Localization:
    localizer = Localizer(
        load_network(place / "network.safetensors"),
        PointMap.open(place / "map"),
        settings=LocalizerSettings(refine="align", trace=trace),
    )
    # Exactly what the command is given: a digit more or less may make it a step more or less.
    picture = read_image(place / IMAGE)
    lens = read_camera_file(place / CAMERA, picture.shape[1], picture.shape[0])
    return localizer.localize(picture, lens, cli._matrix(parse_pose(_numbers(place))))


def test_each_step_of_the_alignment_is_one_of_the_timeline(row_and_recording: tuple[dict[str, Any], Any]) -> None:
    row, recording = row_and_recording
    steps = list(range(row["refinement"]["iterations"] + 1 + row["sharpening"]["iterations"] + 1))
    assert len(steps) > 5
    for entity, component in (
        ("/world/camera", "Transform3D:translation"),
        ("/world/points", "Points3D:positions"),
        ("/image/points", "Points2D:positions"),
    ):
        assert list(_rows(recording, entity, component)) == steps
    way = _rows(recording, "/world/path", "LineStrips3D:strips")
    assert [len(strip) for (strip,) in way.values()] == [step + 1 for step in steps]
    places = [place for (place,) in _rows(recording, "/world/estimates", "Points3D:positions").values()]
    assert np.allclose(way[steps[-1]][0], places) and len(np.unique(places, axis=0)) > 2


def test_points_lie_in_the_image_where_the_camera_of_the_step_sees_them(
    place: Path, row_and_recording: tuple[dict[str, Any], Any]
) -> None:
    """Which fails where frames, units, sizes of images or conventions for pixels are mixed up."""
    _, recording = row_and_recording
    lens: Camera = KittiDrive(next(place.glob("*/*_sync"))).camera
    centre = _rows(recording, "/world/camera", "Transform3D:translation")
    turn = _rows(recording, "/world/camera", "Transform3D:mat3x3")
    points = _rows(recording, "/world/points", "Points3D:positions")
    shown = _rows(recording, "/image/points", "Points2D:positions")
    for step, pixels in shown.items():
        map_from_camera = np.array(turn[step][0]).reshape(3, 3).T  # rerun counts matrices down their columns
        expected = lens.project((np.array(points[step]) - centre[step][0]) @ map_from_camera)
        assert len(pixels) > 50
        assert np.abs(np.array(pixels) - 0.5 - expected).max() < 0.1  # rerun counts pixels from the corner


def test_log_names_the_level_of_each_step_and_what_came_of_it(
    place: Path, row_and_recording: tuple[dict[str, Any], Any]
) -> None:
    row, recording = row_and_recording
    aligned, sharpened = _localized(place, trace=True).refinements
    assert aligned.trace is not None and sharpened.trace is not None
    levels = aligned.trace.level_of
    assert set(levels) == {0, 1} and (np.diff(levels) >= 0).all()
    expected = [f"level {level + 1} of 2, {4 >> level} pixels a cell" for level in levels]
    expected += ["sharpened, 2 pixels a cell"] * len(sharpened.poses)
    said = [text for (text,) in _rows(recording, "/log", "TextLog:text").values()]
    for words, text in zip(expected, said, strict=True):
        assert words in text
    outcomes = _rows(recording, "/log/outcome", "TextLog:text")
    assert list(outcomes) == [len(levels) - 1, len(expected) - 1]
    for (outcome,), refinement, name in zip(
        outcomes.values(), (aligned, sharpened), ("refinement", "sharpening"), strict=True
    ):
        assert outcome == str(refinement)
        assert outcome.startswith("given up: " if row[name]["given_up"] else "taken after ")


def test_confidence_of_every_level_is_shown(row_and_recording: tuple[dict[str, Any], Any]) -> None:
    _, recording = row_and_recording
    table = recording.view(index=TIMELINE, contents="/confidence/**").select_static().read_all()
    sizes = [table.column(f"/confidence/{level}:Image:format")[0].as_py()[0] for level in range(2)]
    assert [size["width"] for size in sizes] == [128, 256]  # of an image 512 wide
    shades = np.array(table.column("/confidence/1:Image:buffer")[0].as_py()[0])
    assert shades.min() < shades.max()


def test_a_pose_is_the_same_whether_it_is_looked_at_or_not(place: Path) -> None:
    plain, traced = _localized(place, trace=False), _localized(place, trace=True)
    assert plain.refinement is not None and plain.refinement.trace is None
    assert plain.candidate is not None and traced.candidate is not None
    np.testing.assert_array_equal(plain.candidate, traced.candidate)


def test_without_rerun_it_is_told_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerun_log, "rerun_is_installed", lambda: False)
    nowhere = Path("no")
    with pytest.raises(InputError, match="pip install 'rerun-sdk"):
        cli.localize(nowhere, nowhere, nowhere, refine="align", rerun=nowhere)
