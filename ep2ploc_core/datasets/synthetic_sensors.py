"""The sensors of a synthetic drive: a camera and a LiDAR that look at one and the same street."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.synthetic_materials import Noise, appearance
from ep2ploc_core.datasets.synthetic_render import SKY, TILE, ShadowMap, cast, surfaces
from ep2ploc_core.datasets.synthetic_scene import Material, Scene


@dataclass(frozen=True)
class Lidar:
    """A spinning LiDAR: blocks of evenly spaced beams `(highest, lowest, number)` in degrees, `field` degrees around
    the front in steps of `step`, ranges in metres; `dropouts` is the share of rays that bring nothing back.

    By default the beams of KITTI's Velodyne HDL-64E (its manual: 32 a third of a degree apart, 32 half a degree), with
    coarser steps than its 0.17 degrees.
    """

    blocks: tuple[tuple[float, float, int], ...] = ((2.0, -8.33, 32), (-8.83, -24.33, 32))
    field: float = 240.0
    step: float = 0.25
    nearest: float = 1.0
    farthest: float = 75.0
    range_noise: float = 0.02
    dropouts: float = 0.03


@dataclass
class Exposure:
    """How one picture is taken: gain on the light, and the spread of the sensor's noise in grey levels."""

    gain: float = 1.0
    noise: float = 1.5


class SensorRig:
    """Takes pictures and scans of a scene. Poses are `(4, 4)` float32 on the scene's device; `generator`s draw the
    sensors' noise and live on the CPU, so that every device sees the same."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.noise = Noise(seed, scene.sun.device)
        self.shadows: tuple[ShadowMap, ...] = (ShadowMap(scene, self.noise),)

    def joined(self, moving: Scene) -> SensorRig:
        """The same sensors in the same street with the solids of another scene, and their shadows, in it."""
        if len(moving) == 0:
            return self
        rig = copy.copy(self)
        rig.scene = self.scene.joined(moving)
        rig.shadows = (*self.shadows, ShadowMap(moving, self.noise))
        return rig

    def depth(self, camera: Camera, map_from_camera: Tensor) -> Tensor:
        """Depth `(height, width)` in metres along the optical axis of an ideal pinhole, inf in the sky."""
        hits = cast(self.scene, self.noise, map_from_camera[:3, 3], _camera_rays(camera, map_from_camera))
        return hits.distance[: camera.height, : camera.width]

    def image(self, camera: Camera, map_from_camera: Tensor, exposure: Exposure, generator: torch.Generator) -> Tensor:
        """The picture `(height, width, 3)` uint8 RGB of an ideal pinhole."""
        rays = _camera_rays(camera, map_from_camera)
        hits = cast(self.scene, self.noise, map_from_camera[:3, 3], rays)
        found = hits.solid != SKY
        picture = torch.empty_like(rays)
        picture[~found] = _sky(self.noise, rays[~found])

        ray, normal, distance = rays[found], hits.normal[found], hits.distance[found]
        points = map_from_camera[:3, 3] + distance[:, None] * ray
        facing = (normal * ray).sum(-1).abs() / ray.norm(dim=-1)
        footprint = distance * ray.norm(dim=-1) / camera.fx / facing.clamp(min=0.06).sqrt()
        albedo, _ = appearance(surfaces(self.scene, hits, points, footprint), self.noise)
        sunlight = (normal @ self.scene.sun).clamp(min=0)
        for shadow in self.shadows:
            sunlight = sunlight * shadow.lit(points, normal)
        shine = self.scene.sunshine
        warm, cool = albedo.new_tensor([1.0, 0.96, 0.88]), albedo.new_tensor([0.38, 0.42, 0.48])
        light = (1.4 - 0.75 * shine) * cool * (1 + 0.25 * normal[:, 2:]) + (0.3 + 1.2 * shine) * warm * sunlight[
            :, None
        ]
        haze = (1 - torch.exp(-distance / 400))[:, None]
        picture[found] = torch.lerp(albedo**2.2 * light, albedo.new_tensor([0.55, 0.6, 0.66]), haze)

        picture = _blurred((picture * exposure.gain).clamp(0, 1))[: camera.height, : camera.width]
        grain = torch.randn(picture.shape, generator=generator).to(picture.device)
        return (255 * picture ** (1 / 2.2) + exposure.noise * grain).round().clamp(0, 255).to(torch.uint8)

    def scan(self, lidar: Lidar, map_from_lidar: Tensor, generator: torch.Generator) -> Tensor:
        """A scan `(N, 4)`: x forward, y left, z up in metres in the LiDAR's frame, reflectance 0..1."""
        device = map_from_lidar.device
        elevation = torch.cat([torch.linspace(*block, device=device) for block in lidar.blocks]).deg2rad()[:, None]
        columns = round(lidar.field / lidar.step) // TILE * TILE
        start = float(torch.rand(1, generator=generator)) - columns / 2  # no two turns begin at the same angle
        azimuth = torch.deg2rad((torch.arange(columns, device=device) + start) * lidar.step)
        level = torch.stack([azimuth.cos(), azimuth.sin(), torch.zeros_like(azimuth)], -1)
        rays = elevation.cos()[..., None] * level + elevation.sin()[..., None] * level.new_tensor([0, 0, 1.0])
        directions = rays @ map_from_lidar[:3, :3].T
        hits = cast(self.scene, self.noise, map_from_lidar[:3, 3], directions)
        found = hits.solid != SKY

        distance = hits.distance[found]
        points = map_from_lidar[:3, 3] + distance[:, None] * directions[found]
        surface = surfaces(self.scene, hits, points, distance * 0.003)
        _, reflectance = appearance(surface, self.noise)
        facing = (hits.normal[found] * directions[found]).sum(-1).abs()
        # Drawn for every ray, so that what stands in one ray's way changes nothing for the others.
        wobble = torch.randn(2, *found.shape, generator=generator).to(device)[:, found]
        chance = torch.rand(found.shape, generator=generator).to(device)[found]
        # Each laser has its own strength, always the same, and so the ground has brighter and darker rings.
        strength = 0.8 + 0.4 * torch.rand(len(elevation), generator=torch.Generator().manual_seed(0)).to(device)
        strength = strength[:, None].expand(found.shape)[found]
        reflectance = (strength * reflectance * (0.5 + 0.5 * facing) + 0.015 * wobble[0]).clamp(0, 0.99)
        measured = distance + lidar.range_noise * wobble[1]
        lost = lidar.dropouts + 0.4 * (surface.material == Material.GLASS) + 0.3 * (facing < 0.03)
        kept = (measured > lidar.nearest) & (measured < lidar.farthest) & (chance > lost)
        return torch.cat([measured[:, None] * rays[found], reflectance[:, None]], 1)[kept]


