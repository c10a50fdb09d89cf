"""PointCloud2 messages: any layout against struct, sizes that lie, the layouts of common drivers, intensities."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ep2ploc_core.datasets.point_cloud2 import intensity_scale, read_cloud, sensor_points
from ep2ploc_core.errors import InputError

CODES = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 8: "d"}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_layout_against_a_slow_reference(data: st.DataObject) -> None:
    draw = data.draw
    order = draw(st.sampled_from("<>"))
    names = draw(st.permutations(["x", "y", "z", *draw(st.sampled_from([[], ["intensity"], ["ring", "i"]]))]))
    fields, offset = [], 0
    for name in names:
        offset += draw(st.integers(0, 5))  # padding, and offsets that are not aligned
        kind = draw(st.sampled_from([7, 8] if name in "xyz" else list(CODES)))
        fields.append(SimpleNamespace(name=name, offset=offset, datatype=kind, count=1))
        offset += struct.calcsize(CODES[kind])
    height, width = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    point_step = offset + draw(st.integers(0, 7))
    row_step = width * point_step + draw(st.integers(0, 9))
    content = bytearray(draw(st.binary(min_size=height * row_step, max_size=height * row_step)))
    expected = []
    full_scale = draw(st.sampled_from([1.0, 255.0, 3000.0]))
    # Any bit pattern, and plausible values so that points are not all out of range.
    values = st.one_of(st.floats(-50, 50, width=32), st.sampled_from([0.0, 0.3, float("nan"), float("inf"), 2e3]))
    for row in range(height):
        for column in range(width):
            point = {}
            for field in fields:
                code, at = order + CODES[field.datatype], row * row_step + column * point_step + field.offset
                if field.datatype >= 7 and draw(st.integers(0, 9)):
                    struct.pack_into(code, content, at, draw(values))
                point[field.name] = struct.unpack_from(code, content, at)[0]
            xyz = np.array([point["x"], point["y"], point["z"]], np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                distance = np.sqrt((xyz * xyz).sum())
            if 0.5 <= distance <= 1000:
                raw = point.get("intensity", point.get("i", 0)) / full_scale
                expected.append([*xyz, 0.0 if np.isnan(raw) else min(max(raw, 0.0), 1.0)])
    message = SimpleNamespace(
        height=height, width=width, fields=fields, is_bigendian=order == ">", point_step=point_step, row_step=row_step
    )
    message.data = np.frombuffer(bytes(content), np.uint8)
    points = sensor_points(read_cloud(message), full_scale)
    np.testing.assert_array_equal(points, np.array(expected, np.float32).reshape(-1, 4))


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.tuples(*[st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))] * 4),
    field=st.tuples(st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1)), st.integers(0, 255), st.integers(0, 5)),
)
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, ...], field: tuple[int, int, int]) -> None:
    height, width, point_step, row_step = sizes
    fields = [SimpleNamespace(name=name, offset=4 * k, datatype=7, count=1) for k, name in enumerate("xyz")]
    fields[1].offset, fields[1].datatype, fields[1].count = field
    message = SimpleNamespace(
        height=height, width=width, point_step=point_step, row_step=row_step, is_bigendian=False, fields=fields
    )
    message.data = np.zeros(1000, np.uint8)
    try:
        view = read_cloud(message)
    except InputError:
        return
    assert height * row_step <= 1000 and width * point_step <= row_step and field[0] + 4 <= point_step
    assert view.shape == (height, width)


def test_common_drivers_layouts() -> None:
    """Velodyne (padding), Ouster (organized, holes, 16-bit reflectivity beside intensity) and Livox (packed)."""

    def message(layout: np.dtype, points: np.ndarray, shape: tuple[int, int]) -> SimpleNamespace:
        codes = {"int8": 1, "uint8": 2, "uint16": 4, "uint32": 6, "float32": 7, "float64": 8}
        assert layout.fields is not None
        fields = [
            SimpleNamespace(name=name, offset=where[1], datatype=codes[where[0].name], count=1)
            for name, where in layout.fields.items()
        ]
        step = layout.itemsize
        return SimpleNamespace(
            **{"height": shape[0], "width": shape[1], "point_step": step, "row_step": step * shape[1]},
            **{"is_bigendian": False, "fields": fields, "data": points.tobytes()},
        )

    xyz = np.random.default_rng(0).uniform(2, 30, (8, 3)).astype(np.float32)
    raw = np.array([0, 10, 20, 51, 102, 153, 204, 255])
    names = ["x", "y", "z", "intensity", "ring"]
    velodyne = np.dtype({"names": names, "formats": ["f4"] * 4 + ["u2"], "offsets": [0, 4, 8, 16, 20], "itemsize": 32})
    ouster = np.dtype(
        {
            "names": ["x", "y", "z", "intensity", "t", "reflectivity", "ring"],
            "formats": ["f4", "f4", "f4", "f4", "u4", "u2", "u1"],
            "offsets": [0, 4, 8, 16, 20, 24, 26],
            "itemsize": 48,
        }
    )
    livox = np.dtype([(name, "f4") for name in names[:4]] + [("tag", "u1"), ("line", "u1"), ("timestamp", "f8")])
    for layout, shape in ((velodyne, (1, 8)), (ouster, (2, 4)), (livox, (1, 8))):
        points = np.zeros(8, layout)
        points["x"], points["y"], points["z"] = xyz.T
        points["intensity"] = 7000 + raw if layout is ouster else raw
        if layout is ouster:
            points["reflectivity"] = raw
            points["x"][3] = np.nan
            points["x"][5] = points["y"][5] = points["z"][5] = 0
        kept = [0, 1, 2, 4, 6, 7] if layout is ouster else list(range(8))
        view = read_cloud(message(layout, points, shape))
        scale = intensity_scale(view["intensity"].ravel())
        expected = np.c_[xyz, raw / 255][kept].astype(np.float32)
        np.testing.assert_array_equal(sensor_points(view, scale), expected)


@pytest.mark.parametrize(
    ("samples", "scale"),
    [
        (np.linspace(0, 1, 500, dtype=np.float32), 1),
        (np.linspace(0, 255, 500, dtype=np.float32), 255),
        (np.linspace(0, 90, 500), 255),  # a dark place
        (np.array([0, 1, 1, 1], np.uint8), 255),
        (np.arange(200, dtype=np.uint16), 255),
        (np.r_[np.zeros(100), np.nan, np.inf], 1),
        (np.zeros(0, np.float32), 1),
        (np.linspace(0, 4000, 101), 3960),
    ],
)
def test_what_intensities_are_in(samples: np.ndarray, scale: float) -> None:
    assert intensity_scale(samples) == pytest.approx(scale)
