"""Data sets in the layouts of their official downloads, made of painted boxes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from painted_world import FORWARD, PaintedWorld, level_pose
from scipy.spatial.transform import Rotation

# A street like a corridor, along +x; the LiDAR's first place is the origin of the map.
STREET = PaintedWorld([np.array([[-20.0, -4, -1.7], [140, 4, 4]])], low=np.array([-21.0, -5, -2.7]), span=12.0)
CAMERA0_FROM_LIDAR = np.eye(4)
CAMERA0_FROM_LIDAR[:3, :3] = FORWARD.T
CAMERA0_FROM_LIDAR[:3, 3] = [0.02, -0.07, -0.3]
STREET_K = np.array([[180.0, 0, 159.5], [0, 180.0, 59.5], [0, 0, 1]])
CAMERA2_OFFSET = np.array([0.06, 0.0, 0.0])  # camera 2 is so far to the left of camera 0
WAITING = range(53, 68)  # frames at one place
FLAG = 20.0  # metres above the street: a point that only the scan of its own frame has


def street_places(frames: int) -> np.ndarray:
    """How far the car has come at each frame, metres."""
    steps = np.full(frames, 1.1)
    steps[0] = 0
    steps[WAITING.start + 1 : WAITING.stop] = 0.01
    return np.cumsum(steps)


def write_kitti(path: Path, name: str, frames: int = 100) -> None:
    """A sequence `name` in the layout of KITTI odometry."""
    sequence = path / "sequences" / name
    for folder in (sequence / "image_2", sequence / "velodyne", path / "poses"):
        folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    poses = []
    for frame, place in enumerate(street_places(frames)):
        origin = np.array([place, 0.0, 0.0])
        rays = random.normal(size=(4000, 3))
        points = rays * STREET.distance(origin, rays)[:, None]
        points = points[np.linalg.norm(points, axis=1) < 40]
        scan = np.r_[points, [[0.0, 0.0, FLAG]]].astype(np.float32)
        np.c_[scan, np.full(len(scan), 0.4)].astype("<f4").tofile(sequence / f"velodyne/{frame:06d}.bin")
        map_from_lidar = np.eye(4)
        map_from_lidar[:3, 3] = origin
        map_from_camera0 = map_from_lidar @ np.linalg.inv(CAMERA0_FROM_LIDAR)
        camera = map_from_camera0.copy()
        camera[:3, 3] -= map_from_camera0[:3, :3] @ CAMERA2_OFFSET
        picture = STREET.render(STREET_K, (320, 120), camera)[0]
        cv2.imwrite(str(sequence / f"image_2/{frame:06d}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        poses.append(CAMERA0_FROM_LIDAR @ map_from_camera0)
    projection = np.c_[STREET_K, STREET_K @ CAMERA2_OFFSET]
    rows = {"P0": np.c_[STREET_K, np.zeros(3)], "P2": projection, "Tr": CAMERA0_FROM_LIDAR[:3]}
    text = "".join(f"{row}: {' '.join(map(repr, matrix.ravel().tolist()))}\n" for row, matrix in rows.items())
    (sequence / "calib.txt").write_text(text)
    np.savetxt(sequence / "times.txt", np.arange(frames) / 10)
    np.savetxt(path / f"poses/{name}.txt", np.stack(poses)[:, :3].reshape(-1, 12))


# Two rooms of an area, z up, with something in each that tells its four sides apart.
ROOMS = {
    "office_1": np.array([[0.0, 0, 0], [4, 4, 2.6]]),
    "hallway_1": np.array([[4.2, 0, 0], [8.2, 2.6, 2.6]]),
}
AREA = PaintedWorld(
    list(ROOMS.values()),
    [np.array([[3.0, 2.9, 0], [3.9, 3.9, 1.1]]), np.array([[6.9, 0, 0], [7.9, 0.5, 2.0]])],
    low=np.full(3, -0.5),
)
EYES = {  # scan locations
    "office_1": [(1.0, 1.0, 1.4), (2.4, 1.2, 1.5), (1.2, 2.8, 1.6), (2.0, 2.0, 1.5)],
    "hallway_1": [(5.0, 1.3, 1.5), (5.6, 1.9, 1.4), (6.4, 1.5, 1.5), (7.3, 1.7, 1.6)],
}


def stanford_pose(k: np.ndarray, pose: np.ndarray) -> str:
    """A pose file; the intrinsics count pixels from the image's corner."""
    k = k + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    return json.dumps({
        "camera_k_matrix": k.tolist(),
        "camera_rt_matrix": np.linalg.inv(pose)[:3].tolist(),
        "camera_location": pose[:3, 3].tolist(),
    })  # fmt: skip


