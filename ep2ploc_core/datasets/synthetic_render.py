"""Casts rays into a synthetic scene, for the camera, for the LiDAR and from the sun.

Solids are met analytically, so all three agree to the precision of float32. Rays come as a grid of neighbours; a solid
is only tried on the tiles of that grid whose cone of rays reaches the sphere around it, and that are not filled by
nearer things. Everything runs on the device of the scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ep2ploc_core.datasets.synthetic_materials import Noise, Surface
from ep2ploc_core.datasets.synthetic_scene import KERB_HEIGHT, KERB_LATERAL, Material, Scene

TILE = 16  # rays on a side
GROUND, SKY = -1, -2  # instead of the number of a solid
SHADOW_TEXEL = 0.06  # metres
SHADOW_OFFSET = 0.08  # metres above its surface at which a place is asked for its shadow
HOLES = 0.16  # leaves cover where noise of this wavelength in metres...
HOLE_SHARE = -0.12  # ...is above this


@dataclass
class Hits:
    """Where `(H, W)` rays end: distance in units of the ray's own length (inf for the sky), the number of the solid
    or GROUND or SKY, and the unit normal `(H, W, 3)` of the surface, map frame."""

    distance: Tensor
    solid: Tensor
    normal: Tensor


def cast(scene: Scene, noise: Noise, origin: Tensor, directions: Tensor) -> Hits:
    """Casts rays from `origin` `(3,)` along `directions` `(H, W, 3)`, map frame, H and W multiples of TILE."""
    tiles = _tiled(directions)
    unit = torch.nn.functional.normalize(tiles, dim=-1)
    axis = torch.nn.functional.normalize(unit.mean(1), dim=-1)
    opening = torch.acos((unit * axis[:, None]).sum(-1).amin(1).clamp(-1, 1))
    to_solid = scene.centre - origin
    reach = to_solid.norm(dim=-1)
    apparent = torch.asin((scene.radius / reach).clamp(max=1))
    apparent = torch.where(reach < scene.radius, torch.full_like(apparent, torch.pi), apparent)
    angle = torch.acos((axis @ (to_solid / reach[:, None]).T).clamp(-1, 1))
    meets = angle < opening[:, None] + apparent + 1e-3

    distance, normal, is_ground = _cast_ground(scene, origin, tiles)
    solid = torch.where(is_ground, GROUND, SKY)
    length = tiles.norm(dim=-1)
    farthest = (distance * length).amax(1)
    for number in torch.argsort(reach - scene.radius).tolist():  # near ones first: they hide those behind them
        rays = (meets[:, number] & (farthest > reach[number] - scene.radius[number])).nonzero().squeeze(1)
        if len(rays) == 0:
            continue
        found, facing = _cast_solid(scene, noise, number, origin, tiles[rays])
        nearer = found < distance[rays]
        distance[rays] = torch.where(nearer, found, distance[rays])
        solid[rays] = torch.where(nearer, number, solid[rays])
        normal[rays] = torch.where(nearer[..., None], facing, normal[rays])
        farthest[rays] = (distance[rays] * length[rays]).amax(1)
    shape = directions.shape[:2]
    return Hits(_untiled(distance, shape), _untiled(solid, shape), _untiled(normal, shape))


class ShadowMap:
    """How far the sunlight comes, on a grid across its direction: made once, then asked for any place and view."""

    def __init__(self, scene: Scene, noise: Noise) -> None:
        sun = scene.sun
        level = torch.nn.functional.normalize(torch.linalg.cross(sun.new_tensor([0, 0, 1.0]), sun), dim=0)
        self.across = torch.stack([level, torch.linalg.cross(sun, level)], 1)
        self.sun = sun
        centres = scene.centre @ self.across
        self.corner = (centres - scene.radius[:, None]).amin(0)
        size = ((centres + scene.radius[:, None]).amax(0) - self.corner) / SHADOW_TEXEL
        start = float((scene.centre @ sun + scene.radius).max()) + 1
        columns, rows = (int(length) + 1 for length in size.tolist())
        self.height = torch.full((columns, rows), -torch.inf, device=sun.device)
        low = ((centres - scene.radius[:, None] - self.corner) / SHADOW_TEXEL).floor().clamp(min=0).long().tolist()
        high = ((centres + scene.radius[:, None] - self.corner) / SHADOW_TEXEL).ceil().long().tolist()
        for number, ((left, bottom), (right, top)) in enumerate(zip(low, high, strict=True)):
            window = self.height[left:right, bottom:top]
            i = torch.arange(left, left + window.shape[0], device=sun.device)
            j = torch.arange(bottom, bottom + window.shape[1], device=sun.device)
            place = torch.stack(torch.meshgrid(i, j, indexing="ij"), -1) * SHADOW_TEXEL + self.corner
            origin = place @ self.across.T + start * sun
            distance, _ = _cast_solid(scene, noise, number, origin, -sun.expand_as(origin))
            torch.maximum(window, start - distance, out=window)

    def lit(self, points: Tensor, normals: Tensor) -> Tensor:
        """Share of the sunlight 0..1 that reaches `points` `(M, 3)` of surfaces with `normals` `(M, 3)`."""
        raised = points + SHADOW_OFFSET * normals
        place = (raised @ self.across - self.corner) / SHADOW_TEXEL
        height = raised @ self.sun
        corner = place.floor()
        share, weight = torch.zeros_like(height), place - corner
        limit = torch.tensor(self.height.shape, device=points.device) - 1
        for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
            i, j = (corner.long() + torch.tensor(step, device=points.device)).clamp(min=0).minimum(limit).unbind(1)
            part = torch.where(torch.tensor(step, device=points.device) == 1, weight, 1 - weight).prod(1)
            share += part * (height > self.height[i, j])
        return share


def surfaces(scene: Scene, hits: Hits, points: Tensor, footprint: Tensor) -> Surface:
    """What the rays that do not end in the sky have hit, at `points` `(M, 3)` with pixels of `footprint` `(M,)`."""
    found = hits.solid != SKY
    solid, normal = hits.solid[found], hits.normal[found]
    is_ground = solid == GROUND
    index = solid.clamp(min=0)
    cos, sin = torch.cos(scene.yaw[index]), torch.sin(scene.yaw[index])

    def turned(vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, z = vector.unbind(-1)
        return cos * x + sin * y, cos * y - sin * x, z

    x, y, z = turned(points - scene.base[index])
    facing_x, facing_y, facing_z = (part.abs() for part in turned(normal))
    upright = facing_z < 0.85
    along_x = facing_x > facing_y
    u = torch.where(along_x, y, x)
    v = torch.where(upright, z, y)
    u = torch.where(upright, u, x)
    round_ = (index >= len(scene.planes)) & (index < len(scene.planes) + len(scene.cylinders))
    u = torch.where(round_, torch.atan2(y, x) * scene.half[index, 0], u)
    lateral = scene.road.lateral(points[:, 0], points[:, 1])
    u = torch.where(is_ground, points[:, 0], u)
    v = torch.where(is_ground, lateral, v)
    length = torch.where(along_x, scene.half[index, 1], scene.half[index, 0])
    return Surface(
        material=torch.where(is_ground, int(Material.GROUND), scene.material[index]),
        uv=torch.stack([u, v], 1),
        size=torch.stack([length, scene.half[index, 2]], 1),
        side=upright,
        footprint=footprint,
        colours=scene.colours[index],
        pattern=scene.pattern[index] + 0.1 * along_x[:, None],
    )


def _cast_ground(scene: Scene, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The road at z = 0 and, KERB_HEIGHT above it, what lies to both sides; distance, normal, and whether it is met."""
    down = rays[..., 2]
    safe = torch.where(down.abs() < 1e-9, torch.full_like(down, -1e-9), down)
    high, low = (KERB_HEIGHT - origin[2]) / safe, -origin[2] / safe

    def lateral(distance: Tensor) -> Tensor:
        x, y = origin[0] + distance * rays[..., 0], origin[1] + distance * rays[..., 1]
        return scene.road.lateral(x, y)

    at_high, at_low = lateral(high), lateral(low)
    # Between the two levels the lateral position is as good as linear: where it passes the kerb, there is its face.
    edge = at_low.sign() * KERB_LATERAL
    share = ((edge - at_high) / torch.where(at_low == at_high, 1.0, at_low - at_high)).clamp(0, 1)
    on_walk, on_road = at_high.abs() >= KERB_LATERAL, at_low.abs() < KERB_LATERAL
    distance = torch.where(on_walk, high, torch.where(on_road, low, high + share * (low - high)))
    met = (down < 0) & (distance < 1e4)
    normal = torch.zeros_like(rays)
    face = ~on_walk & ~on_road
    normal[..., 1] = torch.where(face, -at_low.sign(), torch.zeros_like(at_low))
    normal[..., 2] = 1 - normal[..., 1].abs()
    return torch.where(met, distance, torch.inf), normal, met


