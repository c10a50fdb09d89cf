"""Registration in a query's own scan: errors as the papers' formula has them, moves that are undone, figures that count
every query."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.cli import app
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.queries import Queries, write_queries
from ep2ploc_core.datasets.sampling import START_RANGE
from ep2ploc_core.datasets.synthetic import CAMERA_FROM_LIDAR, write_synthetic_drive
from ep2ploc_core.errors import InputError
from ep2ploc_core.evaluation.registration import (
    RegistrationProtocol,
    draw_move,
    evaluate_registration,
    registration_error,
    views_within,
)
from ep2ploc_core.evaluation.report import report_grids
from ep2ploc_core.localization import Localization
from ep2ploc_core.map.encode import encode_map
from ep2ploc_core.map.point_map import MapInfo, write_map
from ep2ploc_core.map.posed_scan import PosedScan
from ep2ploc_core.map.scan_map import encode_scan
from ep2ploc_core.map.sources import KittiSource
from ep2ploc_core.model.checkpoint import load_network
from ep2ploc_core.visualization.plots import plot_evaluation

LIDAR_FROM_CAMERA = np.linalg.inv(CAMERA_FROM_LIDAR)


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_drive(tmp_path_factory.mktemp("registration"), frames=4, seed=11)


@pytest.fixture
def queries(drive: Path, tmp_path: Path) -> Queries:
    return write_queries(KittiDrive(drive), [1, 3], tmp_path / "queries")


class Told:
    """Answers by what it is told of the scan; notes what it was asked with."""

    def __init__(self, answer, asked: list) -> None:
        self.answer, self.asked = answer, asked

    def __call__(self, scan: PosedScan, views: np.ndarray) -> "Told":
        self.scan, self.views = scan, views
        return self

    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        self.asked.append((self.scan, self.views, prior))
        pose = self.answer(self.scan)
        if pose is None:
            return Localization("refused", "nothing was found")
        return Localization("ok", map_from_camera=pose, candidate=pose, covariance=np.eye(6))


def test_the_errors_are_those_of_the_papers_formula() -> None:
    """Written out for camera_from_cloud, in the frame of the camera before the cloud was moved, as in CorrI2P."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        truth, estimate, start = np.tile(np.eye(4), (3, 1, 1))
        for pose in (truth, estimate, start):
            pose[:3, :3], pose[:3, 3] = Rotation.random(rng=rng).as_matrix(), rng.uniform(-10, 10, 3)
        cloud_from_estimate, cloud_from_truth = np.linalg.inv(start) @ estimate, np.linalg.inv(start) @ truth
        predicted, true = np.linalg.inv(cloud_from_estimate), np.linalg.inv(cloud_from_truth)
        turn = predicted[:3, :3].T @ true[:3, :3]
        shift = predicted[:3, :3].T @ (true[:3, 3] - predicted[:3, 3])
        metres, degrees = registration_error(estimate, truth, start)
        assert metres == pytest.approx(np.linalg.norm(shift))
        assert degrees == pytest.approx(np.abs(Rotation.from_matrix(turn).as_euler("xzy", degrees=True)).sum())
        assert degrees >= np.degrees(se3.pose_error(estimate, truth)[1]) - 1e-6
    moved = np.eye(4)
    moved[:3, 3] = [0.3, 0, 0.4]
    assert registration_error(moved, np.eye(4), np.eye(4)) == pytest.approx((0.5, 0))


def test_views_are_so_near_that_every_move_is_reached_from_one() -> None:
    start, protocol = LIDAR_FROM_CAMERA, RegistrationProtocol()
    views = views_within(start, protocol.metres, protocol.degrees)
    assert len(views) == 5 * 5 * 18
    rng = np.random.default_rng(0)
    truths = np.stack([draw_move(rng, start[:3, 3], protocol) @ start for _ in range(400)])
    np.testing.assert_allclose(truths[:, 2, 3], start[2, 3], atol=1e-9)
    np.testing.assert_allclose(truths[:, 2, :3], np.tile(start[2, :3], (400, 1)), atol=1e-9)  # pitch and roll
    assert np.abs(truths[:, :2, 3] - start[:2, 3]).max() <= 10 and np.abs(truths[:, :2, 3] - start[:2, 3]).max() > 9
    reached = []
    for truth in truths:
        off = np.abs(truth[:2, 3] - views[:, :2, 3]).max(1)
        angle = np.arccos(((views[:, :3, :3] * truth[:3, :3]).sum((1, 2)) / 2 - 0.5).clip(-1, 1))
        reached.append(((off <= START_RANGE[0] + 1e-9) & (angle <= START_RANGE[4] + 1e-6)).any())
    assert all(reached)
    np.testing.assert_allclose(views_within(start, 2.0, 10.0), start[None], atol=1e-12)


