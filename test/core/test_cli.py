"""The command line as people script it: forms that are promised, one sentence and exit code 2 for bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ep2ploc_core import se3
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.synthetic import write_synthetic_drive


def ep2ploc(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ep2ploc_core.cli", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a drive, queries and a map without them."""
    path = tmp_path_factory.mktemp("cli")
    drive = write_synthetic_drive(path, frames=20, seed=2)
    (path / "drive").symlink_to(drive)
    for arguments in (
        ("queries", "from-kitti", path / "drive", "--out", path / "queries", "--frames", "9,10"),
        ("map", "build", path / "drive", "--out", path / "map", "--hold-out", path / "queries"),
    ):
        result = ep2ploc(*arguments)
        assert result.returncode == 0, result.stderr
    return path


def test_how_many_scans_are_held_out_is_told_and_when_that_leaves_no_map(site: Path, tmp_path: Path) -> None:
    """Of 20 scans those of frames 2 to 15 are the queries' and their neighbours'; with 9 and 10 only 6 to 13."""
    frames = ("--frames", "5:14:7")
    queries = ep2ploc("queries", "from-kitti", site / "drive", "--out", tmp_path / "queries", *frames)
    assert queries.returncode == 0, queries.stderr
    for held_out, count, few in ((tmp_path / "queries", 14, True), (site / "queries", 8, False)):
        build = ("map", "build", site / "drive", "--out", tmp_path / "map", "--hold-out", held_out, "--checkpoint", "")
        said = " ".join(ep2ploc(*build).stderr.split())
        assert f"{count} of 20 scans are held out" in said
        assert ("So few are left that the map may not show the site" in said) == few


def prior_of(site: Path, frame: int) -> str:
    drive = KittiDrive(site / "drive")
    pose = drive.map_from_camera(drive.frame(frame))
    return ",".join(f"{number:.6f}" for number in (*pose[:3, 3], *se3.to_quaternion(pose)))