def _cast_solid(scene: Scene, noise: Noise, number: int, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Distances `(...)` (inf: missed) and outward normals `(..., 3)` where rays `(..., 3)` enter a solid."""
    polytopes, cylinders = len(scene.planes), len(scene.cylinders)
    if number < polytopes:
        return _cast_polytope(scene.planes[number], origin, rays)
    if number < polytopes + cylinders:
        return _cast_cylinder(scene.cylinders[number - polytopes], origin, rays)
    return _cast_crown(scene.ellipsoids[number - polytopes - cylinders], noise, origin, rays)


def _cast_polytope(planes: Tensor, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    normals, offsets = planes[:, :3], planes[:, 3]
    towards = rays @ normals.T
    gap = offsets - origin @ normals.T
    crossing = gap / torch.where(towards.abs() < 1e-9, torch.full_like(towards, 1e-9), towards)
    entry, face = torch.where(towards < 0, crossing, -torch.inf).max(-1)
    leave = torch.where(towards > 0, crossing, torch.inf).amin(-1)
    outside = ((towards.abs() < 1e-9) & (gap < 0)).any(-1)
    met = (entry > 0) & (entry < leave) & ~outside
    return torch.where(met, entry, torch.inf), normals[face]


def _cast_cylinder(cylinder: Tensor, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    centre, radius, bottom, top = cylinder[:2], cylinder[2], cylinder[3], cylinder[4]
    offset = origin[..., :2] - centre
    flat = rays[..., :2]
    a = (flat * flat).sum(-1).clamp(min=1e-12)
    b = (flat * offset).sum(-1)
    root = b * b - a * ((offset * offset).sum(-1) - radius * radius)
    side = (-b - root.clamp(min=0).sqrt()) / a
    height = origin[..., 2] + side * rays[..., 2]
    on_side = (root > 0) & (side > 0) & (height >= bottom) & (height <= top)
    lid = (top - origin[..., 2]) / torch.where(rays[..., 2].abs() < 1e-9, -1e-9, rays[..., 2])
    across = offset + lid[..., None] * flat
    on_lid = ~on_side & (lid > 0) & (rays[..., 2] < 0) & ((across * across).sum(-1) < radius * radius)
    distance = torch.where(on_side, side, torch.where(on_lid, lid, torch.inf))
    outward = (offset + side[..., None] * flat) / radius
    normal = torch.cat([outward * on_side[..., None], (~on_side)[..., None].to(outward.dtype)], -1)
    return distance, normal


def _cast_crown(ellipsoid: Tensor, noise: Noise, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """A shell of leaves: through a hole in its near side a ray goes on to the far side, or through that too."""
    centre, axes = ellipsoid[:3], ellipsoid[3:]
    offset, scaled = (origin - centre) / axes, rays / axes
    a = (scaled * scaled).sum(-1)
    b = (scaled * offset).sum(-1)
    root = b * b - a * ((offset * offset).sum(-1) - 1)
    distance = torch.full_like(root, torch.inf)
    normal = torch.zeros_like(rays)
    inside = root > 0
    if not inside.any():
        return distance, normal
    start = (offset if offset.shape == scaled.shape else offset.expand_as(scaled))[inside]
    step, a, b, half_width = scaled[inside], a[inside], b[inside], root[inside].sqrt()
    best, best_normal = torch.full_like(a, torch.inf), torch.zeros_like(step)
    for sign in (1.0, -1.0):  # far side first, the near side in front of it
        reach = (-b - sign * -half_width) / a
        place = start + reach[:, None] * step
        metres = place * axes
        bumps = noise.smooth(metres[:, :2] / HOLES + 17) + noise.smooth(metres[:, 1:] / HOLES + 91)
        covered = (reach > 1e-3) & (bumps > HOLE_SHARE)
        best = torch.where(covered, reach, best)
        outward = torch.nn.functional.normalize(place / axes, dim=-1) * sign * -1
        best_normal = torch.where(covered[:, None], outward, best_normal)
    distance[inside] = best
    normal[inside] = best_normal
    return distance, normal


def _tiled(grid: Tensor) -> Tensor:
    """`(H, W, ...)` as `(tiles, TILE * TILE, ...)`."""
    height, width, *rest = grid.shape
    parts = grid.reshape(height // TILE, TILE, width // TILE, TILE, *rest).transpose(1, 2)
    return parts.reshape(-1, TILE * TILE, *rest)


def _untiled(tiles: Tensor, shape: torch.Size) -> Tensor:
    height, width = shape
    rest = tiles.shape[2:]
    parts = tiles.reshape(height // TILE, width // TILE, TILE, TILE, *rest).transpose(1, 2)
    return parts.reshape(height, width, *rest)
