"""The part of sensor_msgs_py.point_cloud2 that the nodes use: messages from structured arrays."""

from __future__ import annotations

import array
import sys
from collections.abc import Sequence

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

_FORMATS = {
    PointField.INT8: "i1",
    PointField.UINT8: "u1",
    PointField.INT16: "i2",
    PointField.UINT16: "u2",
    PointField.INT32: "i4",
    PointField.UINT32: "u4",
    PointField.FLOAT32: "f4",
    PointField.FLOAT64: "f8",
}


def dtype_from_fields(fields: Sequence[PointField]) -> np.dtype:
    """The structured type of one point; a field with a count of n > 1 becomes NAME_0 .. NAME_(n-1)."""
    names, formats, offsets = [], [], []
    for field in fields:
        scalar = np.dtype(_FORMATS[field.datatype])
        for k in range(field.count):
            names.append(field.name if field.count == 1 else f"{field.name}_{k}")
            formats.append(scalar.str)
            offsets.append(field.offset + k * scalar.itemsize)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets})


def create_cloud(header: Header, fields: Sequence[PointField], points: np.ndarray) -> PointCloud2:
    """A message of points `(N,)`, whose structured type must be that of the fields."""
    assert points.dtype == dtype_from_fields(fields), "the points' type is not that of the fields"
    cloud = PointCloud2(
        header=header,
        height=1,
        width=len(points),
        fields=list(fields),
        is_bigendian=sys.byteorder != "little",
        point_step=points.dtype.itemsize,
        row_step=points.dtype.itemsize * len(points),
    )
    data = array.array("B")
    if len(points):
        data.frombytes(np.ascontiguousarray(points).data.cast("B"))
    cloud.data = data
    return cloud