def test_who_undoes_the_move_registers_all(drive: Path, queries: Queries, tmp_path: Path) -> None:
    asked: list = []
    finder = Told(lambda scan: scan.map_from_lidar @ LIDAR_FROM_CAMERA, asked)
    report = evaluate_registration(finder, KittiSource(drive), queries, RegistrationProtocol(repeats=3))
    summary, start = report["summary"], report["start"]
    assert [scan.frame for scan, _, _ in asked] == [1, 1, 1, 3, 3, 3] and all(prior is None for *_, prior in asked)
    assert summary["registration_recall"] == summary["candidate_registration_recall"] == 1
    assert summary["mean_rte_m"] == summary["mean_rre_deg"] == 0 and summary["recall_0.1m_1deg"] == 1
    assert start["registration_recall"] == 0 and 3 < start["mean_rte_m"] < 14.2 and start["mean_rre_deg"] > 20
    for row, of_start in zip(report["results"], report["start_results"], strict=True):
        assert row["start_rte_m"] == of_start["rte_m"] == pytest.approx(of_start["translation_error_m"], abs=1e-3)
    own = KittiDrive(drive)
    np.testing.assert_array_equal(asked[0][0].points, own.read_scan(own.frame(1)))
    assert [path.name for path in plot_evaluation(report, queries.map_from_camera, None, tmp_path)] == [
        "recall.png", "calibration.png",
    ]  # fmt: skip

    swapped = RegistrationProtocol(repeats=3, swap=True)  # another frame's image: that scan is not where it was taken
    away = evaluate_registration(finder, KittiSource(drive), queries, swapped)
    assert [row["image"] for row in away["results"]] == 3 * ["0000000003.jpg"] + 3 * ["0000000001.jpg"]
    assert away["summary"]["false_accept_share"] == 1  # by two metres

    again = evaluate_registration(finder, KittiSource(drive), queries, RegistrationProtocol(repeats=3))
    assert again["start_results"] == report["start_results"]


def test_who_finds_nothing_is_as_good_as_the_start(drive: Path, queries: Queries) -> None:
    report = evaluate_registration(
        Told(lambda scan: None, []), KittiSource(drive), queries, RegistrationProtocol(repeats=4, seed=2)
    )
    summary, start = report["summary"], report["start"]
    assert summary["without_candidate"] == summary["refused"] == 8 and summary["registration_recall"] == 0
    for name in ("mean_rte_m", "std_rte_m", "mean_rre_deg", "std_rre_deg"):
        assert summary[name] == pytest.approx(start[name], abs=2e-4)
    cells = {line[0]: line[1:] for line in report_grids(report)[0].rows}
    assert cells["start"][:2] == cells["network"][:2] and cells["network"][2:4] == ["0%", "0%"]


def test_small_moves_are_undone_from_the_unmoved_pose(drive: Path, queries: Queries) -> None:
    asked: list = []
    small = RegistrationProtocol(metres=2.0, degrees=10.0)
    evaluate_registration(Told(lambda scan: None, asked), KittiSource(drive), queries, small)
    for _, _, prior in asked:
        np.testing.assert_allclose(prior, LIDAR_FROM_CAMERA, atol=1e-6)


def test_a_scan_in_memory_is_encoded_as_its_map_on_disk_would_be(drive: Path, tmp_path: Path) -> None:
    scan, network = next(KittiSource(drive).scans()), load_network("edge")
    made = encode_scan(scan, network)
    stored = write_map(tmp_path / "map", made.points, MapInfo(voxel_size=0.2))
    encode_map(stored, network)
    centre = scan.map_from_lidar[:3, 3] + [3, 0, 0]
    here, there = made.query(centre, 20.0), stored.query(centre, 20.0)
    assert len(here) == len(there) > 1000 and made.checkpoint == stored.checkpoint
    mine, theirs = (points.select(np.lexsort(points.xyz.T)) for points in (here, there))
    np.testing.assert_array_equal(mine.xyz, theirs.xyz)
    assert mine.descriptors is not None and theirs.descriptors is not None
    assert np.abs(mine.descriptors.astype(int) - theirs.descriptors).max() <= 2  # attributes are rounded on disk


def test_the_command_line_takes_a_recording(drive: Path, queries: Queries, tmp_path: Path) -> None:
    arguments = ["evaluate", str(drive), str(queries.path), "--protocol", "registration", "--noise", "3m,8deg"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "report.json")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["recording"] == str(drive) and report["protocol"]["name"] == "registration"
    assert report["protocol"]["metres"] == 3 and len(report["results"]) == report["summary"]["queries"] == 2
    for row in report["results"]:
        assert row["status"] == "ok" or row["reason"]
        assert ("rte_m" in row) == (row["status"] == "ok")


def test_what_cannot_be_registered_is_told(drive: Path, queries: Queries, tmp_path: Path) -> None:
    def asked(recording: KittiSource, of: Queries) -> None:
        evaluate_registration(Told(lambda scan: None, []), recording, of, RegistrationProtocol())

    with pytest.raises(InputError, match="no scan with a pose for the queries' frames 3"):
        asked(KittiSource(drive, hold_out=[6]), queries)
    poses = np.loadtxt(queries.path / "poses.txt")
    poses[:, 1] += 500
    np.savetxt(queries.path / "poses.txt", poses)
    with pytest.raises(InputError, match="lies 500 m from its scan"):
        asked(KittiSource(drive), Queries(queries.path))
    (queries.path / "frames.txt").unlink()
    with pytest.raises(InputError, match=r"has no frames\.txt"):
        asked(KittiSource(drive), Queries(queries.path))
