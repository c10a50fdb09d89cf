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
from ep2ploc_core.datasets.synthetic_scene import KERB_HEIGHT, Material, Scene

TILE = 16  # rays on a side
WIDEST = 0.1  # cosine of the angle between a tile's middle and its rays
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
    meets = _meeting(scene, origin, tiles)
    near = ((scene.centre - origin).norm(dim=-1) - scene.radius).tolist()
    distance, normal, is_ground = _cast_ground(scene, origin, tiles)
    solid = torch.where(is_ground, GROUND, SKY)
    length = tiles.norm(dim=-1)
    farthest = (distance * length).amax(1)
    for number in sorted(meets.any(1).nonzero().squeeze(1).tolist(), key=near.__getitem__):  # near ones hide far ones
        rays = (meets[number] & (farthest > near[number])).nonzero().squeeze(1)
        if len(rays) == 0:
            continue
        before = distance[rays]
        found = _cast_solid(scene, noise, number, origin, tiles[rays], before)
        nearer = found < before
        distance[rays] = before = torch.where(nearer, found, before)
        solid[rays] = torch.where(nearer, number, solid[rays])
        farthest[rays] = (before * length[rays]).amax(1)
    on_solid = solid >= 0
    ray = tiles[on_solid]
    normal[on_solid] = _normals(scene, solid[on_solid], origin + distance[on_solid][:, None] * ray, ray)
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
        # A rim without shadow: places beyond the grid ask there.
        self.corner = (centres - scene.radius[:, None]).amin(0) - SHADOW_TEXEL
        size = ((centres + scene.radius[:, None]).amax(0) - self.corner) / SHADOW_TEXEL
        start = float((scene.centre @ sun + scene.radius).max()) + 1
        columns, rows = (int(length) + 3 for length in size.tolist())
        self.height = torch.full((columns, rows), -torch.inf, device=sun.device)
        low = ((centres - scene.radius[:, None] - self.corner) / SHADOW_TEXEL).floor().clamp(min=0).long().tolist()
        high = ((centres + scene.radius[:, None] - self.corner) / SHADOW_TEXEL).ceil().long().tolist()
        for number, ((left, bottom), (right, top)) in enumerate(zip(low, high, strict=True)):
            window = self.height[left:right, bottom:top]
            i = torch.arange(left, left + window.shape[0], device=sun.device)
            j = torch.arange(bottom, bottom + window.shape[1], device=sun.device)
            place = torch.stack(torch.meshgrid(i, j, indexing="ij"), -1) * SHADOW_TEXEL + self.corner
            origin = place @ self.across.T + start * sun
            distance = _cast_solid(scene, noise, number, origin, -sun.expand_as(origin), start - window)
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
    facing = turned(normal)
    facing_x, facing_y, facing_z = (part.abs() for part in facing)
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
    size = torch.stack([torch.where(along_x, scene.half[index, 1], scene.half[index, 0]), scene.half[index, 2]], 1)
    size = torch.where(is_ground[:, None], size.new_tensor([scene.road.kerb, scene.road.walk]), size)
    return Surface(
        material=torch.where(is_ground, int(Material.GROUND), scene.material[index]),
        uv=torch.stack([u, v], 1),
        size=size,
        side=upright,
        front=facing[0] > 0,
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
    edge = at_low.sign() * scene.road.kerb
    share = ((edge - at_high) / torch.where(at_low == at_high, 1.0, at_low - at_high)).clamp(0, 1)
    on_walk, on_road = at_high.abs() >= scene.road.kerb, at_low.abs() < scene.road.kerb
    distance = torch.where(on_walk, high, torch.where(on_road, low, high + share * (low - high)))
    met = (down < 0) & (distance < 1e4)
    normal = torch.zeros_like(rays)
    face = ~on_walk & ~on_road
    normal[..., 1] = torch.where(face, -at_low.sign(), torch.zeros_like(at_low))
    normal[..., 2] = 1 - normal[..., 1].abs()
    return torch.where(met, distance, torch.inf), normal, met


def _meeting(scene: Scene, origin: Tensor, tiles: Tensor) -> Tensor:
    """Which of the N solids the rays of which tiles may meet, `(N, tiles)`: those whose box is not wholly on the far
    side of one of the four planes through `origin` between which all rays of the tile lie. A tile whose rays go apart
    too far for such planes may meet them all."""
    unit = torch.nn.functional.normalize(tiles, dim=-1)
    axis = torch.nn.functional.normalize(unit.mean(1), dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(axis, axis.new_tensor([0, 0, 1.0]).expand_as(axis)), dim=1)
    down = torch.linalg.cross(axis, right)
    depth = (unit * axis[:, None]).sum(-1)
    planes = []
    for across in (right, down):
        slope = (unit * across[:, None]).sum(-1) / depth.clamp(min=WIDEST)
        planes.append(across - (slope.amax(1, keepdim=True) + 1e-3) * axis)
        planes.append((slope.amin(1, keepdim=True) - 1e-3) * axis - across)
    cos, sin, zero = torch.cos(scene.yaw), torch.sin(scene.yaw), torch.zeros_like(scene.yaw)
    edges = torch.stack([cos, sin, zero, -sin, cos, zero, zero, zero, zero + 1], 1).reshape(-1, 3, 3)
    edges = edges * scene.half[..., None]  # half the box along each of its axes, in rows
    towards = torch.cat(planes).T
    nearest = (scene.centre - origin) @ towards - (edges @ towards).abs().sum(1)  # signed, of the box to each plane
    return (nearest.reshape(len(scene), 4, -1) <= 0).all(1) | (depth.amin(1) < WIDEST)


def _normals(scene: Scene, solid: Tensor, points: Tensor, rays: Tensor) -> Tensor:
    """Unit normals `(M, 3)`, towards the eye, of the solids `(M,)` that rays `(M, 3)` have met at `points` `(M, 3)`."""
    polytopes, cylinders = len(scene.planes), len(scene.cylinders)
    normal = torch.empty_like(points)

    of = (solid < polytopes).nonzero().squeeze(1)
    planes = scene.planes[solid[of]]
    beyond = (planes[..., :3] * points[of, None]).sum(-1) - planes[..., 3]
    behind = (planes[..., :3] * rays[of, None]).sum(-1) >= 0
    face = beyond.masked_fill(behind, -torch.inf).argmax(1)
    normal[of] = planes[torch.arange(len(of), device=of.device), face, :3]

    of = ((solid >= polytopes) & (solid < polytopes + cylinders)).nonzero().squeeze(1)
    centre, radius, top = scene.cylinders[solid[of] - polytopes].split([2, 1, 2], 1)
    outward = (points[of, :2] - centre) / radius
    on_lid = (top[:, 1:] - points[of, 2:]).abs() < (1 - outward.norm(dim=1, keepdim=True)).abs() * radius
    normal[of] = torch.cat([outward * ~on_lid, on_lid.to(outward.dtype)], 1)

    of = (solid >= polytopes + cylinders).nonzero().squeeze(1)
    centre, axes = scene.ellipsoids[solid[of] - polytopes - cylinders].split(3, 1)
    outward = torch.nn.functional.normalize((points[of] - centre) / axes**2, dim=1)
    normal[of] = outward * -(outward * rays[of]).sum(1, keepdim=True).sign()
    return normal


def _cast_solid(scene: Scene, noise: Noise, number: int, origin: Tensor, rays: Tensor, limit: Tensor) -> Tensor:
    """Distances `(...)` at which rays `(..., 3)` meet a solid, inf where they do not; what lies beyond the distances
    `limit` `(...)` may be left out."""
    polytopes, cylinders = len(scene.planes), len(scene.cylinders)
    if number < polytopes:
        return _cast_polytope(scene.planes[number], origin, rays)
    if number < polytopes + cylinders:
        return _cast_cylinder(scene.cylinders[number - polytopes], origin, rays)
    return _cast_crown(scene.ellipsoids[number - polytopes - cylinders], noise, origin, rays, limit)


def _cast_polytope(planes: Tensor, origin: Tensor, rays: Tensor) -> Tensor:
    normals, offsets = planes[:, :3], planes[:, 3]
    towards = rays @ normals.T
    gap = offsets - origin @ normals.T
    # Along a face towards it or away does not matter: the crossing is then so far off that only the side of it counts.
    towards = torch.where(towards.abs() < 1e-9, 1e-9, towards)
    crossing = gap / towards
    entry = crossing.masked_fill(towards > 0, -torch.inf).amax(-1)
    leave = crossing.masked_fill(towards < 0, torch.inf).amin(-1)
    return torch.where((entry > 0) & (entry < leave), entry, torch.inf)


def _cast_cylinder(cylinder: Tensor, origin: Tensor, rays: Tensor) -> Tensor:
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
    return torch.where(on_side, side, torch.where(on_lid, lid, torch.inf))


def _cast_crown(ellipsoid: Tensor, noise: Noise, origin: Tensor, rays: Tensor, limit: Tensor) -> Tensor:
    """A shell of leaves: through a hole in its near side a ray goes on to the far side, or through that too."""
    centre, axes = ellipsoid[:3], ellipsoid[3:]
    offset, scaled = (origin - centre) / axes, rays / axes
    a = (scaled * scaled).sum(-1)
    b = (scaled * offset).sum(-1)
    root = b * b - a * ((offset * offset).sum(-1) - 1)
    distance = torch.full_like(root, torch.inf)
    crossed = (root > 0) & ((-b - root.clamp(min=0).sqrt()) / a < limit)
    start, step = offset.expand_as(scaled)[crossed], scaled[crossed]
    middle, half_width = (-b / a)[crossed], root[crossed].sqrt() / a[crossed]

    def leafy(reach: Tensor, chosen: Tensor) -> Tensor:
        metres = (start[chosen] + reach[:, None] * step[chosen]) * axes
        bumps = noise.smooth(metres[:, :2] / HOLES + 17) + noise.smooth(metres[:, 1:] / HOLES + 91)
        return (reach > 1e-3) & (bumps > HOLE_SHARE)

    reach = torch.full_like(middle, torch.inf)
    left = torch.arange(len(reach), device=reach.device)
    for side in (-1, 1):  # the near side, then the far side for those that have found a hole in the near one
        there = middle[left] + side * half_width[left]
        covered = leafy(there, left)
        reach[left[covered]] = there[covered]
        left = left[~covered]
    distance[crossed] = reach
    return distance


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
