"""What each choice is worth at one site: it is changed, alone, and everything else is left as it is.

    .venv/bin/python benchmarks/ablation/ablation.py MAP QUERIES --out DIR [--steps 700] [--repeats 3]

MAP must come from a recording with images, and leave the queries out (`ep2ploc map build --hold-out QUERIES`); it is
not changed. Where the choice is part of training the shipped weights are adapted anew, on a copy of the map in DIR; a
copy that is there already is taken as it is. All adaptations have the same seeds, batches and number of steps, and all
evaluations the same starts. DIR/ablation.md gets the table, DIR/ablation.json every result.

Two rows are no fair fights: the score MLP begins untrained, while all else begins from the shipped weights; and those
were made with the pose loss and with points encoded per map. Points encoded per view can have no site codes, so that
row is to be compared with "no site codes".
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ep2ploc_core import se3
from ep2ploc_core.datasets.queries import Queries
from ep2ploc_core.datasets.sampling import start_sigma
from ep2ploc_core.evaluation.protocols import TrackingProtocol, evaluate_tracking
from ep2ploc_core.evaluation.report import summary_markdown, summary_table
from ep2ploc_core.evaluation.visibility import papers_visible
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import FIRST_PASS, LocalizerSettings, Pass
from ep2ploc_core.map.point_map import SITE_CHECKPOINT, PointMap
from ep2ploc_core.matcher import Matcher, Surroundings
from ep2ploc_core.matching import Matching
from ep2ploc_core.model.checkpoint import load_network, save_network
from ep2ploc_core.model.ep2ploc import EP2PLoc, PointView
from ep2ploc_core.pose.jackknife import Jackknife
from ep2ploc_core.pose.pnp import refine, solve_ransac
from ep2ploc_core.progress import progress_bar
from ep2ploc_core.training.losses import LossWeights
from ep2ploc_core.training.processes import choose_device, run_everywhere
from ep2ploc_core.training.site import SITE_LOSSES, SITE_SCHEDULE, adapt_to_site
from ep2ploc_core.visibility import ProjectedPoints, VisibilitySettings, project_inside

ROBUST_SCALE = 3.0  # pixels at which least squares begin to discount a match


def papers_removal(
    xyz: Tensor,
    camera_from_map: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    spacing: float,
    settings: VisibilitySettings,
) -> ProjectedPoints:
    """The paper's IPR in place of `remove_invisible`, with the same margin around the image."""
    margin = torch.tensor([round(settings.margin * side) for side in size], device=xyz.device)
    wide = (size[0] + 2 * int(margin[0]), size[1] + 2 * int(margin[1]))
    shift = torch.cat([torch.zeros_like(margin), margin])
    points = project_inside(xyz, camera_from_map, intrinsics + shift, wide, replace(settings, margin=0.0))
    kept = points.select(papers_visible(points, wide))
    return replace(kept, pixels=kept.pixels - margin)


class PapersVisibility(Matcher):
    """With the paper's IPR."""

    remove_invisible = staticmethod(papers_removal)


class PapersSolver(Matcher):
    """The pose of single matches, by MAGSAC++ and least squares: no search on the score maps."""

    def match(self, around: Surroundings, guess: Tensor, stage: Pass, by_parts: bool = False) -> Matching | None:
        view = self.view(around, guess, stage)
        if view is None:
            return None
        scores = self.network.classify(view, self.query.features.patches, self.query.intrinsics)
        matches, matrix = self.decide(view, scores), self.query.camera.matrix
        found, covariance = guess, torch.diag(torch.from_numpy(start_sigma(stage.scale)).float() ** 2)
        arguments = (matches.points, matches.pixels)
        sampled = solve_ransac(*arguments, matrix, self.settings.match_threshold)
        if sampled is not None:
            solved = refine(sampled, *arguments, matches.weights, matrix, ROBUST_SCALE)
            pose, box = torch.from_numpy(solved.map_from_camera).to(guess), around.box
            inside = (se3.log(torch.linalg.inv(box.map_from_camera) @ pose).abs() <= box.half_widths).all()
            if inside:  # else what is far from all that the prior allows is no better than the prior
                found, covariance = pose, torch.from_numpy(solved.covariance).float()
        return Matching(view, scores, found, covariance, Jackknife(torch.zeros(6, 6), gain=0.0, parts=8))


class DescriptorsAlone(Matcher):
    """Points expect what their descriptors tell, as in a map without images."""

    def view(self, around: Surroundings, guess: Tensor, stage: Pass) -> PointView | None:
        view = super().view(around, guess, stage)
        return None if view is None else replace(view, appearance=None)


SEARCHED = LocalizerSettings(refine="none", landmarks=False)
ALIGNED = LocalizerSettings(refine="align", landmarks=False)
# Their evidence is none that the belief was fitted to.
UNWEIGHED = replace(SEARCHED, least_belief=0.0)


@dataclass(frozen=True)
class Variant:
    """One row of the table: `trained` names the adaptation that it needs, a key of ADAPTATIONS."""

    name: str
    trained: str = "ours"
    matcher: type[Matcher] = Matcher
    settings: LocalizerSettings = SEARCHED
    swap: bool = False


@dataclass(frozen=True)
class Adaptation:
    """How a network is adapted: `choices` of its configuration that differ from those of the shipped weights."""

    choices: dict[str, Any] = field(default_factory=dict)
    losses: LossWeights = SITE_LOSSES
    with_codes: bool = True


