"""Metrics that cannot flatter: refusals are failures, axes are the camera's own, controls count what they should."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.errors import InputError
from ep2ploc_core.evaluation.calibration import LEVELS, PARTS, calibrate, chance_band, mahalanobis_squared
from ep2ploc_core.evaluation.metrics import AXES, RECALLS, axis_error, summarize, summarize_foreign
from ep2ploc_core.evaluation.protocols import GlobalProtocol, TrackingProtocol, evaluate_global, evaluate_tracking
from ep2ploc_core.evaluation.report import COLUMNS, axis_grid, calibration_grid, report_grids, summary_markdown
from ep2ploc_core.localization import Localization
from ep2ploc_core.visualization.plots import plot_calibration, plot_error_over_distance, plot_recall

DRAWS = 1500


def test_axis_errors_are_along_the_cameras_own_axes() -> None:
    truth = se3.exp(torch.tensor([4.0, 5, 6, 0.3, -1.0, 2.0], dtype=torch.float64)).numpy()
    for axis, name in enumerate(("lateral", "down", "forward")):
        moved = truth.copy()
        moved[:3, 3] += 0.7 * truth[:3, axis]
        error = axis_error(moved, truth)
        assert getattr(error, name) == pytest.approx(0.7)
        assert sum(abs(value) for value in (error.lateral, error.down, error.forward)) == pytest.approx(0.7)
    for axis, name in enumerate(("pitch", "yaw", "roll")):
        turn = np.zeros(6)
        turn[3 + axis] = 0.1
        error = axis_error(truth @ se3.exp(torch.from_numpy(turn)).numpy(), truth)
        assert getattr(error, name) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "seen_in_truth", "axis"),
    [("pitch", (0, 0, 1), (0, -1, 0)), ("yaw", (0, 0, 1), (1, 0, 0)), ("roll", (1, 0, 0), (0, 1, 0))],
)
def test_a_positive_turn_looks_up_to_the_right_or_leans_to_the_right(
    name: str, seen_in_truth: tuple, axis: tuple
) -> None:
    """Where the estimate's forward (or, for roll, right-hand) axis points in the true camera: up is -y, low is +y."""
    angles = {"pitch": (0.1, 0, 0), "yaw": (0, 0.1, 0), "roll": (0, 0, 0.1)}
    estimate = np.eye(4)
    estimate[:3, :3] = Rotation.from_rotvec(angles[name]).as_matrix()
    assert getattr(axis_error(estimate, np.eye(4)), name) == pytest.approx(0.1)
    assert estimate[:3, :3] @ seen_in_truth @ np.array(axis) == pytest.approx(np.sin(0.1))


def row(status: str, metres: float, degrees: float = 0.1, **more: float) -> dict[str, object]:
    errors = {"translation_error_m": metres, "rotation_error_deg": degrees, **more}
    given = errors if status == "ok" else {}
    return {"status": status, "seconds": 0.1, **given, **{f"candidate_{name}": value for name, value in errors.items()}}


def test_refusals_count_as_failures_and_their_candidates_in_the_medians_of_all() -> None:
    summary = summarize([row("ok", 0.1), row("ok", 0.4), row("ok", 3.0), row("refused", 9.0), row("refused", 0.1)])
    assert summary["refused"] == 2 and summary["queries"] == 5
    assert summary["recall_0.1m_1deg"] == 0.2  # a bound is within it
    assert summary["recall_0.25m_2deg"] == 0.2
    assert summary["recall_0.5m_5deg"] == 0.4
    assert summary["wrong_and_given"] == 1
    assert summary["median_translation_error_m"] == 0.4
    assert summary["candidate_median_translation_error_m"] == 0.4
    assert summarize([row("ok", 0.1, 6.0)])["recall_0.5m_5deg"] == 0
    late = summarize([row("ok", 0.1), {"status": "refused"}, {"status": "dropped"}, {"status": "dropped"}])
    assert (late["refused"], late["dropped"], late["queries"], late["recall_0.5m_5deg"]) == (1, 2, 4, 0.25)


def test_every_recall_has_its_column_and_the_finer_is_never_more() -> None:
    summary = summarize([row("ok", metres, degrees) for metres in (0.05, 0.2, 0.4, 1.0) for degrees in (0.5, 1.5, 4.0)])
    names = [f"recall_{metres:g}m_{degrees:g}deg" for metres, degrees in RECALLS]
    assert [column for column in COLUMNS if column.startswith("recall")] == names
    assert [summary[name] for name in names] == [
        round(sum(m <= metres and d <= degrees for m in (0.05, 0.2, 0.4, 1.0) for d in (0.5, 1.5, 4.0)) / 12, 4)
        for metres, degrees in RECALLS
    ]


