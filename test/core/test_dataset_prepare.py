"""From official layouts to maps and queries: points land on the pixels that show them, what is held out is out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from official_layouts import (
    AREA,
    FLAG,
    SCENE,
    STREET,
    WAITING,
    write_kitti,
    write_s3dis,
    write_scene,
    write_stanford_images,
)
from typer.testing import CliRunner

from ep2ploc_core.cli import app
from ep2ploc_core.datasets.hold_out import SCAN_MARGIN
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.stanford_cameras import FRAMES_PER_LOCATION
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.map.sources import mapping_images, reopen_source
from ep2ploc_core.training import scenes
from ep2ploc_core.training.config import load_config
from ep2ploc_core.training.scenes import load_scenes, map_scene


def prepare(kind: str, source: Path, out: Path, *options: str) -> str:
    """Runs the command; returns what it says."""
    result = CliRunner().invoke(app, ["dataset", "prepare", kind, str(source), "--out", str(out), *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A download of two sequences, and what it is prepared into."""
    path = tmp_path_factory.mktemp("kitti")
    write_kitti(path / "dataset", "03")
    write_kitti(path / "dataset", "10")
    prepare("kitti", path, path / "out", "--sequences", "10,03", "--queries", "4")
    return path, path / "out"


def test_kitti_points_land_on_the_pixels_that_show_them(kitti: tuple[Path, Path]) -> None:
    point_map, queries = PointMap.open(kitti[1] / "10/map"), Queries(kitti[1] / "10/queries")
    assert len(queries) == 4 and point_map.voxel_size == 0.2
    for off in STREET.misses(point_map, queries, 12.0):
        assert len(off) > 2000 and np.median(off) < 0.1 and (off < 0.4).mean() > 0.97


def test_kitti_scans_around_queries_and_while_waiting_are_not_in_the_map(kitti: tuple[Path, Path]) -> None:
    point_map, queries = PointMap.open(kitti[1] / "03/map"), Queries(kitti[1] / "03/queries")
    assert queries.frames is not None
    kept = np.ones(100, bool)
    for frame in queries.frames:
        kept[max(frame - SCAN_MARGIN, 0) : frame + SCAN_MARGIN + 1] = False
    waiting = [frame for frame in queries.frames if frame in WAITING]
    assert waiting, "a query is among the frames of the waiting car"
    kept[WAITING.start - SCAN_MARGIN : WAITING.stop + SCAN_MARGIN] = False
    points = point_map.all_points()
    seen_flags = points.seen[points.xyz[:, 2] > FLAG - 1]  # each scan alone has its own point up there
    np.testing.assert_array_equal(np.unique(seen_flags), np.flatnonzero(kept))
    assert np.isin(points.seen, np.flatnonzero(kept)).all()
    images = [image.frame for image in mapping_images(reopen_source(point_map.info.source))]
    assert not {*images} & {*queries.frames.tolist(), *WAITING} and len(images) > 50
    gaps = np.diff(queries.frames)
    assert (gaps >= 20).all()


def test_kitti_split_and_next_commands(kitti: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = kitti
    monkeypatch.setattr(scenes, "HELD_BYTES", 10)  # so that the images of such a scene are read when asked for
    split = yaml.safe_load((out / "split.yaml").read_text())
    assert (split["train"], split["test"]) == (["03"], ["10"])
    config = load_config(out / "train.yaml", [])
    assert config.maps == [str((out / "03/map").resolve())]
    (scene,) = load_scenes(config.drives, config.pairs, config.pair_ranges, maps=config.maps)
    assert isinstance(scene.images, scenes.StoredImages)
    assert len(scene.images) == len(scene.cameras) and scene.images[0].shape == (120, 320, 3)
    assert len(scene.images[3:5]) == 2 and np.array_equal(scene.images[3:5][1], scene.images[4])
    says = prepare("kitti", source, out, "--sequences", "10,03", "--queries", "4")
    for command in (
        f"ep2ploc train --site {out}/10/map",
        f"ep2ploc evaluate {out}/10/map {out}/10/queries --repeats 3",
        f"ep2ploc train {out}/train.yaml",
    ):
        assert command in says
    assert all(CliRunner().invoke(app, [*words, "--help"]).exit_code == 0 for words in (["train"], ["evaluate"]))


def test_what_is_there_is_kept_and_what_differs_refused(kitti: tuple[Path, Path]) -> None:
    source, out = kitti
    adapted = out / "10/map/checkpoint.safetensors"
    adapted.write_bytes(b"learned for an hour")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file() and file.suffix != ".yaml"}
    shutil.rmtree(out / "03/map")  # as if it had not come so far
    prepare("kitti", source, out, "--sequences", "03,10", "--queries", "4")
    assert adapted.read_bytes() == b"learned for an hour"
    for file, time in before.items():
        assert file.stat().st_mtime_ns == time or out / "03/map" in file.parents
    assert (out / "03/map/map.yaml").is_file()
    with pytest.raises(InputError, match="holds other queries"):
        prepare("kitti", source, out, "--sequences", "10", "--queries", "3")
    with pytest.raises(InputError, match="with another voxel"):
        prepare("kitti", source, out, "--sequences", "10", "--queries", "4", "--voxel", "0.3")
    with pytest.raises(InputError, match="holds the prepared data set 'kitti'"):
        write_scene(source / "scenes/chess")
        prepare("7scenes", source / "scenes", out, "--scenes", "chess")
    assert adapted.exists()


