"""Point cloud files: what open3d wrote is what is read, a chunk at a time; normals of a bare map look at the street."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import open3d as o3d
import pytest

from ep2ploc_core.datasets import cloud_source
from ep2ploc_core.datasets.cloud_source import CloudFileSource
from ep2ploc_core.datasets.lzf import decompress
from ep2ploc_core.datasets.point_files import open_point_file
from ep2ploc_core.errors import InputError
from ep2ploc_core.map.build import accumulate
from ep2ploc_core.map.posed_scan import PosedScan

FORMATS = [("a.pcd", "ascii"), ("b.pcd", "binary"), ("c.pcd", "compressed"), ("a.ply", "ascii"), ("b.ply", "binary")]


def cloud(count: int = 5000, offset: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """Points `(count, 4)` of a wavy surface, so that compression finds something, with intensities 0..200."""
    rng = np.random.default_rng(4)
    xy = np.round(rng.uniform(-50, 50, (count, 2)), 2)
    z = np.round(np.sin(xy[:, :1]), 1)
    return np.concatenate([xy, z, rng.integers(0, 201, (count, 1))], axis=1) + [*offset, 0]


def write_with_open3d(path: Path, points: np.ndarray, how: str, kind: type = np.float64) -> None:
    out = o3d.t.geometry.PointCloud(o3d.core.Tensor(np.ascontiguousarray(points[:, :3], kind)))
    out.point["intensity"] = o3d.core.Tensor(np.ascontiguousarray(points[:, 3:], np.float32))
    out.point["colors"] = o3d.core.Tensor(np.full((len(points), 3), 7, np.uint8))
    assert o3d.t.io.write_point_cloud(str(path), out, write_ascii=how == "ascii", compressed=how == "compressed")


def write_pcd(path: Path, points: np.ndarray, header: str = "", **change: str) -> None:
    """Float64 points `(n, 4)` as a binary PCD, with single header lines changed."""
    lines = {
        "VERSION": "0.7", "FIELDS": "x y z intensity", "SIZE": "8 8 8 8", "TYPE": "F F F F", "COUNT": "1 1 1 1",
        "WIDTH": str(len(points)), "HEIGHT": "1", "VIEWPOINT": "0 0 0 1 0 0 0", "POINTS": str(len(points)),
        "DATA": "binary",
    }  # fmt: skip
    lines.update(change)
    text = header or "".join(f"{name} {value}\n" for name, value in lines.items())
    path.write_bytes(text.encode() + points.astype("<f8").tobytes())


def in_map(scan: PosedScan) -> np.ndarray:
    return scan.points[:, :3].astype(np.float64) @ scan.map_from_lidar[:3, :3].T + scan.map_from_lidar[:3, 3]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "how"), FORMATS)
def test_reads_what_open3d_wrote_in_chunks(tmp_path: Path, name: str, how: str, kind: type) -> None:
    points = cloud().astype(kind).astype(np.float64)
    write_with_open3d(tmp_path / name, points, how, kind)
    file = open_point_file(tmp_path / name)
    assert file.count == 5000 and file.has_intensity
    chunks = list(file.chunks(1500))
    assert [len(chunk) for chunk in chunks] == [1500, 1500, 1500, 500]
    # open3d's ASCII PLY keeps six digits.
    np.testing.assert_allclose(np.concatenate(chunks), points, atol=1e-4 if name == "a.ply" else 1e-6)
    np.testing.assert_array_equal(next(file.chunks(1500, 2)), chunks[2])


def test_reads_big_endian_ply_with_other_properties(tmp_path: Path) -> None:
    points = cloud(10)
    record = np.dtype([("flag", ">u1"), ("x", ">f8"), ("y", ">f4"), ("z", ">f4"), ("reflectance", ">u2")])
    out = np.zeros(10, record)
    out["x"], out["y"], out["z"], out["reflectance"] = points.T
    header = (
        "ply\r\nformat binary_big_endian 1.0\r\ncomment made by hand\r\nelement vertex 10\r\nproperty uchar flag\r\n"
        "property double x\r\nproperty float y\r\nproperty float32 z\r\nproperty ushort reflectance\r\n"
        "element face 1\r\nproperty list uchar int vertex_indices\r\nend_header\r\n"
    )
    (tmp_path / "big.ply").write_bytes(header.encode() + out.tobytes() + b"\x03" + bytes(12))
    (chunk,) = open_point_file(tmp_path / "big.ply").chunks(100)
    np.testing.assert_allclose(chunk, points, atol=1e-5)


def test_lzf_says_when_a_stream_is_broken() -> None:
    assert decompress(b"\x02abc\x40\x02", 7) == b"abcabca"
    for stream, size in ((b"\x02abc\x40\x02", 8), (b"\x02ab", 3), (b"\x02abc\x40\x03", 7), (b"\x02abc\xe0", 12)):
        with pytest.raises(ValueError):
            decompress(stream, size)


def test_utm_coordinates_keep_their_millimetres(tmp_path: Path) -> None:
    points = cloud(offset=(512_345.678, 5_412_345.123, 480.0))
    write_with_open3d(tmp_path / "utm.pcd", points, "binary")
    (scan,) = CloudFileSource(tmp_path / "utm.pcd").scans()
    np.testing.assert_allclose(in_map(scan), points[:, :3], atol=1e-3, rtol=0)
    np.testing.assert_allclose(scan.points[:, 3], points[:, 3] / 255, atol=1e-6)


@pytest.mark.parametrize(("largest", "full"), [(0.9, 1.0), (3.0, 255.0), (255.0, 255.0), (4000.0, 65535.0)])
def test_intensity_is_scaled_by_the_range_of_the_largest(tmp_path: Path, largest: float, full: float) -> None:
    points = cloud(100)
    points[:, 3] = np.linspace(0, largest, 100)
    write_pcd(tmp_path / "cloud.pcd", points)
    (scan,) = CloudFileSource(tmp_path / "cloud.pcd").scans()
    np.testing.assert_allclose(scan.points[:, 3], points[:, 3] / full, atol=1e-6)


def test_bad_points_are_dropped_and_chunks_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud(2500)
    points[3, 0], points[700, 2], points[2000:2100, 1], points[4, 0] = np.nan, np.inf, -np.inf, 1e30
    write_pcd(tmp_path / "cloud.pcd", points)
    monkeypatch.setattr(cloud_source, "CHUNK", 1000)
    source = CloudFileSource(tmp_path / "cloud.pcd")
    scans = list(source.scans())
    assert len(source) == 3 and [scan.frame for scan in scans] == [0, 1, 2]
    good = np.isfinite(points).all(1) & (np.abs(points[:, 0]) < 1e6)
    np.testing.assert_allclose(np.concatenate([in_map(scan) for scan in scans]), points[good, :3], atol=1e-4)
    assert all(np.isfinite(scan.points).all() and np.isfinite(scan.viewpoints).all() for scan in scans)
    (last,) = CloudFileSource(tmp_path / "cloud.pcd").scans(2)
    np.testing.assert_array_equal(last.points, scans[2].points)
    np.testing.assert_array_equal(last.viewpoints, scans[2].viewpoints)


def test_without_intensity_points_are_half_bright(tmp_path: Path) -> None:
    o3d.t.io.write_point_cloud(str(tmp_path / "bare.ply"), o3d.t.geometry.PointCloud(o3d.core.Tensor(cloud(50)[:, :3])))
    (scan,) = CloudFileSource(tmp_path / "bare.ply").scans()
    assert (scan.points[:, 3] == 0.5).all()


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    write_pcd(tmp_path / "large.pcd", np.zeros((0, 4)), WIDTH="50000000", POINTS="50000000")
    with (tmp_path / "large.pcd").open("r+b") as stream:
        stream.truncate(1_600_000_200)  # of zeros, which take no room on the disk
    tracemalloc.start()
    chunks = open_point_file(tmp_path / "large.pcd").chunks(1_000_000)
    assert sum(len(next(chunks)) for _ in range(3)) == 3_000_000
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def street() -> tuple[np.ndarray, np.ndarray]:
    """Points `(N, 4)` of a street of houses with alleys and parked cars, and the true normals `(N, 3)`, all towards
    the street, the alleys or the sky. Ground is only where a car or its scanner gets to see it."""
    rng = np.random.default_rng(5)

    def plane(corner: list[float], a: list[float], b: list[float], normal: list[float]) -> np.ndarray:
        size = np.linalg.norm(a) * np.linalg.norm(b)
        where = rng.uniform(0, 1, (round(30 * size), 2))
        xyz = corner + where @ np.array([a, b]) + rng.normal(0, 0.02, (len(where), 3))
        return np.c_[xyz, np.full(len(xyz), 0.3), np.tile(normal, (len(xyz), 1))]

    parts = [plane([0, -8, 0], [100, 0, 0], [0, 16, 0], [0, 0, 1])]
    for side in (-1.0, 1.0):
        for x in range(0, 100, 20):
            parts.append(plane([x, 8 * side, 0], [16, 0, 0], [0, 0, 7], [0, -side, 0]))
            parts.append(plane([x + 16, 8 * side, 0], [4, 0, 0], [0, 10 * side, 0], [0, 0, 1]))
            parts.append(plane([x + 16, 8 * side, 0], [0, 10 * side, 0], [0, 0, 7], [1, 0, 0]))
            parts.append(plane([x + 20, 8 * side, 0], [0, 10 * side, 0], [0, 0, 7], [-1, 0, 0]))
            parts.append(plane([x + 3, 5 * side, 0.2], [4, 0, 0], [0, 0, 1.2], [0, -side, 0]))  # a parked car
    points = np.concatenate(parts)
    return points[:, :4], points[:, 4:]


@pytest.mark.parametrize("with_poses", [False, True])
def test_normals_of_a_bare_street_look_at_the_street(tmp_path: Path, with_poses: bool) -> None:
    points, normals = street()
    write_pcd(tmp_path / "street.pcd", points)
    path = np.tile(np.eye(4), (51, 1, 1))
    path[:, :3, 3] = np.c_[np.linspace(0, 100, 51), np.full(51, -1.5), np.full(51, 1.8)]
    np.savetxt(tmp_path / "path.txt", path[:, :3].reshape(-1, 12))
    (scan,) = CloudFileSource(tmp_path / "street.pcd", tmp_path / "path.txt" if with_poses else None).scans()
    assert scan.viewpoints is not None
    right = (normals * (scan.viewpoints - scan.points[:, :3])).sum(1) > 0
    towards_street = np.abs(normals[:, 1]) > 0.5
    assert right[normals[:, 2] > 0.5].mean() > 0.99
    assert right[towards_street].mean() > 0.95
    built = accumulate([scan], 0.2)
    facade = (np.abs(np.abs(built.xyz[:, 1]) - 8) < 0.1) & (built.xyz[:, 2] > 1) & (built.attributes[:, 4] > 0.4)
    inwards = np.abs(built.attributes[:, 2]) > 0.7
    assert (built.attributes[:, 2] * built.xyz[:, 1] < 0)[facade & inwards].mean() > 0.95


def test_viewpoint_of_a_single_scan_is_used(tmp_path: Path) -> None:
    write_pcd(tmp_path / "scan.pcd", cloud(200), VIEWPOINT="10 20 1.5 1 0 0 0")
    (scan,) = CloudFileSource(tmp_path / "scan.pcd").scans()
    assert scan.viewpoints is not None
    np.testing.assert_allclose(scan.viewpoints + scan.map_from_lidar[:3, 3], np.tile([10, 20, 1.5], (200, 1)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"WIDTH": "20000", "POINTS": "20000"}, "promises 20000 points"),
        ({"POINTS": "7"}, "contradicts itself"),
        ({"WIDTH": "0", "POINTS": "0"}, "holds no points"),
        ({"WIDTH": "-5", "POINTS": "-5"}, "holds no points"),
        ({"FIELDS": "x y height intensity"}, "lacks x, y and z"),
        ({"TYPE": "I F F F"}, "lacks x, y and z"),
        ({"SIZE": "8 8 8"}, "is not that of a PCD file"),
        ({"SIZE": "8 8 8 3"}, "a type that does not exist"),
        ({"COUNT": "1 1 1 99999999999"}, "promises"),
        ({"COUNT": "1 1 1 0"}, "has the length 0"),
        ({"DATA": "zip"}, "which no PCD file has"),
        ({"DATA": "binary_compressed"}, "promises"),
        ({"DATA": "ascii"}, "cannot be read|but the file holds"),
        ({"VIEWPOINT": "0 0"}, "VIEWPOINT"),
    ],
)
def test_bad_headers_get_a_sentence(tmp_path: Path, change: dict[str, str], says: str) -> None:
    write_pcd(tmp_path / "bad.pcd", cloud(50), **change)
    with pytest.raises(InputError, match=says):
        list(CloudFileSource(tmp_path / "bad.pcd").scans())


def test_what_is_no_point_file_says_so(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
    for name in ("picture.pcd", "picture.ply"):
        (tmp_path / name).write_bytes(png)
        with pytest.raises(InputError, match=r"is no P(CD|LY) file"):
            open_point_file(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        open_point_file(tmp_path / "none.ply")
    with pytest.raises(InputError, match=r"give a \.pcd or a \.ply"):
        open_point_file(tmp_path / "cloud.las")
    (tmp_path / "mesh.ply").write_text("ply\nformat ascii 1.0\nelement face 1\nproperty float x\nend_header\n")
    with pytest.raises(InputError, match="first element is not vertex"):
        open_point_file(tmp_path / "mesh.ply")
    write_pcd(tmp_path / "nan.pcd", np.full((10, 4), np.nan))
    with pytest.raises(InputError, match="holds no point whose"):
        list(CloudFileSource(tmp_path / "nan.pcd").scans())
