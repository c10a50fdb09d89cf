"""The network works in units of five voxels: a map and its poses scaled together give the answer scaled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.localization import Localization
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.point_map import MapInfo, MapPoints, PointMap, write_map
from ep2ploc_core.map.unit import NetworkFrame
from ep2ploc_core.model.checkpoint import load_network

CAMERA = Camera(512, 384, 400.0, 400.0, 256.0, 192.0)
ORIGIN = np.array([448.0, -64.0, 16.0])
QUARTER = 0.25  # a power of two: scaling by it loses no digit


@pytest.fixture(scope="module")
def street() -> MapPoints:
    """Ground and two walls, one point in each voxel of 0.2 m."""
    rng = np.random.default_rng(0)
    ground = np.c_[rng.uniform(-25, 25, (9000, 2)), rng.normal(0, 0.03, 9000)]
    walls = np.c_[rng.uniform(-25, 25, 8000), rng.choice([-6.0, 7.0], 8000), rng.uniform(0, 6, 8000)]
    xyz = np.concatenate([ground, walls])
    attributes = np.zeros((len(xyz), 6))
    attributes[:, 0], attributes[:, 4] = rng.random(len(xyz)), 0.9
    attributes[:, 5] = np.round(64 * xyz[:, 2]) / 64  # not so small that the half precision on disk loses digits
    attributes[:9000, 3] = 1
    attributes[9000:, 2] = -np.sign(walls[:, 1])
    seen = np.zeros((len(xyz), 2), np.uint16)
    # In the form on disk and back, so that all scales begin from the same numbers.
    return MapPoints.from_structured(
        MapPoints(xyz.astype(np.float32), attributes.astype(np.float32), seen).to_structured()
    )


def scaled_map(points: MapPoints, scale: float, path: Path) -> PointMap:
    attributes = points.attributes.copy()
    attributes[:, 5] *= scale
    info = MapInfo(voxel_size=0.2 * scale, tile_size=20 * scale, origin=(ORIGIN * scale).tolist())
    point_map = write_map(path, replace(points, xyz=points.xyz * np.float32(scale), attributes=attributes), info)
    encode_map(point_map, load_network("edge"))
    return point_map


def localized(point_map: PointMap, scale: float) -> Localization:
    """Of a picture of blots: the pose need not make sense, and is asked for little evidence."""
    rng = np.random.default_rng(1)
    picture = np.kron(rng.integers(0, 256, (24, 32, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    prior = np.eye(4)
    prior[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    prior[:3, 3] = (ORIGIN + [-6.3, 0.4, 1.6]) * scale
    lenient = LocalizerSettings(
        least_score=-10,
        least_belief=0,
        least_inlier_ratio=0,
        least_matches=0,
        greatest_sigma=1e3,
        greatest_distance=3.0,
    )
    found = Localizer(load_network("edge"), point_map, settings=lenient).localize(picture, CAMERA, prior)
    assert found.status == "ok", found.reason
    return found


def test_a_scaled_map_gives_the_scaled_answer_exactly(street: MapPoints, tmp_path: Path) -> None:
    whole, small = (scaled_map(street, scale, tmp_path / f"{scale:g}") for scale in (1.0, QUARTER))
    np.testing.assert_array_equal(small.all_points().descriptors, whole.all_points().descriptors)
    one, other = localized(whole, 1.0), localized(small, QUARTER)
    assert one.map_from_camera is not None and one.covariance is not None and other.covariance is not None
    lengths = np.array([QUARTER, QUARTER, QUARTER, 1, 1, 1])
    expected = one.map_from_camera.copy()
    expected[:3, 3] *= QUARTER
    np.testing.assert_array_equal(other.map_from_camera, expected)
    np.testing.assert_array_equal(other.candidate, expected)
    np.testing.assert_allclose(other.covariance, one.covariance * lengths[:, None] * lengths, rtol=1e-12)
    np.testing.assert_array_equal(other.points_map, one.points_map * QUARTER)
    np.testing.assert_array_equal(other.pixels, one.pixels)
    assert (other.evidence, other.num_matches, other.num_inliers) == (one.evidence, one.num_matches, one.num_inliers)


def test_doubt_speaks_of_metres(street: MapPoints, tmp_path: Path) -> None:
    """The same doubt about the small map is about a quarter of the metres."""
    strict = LocalizerSettings(least_score=-10, least_belief=0, least_inlier_ratio=0, least_matches=0, greatest_sigma=0)
    prior = np.eye(4)
    prior[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    metres = []
    for scale in (1.0, QUARTER):
        point_map = scaled_map(street, scale, tmp_path / f"{scale:g}")
        prior[:3, 3] = (ORIGIN + [-6.3, 0.4, 1.6]) * scale
        grey = np.full((384, 512, 3), 128, np.uint8)
        found = Localizer(load_network("edge"), point_map, settings=strict).localize(grey, CAMERA, prior)
        assert found.reason.startswith("several poses are possible"), found.reason
        metres.append(float(found.reason.split()[-3]))
    assert metres[1] == pytest.approx(QUARTER * metres[0], rel=0.1)


def test_descriptors_do_not_depend_on_which_axis_is_up(street: MapPoints, tmp_path: Path) -> None:
    """The street with y pointing down, as the axes of a camera do, a turn without rounding."""
    turn = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)
    attributes = street.attributes.copy()
    attributes[:, 1:4] = attributes[:, 1:4] @ turn.T
    turned = replace(street, xyz=street.xyz @ turn.T, attributes=attributes)
    network = load_network("edge")
    found = []
    for points, up, name in ((street, [0, 0, 1.0], "level"), (turned, [0, -1.0, 0], "turned")):
        point_map = write_map(tmp_path / name, points, MapInfo(voxel_size=0.2, up=up))
        encode_map(point_map, network)
        stored = point_map.all_points()
        assert stored.descriptors is not None
        level = stored.xyz if name == "level" else stored.xyz @ turn
        found.append(stored.descriptors[np.lexsort(level.T)].astype(int))
    assert np.abs(found[0] - found[1]).max() <= 1  # sums in another order


@pytest.mark.parametrize("up", [[0, 0, 1], [0, 0, -1], [0, -1, 0], [0.2, -0.8, 0.3], [1e-9, 0, -1]])
def test_up_becomes_z_by_the_least_turn(up: list[float]) -> None:
    unit = np.array(up) / np.linalg.norm(up)
    rotation = NetworkFrame.of_map(0.2, unit.tolist()).rotation
    np.testing.assert_allclose(rotation @ unit, [0, 0, 1], atol=1e-8)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-8)
    assert np.linalg.det(rotation) > 0
    assert Rotation.from_matrix(rotation).magnitude() == pytest.approx(np.arccos(unit[2]), abs=1e-7)


def test_a_street_of_the_usual_voxels_is_left_as_it_is(street: MapPoints) -> None:
    frame = NetworkFrame.of_map(0.2, [0.0, 0.0, 1.0])
    assert frame.points(street) is street
    pose = se3.exp(torch.tensor([[1e5 / 3, 2.0, 3.0, 0.4, 0.5, 0.6]], dtype=torch.float64)).numpy()
    np.testing.assert_array_equal(frame.poses(pose), pose)
