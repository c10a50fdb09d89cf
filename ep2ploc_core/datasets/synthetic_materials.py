"""How the surfaces of a synthetic street look: colour for the camera, reflectance for the LiDAR.

Every texture is a function of the place on the surface, so all views of a place agree. Detail finer than a pixel is
faded out (`footprint` is the width of a pixel on the surface), as a lens and a sensor would do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ep2ploc_core.datasets.synthetic_scene import PARKING, Material

COARSE = (3.1, 1.3, 0.55)  # wavelengths of noise, metres
FINE = (0.24, 0.1, 0.045)
LATTICE = 512
PERIOD = 210.0  # a zebra crossing, a word on the road and so on come back after this many metres


class Noise:
    """Random numbers on an endless grid, and smooth noise from them; the same seed gives the same noise."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lattice = torch.rand(LATTICE * LATTICE, generator=generator).to(device)

    def cell(self, uv: Tensor) -> Tensor:
        """A number 0..1 per unit cell, of places `(N, 2)`."""
        cells = uv.floor().long() & (LATTICE - 1)
        return self.lattice[cells[:, 1] * LATTICE + cells[:, 0]]

    def smooth(self, uv: Tensor) -> Tensor:
        """Noise -1..1 that varies over about one unit, at places `(N, 2)`."""
        corner = uv.floor()
        weight = uv - corner
        weight = weight * weight * (3 - 2 * weight)
        column = corner[:, 0].long() & (LATTICE - 1)
        row = (corner[:, 1].long() & (LATTICE - 1)) * LATTICE
        right, below = (column + 1) & (LATTICE - 1), (row + LATTICE) & (LATTICE * LATTICE - 1)
        upper = torch.lerp(self.lattice[row + column], self.lattice[row + right], weight[:, 0])
        lower = torch.lerp(self.lattice[below + column], self.lattice[below + right], weight[:, 0])
        return torch.lerp(upper, lower, weight[:, 1]) * 2 - 1

    def fractal(self, uv: Tensor, wavelengths: tuple[float, ...], footprint: Tensor) -> Tensor:
        """A sum of noises of several wavelengths in metres, about -1..1, at places `(N, 2)` in metres."""
        total = torch.zeros_like(footprint)
        for number, wavelength in enumerate(wavelengths):
            strength = (2 - 4 * footprint / wavelength).clamp(0, 1)
            seen = strength.nonzero().squeeze(1)
            total[seen] += strength[seen] * self.smooth(uv[seen] / wavelength + 71.3 * number)
        return total / len(wavelengths) ** 0.5


@dataclass
class Surface:
    """N places that rays have hit.

    uv `(N, 2)` metres along the surface (on walls and poles the second is the height above their foot; on the ground
    x and the distance to the left of the centre line). size `(N, 2)` half length and half height of the solid (on the
    ground: where the road and where the pavement ends). side `(N,)` true on upright faces, front `(N,)` on those that
    look along the solid's own x. footprint `(N,)` metres. The rest as in Scene.
    """

    material: Tensor
    uv: Tensor
    size: Tensor
    side: Tensor
    front: Tensor
    footprint: Tensor
    colours: Tensor
    pattern: Tensor

    def select(self, indices: Tensor) -> Surface:
        return Surface(*(getattr(self, item.name)[indices] for item in fields(self)))


def appearance(surface: Surface, noise: Noise) -> tuple[Tensor, Tensor]:
    """Colours `(N, 3)` 0..1 (as displayed, before light) and LiDAR reflectance `(N,)` 0..1 of N places."""
    colour = torch.zeros(len(surface.material), 3, device=surface.uv.device)
    reflectance = torch.zeros_like(surface.footprint)
    for material, (texture, dark, bright) in _TEXTURES.items():
        indices = (surface.material == material).nonzero().squeeze(1)
        if len(indices):
            selected = surface.select(indices)
            part = texture(selected, noise).clamp(0, 1)
            colour[indices] = part
            # In the infrared, things of one colour are not equally bright.
            own = 1.0 if material == Material.GROUND else 0.7 + 0.6 * selected.pattern[:, 3]
            shine = own * (dark + (bright - dark) * part.mean(1))
            reflectance[indices] = torch.where(_plate(selected), 1.0, shine) if material == Material.CAR else shine
    return colour, reflectance


