"""Metrics that cannot flatter: refusals are failures, axes are the camera's own."""

import numpy as np
import pytest
import torch

from ep2ploc_core import se3
from ep2ploc_core.evaluation.metrics import axis_error, summarize
from ep2ploc_core.evaluation.report import summary_markdown


def test_axis_errors_are_along_the_cameras_own_axes() -> None:
    truth = se3.exp(torch.tensor([4.0, 5, 6, 0.3, -1.0, 2.0], dtype=torch.float64)).numpy()
    for axis, name in enumerate(("lateral", "down", "forward")):
        moved = truth.copy()
        moved[:3, 3] += 0.7 * truth[:3, axis]
        error = axis_error(moved, truth)
        assert getattr(error, name) == pytest.approx(0.7)
        assert sum(abs(value) for value in (error.lateral, error.down, error.forward)) == pytest.approx(0.7)
    turned = truth @ se3.exp(torch.tensor([0, 0, 0, 0, 0.1, 0.0], dtype=torch.float64)).numpy()
    assert axis_error(turned, truth).yaw == pytest.approx(0.1)


def row(status: str, metres: float, degrees: float = 0.1) -> dict[str, object]:
    errors = {"translation_error_m": metres, "rotation_error_deg": degrees}
    given = errors if status == "ok" else {}
    return {"status": status, "seconds": 0.1, **given, **{f"candidate_{name}": value for name, value in errors.items()}}


def test_refusals_count_as_failures_and_their_candidates_in_the_medians_of_all() -> None:
    summary = summarize([row("ok", 0.1), row("ok", 0.4), row("ok", 3.0), row("refused", 9.0), row("refused", 0.1)])
    assert summary["refused"] == 2 and summary["queries"] == 5
    assert summary["recall_0.25m_2deg"] == 0.2
    assert summary["recall_0.5m_5deg"] == 0.4
    assert summary["wrong_and_given"] == 1
    assert summary["median_translation_error_m"] == 0.4
    assert summary["candidate_median_translation_error_m"] == 0.4
    assert summarize([row("ok", 0.1, 6.0)])["recall_0.5m_5deg"] == 0


def test_tables_say_nothing_where_nothing_is_known() -> None:
    table = summary_markdown({"all refused": summarize([{"status": "refused", "seconds": 0.1}])})
    assert "| all refused | - | - |" in table
    assert np.all([len(line.split("|")) == 13 for line in table.splitlines()])