def test_a_bias_is_told_from_a_spread() -> None:
    around_zero = [row("ok", 0.2, yaw_error_deg=value, down_error_m=0.1) for value in (-2.0, -1.0, 0.5, 1.0, 2.0)]
    summary = summarize([*around_zero, row("refused", 9.0, yaw_error_deg=50.0, down_error_m=-0.7)])
    assert summary["median_yaw_error_deg"] == 1.0 and summary["bias_yaw_error_deg"] == 0.5
    assert summary["median_down_error_m"] == summary["bias_down_error_m"] == 0.1
    assert summary["candidate_median_yaw_error_deg"] == 1.5  # the middle of 0.5, 1, 1, 2, 2, 50
    cells = {line[0]: line[1:] for line in axis_grid(summary).rows}
    assert cells["yaw deg"] == ["1.000", "0.500", "1.500", "0.750"]
    assert cells["down m"][:2] == ["0.100", "0.100"]


def test_tables_say_nothing_where_nothing_is_known() -> None:
    refused = summarize([{"status": "refused", "seconds": 0.1}])
    table = summary_markdown({"all refused": refused})
    assert "| all refused | - | - |" in table
    assert np.all([len(line.split("|")) == 16 for line in table.splitlines()])
    assert refused["calibration"]["of"] == 0 and refused["in_own_90_percent_ellipsoid"] is None
    assert all(set(line[1:]) == {"-"} for line in calibration_grid(refused["calibration"]).rows)
    assert all(set(line[1:]) == {"-"} for line in axis_grid(refused).rows)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Truths, estimates that `se3.perturb` made of them with Gaussian tangents, and the covariances of those. Positions
    are uncertain by metres one way and centimetres another, and depend on the rotation, so that other axes, another
    order or another centre of the turn would show."""
    rng = np.random.default_rng(5)
    triples = []
    for _ in range(DRAWS):
        root = np.zeros((6, 6))
        root[:3, :3] = Rotation.random(rng=rng).as_matrix() @ np.diag([2.0, 0.3, 0.05])
        root[3:, 3:] = Rotation.random(rng=rng).as_matrix() @ np.diag([0.3, 0.05, 0.01])
        root[3:, :3] = 0.05 * rng.standard_normal((3, 3))
        truth = np.eye(4)
        truth[:3, :3], truth[:3, 3] = Rotation.random(rng=rng).as_matrix(), 50 * rng.standard_normal(3)
        tangent = torch.from_numpy(root @ rng.standard_normal(6))
        triples.append((truth, se3.perturb(torch.from_numpy(truth), tangent).numpy(), root @ root.T))
    return triples


@pytest.mark.parametrize("scale", [1.0, 4.0, 0.25])
def test_errors_drawn_from_their_covariances_are_covered_as_they_should_be(drawn: list, scale: float) -> None:
    """And by just so much more or less, where the covariances are said too wide or too narrow."""
    rows = []
    for number, (truth, estimate, covariance) in enumerate(drawn):
        squared = mahalanobis_squared(estimate, truth, scale * covariance)
        rows.append({"query": number // 2, **{f"{part}_mahalanobis_squared": squared[part] for part in PARTS}})
    calibration = calibrate(rows)
    assert calibration["of"] == DRAWS and calibration["queries"] == DRAWS // 2
    for part, freedom in (("position", 3), ("rotation", 3), ("pose", 6)):
        expected = chi2.cdf(scale * chi2.ppf(LEVELS, freedom), freedom)
        deviation = np.sqrt(expected * (1 - expected) / DRAWS)
        np.testing.assert_array_less(np.abs(calibration[part]["observed"] - expected), 4 * deviation + 2e-4)
        assert calibration[part]["error_over_sigma_squared"] == pytest.approx(1 / scale, rel=0.15)


def test_covariances_in_another_frame_would_show() -> None:
    """In the camera's axes instead of the map's the same uncertainty is another matrix."""
    rng = np.random.default_rng(3)
    covariance = np.diag([1.0, 0.01, 0.01, 0.01, 0.01, 0.01]) ** 2
    bound, inside = chi2.ppf(0.9, 6), []
    for _ in range(150):
        truth = np.eye(4)
        truth[:3, :3] = Rotation.random(rng=rng).as_matrix()
        tangent = np.sqrt(np.diag(covariance)) * rng.standard_normal(6)
        right = se3.perturb(torch.from_numpy(truth), torch.from_numpy(tangent)).numpy()
        wrong = truth @ se3.exp(torch.from_numpy(tangent)).numpy()
        inside.append([mahalanobis_squared(pose, truth, covariance)["pose"] < bound for pose in (right, wrong)])
    right_share, wrong_share = np.mean(inside, axis=0)
    assert right_share > 0.8 and wrong_share < 0.3


def test_a_covariance_that_is_none_holds_no_error() -> None:
    broken = np.eye(6)
    broken[5, 5] = -1
    squared = mahalanobis_squared(np.eye(4), np.eye(4), broken)
    assert squared == {"position": 0.0, "rotation": None, "pose": None}
    rows = [{"query": 0, **{f"{part}_mahalanobis_squared": value for part, value in squared.items()}}]
    calibration = calibrate(rows)
    assert calibration["position"]["observed"] == [1.0] * len(LEVELS)
    assert calibration["rotation"]["observed"] == [0.0] * len(LEVELS)
    assert calibration["rotation"]["error_over_sigma_squared"] is None
    assert mahalanobis_squared(np.eye(4), np.eye(4), np.full((6, 6), np.nan))["pose"] is None


def test_the_band_of_chance_holds_nineteen_of_twenty() -> None:
    rng = np.random.default_rng(0)
    for count, level in ((20, 0.9), (300, 0.68)):
        low, high = chance_band(level, count)
        observed = rng.binomial(count, level, 20_000) / count
        assert 0.95 <= np.mean((observed >= low) & (observed <= high)) < 0.99


@dataclass
class Oracle:
    """Knows each image by its brightness, and where it was taken; answers nothing else, and notes what it was told."""

    poses: dict[int, np.ndarray]
    priors: list[np.ndarray | None]

    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        self.priors.append(prior)
        pose = self.poses.get(round(float(image.mean())))
        if pose is None:
            return Localization("refused", "never seen")
        return Localization("ok", map_from_camera=pose, candidate=pose, covariance=np.eye(6) * 1e-4)


def write_plain_queries(path: Path, greys: list[int], spacing: float) -> Queries:
    """Images of one grey each, taken every `spacing` metres along x."""
    (path / "images").mkdir(parents=True)
    for number, grey in enumerate(greys):
        cv2.imwrite(str(path / f"images/{number:03d}.png"), np.full((24, 32, 3), grey, np.uint8))
    Camera(width=32, height=24, fx=30.0, fy=30.0, cx=15.5, cy=11.5).to_yaml(path / "camera.yaml")
    rows = [[number, number * spacing, 0, 1.6, 0, 0, 0, 1] for number in range(len(greys))]
    np.savetxt(path / "poses.txt", rows)
    return Queries(path)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Queries, Queries, dict[int, np.ndarray]]:
    """Queries, queries of another site, and what there is to know of the first: the grey of each image's place."""
    path = tmp_path_factory.mktemp("queries")
    queries = write_plain_queries(path / "here", [10, 60, 110, 160], 3.0)
    assert queries.map_from_camera is not None
    known = dict(zip([10, 60, 110, 160], queries.map_from_camera, strict=True))
    return queries, write_plain_queries(path / "there", [10, 30, 80, 130, 180, 200, 220, 240], 3.0), known