def _inside(value: Tensor, low: float | Tensor, high: float | Tensor, footprint: Tensor) -> Tensor:
    """How much of a pixel at `value` lies between `low` and `high`, 0..1."""
    width = footprint.clamp(min=1e-3)
    return ((value - low) / width + 0.5).clamp(0, 1) * ((high - value) / width + 0.5).clamp(0, 1)


def _paint(colour: Tensor, other: Tensor | tuple[float, float, float], amount: Tensor) -> Tensor:
    other = torch.as_tensor(other, dtype=colour.dtype, device=colour.device)
    return torch.lerp(colour, other.expand_as(colour), amount[:, None])


def _mixed(surface: Surface, noise: Noise, coarse: float = 0.5, fine: float = 0.4) -> Tensor:
    """The solid's two shades, mixed by noise at every scale, different on each solid."""
    uv = surface.uv + surface.pattern[:, :2] * 300
    blend = 0.5 + coarse * noise.fractal(uv, COARSE, surface.footprint)
    colour = torch.lerp(surface.colours[:, 0], surface.colours[:, 1], blend[:, None])
    return colour * (1 + fine * noise.fractal(uv + 150, FINE, surface.footprint))[:, None]


def _ground(surface: Surface, noise: Noise) -> Tensor:
    uv, footprint = surface.uv, surface.footprint
    x, lateral, off = uv[:, 0], uv[:, 1], uv[:, 1].abs()
    road_end, walk_end = surface.size.unbind(1)
    lane = (road_end - PARKING) / 2 + 0.1
    coarse, fine = noise.fractal(uv, COARSE, footprint), noise.fractal(uv + 99, FINE, footprint)
    grey = 0.35 + 0.06 * coarse + 0.13 * fine
    tracks = torch.exp(-(((off - lane).abs() - 0.75) ** 2) / 0.08)
    grey = grey - 0.035 * tracks
    # Mended patches of their own shade, and cracks where a slow noise passes through zero.
    patch = noise.cell(torch.stack([x / 3.7, lateral / 1.9 + 40], 1))
    grey = grey + torch.where(patch > 0.82, (patch - 0.91) * 2.2, torch.zeros_like(grey))
    crack = 1 - (noise.smooth(uv / 1.7 + 300).abs() / (0.02 + 0.6 * footprint)).clamp(max=1)
    grey = grey - 0.16 * crack * (0.05 / (0.05 + footprint))
    road = torch.stack([grey, grey, grey * 1.03], 1)
    worn = (0.75 + 0.35 * coarse).clamp(0, 1)
    dashes = _inside(x % 9.0, 0, 3.5, footprint) * _inside(off, 0, 0.07, footprint)
    edges = _inside(off, road_end - PARKING - 0.07, road_end - PARKING + 0.05, footprint)
    place = (x + PERIOD * noise.lattice[0]) % PERIOD  # elsewhere in each street
    zebra = _inside(place, 31, 34.5, footprint) * _inside(lateral % 1.0, 0.2, 0.7, footprint)
    zebra = torch.maximum(zebra, _inside(place, 94, 97, footprint) * _inside(lateral % 0.9, 0.2, 0.65, footprint))
    stop = _inside(place, 61, 61.5, footprint) * (lateral < 0)
    letters = (noise.cell(torch.stack([x / 0.6, lateral / 0.28 + 7], 1)) > 0.5) & ((lateral + lane).abs() < 1)
    word = letters * _inside(place % 70, 15, 19, footprint)
    marks = torch.stack([dashes, edges, zebra, stop, word]).amax(0) * (off < road_end)
    road = _paint(road, (0.86, 0.86, 0.84), marks * worn)
    # Pavement of slabs, each of its own shade, with joints; a pale kerb stone; lawns and drives behind.
    slab = torch.stack([x / 0.6, lateral / 0.4], 1)
    shade = 0.5 + 0.2 * (noise.cell(slab) - 0.5) + 0.07 * coarse + 0.12 * fine
    joint = 1 - _inside(slab[:, 0] % 1, 0.03, 0.97, footprint / 0.6) * _inside(
        slab[:, 1] % 1, 0.04, 0.96, footprint / 0.4
    )
    shade = shade - 0.14 * joint * (0.15 / (0.15 + footprint))
    walk = torch.stack([shade * 1.03, shade, shade * 0.94], 1)
    kerb = _inside(off, road_end - 0.02, road_end + 0.18, footprint)
    stone = 0.62 + 0.1 * (noise.cell(torch.stack([x, lateral.sign() * 3 + 9], 1)) - 0.5) + 0.06 * fine
    walk = _paint(walk, stone[:, None].expand(-1, 3), kerb)
    grass = (
        torch.stack([0.26 + 0.1 * coarse, 0.36 + 0.06 * coarse, 0.14 + 0.03 * coarse], 1) * (1 + 0.7 * fine)[:, None]
    )
    drive = noise.cell(torch.stack([x / 4.3, lateral.sign() * 2 + 20.5], 1)) > 0.7
    garden = torch.where(drive[:, None], walk * torch.tensor([0.9, 0.82, 0.75], device=uv.device), grass)
    colour = torch.where((off < road_end)[:, None], road, walk)
    return torch.where((off < walk_end)[:, None], colour, garden)


