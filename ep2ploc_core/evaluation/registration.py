"""Registration of an image to the scan that was taken with it, as papers on image-to-point-cloud registration have it.

The map is the query's own scan, moved at random: turned about the vertical through the camera by up to 180 degrees to
either side and shifted by up to 10 m along both horizontal axes; height, pitch and roll stay. CorrI2P (Ren et al.,
2022, arXiv:2207.05483, github.com/rsy6318/CorrI2P: eval_all.py, cal_error_all.py, analysis.py) and VP2P-Match (Zhou et
al., 2023, github.com/junshengzhou/VP2P-Match) do so with KITTI odometry. DeepI2P (Li and Lee, 2021, arXiv:2104.03501,
github.com/lijx10/DeepI2P) turns alike, but its image is taken up to 10 m away from the scan, to which scans around are
added. All three count as registered what has an RTE below 2 m and an RRE below 5 degrees.

It leaks all that a map must not know: what the image shows was scanned in the same moment from the same place, cars and
pedestrians too, and where nothing was scanned something stands that hides it from just there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.sampling import START_RANGE
from ep2ploc_core.errors import InputError
from ep2ploc_core.evaluation.metrics import error_row, summarize
from ep2ploc_core.evaluation.protocols import PoseFinder, Progress, judge
from ep2ploc_core.evaluation.shown import show, true_poses
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.place_index import PlaceIndex
from ep2ploc_core.map.posed_scan import PosedScan, ScanSource
from ep2ploc_core.map.scan_map import encode_scan
from ep2ploc_core.model.ep2ploc import EP2PLoc

REGISTERED_METRES, REGISTERED_DEGREES = 2.0, 5.0
FARTHEST_CAMERA = 5.0  # metres between a vehicle's camera and its LiDAR
KINDS = ("kitti_raw", "kitti_odometry")  # recordings of scans that are level and whose frames have numbers


@dataclass(frozen=True)
class RegistrationProtocol:
    """Each query `repeats` times, its scan turned uniformly by up to `degrees` and shifted by up to `metres` along both
    horizontal axes. `swap`: each query gets the image of another one, half the drive away."""

    metres: float = 10.0
    degrees: float = 180.0
    repeats: int = 1
    seed: int = 0
    swap: bool = False


# Makes what is judged of a scan, and of the poses `(V, 4, 4)` near which the camera may be.
MakeFinder = Callable[[PosedScan, np.ndarray], PoseFinder]


def scan_localizer(network: EP2PLoc, settings: LocalizerSettings) -> MakeFinder:
    """Localizers whose map is a single scan. Without a first guess they try every one of the poses given: the search by
    global descriptors would leave most of them out, and is only learned with a site."""

    def make(scan: PosedScan, views: np.ndarray) -> Localizer:
        unknown = np.zeros((len(views), network.config.global_width), np.float16)
        device = next(network.parameters()).device
        all_tried = replace(settings, places=len(views))
        return Localizer(network, encode_scan(scan, network), device, all_tried, PlaceIndex(views, unknown))

    return make


def evaluate_registration(
    make_finder: MakeFinder,
    recording: ScanSource,
    queries: Queries,
    protocol: RegistrationProtocol,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """`{"protocol", "summary", "results": a row per query and move}`, and the same for the unmoved poses: `"start"`,
    `"start_results"`. Poses are in the frame of the scan that was moved.

    recording: where the queries come from, whose scans are found by the queries' frame numbers. Where the moves are no
    larger than what the localizer takes as a first guess (START_RANGE), it gets the unmoved pose as one; else none, and
    views all over the range of the moves. Raises InputError where scans or poses are missing.
    """
    frames = _frames_of(recording, queries)
    truths = true_poses(queries)
    rows: list[dict[str, Any]] = []
    starts: list[dict[str, Any]] = []
    for scan in recording.scans():
        query = frames.pop(scan.frame, None)
        if query is None:
            continue
        shown = show(queries, query, protocol.swap)
        start = np.linalg.inv(scan.map_from_lidar) @ truths[query]
        if np.linalg.norm(start[:3, 3]) > FARTHEST_CAMERA:
            raise InputError(
                f"The pose of {queries.image_paths[query].name} lies {np.linalg.norm(start[:3, 3]):.0f} m from its "
                "scan; give the recording that the queries come from, and queries with its own poses."
            )
        rng = np.random.default_rng([protocol.seed, query])
        for _ in range(protocol.repeats):
            move = draw_move(rng, start[:3, 3], protocol)
            truth = move @ start
            taken = move @ np.linalg.inv(scan.map_from_lidar) @ shown.taken
            views = views_within(start, protocol.metres, protocol.degrees)
            finder = make_finder(PosedScan(scan.frame, scan.points, move, scan.stamp), views)
            result = finder.localize(shown.image, shown.camera, start if len(views) == 1 else None)
            name = shown.name | _errors(start, truth, start, "start_")
            errors: dict[str, Any] = {}
            for prefix, estimate in (("", result.map_from_camera), ("candidate_", result.candidate)):
                errors |= _errors(estimate, truth, start, prefix)
            rows.append({**name, **judge(result, truth, taken), **errors})
            known: dict[str, Any] = {}
            for prefix in ("", "candidate_"):
                known |= error_row(start, truth, prefix) | _errors(start, truth, start, prefix)
            starts.append({**name, "status": "ok", **known})
            progress(len(rows), len(queries) * protocol.repeats)
    if frames:
        missing = ", ".join(map(str, sorted(frames)))
        raise InputError(f"The recording has no scan with a pose for the queries' frames {missing}; leave them out.")
    return {
        "protocol": {"name": "registration", **asdict(protocol)},
        "summary": summarize_registration(rows),
        "start": summarize_registration(starts),
        "results": rows,
        "start_results": starts,
    }


def draw_move(rng: np.random.Generator, pivot: np.ndarray, protocol: RegistrationProtocol) -> np.ndarray:
    """A transformation `(4, 4)` that turns about the vertical through `pivot` `(3,)` and shifts horizontally."""
    shift = np.append(rng.uniform(-protocol.metres, protocol.metres, 2), 0.0)
    return _move(math.radians(rng.uniform(-protocol.degrees, protocol.degrees)), shift, pivot)


def views_within(start: np.ndarray, metres: float, degrees: float) -> np.ndarray:
    """Poses `(V, 4, 4)` evenly over all that a start `(4, 4)` may have been moved to, so near to each other that each
    place and direction is within START_RANGE of one of them; the start alone where that is enough."""
    places = _middles(metres, START_RANGE[0])
    turns = _middles(math.radians(degrees), START_RANGE[4])
    moves = [_move(turn, np.array([x, y, 0.0]), start[:3, 3]) for x in places for y in places for turn in turns]
    return np.stack(moves) @ start


def registration_error(estimate: np.ndarray, truth: np.ndarray, start: np.ndarray) -> tuple[float, float]:
    """RTE in metres and RRE in degrees of map_from_camera `(4, 4)`, as CorrI2P's cal_error_all.py computes them.

    Both come from the estimated camera_from_cloud, inverted, times the true one, in the frame that the unmoved camera
    `start` had: RTE is the length of its translation, so a turn counts there too, by the way from that camera; RRE is
    the sum of the magnitudes of its three Euler angles (x, z, y), which is never less than the angle of the rotation.
    """
    difference = np.linalg.inv(start) @ estimate @ np.linalg.inv(truth) @ start
    angles = Rotation.from_matrix(difference[:3, :3]).as_euler("xzy", degrees=True)
    return float(np.linalg.norm(difference[:3, 3])), float(np.abs(angles).sum())


def summarize_registration(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`metrics.summarize`, and what the papers give: mean and standard deviation of RTE and RRE over all, and the share
    that is registered.

    Their methods never refuse. So `candidate_registration_recall` and the means are of all candidates, refused ones
    too; where there was none the unmoved pose stands for it, which is as good as knowing nothing.
    `registration_recall` counts refusals as failures. `registered_mean_...` are of the candidates that are registered.
    """
    found = [row if "candidate_rte_m" in row else {**row, **_start_as_candidate(row)} for row in rows]
    rte, rre = (np.array([row[f"candidate_{name}"] for row in found]) for name in ("rte_m", "rre_deg"))
    registered = (rte < REGISTERED_METRES) & (rre < REGISTERED_DEGREES)
    given = np.array([row["status"] == "ok" for row in rows])
    summary = summarize(rows)
    for name, errors in (("rte_m", rte), ("rre_deg", rre)):
        summary[f"mean_{name}"], summary[f"std_{name}"] = round(float(errors.mean()), 4), round(float(errors.std()), 4)
        middle = round(float(errors[registered].mean()), 4) if registered.any() else None
        summary[f"registered_mean_{name}"] = middle
    summary["registration_recall"] = round(float((registered & given).mean()), 4)
    summary["candidate_registration_recall"] = round(float(registered.mean()), 4)
    summary["without_candidate"] = sum("candidate_rte_m" not in row for row in rows)
    return summary


