"""Training samples: posed images and map points become batches of (image, points, wrong start pose, true pose).

Everything that could give the true pose away is built from the start pose: the crop of the map, the visible points,
the grid of voxels. A frame's own scan and a randomly wide run of its neighbours are taken out of the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera, project_pinhole
from ep2ploc_core.datasets.novel_view import BLANK, dense_depth, render_view
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.point_map import MapPoints
from ep2ploc_core.visibility import VisibilitySettings, remove_invisible, surface_depth

# How far beside its image a novel view may lie, along the camera's axes (m): right, down, forward.
NOVEL_LEAST, NOVEL_MOST = np.array([-0.8, -0.2, -1.5]), np.array([0.8, 0.2, 4.0])

# Pixels: images of 4:3 or taller would else take more than twice the time of those of a drive, at pixels half as large.
GREATEST_HEIGHT = 288

# Half widths of the start error along and about the camera's axes: right, down, forward (m); pitch, yaw, roll.
START_RANGE = np.array([2.0, 0.5, 2.0, math.radians(3), math.radians(10), math.radians(3)])


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are drawn. `images` per batch in groups of `group` neighbours that share one crop of the map, each
    with `starts` start poses. `world` turns, mirrors and thins the map at random (off for adaptation to one site).
    `novel`: share of the images that are seen from beside where they were taken (only where a map has many scans)."""

    images: int = 3
    group: int = 2
    starts: int = 2
    points: int = 512
    world: bool = True
    hole: int = 3
    hole_extra: int = 4
    crop_radius: float = 45.0
    grid: float = 4.0
    rotate_degrees: float = 3.0
    zoom: float = 0.15
    color: float = 0.3
    novel: float = 0.0


@dataclass
class Surface:
    """What a camera at a pose sees first of points `spacing` metres apart: depth `(H, W)`, metres."""

    depth: Tensor
    spacing: float
    camera: Camera
    camera_from_map: Tensor

    def hides(self, xyz: Tensor, settings: VisibilitySettings) -> Tensor:
        """Which points `(N, 3)` lie behind it."""
        column, row, depth, inside = _cells(xyz, self.camera_from_map, self.camera)
        height, width = self.depth.shape
        limit = self.depth[row.clamp(0, height - 1), column.clamp(0, width - 1)].float()
        return inside & (depth > settings.reach(limit, self.spacing))


@dataclass
class Scene:
    """One place: map points, and images taken in it. images: `(H, W, 3)` uint8 each; map_from_camera `(n, 4, 4)`;
    frames `(n,)`: the frame number of each image, by which its own scan is found in `points.seen`, or None when the
    map is the image's own scan; spacing: metres between map points."""

    points: MapPoints
    images: Sequence[np.ndarray]
    cameras: list[Camera]
    map_from_camera: np.ndarray
    frames: np.ndarray | None
    name: str = ""
    code_voxel: np.ndarray | None = None
    spacing: float = 0.2
    surfaces: dict[int, Surface] = field(default_factory=dict)


@dataclass
class Batch:
    """I images, C clouds with P points in all, V views (an image from a wrong start) of N points each."""

    images: Tensor  # (I, 3, H, W) 0..1
    intrinsics: Tensor  # (I, 4)
    xyz: Tensor  # (P, 3) metres
    attributes: Tensor  # (P, 6)
    cloud: Tensor  # (P,) int64
    code_voxel: Tensor | None  # (P,) int64, the site's voxel of each point, when there is one site
    image_of_view: Tensor  # (V,) int64
    point_of_view: Tensor  # (V, N) int64, into the P points
    valid: Tensor  # (V, N) bool
    visible: Tensor  # (V, N) bool: not hidden at the true pose
    start_camera_from_map: Tensor  # (V, 4, 4)
    true_camera_from_map: Tensor  # (V, 4, 4)
    sigma: Tensor  # (V, 6)
    seen_point: Tensor  # (S,) int64, into the P points: all that are visible from the starts, one view after the other
    seen_view: Tensor  # (S,) int64, the view of each
    seen_of_view: Tensor  # (V, N) int64, into the S: the points of `point_of_view`

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            **{k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        )


