"""Lays out a random street: houses, gardens, parked cars, lamps, signs and trees along a gently bending road."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ep2ploc_core.datasets.synthetic_scene import (
    KERB_HEIGHT,
    Material,
    Road,
    Scene,
    SceneBuilder,
)

FACADE_COLOURS = ((0.75, 0.68, 0.55), (0.6, 0.33, 0.25), (0.8, 0.78, 0.74), (0.62, 0.6, 0.52), (0.5, 0.42, 0.36),
                  (0.78, 0.62, 0.42), (0.55, 0.6, 0.63))  # fmt: skip
ROOF_COLOURS = ((0.45, 0.22, 0.16), (0.3, 0.27, 0.26), (0.5, 0.32, 0.22))
CAR_COLOURS = ((0.75, 0.75, 0.77), (0.1, 0.1, 0.12), (0.5, 0.08, 0.08), (0.12, 0.2, 0.42), (0.4, 0.42, 0.44),
               (0.85, 0.85, 0.82), (0.2, 0.3, 0.2))  # fmt: skip
SIGN_COLOURS = ((0.8, 0.1, 0.08), (0.1, 0.25, 0.7), (0.9, 0.75, 0.1), (0.1, 0.5, 0.25), (0.9, 0.9, 0.9))
GREY, BROWN, GREEN = (0.5, 0.5, 0.5), (0.32, 0.24, 0.17), (0.2, 0.3, 0.1)


@dataclass(frozen=True)
class _Character:
    """What makes one street unlike another: the lowest and highest walls in metres, the shares of houses with a gap
    beside them and of parked cars with another right behind, and the spacing of trees and size of crowns (1: usual)."""

    heights: tuple[float, float]
    gaps: float
    parked: float
    trees: float
    crowns: float


def random_street(start: float, end: float, seed: int, device: torch.device | str = "cpu") -> Scene:
    """A street from x = start to x = end, metres: houses, gardens, parked cars, trees, lamps and signs on both sides,
    and houses across its end. The same seed gives the same street."""
    random = np.random.default_rng(seed)
    waves = (
        (random.uniform(1, 7), random.uniform(130, 200), random.uniform(0, 2 * np.pi)),
        (random.uniform(0.2, 0.6), random.uniform(45, 70), random.uniform(0, 2 * np.pi)),
    )
    kerb = random.uniform(4.7, 6.2)
    road = Road(waves, kerb, kerb + random.uniform(1.9, 3.2))
    low = random.uniform(3.5, 10)
    character = _Character(
        heights=(low, low + random.uniform(1.5, 6)), gaps=random.uniform(0.2, 0.8), parked=random.uniform(0.3, 0.75),
        trees=random.uniform(0.6, 1.8), crowns=random.uniform(0.8, 1.4),
    )  # fmt: skip
    builder = SceneBuilder(random)
    for side in (-1, 1):
        _houses(builder, road, side, start, end, character)
        _parked_cars(builder, road, side, start, end, character.parked)
        _street_furniture(builder, road, side, start, end)
        _trees(builder, road, side, start, end, character)
    x, y, heading = road.pose(end + 14, 0)
    for shift in (-22, -7, 8, 23):
        _house(
            builder, (x, y + shift, 0.0), heading + np.pi / 2, (random.uniform(11, 15), 9, random.uniform(6, 12)), -1
        )
    azimuth, elevation = random.uniform(0, 2 * np.pi), random.uniform(0.7, 1.1)
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    return builder.scene(road, sun, random.uniform(0.3, 1), device)


def tint(random: np.random.Generator, colour: tuple[float, float, float], spread: float = 0.08) -> np.ndarray:
    """Two shades `(2, 3)` near a colour, for a texture to mix."""
    shade = np.array(colour) + random.uniform(-0.4, 0.4, 3) * spread + random.uniform(-spread, spread)
    return np.clip([shade * random.uniform(0.75, 0.9), shade * random.uniform(1.05, 1.2)], 0.02, 0.98)


def _houses(builder: SceneBuilder, road: Road, side: int, start: float, end: float, character: _Character) -> None:
    random = builder.random
    x = start
    while x < end:
        width, depth, height = random.uniform(7, 16), random.uniform(8, 11), random.uniform(*character.heights)
        setback = road.walk + random.uniform(0.3, 5.6)
        middle = x + width / 2
        base = road.pose(middle, side * (setback + depth / 2))
        _house(builder, (base[0], base[1], 0.0), base[2], (width, depth, height), -side)
        if setback > road.walk + 1.6:
            _front_garden(builder, road, side, x, x + width)
        gap = random.uniform(2, 7) if random.random() < character.gaps else 0.0
        if gap > 4:
            back = road.pose(x + width + gap / 2, side * (setback + 4))
            size = (gap, 0.3, random.uniform(1.2, 2.2))
            builder.prism((back[0], back[1], 0), back[2], size, Material.CONCRETE, tint(random, (0.6, 0.56, 0.5)))
        x += width + gap


def _house(
    builder: SceneBuilder, base: tuple[float, float, float], yaw: float, size: tuple[float, float, float], front: int
) -> None:
    """A house; `front` says on which side of its own y axis the street lies."""
    random = builder.random
    width, depth, height = size
    along, across = np.array([np.cos(yaw), np.sin(yaw), 0]), front * np.array([-np.sin(yaw), np.cos(yaw), 0])
    walls = tint(random, FACADE_COLOURS[random.integers(len(FACADE_COLOURS))])
    tiles = tint(random, ROOF_COLOURS[random.integers(len(ROOF_COLOURS))])
    origin = np.array(base)

    def at(side: float, forward: float, up: float) -> tuple[float, float, float]:
        x, y, z = origin + along * side + across * forward + [0, 0, up]
        return float(x), float(y), float(z)

    builder.prism(base, yaw, size, Material.FACADE, walls)
    if random.random() < 0.65:
        rise = random.uniform(2, 3.5)
        lean = (0.0, depth / 2 + 0.2)
        builder.prism(at(0, 0, height), yaw, (width + 0.3, depth + 0.6, rise), Material.ROOF, tiles, lean)
        chimney = at(random.uniform(-0.35, 0.35) * width, 0.8, height + rise * 0.5)
        builder.prism(chimney, yaw, (0.7, 0.6, rise * 0.5 + 0.9), Material.CONCRETE, tint(random, (0.5, 0.3, 0.25)))
    else:
        builder.prism(at(0, 0, height), yaw, (width + 0.3, depth + 0.3, 0.35), Material.CONCRETE, tint(random, GREY))
    for _ in range(random.integers(1, 4)):  # bays, balconies, canopies, door steps
        side = random.uniform(-0.38, 0.38) * width
        kind = random.integers(3)
        if kind == 0:
            tall = min(height - 0.5, random.uniform(2.6, 6))
            builder.prism(at(side, depth / 2 + 0.4, 0), yaw, (2.4, 0.9, tall), Material.FACADE, walls)
        elif kind == 1 and height > 5.5:
            builder.prism(at(side, depth / 2 + 0.5, 2.9), yaw, (2.8, 1.1, 1.0), Material.FENCE, tint(random, GREY))
        else:
            builder.prism(at(side, depth / 2 + 0.5, 2.4), yaw, (1.8, 1.1, 0.15), Material.ROOF, tiles)
            builder.prism(at(side, depth / 2 + 0.4, 0), yaw, (1.5, 0.8, 0.35), Material.CONCRETE, tint(random, GREY))


def _front_garden(builder: SceneBuilder, road: Road, side: int, start: float, end: float) -> None:
    """Hedge, fence or wall between pavement and garden, with a gap for the gate."""
    random = builder.random
    gate = random.uniform(start + 1.5, end - 1.5)
    material, colour, thick = (
        (Material.LEAVES, GREEN, 0.7), (Material.FENCE, BROWN, 0.08), (Material.CONCRETE, (0.6, 0.55, 0.5), 0.25),
    )[random.integers(3)]  # fmt: skip
    colours, height = tint(random, colour, 0.05), random.uniform(0.7, 1.6)
    for left, right in ((start, gate - 0.7), (gate + 0.7, end)):
        if right - left > 0.5:
            x, y, heading = road.pose((left + right) / 2, side * (road.walk + 0.5))
            builder.prism((x, y, KERB_HEIGHT), heading, (right - left, thick, height), material, colours)


def _parked_cars(builder: SceneBuilder, road: Road, side: int, start: float, end: float, dense: float) -> None:
    random = builder.random
    x = start + random.uniform(0, 8)
    while x < end:
        length = random.uniform(3.7, 4.8)
        px, py, heading = road.pose(x, side * (road.kerb - 1.05 + random.uniform(-0.1, 0.1)))
        yaw = heading + random.uniform(-0.03, 0.03) + (np.pi if side > 0 else 0)
        car(builder, px, py, yaw, length)
        x += length + (random.uniform(0.8, 2.5) if random.random() < dense else random.uniform(6, 20))


def car(builder: SceneBuilder, x: float, y: float, yaw: float, length: float) -> None:
    """A car of random paint, one in five a van, that stands at x, y and faces along `yaw`."""
    random = builder.random
    paint = tint(random, CAR_COLOURS[random.integers(len(CAR_COLOURS))], 0.05)
    if random.random() < 0.2:
        builder.prism((x, y, 0.12), yaw, (length + 0.5, 1.9, 1.0), Material.CAR, paint)
        builder.prism((x, y, 1.12), yaw, (length + 0.4, 1.85, 0.9), Material.GLASS, paint, lean=(0.3, 0.1))
    else:
        tall = random.uniform(0.65, 0.8)
        back = -0.25 * random.random()
        cabin = (x + back * np.cos(yaw), y + back * np.sin(yaw), 0.12 + tall)
        builder.prism((x, y, 0.12), yaw, (length, 1.75, tall), Material.CAR, paint, lean=(0.12, 0.05))
        builder.prism(cabin, yaw, (length * 0.62, 1.55, 0.58), Material.GLASS, paint, lean=(0.45, 0.16))


def _street_furniture(builder: SceneBuilder, road: Road, side: int, start: float, end: float) -> None:
    """Lamps, signs, bins and distribution boxes along the kerb."""
    random = builder.random
    for x in np.arange(start + (0 if side < 0 else 13), end, 26):
        px, py, heading = road.pose(x + random.uniform(-3, 3), side * (road.kerb + 0.5))
        tall = random.uniform(5.5, 8)
        builder.cylinder(px, py, 0.08, 0, tall, Material.METAL, tint(random, GREY))
        arm = (px + side * 0.6 * np.sin(heading), py - side * 0.6 * np.cos(heading), tall)
        builder.prism(arm, heading + np.pi / 2, (1.5, 0.25, 0.15), Material.METAL, tint(random, GREY))
    x = start
    while x < end:
        x += random.uniform(5, 14)
        px, py, heading = road.pose(x, side * random.uniform(road.kerb + 0.4, road.walk - 0.4))
        colour = SIGN_COLOURS[random.integers(len(SIGN_COLOURS))]
        kind = random.integers(3)
        if kind == 0:
            tall = random.uniform(2.0, 2.8)
            builder.cylinder(px, py, 0.035, 0, tall, Material.METAL, tint(random, GREY))
            across = heading + np.pi / 2 + random.uniform(-0.3, 0.3)
            front = (px - 0.05 * np.cos(heading), py - 0.05 * np.sin(heading), tall - 0.7)
            size = (random.uniform(0.5, 0.9), 0.04, random.uniform(0.5, 0.9))
            builder.prism(front, across, size, Material.SIGN, tint(random, colour, 0.03))
        elif kind == 1:
            size = (random.uniform(0.5, 1.3), random.uniform(0.4, 0.6), random.uniform(0.8, 1.5))
            builder.prism((px, py, KERB_HEIGHT), heading, size, Material.BOX, tint(random, colour, 0.1))
        else:
            builder.cylinder(px, py, random.uniform(0.08, 0.3), 0, random.uniform(0.7, 1.2), Material.BOX,
                             tint(random, colour, 0.1))  # fmt: skip


def _trees(builder: SceneBuilder, road: Road, side: int, start: float, end: float, character: _Character) -> None:
    random = builder.random
    x = start + random.uniform(0, 10)
    while x < end:
        px, py, _ = road.pose(x, side * random.uniform(road.kerb + 0.8, road.walk + 1))
        trunk, spread = random.uniform(2.2, 3.2), character.crowns * random.uniform(0.9, 1.7)
        builder.cylinder(px, py, random.uniform(0.1, 0.22), 0, trunk + spread, Material.BARK, tint(random, BROWN))
        leaves = tint(random, (random.uniform(0.15, 0.4), 0.32, 0.1), 0.05)
        for _ in range(random.integers(4, 7)):
            shift = random.uniform(-0.8, 0.8, 3) * spread
            axes = random.uniform(0.5, 0.9, 3) * spread
            builder.ellipsoid(np.array([px, py, trunk + 0.9 * spread]) + shift, axes, leaves)
        x += character.trees * random.uniform(8, 22)
