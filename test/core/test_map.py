"""Maps: what is built is what the scans hold; what is written is what is read; broken ones say so."""

from pathlib import Path

import numpy as np
import pytest

from ep2ploc_core.errors import InputError, MapError
from ep2ploc_core.map.build import accumulate
from ep2ploc_core.map.point_map import MapInfo, PointMap, write_map
from ep2ploc_core.map.posed_scan import PosedScan
from ep2ploc_core.map.surface import height_above_ground, surface_shape


def scans(seed: int = 0) -> list[PosedScan]:
    """A ground and a wall at x = 10.13 m, off the faces of voxels, seen from two places."""
    rng = np.random.default_rng(seed)
    out = []
    for frame, x in enumerate((0.0, 2.0)):
        pose = np.eye(4)
        pose[:3, 3] = [x, 0, 1.7]
        ground = np.c_[rng.uniform(-5, 10, 8000), rng.uniform(-10, 10, 8000), np.full(8000, 0.13)]
        wall = np.c_[np.full(8000, 10.13), rng.uniform(-10, 10, 8000), rng.uniform(0.13, 4, 8000)]
        xyz = np.r_[ground, wall] - pose[:3, 3]
        out.append(PosedScan(frame, np.c_[xyz, np.full(16000, 0.5)].astype(np.float32), pose))
    return out


def test_one_point_per_voxel_at_the_mean_of_its_points() -> None:
    points = accumulate(scans(), 0.5)
    world = np.concatenate([scan.points[:, :3] + scan.map_from_lidar[:3, 3] for scan in scans()])
    voxels, inverse = np.unique(np.floor(world / 0.5).astype(int), axis=0, return_inverse=True)
    assert abs(len(points) - len(voxels)) <= 0.02 * len(voxels)  # float32 sums at a voxel's face
    means = np.stack([np.bincount(inverse, world[:, axis]) for axis in range(3)], 1) / np.bincount(inverse)[:, None]
    nearest = np.abs(points.xyz[None] - means[::7, None]).max(2).min(1)
    assert np.median(nearest) < 1e-5 and (nearest < 1e-3).mean() > 0.97


def test_normals_look_at_the_sensor_and_planes_are_planar() -> None:
    points = accumulate(scans(), 0.2)
    ground = (points.xyz[:, 2] < 0.18) & (np.abs(points.xyz[:, 0]) < 4) & (np.abs(points.xyz[:, 1]) < 8)
    wall = (points.xyz[:, 0] > 10.08) & (points.xyz[:, 2] > 1) & (points.xyz[:, 2] < 3)
    assert np.median(points.attributes[ground, 3]) > 0.98
    assert np.median(points.attributes[wall, 1]) < -0.98
    assert np.median(points.attributes[ground, 4]) > 0.5
    np.testing.assert_allclose(points.attributes[ground, 5], 0, atol=0.05)
    np.testing.assert_allclose(points.attributes[wall, 5], points.xyz[wall, 2] - 0.13, atol=0.05)
    assert set(np.unique(points.seen)) == {0, 1}


def test_a_line_is_not_planar_and_a_lone_point_has_a_normal() -> None:
    line = np.c_[np.linspace(0, 1, 30), np.zeros(30), np.zeros(30)]
    xyz = np.r_[line, [[50.0, 50, 50]]]
    normals, planarity = surface_shape(xyz, xyz + [0, 0, 5.0], 0.5)
    assert planarity[5:25].max() < 0.1
    np.testing.assert_allclose(normals[-1], [0, 0, 1], atol=1e-6)
    assert height_above_ground(xyz, np.array([0, 0, 1.0]))[-1] == 0


def test_written_map_reads_back_and_answers_queries(tmp_path: Path) -> None:
    points = accumulate(scans(), 0.2)
    info = MapInfo(voxel_size=0.2, tile_size=5.0, origin=[4e5, 5e6, 100.0])
    point_map = write_map(tmp_path / "map", points, info)
    assert len(point_map) == len(points)
    centre = np.array([4e5 + 3, 5e6 - 2, 100.0])
    found = point_map.query(centre, 4.0)
    inside = np.hypot(points.xyz[:, 0] - 3, points.xyz[:, 1] + 2) < 4
    assert len(found) == inside.sum()
    order = np.lexsort(found.xyz.T)
    expected = points.select(inside)
    expected = expected.select(np.lexsort(expected.xyz.T))
    np.testing.assert_array_equal(found.xyz[order], expected.xyz)
    np.testing.assert_allclose(found.attributes[order], expected.attributes, atol=0.01)
    np.testing.assert_array_equal(found.seen[order], expected.seen)


def test_descriptors_stay_with_their_points(tmp_path: Path) -> None:
    point_map = write_map(tmp_path / "map", accumulate(scans(), 0.5), MapInfo(voxel_size=0.5, tile_size=5.0))
    whole = point_map.all_points()
    descriptors = np.round(whole.xyz).astype(np.int8)
    point_map.store_descriptors(descriptors, "abcd1234")
    again = PointMap.open(tmp_path / "map")
    found = again.query(np.array([5.0, 0, 0]), 3.0)
    assert again.checkpoint == "abcd1234" and found.descriptors is not None
    np.testing.assert_array_equal(found.descriptors, np.round(found.xyz).astype(np.int8))


def test_a_new_map_replaces_the_old_one_whole(tmp_path: Path) -> None:
    write_map(tmp_path / "map", accumulate(scans(), 0.5), MapInfo(voxel_size=0.5))
    write_map(tmp_path / "map", accumulate(scans()[:1], 1.0), MapInfo(voxel_size=1.0))
    assert PointMap.open(tmp_path / "map").info.voxel_size == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_what_is_no_map_or_a_broken_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(MapError, match="is not a map directory"):
        PointMap.open(tmp_path)
    point_map = write_map(tmp_path / "map", accumulate(scans(), 0.5), MapInfo(voxel_size=0.5))
    tile = tmp_path / "map" / "tiles" / point_map.info.tiles[0] / "points.npy"
    tile.write_bytes(tile.read_bytes()[:200])
    with pytest.raises(MapError, match="missing or cut off"):
        PointMap.open(tmp_path / "map")
    tile.unlink()
    with pytest.raises(MapError, match="missing or cut off"):
        PointMap.open(tmp_path / "map")
    (tmp_path / "map" / "map.yaml").write_text("format: [unclosed")
    with pytest.raises(MapError, match="is not a map directory"):
        PointMap.open(tmp_path / "map")


def test_no_points_is_an_error() -> None:
    with pytest.raises((MapError, InputError)):
        accumulate([PosedScan(0, np.zeros((0, 4), np.float32), np.eye(4))], 0.2)
