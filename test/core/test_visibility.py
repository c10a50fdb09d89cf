"""IPR against a slow, obvious reference and against true visibility."""

import numpy as np
import pytest
import torch

from ep2ploc_core.visibility import VisibilitySettings, pooling_kernel, remove_invisible

INTRINSICS = torch.tensor([60.0, 60.0, 31.5, 23.5])
SIZE = (64, 48)


def reference(xyz: np.ndarray, kernel: int, settings: VisibilitySettings) -> set[int]:
    """Pixel by pixel, as the method is described."""
    width, height = SIZE
    depth_image = np.full((height, width), np.inf)
    pixel_of = {}
    for index, (x, y, z) in enumerate(xyz):
        if not settings.nearest < z < settings.farthest:
            continue
        column, row = round(60 * x / z + 31.5), round(60 * y / z + 23.5)
        if 0 <= column < width and 0 <= row < height:
            pixel_of[index] = (row, column)
            depth_image[row, column] = min(depth_image[row, column], z)
    half = kernel // 2

    def pooled(image: np.ndarray, choose) -> np.ndarray:
        out = np.empty_like(image)
        for row in range(height):
            for column in range(width):
                window = image[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
                out[row, column] = choose(window)
        return out

    surface = pooled(pooled(depth_image, np.min), np.max)
    keep = set()
    for index, place in pixel_of.items():
        slack = max(settings.tolerance_metres, settings.tolerance_share * xyz[index, 2])
        if xyz[index, 2] <= surface[place] + slack:
            keep.add(index)
    return keep


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_pixel_by_pixel_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    xyz = rng.uniform([-8, -6, -2], [8, 6, 30], (1500, 3)).astype(np.float32)
    settings = VisibilitySettings(kernel=5, reference_width=64)
    assert pooling_kernel(64, settings) == 5
    visible = remove_invisible(torch.from_numpy(xyz), torch.eye(4), INTRINSICS, SIZE, settings)
    assert set(visible.index.tolist()) == reference(xyz, 5, settings)


def test_a_wall_hides_what_stands_behind_it_and_the_ground_in_front_stays() -> None:
    rng = np.random.default_rng(0)
    intrinsics, size = torch.tensor([300.0, 300, 256, 80]), (512, 160)
    wall = np.c_[rng.uniform(-9, 9, 60000), rng.uniform(-3, 1.6, 60000), np.full(60000, 10.0)]
    behind = np.c_[rng.uniform(-6, 6, 300), rng.uniform(-2, 1, 300), rng.uniform(12, 25, 300)]
    ground = np.c_[rng.uniform(-4, 4, 20000), np.full(20000, 1.6), rng.uniform(4, 9.9, 20000)]
    xyz = torch.from_numpy(np.r_[wall, behind, ground]).float()
    index = remove_invisible(xyz, torch.eye(4), intrinsics, size).index.numpy()
    assert ((index >= 60000) & (index < 60300)).sum() == 0
    in_image = (np.abs(300 * ground[:, 0] / ground[:, 2]) < 255) & (300 * 1.6 / ground[:, 2] < 79)
    assert (index >= 60300).sum() > 0.98 * in_image.sum()


def test_tolerance_keeps_slanted_ground_that_the_papers_rule_thins_away() -> None:
    rng = np.random.default_rng(1)
    ground = np.c_[rng.uniform(-8, 8, 20000), np.full(20000, 1.6), rng.uniform(5, 40, 20000)].astype(np.float32)

    def kept(metres: float, share: float) -> int:
        settings = VisibilitySettings(kernel=5, reference_width=64, tolerance_metres=metres, tolerance_share=share)
        return len(remove_invisible(torch.from_numpy(ground), torch.eye(4), INTRINSICS, SIZE, settings).index)

    assert kept(0.3, 0.03) > 1.5 * kept(0.0, 0.0)


def test_margin_keeps_points_just_outside_the_image() -> None:
    xyz = torch.tensor([[6.0, 0.0, 10.0], [5.0, 0.0, 10.0]])  # at columns 67.5 and 61.5 of 64
    outside = VisibilitySettings(margin=0.15)
    assert remove_invisible(xyz, torch.eye(4), INTRINSICS, SIZE, outside).index.tolist() == [0, 1]
    assert remove_invisible(xyz, torch.eye(4), INTRINSICS, SIZE).index.tolist() == [1]
