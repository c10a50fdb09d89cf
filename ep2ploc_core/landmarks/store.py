"""The landmarks of a map on disk: which mapping images they are of, and, one image's after the other, the features."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ep2ploc_core.errors import MapError
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.map.array_file import load_array, save_array

VIEWS_FILE, FEATURES_FILE = "landmark_views.npy", "landmarks.npy"
VIEW_TYPE = np.dtype([("map_from_camera", "<f8", (4, 4)), ("first", "<i8"), ("count", "<i8")])
FEATURE_TYPE = np.dtype([("xyz", "<f4", 3), ("descriptor", "u1", 128)])


@dataclass(frozen=True)
class LandmarkStore:
    """views `(V,)` of VIEW_TYPE, features of FEATURE_TYPE, memory-mapped."""

    views: np.ndarray
    features: np.ndarray

    @classmethod
    def open(cls, map_path: Path) -> LandmarkStore | None:
        """Those of a map directory, None where it has none. Raises MapError when they are broken."""
        if not (map_path / VIEWS_FILE).exists():
            return None
        try:
            store = cls(load_array(map_path / VIEWS_FILE), load_array(map_path / FEATURES_FILE))
            store._check()
        except (OSError, ValueError, EOFError) as error:
            raise MapError(
                f"The landmarks of the map {map_path} are missing or cut off; remove {VIEWS_FILE} there, and encode "
                "the map again."
            ) from error
        return store

    def __len__(self) -> int:
        return len(self.features)

    def near(self, centre: np.ndarray, radius: float) -> list[LandmarkView]:
        """The images taken within `radius` metres (horizontally) of `centre`, map coordinates."""
        away = np.linalg.norm(self.views["map_from_camera"][:, :2, 3] - np.asarray(centre)[:2], axis=1)
        return [self._view(int(number)) for number in np.flatnonzero(away < radius)]

    def _view(self, number: int) -> LandmarkView:
        view = self.views[number]
        features = self.features[view["first"] : view["first"] + view["count"]]
        return LandmarkView(view["map_from_camera"], features["descriptor"], features["xyz"])

    def _check(self) -> None:
        """Raises ValueError when something cannot be."""
        if self.views.dtype != VIEW_TYPE or self.features.dtype != FEATURE_TYPE:
            raise ValueError("the arrays hold something else")
        ends = np.cumsum(self.views["count"])
        if not np.array_equal(self.views["first"], ends - self.views["count"]) or ends[-1:].sum() != len(self.features):
            raise ValueError("the numbers of features do not fit")
        if not np.isfinite(self.views["map_from_camera"]).all():
            raise ValueError("a pose is no number")


class LandmarkWriter:
    """Puts landmarks into a map directory, view after view, in place of those that it had once it is closed. Left by an
    exception, or without a view, it leaves all as it was."""

    def __init__(self, map_path: Path) -> None:
        self._path = map_path
        self._table: list[tuple[np.ndarray, int, int]] = []
        self._written = 0

    def __enter__(self) -> LandmarkWriter:
        self._scratch = tempfile.TemporaryFile(dir=self._path)
        return self

    def add(self, view: LandmarkView) -> None:
        """The next image's."""
        features = np.zeros(len(view), FEATURE_TYPE)
        features["xyz"], features["descriptor"] = view.xyz, view.descriptors
        self._scratch.write(features.tobytes())
        self._table.append((view.map_from_camera, self._written, len(view)))
        self._written += len(view)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._scratch:
            if kind is not None or not self._written:
                return
            self._scratch.flush()
            features = np.memmap(self._scratch, FEATURE_TYPE, "r", shape=(self._written,))
            (self._path / VIEWS_FILE).unlink(missing_ok=True)  # it says that all is there
            save_array(self._path / FEATURES_FILE, features)
            save_array(self._path / VIEWS_FILE, np.array(self._table, VIEW_TYPE))
