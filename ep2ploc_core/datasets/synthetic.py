"""A synthetic drive in KITTI raw layout: a random street, a car that drives along it, its pictures and its scans."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.synthetic_moving import KINDS, Traffic, write_moving
from ep2ploc_core.datasets.synthetic_scene import Road
from ep2ploc_core.datasets.synthetic_sensors import Exposure, Lidar, SensorRig
from ep2ploc_core.datasets.synthetic_street import random_street
from ep2ploc_core.errors import InputError

START = datetime(2026, 1, 1, 12, 0, 0)
PERIOD = 0.1  # seconds from frame to frame
STEP = 1.0  # metres from frame to frame
BEHIND, AHEAD = 25.0, 80.0  # metres of street before the first and after the last frame
BACKWARD_REACH = -5.0  # points with x below this are cut off, as the car's own body would hide them

# KITTI's left colour camera (P_rect_02 of 2011_09_26: 1242 x 375, f 721.54, centre 609.56, 172.85) at 640 pixels, and
# the last row of 193 cut off.
CAMERA = Camera(width=640, height=192, fx=371.8, fy=371.8, cx=313.9, cy=88.8)
# Where the camera sits in KITTI's chain: the LiDAR's axes turned, a slight misalignment, and the left colour camera's
# own offset from the reference camera.
REFERENCE_FROM_LIDAR = np.eye(4)
REFERENCE_FROM_LIDAR[:3, :3] = Rotation.from_euler("xyz", [0.9, -0.3, 0.5], degrees=True).as_matrix() @ np.array(
    [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
)
REFERENCE_FROM_LIDAR[:3, 3] = [-0.004, -0.076, -0.272]
CAMERA_FROM_REFERENCE = np.eye(4)
CAMERA_FROM_REFERENCE[:3, 3] = [0.06, 0.0, 0.003]
CAMERA_FROM_LIDAR = CAMERA_FROM_REFERENCE @ REFERENCE_FROM_LIDAR


def write_synthetic_drive(
    out: Path,
    frames: int = 60,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | str = "cpu",
    moving: int = 0,
) -> Path:
    """Writes a drive along a random street and returns its directory, `out/<date>/<date>_drive_<seed>_sync`.

    Frames are about one metre apart. `progress(done, frames)` is called after each. `moving` is the number of moving
    things (the first of `synthetic_moving.KINDS`); where they are at each frame is written into the drive too, see
    `read_moving`. The same seed writes the same street and drive, whatever moves in it; a drive of this seed that lies
    there already is replaced once the new one is whole.
    """
    if frames < 1 or not 0 <= seed <= 9999:
        raise InputError(
            f"A synthetic drive needs at least one frame and a seed of 0 to 9999, not {frames} and {seed}."
        )
    drive = drive_path(out, seed)
    aside = drive.with_name(drive.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    for sensor in ("image_02", "velodyne_points"):
        (aside / sensor / "data").mkdir(parents=True)

    # A frame's tensors are too small to be shared out (two threads on one frame take longer than one): each frame is
    # made on one thread, and as many side by side as torch may use threads. A GPU is given one frame at a time.
    threads = torch.get_num_threads()
    workers = threads if torch.device(device).type == "cpu" else 1
    torch.set_num_threads(1)
    try:
        recording = _Recording.of_seed(aside, frames, seed, device, moving)
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done, _ in enumerate(pool.map(recording.write_frame, range(frames)), start=1):
                if progress is not None:
                    progress(done, frames)
    finally:
        torch.set_num_threads(threads)
    for sensor in ("image_02", "velodyne_points"):
        stamps = [START + timedelta(seconds=PERIOD * index) for index in range(frames)]
        (aside / sensor / "timestamps.txt").write_text(
            "".join(f"{stamp:%Y-%m-%d %H:%M:%S.%f}000\n" for stamp in stamps)
        )
    if moving:
        write_moving(aside, KINDS[:moving], [recording.traffic.boxes(index) for index in range(frames)])
    np.savetxt(aside / "poses_lidar.txt", recording.trajectory[:, :3].reshape(frames, 12), fmt="%.9g")

    _write_calibration(drive.parent)
    shutil.rmtree(drive, ignore_errors=True)
    aside.rename(drive)
    return drive


def drive_path(out: Path, seed: int) -> Path:
    """The directory of the drive of a seed."""
    date = START.strftime("%Y_%m_%d")
    return Path(out) / date / f"{date}_drive_{seed:04d}_sync"


def drive_along(road: Road, frames: int, seed: int) -> np.ndarray:
    """Poses `(frames, 4, 4)` map_from_lidar of a car in its lane: it wanders, pitches, rolls and bounces a little."""
    random = np.random.default_rng([seed, 1])
    amplitudes = np.array([0.35, 0.012, 0.008, 0.015, 0.03])  # lateral m, pitch rad, roll rad, yaw rad, height m
    wavelengths = random.uniform([25, 5, 7, 18, 6], [50, 14, 20, 40, 18])
    phases = random.uniform(0, 2 * np.pi, 5)
    along = 0.0
    poses = np.tile(np.eye(4), (frames, 1, 1))
    for pose in poses:
        lateral, pitch, roll, yaw, height = amplitudes * np.sin(2 * np.pi * along / wavelengths + phases)
        x, y, heading = road.pose(along, road.lane + lateral)
        pose[:3, :3] = Rotation.from_euler("ZYX", [heading + yaw, pitch, roll]).as_matrix()
        pose[:3, 3] = [x, y, 1.73 + height]
        along += STEP * random.uniform(0.85, 1.15)
    return poses


@dataclass(frozen=True)
class _Recording:
    """A street, what moves in it, and the way of the recording car: `trajectory` `(frames, 4, 4)` map_from_lidar."""

    directory: Path
    street: SensorRig
    traffic: Traffic
    trajectory: np.ndarray
    seed: int

    @classmethod
    def of_seed(cls, directory: Path, frames: int, seed: int, device: torch.device | str, moving: int) -> _Recording:
        scene = random_street(-BEHIND, frames * STEP + AHEAD, seed, device)
        traffic = Traffic(scene, moving, frames, STEP, seed)
        return cls(directory, SensorRig(scene, seed), traffic, drive_along(scene.road, frames, seed), seed)

    def write_frame(self, index: int) -> None:
        """Writes a frame's image and scan. They depend on its number alone, not on which frames were made before."""
        map_from_lidar, device = self.trajectory[index], self.street.scene.sun.device
        generator = torch.Generator().manual_seed(self.seed * 100_003 + index)
        gain = 1 + 0.08 * float(torch.randn(1, generator=generator).clamp(-2, 2))
        rig = self.street.joined(self.traffic.scene(index))
        map_from_camera = _tensor(map_from_lidar @ np.linalg.inv(CAMERA_FROM_LIDAR), device)
        image = rig.image(CAMERA, map_from_camera, Exposure(gain=gain), generator).cpu().numpy()
        scan = rig.scan(Lidar(), _tensor(map_from_lidar, device), generator).cpu().numpy()
        cv2.imwrite(
            str(self.directory / "image_02" / "data" / f"{index:010d}.jpg"),
            cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, 93],
        )
        ahead = scan[scan[:, 0] > BACKWARD_REACH].astype(np.float32)
        ahead.tofile(self.directory / "velodyne_points" / "data" / f"{index:010d}.bin")


