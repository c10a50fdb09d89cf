"""Retrieval of places: ranks against a search by hand, chance against drawing, and images of another place."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from ep2ploc_core import se3
from ep2ploc_core.camera import Camera
from ep2ploc_core.cli import app
from ep2ploc_core.datasets.kitti import KittiDrive
from ep2ploc_core.datasets.queries import Queries, write_queries
from ep2ploc_core.errors import InputError
from ep2ploc_core.evaluation.report import report_grids
from ep2ploc_core.evaluation.retrieval import RetrievalProtocol, evaluate_retrieval, recall_by_chance
from ep2ploc_core.map.place_index import NO_DEPTH, Impression, PlaceIndex
from ep2ploc_core.map.views import CELLS
from ep2ploc_core.visualization.plots import plot_evaluation

WIDTH = 8


def level(x: float, y: float, heading: float) -> np.ndarray:
    """map_from_camera of a level camera that looks `heading` degrees to the left of the map's x."""
    pose = np.eye(4)
    cosine, sine = np.cos(np.radians(heading)), np.sin(np.radians(heading))
    pose[:3, :3] = np.array([[sine, 0, cosine], [-cosine, 0, sine], [0, -1, 0]])
    pose[:3, 3] = [x, y, 1.6]
    return pose


@pytest.fixture
def place_queries(tmp_path: Path) -> Queries:
    """Two images of one grey each, taken 20 m apart, both along x."""
    (tmp_path / "images").mkdir(parents=True)
    for number, grey in enumerate((40, 200)):
        cv2.imwrite(str(tmp_path / f"images/{number}.png"), np.full((24, 32, 3), grey, np.uint8))
    Camera(width=32, height=24, fx=30.0, fy=30.0, cx=15.5, cy=11.5).to_yaml(tmp_path / "camera.yaml")
    poses = [level(0, 0, 0), level(20, 0, 0)]
    rows = [[number, *pose[:3, 3], *se3.to_quaternion(pose)] for number, pose in enumerate(poses)]
    np.savetxt(tmp_path / "poses.txt", rows)
    return Queries(tmp_path)


def one_hot(number: int) -> np.ndarray:
    return np.eye(WIDTH, dtype=np.float16)[number]


def index_of(views: np.ndarray, descriptors: np.ndarray) -> PlaceIndex:
    """Views of which no depths are known."""
    return PlaceIndex(views, descriptors, np.full((len(views), CELLS), NO_DEPTH, np.int8))


def by_grey(image: np.ndarray, camera: Camera) -> Impression:
    """Likes view 1 best and then view 0 where the image is dark; where it is bright, view 4."""
    dark = image.mean() < 100
    descriptor = (0.6 * one_hot(0) + 0.8 * one_hot(1) if dark else one_hot(4)).astype(np.float32)
    return Impression(descriptor, np.full(CELLS, np.nan, np.float32))


def test_a_right_view_is_near_and_looks_the_same_way(place_queries: Queries) -> None:
    views = [level(3, 0, 0), level(1, 0, 60), level(-2, 0, 44), level(8, 0, 0), level(20, 6, 0), level(60, 0, 0)]
    places = index_of(np.stack(views), np.stack([one_hot(number) for number in range(6)]))
    report = evaluate_retrieval(by_grey, places, place_queries, RetrievalProtocol())
    first, second = report["results"]
    # The first image's best view is turned too far; the next is right.
    assert (first["rank_5m"], first["right_views_5m"], first["right_views_10m"]) == (2, 2, 3)
    assert (first["first_view_m"], round(first["first_view_deg"])) == (1.0, 60)
    # The second one's lies 6 m off, and there is no other.
    assert (second["rank_5m"], second["right_views_5m"]) == (None, 0)
    assert (second["rank_10m"], second["right_views_10m"]) == (1, 1)
    summary = report["summary"]
    assert (summary["recall_at_1_5m"], summary["recall_at_5_5m"], summary["without_right_view_5m"]) == (0, 0.5, 1)
    assert (summary["recall_at_1_10m"], summary["recall_at_5_10m"], summary["without_right_view_10m"]) == (0.5, 1, 0)
    assert report["chance"]["recall_at_1_10m"] == pytest.approx((3 / 6 + 1 / 6) / 2, abs=1e-4)
    (grid,) = report_grids(report)
    cells = {row[0]: row[1:] for row in grid.rows}
    assert cells["within 5 m, among the first 5"][1] == "50%" and cells["within 5 m there is none"][1] == "1 of 2"

    swapped = evaluate_retrieval(by_grey, places, place_queries, RetrievalProtocol(swap=True))
    assert [row["image"] for row in swapped["results"]] == ["1.png", "0.png"]
    assert swapped["summary"]["recall_at_1_10m"] == 0


