"""What the localizer's parts cost as what they work on grows: matches, pixels, places, each part by itself."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from scipy.signal import lfilter
from support.stopwatch import median_ms, timed

from ep2ploc_core.camera import Camera
from ep2ploc_core.localizer_settings import DEFAULT_SETTINGS
from ep2ploc_core.map.place_index import Impression, PlaceIndex, decode_depth
from ep2ploc_core.map.views import CELLS, DIRECTIONS
from ep2ploc_core.model.ep2ploc import EP2PLoc
from ep2ploc_core.pose.pnp import refine, solve_ransac
from ep2ploc_core.se3 import exp, pose_error

SEED = 0
CAMERA = Camera(width=1242, height=375, fx=721.5, fy=721.5, cx=609.6, cy=172.9)  # as KITTI's
MATCHING = CAMERA.resize(512, 160)  # the size that pixels of matches are in
OUTLIERS, NOISE, THRESHOLD, SCALE = 0.5, 1.0, 6.0, 2.0  # a share; pixels
TRIALS = 15
LIKENESS = 0.9  # of a place's descriptor to that of the place before, as a correlation
LISTS_PROBED = 8


def grow_pnp(counts: list[int]) -> list[dict[str, Any]]:
    """The pose from matches of which OUTLIERS are wrong: `pose.pnp` (MAGSAC++, then weighted Levenberg-Marquardt with
    a covariance), and `cv2.solvePnPRansac` as it is when nothing is asked of it but as many iterations."""
    return [{"matches": count, **_pnp(count)} for count in counts]


def _pnp(count: int) -> dict[str, float]:
    random = np.random.default_rng(SEED)
    matrix = MATCHING.matrix
    ours, theirs = [], []
    for _ in range(TRIALS):
        truth = exp(torch.from_numpy(random.uniform(-1, 1, 6))).numpy()
        pixels = random.uniform([0, 0], [MATCHING.width, MATCHING.height], (count, 2))
        depth = random.uniform(3, 50, (count, 1))
        rays = np.c_[pixels, np.ones(count)] @ np.linalg.inv(matrix).T
        points = (rays * depth) @ truth[:3, :3].T + truth[:3, 3]
        pixels += random.normal(0, NOISE, pixels.shape)
        wrong = random.permutation(count)[: round(OUTLIERS * count)]
        pixels[wrong] = random.uniform([0, 0], [MATCHING.width, MATCHING.height], (len(wrong), 2))
        for answers, solve in ((ours, _solve), (theirs, _solve_by_opencv)):
            pose, seconds = timed(solve, points, pixels, matrix)
            answers.append((1000 * seconds, 1000 * pose_error(pose, truth)[0]))
    (ms, millimetres), (other_ms, other_millimetres) = np.median(ours, 0), np.median(theirs, 0)
    return {"ms": ms, "off_mm": millimetres, "opencv_ms": other_ms, "opencv_off_mm": other_millimetres}


def _solve(points: np.ndarray, pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    start = solve_ransac(points, pixels, matrix, THRESHOLD)
    assert start is not None
    return refine(start, points, pixels, np.ones(len(points)), matrix, SCALE).map_from_camera


def _solve_by_opencv(points: np.ndarray, pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    _, rotation, translation, _ = cv2.solvePnPRansac(
        points, pixels, matrix, None, iterationsCount=2000, confidence=0.999, reprojectionError=THRESHOLD
    )
    camera_from_map = np.eye(4)
    camera_from_map[:3, :3], camera_from_map[:3, 3] = cv2.Rodrigues(rotation)[0], translation.ravel()
    return np.linalg.inv(camera_from_map)


def grow_image(network: EP2PLoc, widths: list[int]) -> list[dict[str, Any]]:
    """The image encoder, and the features for alignment that are made of what it gives, by the image's width in pixels,
    a multiple of 32."""
    rows = []
    for width in widths:
        height = round(CAMERA.height * width / CAMERA.width / 32) * 32
        image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(SEED))
        image = image.contiguous(memory_format=torch.channels_last)
        intrinsics = CAMERA.resize(width, height).intrinsics_tensor()[None]
        with torch.inference_mode():
            features = network.encode_image(image, intrinsics)
            rows.append({
                "width": width, "height": height, "pixels": width * height,
                "encoder_ms": median_ms(lambda: network.encode_image(image, intrinsics)),  # noqa: B023
                "dense_ms": median_ms(lambda: network.dense_features(features)),  # noqa: B023
            })  # fmt: skip
    return rows


def grow_places(width: int, counts: list[int], approximate: int) -> list[dict[str, Any]]:
    """The search for an image's likest places among so many descriptors of this width: `PlaceIndex.search`, and FAISS
    where it is installed: exact, in single and in half precision, and approximate (inverted lists) up to so many
    places, more take long to cluster.

    Descriptors are made up: along each direction of view, a place's is LIKENESS to that of the place before.
    """
    return [{"places": count, **_places(width, count, count <= approximate)} for count in counts]


def _places(width: int, count: int, approximate: bool) -> dict[str, Any]:
    random = np.random.default_rng(SEED)
    walk = random.standard_normal((-(-count // DIRECTIONS), DIRECTIONS, width), dtype=np.float32)
    ahead, back = np.array([(1 - LIKENESS**2) ** 0.5], np.float32), np.array([1, -LIKENESS], np.float32)
    descriptors = lfilter(ahead, back, walk, axis=0).reshape(-1, width)[:count]
    del walk
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    asked = descriptors[count // 2] + random.standard_normal(width, dtype=np.float32) / width**0.5
    asked /= np.linalg.norm(asked)
    wanted = DEFAULT_SETTINGS.places
    layout = [
        ("map_from_camera", "<f8", (4, 4)),
        ("descriptor", "<f2", width),
        ("depths", "i1", CELLS),
    ]  # as on the disk
    kept = np.zeros(count, layout)
    kept["descriptor"], kept["depths"] = descriptors, random.integers(-128, 128, (count, CELLS), dtype=np.int8)
    index = PlaceIndex(kept["map_from_camera"], kept["descriptor"], kept["depths"])
    image = Impression(asked, decode_depth(kept["depths"][count // 2]))
    row: dict[str, Any] = {"ms": median_ms(lambda: index.search(image, wanted)), "mb": kept.nbytes / 1e6}
    by_descriptor = Impression(asked, np.full(CELLS, np.nan, np.float32))
    return row | _places_by_faiss(descriptors, asked, set(index.search(by_descriptor, wanted)), approximate)


def _places_by_faiss(descriptors: np.ndarray, asked: np.ndarray, best: set[int], approximate: bool) -> dict[str, Any]:
    """Times in milliseconds, seconds to make the lists (of 39 places at the least, as FAISS wants it), and the share of
    the `best` that the approximate search finds; nothing where FAISS is not installed."""
    if not faiss_is_installed():
        return {}
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    count, width = descriptors.shape
    exact = faiss.IndexFlatIP(width)
    half = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    row: dict[str, Any] = {}
    for name, index in (("faiss_ms", exact), ("faiss_half_ms", half)):
        index.train(descriptors)
        index.add(descriptors)
        row[name] = median_ms(lambda: index.search(asked[None], len(best)))  # noqa: B023
        index.reset()
    if approximate:
        lists = faiss.IndexIVFFlat(exact, width, round(min(count**0.5, count / 40)), faiss.METRIC_INNER_PRODUCT)
        lists.nprobe = LISTS_PROBED
        row["lists_made_s"] = timed(lists.train, descriptors)[1] + timed(lists.add, descriptors)[1]
        row["lists_ms"] = median_ms(lambda: lists.search(asked[None], len(best)))
        row["lists_found"] = len(best & set(lists.search(asked[None], len(best))[1][0].tolist())) / len(best)
    return row


def faiss_is_installed() -> bool:
    """FAISS is asked for by this benchmark alone."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True
