"""PointCloud2 messages of any LiDAR driver as points: which bytes are x, y, z and intensity, and what they mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from ep2ploc_core.datasets.kitti import intensity_range
from ep2ploc_core.errors import InputError

# The robot itself, and the zeros that drivers write where nothing came back.
MIN_RANGE = 0.5
# Further than any LiDAR sees: garbage that happens to be a number.
MAX_RANGE = 1000.0
# The first is what the network learned from (range-compensated, as KITTI's); the others are what else drivers give.
INTENSITY_NAMES = ("reflectivity", "intensity", "reflectance", "i")
_FORMATS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}  # sensor_msgs/PointField
_COORDINATE_FORMATS = ("f4", "f8")


def read_cloud(message: Any) -> np.ndarray:
    """The points of a PointCloud2 `(height, width)` as a structured view of its own bytes: fields `x`, `y`, `z` and,
    where it has one, `intensity`. Works with the messages of ROS and of rosbags.

    Raises InputError when the sizes that the message claims do not fit each other or its data.
    """
    height, width, point_step, row_step = (
        int(value) for value in (message.height, message.width, message.point_step, message.row_step)
    )
    data = np.frombuffer(message.data, np.uint8)
    if min(height, width, point_step, row_step) < 0 or row_step < width * point_step or point_step < 1:
        raise InputError(f"The cloud claims {width} points of {point_step} bytes in rows of {row_step}.")
    if len(data) < height * row_step:
        raise InputError(f"The cloud carries {len(data)} bytes where {height} rows of {row_step} are claimed.")
    names, formats, offsets = _columns(message, point_step)
    layout = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": point_step})
    return np.ndarray((height, width), layout, data, strides=(row_step, point_step))


def sensor_points(cloud: np.ndarray, full_scale: float) -> np.ndarray:
    """Points `(N, 4)` float32 out of a view by `read_cloud`: x, y, z in metres and the intensity over `full_scale`, cut
    to 0..1 (0 where there is none). Points that are not finite, closer than 0.5 m or further than 1 km are left out."""
    cloud = cloud.ravel()
    points = np.zeros((len(cloud), 4))
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number fails both comparisons
        for column, name in enumerate(("x", "y", "z")):
            points[:, column] = cloud[name]
        if "intensity" in (cloud.dtype.names or ()):
            points[:, 3] = np.nan_to_num(cloud["intensity"].astype(np.float64) / full_scale).clip(0, 1)
        distance = np.sqrt((points[:, :3] ** 2).sum(1))
        return points[(distance >= MIN_RANGE) & (distance <= MAX_RANGE)].astype(np.float32)


def intensity_scale(samples: np.ndarray) -> float:
    """The value that stands for an intensity of 1, from raw intensities `(N,)` of a few scans of one sensor.

    Drivers write 0..1, 0..255 or counts without a unit, whatever the field's type. The 99th percentile tells: up to 1
    (floating point only) it is 0..1 already, up to 255 the full scale is 255, above it is the percentile itself.
    """
    finite = samples[np.isfinite(samples)]
    bright = float(np.percentile(finite, 99)) if len(finite) else 0.0
    full_scale = max(intensity_range(bright), 1.0 if samples.dtype.kind == "f" else 255.0)
    return full_scale if full_scale <= 255 else bright


def _columns(message: Any, point_step: int) -> tuple[list[str], list[str], list[int]]:
    """Names, formats and offsets of the fields that matter."""
    fields = {field.name.lower(): field for field in reversed(message.fields)}  # of a name given twice the first holds
    wanted: dict[str, Any] = {name: fields.get(name) for name in ("x", "y", "z")}
    if missing := [name for name, field in wanted.items() if field is None]:
        raise InputError(f"The cloud has no field {' '.join(missing)}.")
    intensity = next((fields[name] for name in INTENSITY_NAMES if name in fields), None)
    if intensity is not None:
        wanted["intensity"] = intensity
    order = ">" if message.is_bigendian else "<"
    formats, offsets = [], []
    for name, field in wanted.items():
        kind = _FORMATS.get(int(field.datatype))
        if kind is None or (name != "intensity" and kind not in _COORDINATE_FORMATS):
            raise InputError(f"The cloud's field {name} is of the datatype {field.datatype}, which is not read.")
        if field.offset < 0 or field.offset + int(kind[1]) > point_step or field.count > 1:
            raise InputError(
                f"The cloud's field {name} ({field.count} values at byte {field.offset}) does not fit points of "
                f"{point_step} bytes."
            )
        formats.append(order + kind)
        offsets.append(int(field.offset))
    return list(wanted), formats, offsets