def _start_as_candidate(row: dict[str, Any]) -> dict[str, float]:
    return {f"candidate_{name}": row[f"start_{name}"] for name in ("rte_m", "rre_deg")}


def _errors(estimate: np.ndarray | None, truth: np.ndarray, start: np.ndarray, prefix: str) -> dict[str, Any]:
    if estimate is None:
        return {}
    metres, degrees = registration_error(estimate, truth, start)
    return {f"{prefix}rte_m": round(metres, 4), f"{prefix}rre_deg": round(degrees, 4)}


def _frames_of(recording: ScanSource, queries: Queries) -> dict[int, int]:
    """The number of each query by that of its frame."""
    if queries.frames is None:
        raise InputError(f"{queries.path} has no frames.txt, so it is not known which scan goes with which image.")
    if recording.describe()["kind"] not in KINDS or not recording.has_poses:
        raise InputError(
            "Registration takes the scans of a KITTI raw drive or odometry sequence with poses; give the recording "
            "that the queries come from in place of the map."
        )
    return {int(frame): query for query, frame in enumerate(queries.frames)}


def _middles(reach: float, step: float) -> np.ndarray:
    """The middles of the fewest like parts of -reach..reach that are no wider than `step` to either side."""
    count = max(1, math.ceil(reach / step - 1e-9))
    return (np.arange(count) * 2 + 1 - count) * (reach / count)


def _move(turn: float, shift: np.ndarray, pivot: np.ndarray) -> np.ndarray:
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec([0, 0, turn]).as_matrix()
    move[:3, 3] = pivot + shift - move[:3, :3] @ pivot
    return move
