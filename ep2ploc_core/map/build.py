"""From posed scans to a voxel map on disk: one point per occupied voxel, with normal, planarity and height.

1. Scans are summed up per voxel. What has gathered is put aside now and then, tile by tile, together with a small image
   of what each scan saw; the memory needed depends on the piece between two such times, not on the map.
2. Tile by tile, the pieces are merged, and ghosts of moving things removed.
3. Tile by tile, with a border of its neighbours, points get normals and heights, and the tile is written.

A build that was stopped goes on from the last finished piece or tile when the same command is given again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ep2ploc_core.errors import InputError, MapError
from ep2ploc_core.map.build_directory import BuildDirectory, fingerprint
from ep2ploc_core.map.ghosts import GhostDetector, RangeImage
from ep2ploc_core.map.point_map import MapInfo, MapPoints, PointMap, check_replaceable, put_in_place
from ep2ploc_core.map.posed_scan import PosedScan, ScanSource
from ep2ploc_core.map.surface import GROUND_CELL, height_above_ground, surface_shape
from ep2ploc_core.map.voxel_grid import VoxelGrid, voxel_positions

Z_UP = (0.0, 0.0, 1.0)
_PIECE_ROWS = 1_500_000  # voxels in memory before they are put aside
_PIECE_SCANS = 200
_FAR = 10_000.0  # metres
_NORMAL_VOXELS = 3  # radius of the neighbourhood that a normal comes from
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class BuildSettings:
    """Edges of voxels and tiles in metres, and whether ghosts of moving things are removed."""

    voxel_size: float = 0.2
    tile_size: float = 20.0
    thin_ghosts: bool = True


def build_map(
    source: ScanSource,
    out: Path,
    settings: BuildSettings = BuildSettings(),
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> PointMap:
    """Builds the map directory `out` from a source with poses; an old map there is replaced once the new one is whole.

    What is half done lies in `out`.building. progress: called with the stage's name, how much of it is done, of how
    much. Raises MapError when there is not a single point, when `out` is something else than a map, and when the disk
    is full (what is done is kept); InputError when the source cannot be read.
    """
    out = Path(out).resolve()
    check_replaceable(out)
    description = source.describe()
    task = {
        "settings": asdict(settings),
        "source": description,
        "scans": len(source),
        "recording": fingerprint(description, out),
    }
    if BuildDirectory.is_built(out, task):
        with suppress(MapError):  # a map that is broken is built again
            built = PointMap.open(out)
            if not built.checkpoint:
                return built  # stopped after this, before it was encoded
    work = BuildDirectory(out.with_name(out.name + ".building"), task)
    try:
        if not work.is_whole():
            _gather(source, work, settings, progress)
            _merge(work, settings, progress)
            info = _finish(work, source, settings, progress)
            work.complete(info)
        put_in_place(work.path, out)
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        raise MapError(
            f"The disk is full; what is done of the map is kept in {work.path}: make room and give the same command "
            "again, or remove it."
        ) from error
    work.forget(out)
    return PointMap.open(out)


def accumulate(scans: Iterable[PosedScan], voxel_size: float) -> MapPoints:
    """One point per voxel of `voxel_size` metres out of all scans, in memory, in the scans' own map frame, ghosts
    included. Raises MapError when there is not a single point."""
    grid = VoxelGrid(voxel_size, np.zeros(3))
    for scan in scans:
        grid.add(scan)
    voxels = grid.voxels()
    if not len(voxels):
        raise MapError("The scans hold no points at all, so there is no map to build.")
    return _points(voxels, voxels[:0], voxel_size, Z_UP)


def _gather(
    source: ScanSource, work: BuildDirectory, settings: BuildSettings, progress: Callable[[str, int, int], None]
) -> None:
    grid, images, poses = VoxelGrid(settings.voxel_size, work.origin), [], []
    for number, scan in enumerate(source.scans(work.scans_done), work.scans_done + 1):
        if number == 1:
            work.origin = grid.origin = _choose_origin(scan.map_from_lidar[:3, 3])
        grid.add(scan)
        if scan.viewpoints is None:
            poses.append(scan.map_from_lidar)
        if settings.thin_ghosts and scan.viewpoints is None:
            pose = np.linalg.inv(scan.map_from_lidar)
            pose[:3, 3] += pose[:3, :3] @ work.origin
            images.append(RangeImage.of_scan(scan.points, pose))
        if len(grid) > _PIECE_ROWS or number - work.scans_done >= _PIECE_SCANS or number == len(source):
            work.put_aside(grid.voxels(), images, poses, number, settings.voxel_size, settings.tile_size)
            grid.clear()
            images.clear()
            poses.clear()
        progress("reading scans", number, len(source))
    if work.scans_done != len(source):
        raise InputError(f"The recording ended before the last of its {len(source)} scans; was it changed meanwhile?")


def _choose_origin(place: np.ndarray) -> np.ndarray:
    """Zero where float32 is fine to a millimetre, so that such maps keep their coordinates; else whole kilometres."""
    return np.round(place / 1000) * 1000 + 0.0 if np.abs(place).max() > _FAR else np.zeros(3)


def _merge(work: BuildDirectory, settings: BuildSettings, progress: Callable[[str, int, int], None]) -> None:
    pieces = work.pieces()
    tiles = sorted({tile for piece in pieces for tile in piece.tiles})
    detector = GhostDetector(settings.voxel_size)
    places = np.concatenate([piece.places() for piece in pieces]) if pieces else np.zeros((0, 3))
    looks = [(piece, number) for piece in pieces for number in range(len(piece.looks))]
    for done, tile in enumerate(tiles):
        if not work.has_merged(tile):
            voxels = work.merge_pieces(pieces, tile)
            low = np.array(tile) * settings.tile_size
            chosen = detector.choose(places, low, low + settings.tile_size)
            images = [piece.range_image(number) for piece, number in (looks[index] for index in chosen)]
            ghosts = detector.ghosts(voxel_positions(voxels, settings.voxel_size), images)
            work.keep_merged(tile, voxels[~ghosts], int(ghosts.sum()))
        progress("merging", done + 1, len(tiles))


def _finish(
    work: BuildDirectory, source: ScanSource, settings: BuildSettings, progress: Callable[[str, int, int], None]
) -> MapInfo:
    tiles = work.merged_tiles()
    description = source.describe()
    up = description.get("up", Z_UP)
    border = max(_NORMAL_VOXELS * settings.voxel_size, 3 * GROUND_CELL)
    counts: dict[str, int] = {}
    for done, (tile, own) in enumerate(tiles.items()):
        name = f"{tile[0]}_{tile[1]}"
        if own and not work.has_tile(name):
            low = np.array(tile) * settings.tile_size
            around = [
                _within(work.merged(near), settings.voxel_size, low - border, low + settings.tile_size + border)
                for near in ((tile[0] + dx, tile[1] + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1))
                if near != tile and near in tiles
            ]
            voxels = work.merged(tile)
            points = _points(voxels, np.concatenate([*around, voxels[:0]]), settings.voxel_size, up)
            work.write_tile(name, points.to_structured())
        if own:
            counts[name] = own
        progress("writing tiles", done + 1, len(tiles))
    if not counts:
        raise MapError("The scans hold no points at all, so there is no map to build.")
    return MapInfo(
        voxel_size=settings.voxel_size,
        tile_size=settings.tile_size,
        origin=work.origin.tolist(),
        up=[float(part) for part in up],
        num_points=sum(counts.values()),
        tiles=list(counts),
        ghosts_removed=work.ghosts_removed(),
        source=description,
    )


def _within(voxels: np.ndarray, voxel_size: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    place = voxel_positions(voxels, voxel_size)[:, :2]
    return voxels[((place > low) & (place < high)).all(1)]


def _points(voxels: np.ndarray, border: np.ndarray, voxel_size: float, up: tuple[float, float, float]) -> MapPoints:
    """The map's points of `voxels`; the voxels of `border` count in what is around them."""
    own = len(voxels)
    every = np.concatenate([voxels, border])
    xyz = voxel_positions(every, voxel_size)
    height = height_above_ground(xyz, np.asarray(up, np.float64))[:own]
    radius = _NORMAL_VOXELS * voxel_size
    near = np.flatnonzero(((xyz > xyz[:own].min(0) - radius) & (xyz < xyz[:own].max(0) + radius)).all(1))
    normals, planarity = surface_shape(xyz[near], every["viewpoint"][near].astype(np.float64), radius)
    attributes = np.empty((own, 6), np.float32)
    attributes[:, 0] = voxels["intensity"]
    attributes[:, 1:4] = normals[:own]
    attributes[:, 4] = planarity[:own]
    attributes[:, 5] = height
    seen = np.stack([voxels["first_seen"], voxels["last_seen"]], axis=1)
    return MapPoints(xyz[:own].astype(np.float32), attributes, seen)