def test_without_a_prior_only_the_image_leads_to_the_place(places: tuple) -> None:
    queries, foreign, known = places
    oracle = Oracle(known, [])
    report = evaluate_global(oracle, queries, GlobalProtocol())
    assert oracle.priors == [None] * 4
    assert report["protocol"]["name"] == "global" and "start" not in report
    assert report["summary"]["recall_0.25m_2deg"] == 1 and report["summary"]["queries"] == 4
    assert report["summary"]["calibration"]["position"]["observed"] == [1.0] * len(LEVELS)

    swapped = evaluate_global(oracle, queries, GlobalProtocol(swap=True))["summary"]
    assert swapped["recall_2m_5deg"] == 0 and swapped["wrong_and_given"] == 4
    assert swapped["median_translation_error_m"] == 6.0  # two places on
    assert swapped["false_accept_share"] == 0  # since that is where the images shown were taken

    accepted = evaluate_global(oracle, queries, GlobalProtocol(), foreign=foreign)
    # Images 0, 2, 4 and 6 of the other site are shown; only the first is mistaken for a place here.
    assert [line["image"] for line in accepted["results"]] == ["000.png", "002.png", "004.png", "006.png"]
    assert accepted["summary"]["wrong_and_given"] == 1 and accepted["summary"]["false_accept_share"] == 0.25
    assert not any("error" in name for name in accepted["summary"])
    assert len(report_grids(accepted)) == 1