def network_size(camera: Camera, width: int) -> tuple[int, int]:
    """Width and height in pixels at which the network sees this camera's images: multiples of 32, at most `width` wide
    and GREATEST_HEIGHT high. Of 640x480 it sees 384x288."""
    width = min(width, max(32, round(GREATEST_HEIGHT * camera.width / camera.height / 32) * 32))
    return width, min(GREATEST_HEIGHT, max(32, round(camera.height * width / camera.width / 32) * 32))


def start_sigma(scale: float) -> np.ndarray:
    """Standard deviations `(6,)` of a start drawn uniformly from START_RANGE x scale."""
    return START_RANGE * scale / math.sqrt(3)


def draw_start(rng: np.random.Generator, scale: float) -> np.ndarray:
    """A start error `(6,)` drawn uniformly from START_RANGE x scale, along and about the camera's axes."""
    return rng.uniform(-1, 1, 6) * START_RANGE * scale


@dataclass
class Shot:
    """An image for training, before the world is mirrored: what `camera` sees at `camera_from_map`, which is `turn` @
    the inverse of `map_from_camera`, all `(4, 4)`. surface: what a novel view sees first, else None."""

    index: int
    picture: np.ndarray
    camera: Camera
    map_from_camera: np.ndarray
    turn: np.ndarray
    camera_from_map: np.ndarray
    surface: Surface | None


