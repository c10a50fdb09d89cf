"""Map points, the places of a map and its landmarks, between PointCloud2 messages and numpy.

Fields of points: x y z intensity normal_x normal_y normal_z planarity height as FLOAT32, and, with descriptors, one
INT8 field `descriptor` whose count is the length of a descriptor (unit vector times 127). Fields of places: x y z qx qy
qz qw as FLOAT32, the pose of a camera there, and `descriptor`, behind which are the coded depths of the view's cells.
Fields of landmarks: x y z, and view_x view_y view_z view_qx view_qy view_qz view_qw, the pose of the mapping image that
shows it, as FLOAT32, and `descriptor`, SIFT's 128 bytes.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from ep2ploc_core.errors import InputError
from ep2ploc_core.landmarks.landmark_view import LandmarkView
from ep2ploc_core.map.place_index import PlaceIndex
from ep2ploc_core.map.point_map import ATTRIBUTES, MapPoints
from ep2ploc_core.map.views import CELLS
from ep2ploc_ros.ros_imports import point_cloud2

SCALARS = ("x", "y", "z", *ATTRIBUTES)
PLACE_SCALARS = ("x", "y", "z", "qx", "qy", "qz", "qw")
LANDMARK_SCALARS = ("x", "y", "z", *(f"view_{name}" for name in PLACE_SCALARS))
DESCRIPTOR = "descriptor"


def cloud_from_points(points: MapPoints, header: Header) -> PointCloud2:
    """A message of all points, with their descriptors where they have them."""
    return _pack(SCALARS, np.concatenate([points.xyz, points.attributes], axis=1), points.descriptors, header)


def points_from_cloud(message: PointCloud2) -> MapPoints:
    """The points of a message; which frames saw them is not sent and reads as zero.

    Raises InputError when fields are missing or of another type, sizes do not fit, or a value is not a number.
    """
    scalars, descriptors = _unpack(SCALARS, message)
    return MapPoints(scalars[:, :3].copy(), scalars[:, 3:].copy(), np.zeros((len(scalars), 2), np.uint16), descriptors)


def cloud_from_places(places: PlaceIndex, origin: np.ndarray, header: Header) -> PointCloud2:
    """A message of all views of a map, in a frame that begins at `origin` `(3,)`."""
    rotation = Rotation.from_matrix(places.map_from_camera[:, :3, :3]).as_quat()
    scalars = np.concatenate([places.map_from_camera[:, :3, 3] - origin, rotation], axis=1)
    descriptors = np.round(np.asarray(places.descriptors, np.float32) * 127).astype(np.int8)
    return _pack(PLACE_SCALARS, scalars, np.concatenate([descriptors, places.depths], axis=1), header)


def places_from_cloud(message: PointCloud2) -> PlaceIndex:
    """The views of a message, in its frame. Raises InputError as `points_from_cloud` does."""
    scalars, descriptors = _unpack(PLACE_SCALARS, message)
    if descriptors is None or (np.linalg.norm(scalars[:, 3:], axis=1) < 0.5).any():
        raise InputError("The cloud of places has no descriptors, or no rotations; is it the topic of a map_server?")
    if descriptors.shape[1] < CELLS:
        raise InputError("The cloud of places has no depths; update map_server and localizer.")
    poses = np.tile(np.eye(4), (len(scalars), 1, 1))
    if len(scalars):
        poses[:, :3, :3] = Rotation.from_quat(scalars[:, 3:]).as_matrix()
    poses[:, :3, 3] = scalars[:, :3]
    depths = descriptors[:, -CELLS:].copy()
    return PlaceIndex(poses, (descriptors[:, :-CELLS].astype(np.float32) / 127).astype(np.float16), depths)


def cloud_from_landmarks(views: list[LandmarkView], origin: np.ndarray, header: Header) -> PointCloud2:
    """A message of the landmarks of mapping images, one image's after the other, in a frame that begins at `origin`
    `(3,)`."""
    scalars = np.zeros((sum(map(len, views)), len(LANDMARK_SCALARS)), np.float32)
    descriptors = np.zeros((len(scalars), 128), np.int8)
    first = 0
    for view in views:
        mine = slice(first, first + len(view))
        scalars[mine, :3] = view.xyz
        scalars[mine, 3:6] = view.map_from_camera[:3, 3] - origin
        scalars[mine, 6:] = Rotation.from_matrix(view.map_from_camera[:3, :3]).as_quat()
        descriptors[mine] = view.descriptors.view(np.int8)
        first += len(view)
    return _pack(LANDMARK_SCALARS, scalars, descriptors, header)


def landmarks_from_cloud(message: PointCloud2) -> list[LandmarkView]:
    """The landmarks of a message, in its frame. Raises InputError as `points_from_cloud` does."""
    scalars, descriptors = _unpack(LANDMARK_SCALARS, message)
    if descriptors is None or descriptors.shape[1] != 128 or (np.linalg.norm(scalars[:, 6:], axis=1) < 0.5).any():
        raise InputError("The cloud of landmarks has no SIFT descriptors, or no poses; is it of a map_server?")
    if not len(scalars):
        return []
    ends = np.flatnonzero((np.diff(scalars[:, 3:], axis=0) != 0).any(1)) + 1
    views = []
    for part, described in zip(np.split(scalars, ends), np.split(descriptors, ends), strict=True):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = Rotation.from_quat(part[0, 6:]).as_matrix(), part[0, 3:6]
        views.append(LandmarkView(pose, np.ascontiguousarray(described).view(np.uint8), part[:, :3].copy()))
    return views


def _pack(names: tuple[str, ...], scalars: np.ndarray, descriptors: np.ndarray | None, header: Header) -> PointCloud2:
    """scalars `(N, len(names))`, descriptors `(N, D)` whole numbers from -128 to 127."""
    fields = [PointField(name=name, offset=4 * k, datatype=PointField.FLOAT32, count=1) for k, name in enumerate(names)]
    layout: list[tuple] = [("scalars", "<f4", len(names))]
    if descriptors is not None:
        count = descriptors.shape[1]
        fields.append(PointField(name=DESCRIPTOR, offset=4 * len(names), datatype=PointField.INT8, count=count))
        layout.append((DESCRIPTOR, "i1", (count,)))
    array = np.empty(len(scalars), np.dtype(layout))
    array["scalars"] = scalars
    if descriptors is not None:
        array[DESCRIPTOR] = descriptors
    return point_cloud2.create_cloud(header, fields, array.view(point_cloud2.dtype_from_fields(fields)))


def _unpack(names: tuple[str, ...], message: PointCloud2) -> tuple[np.ndarray, np.ndarray | None]:
    fields = {field.name: field for field in message.fields}
    for name in names:
        if name not in fields or fields[name].datatype != PointField.FLOAT32 or fields[name].count != 1:
            raise InputError(f"The cloud has no field '{name}' of type FLOAT32; is it the topic of a map_server?")
    descriptor = fields.get(DESCRIPTOR)
    if descriptor is not None and (descriptor.datatype != PointField.INT8 or descriptor.count < 1):
        raise InputError("The cloud's field 'descriptor' is not of type INT8; update map_server and localizer.")
    used = [fields[name] for name in names] + ([] if descriptor is None else [descriptor])
    ends = [field.offset + (4 if field.datatype == PointField.FLOAT32 else field.count) for field in used]
    count = message.width * message.height
    if max(ends) > message.point_step or len(message.data) != count * message.point_step or message.is_bigendian:
        raise InputError(
            f"The cloud carries {len(message.data)} bytes where {count} little-endian points of {message.point_step} "
            "are claimed; it was cut off or made by another program."
        )
    layout = {
        "names": [field.name for field in used],
        "formats": ["<f4" if field.datatype == PointField.FLOAT32 else ("i1", (field.count,)) for field in used],
        "offsets": [field.offset for field in used],
        "itemsize": message.point_step,
    }
    array = np.ndarray((count,), np.dtype(layout), buffer=memoryview(message.data))  # type: ignore[call-overload]
    scalars = np.stack([array[name] for name in names], axis=1)
    if not np.isfinite(scalars).all():
        raise InputError("The cloud holds a value that is not a number; build the map again.")
    return scalars, None if descriptor is None else array[DESCRIPTOR]


def cloud_from_matches(points_map: np.ndarray, pixels: np.ndarray, header: Header) -> PointCloud2:
    """A message of matched map points `(M, 3)` and the pixels `(M, 2)` where the image shows them: x y z u v."""
    names = ("x", "y", "z", "u", "v")
    fields = [PointField(name=name, offset=4 * k, datatype=PointField.FLOAT32, count=1) for k, name in enumerate(names)]
    rows = np.ascontiguousarray(np.concatenate([points_map, pixels], axis=1), dtype=np.float32)
    return point_cloud2.create_cloud(header, fields, rows.view(point_cloud2.dtype_from_fields(fields))[:, 0])
