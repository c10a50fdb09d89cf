"""A synthetic scene as a handful of simple solids along a road: all that `synthetic_render` has to know about it.

Map frame: x along the street, y to the left, z up, metres; the road's surface is z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

FACES = 6  # half-spaces of a polytope
KERB_HEIGHT = 0.13
PARKING = 2.0  # width of the strip along each kerb where cars are parked, metres


class Material(IntEnum):
    """What a surface is made of; `synthetic_materials` knows how each looks."""

    GROUND, FACADE, ROOF, CAR, GLASS, METAL, SIGN, BARK, LEAVES, FENCE, CONCRETE, CLOTH, BOX = range(13)


@dataclass(frozen=True)
class Road:
    """The centre line y(x): a sum of sines `(amplitude m, wavelength m, phase)`. To both sides, in metres from it, the
    road ends at `kerb` and the pavement at `walk`, where the gardens begin."""

    waves: tuple[tuple[float, float, float], ...]
    kerb: float = 5.0
    walk: float = 7.4

    @property
    def lane(self) -> float:
        """Where traffic keeps to the right: metres to the left of the centre line."""
        return -(self.kerb - PARKING) / 2 - 0.1

    def centre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and slope dy/dx of the centre line at x, same shape as x."""
        y, slope = torch.zeros_like(x), torch.zeros_like(x)
        for amplitude, wavelength, phase in self.waves:
            angle = x * (2 * np.pi / wavelength) + phase
            y = y + amplitude * torch.sin(angle)
            slope = slope + amplitude * 2 * np.pi / wavelength * torch.cos(angle)
        return y, slope

    def lateral(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance to the left of the centre line, metres (to first order in the bend)."""
        centre, slope = self.centre(x)
        return (y - centre) / torch.sqrt(1 + slope * slope)

    def pose(self, x: float, lateral: float) -> tuple[float, float, float]:
        """x, y and heading (rad) of a point `lateral` metres to the left of the centre line at x."""
        centre, slope = self.centre(torch.tensor(float(x), dtype=torch.float64))
        heading = float(np.arctan(float(slope)))
        return x - lateral * np.sin(heading), float(centre) + lateral * np.cos(heading), heading


@dataclass
class Scene:
    """P polytopes, then C upright cylinders, then E ellipsoids: N solids, numbered in this order.

    planes `(P, 6, 4)`: inside is normal . p <= offset, map frame. cylinders `(C, 5)`: x, y, radius, bottom, top.
    ellipsoids `(E, 6)`: centre, half axes along the map's axes. Of all N: centre `(N, 3)` and radius `(N,)` of a sphere
    around it; base `(N, 3)` and yaw `(N,)` of its own frame (z = 0 at its foot); half `(N, 3)` its half size; material
    `(N,)`; colours `(N, 2, 3)` 0..1; pattern `(N, 4)`, random numbers 0..1 that its texture is drawn from. sun `(3,)`
    is the direction to the sun, and sunshine its strength, 0 (hidden by clouds) to 1 (clear).
    """

    road: Road
    sun: Tensor
    sunshine: float
    planes: Tensor
    cylinders: Tensor
    ellipsoids: Tensor
    centre: Tensor
    radius: Tensor
    base: Tensor
    yaw: Tensor
    half: Tensor
    material: Tensor
    colours: Tensor
    pattern: Tensor

    def __len__(self) -> int:
        return len(self.radius)

    def joined(self, other: Scene) -> Scene:
        """This scene with the solids of another one in it; road and sun are this one's."""
        polytopes, cylinders, solids = len(self.planes), len(self.cylinders), len(self)
        bounds = (0, polytopes, polytopes + cylinders, solids)
        others = (0, len(other.planes), len(other.planes) + len(other.cylinders), len(other))

        def merged(name: str) -> Tensor:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name in ("planes", "cylinders", "ellipsoids"):
                return torch.cat([mine, theirs])
            kinds = zip(pairwise(bounds), pairwise(others), strict=True)
            return torch.cat([part for (a, b), (c, d) in kinds for part in (mine[a:b], theirs[c:d])])

        tensors = {
            item.name: merged(item.name) for item in fields(self) if item.name not in ("road", "sun", "sunshine")
        }
        return Scene(road=self.road, sun=self.sun, sunshine=self.sunshine, **tensors)


@dataclass
class SceneBuilder:
    """Collects solids; each kind keeps its geometry, all share the list of attributes."""

    random: np.random.Generator
    shapes: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {"polytope": [], "cylinder": [], "ellipsoid": []}
    )
    attributes: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {"polytope": [], "cylinder": [], "ellipsoid": []}
    )

    def add(
        self, kind: str, shape: np.ndarray, base: np.ndarray, yaw: float, half: np.ndarray, material: Material,
        colours: np.ndarray,
    ) -> None:  # fmt: skip
        centre = base + [0, 0, half[2]]
        row = [*centre, np.linalg.norm(half), *base, yaw, *half, material, *np.ravel(colours), *self.random.random(4)]
        self.shapes[kind].append(np.asarray(shape, dtype=np.float64))
        self.attributes[kind].append(np.asarray(row, dtype=np.float64))

    def prism(
        self, base: tuple[float, float, float], yaw: float, size: tuple[float, float, float], material: Material,
        colours: np.ndarray, lean: tuple[float, float] = (0, 0),
    ) -> None:  # fmt: skip
        """A box of `size` (length, width, height) standing on `base`; its top is shorter by `lean` at each end and
        each side (a car's cabin; a gabled roof leans by half its width)."""
        length, width, height = size
        half = np.array([length, width, height]) / 2
        normals, offsets = [], []
        for axis in (0, 1):
            for sign in (1, -1):
                normal = np.zeros(3)
                normal[axis], normal[2] = sign * height, lean[axis]
                normal /= np.linalg.norm(normal)
                normals.append(normal)
                offsets.append(abs(normal[axis]) * half[axis])
        normals += [np.array([0, 0, 1.0]), np.array([0, 0, -1.0])]
        offsets += [height, 0.0]
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        world = np.array(normals) @ turn.T
        planes = np.concatenate([world, (np.array(offsets) + world @ np.array(base))[:, None]], axis=1)
        self.add("polytope", planes, np.array(base), yaw, half, material, colours)

    def cylinder(
        self, x: float, y: float, radius: float, bottom: float, top: float, material: Material, colours: np.ndarray
    ) -> None:
        shape = np.array([x, y, radius, bottom, top])
        half = np.array([radius, radius, (top - bottom) / 2])
        self.add("cylinder", shape, np.array([x, y, bottom]), 0.0, half, material, colours)

    def ellipsoid(
        self, centre: np.ndarray, axes: np.ndarray, colours: np.ndarray, material: Material = Material.LEAVES
    ) -> None:
        base = centre - [0, 0, axes[2]]
        self.add("ellipsoid", np.concatenate([centre, axes]), base, 0.0, axes, material, colours)

    def extend(self, other: SceneBuilder) -> None:
        """Takes over all solids of another builder."""
        for kind in self.shapes:
            self.shapes[kind] += other.shapes[kind]
            self.attributes[kind] += other.attributes[kind]

    def scene(self, road: Road, sun: np.ndarray, sunshine: float, device: torch.device | str) -> Scene:
        def tensor(values: np.ndarray) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        rows = np.concatenate([np.array(rows).reshape(-1, 22) for rows in self.attributes.values()])
        return Scene(
            road=road,
            sun=tensor(sun),
            sunshine=sunshine,
            planes=tensor(np.array(self.shapes["polytope"]).reshape(-1, FACES, 4)),
            cylinders=tensor(np.array(self.shapes["cylinder"]).reshape(-1, 5)),
            ellipsoids=tensor(np.array(self.shapes["ellipsoid"]).reshape(-1, 6)),
            centre=tensor(rows[:, :3]),
            radius=tensor(rows[:, 3]),
            base=tensor(rows[:, 4:7]),
            yaw=tensor(rows[:, 7]),
            half=tensor(rows[:, 8:11]),
            material=torch.tensor(rows[:, 11], dtype=torch.long, device=device),
            colours=tensor(rows[:, 12:18]).reshape(-1, 2, 3),
            pattern=tensor(rows[:, 18:22]),
        )
