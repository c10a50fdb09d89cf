"""Novel views against images that were really taken there."""

import cv2
import numpy as np
import pytest
import torch

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.novel_view import FARTHEST, dense_depth, render_view
from ep2ploc_core.datasets.sampling import Scene
from ep2ploc_core.datasets.synthetic import write_synthetic_drive
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.training.scenes import drive_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return drive_scene(KittiSource(write_synthetic_drive(tmp_path_factory.mktemp("drive"), frames=16, seed=6)))


@pytest.mark.parametrize(("taken", "wanted"), [(5, 8), (9, 7)])
def test_a_warped_image_looks_like_the_one_taken_there(scene: Scene, taken: int, wanted: int) -> None:
    """Three metres ahead and two metres back; exposure differs from frame to frame, so patterns are compared."""
    camera = scene.cameras[0]
    new, old = (np.linalg.inv(scene.map_from_camera[index]) for index in (wanted, taken))
    depth = dense_depth(torch.from_numpy(scene.points.xyz), scene.spacing, torch.from_numpy(new).float(), camera)
    warped = render_view(scene.images[taken], camera, old, depth, camera, new)
    shown = (warped != 115).any(2)
    assert shown.mean() > 0.4

    def likeness(image: np.ndarray) -> float:
        blurred = [cv2.GaussianBlur(picture, (5, 5), 0)[shown].ravel() for picture in (image, scene.images[wanted])]
        return float(np.corrcoef(blurred)[0, 1])

    assert 1 - likeness(warped) < 0.5 * (1 - likeness(scene.images[taken]))


def test_dense_depth_of_a_wall_before_another() -> None:
    """The nearer wall hides the farther one although the points of both lie pixels apart."""
    camera = Camera(width=256, height=96, fx=150.0, fy=150.0, cx=127.5, cy=47.5)
    y, x = np.meshgrid(np.arange(-6, 6, 0.2), np.arange(-12, 12, 0.2), indexing="ij")
    near = np.c_[x.ravel(), y.ravel(), np.full(x.size, 5.0)][x.ravel() < 0]
    far = np.c_[x.ravel(), y.ravel(), np.full(x.size, 12.0)]
    points = torch.from_numpy(np.r_[near, far]).float()
    depth = dense_depth(points, 0.2, torch.eye(4), camera)
    np.testing.assert_allclose(depth[:, :110], 5.0, rtol=1e-5)
    np.testing.assert_allclose(depth[:, 146:], 12.0, rtol=1e-5)


def test_depth_of_nothing_is_far() -> None:
    camera = Camera(width=64, height=32, fx=40.0, fy=40.0, cx=31.5, cy=15.5)
    depth = dense_depth(torch.zeros(0, 3), 0.2, torch.eye(4), camera)
    assert depth.shape == (32, 64) and (depth == FARTHEST).all()


def test_the_same_view_is_the_same_image(scene: Scene) -> None:
    camera, pose = scene.cameras[4], np.linalg.inv(scene.map_from_camera[4])
    depth = dense_depth(torch.from_numpy(scene.points.xyz), 0.2, torch.from_numpy(pose).float(), camera)
    same = render_view(scene.images[4], camera, pose, depth, camera, pose)
    difference = np.abs(same[2:-2, 2:-2].astype(int) - scene.images[4][2:-2, 2:-2])
    assert difference.mean() < 0.5
