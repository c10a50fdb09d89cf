"""Building maps: the same map in pieces as in one go, after any interruption, in bounded memory, without ghosts."""

import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial import KDTree

from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.datasets.synthetic_moving import read_moving
from ep2ploc_core.errors import InputError, MapError
from ep2ploc_core.map.build import BuildSettings, accumulate, build_map
from ep2ploc_core.map.ghosts import GhostDetector, RangeImage
from ep2ploc_core.map.point_map import MapPoints, PointMap
from ep2ploc_core.map.posed_scan import PosedScan
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.map.voxel_grid import pack_voxels, unpack_voxels

SETTINGS = BuildSettings(voxel_size=0.25, tile_size=5.0)


class Corridor:
    """Scans of a ground and two walls along x, from a sensor that goes `step` metres ahead from scan to scan; `length`
    scans, `shift` `(3,)` away."""

    has_poses = True

    def __init__(
        self, length: int = 12, shift: tuple[float, float, float] = (0, 0, 0), points: int = 1500, step: float = 1.5
    ) -> None:
        self.length, self.shift, self.points, self.step = length, shift, points, step
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def scans(self, first: int = 0) -> Iterator[PosedScan]:
        for number in range(first, self.length):
            self.read.append(number)
            random = np.random.default_rng(number)
            x = random.uniform(-8, 8, 3 * self.points)
            across = random.uniform(-4, 4, 3 * self.points)
            up = random.uniform(0, 3, 3 * self.points) - 1.7
            part = np.repeat([0, 1, 2], self.points)
            y = np.where(part == 0, across, np.where(part == 1, -4.03, 4.03))
            xyz = np.stack([x, y, np.where(part == 0, -1.67, up)], 1)
            pose = np.eye(4)
            pose[:3, 3] = np.array(self.shift) + [self.step * number, 0.1, 1.7]
            yield PosedScan(number, np.c_[xyz, random.random(len(xyz))].astype(np.float32), pose, 0.1 * number)

    def describe(self) -> dict[str, Any]:
        return {"kind": "corridor", "length": self.length, "shift": list(self.shift)}


def in_order(points: MapPoints) -> MapPoints:
    return points.select(np.lexsort(np.round(points.xyz, 3).T))


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_map_built_in_pieces_and_tiles_is_the_map_built_in_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ep2ploc_core.map.build._PIECE_SCANS", 5)
    source = Corridor()
    expected = in_order(accumulate(source.scans(), SETTINGS.voxel_size))
    unthinned = BuildSettings(SETTINGS.voxel_size, SETTINGS.tile_size, thin_ghosts=False)
    built = in_order(build_map(source, tmp_path / "map", unthinned).all_points())
    np.testing.assert_allclose(built.xyz, expected.xyz, atol=1e-5)
    np.testing.assert_allclose(built.attributes[:, [0, 4]], expected.attributes[:, [0, 4]], atol=1 / 255)
    np.testing.assert_allclose(built.attributes[:, 1:4], expected.attributes[:, 1:4], atol=1 / 127)
    np.testing.assert_allclose(built.attributes[:, 5], expected.attributes[:, 5], atol=0.005)
    np.testing.assert_array_equal(built.seen, expected.seen)