def _facade(surface: Surface, noise: Noise) -> Tensor:
    uv, footprint, pattern = surface.uv, surface.footprint, surface.pattern
    colour = _mixed(surface, noise, coarse=0.3, fine=0.3)
    bricks = torch.stack([uv[:, 0] / 0.3 + 0.5 * ((uv[:, 1] / 0.11).floor() % 2), uv[:, 1] / 0.11], 1)
    mortar = 1 - _inside(bricks[:, 1] % 1, 0.1, 0.9, footprint / 0.11) * _inside(
        bricks[:, 0] % 1, 0.04, 0.96, footprint / 0.3
    )
    tone = 0.5 * (noise.cell(bricks) - 0.5)
    visible = (pattern[:, 2] > 0.5) * (0.12 / (0.12 + footprint * 4))
    colour = colour * (1 + visible * (tone - 0.25 * mortar))[:, None]
    # Damp at the foot, streaks of rain and soot below the roof, plaster that has come off here and there.
    streaks = noise.fractal(uv * uv.new_tensor([2.2, 0.12]) + pattern[:, 2:] * 300, COARSE, footprint)
    colour = colour * (1 - 0.25 * torch.exp(-uv[:, 1] / 0.5) + 0.18 * streaks)[:, None]
    bare = ((noise.smooth(uv / 1.9 + pattern[:, 1:3] * 500) - 0.62) * 12).clamp(0, 1)
    colour = _paint(colour, (0.42, 0.36, 0.31), 0.7 * bare)
    # One window per cell of a grid, of the house's own proportions; each cell has its own blinds, or none.
    pitch = torch.stack([1.7 + 1.6 * pattern[:, 0], 2.6 + 0.5 * pattern[:, 1]], 1)
    grid = uv / pitch + torch.stack([pattern[:, 3], torch.zeros_like(footprint)], 1)
    ident = grid.floor() + (pattern[:, :2] * 400).floor()
    chance, kind = noise.cell(ident), noise.cell(ident + 31)
    left, bottom = 0.2 + 0.12 * pattern[:, 2], 0.24 + 0.1 * pattern[:, 3]
    place, fine = grid % 1, footprint[:, None] / pitch
    door = (grid[:, 1] < 1) & (chance > 0.72)
    bottom = torch.where(door, torch.zeros_like(bottom), bottom)
    exists = (surface.size[:, 1] * 2 - grid[:, 1].floor() * pitch[:, 1] > 2.3) & (chance > 0.12)

    def frame(border: float) -> Tensor:
        edge = border / pitch
        across = _inside(place[:, 0], left - edge[:, 0], 1 - left + edge[:, 0], fine[:, 0])
        return across * _inside(place[:, 1], bottom - edge[:, 1], 0.86 + edge[:, 1], fine[:, 1]) * exists

    colour = _paint(colour, torch.where(pattern[:, 1:2] > 0.4, 0.88, 0.3), frame(0.09))
    glass = 0.1 + 0.25 * kind + 0.12 * (place[:, 1] - 0.5)
    pane = torch.stack([glass * 0.85, glass * 0.95, glass * 1.1], 1)
    blind = ((kind > 0.55) & (place[:, 1] > 0.3 + 0.5 * chance)) * _inside(uv[:, 1] % 0.12, 0.02, 0.1, footprint)
    pane = _paint(pane, (0.78, 0.74, 0.66), blind)
    leaf = torch.stack([0.2 + 0.5 * kind, 0.25 + 0.2 * chance, 0.5 - 0.4 * kind], 1)
    pane = torch.where(door[:, None], leaf, pane)
    colour = _paint(colour, pane, frame(0.0))
    bar = _inside((place[:, 0] - 0.5).abs() * pitch[:, 0], -0.03, 0.03, footprint)
    colour = _paint(colour, (0.85, 0.85, 0.82), bar * frame(0.0) * ~door)
    sill = frame(0.14) * _inside((place[:, 1] - bottom) * pitch[:, 1], -0.14, -0.06, footprint)
    colour = _paint(colour, (0.7, 0.68, 0.64), sill * ~door)
    # Shop signs and posters between the windows of the ground floor.
    poster = noise.cell(torch.stack([uv[:, 0] / 1.1, uv[:, 1] / 0.8], 1) + (pattern[:, 2:] * 400).floor())
    shown = (poster > 0.86) & (uv[:, 1] > 0.8) & (uv[:, 1] < 2.4) & (frame(0.12) < 0.5)
    print_ = torch.stack([noise.cell(uv / 0.18 + 50 * number) for number in (1, 2, 3)], 1)
    return torch.where(shown[:, None], 0.15 + 0.75 * print_, colour)


