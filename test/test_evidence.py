"""The tables of the pages are made by commands, and each is put into its place and no other."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ep2ploc_core.errors import InputError
from ep2ploc_core.evaluation.metrics import summarize

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))  # where they are run, they are beside each other

from evidence import collect, is_newer_than, measure
from evidence_steps import MEASURED, Step, all_steps
from evidence_tables import demo_tables, evaluation_tables
from readme_tables import PAGES, check_places, places, put_into_pages, read_tables, with_tables

PAGE = """# Results

<!-- table: street -->

old

<!-- end -->

Between them.

<!-- table: room -->
<!-- end -->
"""


# ---- places in pages


def test_every_table_of_the_pages_is_made_by_a_step_and_every_step_s_has_its_place(tmp_path: Path) -> None:
    made = [name for step in all_steps(tmp_path, tmp_path, False).values() for name in step.makes]
    shown = [name for page in PAGES for name in places(page.read_text(), page.name)]
    assert sorted(shown) == sorted(made)
    assert len(set(made)) == len(made)


def test_a_table_comes_into_its_place_and_nothing_else_changes() -> None:
    table = "| a | b |\n|---|---|\n| \\1 | \\g<name> |\n"  # what would mean something in a replacement
    text = with_tables(PAGE, {"street": table}, "page")
    assert text == PAGE.replace("old", table.strip())
    assert with_tables(text, {"street": table}, "page") == text
    both = with_tables(PAGE, {"street": "S", "room": "R"}, "page")
    assert both == PAGE.replace("old", "S").replace("room -->\n", "room -->\n\nR\n\n")


def test_a_table_without_a_place_is_refused_and_no_page_is_touched(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(InputError, match="No page has a place for the table 'kitchen'"):
        put_into_pages({"street": "new", "kitchen": "new"}, [page])
    assert page.read_text() == PAGE
    assert put_into_pages({"street": "new"}, [page]) == [page] and "new" in page.read_text()
    assert put_into_pages({"street": "new"}, [page]) == []
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PAGE.replace("<!-- end -->\n\nBetween", "Between"), "'room' begins within 'street'"),
        (PAGE.removesuffix("<!-- end -->\n"), "'room' has no <!-- end -->"),
        ("<!-- end -->\n" + PAGE, "no beginning"),
        (PAGE.replace("table: room", "table room"), "another form"),
        (PAGE.replace("<!-- end", "<!--end"), "another form"),
    ],
)
def test_a_page_that_is_not_well_formed_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem):
        with_tables(text, {"street": "new"}, "page")
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(InputError, match=r"page\.md"):
        put_into_pages({"street": "new"}, [page])
    assert page.read_text() == text


def test_a_directory_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make evidence"):
        read_tables(tmp_path)


# ---- steps


def step(*commands: list[str], needs: tuple[Path, ...] = ()) -> Step:
    return Step(list(commands), lambda: {"street": "| a |"}, ("street",), needs)


def test_a_step_that_was_done_whole_says_on_what(tmp_path: Path) -> None:
    measure(step(["touch", str(tmp_path / "out/made")]), tmp_path / "out")
    assert (tmp_path / "out/made").exists()
    assert json.loads((tmp_path / "out" / MEASURED).read_text())["machine"]["cores"] == os.cpu_count()
    measure(step(["true"]), tmp_path / "out")
    assert not (tmp_path / "out/made").exists()  # nothing is left of the time before


def test_a_step_that_fails_names_its_log_and_does_not_count_as_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"false' failed; .*log\.txt"):
        measure(step(["sh", "-c", "echo why it does not work"], ["false"]), tmp_path / "out")
    assert "why it does not work" in (tmp_path / "out/log.txt").read_text()
    assert not is_newer_than(tmp_path / "out", [])


def test_a_step_that_lacks_something_leaves_what_is_there(tmp_path: Path) -> None:
    measure(step(["true"]), tmp_path / "out")
    with pytest.raises(InputError, match="missing"):
        measure(step(["true"], needs=(tmp_path / "nothing",)), tmp_path / "out")
    assert (tmp_path / "out" / MEASURED).exists()


def test_what_was_measured_before_the_code_changed_is_old(tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.touch()
    os.utime(code, (time.time() - 10,) * 2)
    measure(step(["true"]), tmp_path / "out")
    assert is_newer_than(tmp_path / "out", [code])
    os.utime(code, (time.time() + 10,) * 2)
    assert not is_newer_than(tmp_path / "out", [code])


def test_tables_of_other_names_than_promised_are_refused(tmp_path: Path) -> None:
    collect(step(), tmp_path)
    assert read_tables(tmp_path) == {"street": "| a |"}
    with pytest.raises(InputError, match="street"):
        collect(Step([], lambda: {"room": ""}, ("street",)), tmp_path)
    check_places(["drive_0001", "kitchen"])


# ---- from reports to tables


def result(error: float | None, covered: float = 0.0) -> dict[str, Any]:
    """A row of an evaluation: a pose so many metres off, with squared Mahalanobis distances; or a refusal."""
    if error is None:
        return {"query": 0, "status": "refused", "candidate_translation_error_m": 9.0}
    errors = {"translation_error_m": error, "rotation_error_deg": 0.1, "candidate_translation_error_m": error}
    squared = {f"{part}_mahalanobis_squared": covered for part in ("position", "rotation", "pose")}
    return {"query": 0, "status": "ok", **errors, **squared, "seconds": 0.2}


def evaluation(*results: dict[str, Any]) -> dict[str, Any]:
    starts = [result(2.0) for _ in results]
    return {"summary": summarize(list(results)), "results": list(results), "start": summarize(starts)}


def cells(table: str) -> dict[str, list[str]]:
    """Rows by their name."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines}


