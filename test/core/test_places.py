"""Localization without a first guess: views all over a map, the index of their descriptors, and the search."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ep2ploc_core import se3
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.errors import MapError
from ep2ploc_core.landmarks.store import FEATURES_FILE, VIEWS_FILE
from ep2ploc_core.landmarks.surroundings import RADIUS
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings, Pass
from ep2ploc_core.map.array_file import save_array
from ep2ploc_core.map.build import build_map
from ep2ploc_core.map.place_index import (
    LANDMARKS_APART,
    NO_DEPTH,
    Impression,
    PlaceIndex,
    decode_depth,
    encode_depth,
    encode_places,
    open_places,
    places_to_search,
)
from ep2ploc_core.map.point_map import PATH_FILE, SITE_CHECKPOINT, MapInfo, MapPoints, PointMap, write_map
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.map.views import (
    CELLS,
    COLUMNS,
    DIRECTIONS,
    EYE_HEIGHT,
    ROWS,
    SPACING,
    choose_views,
    look,
    sample_at_cells,
)
from ep2ploc_core.matcher import Matcher
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.pose.belief import UNRIVALLED
from ep2ploc_core.visibility import remove_invisible


def ground(path: Path, length: float = 30.0, up: tuple[float, float, float] = (0, 0, 1)) -> PointMap:
    """A flat square of ground with descriptors that are all different."""
    side = np.arange(0, length, 0.5, dtype=np.float32)
    xyz = np.stack([*np.meshgrid(side, side), np.zeros((len(side),) * 2)], -1).reshape(-1, 3).astype(np.float32)
    attributes = np.zeros((len(xyz), 6), np.float32)
    attributes[:, 3] = 1
    points = MapPoints(xyz, attributes, np.zeros((len(xyz), 2), np.uint16))
    point_map = write_map(path, points, MapInfo(voxel_size=0.2, origin=[1e6, 2e6, 50.0], up=list(up)))
    descriptors = np.random.default_rng(0).integers(-90, 90, (len(xyz), 64)).astype(np.int8)
    point_map.store_descriptors(descriptors, "12345678")
    return point_map


def test_views_follow_the_path_also_where_scans_are_missing(tmp_path: Path) -> None:
    point_map = ground(tmp_path / "map")
    path = np.tile(np.eye(4), (6, 1, 1))
    path[:, :3, 3] = [1e6, 2e6, 51.5] + np.array([[0, 0, 0], [1, 0, 0], [3, 0, 0], [15, 0, 0], [15, 9, 0], [315, 9, 0]])
    save_array(point_map.path / PATH_FILE, path)
    views = choose_views(point_map)
    places = np.unique(views[:, :3, 3], axis=0)
    assert len(views) == DIRECTIONS * len(places)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(len(places))
    assert apart.min() > SPACING - 1e-3
    corners = path[:, :3, 3]
    driven = np.concatenate([a + np.linspace(0, 1, 50)[:, None] * (b - a) for a, b in pairwise(corners[:5])])
    assert np.linalg.norm(driven[:, None] - places[None], axis=2).min(1).max() < SPACING
    # Nobody knows the way over 300 m from the last scan but one to the last.
    assert not np.any((places[:, 0] > 1e6 + 20) & (places[:, 0] < 1e6 + 300))
    np.testing.assert_allclose(np.linalg.det(views[:, :3, :3]), 1)
    np.testing.assert_allclose(views[:, :3, 1], np.tile([0, 0, -1.0], (len(views), 1)), atol=1e-12)  # level
    heading = np.sort(np.arctan2(views[:DIRECTIONS, 1, 2], views[:DIRECTIONS, 0, 2]))
    np.testing.assert_allclose(np.diff(heading), 2 * np.pi / DIRECTIONS, atol=1e-9)


def test_without_a_path_views_stand_on_the_ground(tmp_path: Path) -> None:
    views = choose_views(ground(tmp_path / "map"))
    np.testing.assert_allclose(views[:, 2, 3], 50.0 + EYE_HEIGHT, atol=1e-5)
    places = np.unique(views[:, :2, 3], axis=0) - [1e6, 2e6]
    grid = np.stack(np.meshgrid(np.arange(1.0, 29, 2), np.arange(1.0, 29, 2)), -1).reshape(-1, 2)
    assert np.linalg.norm(grid[:, None] - places[None], axis=2).min(1).max() < SPACING


def test_a_view_shows_what_is_visible_from_it(tmp_path: Path) -> None:
    point_map = ground(tmp_path / "map")
    views = choose_views(point_map)
    chosen = views[[700, 701]]
    (seen,) = look(point_map, chosen, 64, torch.device("cpu"))
    points = point_map.all_points()
    camera_from_map = np.linalg.inv(chosen[1])
    local = torch.from_numpy(points.xyz + (point_map.origin - [1e6, 2e6, 50.0])).float()
    camera_from_map[:3, 3] += camera_from_map[:3, :3] @ [1e6, 2e6, 50.0]
    visible = remove_invisible(
        local, torch.from_numpy(camera_from_map).float(), torch.tensor([320.0, 320, 255.5, 127.5]), (512, 256), 0.2
    )
    known = {row.tobytes() for row in points.descriptors[visible.index.numpy()]}
    shown = seen.descriptors[1][seen.valid[1]].numpy()
    assert 50 < len(shown) <= 256
    # A few of them lie on the border of what float32 calls visible.
    assert np.mean([row.tobytes() in known for row in shown]) > 0.98


def test_the_search_finds_the_most_alike_in_order() -> None:
    rng = np.random.default_rng(0)
    descriptors = rng.standard_normal((70_000, 16)).astype(np.float16)  # more than are compared at a time
    depths = rng.integers(-128, 128, (len(descriptors), CELLS)).astype(np.int8)
    index = PlaceIndex(np.tile(np.eye(4), (len(descriptors), 1, 1)), descriptors, depths)
    wanted = rng.standard_normal(16).astype(np.float32)
    by_descriptor = np.argsort(-(descriptors.astype(np.float64) @ wanted.astype(np.float64)))
    # What the image tells is nearly what one of the views shows, and nothing of a third of the cells.
    told = decode_depth(depths[69_990]).astype(np.float64) + rng.uniform(-0.1, 0.1, CELLS)
    told[::3] = np.nan
    known = (depths != NO_DEPTH) & np.isfinite(told)
    fits = np.where(known, np.log(0.05 + np.exp(-np.abs(decode_depth(depths) - told) / 0.2)), 0.0)
    by_depth = np.argsort(-(fits - known * (fits.sum(0) / known.sum(0).clip(1))).sum(1))
    found = index.search(Impression(wanted, told), 12)
    assert found[::2] == by_descriptor[:6].tolist() and found[1::2] == by_depth[:6].tolist()
    assert found[1] == 69_990
    assert sorted(index.search(Impression(wanted, told), 10**6)) == list(range(len(descriptors)))


def test_depths_are_kept_to_a_fiftieth_and_none_stays_none() -> None:
    depths = np.append(np.geomspace(0.25, 140, 1000), np.nan)
    code = encode_depth(np.log(depths))
    assert code[-1] == NO_DEPTH and (code[:-1] != NO_DEPTH).all()
    np.testing.assert_allclose(np.exp(decode_depth(code[:-1])), depths[:-1], rtol=0.02)
    assert encode_depth(np.log(np.array([0.01, 1000.0]))).tolist() == [-127, 127]


def test_depths_of_views_and_of_images_are_those_of_flat_ground(tmp_path: Path) -> None:
    """Over flat ground depth is height over slope of the ray, whatever the lens."""
    point_map = ground(tmp_path / "map")
    views = choose_views(point_map)
    middle = int(np.linalg.norm(views[:, :2, 3] - views[:, :2, 3].mean(0), axis=1).argmin())
    (seen,) = look(point_map, views[middle : middle + 1], 64, torch.device("cpu"))
    shown = seen.log_depth[0].view(ROWS, COLUMNS).numpy()
    slope = (16 * (np.arange(ROWS) + 0.5) - 0.5 - 127.5) / 320  # of the rays through the middles of rows of cells
    expected = np.log(EYE_HEIGHT / np.where(slope > 0, slope, np.nan))
    assert np.isnan(shown[slope < 0]).all()
    near = slope > 0.2
    assert np.isfinite(shown[near]).mean() > 0.5  # points are half a metre apart
    assert np.nanmax(np.abs(shown[near] - expected[near, None])) < 0.15

    stride, (width, height), (focal, cx, cy) = 4, (640, 320), (500.0, 310.0, 130.0)
    rays = ((torch.arange(height / stride) + 0.5) * stride - 0.5 - cy) / focal
    image = (EYE_HEIGHT / rays.clamp(min=1e-3)).log()[:, None].expand(-1, width // stride)
    told = sample_at_cells(image, torch.tensor([focal, focal, cx, cy]), stride).view(ROWS, COLUMNS).numpy()
    across = np.abs((16 * (np.arange(COLUMNS) + 0.5) - 0.5 - 255.5) / 320)
    beyond = slope > (height - cy) / focal
    assert np.isnan(told[:, across > 0.67]).all() and np.isnan(told[beyond]).all()
    inside = near & ~beyond
    assert inside.sum() > 2
    assert np.abs(told[inside][:, across < 0.6] - expected[inside, None]).max() < 0.02


def test_places_come_back_from_disk_and_a_broken_file_is_told(site, tmp_path: Path) -> None:
    here = PointMap.open(site.map_path)
    there = write_map(tmp_path / "map", here.all_points(), here.info)
    network = load_network(site.map_path / SITE_CHECKPOINT)
    there.store_descriptors(here.all_points().descriptors, network.fingerprint)
    assert network.knows_places and not load_network("edge").knows_places
    assert open_places(there) is None and places_to_search(there) is None
    encoded = encode_places(there, network)
    opened = open_places(PointMap.open(there.path))
    assert opened is not None and len(opened) == len(encoded) > DIRECTIONS
    np.testing.assert_array_equal(opened.map_from_camera, encoded.map_from_camera)
    np.testing.assert_array_equal(opened.descriptors, encoded.descriptors)
    np.testing.assert_array_equal(opened.depths, encoded.depths)
    assert 0.1 < (opened.depths != NO_DEPTH).mean() < 1
    np.testing.assert_allclose(np.linalg.norm(opened.descriptors.astype(float), axis=1), 1, atol=1e-2)
    file = next(there.path.glob("places.*.npy"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(MapError, match="encode it again"):
        open_places(there)


def test_places_that_no_network_has_learned_are_those_of_the_landmarks(site, tmp_path: Path) -> None:
    here = PointMap.open(site.map_path)
    learned = places_to_search(here)
    assert learned is not None and learned.is_learned
    bare = write_map(tmp_path / "map", here.all_points(), here.info)
    for name in (VIEWS_FILE, FEATURES_FILE):
        shutil.copyfile(here.path / name, bare.path / name)
    places, store = places_to_search(bare), here.landmark_store
    assert places is not None and not places.is_learned and store is not None
    for pose in store.views["map_from_camera"]:  # around one of the places each of them is looked for
        errors = [se3.pose_error(place, pose) for place in places.map_from_camera]
        assert any(metres <= LANDMARKS_APART < RADIUS and radians < np.radians(46) for metres, radians in errors)
    assert 1 < len(places) < len(store.views)


def test_a_build_remembers_where_the_sensor_was(tmp_path: Path, site) -> None:
    source = KittiSource(site.drive_path)
    point_map = build_map(source, tmp_path / "map")
    np.testing.assert_array_equal(point_map.sensor_path(), np.stack([scan.map_from_lidar for scan in source.scans()]))


def test_images_of_the_site_are_found_without_a_prior(site) -> None:
    """The place heads have learned these very images, so this is a test of the way, not a figure."""
    point_map = PointMap.open(site.map_path)
    network = load_network(site.map_path / SITE_CHECKPOINT)
    places = open_places(point_map)
    lenient = LocalizerSettings(least_score=-10, least_belief=0, least_likeness=-1, least_margin=-1.0)
    settings = replace(lenient, landmarks=False)
    localizer = Localizer(network, point_map, settings=settings, places=places)
    drive = KittiDrive(site.drive_path)
    near = []
    for number in (4, 10, 16):
        frame = drive.frame(number)
        result = localizer.localize(drive.read_image(frame), drive.camera)
        assert result.candidate is not None, result.reason
        metres, radians = se3.pose_error(result.candidate, drive.map_from_camera(frame))
        near.append(metres < 1.0 and radians < np.radians(3))
    assert sum(near) >= 2
    sure = replace(settings, least_margin=10.0)
    refused = Localizer(network, point_map, settings=sure, places=places).localize(site.image, site.camera)
    assert refused.status == "refused" and "as well" in refused.reason


def test_what_landmarks_know_again_is_not_scouted_for(site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they give a pose that is believed; else all that was learned is tried too."""
    stages = []

    def attempt(matcher: Matcher, prior: np.ndarray, stage: Pass):
        stages.append(stage)
        return original(matcher, prior, stage)

    original = Matcher.attempt
    monkeypatch.setattr(Matcher, "attempt", attempt)
    point_map = PointMap.open(site.map_path)
    network = load_network(site.map_path / SITE_CHECKPOINT)
    lenient = LocalizerSettings(least_score=-10, least_belief=0, least_likeness=-1)
    for settings, scouted in ((lenient, False), (replace(lenient, least_score=10.0), True)):
        stages.clear()
        localizer = Localizer(network, point_map, settings=settings, places=open_places(point_map))
        found = localizer.localize(site.image, site.camera)
        assert (settings.scouting in stages) == scouted == (found.status == "refused"), found.reason
        assert found.candidate is not None and se3.pose_error(found.candidate, site.truth)[0] < 0.2


def test_where_no_network_has_learned_places_enough_landmarks_have_to_tell(site, tmp_path: Path) -> None:
    shutil.copytree(site.map_path, tmp_path / "map")
    for file in (tmp_path / "map").glob("places.*"):
        file.unlink()
    bare = PointMap.open(tmp_path / "map")
    places, network = places_to_search(bare), load_network(site.map_path / SITE_CHECKPOINT)
    assert places is not None and not places.is_learned
    lenient = LocalizerSettings(least_score=-10, least_belief=0, least_likeness=-1)
    for enough, status in ((60, "ok"), (10**6, "refused")):
        settings = replace(lenient, unrivalled_landmarks=enough)
        found = Localizer(network, bare, settings=settings, places=places).localize(site.image, site.camera)
        assert found.status == status and found.evidence.margin == UNRIVALLED
        assert se3.pose_error(found.candidate, site.truth)[0] < 0.2
    assert "landmarks tell the place" in found.reason


def test_a_map_without_places_asks_for_a_guess(site) -> None:
    localizer = Localizer(load_network(site.map_path / SITE_CHECKPOINT), PointMap.open(site.map_path))
    result = localizer.localize(site.image, site.camera)
    assert result.status == "refused" and "first guess" in result.reason
