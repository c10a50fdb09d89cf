"""How images are localized: the passes, what evidence a pose needs, whether and how it is refined."""

from __future__ import annotations

from dataclasses import dataclass, field

from ep2ploc_core.pose.feature_alignment import AlignmentSettings
from ep2ploc_core.pose.score_search import SearchSettings
from ep2ploc_core.visibility import VisibilitySettings


@dataclass(frozen=True)
class Pass:
    """One round of matching: how wrong its start may be, as a share of START_RANGE; how many map points are matched;
    how the pose is searched for."""

    scale: float
    points: int
    search: SearchSettings


# Where many places are tried, from which only the best have to stand out.
SCOUTING_PASS = Pass(
    1.0, 256,
    SearchSettings(
        first_samples=768, stride=2, modes=8, scout_steps=4, finalists=2, steps=3, hops=0, hop_samples=8, rounds=1,
        samples=48, wide_samples=32,
    ),
)  # fmt: skip
FIRST_PASS = Pass(1.0, 512, SearchSettings(stride=2))
SECOND_PASS = Pass(
    0.3, 1024,
    SearchSettings(first_samples=256, stride=4, modes=4, scout_steps=5, finalists=2, steps=4, hops=1, wide_samples=64),
)  # fmt: skip


@dataclass(frozen=True)
class LocalizerSettings:
    """How an image is localized. Lengths in units (`map.unit`: metres where the map's voxels are of 0.2 m), thresholds
    in pixels of the network's image.

    Each of the `passes` starts where the one before ended. The `least_` and `greatest_` values are the evidence without
    which a pose is refused. The score is the mean log likelihood ratio, over the points inside the image, of their
    places against what the prior alone expects, of likelihoods raised to `score_power`: well below 0 the image speaks
    against the pose. `least_belief`: how probable it has to be that the pose is right (`pose.belief`).
    `least_likeness`: how much more alike than by chance image and points must be, where features are aligned. Without a
    prior, and where no place that landmarks know again is believed, the `places` views most like the image are tried by
    the pass `scouting`, the best `verified_places` of them verified by the last pass, and the best of all must have
    `least_margin` more score than any other place, and `more_score_searched` more than `least_score`,
    `more_score_unaligned` where no features are aligned: among so many places one that is wrong may fit by chance.
    `covariance_scale` makes up for eight parts of an image being few to tell a spread from. How these were settled:
    docs/architecture.md.

    `landmarks`: where the map has them, features of the mapping images are looked for too: without a prior, in the
    first images of a camera (`landmarks.lens_check`), and where a pose is doubtful or its standard deviation more than
    `sure_sigma`. Where they give a pose, it is counted together
    with what was found, if need be after the last pass was made again from there, and less score is asked for
    (`more_score_landmarks`). Where `enough_landmarks` agree, it does not matter whether the single matches do, nor
    whether the pose lies at the limit of what the prior allows; `unrivalled_landmarks` have to where a place was
    compared with no other. The covariance of the landmarks' pose is that of its matches times `landmarks_scale`; what
    all landmarks err by together, `landmarks_sigma` of position (each axis) and rotation, is added in the end.

    `refine`: "align": the pose is refined by feature alignment; "align_first": the prior is refined so, and the passes
    are made only where that pose is refused, or the lens is still to be checked; "none"; "auto": "align" where the
    network has learned it and images show most of the points, else "none". "align_first" believes what it finds with
    `least_belief_followed`, for the passes cost nothing but time, and `following` says how it aligns.
    `alignment_points` take part. A refinement is given up where it makes the cost of the features higher, moves a pose
    by more than the last pass's start may be wrong (a prior by more than the box), loses more than a tenth of the
    points out of the image, or has less than `least_inliers_kept` of the single matches agree that agreed before. (One
    that moves it too far makes the pose doubted, unless landmarks confirm it.) Else it counts as much as its covariance
    says, and the search as much as its own. Where that leads `sharpening` begins, by the finest features of
    `sharpening_points`, and is given up for the same reasons. `fused_scale` makes up for search and alignment being of
    one image; what all points err by together, `aligned_sigma` of position (each axis) and rotation, is added.
    `followed_scale` makes up for points of a pose that alignment alone found erring together. `trace`: every step is
    kept, to be looked at.
    """

    radius: float = 60.0
    passes: tuple[Pass, ...] = (FIRST_PASS, SECOND_PASS)
    match_threshold: float = 6.0
    least_points: int = 60
    least_matches: int = 40
    least_inlier_ratio: float = 0.25
    least_parts: int = 4
    score_power: float = 0.5
    scouting: Pass = SCOUTING_PASS
    places: int = 64
    verified_places: int = 8
    least_margin: float = 0.02
    least_score: float = -0.01
    more_score_searched: float = 0.07
    more_score_unaligned: float = 0.12
    least_belief: float = 0.7
    least_belief_followed: float = 0.9
    least_likeness: float = 0.1
    greatest_sigma: float = 0.7
    greatest_distance: float = 1.25
    covariance_scale: float = 1.25
    landmarks: bool = True
    more_score_landmarks: float = -0.1
    enough_landmarks: int = 40
    unrivalled_landmarks: int = 60
    sure_sigma: float = 0.16
    landmarks_scale: float = 25.0
    landmarks_sigma: tuple[float, float] = (0.06, 0.002)
    refine: str = "auto"
    alignment_points: int = 512
    least_inliers_kept: float = 0.8
    fused_scale: float = 1.5
    aligned_sigma: tuple[float, float] = (0.04, 0.002)
    followed_scale: float = 2.5
    alignment: AlignmentSettings = field(default_factory=AlignmentSettings)
    sharpening_points: int = 1024
    sharpening: AlignmentSettings = field(default_factory=lambda: AlignmentSettings(iterations=4, lengths=(3.0,)))
    following: AlignmentSettings = field(default_factory=lambda: AlignmentSettings(iterations=3))
    trace: bool = False
    visibility: VisibilitySettings = field(default_factory=lambda: VisibilitySettings(margin=0.15))


REFINEMENTS = ("auto", "none", "align", "align_first")


DEFAULT_SETTINGS = LocalizerSettings()