def test_localize_writes_the_promised_form(site: Path, tmp_path: Path) -> None:
    image = site / "queries/images/0000000009.jpg"
    result = ep2ploc(
        "localize", site / "map", image, "--camera", site / "queries/camera.yaml", "--prior", prior_of(site, 9),
        "--json", tmp_path / "result.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    row = json.loads((tmp_path / "result.json").read_text())
    assert row == json.loads(result.stdout)
    assert row["status"] in ("ok", "refused")
    assert {"map_from_camera", "covariance", "num_matches", "num_inliers", "reason", "seconds"} <= set(row)
    if row["status"] == "ok":
        assert np.shape(row["map_from_camera"]) == (4, 4) and np.shape(row["covariance"]) == (6, 6)
        numbers = np.array(row["pose"].split(","), float)
        np.testing.assert_allclose(se3.from_quaternion(numbers[:3], numbers[3:]), row["map_from_camera"], atol=1e-5)
        assert "one standard deviation" in result.stderr
    else:
        assert row["reason"] and row["map_from_camera"] is None


def test_without_a_prior_landmarks_find_the_place_and_without_these_it_says_why_not(site: Path) -> None:
    """No network was adapted to this map."""
    image = site / "queries/images/0000000009.jpg"
    asked = ("localize", site / "map", image, "--camera", site / "queries/camera.yaml")
    result = ep2ploc(*asked)
    assert result.returncode == 0
    row, drive = json.loads(result.stdout), KittiDrive(site / "drive")
    truth = drive.map_from_camera(drive.frame(9))
    assert row["status"] == "ok" and se3.pose_error(np.array(row["map_from_camera"]), truth)[0] < 0.3, row
    result = ep2ploc(*asked, "--no-landmarks")
    assert json.loads(result.stdout)["status"] == "refused"
    assert "no prior pose, and the map has no places to search" in json.loads(result.stdout)["reason"]


def test_evaluate_compares_with_the_truth_and_repeats_exactly(site: Path, tmp_path: Path) -> None:
    reports = []
    for name in ("a.json", "b.json"):
        result = ep2ploc(
            "evaluate", site / "map", site / "queries", "--noise", "1m,5deg", "--repeats", "2", "--json",
            tmp_path / name, "--plots", tmp_path / "plots", "--markdown", tmp_path / "tables.md",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        reports.append(json.loads((tmp_path / name).read_text()))
    first, second = reports
    assert len(first["results"]) == 4 and first["summary"]["queries"] == 4
    assert first["start"]["median_translation_error_m"] < np.sqrt(1 + 1 + 0.25**2)
    for mine, theirs in zip(first["results"], second["results"], strict=True):
        assert mine["map_from_camera"] == theirs["map_from_camera"]
    for row in first["results"]:
        if row["status"] == "ok":
            truth_free = {"translation_error_m", "rotation_error_deg", "forward_error_m", "yaw_error_deg"}
            assert truth_free <= set(row)
    for plot in ("recall", "trajectory", "calibration", "error_over_distance"):
        assert (tmp_path / f"plots/{plot}.png").stat().st_size > 1000
    tables = (tmp_path / "tables.md").read_text()
    assert all(title in tables for title in ("| network | ", "| yaw deg | ", "| position | "))
    assert len(first["summary"]["calibration"]["expected"]) == 5
    # Frames 9 and 10 and two on either side are no mapping images; the street is driven at about a metre a frame.
    assert all(1.0 < row["distance_to_mapping_m"] < 6.0 for row in first["results"])
    assert first["summary"]["queries_at_mapping_images"] == 0


def test_evaluate_without_a_prior_has_the_same_form(site: Path, tmp_path: Path) -> None:
    result = ep2ploc(
        "evaluate", site / "map", site / "queries", "--protocol", "global", "--json", tmp_path / "report.json",
        "--plots", tmp_path / "plots",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["protocol"] == {"name": "global", "swap": False, "foreign": None}
    assert [row["query"] for row in report["results"]] == [0, 1] and report["summary"]["queries"] == 2
    for row in report["results"]:
        assert row["status"] == "ok" or row["reason"]
        assert ("translation_error_m" in row) == (row["map_from_camera"] is not None) == (row["status"] == "ok")
    assert (tmp_path / "plots/calibration.png").stat().st_size > 1000


def test_foreign_images_count_false_accepts_and_queries_in_the_map_are_told(site: Path, tmp_path: Path) -> None:
    mapped = ("queries", "from-kitti", site / "drive", "--out", tmp_path / "mapped", "--frames", "3,4,15")
    assert ep2ploc(*mapped).returncode == 0
    arguments = ("evaluate", site / "map", tmp_path / "mapped", "--protocol", "global", "--json", tmp_path / "a.json")
    result = ep2ploc(*arguments, "--foreign", site / "queries")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "a.json").read_text())["summary"]
    assert summary["wrong_and_given"] + summary["refused"] == summary["queries"] == 3
    assert summary["false_accept_share"] == pytest.approx(summary["wrong_and_given"] / 3, abs=1e-3)
    assert "3 of 3 queries lie where an image of the mapping run was taken" in " ".join(result.stderr.split())


def test_another_recording_of_the_site_is_asked_with_its_poses_in_the_maps_frame(site: Path, tmp_path: Path) -> None:
    """The same street in another light; that recording's own poses begin elsewhere, turned by a right angle."""
    drive = (site / "drive").resolve()
    other = tmp_path / drive.parent.name / drive.name
    shutil.copytree(drive.parent, other.parent)
    for file in (other / "image_02/data").iterdir():
        cv2.imwrite(str(file), cv2.convertScaleAbs(cv2.imread(str(file)), alpha=0.8))
    in_map = np.loadtxt(other / "poses_lidar.txt")
    np.savetxt(tmp_path / "in_map.txt", in_map)
    own = np.tile(np.eye(4), (20, 1, 1))
    own[:, :3] = in_map.reshape(20, 3, 4)
    turned = np.array([[0.0, -1, 0, 300], [1, 0, 0, -40], [0, 0, 1, 2], [0, 0, 0, 1]])
    np.savetxt(other / "poses_lidar.txt", (turned @ own)[:, :3].reshape(20, 12))
    made = ("queries", "from-kitti", other, "--out", tmp_path / "queries", "--frames", "9,10")
    assert ep2ploc(*made, "--poses", tmp_path / "in_map.txt").returncode == 0
    theirs, mine = (np.loadtxt(path / "queries/poses.txt")[:, 1:] for path in (tmp_path, site))
    np.testing.assert_allclose(theirs, mine, atol=1e-6)
    assert not np.array_equal(Queries(tmp_path / "queries").image(0), Queries(site / "queries").image(0))
    result = ep2ploc("evaluate", site / "map", tmp_path / "queries", "--json", tmp_path / "report.json")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["start"]["candidate_median_translation_error_m"] < 3
    assert all(row["candidate_translation_error_m"] < 3 for row in report["results"])
    assert all(1.0 < row["distance_to_mapping_m"] < 6.0 for row in report["results"])


def test_the_map_is_drawn_over_an_image_of_the_mapping_run(site: Path, tmp_path: Path) -> None:
    drive = KittiDrive(site / "drive")
    pose = drive.map_from_camera(drive.frame(3))
    given = ",".join(f"{number:.9f}" for number in (*pose[:3, 3], *se3.to_quaternion(pose)))
    image, camera = drive.frame(3).image_path, site / "queries/camera.yaml"
    pictures = []
    for number, asked in enumerate((("--frame", 3), (image, "--camera", camera, "--pose", given))):
        result = ep2ploc("overlay", site / "map", *asked, "--out", tmp_path / f"{number}.png")
        assert result.returncode == 0, result.stderr
        pictures.append(cv2.imread(str(tmp_path / f"{number}.png")).astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() < 1
    assert np.abs(pictures[0] - cv2.imread(str(image)).astype(int)).mean() > 5
    result = ep2ploc("overlay", site / "map", "--frame", 9, "--out", tmp_path / "none.png")  # held out
    assert result.returncode == 2 and "has no image 9 with a pose that is not held out" in result.stderr
    result = ep2ploc("overlay", site / "map", image, "--frame", 3, "--out", tmp_path / "none.png")
    assert result.returncode == 2 and "Give either IMAGE with --camera and --pose, or --frame" in result.stderr


def test_a_bag_goes_the_same_way_as_the_drive_that_it_was_made_of(site: Path, tmp_path: Path) -> None:
    drive = KittiDrive(site / "drive")
    rows = np.array([frame.map_from_lidar for frame in drive.frames])[:, :3].reshape(-1, 12)
    np.savetxt(tmp_path / "rows.txt", rows, fmt="%.17g")
    poses = ("--poses", tmp_path / "rows.txt")
    for arguments in (
        ("bag", "from-kitti", site / "drive", "--out", tmp_path / "bag"),
        ("queries", "from-bag", tmp_path / "bag", "--out", tmp_path / "queries", "--frames", "9,10", *poses),
        ("map", "build", tmp_path / "bag", "--out", tmp_path / "map", "--hold-out", tmp_path / "queries", *poses),
        ("overlay", tmp_path / "map", "--frame", 9, "--out", tmp_path / "overlay.png"),
        ("bag", "images", tmp_path / "bag", "--out", tmp_path / "robot", "--frames", "9"),
    ):
        result = ep2ploc(*arguments)
        assert result.returncode == 0, result.stderr
    mine, theirs = Queries(tmp_path / "queries"), Queries(site / "queries")
    np.testing.assert_allclose(mine.map_from_camera, theirs.map_from_camera, atol=1e-5)
    assert np.array_equal(mine.image(1), theirs.image(1)) and mine.camera.matrix == pytest.approx(theirs.camera.matrix)
    told = [ep2ploc("map", "info", path / "map").stdout for path in (tmp_path, site)]
    for row in ("points", "landmarks", "path"):
        of_bag, of_drive = (re.findall(rf"│ {row} +│ (.*?) *│", text) for text in told)
        assert of_bag == of_drive and of_bag
    result = ep2ploc(
        "localize", tmp_path / "map", tmp_path / "robot/images/0000000009.png", "--camera",
        tmp_path / "robot/camera.yaml",
    )  # fmt: skip
    row = json.loads(result.stdout)
    assert row["status"] == "ok", row["reason"]
    assert np.linalg.norm(np.array(row["map_from_camera"])[:3, 3] - mine.map_from_camera[0][:3, 3]) < 0.3
    result = ep2ploc("map", "build", tmp_path / "bag", "--out", tmp_path / "other", *poses, "--image-topic", "/typo")
    assert result.returncode == 2 and "has no image topic /typo" in result.stderr and not (tmp_path / "other").exists()


def test_several_methods_go_into_one_table_from_the_same_starts(site: Path, tmp_path: Path) -> None:
    """Only the network needs an encoded map, and only SIFT the mapping run's images, without those held out."""
    shutil.copytree(site / "map", tmp_path / "map")
    for file in (tmp_path / "map").glob("tiles/*/descriptors.*"):
        file.unlink()
    info = (tmp_path / "map/map.yaml").read_text()
    (tmp_path / "map/map.yaml").write_text(re.sub(r"checkpoint: .*", "checkpoint: ''", info))
    result = ep2ploc(
        "evaluate", tmp_path / "map", site / "queries", "--method", "sift", "--method", "edges", "--method", "sift",
        "--noise", "0.5m,2deg", "--json", tmp_path / "report.json", "--markdown", tmp_path / "tables.md",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    reports = json.loads((tmp_path / "report.json").read_text())["methods"]
    assert list(reports) == ["sift", "edges"]
    assert reports["sift"]["start_results"] == reports["edges"]["start_results"]
    assert all(report["method"] == name and report["network"] == "" for name, report in reports.items())
    assert reports["sift"]["summary"]["recall_0.25m_2deg"] == 1
    titles = [line.split("|")[1].strip() for line in (tmp_path / "tables.md").read_text().splitlines()]
    assert titles[2:] == ["start", "sift", "edges"]
    alone = ep2ploc(
        "evaluate", tmp_path / "map", site / "queries", "--method", "sift", "--protocol", "global", "--json",
        tmp_path / "alone.json",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert json.loads((tmp_path / "alone.json").read_text())["method"] == "sift"
    moved = info.replace(str((site / "drive").resolve()), str(site / "gone"))
    assert moved != info
    (tmp_path / "map/map.yaml").write_text(moved)
    without = ep2ploc("evaluate", tmp_path / "map", site / "queries", "--method", "sift")
    assert without.returncode == 2 and "ep2ploc: " in without.stderr and "Traceback" not in without.stderr


def test_the_held_out_scans_are_not_in_the_map(site: Path) -> None:
    from ep2ploc_core.map.point_map import PointMap

    seen = PointMap.open(site / "map").all_points().seen
    assert not np.isin(seen, range(6, 14)).any()
    assert np.isin([5, 14], seen).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("map", "build", "no/drive", "--out", "{tmp}/m"), "does not exist; give a KITTI raw drive"),
        (("map", "info", "{tmp}"), "is not a map directory"),
        (("localize", "{tmp}", "{image}", "--camera", "{camera}"), "is not a map directory"),
        (("localize", "{map}", "no.png", "--camera", "{camera}"), "does not exist"),
        (("localize", "{map}", "{image}", "--camera", "no.yaml"), "does not exist"),
        (("localize", "{map}", "{image}", "--camera", "{image}"), "The calibration"),
        (("localize", "{map}", "{image}", "--camera", "{wide}", "--prior", "{prior}"), "calibration is for"),
        (("localize", "{map}", "{image}", "--camera", "{camera}", "--prior", "1,2,3"), "cannot be read"),
        (("localize", "{map}", "{image}", "--camera", "{camera}", "--checkpoint", "no"), "no weights file"),
        (
            ("localize", "{map}", "{image}", "--camera", "{camera}", "--rerun", "{tmp}/a.rrd", "--refine", "none"),
            "leave --refine none out",
        ),
        (("localize", "{map}", "{image}", "--camera", "{camera}", "--refine", "polish"), "is not known"),
        (("evaluate", "{map}", "{tmp}"), "no images"),
        (("evaluate", "{map}", "{queries}", "--noise", "lots"), "write it like"),
        (("evaluate", "{map}", "{queries}", "--noise", "1.2.3m,4deg"), "write it like"),
        (("evaluate", "{map}", "{queries}", "--protocol", "global", "--repeats", "3"), "--repeats does not apply"),
        (("evaluate", "{map}", "{queries}", "--foreign", "{queries}", "--swap"), "neither --swap"),
        (("evaluate", "{map}", "{queries}", "--protocol", "magic"), "not known"),
        (("evaluate", "{map}", "{queries}", "--protocol", "retrieval"), "has no places"),
        (("evaluate", "{map}", "{queries}", "--protocol", "registration"), "nothing that a map can be made of"),
        (("evaluate", "{map}", "{queries}", "--protocol", "registration", "--foreign", "{queries}"), "--foreign does"),
        (("evaluate", "{map}", "{queries}", "--protocol", "retrieval", "--refine", "none"), "--refine does not apply"),
        (("evaluate", "{map}", "{queries}", "--method", "magic"), "The method 'magic' is not known"),
        (("evaluate", "{map}", "{queries}", "--method", "nid", "--refine", "none"), "--refine is of the network"),
        (("evaluate", "{map}", "{queries}", "--method", "nid", "--checkpoint", "edge"), "--checkpoint is of"),
        (
            ("evaluate", "{map}", "{queries}", "--method", "nid", "--method", "sift", "--plots", "{tmp}"),
            "give a single --method",
        ),
        (("evaluate", "{map}", "{queries}", "--method", "retrieval"), "has no places"),
        (("evaluate", "{map}", "{queries}", "--protocol", "retrieval", "--method", "sift"), "--method does not apply"),
        (("train", "no.yaml"), "no training configuration"),
        (("train", "--site", "{tmp}"), "is not a map directory"),
        (("bag", "from-kitti", "{tmp}", "--out", "{tmp}/bag"), "is not a KITTI raw drive"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(site: Path, tmp_path: Path, arguments: tuple, says: str) -> None:
    wide = tmp_path / "wide.yaml"
    wide.write_text((site / "queries/camera.yaml").read_text().replace("image_width: 640", "image_width: 660"))
    (tmp_path / "empty").mkdir()
    places = {
        "tmp": tmp_path / "empty", "map": site / "map", "queries": site / "queries", "wide": wide,
        "image": site / "queries/images/0000000009.jpg", "camera": site / "queries/camera.yaml",
        "prior": prior_of(site, 9),
    }  # fmt: skip
    result = ep2ploc(*(argument.format(**places) for argument in arguments))
    assert result.returncode == 2, (result.stdout, result.stderr)
    message = [line for line in result.stderr.splitlines() if line.strip()][-1]
    assert message.startswith("ep2ploc: ") and says in message
    assert "Traceback" not in result.stderr


def test_a_truncated_scan_leaves_the_old_map(site: Path, tmp_path: Path) -> None:
    drive = write_synthetic_drive(tmp_path, frames=3, seed=4)
    assert ep2ploc("map", "build", drive, "--out", tmp_path / "map").returncode == 0
    before = (tmp_path / "map/map.yaml").read_text()
    scan = drive / "velodyne_points/data/0000000001.bin"
    scan.write_bytes(scan.read_bytes()[:-5])
    result = ep2ploc("map", "build", drive, "--out", tmp_path / "map")
    assert result.returncode == 2 and "truncated" in result.stderr
    assert (tmp_path / "map/map.yaml").read_text() == before


def test_a_map_of_another_network_is_refused(site: Path, tmp_path: Path) -> None:
    from ep2ploc_core.model.checkpoint import load_network, save_network

    network = load_network("edge")
    network.log_pose_temperature.data += 1
    save_network(network, tmp_path / "other.safetensors")
    result = ep2ploc(
        "localize", site / "map", site / "queries/images/0000000009.jpg", "--camera", site / "queries/camera.yaml",
        "--prior", prior_of(site, 9), "--checkpoint", tmp_path / "other.safetensors",
    )  # fmt: skip
    assert result.returncode == 2 and "encoded with network" in result.stderr