def test_answers_are_counted_and_the_worst_of_them_is_shown() -> None:
    # Chi-square of 3 and of 6 degrees of freedom: 4 lies within the 90 % ellipsoids of both (6.25, 10.6), and within
    # the 50 % one of 6 (5.35) but not of 3 (2.37); 8 is outside of all but the 90 % one of 6.
    right = evaluation(result(0.1, 1.0), result(0.7, 4.0), result(0.2, 8.0), result(None))
    tables = evaluation_tables("kitchen", {"adapted": right, "another image": evaluation(result(None))})
    answers = cells(tables["kitchen_answers"])
    assert answers["adapted"] == ["4", "0.45", "-", "3", "50%", "0.70", "33% / 67%", "67% / 100%"]
    assert answers["another image"] == ["1", "9.00", "-", "0", "0%", "-", "-", "-"]
    rows = cells(tables["kitchen"])
    assert list(rows) == ["medians of all, recalls of the poses given", "---", "start", "adapted", "another image"]
    assert rows["start"][0] == "2.00" and "75%" in rows["adapted"] and rows["another image"][0] == "9.00"


def test_evaluations_without_a_first_guess_have_no_row_of_starts() -> None:
    report = evaluation(result(0.1), result(None))
    del report["start"]
    assert list(cells(evaluation_tables("global", {"adapted": report})["global"]))[2:] == ["adapted"]


def test_a_demo_s_report_becomes_tables() -> None:
    shown = evaluation(result(0.1), result(None))
    rows = [result(0.3), result(0.5), {"status": "dropped"}, {"status": "refused"}]
    replay = {"images": 4, "images_sent_per_second": 2.0, "latency_p50_s": 0.31, "latency_p95_s": 0.36}
    report = {
        "tables": {"Near": {"start": shown["start"]}, "Far": {"start": shown["start"], "adapted": shown["summary"]}},
        "evaluations": {"adapted": shown},
        "ros": {"replay": {**replay, "tf_differs_from_pose_by_m": 0.0}, "accuracy": summarize(rows), "results": rows},
        "seconds": {"map": 30.0, "adaptation": 600.0},
        "adaptation_steps": 700,
    }
    tables = demo_tables("street", report)
    assert tables["street"].startswith("**Near**\n\n| ") and tables["street"].count("\n\n**Far**\n\n| ") == 1
    head, _, nodes = ([cell.strip() for cell in line.split("|")] for line in tables["street_nodes"].splitlines())
    given = dict(zip(head, nodes, strict=True))
    counts = ["images", "answered", "refused", "dropped"]
    assert [given[name] for name in counts] == ["4", "2", "1", "1"]
    assert (given["m"], given["farthest off, m"], given["95 %"]) == ("0.40", "0.50", "0.36")
    (minutes,) = [row for name, row in cells(tables["street_minutes"]).items() if "700" in name]
    assert np.allclose([float(one) for one in minutes], [0.5, 10.0, 10.5])
