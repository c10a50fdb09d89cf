"""What moves in a synthetic street: an oncoming car, a car ahead, a pedestrian and a cyclist, at every frame.

Each thing is built of solids anew for every frame, always from the same random numbers, so that only its pose changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ep2ploc_core.datasets.synthetic_scene import KERB_HEIGHT, Material, Road, Scene, SceneBuilder
from ep2ploc_core.datasets.synthetic_street import car, tint
from ep2ploc_core.errors import InputError

FILE = "moving.json"
KINDS = ("oncoming car", "car ahead", "pedestrian", "cyclist")  # the first M of them make a drive's M moving things
CLOTHES = ((0.15, 0.18, 0.3), (0.6, 0.12, 0.1), (0.2, 0.2, 0.2), (0.75, 0.7, 0.6), (0.2, 0.35, 0.2), (0.8, 0.75, 0.15))
SKIN, BLACK = (0.72, 0.52, 0.42), (0.08, 0.08, 0.09)


@dataclass
class MovingBoxes:
    """The M moving things of one frame: `map_from_box` `(M, 4, 4)` and `sizes` `(M, 3)` in metres. A box has its origin
    in its middle, x forward along its length, y left along its width, z up along its height."""

    map_from_box: np.ndarray
    sizes: np.ndarray

    def contain(self, points: np.ndarray, margin: float = 0.1) -> np.ndarray:
        """Which points `(N, 3)`, map frame, lie in one of the boxes made larger by `margin` metres on every side:
        `(N,)` bool. With the default margin these are all points that a scan with 2 cm of noise has on them."""
        inside = np.zeros(len(points), bool)
        for map_from_box, size in zip(self.map_from_box, self.sizes, strict=True):
            local = (points - map_from_box[:3, 3]) @ map_from_box[:3, :3]
            inside |= (np.abs(local) <= size / 2 + margin).all(1)
        return inside


@dataclass(frozen=True)
class _Thing:
    """Frame by frame a thing is at `along(frame)` metres of the road and `lateral` metres left of its centre line."""

    kind: str
    seed: tuple[int, ...]
    along: Callable[[float], float]
    lateral: float
    forward: bool

    def pose(self, road: Road, frame: int) -> tuple[float, float, float]:
        x, y, heading = road.pose(self.along(frame), self.lateral)
        return x, y, heading if self.forward else heading + np.pi

    def build(self, pose: tuple[float, float, float], frame: int) -> SceneBuilder:
        builder = SceneBuilder(np.random.default_rng(self.seed))
        if self.kind in ("oncoming car", "car ahead"):
            car(builder, *pose, builder.random.uniform(3.7, 4.8))
        elif self.kind == "pedestrian":
            _person(builder, pose, stride=0.3 * np.sin(0.8 * frame))
        else:
            _cyclist(builder, pose, stride=0.15 * np.sin(0.8 * frame))
        return builder


class Traffic:
    """The first `count` of KINDS on the street of a scene that is `length` metres long from x = 0, for a drive that
    goes `step` metres per frame. The same seed moves the same things in the same way."""

    def __init__(self, street: Scene, count: int, frames: int, step: float, seed: int) -> None:
        if not 0 <= count <= len(KINDS):
            raise InputError(
                f"A synthetic drive has 0 to {len(KINDS)} moving things ({', '.join(KINDS)}), not {count}."
            )
        self.road, self.sun = street.road, street.sun.cpu().numpy()
        self.device = street.sun.device
        self.things = [_thing(kind, street, frames, step, (seed, 2, index)) for index, kind in enumerate(KINDS[:count])]

    def scene(self, frame: int) -> Scene:
        """The moving things alone, as they stand at a frame."""
        builder = SceneBuilder(np.random.default_rng(0))
        for thing in self.things:
            builder.extend(thing.build(thing.pose(self.road, frame), frame))
        return builder.scene(self.road, self.sun, 0.0, self.device)

    def boxes(self, frame: int) -> MovingBoxes:
        """Where they are at a frame: the smallest boxes around their solids."""
        poses, sizes = np.tile(np.eye(4), (len(self.things), 1, 1)), np.zeros((len(self.things), 3))
        for thing, pose, size in zip(self.things, poses, sizes, strict=True):
            x, y, yaw = thing.pose(self.road, frame)
            solids = thing.build((0.0, 0.0, 0.0), frame).scene(self.road, self.sun, 0.0, "cpu")
            base, half = solids.base.numpy(), solids.half.numpy()
            low, high = (base - half * [1, 1, 0]).min(0), (base + half * [1, 1, 2]).max(0)
            pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
            pose[:3, 3] = pose[:3, :3] @ ((low + high) / 2) + [x, y, 0]
            size[:] = high - low
        return MovingBoxes(poses, sizes)


def write_moving(drive: Path, kinds: Sequence[str], frames: Sequence[MovingBoxes]) -> None:
    """Writes `moving.json` into a drive: `kinds` and, for each frame, `map_from_box` and `size` of each thing."""
    rows = [
        [
            {"map_from_box": pose.tolist(), "size": size.tolist()}
            for pose, size in zip(boxes.map_from_box, boxes.sizes, strict=True)
        ]
        for boxes in frames
    ]
    (drive / FILE).write_text(json.dumps({"kinds": list(kinds), "frames": rows}))


def read_moving(drive: Path) -> list[MovingBoxes]:
    """The boxes of the moving things of a synthetic drive, one entry per frame; the truth for a test of what is static.

    A point of frame i's scan, taken to the map frame, lies on a moving thing where `read_moving(drive)[i].contain` says
    so. Raises InputError for a drive that was written without moving things.
    """
    path = Path(drive) / FILE
    if not path.is_file():
        raise InputError(
            f"There is no {path}; write the synthetic drive with moving things (moving=1 to {len(KINDS)})."
        )
    try:
        frames = json.loads(path.read_text())["frames"]
        return [
            MovingBoxes(
                np.array([thing["map_from_box"] for thing in things], dtype=np.float64).reshape(-1, 4, 4),
                np.array([thing["size"] for thing in things], dtype=np.float64).reshape(-1, 3),
            )
            for things in frames
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"The boxes {path} cannot be read ({error!r}); write the synthetic drive again.") from error


def _thing(kind: str, street: Scene, frames: int, step: float, seed: tuple[int, ...]) -> _Thing:
    """A thing whose course brings it into view during the drive; speeds are in metres per frame of 0.1 s."""
    random = np.random.default_rng([*seed, 1])
    if kind == "car ahead":
        gap, wavelength, phase = random.uniform(11, 18), random.uniform(60, 120), random.uniform(0, 2 * np.pi)

        def follow(frame: float) -> float:
            return frame * step + gap + 3 * np.sin(2 * np.pi * frame / wavelength + phase)

        return _Thing(kind, seed, follow, street.road.lane, True)
    if kind == "pedestrian":
        course = [_walk(random, street.road, frames * step) for _ in range(40)]
        start, lateral, speed = max(course, key=lambda walk: _clearance(street, walk, frames))
        return _Thing(kind, seed, lambda frame: start + speed * frame, lateral, speed > 0)
    # Oncoming: it meets the recording car after a third to two thirds of the drive, of a long drive sooner, so that it
    # does not come from beyond the end of the street.
    speed = random.uniform(0.8, 1.1) if kind == "oncoming car" else random.uniform(0.35, 0.55)
    meeting = min(random.uniform(0.33, 0.67) * frames, (frames * step + 50) / (step + speed))
    lateral = -street.road.lane + (random.uniform(-0.4, -0.2) if kind == "oncoming car" else random.uniform(0.95, 1.05))
    return _Thing(kind, seed, lambda frame: meeting * step - speed * (frame - meeting), lateral, False)


def _walk(random: np.random.Generator, road: Road, length: float) -> tuple[float, float, float]:
    """Start along the road, lateral place on a pavement, and speed of a pedestrian."""
    lateral = random.choice([-1, 1]) * random.uniform(road.kerb + 0.6, road.walk - 0.5)
    return random.uniform(8, 0.8 * length + 12), lateral, random.choice([-1, 1]) * random.uniform(0.11, 0.16)


def _clearance(street: Scene, walk: tuple[float, float, float], frames: int) -> float:
    """Metres between a pedestrian's walk and the nearest thing that stands on the pavement."""
    start, lateral, speed = walk
    low = (street.base[:, 2] < 2) & (street.half[:, :2].norm(dim=1) < 3)  # neither crowns of trees nor houses
    solids, reach = street.base[low, :2].cpu().numpy(), street.half[low, :2].norm(dim=1).cpu().numpy()
    along = np.linspace(start, start + speed * frames, max(2, round(abs(speed) * frames / 0.5)))
    course = np.array([street.road.pose(x, lateral)[:2] for x in along])
    return float((np.linalg.norm(course[:, None] - solids, axis=2) - reach).min(initial=10.0))