def test_seven_scenes_maps_training_and_asks_test_sequences(tmp_path: Path) -> None:
    write_scene(tmp_path / "in/chess")
    out = tmp_path / "out"
    assert "chess: " in prepare("7scenes", tmp_path / "in", out, "--scenes", "chess", "--queries", "4")
    point_map, queries = PointMap.open(out / "chess/map"), Queries(out / "chess/queries")
    assert queries.frames is not None and queries.camera.fx == 525 and point_map.voxel_size == 0.05
    assert np.unique(queries.frames // 1000).tolist() == [2] and len(queries) == 4
    assert np.unique(point_map.all_points().seen // 1000).tolist() == [1, 3]
    images = mapping_images(reopen_source(point_map.info.source))
    assert {image.frame // 1000 for image in images} == {1, 3} and len(images) == 10
    for off in SCENE.misses(point_map, queries, 5.0):
        assert len(off) > 500 and np.median(off) < 0.04 and (off < 0.15).mean() > 0.97
    split = yaml.safe_load((out / "split.yaml").read_text())
    assert split["train"] == split["test"] == ["chess"]


def check_area(out: Path, queries_at_least: int = 6) -> None:
    """Points on their pixels, no image of a query's location left to learn from, no hole for images of no scan."""
    point_map, queries = PointMap.open(out / "map"), Queries(out / "queries")
    assert queries.frames is not None and len(queries) >= queries_at_least
    for off in AREA.misses(point_map, queries, 6.0):
        assert len(off) > 400 and np.median(off) < 0.06 and (off < 0.25).mean() > 0.95
    scene = map_scene(point_map)
    assert scene.frames is not None
    asked = {int(frame) // FRAMES_PER_LOCATION for frame in queries.frames}
    assert not asked & {int(frame) // FRAMES_PER_LOCATION for frame in scene.frames} and len(scene.frames) >= 24
    assert scene.points.seen.max() < scene.frames.min() - 100


def test_stanford_points_land_on_the_pixels_that_show_them(tmp_path: Path) -> None:
    write_stanford_images(tmp_path / "area_1", ["office_1", "hallway_1"], np.eye(4))
    write_s3dis(tmp_path / "Stanford3dDataset_v1.2/Area_1")
    hallway = tmp_path / "Stanford3dDataset_v1.2/Area_1/hallway_1/hallway_1.txt"
    rows = hallway.read_text().splitlines()
    rows[7] = "1.0 2.0 3.0 185\x10187 182"  # as in Area_5/hallway_6
    rows[9] = "19.302 -9.1\x100 1.785 146 137 106"  # as in Area_3/hallway_2
    (tmp_path / "Stanford3dDataset_v1.2/Area_1/hallway_1/copy_Hallway_1.txt").write_text("\n".join(rows))
    hallway.unlink()
    says = prepare("2d3ds", tmp_path, tmp_path / "out", "--areas", "1")
    assert "left out" not in says and "turned" not in says
    check_area(tmp_path / "out/area_1")
    focal = Queries(tmp_path / "out/area_1/queries").camera.fx
    assert focal == pytest.approx(120)  # images of 100 and 120 pixels, those of 160 are narrower
    split = yaml.safe_load((tmp_path / "out/split.yaml").read_text())
    assert (split["train"], split["test"]) == (["area_1"], [])


def test_rooms_of_the_aligned_version_are_turned_back_and_area_5b_is_joined_to_5a(tmp_path: Path) -> None:
    # A place (x, y) of S3DIS's Area_5 has these coordinates in area_5b: the other way round than in the code.
    own_from_world = np.array([[0, -1, 0, 6.22617759], [1, 0, 0, 4.09703582], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_stanford_images(tmp_path / "area_5a", ["office_1"], np.eye(4))
    write_stanford_images(tmp_path / "area_5b", ["hallway_1"], own_from_world)
    aligned = tmp_path / "Stanford3dDataset_v1.2_Aligned_Version/Area_5"
    write_s3dis(aligned, turns={"office_1": 90, "hallway_1": 180})
    says = prepare("2d3ds", tmp_path, tmp_path / "out", "--areas", "5")
    assert "rooms turned back by depth images" in says
    turns = PointMap.open(tmp_path / "out/area_5/map").info.source["turns"]
    assert (turns["office_1"][0], turns["hallway_1"][0]) == (270, 180)
    check_area(tmp_path / "out/area_5")
    prepare("2d3ds", tmp_path, tmp_path / "out", "--areas", "5")  # again: all is there
    for folder in ("area_5a", "area_5b"):
        shutil.rmtree(tmp_path / folder / "data/depth")
    with pytest.raises(InputError, match="version that is not called aligned"):
        prepare("2d3ds", tmp_path, tmp_path / "other", "--areas", "5")


def test_points_of_another_area_are_refused(tmp_path: Path) -> None:
    shifted = np.eye(4)
    shifted[:3, 3] = [0.7, 0.4, 0.3]
    write_stanford_images(tmp_path / "area_2", ["office_1", "hallway_1"], shifted)
    write_s3dis(tmp_path / "Stanford3dDataset_v1.2/Area_2")
    with pytest.raises(InputError, match="do both belong to the same area"):
        prepare("2d3ds", tmp_path, tmp_path / "out", "--areas", "2")


def test_panoramas_are_cut_into_views_where_there_is_nothing_else(tmp_path: Path) -> None:
    write_stanford_images(tmp_path / "area_1", ["office_1", "hallway_1"], np.eye(4), panoramas=True)
    write_s3dis(tmp_path / "Area_1")
    prepare("2d3ds", tmp_path, tmp_path / "out", "--areas", "1")
    check_area(tmp_path / "out/area_1", queries_at_least=16)
    views = sorted((tmp_path / "out/area_1/panorama_views/area_1/rgb").glob("*.png"))
    assert len(views) == 64
    before = views[0].stat().st_mtime_ns
    prepare("2d3ds", tmp_path, tmp_path / "out", "--areas", "1")
    assert views[0].stat().st_mtime_ns == before