def test_chance_is_what_drawing_views_gives() -> None:
    rng = np.random.default_rng(0)
    right, views, count = [0, 3, 20], 40, 5
    drawn = np.array([rng.permutation(views)[:count].min() for _ in range(4000)])  # the right ones are numbered first
    expected = np.mean([(drawn < few).mean() for few in right])
    assert recall_by_chance(right, views, count) == pytest.approx(expected, abs=0.02)
    assert recall_by_chance([1], 3, 10) == 1


def test_ranks_are_those_of_a_search_by_hand(place_queries: Queries, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    views = np.stack([level(*rng.uniform(-5, 25, 2), rng.uniform(-180, 180)) for _ in range(200)])
    descriptors = rng.standard_normal((200, WIDTH)).astype(np.float16)
    places = index_of(views, descriptors)
    report = evaluate_retrieval(by_grey, places, place_queries, RetrievalProtocol(metres=(2.0, 9.0), degrees=30.0))
    assert place_queries.map_from_camera is not None
    for number, row in enumerate(report["results"]):
        truth = place_queries.map_from_camera[number]
        wanted = by_grey(place_queries.image(number), place_queries.camera).descriptor
        for metres in (2, 9):
            rank = None
            for place, view in enumerate(np.argsort(-(descriptors.astype(np.float32) @ wanted), kind="stable"), 1):
                near = np.linalg.norm(views[view][:3, 3] - truth[:3, 3]) <= metres
                alike = views[view][:3, 2] @ truth[:3, 2] >= np.cos(np.radians(30))
                if near and alike:
                    rank = place
                    break
            assert row[f"rank_{metres}m"] == rank
    (plot,) = plot_evaluation(report, place_queries.map_from_camera, None, tmp_path / "plots")  # needs no map
    assert plot.name == "retrieval.png" and cv2.imread(str(plot)).std() > 1


def test_without_poses_there_is_nothing_to_compare_with(place_queries: Queries) -> None:
    (place_queries.path / "poses.txt").unlink()
    places = index_of(np.eye(4)[None], one_hot(0)[None])
    with pytest.raises(InputError, match=r"no poses\.txt"):
        evaluate_retrieval(by_grey, places, Queries(place_queries.path), RetrievalProtocol())


def test_images_of_an_adapted_map_find_their_places(site, tmp_path: Path) -> None:
    """Through the command line. The place heads have learned these very images: a test of the way, not a figure."""
    write_queries(KittiDrive(site.drive_path), [4, 10, 16], tmp_path / "queries")
    arguments = ["evaluate", str(site.map_path), str(tmp_path / "queries"), "--protocol", "retrieval"]
    files = ["--json", str(tmp_path / "report.json"), "--plots", str(tmp_path / "plots")]
    result = CliRunner().invoke(app, [*arguments, *files])
    assert result.exit_code == 0, result.output
    assert "chance" in result.output and (tmp_path / "plots/retrieval.png").exists()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["protocol"] == {"name": "retrieval", "metres": [5.0, 10.0], "degrees": 45.0, "swap": False}
    assert report["summary"]["recall_at_1_10m"] > report["chance"]["recall_at_1_10m"]
    assert report["summary"]["queries_at_mapping_images"] == 3
