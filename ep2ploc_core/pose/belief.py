"""How probable it is that a pose is right, given what speaks for it: a logistic regression on a few numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

UNRIVALLED = 0.0  # margin of a place that was compared with none


@dataclass(frozen=True)
class Evidence:
    """What speaks for a pose that the score maps gave. score: the mean log likelihood ratio of the points' places
    against what the prior alone expects (`Localizer`); gain: what the poses found without a part of the image say of
    that part (`jackknife`), both in nats per point; inlier_ratio: share of the single matches that agree with the pose;
    spread: the standard deviation of the position after the first pass, other peaks included, and sigma: after the last
    one, in units (`map.unit`); parts: how many parts of the image have points enough to be left out; likeness: how much
    more alike points and image are at the pose than by chance (`feature_alignment`), and least_likeness in the part of
    the image where it is least, None where nothing was aligned; margin: how much more score the place has than any
    other, UNRIVALLED where there was none to compare it with, None where it was not searched for but given; landmarks:
    how many features of the image show a landmark where the pose puts it, None where landmarks gave no pose, or were
    not asked."""

    score: float
    gain: float
    inlier_ratio: float
    spread: float
    sigma: float
    parts: int
    likeness: float | None = None
    least_likeness: float | None = None
    margin: float | None = None
    landmarks: int | None = None

    def features(self) -> list[float]:
        """The numbers that the regression weighs."""
        if self.landmarks is not None:  # where they are many, a network that does not know the site says little
            return [max(log_odds(replace(self, landmarks=None)), LEAST_LOG_ODDS), math.log1p(self.landmarks)]
        told = [self.score, self.gain, self.inlier_ratio, math.log(self.spread + 1e-3), math.log(self.sigma + 1e-3)]
        if self.likeness is not None and self.least_likeness is not None:
            told += [math.log(max(self.likeness, 0.01)), self.least_likeness]
            if self.margin is not None:
                told.append(self.margin)
        return told

    @property
    def weights(self) -> BeliefWeights:
        """What they weigh."""
        if self.landmarks is not None:
            return LANDMARKED
        if self.likeness is None or self.least_likeness is None:
            return UNALIGNED
        return ALIGNED if self.margin is None else SEARCHED


@dataclass(frozen=True)
class AlignmentEvidence:
    """What speaks for a pose that feature alignment alone found from a prior. likeness: as in Evidence, and least: in
    that part of the image where it is least, of the `parts` that hold enough points; sigma: the standard deviation of
    the position, in units; way: how far from the prior, as a share of START_RANGE along the axis where that is most."""

    likeness: float
    least: float
    sigma: float
    way: float
    parts: int

    def features(self) -> list[float]:
        """The numbers that the regression weighs."""
        return [math.log(max(self.likeness, 0.01)), self.least, math.log(self.sigma + 1e-3), self.way]

    @property
    def weights(self) -> BeliefWeights:
        """What they weigh."""
        return FOLLOWED


@dataclass(frozen=True)
class BeliefWeights:
    """Log odds per unit of each feature, in the order of `Evidence.features`, and `odds` where all are zero."""

    factors: tuple[float, ...]
    odds: float


# Fitted by `benchmarks/ablation/belief.py` to five sites; docs/architecture.md tells which.
UNALIGNED = BeliefWeights((19.0, 2.65, 9.79, -1.21, -0.682), -7.06)
ALIGNED = BeliefWeights((13.5, 1.4, 7.7, -0.473, -0.581, 1.29, 4.79), -2.52)
SEARCHED = BeliefWeights((6.99, 1.79, 4.76, -1.13, -0.544, 0.757, 3.22, 3.39), -3.29)
LANDMARKED = BeliefWeights((0.6, 1.8), -5.0)
FOLLOWED = BeliefWeights((0.999, 9.46, -0.875, -3.41), 2.78)
LEAST_LOG_ODDS = -2.0  # of what the network says beside landmarks


def belief(evidence: Evidence | AlignmentEvidence, weights: BeliefWeights | None = None) -> float:
    """The probability, 0 to 1, that the pose is within 2.5 voxels' lengths (0.5 m in maps with voxels of 0.2 m) and 5
    degrees of the truth."""
    if not all(number is None or math.isfinite(number) for number in asdict(evidence).values()):
        return 0.0
    return 1 / (1 + math.exp(-log_odds(evidence, weights)))


def log_odds(evidence: Evidence | AlignmentEvidence, weights: BeliefWeights | None = None) -> float:
    """Of the pose being right, -50 to 50."""
    weights = weights or evidence.weights
    features = zip(weights.factors, evidence.features(), strict=True)
    odds = weights.odds + sum(factor * value for factor, value in features)
    return max(-50.0, min(50.0, odds))
