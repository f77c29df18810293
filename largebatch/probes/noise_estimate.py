"""Estimate a noise scale with a confidence interval from the terms of many steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FEWEST = 4  # measured steps from which an interval is worth its name
MOST_CORRELATED = 0.9  # of lag 1: what is nearer to 1 cannot be told from a drift


@dataclass(frozen=True)
class NoiseEstimate:
    """A noise scale in samples.

    Attributes:
        value: the estimate; ``inf`` if the mean squared signal is not above zero.
        error: its standard error; ``inf`` if the interval has no upper bound.
        low, high: bounds of the interval; ``high`` is ``inf`` if no large value can be ruled out.
        steps: number of measured steps: the effective number, as if all had equal weights.
        correlation: correlation between successive steps (lag 1), which widened the interval.
        wanted: estimated number of steps until the interval has an upper bound; a lower bound of it
            if the mean signal is not above zero.
    """

    value: float
    error: float
    low: float
    high: float
    steps: float
    correlation: float
    wanted: float = 0.0

    @property
    def bounded(self) -> bool:
        """Whether the interval has an upper bound."""
        return math.isfinite(self.high)

    def of_set(self, samples: int) -> NoiseEstimate:
        """Return the noise scale with respect to the gradient of a training set of ``samples``.

        If samples are drawn without replacement, the groups of a step are negatively correlated.
        The measured |G|^2 is then that of the set minus T / N (N samples), which is that of the
        population. Adding T / N back gives T / (|G|^2 + T / N) = noise scale / (1 + noise scale /
        N). The correction matters above N / 20.
        """

        def within(scale: float) -> float:
            return float(samples) if math.isinf(scale) else scale / (1 + scale / samples)

        slope = 0.0 if math.isinf(self.value) else (1 + self.value / samples) ** -2
        error = self.error * slope if math.isfinite(self.error) else math.inf
        return replace(
            self,
            value=within(self.value),
            error=error,
            low=within(self.low),
            high=within(self.high),
        )

    def text(self) -> str:
        """Return the estimate in words: ``1,204 [980.2, 1,530] samples``, or a lower bound."""
        if self.bounded:
            return f"{self.value:,.4g} [{self.low:,.4g}, {self.high:,.4g}] samples"
        known = f"> {self.low:,.4g} samples" if self.low > 0 else "not known yet"
        more = max(math.ceil(self.wanted - self.steps), 1)
        least = "about" if math.isfinite(self.value) else "at least"
        return f"{known}; {least} {more:,} more measurements for an upper bound"


def estimate_noise(
    signal: NDArray[np.float64],
    trace: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    confidence: float = 0.95,
) -> NoiseEstimate | None:
    """Estimate T / |G|^2 from terms of steps, each noisy and of either sign.

    The estimate is the ratio of weighted sums; a delete-one jackknife removes the bias of a ratio.
    The interval is Fieller's (1954): all x for which ``sum u (t - x g)`` cannot be told from zero.
    So if the signal may be zero, the interval has no upper bound. Variances are multiplied by (1 +
    r) / (1 - r) if the correlation r of neighbouring steps is positive. Quantiles are Student's.

    Args:
        signal: (steps,), |G|^2 by :func:`~largebatch.probes.noise_terms.noise_terms`, in order.
        trace: (steps,), T from the same function.
        weights: (steps,), weight of each step; None: equal weights.
        confidence: probability that the interval contains the true value.

    Returns:
        The estimate; None for fewer than 4 steps.
    """
    if len(signal) < FEWEST:
        return None
    u = np.ones_like(signal) if weights is None else weights / weights.max()
    steps = float(u.sum() ** 2 / np.square(u).sum())
    if steps < 2:
        return None
    g, t = u * signal, u * trace
    total, noise = float(g.sum()), float(t.sum())
    ratio = noise / total if total > 0 else math.inf
    centre = min(ratio, 1e300)
    correlation = _correlation(t - centre * g) if total > 0 else 0.0
    # Variances and covariance of the two sums.
    count = len(u)
    widen = count / (count - 1) * (1 + correlation) / (1 - correlation)
    dg, dt = u * (signal - total / u.sum()), u * (trace - noise / u.sum())
    vgg, vtg, vtt = (widen * float((a * b).sum()) for a, b in ((dg, dg), (dt, dg), (dt, dt)))
    quantile = student(confidence, steps - 1)
    low, high = _fieller(noise, total, vtt, vtg, vgg, quantile)
    if not math.isfinite(high):
        # The signal's standard error falls with the root of the steps, and has to be 1 / quantile.
        likely = total if total > 0 else quantile * math.sqrt(vgg)
        wanted = steps * quantile**2 * vgg / likely**2 if likely > 0 else 2 * steps
        return NoiseEstimate(ratio, math.inf, low, high, steps, correlation, max(wanted, 2 * steps))
    error = math.sqrt(max(vtt - 2 * ratio * vtg + ratio * ratio * vgg, 0.0)) / total
    left = total - g
    if left.min() > 0:
        ratio -= (count - 1) / count * float(((noise - t) / left - ratio).sum())
    return NoiseEstimate(max(ratio, 0.0), error, low, high, steps, correlation)


def _correlation(residuals: NDArray[np.float64]) -> float:
    power = float(np.square(residuals).sum())
    if power == 0.0:
        return 0.0
    return min(max(float((residuals[1:] * residuals[:-1]).sum()) / power, 0.0), MOST_CORRELATED)


def _fieller(
    t: float, g: float, vtt: float, vtg: float, vgg: float, quantile: float
) -> tuple[float, float]:
    """Return the x from 0 up with (t - x g)^2 <= quantile^2 Var(t - x g), ``inf`` if no end."""
    z = quantile * quantile
    a, b, c = g * g - z * vgg, t * g - z * vtg, t * t - z * vtt
    root = b * b - a * c
    if a > 0 and g > 0:
        root = math.sqrt(max(root, 0.0))
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    # The signal may be zero: x is bounded from below alone, if the noise is distinguishable.
    if c > 0 and t > 0 and a < 0 and root > 0:
        return max((b - math.sqrt(root)) / a, 0.0), math.inf
    return 0.0, math.inf


def student(confidence: float, freedom: float) -> float:
    """Return the two-sided quantile of Student's distribution (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    n = max(freedom, 1.0)
    z2 = z * z
    first = (z2 + 1) * z / 4
    second = ((5 * z2 + 16) * z2 + 3) * z / 96
    third = (((3 * z2 + 19) * z2 + 17) * z2 - 15) * z / 384
    return z + first / n + second / n**2 + third / n**3
