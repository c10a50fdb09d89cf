"""How probable it is that a pose is right, given what speaks for it: a logistic regression on a few numbers."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Evidence:
    """What speaks for a pose. score: the mean log likelihood ratio of the points' places against what the prior alone
    expects (`Localizer`); gain: what the poses found without a part of the image say of that part (`jackknife`), both
    in nats per point; inlier_ratio: share of the single matches that agree with the pose; spread: the standard
    deviation of the position after the first pass, other peaks included, and sigma: after the last one, in units
    (`map.unit`); parts: how many parts of the image have points enough to be left out."""

    score: float
    gain: float
    inlier_ratio: float
    spread: float
    sigma: float
    parts: int

    def features(self) -> list[float]:
        """The numbers that the regression weighs."""
        return [self.score, self.gain, self.inlier_ratio, math.log(self.spread + 1e-3), math.log(self.sigma + 1e-3)]


@dataclass(frozen=True)
class BeliefWeights:
    """Log odds per unit of each feature, in the order of `Evidence.features`, and `odds` where all are zero. Fitted by
    `benchmarks/ablation/belief.py` to five sites; docs/architecture.md tells which."""

    score: float = 13.1
    gain: float = 4.33
    inlier_ratio: float = 9.04
    log_spread: float = -1.34
    log_sigma: float = -0.98
    odds: float = -7.41


def belief(evidence: Evidence, weights: BeliefWeights = BeliefWeights()) -> float:
    """The probability, 0 to 1, that the pose is within 2.5 voxels' lengths (0.5 m in maps with voxels of 0.2 m) and 5
    degrees of the truth."""
    *factors, odds = astuple(weights)
    if not all(map(math.isfinite, astuple(evidence))):
        return 0.0
    log_odds = odds + sum(factor * value for factor, value in zip(factors, evidence.features(), strict=True))
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, log_odds))))