def test_every_voxel_is_in_one_tile_and_the_tiles_answer_queries(tmp_path: Path) -> None:
    built = build_map(Corridor(), tmp_path / "map", SETTINGS)
    points = built.all_points()
    assert len(np.unique(np.round(points.xyz, 4), axis=0)) == len(points) == len(built)
    centre = np.array([7.0, 1.0, 0.0])
    inside = np.hypot(*(points.xyz[:, :2] - centre[:2]).T) < 6.5
    found = built.query(centre, 6.5)
    np.testing.assert_array_equal(in_order(found).xyz, in_order(points.select(inside)).xyz)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("stage", "at"), [("reading scans", 3), ("reading scans", 11), ("merging", 4), ("writing tiles", 1)]
)
def test_a_build_that_was_stopped_goes_on_and_ends_in_the_same_map(
    tmp_path: Path, monkeypatch, stage: str, at: int
) -> None:
    monkeypatch.setattr("ep2ploc_core.map.build._PIECE_SCANS", 4)
    build_map(Corridor(), tmp_path / "whole", SETTINGS)

    def stop(now: str, done: int, total: int) -> None:
        if (now, done) == (stage, at):
            raise StoppedError

    with pytest.raises(StoppedError):
        build_map(Corridor(), tmp_path / "map", SETTINGS, stop)
    assert not (tmp_path / "map").exists()
    with pytest.raises(MapError, match="only half built"):
        PointMap.open(tmp_path / "map")
    source = Corridor()
    build_map(source, tmp_path / "map", SETTINGS)
    assert files_of(tmp_path / "map") == files_of(tmp_path / "whole")
    assert source.read == list(range({3: 0, 11: 8}[at] if stage == "reading scans" else 12, 12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map", "whole"]


def test_what_is_built_and_not_encoded_is_not_built_again(tmp_path: Path) -> None:
    built = build_map(Corridor(), tmp_path / "map", SETTINGS)
    source = Corridor()
    again = build_map(source, tmp_path / "map", SETTINGS)
    assert source.read == [] and len(again) == len(built)
    tile = tmp_path / "map/tiles" / built.info.tiles[0] / "points.npy"
    tile.write_bytes(tile.read_bytes()[:200])
    built = build_map(source, tmp_path / "map", SETTINGS)
    assert source.read == list(range(12)) and len(built) == len(again)
    source.read.clear()
    built.store_descriptors(np.zeros((len(built), 4), np.int8), "cafe0123")
    assert build_map(source, tmp_path / "map", SETTINGS).checkpoint == ""
    assert source.read == list(range(12))


def test_another_task_does_not_go_on_from_what_is_half_done(tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "merging":
            raise StoppedError

    with pytest.raises(StoppedError):
        build_map(Corridor(shift=(3, 0, 0)), tmp_path / "map", SETTINGS, stop)
    source = Corridor()
    build_map(source, tmp_path / "map", SETTINGS)
    assert source.read == list(range(12))


def test_a_recording_that_was_changed_does_not_go_on_from_what_is_half_done(tmp_path: Path) -> None:
    class Named(Corridor):
        def describe(self) -> dict[str, Any]:
            return {**super().describe(), "path": str(tmp_path / "map_run"), "poses": str(tmp_path / "map_poses.txt")}

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "merging":
            raise StoppedError

    (tmp_path / "map_run").mkdir()  # names that begin as that of the map
    (tmp_path / "map_run/0.bin").write_bytes(b"1")
    for change in ("map_poses.txt", "map_run/0.bin"):
        shutil.rmtree(tmp_path / "map", ignore_errors=True)
        with pytest.raises(StoppedError):
            build_map(Named(), tmp_path / "map", SETTINGS, stop)
        (tmp_path / change).write_text("changed")
        source = Named()
        build_map(source, tmp_path / "map", SETTINGS)
        assert source.read == list(range(12))


def test_a_recording_that_ends_early_is_an_error(tmp_path: Path) -> None:
    class Short(Corridor):
        def __len__(self) -> int:
            return self.length + 1

    with pytest.raises(InputError, match="ended before the last of its 13 scans"):
        build_map(Short(), tmp_path / "map", SETTINGS)


def test_the_old_map_stays_until_the_new_one_is_whole_and_other_directories_are_left_alone(tmp_path: Path) -> None:
    old = build_map(Corridor(4), tmp_path / "map", SETTINGS)

    class Broken(Corridor):
        def scans(self, first: int = 0) -> Iterator[PosedScan]:
            yield from list(super().scans(first))[:3]
            raise InputError("The scan x.bin is truncated.")

    with pytest.raises(InputError, match="truncated"):
        build_map(Broken(), tmp_path / "map", SETTINGS)
    assert len(PointMap.open(tmp_path / "map")) == len(old)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("x")
    with pytest.raises(MapError, match="is not a map, so it is left alone"):
        build_map(Corridor(), tmp_path / "photos", SETTINGS)
    assert (tmp_path / "photos" / "holiday.jpg").read_text() == "x"
    for name in ("nav2", "new.building"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "map.yaml").write_text("image: map.pgm\nresolution: 0.05\n")
    with pytest.raises(MapError, match="is not a map, so it is left alone"):
        build_map(Corridor(), tmp_path / "nav2", SETTINGS)
    with pytest.raises(MapError, match="in the way"):
        build_map(Corridor(), tmp_path / "new", SETTINGS)


def test_coordinates_of_a_survey_keep_their_millimetres(tmp_path: Path) -> None:
    shift = (412_345.25, 5_412_345.5, 312.0)
    near = build_map(Corridor(), tmp_path / "near", SETTINGS).all_points()
    built = build_map(Corridor(shift=shift), tmp_path / "far", SETTINGS)
    assert (built.origin % 1000 == 0).all() and np.abs(built.origin - shift).max() <= 500
    far = built.all_points().xyz + (built.origin - shift)
    distance, _ = KDTree(near.xyz).query(far)
    assert len(far) == len(near) and distance.max() < 1e-3


def test_poses_that_jump_to_the_moon_are_an_error(tmp_path: Path) -> None:
    class Jump(Corridor):
        def scans(self, first: int = 0) -> Iterator[PosedScan]:
            for scan in super().scans(first):
                scan.map_from_lidar[0, 3] += 3e8 * (scan.frame == 5)
                yield scan

    with pytest.raises(InputError, match=r"Scan 5 lies .* km from .* are its poses right"):
        build_map(Jump(), tmp_path / "map", SETTINGS)


def test_voxel_indices_come_back_from_their_keys() -> None:
    index = np.random.default_rng(0).integers(-1_000_000, 1_000_000, (1000, 3))
    np.testing.assert_array_equal(unpack_voxels(pack_voxels(index)), index)


def in_subprocess(code: str, *arguments: object, file_limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code that may use this module's Corridor, optionally with a limit on the size of files."""

    def limit() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    head = "import sys; sys.path.insert(0, sys.argv[1]); from test_map_build import *\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), str(Path(__file__).parent), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, preexec_fn=limit, check=False)


def test_a_full_disk_is_said_in_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    code = """
        import ep2ploc_core.map.build as build
        build._PIECE_SCANS = 2
        build_map(Corridor(), Path(sys.argv[2]), BuildSettings(voxel_size=0.25, tile_size=100.0))
    """
    done = in_subprocess(code, tmp_path / "map", file_limit=400_000)  # stands for the disk's end: a piece does not fit
    assert "The disk is full; what is done of the map is kept in" in done.stderr.splitlines()[-1]
    assert in_subprocess(code, tmp_path / "map").returncode == 0
    assert len(PointMap.open(tmp_path / "map")) > 1000


def test_memory_does_not_grow_with_the_map(tmp_path: Path) -> None:
    code = """
        import ep2ploc_core.map.build as build
        build._PIECE_SCANS = 4
        build_map(Corridor(int(sys.argv[3]), points=12_000, step=16.0), Path(sys.argv[2]), BuildSettings(0.1, 10.0))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """
    short, long = (int(in_subprocess(code, tmp_path / f"map{length}", length).stdout.split()[-1]) for length in (5, 25))
    grown = len(PointMap.open(tmp_path / "map25")) - len(PointMap.open(tmp_path / "map5"))
    assert grown > 300_000
    assert (long - short) * 2**20 < 40 * grown  # all of the new voxels in memory would be 46 bytes each, and more


def test_what_moves_leaves_no_ghosts_and_what_stands_stays(tmp_path: Path) -> None:
    drive = write_synthetic_drive(tmp_path, frames=24, seed=21, moving=4)
    keys, on_moving = [], []
    source = KittiSource(drive)
    for scan, boxes in zip(source.scans(), read_moving(drive), strict=True):
        xyz = scan.points[:, :3] @ scan.map_from_lidar[:3, :3].T + scan.map_from_lidar[:3, 3]
        keys.append(pack_voxels(np.floor(xyz / 0.2).astype(np.int64)))
        on_moving.append(boxes.contain(xyz, margin=0.05))
    voxels, of_point = np.unique(np.concatenate(keys), return_inverse=True)
    ghost = np.bincount(of_point, np.concatenate(on_moving)) / np.bincount(of_point) > 0.5
    built = build_map(source, tmp_path / "map")
    left = np.floor(built.all_points().xyz.astype(np.float64) / 0.2).astype(np.int64)
    removed = ~np.isin(voxels, pack_voxels(left))
    assert ghost.sum() > 1500
    print(f"ghosts removed {removed[ghost].mean():.1%}, of what stands {removed[~ghost].mean():.3%}")
    assert removed[ghost].mean() > 0.75
    assert removed[~ghost].mean() < 0.001
    assert built.info.ghosts_removed == pytest.approx(removed.sum(), rel=0.02)
    unthinned = build_map(source, tmp_path / "map", BuildSettings(thin_ghosts=False))
    assert unthinned.info.ghosts_removed == 0 and len(unthinned) == pytest.approx(len(voxels), rel=0.001)


def ball(distance: float) -> np.ndarray:
    """A patch of points that faces the sensor at a distance along x."""
    y, z = np.meshgrid(np.linspace(-0.2, 0.2, 41) * distance, np.linspace(-0.2, 0.2, 41) * distance)
    return np.stack([np.full(y.size, distance), y.ravel(), z.ravel()], 1)


def looks(*distances: float) -> bool:
    """Whether a place 5 m ahead is a ghost to scans that saw a wall at these distances."""
    images = [RangeImage.of_scan(ball(distance), np.eye(4)) for distance in distances]
    return bool(GhostDetector(0.2).ghosts(np.array([[5.0, 0.0, 0.0]]), images)[0])


@pytest.mark.parametrize(
    ("distances", "ghost"),
    [
        ((9, 9, 9), True),
        ((9, 9, 5), False),  # seen through twice, seen once
        ((9, 9, 9, 5), True),
        ((9,), False),  # one look may err
        ((5.3, 5.3, 5.3), False),  # not well behind
        ((3, 3, 3), False),  # hidden: nobody knows
        ((), False),
    ],
)
def test_a_ghost_is_what_most_scans_see_through(distances: tuple[float, ...], ghost: bool) -> None:
    assert looks(*distances) == ghost


def test_a_depth_camera_sees_through_as_well_as_a_lidar() -> None:
    optical = ball(9)[:, [1, 2, 0]]  # z forward
    image = RangeImage.of_scan(optical, np.eye(4))
    assert GhostDetector(0.2).ghosts(np.array([[0.0, 0.0, 5.0], [0.5, 0.3, 5.0]]), [image] * 3).all()
    assert not GhostDetector(0.2).ghosts(np.array([[5.0, 0.0, 0.0]]), [image] * 3).any()


def test_what_stands_beside_a_ray_is_not_seen_through() -> None:
    wall, pole = ball(9), np.array([[5.0, 0.06, z] for z in np.linspace(-1, 1, 200)])
    image = RangeImage.of_scan(np.r_[wall, pole], np.eye(4))
    assert not GhostDetector(0.2).ghosts(np.array([[5.0, 0.0, 0.0]]), [image] * 5)[0]


def test_a_place_where_the_scan_has_no_points_is_not_seen_through() -> None:
    image = RangeImage.of_scan(ball(9), np.eye(4))
    assert not GhostDetector(0.2).ghosts(np.array([[-5.0, 0, 0], [5.0, 4.0, 0]]), [image] * 5).any()


def test_progress_tells_every_stage_to_its_end(tmp_path: Path) -> None:
    told: dict[str, tuple[int, int]] = {}
    report: Callable[[str, int, int], None] = lambda stage, done, total: told.__setitem__(stage, (done, total))  # noqa: E731
    build_map(Corridor(), tmp_path / "map", SETTINGS, report)
    assert list(told) == ["reading scans", "merging", "writing tiles"]
    assert all(done == total for done, total in told.values())