def _roof(surface: Surface, noise: Noise) -> Tensor:
    rows = torch.stack([surface.uv[:, 0] / 0.28, surface.uv[:, 1] / 0.3], 1)
    tone = 0.35 * (noise.cell(rows) - 0.5) - 0.25 * (rows[:, 1] % 1 < 0.18)
    return _mixed(surface, noise) * (1 + tone * (0.25 / (0.25 + surface.footprint * 3)))[:, None]


def _car(surface: Surface, noise: Noise) -> Tensor:
    along, height = surface.uv.unbind(1)
    colour = _mixed(surface, noise, coarse=0.2, fine=0.04)
    flank, end = surface.side & (surface.size[:, 0] > 1.2), _end(surface)
    hub = torch.hypot(along.abs() - 0.62 * surface.size[:, 0], height - 0.2)
    gap = _inside((along - 0.25).abs() % 1.0, 0, 0.025, surface.footprint) * (height > 0.2) * flank
    colour = _paint(colour, (0.05, 0.05, 0.05), 0.7 * gap)
    colour = _paint(colour, (0.05, 0.05, 0.05), (((hub < 0.32) & flank) | ((height < 0.14) & surface.side)).float())
    colour = _paint(colour, (0.5, 0.5, 0.52), 0.8 * ((hub < 0.18) & flank))
    lamp = end & ((along.abs() - 0.65).abs() < 0.17) & ((height - 0.55).abs() < 0.08)
    colour = _paint(colour, (0.9, 0.9, 0.8), _plate(surface).float())
    colour = _paint(colour, (0.75, 0.2, 0.16), (lamp & ~surface.front).float())
    return _paint(colour, (0.82, 0.84, 0.86), (lamp & surface.front).float())


def _end(surface: Surface) -> Tensor:
    """Which places are at the front or the back of a car."""
    return surface.side & (surface.size[:, 0] < 1.2)


def _plate(surface: Surface) -> Tensor:
    """Which places are on a car's licence plate."""
    along, height = surface.uv.unbind(1)
    return _end(surface) & (along.abs() < 0.26) & ((height - 0.42).abs() < 0.07)


def _glass(surface: Surface, noise: Noise) -> Tensor:
    """A car's cabin: panes between pillars, and a painted top."""
    along, height = surface.uv.unbind(1)
    pillar = _inside((along - 0.15).abs() % 1.15, 0, 0.06, surface.footprint) + (height > 0.52)
    pane = 0.1 + 0.12 * (
        0.5 + 0.5 * noise.fractal(surface.uv + surface.pattern[:, :2] * 300, COARSE, surface.footprint)
    )
    panes = torch.stack([pane * 0.9, pane, pane * 1.1], 1)
    return torch.where(
        surface.side[:, None], _paint(panes, surface.colours[:, 0], pillar.clamp(0, 1)), surface.colours[:, 1]
    )