def _camera_rays(camera: Camera, map_from_camera: Tensor) -> Tensor:
    """Rays `(H, W, 3)` with depth 1 in the map frame, one for each pixel, H and W rounded up to whole tiles."""
    width, height = (-(-length // TILE) * TILE for length in (camera.width, camera.height))
    u = (torch.arange(width, device=map_from_camera.device) - camera.cx) / camera.fx
    v = (torch.arange(height, device=map_from_camera.device) - camera.cy) / camera.fy
    v, u = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], -1) @ map_from_camera[:3, :3].T


def _blurred(picture: Tensor) -> Tensor:
    """The picture `(H, W, 3)` with the edges of solids as soft as a lens leaves them."""
    for axis in (0, 1):
        picture = 0.8 * picture + 0.1 * (picture.roll(1, axis) + picture.roll(-1, axis))
    return picture


def _sky(noise: Noise, directions: Tensor) -> Tensor:
    """Linear light `(M, 3)` of the sky along directions `(M, 3)`: paler towards the horizon, with clouds."""
    unit = torch.nn.functional.normalize(directions, dim=-1)
    height = unit[:, 2:].clamp(min=0.02)
    cloud = noise.fractal(unit[:, :2] / height, (3.0, 1.3, 0.6, 0.25), 0.02 / height[:, 0])
    horizon, zenith = directions.new_tensor([0.75, 0.8, 0.86]), directions.new_tensor([0.25, 0.42, 0.75])
    blue = torch.lerp(horizon, zenith, height.sqrt())
    return torch.lerp(blue, torch.full_like(blue, 0.9), (0.25 + 0.9 * cloud).clamp(0, 1)[:, None])