def write_stanford_images(area: Path, rooms: list[str], own_from_world: np.ndarray, panoramas: bool = False) -> None:
    """The images of the locations in `rooms`; `own_from_world`: the frame in which the area's poses are given."""
    kind = area / ("pano" if panoramas else "data")
    for folder in ("rgb", "pose", "depth"):
        (kind / folder).mkdir(parents=True, exist_ok=True)
    for room in rooms:
        for number, eye in enumerate(EYES[room]):
            stem = f"camera_{rooms.index(room)}{number}ab{len(room):02d}f_{room}_frame_"
            for view in range(1 if panoramas else 6):
                pose = level_pose(eye, 60.0 * view + 10 * number, 8.0 * (view % 3) if not panoramas else 0.0)
                if panoramas:
                    name = f"{stem}equirectangular_domain_"
                    v, u = np.mgrid[0:360, 0:720]
                    lon, lat = ((u + 0.5) / 720 - 0.5) * 2 * np.pi, ((v + 0.5) / 360 - 0.5) * np.pi
                    rays = np.stack([np.sin(lon) * np.cos(lat), np.sin(lat), np.cos(lon) * np.cos(lat)], -1)
                    rays = rays @ pose[:3, :3].T
                    picture = AREA.paint(pose[:3, 3] + rays * AREA.distance(pose[:3, 3], rays)[..., None])
                    k = np.diag([1.0, 1.0, 1.0])
                else:
                    name = f"{stem}{view}_domain_"
                    focal = [100.0, 120.0, 160.0][view % 3]
                    k = np.array([[focal, 0, 79.5], [0, focal, 79.5], [0, 0, 1]])
                    picture, depth = AREA.render(k, (160, 160), pose)
                    coded = np.round(512 * depth).clip(0, 65534).astype(np.uint16)
                    coded[:3] = 65535
                    cv2.imwrite(str(kind / f"depth/{name}depth.png"), coded)
                cv2.imwrite(str(kind / f"rgb/{name}rgb.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
                (kind / f"pose/{name}pose.json").write_text(stanford_pose(k, own_from_world @ pose))


def write_s3dis(area: Path, turns: dict[str, float] | None = None) -> None:
    """The points of all rooms. Without `turns` as they lie in the building, with the file of angles; with them as in
    the aligned version, each room turned by so many degrees."""
    for room, box in ROOMS.items():
        points = AREA.surface(box, 0.04)
        colours = AREA.paint(points)
        if turns is not None:
            rotation = Rotation.from_euler("z", turns[room], degrees=True).as_matrix()
            middle = (points.min(0) + points.max(0)) / 2
            points = (points - middle) @ rotation.T + middle
        (area / room / "Annotations").mkdir(parents=True)
        np.savetxt(area / room / f"{room}.txt", np.c_[points, colours], fmt=["%.3f"] * 3 + ["%d"] * 3)
    if turns is None:
        (area / f"{area.name}_alignmentAngle.txt").write_text("## Global alignment angle ##\noffice_1 90\n")


# A room of 7-Scenes, whose depth and colour cameras have other focal lengths.
SCENE = PaintedWorld([np.array([[-2.0, -1.5, 0], [2, 1.5, 2.5]])], low=np.array([-2.5, -2, -0.5]), span=5.0)
DEPTH_K = np.array([[585.0, 0, 320], [0, 585.0, 240], [0, 0, 1]])
COLOUR_K = np.array([[525.0, 0, 320], [0, 525.0, 240], [0, 0, 1]])


def write_scene(path: Path, train: tuple[int, ...] = (1, 3), test: tuple[int, ...] = (2,)) -> None:
    """A scene in the layout of 7-Scenes, five frames in each sequence."""
    for sequence in (*train, *test):
        folder = path / f"seq-{sequence:02d}"
        folder.mkdir(parents=True)
        for frame in range(5):
            pose = level_pose((0.1 * frame - 0.4, 0.15 * sequence - 0.3, 1.3), 72.0 * frame + 9 * sequence, 12.0)
            stem = folder / f"frame-{frame:06d}"
            millimetres = np.round(1000 * SCENE.render(DEPTH_K, (640, 480), pose)[1])
            cv2.imwrite(f"{stem}.depth.png", millimetres.astype(np.uint16))
            picture = SCENE.render(COLOUR_K, (640, 480), pose)[0]
            cv2.imwrite(f"{stem}.color.png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            np.savetxt(f"{stem}.pose.txt", pose)
    (path / "TrainSplit.txt").write_text("".join(f"sequence{number}\n" for number in train))
    (path / "TestSplit.txt").write_text("".join(f"sequence{number} \r\n" for number in test))