def _metal(surface: Surface, noise: Noise) -> Tensor:
    band = (noise.cell(torch.stack([torch.zeros_like(surface.footprint), surface.uv[:, 1] / 0.7], 1)
                       + surface.pattern[:, :2] * 400) > 0.7) * 0.25  # fmt: skip
    return _mixed(surface, noise, fine=0.12) * (1 + band)[:, None]


def _sign(surface: Surface, noise: Noise) -> Tensor:
    figure = noise.cell(surface.uv / 0.13 + (surface.pattern[:, :2] * 400).floor()) > 0.62
    border = (
        (surface.uv[:, 0].abs() > surface.size[:, 0] - 0.05) | (surface.uv[:, 1] > 2 * surface.size[:, 1] - 0.05)
    ) & surface.side
    return _paint(_mixed(surface, noise, fine=0.1), (0.92, 0.92, 0.9), (figure | border).float())


def _bark(surface: Surface, noise: Noise) -> Tensor:
    stretched = surface.uv * surface.uv.new_tensor([3.0, 0.6]) + surface.pattern[:, :2] * 300
    return _mixed(surface, noise) * (1 + 0.5 * noise.fractal(stretched, FINE, surface.footprint * 2))[:, None]


def _leaves(surface: Surface, noise: Noise) -> Tensor:
    leaf = noise.cell(surface.uv / 0.07 + surface.pattern[:, :2] * 400) - 0.5
    spots = 1 + 0.8 * leaf * (0.06 / (0.06 + surface.footprint * 2))
    return _mixed(surface, noise, coarse=0.45, fine=0.45) * spots[:, None]


def _fence(surface: Surface, noise: Noise) -> Tensor:
    plank = surface.uv[:, 0] / 0.14
    tone = 0.5 * (noise.cell(torch.stack([plank, surface.pattern[:, 0] * 400], 1)) - 0.5)
    gap = 1 - _inside(plank % 1, 0.06, 0.94, surface.footprint / 0.14)
    return _mixed(surface, noise) * ((1 + tone) * (1 - 0.6 * gap * (0.1 / (0.1 + surface.footprint))))[:, None]


def _concrete(surface: Surface, noise: Noise) -> Tensor:
    blocks = torch.stack(
        [surface.uv[:, 0] / 0.5 + 0.5 * ((surface.uv[:, 1] / 0.25).floor() % 2), surface.uv[:, 1] / 0.25], 1
    )
    joint = 1 - _inside(blocks[:, 0] % 1, 0.03, 0.97, surface.footprint / 0.5) * _inside(
        blocks[:, 1] % 1, 0.06, 0.94, surface.footprint / 0.25
    )
    tone = 0.25 * (noise.cell(blocks + (surface.pattern[:, :2] * 400).floor()) - 0.5) - 0.25 * joint * (
        0.1 / (0.1 + surface.footprint)
    )
    return _mixed(surface, noise) * (1 + tone)[:, None]


def _cloth(surface: Surface, noise: Noise) -> Tensor:
    return _mixed(surface, noise, coarse=0.3, fine=0.25)


# For each material its texture, and how bright black and white of this material are in the LiDAR.
_TEXTURES: dict[Material, tuple[Callable[[Surface, Noise], Tensor], float, float]] = {
    Material.GROUND: (_ground, 0.18, 0.6),
    Material.FACADE: (_facade, 0.16, 0.55),
    Material.ROOF: (_roof, 0.15, 0.5),
    Material.CAR: (_car, 0.0, 0.7),
    Material.GLASS: (_glass, 0.0, 0.15),
    Material.METAL: (_metal, 0.24, 0.8),
    Material.SIGN: (_sign, 0.4, 1.3),
    Material.BARK: (_bark, 0.15, 0.5),
    Material.LEAVES: (_leaves, 0.27, 0.9),
    Material.FENCE: (_fence, 0.18, 0.6),
    Material.CONCRETE: (_concrete, 0.18, 0.6),
    Material.CLOTH: (_cloth, 0.18, 0.6),
    Material.BOX: (_sign, 0.18, 0.6),
}
