"""Preparing data sets: what is missing is named, broken files get a sentence, no map follows from a query's pose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from official_layouts import write_kitti, write_s3dis, write_scene, write_stanford_images

from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.stanford_cameras import AREA_5_FROM_5B, read_camera
from ep2ploc_core.datasets.stanford_points import count_pieces, find_rooms, read_piece
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import PointMap
from ep2ploc_core.preparation.kitti import prepare_kitti
from ep2ploc_core.preparation.seven_scenes import prepare_seven_scenes
from ep2ploc_core.preparation.site import chosen_names, spread
from ep2ploc_core.preparation.stanford2d3ds import prepare_stanford

Break = Callable[[Path], object]


def quiet(stage: str, done: int, total: int) -> None:
    """No bar."""


def remove(*names: str) -> Break:
    """Removes files or directories of a download, by pattern."""

    def broken(source: Path) -> None:
        for name in names:
            for path in list(source.glob(name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return broken


def write(pattern: str, text: str) -> Break:
    """Puts this text in place of a file."""
    return lambda source: [path.write_text(text) for path in source.glob(pattern)]


def edit_pose(**values: object) -> Break:
    """Changes the first pose file; None removes an entry."""

    def broken(source: Path) -> None:
        path = sorted((source / "area_1/data/pose").iterdir())[0]
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return broken


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("downloads")
    write_kitti(path / "kitti", "04", frames=45)
    write_stanford_images(path / "2d3ds/area_1", ["office_1", "hallway_1"], np.eye(4))
    write_s3dis(path / "2d3ds/Stanford3dDataset_v1.2/Area_1")
    write_scene(path / "7scenes/fire", train=(1,), test=(2,))
    return path


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (remove("sequences/04/image_2"), r"lacks sequences/04/image_2 \(data_odometry_color.zip\); get them from"),
        (remove("sequences/04/velodyne/*"), r"lacks sequences/04/velodyne \(data_odometry_velodyne.zip\)"),
        (remove("sequences/04/calib.txt"), r"lacks sequences/04/calib.txt \(data_odometry_calib.zip\)"),
        (remove("sequences/04/times.txt"), r"lacks sequences/04/times.txt \(data_odometry_calib.zip\)"),
        (remove("poses"), r"lacks poses/04.txt \(data_odometry_poses.zip\)"),
        (write("sequences/04/calib.txt", "P2: 1 2 3\n"), "the row Tr .* to be unpacked last"),
        (remove("*"), r"and 2 more; .* name what is there with --sequences"),
        (write("poses/04.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n"), "1 rows, and .* has 45 frames"),
    ],
)
def test_kitti(downloads: Path, tmp_path: Path, broken: Break, says: str) -> None:
    shutil.copytree(downloads / "kitti", tmp_path / "in")
    broken(tmp_path / "in")
    with pytest.raises(InputError, match=says):
        prepare_kitti(tmp_path / "in", tmp_path / "out", ["04"], 2, 0.2, quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (remove("Stanford3dDataset_v1.2"), r"lacks Stanford3dDataset_v1.2/Area_1 \(S3DIS, Stanford3dDataset_v1.2.zip"),
        (remove("area_1"), r"lacks area_1/data/rgb \(2D-3D-S, area_1_no_xyz.tar"),
        (remove("area_1/data/pose"), "lacks area_1/data/pose"),
        (remove("area_1/data/pose/*"), "holds no image with a pose"),
        (remove("area_1/data/rgb/*"), "holds no panorama with a pose"),
        (remove("area_1/data/rgb/*hallway*", "area_1/data/rgb/*0[0-1]ab*"), "2 scan locations, .* 4 are needed"),
        (write("area_1/data/pose/*", "{"), "is no JSON file"),
        (write("area_1/data/pose/*", "[1]"), "something else than names and values"),
        (edit_pose(camera_k_matrix=None), "has no camera_k_matrix"),
        (edit_pose(camera_k_matrix=[[0, 0, 1], [0, 0, 1], [0, 0, 1]]), "all four must be positive"),
        (edit_pose(camera_rt_matrix=[[1, 2], [3, 4]]), "has no camera_rt_matrix"),
        (edit_pose(camera_rt_matrix=np.ones((3, 4)).tolist()), "holds no rotation"),
        (edit_pose(camera_rt_matrix=[[1e400] * 4] * 3), "holds no rotation"),
        (edit_pose(camera_location=[9, 9, 9]), "contradicts itself"),
        (write("*/Area_1/office_1/office_1.txt", "1 2 3 4 5\n" * 9), "9 of 9 rows of the points .* are no six numbers"),
        (write("*/Area_1/office_1/office_1.txt", "1 2 3 4 5 6 7\n1 2 3 4 5\n" * 9), "18 of 18 rows"),
        (remove("*/Area_1/office_1/office_1.txt"), "has no office_1.txt; unpack S3DIS again"),
        (remove("*/Area_1/*_1"), "has no rooms with points"),
    ],
)
def test_stanford(downloads: Path, tmp_path: Path, broken: Break, says: str) -> None:
    shutil.copytree(downloads / "2d3ds", tmp_path / "in")
    broken(tmp_path / "in")
    with pytest.raises(InputError, match=says):
        prepare_stanford(tmp_path / "in", tmp_path / "out", ["1"], 9, 0.05, quiet)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (remove("fire"), r"lacks fire \(fire.zip of"),
        (remove("fire/TrainSplit.txt"), "lacks TrainSplit.txt"),
        (write("fire/TestSplit.txt", "seq two\n"), "names no sequences in rows such as 'sequence1'"),
        (write("fire/TestSplit.txt", ""), "names no sequences"),
        (write("fire/TestSplit.txt", "sequence2\nsequence1\n"), "the sequence 1 in both"),
        (remove("fire/seq-02"), "lacks seq-02, which its splits name; it is in fire.zip"),
        (lambda source: (source / "fire/seq-02").rename(source / "fire/seq-02.zip.d"), "lacks seq-02"),
        (remove("fire/seq-02/*.color.png"), "have no colour images"),
        (remove("fire/seq-01/*.depth.png"), "no depth image with a pose"),
    ],
)
def test_seven_scenes(downloads: Path, tmp_path: Path, broken: Break, says: str) -> None:
    shutil.copytree(downloads / "7scenes", tmp_path / "in")
    broken(tmp_path / "in")
    with pytest.raises(InputError, match=says):
        prepare_seven_scenes(tmp_path / "in", tmp_path / "out", ["fire"], 3, 0.05, quiet)


def test_packed_sequences_are_to_be_unpacked(downloads: Path, tmp_path: Path) -> None:
    shutil.copytree(downloads / "7scenes", tmp_path / "in")
    shutil.rmtree(tmp_path / "in/fire/seq-01")
    (tmp_path / "in/fire/seq-01.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"unpack seq-01\.zip there"):
        prepare_seven_scenes(tmp_path / "in", tmp_path / "out", ["fire"], 3, 0.05, quiet)


def tiles(site_map: Path) -> dict[str, np.ndarray]:
    point_map = PointMap.open(site_map)
    return {name: np.asarray(point_map.unpack(name).to_structured()) for name in point_map.info.tiles}


def same_tiles(first: Path, second: Path) -> bool:
    one, other = tiles(first), tiles(second)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_kitti_maps_do_not_follow_from_the_poses_of_queries(downloads: Path, tmp_path: Path) -> None:
    shutil.copytree(downloads / "kitti", tmp_path / "in")
    prepare_kitti(tmp_path / "in", tmp_path / "out", ["04"], 2, 0.2, quiet)
    frames = Queries(tmp_path / "out/04/queries").frames
    assert frames is not None
    poses = np.loadtxt(tmp_path / "in/poses/04.txt")
    poses[frames[0], 3] += 0.3  # to the right, in camera axes
    np.savetxt(tmp_path / "in/poses/04.txt", poses)
    prepare_kitti(tmp_path / "in", tmp_path / "other", ["04"], 2, 0.2, quiet)
    moved = Queries(tmp_path / "other/04/queries")
    assert moved.frames is not None and moved.frames.tolist() == frames.tolist()
    assert same_tiles(tmp_path / "out/04/map", tmp_path / "other/04/map")


def test_stanford_maps_do_not_follow_from_queries_and_wrong_ones_are_left_out(downloads: Path, tmp_path: Path) -> None:
    shutil.copytree(downloads / "2d3ds", tmp_path / "in")
    (site,) = prepare_stanford(tmp_path / "in", tmp_path / "out", ["1"], 9, 0.05, quiet)
    frames = Queries(site.path / "queries").frames
    assert site.note == "" and frames is not None
    for path in sorted((tmp_path / "in/area_1/data/pose").glob("*03ab*_0_domain_pose.json")):
        content = json.loads(path.read_text())
        content["camera_rt_matrix"][0][3] += 0.9
        del content["camera_location"]
        path.write_text(json.dumps(content))
    (other,) = prepare_stanford(tmp_path / "in", tmp_path / "other", ["1"], 9, 0.05, quiet)
    assert other.note.startswith("1 queries left out") and other.queries == site.queries - 1
    assert same_tiles(site.path / "map", other.path / "map")


def test_a_query_directory_that_was_not_finished_is_made_anew(downloads: Path, tmp_path: Path) -> None:
    half = tmp_path / "out/fire/queries.part/images"
    half.mkdir(parents=True)
    (half / "0000000000.png").write_bytes(b"half an ima")
    prepare_seven_scenes(downloads / "7scenes", tmp_path / "out", ["fire"], 3, 0.05, quiet)
    assert len(Queries(tmp_path / "out/fire/queries")) == 3 and not half.parent.exists()


def test_points_are_the_same_in_pieces_of_any_size(downloads: Path) -> None:
    file = find_rooms(downloads / "2d3ds/Stanford3dDataset_v1.2/Area_1")["hallway_1"]
    whole = read_piece(file, 0)
    np.testing.assert_array_equal(whole, np.loadtxt(file))
    line = file.read_bytes().index(b"\n") + 1
    for piece in (7_001, 100_003, line, line - 1, line + 1, file.stat().st_size):
        count = count_pieces(file, piece)
        some = range(count) if count < 200 else [*range(100), *range(count - 100, count)]
        read = np.concatenate([read_piece(file, number, piece) for number in some])
        if count < 200:
            np.testing.assert_array_equal(read, whole)
        else:
            first = np.concatenate([read_piece(file, number, piece) for number in range(100)])
            np.testing.assert_array_equal(read[: len(first)], whole[: len(first)])
            np.testing.assert_array_equal(read[len(first) :], whole[len(whole) - len(read) + len(first) :])


def test_cameras_count_from_the_first_pixels_centre(downloads: Path) -> None:
    path = next((downloads / "2d3ds/area_1/data/pose").glob("*_0_domain_pose.json"))
    assert json.loads(path.read_text())["camera_k_matrix"][0][2] == 80
    assert read_camera(path, 160, 160).cx == 79.5


def test_area_5b_is_moved_rigidly() -> None:
    rotation = AREA_5_FROM_5B[:3, :3]
    np.testing.assert_array_equal(rotation @ rotation.T, np.eye(3))
    assert np.linalg.det(rotation) == 1 and (AREA_5_FROM_5B[3] == [0, 0, 0, 1]).all()


def test_parts_are_named_and_spread() -> None:
    assert chosen_names("", ["a", "b"], "--areas") == ["a", "b"]
    assert chosen_names(" b,a ,", ["a", "b"], "--areas") == ["a", "b"]
    with pytest.raises(InputError, match="--areas '7' is not known; there are: 1, 2"):
        chosen_names("1,7", ["1", "2"], "--areas")
    assert spread(0, 5) == [] and spread(3, 5) == [0, 1, 2] and spread(10, 2) == [2, 7]