def with_alignment(**weights: float) -> LossWeights:
    """The losses of an adaptation with other weights for those of the alignment."""
    return replace(SITE_LOSSES, alignment=replace(SITE_LOSSES.alignment, **weights))


ADAPTATIONS = {
    "ours": Adaptation(),
    "mlp": Adaptation({"score": "mlp"}),
    "no_pose_loss": Adaptation(losses=replace(SITE_LOSSES, pose=0.0, patch=1.0)),
    "no_codes": Adaptation(with_codes=False),
    "view": Adaptation({"encode": "view"}, with_codes=False),
    "no_reprojection": Adaptation(losses=with_alignment(reprojection=0.0)),
    "no_gauss_newton": Adaptation(losses=with_alignment(gauss_newton=0.0)),
    "no_place": Adaptation(losses=with_alignment(place=0.0)),
    "contrastive": Adaptation(losses=with_alignment(contrastive=0.3)),
    "no_alignment_losses": Adaptation(losses=with_alignment(reprojection=0.0, gauss_newton=0.0, place=0.0)),
}
VARIANTS = (
    Variant("ours"),
    Variant("ours, another frame's image", swap=True),
    Variant("aligned", settings=ALIGNED),
    Variant("aligned, another frame's image", settings=ALIGNED, swap=True),
    Variant("aligned, by descriptors alone", matcher=DescriptorsAlone, settings=ALIGNED),
    Variant("aligned, no reprojection loss", "no_reprojection", settings=ALIGNED),
    Variant("aligned, no Gauss-Newton loss", "no_gauss_newton", settings=ALIGNED),
    Variant("aligned, no loss on the place", "no_place", settings=ALIGNED),
    Variant("aligned, contrastive loss too", "contrastive", settings=ALIGNED),
    Variant("aligned, none of these losses", "no_alignment_losses", settings=ALIGNED),
    Variant("the paper's score MLP", "mlp"),
    Variant("the paper's IPR", matcher=PapersVisibility),
    Variant("one pass", settings=replace(SEARCHED, passes=(FIRST_PASS,))),
    Variant("no search: MAGSAC++ and least squares", matcher=PapersSolver, settings=UNWEIGHED),
    Variant("no pose loss", "no_pose_loss"),
    Variant("no pose loss and no search", "no_pose_loss", PapersSolver, UNWEIGHED),
    Variant("no site codes", "no_codes"),
    Variant("points encoded per view, no site codes", "view"),
)
console = Console()


def begin_from(checkpoint: str, choices: dict[str, Any], file: Path) -> None:
    """Writes the weights of a checkpoint with other choices; what is new in these begins at random."""
    shipped = load_network(checkpoint)
    torch.manual_seed(0)
    network = EP2PLoc(replace(shipped.config, **choices))
    network.load_state_dict(network.state_dict() | shipped.state_dict())
    save_network(network, file)


def adapt(adaptation: Adaptation, source: Path, target: Path, steps: int) -> None:
    """A copy of a map in `target`, with the shipped network adapted to it."""
    if (target / SITE_CHECKPOINT).is_file():
        return
    begun = target.with_suffix(".begun")
    if not begun.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        aside = target.with_suffix(".copying")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        (aside / SITE_CHECKPOINT).unlink(missing_ok=True)
        aside.rename(begun)
    weights = target.with_suffix(".safetensors")
    begin_from("edge", adaptation.choices, weights)
    schedule = replace(SITE_SCHEDULE, steps=steps)
    run_everywhere(
        adapt_to_site, choose_device("auto"), begun, str(weights), schedule, adaptation.losses, adaptation.with_codes
    )
    begun.rename(target)


def evaluate(variant: Variant, map_path: Path, queries: Queries, repeats: int) -> dict[str, Any]:
    """The report of `evaluate_tracking`."""
    device = choose_device("auto")
    torch.set_num_threads(1)  # as the command line
    network = load_network(map_path / SITE_CHECKPOINT, device)
    localizer = Localizer(network, PointMap.open(map_path), device, variant.settings)
    localizer.matcher_type = variant.matcher
    with progress_bar(variant.name) as progress:
        return evaluate_tracking(localizer, queries, TrackingProtocol(repeats=repeats, swap=variant.swap), progress)


def run(map_path: Path, queries: Queries, out: Path, steps: int, repeats: int, only: str) -> str:
    """Adapts, evaluates, writes both files after each row; returns the table in Markdown. only: rows whose name has
    this in it, besides the first."""
    out.mkdir(parents=True, exist_ok=True)
    reports: dict[str, Any] = {}
    table = ""
    for variant in (one for one in VARIANTS if only in one.name or one is VARIANTS[0]):
        console.print(f"{variant.name} ({variant.trained})")
        site = out / f"{variant.trained}_{steps}"
        adapt(ADAPTATIONS[variant.trained], map_path, site, steps)
        reports[variant.name] = evaluate(variant, site, queries, repeats)
        rows = {"start": reports["ours"]["start"]} | {name: report["summary"] for name, report in reports.items()}
        table = f"Adaptations of {steps} steps.\n\n{summary_markdown(rows)}"
        (out / "ablation.md").write_text(table)
        (out / "ablation.json").write_text(json.dumps(reports, indent=1))
    console.print(summary_table(rows))
    return table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=SITE_SCHEDULE.steps)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="rows with this in their name; all by default")
    arguments = parser.parse_args()
    queries = Queries(arguments.queries)
    run(arguments.map, queries, arguments.out, arguments.steps, arguments.repeats, arguments.only)


if __name__ == "__main__":
    main()