class Sampler:
    """Batches by number: batch k of a seed is always the same, so training resumes exactly."""

    def __init__(self, scenes: list[Scene], image_width: int, settings: SamplingSettings, seed: int) -> None:
        self.scenes = scenes
        self.settings = settings
        self.seed = seed
        self.image_width = image_width
        # Scenes are drawn by their number of images, damped, so that long drives do not drown the single frames.
        weights = np.array([len(scene.images) ** 0.75 for scene in scenes])
        self.scene_share = weights / weights.sum()
        self.visibility = VisibilitySettings(margin=0.15)

    def batch(self, number: int, noise_scale: float) -> Batch:
        """Batch `number` with start errors up to START_RANGE x `noise_scale`."""
        rng = np.random.default_rng((self.seed, number))
        parts: list[dict[str, np.ndarray | Tensor]] = []
        clouds: list[dict[str, np.ndarray]] = []
        images: list[np.ndarray] = []
        intrinsics: list[np.ndarray] = []
        offset = seen_offset = 0
        seen: list[np.ndarray] = []
        while len(images) < self.settings.images:
            scene = self.scenes[rng.choice(len(self.scenes), p=self.scene_share)]
            chosen = self._neighbours(scene, rng, min(self.settings.group, self.settings.images - len(images)))
            cloud, views, pictures, lenses = self._group(scene, chosen, noise_scale, rng)
            for view in views:
                view["image_of_view"] = view["image_of_view"] + len(images)
                view["point_of_view"] = view["point_of_view"] + offset
                view["seen_of_view"] = view["seen_of_view"] + seen_offset
                seen.append(np.asarray(view["seen_point"]) + offset)
                seen_offset += len(seen[-1])
            cloud["cloud"] = np.full(len(cloud["xyz"]), len(clouds), np.int64)
            offset += len(cloud["xyz"])
            parts += views
            clouds.append(cloud)
            images += pictures
            intrinsics += lenses

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([np.asarray(part[name]) for part in parts]))

        def join(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([cloud[name] for cloud in clouds]))

        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        return Batch(
            images=pixels.contiguous(memory_format=torch.channels_last),
            intrinsics=torch.from_numpy(np.stack(intrinsics)).float(),
            xyz=join("xyz"),
            attributes=join("attributes"),
            cloud=join("cloud"),
            code_voxel=join("code_voxel") if "code_voxel" in clouds[0] else None,
            image_of_view=stack("image_of_view"),
            point_of_view=stack("point_of_view"),
            valid=stack("valid"),
            visible=stack("visible"),
            start_camera_from_map=stack("start").float(),
            true_camera_from_map=stack("true").float(),
            sigma=stack("sigma").float(),
            seen_point=torch.from_numpy(np.concatenate(seen)),
            seen_view=torch.from_numpy(np.repeat(np.arange(len(seen)), [len(points) for points in seen])),
            seen_of_view=stack("seen_of_view"),
        )

    def shoot(self, number: int) -> Shot:
        """Picture `number`, on its own."""
        rng = np.random.default_rng((self.seed, number, 1))
        scene = self.scenes[rng.choice(len(self.scenes), p=self.scene_share)]
        return self._shoot(scene, int(rng.integers(len(scene.images))), rng)

    def _neighbours(self, scene: Scene, rng: np.random.Generator, count: int) -> list[int]:
        first = int(rng.integers(len(scene.images)))
        if scene.frames is None:
            return [first] * min(count, 1)
        distance = np.linalg.norm(scene.map_from_camera[:, :3, 3] - scene.map_from_camera[first, :3, 3], axis=1)
        near = np.flatnonzero(distance < 12)
        others = rng.permutation(near[near != first])[: count - 1]
        return [first, *others.tolist()]

    def _group(
        self, scene: Scene, chosen: list[int], noise_scale: float, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray | Tensor]], list[np.ndarray], list[np.ndarray]]:
        """Cloud, views, images and intrinsics of one group of neighbouring images."""
        settings = self.settings
        shots = [self._shoot(scene, index, rng) for index in chosen]
        starts = []  # (image in group, start pose, scale of its error)
        for image, shot in enumerate(shots):
            for _ in range(settings.starts):
                # Some small errors too: the second pass starts from where the first one ended.
                scale = noise_scale * (1.0 if rng.random() < 0.65 else 10 ** rng.uniform(-1, 0))
                error = torch.from_numpy(draw_start(rng, scale))
                starts.append((image, shot.map_from_camera @ se3.exp(error).numpy(), scale))
        # Moved by whole voxels of the coarsest level, so that the grid of a crop is the grid of the whole map.
        centre = np.mean([start[:3, 3] for _, start, _ in starts], axis=0)
        centre = np.round(centre / settings.grid) * settings.grid
        keep = self._crop(scene, chosen, [start for _, start, _ in starts], centre, rng)
        if not len(keep):
            raise InputError(
                f"Without the scans around one image the map of {scene.name} is empty; map a longer drive."
            )
        xyz = (scene.points.xyz[keep] - centre).astype(np.float32)
        attributes = scene.points.attributes[keep].copy()
        world = np.eye(4)
        mirrored = settings.world and rng.random() < 0.5
        if settings.world:
            yaw = rng.uniform(-math.pi, math.pi)
            world[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
            if mirrored:
                world[:, 1] *= -1
            xyz = xyz @ world[:3, :3].T.astype(np.float32)
            attributes[:, 1:4] = attributes[:, 1:4] @ world[:3, :3].T.astype(np.float32)
        # World mirrored, camera mirrored with it: the pose stays a rotation.
        flip = np.diag([-1.0, 1, 1, 1]) if mirrored else np.eye(4)
        shift = np.eye(4)
        shift[:3, 3] = -centre
        local_from_map = world @ shift

        cameras = [_mirrored(shot.camera) if mirrored else shot.camera for shot in shots]
        points = torch.from_numpy(np.ascontiguousarray(xyz))
        views: list[dict[str, np.ndarray | Tensor]] = []
        for image, start, scale in starts:
            shot = shots[image]
            true = flip @ shot.camera_from_map @ np.linalg.inv(local_from_map)
            begin = flip @ shot.turn @ np.linalg.inv(local_from_map @ start)
            visible, place, valid = self._pick(points, begin, cameras[image], scene.spacing, rng)
            views.append({
                "image_of_view": np.array(image),
                "point_of_view": visible[place],
                "seen_point": visible,
                "seen_of_view": place,
                "valid": valid,
                "visible": self._visible(scene, shot, keep[visible[place]]),
                "start": begin,
                "true": true,
                "sigma": start_sigma(scale),
            })  # fmt: skip
        cloud = {"xyz": np.ascontiguousarray(xyz, np.float32), "attributes": attributes}
        if scene.code_voxel is not None:
            cloud["code_voxel"] = scene.code_voxel[keep]
        pictures = [shot.picture[:, ::-1] if mirrored else shot.picture for shot in shots]
        return cloud, views, pictures, [camera.intrinsics for camera in cameras]

    def _crop(
        self,
        scene: Scene,
        chosen: list[int],
        starts: list[np.ndarray],
        centre: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Indices of the map points ahead of the start poses, without the scans of these images."""
        settings = self.settings
        relative = scene.points.xyz - centre.astype(np.float32)
        forward = np.mean([start[:3, 2] for start in starts], axis=0).astype(np.float32)
        ahead = relative @ forward
        aside = np.abs(relative[:, 0] * forward[1] - relative[:, 1] * forward[0])
        camera = scene.cameras[chosen[0]]
        widest = np.float32(0.5 * camera.width / camera.fx + math.tan(START_RANGE[4]))
        keep = (ahead > -6) & (ahead < settings.crop_radius) & (aside < 8 + widest * ahead.clip(0))
        if scene.frames is not None:
            # A hole for each image: what another one's scan saw too may stay, as it would in a map without this image.
            for frame in scene.frames[chosen]:
                low = frame - settings.hole - rng.integers(settings.hole_extra + 1)
                high = frame + settings.hole + rng.integers(settings.hole_extra + 1)
                keep &= (scene.points.seen[:, 0] < low) | (scene.points.seen[:, 1] > high)
        index = np.flatnonzero(keep)
        if settings.world:
            share = rng.uniform(0.4, 1.0)
            index = index[rng.random(len(index)) < share]
        return index

    def _shoot(self, scene: Scene, index: int, rng: np.random.Generator) -> Shot:
        """An image at network size as a slightly turned and zoomed camera sees it, maybe from a little beside."""
        settings = self.settings
        image, camera, map_from_camera = scene.images[index], scene.cameras[index], scene.map_from_camera[index]
        size = network_size(camera, self.image_width)
        target = camera.resize(*size)
        zoom = 1 + rng.uniform(0, settings.zoom)
        angles = np.radians(rng.uniform(-1, 1, 3) * settings.rotate_degrees * [0.5, 1.0, 1.0])
        turn = se3.exp(torch.from_numpy(np.r_[np.zeros(3), angles])).numpy()
        matrix = target.matrix * [[zoom], [zoom], [1]]
        matrix[:2, 2] = target.matrix[:2, 2] * zoom - (zoom - 1) * np.array(size) * rng.uniform(0.3, 0.7, 2)
        turned = Camera.from_matrix(*size, matrix)
        # Reduced to about the size it will have before it is warped: a warp alone would alias.
        if camera.width > 1.5 * size[0]:
            reduced = camera.resize(round(1.2 * size[0]), round(1.2 * size[0] * camera.height / camera.width))
            image = cv2.resize(image, (reduced.width, reduced.height), interpolation=cv2.INTER_AREA)
            camera = reduced
        if scene.frames is not None and rng.random() < settings.novel:
            move = np.eye(4)
            move[:3, 3] = rng.uniform(NOVEL_LEAST, NOVEL_MOST)
            taken_camera_from_map = np.linalg.inv(map_from_camera)
            map_from_camera = map_from_camera @ move
            camera_from_map = turn @ np.linalg.inv(map_from_camera)
            pose = torch.from_numpy(camera_from_map).float()
            surface = self._surface(scene, turned, camera_from_map)
            depth = dense_depth(torch.from_numpy(scene.points.xyz), scene.spacing, pose, turned)
            picture = render_view(image, camera, taken_camera_from_map, depth, turned, camera_from_map)
        else:
            camera_from_map = turn @ np.linalg.inv(map_from_camera)
            surface = None
            homography = matrix @ turn[:3, :3] @ np.linalg.inv(camera.matrix)
            picture = cv2.warpPerspective(
                image, homography, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=BLANK
            )
        picture = _recolor(picture, settings.color, rng)
        return Shot(index, picture, turned, map_from_camera, turn, camera_from_map, surface)

    def _pick(
        self,
        points: Tensor,
        camera_from_map: np.ndarray,
        camera: Camera,
        spacing: float,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The points `(S,)` visible from the start, at least one; where among them are some, evenly over the image,
        `(N,)`; and which of those are no padding."""
        pose = torch.from_numpy(camera_from_map).float()
        visible = remove_invisible(
            points, pose, camera.intrinsics_tensor(), (camera.width, camera.height), spacing, self.visibility
        )
        seed = torch.from_numpy(rng.random(len(visible.index)))
        chosen = spread_over_image(visible.pixels, seed, self.settings.points).numpy()
        place = np.zeros(self.settings.points, np.int64)
        place[: len(chosen)] = chosen
        valid = np.arange(self.settings.points) < len(chosen)
        return visible.index.numpy() if len(visible) else np.zeros(1, np.int64), place, valid

    def _visible(self, scene: Scene, shot: Shot, index: np.ndarray) -> np.ndarray:
        """Of which points the picture can tell where they are: it shows them, or they lie outside it."""
        xyz = torch.from_numpy(scene.points.xyz[index])
        if shot.index not in scene.surfaces:
            camera = scene.cameras[shot.index].resize(*network_size(scene.cameras[shot.index], self.image_width))
            scene.surfaces[shot.index] = self._surface(scene, camera, np.linalg.inv(scene.map_from_camera[shot.index]))
        taken = scene.surfaces[shot.index]
        shown = _cells(xyz, taken.camera_from_map, taken.camera)[3] & ~taken.hides(xyz, self.visibility)
        if shot.surface is not None:
            shown &= ~shot.surface.hides(xyz, self.visibility)
        inside = _cells(xyz, torch.from_numpy(shot.camera_from_map).float(), shot.camera)[3]
        return (shown | ~inside).numpy()

    def _surface(self, scene: Scene, camera: Camera, camera_from_map: np.ndarray) -> Surface:
        pose = torch.from_numpy(camera_from_map).float()
        depth = surface_depth(
            torch.from_numpy(scene.points.xyz), pose, camera.intrinsics_tensor(), (camera.width, camera.height),
            scene.spacing, replace(self.visibility, margin=0.0),
        )  # fmt: skip
        return Surface(depth[0].half(), scene.spacing, camera, pose)


def spread_over_image(pixels: Tensor, order: Tensor, count: int, cell: int = 8) -> Tensor:
    """Indices of at most `count` of the pixels `(M, 2)`, a like share from each image cell of `cell` pixels.

    `order` `(M,)` ranks the pixels within their cell; first every cell gives its first, then its second, and so on.
    """
    key = (pixels[:, 1] / cell).floor().long() * 100_000 + (pixels[:, 0] / cell).floor().long()
    sequence = (key + order.double() / (order.max() + 1 if len(order) else 1)).argsort(stable=True)
    sorted_key = key[sequence]
    first = torch.ones_like(sorted_key, dtype=torch.bool)
    first[1:] = sorted_key[1:] != sorted_key[:-1]
    position = torch.arange(len(sequence), device=pixels.device)
    start = torch.where(first, position, torch.zeros_like(position)).cummax(0).values
    rank = (position - start).to(order.dtype) + order[sequence] / (order.max() + 1 if len(order) else 1)
    return sequence[rank.topk(min(count, len(rank)), largest=False).indices]


def _cells(xyz: Tensor, camera_from_map: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Column, row and depth of points `(N, 3)`, and which of them lie inside the image."""
    pixels, depth = project_pinhole(camera.intrinsics_tensor(), se3.apply(camera_from_map, xyz))
    column, row = pixels.round().long().unbind(1)
    inside = (depth > 0.1) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    return column, row, depth, inside


def _mirrored(camera: Camera) -> Camera:
    matrix = camera.matrix.copy()
    matrix[0, 2] = camera.width - 1 - camera.cx
    return Camera.from_matrix(camera.width, camera.height, matrix)


def _recolor(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Exposure, contrast, gamma, saturation and noise, each at random up to `strength`."""
    value = image.astype(np.float32) / 255
    value = value ** np.exp(rng.uniform(-strength, strength))
    grey = value.mean(2, keepdims=True)
    value = grey + (value - grey) * (1 + rng.uniform(-1, 1) * strength)
    value = value * np.exp(rng.uniform(-strength, strength) * 0.7) * (1 + rng.uniform(-0.2, 0.2, 3) * strength)
    mean = value.mean()
    value = mean + (value - mean) * (1 + rng.uniform(-1, 1) * strength)
    value += rng.standard_normal(value.shape, np.float32) * rng.uniform(0, 0.06) * strength
    return np.round(value.clip(0, 1) * 255).astype(np.uint8)