def test_foreign_images_are_shown_at_the_same_starts(places: tuple) -> None:
    queries, foreign, known = places
    own, others = Oracle(known, []), Oracle({}, [])
    evaluate_tracking(own, queries, TrackingProtocol(repeats=2))
    report = evaluate_tracking(others, queries, TrackingProtocol(repeats=2), foreign=foreign)
    np.testing.assert_array_equal(np.stack(own.priors), np.stack(others.priors))
    assert report["summary"] == summarize_foreign(report["results"])
    assert report["summary"]["refused"] == report["summary"]["queries"] == 8
    assert report["summary"]["false_accept_share"] == 0
    assert report["start"]["candidate_median_translation_error_m"] > 0.1


class Believer:
    """Takes its start for the answer, whatever it is shown."""

    def localize(self, image: np.ndarray, camera: Camera, prior: np.ndarray | None = None) -> Localization:
        return Localization("ok", map_from_camera=prior, candidate=prior, covariance=np.eye(6))


def test_poses_given_for_images_from_elsewhere_are_false_accepts_however_small_their_errors(places: tuple) -> None:
    queries, foreign, _ = places
    near = TrackingProtocol(metres=0.01, degrees=0.01)
    for report in (
        evaluate_tracking(Believer(), queries, replace(near, swap=True)),
        evaluate_tracking(Believer(), queries, near, foreign=foreign),
    ):
        assert report["summary"]["false_accept_share"] == 1
        (line,) = [cells for cells in report_grids(report)[0].rows if cells[0] == "network"]
        assert dict(zip(report_grids(report)[0].header, line, strict=True))["false accepts"] == "100%"
    right = evaluate_tracking(Believer(), queries, near)["summary"]
    assert (right["recall_0.1m_1deg"], right["false_accept_share"]) == (1, 0)
    assert summarize([row("ok", 1.5), row("refused", 1.5)])["false_accept_share"] == 0.5  # what the nodes published


def test_a_robot_that_is_lost_still_stands_on_its_wheels(places: tuple) -> None:
    """Starts far off: all around and ten metres away, but level and at about the camera's height."""
    queries, _, known = places
    oracle = Oracle(known, [])
    evaluate_tracking(oracle, queries, TrackingProtocol(metres=10, degrees=180, repeats=60))
    assert queries.map_from_camera is not None
    truths = np.repeat(queries.map_from_camera, 60, axis=0)
    errors = np.linalg.inv(truths) @ np.stack([prior for prior in oracle.priors if prior is not None])
    assert np.degrees(np.arccos(errors[:, 1, 1])).max() < 5  # between the downward axes
    assert np.abs(errors[:, 1, 3]).max() < 1.5
    assert np.abs(errors[:, [0, 2], 3]).max() > 8
    assert np.histogram(np.arctan2(errors[:, 0, 2], errors[:, 2, 2]), 12, (-np.pi, np.pi))[0].min() > 5


def test_a_control_that_would_be_none_is_refused(places: tuple, tmp_path: Path) -> None:
    _, _, known = places
    single = write_plain_queries(tmp_path / "one", [10], 1.0)
    with pytest.raises(InputError, match="two queries or more"):
        evaluate_global(Oracle(known, []), single, GlobalProtocol(swap=True))
    (single.path / "poses.txt").unlink()
    with pytest.raises(InputError, match=r"no poses\.txt"):
        evaluate_global(Oracle(known, []), Queries(single.path), GlobalProtocol())


def test_plots_are_drawn_of_any_results(places: tuple, tmp_path: Path) -> None:
    """Also of none: everything refused with or without a candidate."""
    queries, _, known = places
    found = evaluate_global(Oracle(known, []), queries, GlobalProtocol())
    lost = evaluate_global(Oracle({}, []), queries, GlobalProtocol())
    for name, report in (("found", found), ("lost", lost)):
        for row in report["results"]:
            row["distance_to_mapping_m"] = 1.0
        plot_recall({"start": {"results": []}, "network": report}, tmp_path / f"{name}/recall.png")
        plot_calibration(report["results"], tmp_path / f"{name}/calibration.png")
        plot_error_over_distance(report["results"], tmp_path / f"{name}/distance.png")
        for plot in ("recall", "calibration", "distance"):
            picture = cv2.imread(str(tmp_path / f"{name}/{plot}.png"))
            assert picture.std() > 1  # something is drawn


def test_every_axis_has_a_row() -> None:
    assert [line[0].split()[0] for line in axis_grid({}).rows] == [name.split("_")[0] for name in AXES]
