"""IPR against a slow, obvious reference and against true visibility."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ep2ploc_core import se3
from ep2ploc_core.evaluation.visibility import JudgedView, judged_views, no_removal, our_rule, papers_rule, score
from ep2ploc_core.visibility import VisibilitySettings, project_inside, remove_invisible, surface_depth

INTRINSICS = torch.tensor([60.0, 58.0, 30.5, 24.5])
SIZE = (64, 48)
SMALL = VisibilitySettings(window=3, scales=3)


def opened(grid: np.ndarray, window: int) -> np.ndarray:
    """Each cell's farthest of the nearest depths of the windows that hold it."""
    out = np.full_like(grid, -np.inf)
    for row in range(grid.shape[0] - window + 1):
        for column in range(grid.shape[1] - window + 1):
            place = (slice(row, row + window), slice(column, column + window))
            out[place] = np.maximum(out[place], grid[place].min())
    return out


def with_farther_ends(grid: np.ndarray, slope: float) -> np.ndarray:
    out = grid.copy()
    for row, column in np.ndindex(*grid.shape):
        beside = grid[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].max()
        if beside <= (1 + slope) * grid[row, column]:
            out[row, column] = beside
    return out


def reference(
    xyz: np.ndarray, pose: np.ndarray, lens: np.ndarray, spacing: float, settings: VisibilitySettings
) -> tuple[set[int], np.ndarray]:
    """Point by point and cell by cell, as the method is described: indices that stay, and the surface."""
    border = [round(settings.margin * length) for length in SIZE]
    width, height = (length + 2 * extra for length, extra in zip(SIZE, border, strict=True))
    fx, fy, cx, cy = lens
    sizes = [2**scale for scale in range(settings.scales)]
    least = settings.window
    drawn = [
        np.full((max(math.ceil(height / size), least), max(math.ceil(width / size), least)), np.inf) for size in sizes
    ]
    places = {}
    for index, point in enumerate(xyz):
        x, y, z = pose[:3, :3] @ point + pose[:3, 3]
        if not settings.nearest < z < settings.farthest:
            continue
        column, row = math.floor(fx * x / z + cx + border[0] + 0.5), math.floor(fy * y / z + cy + border[1] + 0.5)
        if 0 <= column < width and 0 <= row < height:
            places[index] = (row, column, z)
            most = fx * spacing / z / (settings.window / 2)
            scale = max([s for s, size in enumerate(sizes) if size <= most], default=0)
            cell = (row // sizes[scale], column // sizes[scale])
            drawn[scale][cell] = min(drawn[scale][cell], z)
    surface = np.full((height, width), np.inf)
    for size, nearest in zip(sizes, drawn, strict=True):
        seen = with_farther_ends(opened(nearest, settings.window), settings.slope)
        surface = np.minimum(surface, np.kron(seen, np.ones((size, size)))[:height, :width])
    stay = set()
    for index, (row, column, z) in places.items():
        limit = surface[row, column]
        if z <= limit + settings.tolerance_gaps * spacing or z <= limit / (1 - settings.tolerance_share):
            stay.add(index)
    return stay, surface


def random_poses(rng: np.random.Generator, count: int) -> torch.Tensor:
    return se3.exp(torch.from_numpy(rng.uniform(-1, 1, (count, 6)) * [2, 2, 2, 0.2, 0.2, 0.2])).float()


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_point_by_point_reference_in_every_view(seed: int) -> None:
    """Clouds from dense to sparse, several poses and lenses at once, with and without a margin."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform([-8, -6, -2], [8, 6, 30], (1500, 3)).astype(np.float32)
    poses = random_poses(rng, 3)
    lenses = INTRINSICS + torch.from_numpy(rng.uniform(-5, 5, (3, 4))).float()
    spacing = [0.05, 0.3, 0.8, 2.0][seed]
    settings = replace(SMALL, margin=0.15 * (seed % 2), window=3 + seed)
    visible = remove_invisible(torch.from_numpy(xyz), poses, lenses, SIZE, spacing, settings)
    surfaces = surface_depth(torch.from_numpy(xyz), poses, lenses, SIZE, spacing, settings).numpy()
    assert visible.view.tolist() == sorted(visible.view.tolist())
    for view, (pose, lens) in enumerate(zip(poses.double().numpy(), lenses.double().numpy(), strict=True)):
        expected, surface = reference(xyz, pose, lens, spacing, settings)
        assert len(expected) > 20
        assert set(visible.index[visible.view == view].tolist()) == expected
        np.testing.assert_allclose(surfaces[view], surface, rtol=1e-5)


def test_many_views_are_those_of_each_alone_also_where_the_cloud_comes_in_pieces() -> None:
    rng = np.random.default_rng(9)
    for count in (300, 150_000):
        xyz = torch.from_numpy(rng.uniform([-20, -3, -2], [20, 2, 50], (count, 3))).float()
        poses = random_poses(rng, 5)
        together = remove_invisible(xyz, poses, INTRINSICS, SIZE, 0.3)
        for view in range(5):
            alone = remove_invisible(xyz, poses[view], INTRINSICS, SIZE, 0.3)
            mine = together.view == view
            assert torch.equal(together.index[mine], alone.index) and len(alone) > 0
            torch.testing.assert_close(together.pixels[mine], alone.pixels)
            torch.testing.assert_close(together.depths[mine], alone.depths)


def test_pixels_and_depths_are_those_of_the_projection() -> None:
    rng = np.random.default_rng(2)
    xyz = rng.uniform([-40, -40, -40], [40, 40, 40], (20_000, 3))
    pose = random_poses(rng, 1)[0].double().numpy()
    camera = xyz @ pose[:3, :3].T + pose[:3, 3]
    fx, fy, cx, cy = INTRINSICS.double().numpy()
    pixels = np.c_[camera[:, 0] / camera[:, 2] * fx + cx, camera[:, 1] / camera[:, 2] * fy + cy]
    inside = (
        (camera[:, 2] > 0.3) & (camera[:, 2] < 60) & (pixels > -0.5).all(1) & (pixels < np.array(SIZE) - 0.5).all(1)
    )
    found = project_inside(torch.from_numpy(xyz).float(), torch.from_numpy(pose).float(), INTRINSICS, SIZE)
    np.testing.assert_array_equal(found.index.numpy(), np.flatnonzero(inside))
    np.testing.assert_allclose(found.pixels.numpy(), pixels[inside], atol=1e-3)
    np.testing.assert_allclose(found.depths.numpy(), camera[inside, 2], rtol=1e-5)


def test_a_wall_hides_what_stands_behind_it_and_the_ground_in_front_stays() -> None:
    """Also a wall so near that its points, 20 cm apart, lie 24 pixels apart."""
    rng = np.random.default_rng(0)
    intrinsics, size = torch.tensor([300.0, 300, 256, 80]), (512, 160)
    behind = np.c_[rng.uniform(-6, 6, 300), rng.uniform(-2, 1, 300), rng.uniform(12, 25, 300)]
    ground = np.c_[rng.uniform(-4, 4, 4000), np.full(4000, 1.6), rng.uniform(4, 9.9, 4000)]
    for depth in (2.5, 10.0):
        x, y = np.meshgrid(np.arange(-9, 9, 0.2), np.arange(-3, 1.6, 0.2))
        wall = np.c_[x.ravel(), y.ravel(), np.full(x.size, depth)]
        xyz = torch.from_numpy(np.r_[behind, wall, ground[ground[:, 2] < depth]]).float()
        index = remove_invisible(xyz, torch.eye(4), intrinsics, size, 0.2).index
        everything = project_inside(xyz, torch.eye(4), intrinsics, size).index
        assert (index < 300).sum() == 0 and (everything < 300).sum() > 200
        assert (index >= 300).sum() > 0.98 * (everything >= 300).sum()


@pytest.mark.parametrize("spacing", [0.1, 0.4])
def test_slanted_ground_with_a_kerb_stays(spacing: float) -> None:
    """All but a fringe of the 45 degrees and 40 metres, of which the paper's rule loses almost half."""
    x, z = np.meshgrid(np.arange(-40, 40, spacing), np.arange(3, 59, spacing))
    ground = np.c_[x.ravel(), np.where(x.ravel() > 2, 1.5, 1.65), z.ravel()]
    xyz, camera = torch.from_numpy(ground).float(), (torch.eye(4), torch.tensor([370.0, 370, 320, 90]), (640, 192))
    inside = project_inside(xyz, *camera)
    view = JudgedView(xyz, spacing, *camera, inside, torch.ones(len(inside), dtype=torch.bool))
    near = inside.depths < 40
    assert our_rule(view)[near].float().mean() > 0.97
    assert papers_rule(view)[near].float().mean() < 0.6


@pytest.mark.parametrize("size", [(640, 192), (1242, 375)])
def test_beats_the_papers_rule_and_no_removal_on_a_street_whose_truth_is_known(street_views, size) -> None:
    for spacing in (0.1, 0.2, 0.4):
        views = [view for view in street_views if view.size == size and view.spacing == spacing]
        ours, papers, none = (score(rule, views) for rule in (our_rule, papers_rule, no_removal))
        assert ours.f > max(papers.f + 0.1, none.f + 0.03)
        assert ours.precision > 0.93 and ours.recall > 0.88
        assert none.recall == 1 and 0.3 < none.precision < 0.9  # the street hides something, and not all


@pytest.fixture(scope="module")
def street_views():
    return judged_views(21, spacings=(0.1, 0.2, 0.4), sizes=((640, 192), (1242, 375)), frames=20)


def test_margin_keeps_points_just_outside_the_image() -> None:
    xyz = torch.tensor([[6.0, 0.0, 10.0], [5.0, 0.0, 10.0]])  # at columns 66.5 and 60.5 of 64
    outside = replace(SMALL, margin=0.15)
    assert remove_invisible(xyz, torch.eye(4), INTRINSICS, SIZE, 0.1, outside).index.tolist() == [0, 1]
    assert remove_invisible(xyz, torch.eye(4), INTRINSICS, SIZE, 0.1).index.tolist() == [1]


def test_nothing_and_numbers_that_are_none() -> None:
    nothing = remove_invisible(torch.zeros(0, 3), torch.eye(4).repeat(2, 1, 1), INTRINSICS, SIZE, 0.2)
    assert len(nothing) == 0 and nothing.pixels.shape == (0, 2)
    surface = surface_depth(torch.zeros(0, 3), torch.eye(4), INTRINSICS, SIZE, 0.2)
    assert surface.shape == (1, 48, 64) and surface.isinf().all()
    xyz = torch.tensor([[0.0, 0, 5], [math.nan, 0, 5], [0, 0, math.inf], [0, 0, 0], [0, 0, -5], [0.1, 0, 5]])
    assert remove_invisible(xyz, torch.eye(4), INTRINSICS, SIZE, 0.2).index.tolist() == [0, 5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_what_the_cpu_sees() -> None:
    rng = np.random.default_rng(4)
    xyz = torch.from_numpy(rng.uniform([-20, -3, -2], [20, 2, 50], (100_000, 3))).float()
    poses = random_poses(rng, 7)
    here = remove_invisible(xyz, poses, INTRINSICS, SIZE, 0.2)
    there = remove_invisible(xyz.cuda(), poses.cuda(), INTRINSICS.cuda(), SIZE, 0.2)
    mine, theirs = (set(zip(v.view.tolist(), v.index.tolist(), strict=True)) for v in (here, there))
    assert len(mine ^ theirs) < 0.001 * len(mine)  # rounding differs at the borders of pixels