def _tensor(pose: np.ndarray, device: torch.device | str) -> torch.Tensor:
    return torch.tensor(pose, dtype=torch.float32, device=device)


def _write_calibration(directory: Path) -> None:
    """The three calibration files of a KITTI raw day."""

    def row(name: str, values: np.ndarray) -> str:
        return f"{name}: " + " ".join(f"{value:.9e}" for value in np.ravel(values)) + "\n"

    size = np.array([CAMERA.width, CAMERA.height])
    projection = CAMERA.matrix @ CAMERA_FROM_REFERENCE[:3]
    time = f"calib_time: {START:%d-%b-%Y %H:%M:%S}\n"
    files = {
        "calib_cam_to_cam.txt": row("S_rect_02", size) + row("R_rect_00", np.eye(3)) + row("P_rect_02", projection),
        "calib_velo_to_cam.txt": row("R", REFERENCE_FROM_LIDAR[:3, :3]) + row("T", REFERENCE_FROM_LIDAR[:3, 3]),
        "calib_imu_to_velo.txt": row("R", np.eye(3)) + row("T", np.array([-0.81, 0.32, -0.8])),
    }
    for name, text in files.items():
        aside = directory / f"{name}.tmp"
        aside.write_text(time + text)
        aside.replace(directory / name)