def _person(builder: SceneBuilder, pose: tuple[float, float, float], stride: float, lift: float = KERB_HEIGHT) -> None:
    """A person of 1.7 m on a pavement or a bicycle, one foot `stride` metres before and the other behind."""
    random = builder.random
    shirt, trousers = (tint(random, CLOTHES[random.integers(len(CLOTHES))]) for _ in range(2))

    def part(forward: float, left: float, up: float, size: tuple[float, float, float], colours: np.ndarray) -> None:
        _part(builder, pose, (forward, left, lift + up), size, colours)

    part(stride, 0.1, 0.0, (0.16, 0.14, 0.85), trousers)
    part(-stride, -0.1, 0.0, (0.16, 0.14, 0.85), trousers)
    part(0.0, 0.0, 0.85, (0.24, 0.44, 0.6), shirt)
    part(-stride, 0.27, 0.8, (0.11, 0.11, 0.6), shirt)
    part(stride, -0.27, 0.8, (0.11, 0.11, 0.6), shirt)
    part(0.0, 0.0, 1.45, (0.18, 0.16, 0.25), tint(random, SKIN))


def _cyclist(builder: SceneBuilder, pose: tuple[float, float, float], stride: float) -> None:
    tyres, frame = tint(builder.random, BLACK, 0.02), tint(builder.random, CLOTHES[1])
    for forward in (-0.52, 0.52):
        for width, height in ((0.28, 0.68), (0.52, 0.52), (0.68, 0.28)):  # together as good as round
            _part(builder, pose, (forward, 0, 0.34 - height / 2), (width, 0.05, height), tyres)
    _part(builder, pose, (0.0, 0, 0.5), (1.0, 0.05, 0.08), frame)
    _part(builder, pose, (0.45, 0, 0.9), (0.06, 0.5, 0.1), frame)
    _person(builder, pose, stride, lift=0.12)


def _part(
    builder: SceneBuilder, pose: tuple[float, float, float], place: tuple[float, float, float],
    size: tuple[float, float, float], colours: np.ndarray,
) -> None:  # fmt: skip
    """A box at `place` (forward, left, up) of a thing that stands at `pose` x, y, yaw."""
    x, y, yaw = pose
    forward, left, up = place
    base = (x + forward * np.cos(yaw) - left * np.sin(yaw), y + forward * np.sin(yaw) + left * np.cos(yaw), up)
    builder.prism(base, yaw, size, Material.CLOTH, colours)
