"""Are p-values what they say? 100,000 of each judge on synthetic draws, 200 seeds of each claim.

``python -m tests.faults.p_values`` takes some minutes and prints a line for each judge and claim:

* *Synthetic draws*: 100,000 p-values of each test on draws of the law that the run's have: losses
  of random masks, or a gamma law of the skewness that is allowed for. The shares below .1, .01 and
  .001 are at most these numbers, and four standard errors; those of a judge that is told the exact
  shape are not smaller, either. A judge that is told a bound on the skewness may be conservative.
* *Runs*: p-values of 200 seeds of each statistical claim, Kolmogorov-Smirnov; p must be above 1e-3.
* *Power*: with 16,000 repeats errors off by a twentieth are false at every number of draws.

The status is 1 if a line fails.
"""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from scipy.stats import kstest

from lrdyn.studies.weight_updates import updates
from lrdyn.theorem3 import statement
from lrdyn.theorem3.dropout_minimiser_claims import DRIFT, MINIMISER, RUNS
from lrdyn.theorem3.statement import DRAWS, MASKS, THEOREM3
from lrdyn.theorem3.statistics import law_of_squares, mean_p, scatter_p
from lrdyn.verification.judging.judging import residuals
from lrdyn.verification.running.evaluate import case_arguments
from lrdyn.verification.stating.claims import above_p, tolerance
from tests.oracles import judged

NUMBER = 100_000
LEVELS = (0.1, 0.01, 0.001)
POOL = 2**18
"""Values that draws are taken from: their moments are known exactly."""

SEEDS = 200
LEAST = 1e-3
SETTINGS = (
    (MASKS, {"mask": "dropblock", "keep_prob": 0.7}),
    (MASKS, {"mask": "dropout", "keep_prob": 0.3}),
    # The steps of gradient descent, which is not looked at, and of the others: 5000/12.
    (MINIMISER, {"mask": "dropout", "keep_prob": 0.5}),
)

MANY = 16_000
TWENTIETH = 0.05


class Judge(NamedTuple):
    """A test, and the synthetic draws that it is given."""

    name: str
    pool: np.ndarray
    """Values of which each draw is one, at random."""
    draws: int
    p: Callable[[np.ndarray], float]
    exact: bool
    """Whether its p-values are uniform; else they may be too large."""


def _gamma(rng: np.random.Generator, skewness: float) -> np.ndarray:
    shape = (2 / skewness) ** 2
    return rng.gamma(shape, size=POOL)


def _estimates(rng: np.random.Generator, index: int, keep_prob: float) -> np.ndarray:
    """Estimates from so many draws, of the losses of the first case at a keep probability."""
    flags = {flag.name: np.atleast_1d(flag.default("quick")).tolist()[0] for flag in THEOREM3.flags}
    point = flags | {"mask": "dropout", "keep_prob": keep_prob}
    case = MASKS.case(jax.random.key(0), **case_arguments(MASKS, point))
    masks, mean = case.masks, case.mean
    if index == len(DRAWS) - 1:
        masks, mean = statement._mask_first_block(case)
    losses = [float(statement._loss(case, mask, mean)) for mask in masks.support]
    chances = np.asarray(masks.probabilities, np.float64)
    return rng.multinomial(DRAWS[index], chances / chances.sum(), size=POOL) @ losses / DRAWS[index]


def _moments(pool: np.ndarray) -> np.ndarray:
    standard = (pool - pool.mean()) / pool.std()
    return np.array([np.mean(standard**order) for order in range(3, 9)])


def judges(rng: np.random.Generator) -> Iterator[Judge]:
    """All judges of Theorem 3 and of the studies."""
    for index, draws in enumerate(DRAWS):
        for keep_prob in (0.3, 0.7):
            pool, where = _estimates(rng, index, keep_prob), f"n = {draws}, theta = {keep_prob}"
            repeats, moments = statement.REPEATS, _moments(pool)
            law = law_of_squares(moments, 1, repeats)
            center, error = float(pool.mean()), float(pool.std())

            def of_scatter(values: np.ndarray, law=law, center=center, error=error) -> float:
                return scatter_p(float(np.sum(((values - center) / error) ** 2)), law)

            def of_mean(values: np.ndarray, center=center, skewness=moments[0]) -> float:
                return mean_p(center, values, skewness / len(values) ** 0.5)

            yield Judge(f"monte_carlo_rate, {where}", pool, repeats, of_scatter, True)
            if draws >= 256:
                yield Judge(f"monte_carlo, {where}", pool, repeats, of_mean, True)
    # As many rare masks as the quick preset has at theta = 0.3, and the fewest that are judged.
    for rare in (RUNS * 4 * 0.3 * DRIFT, 4000.0):
        of_products = 6.25 * (RUNS * DRIFT) ** 0.5 / rare
        for name, skewness in (("stochastic, drift", 2.5 / rare**0.5), ("noise", of_products)):
            pool = _gamma(rng, skewness * RUNS**0.5)

            center = float(pool.mean())

            def of_runs(values: np.ndarray, center=center, skewness=skewness) -> float:
                return mean_p(center, values, skewness)

            yield Judge(f"{name}, skewness {skewness:.3f}", pool, RUNS, of_runs, False)
    for seeds in (updates.SEEDS - 1, 8):
        pool = rng.standard_normal(POOL)
        pool -= pool.mean()
        yield Judge(f"studies, {seeds} seeds", pool, seeds, lambda x: above_p(0.0, x), True)


def shares(rng: np.random.Generator, judge: Judge) -> list[float]:
    """Shares of p-values below each level."""
    p_values = [judge.p(judge.pool[rng.integers(0, POOL, judge.draws)]) for _ in range(NUMBER)]
    return [float(np.mean(np.array(p_values) < level)) for level in LEVELS]


def synthetic() -> int:
    """Look at all judges; the number of those whose p-values are not what they say."""
    rng, failed = np.random.default_rng(20), 0
    for judge in judges(rng):
        found = shares(rng, judge)
        off = [
            (share - level) / np.sqrt(level * (1 - level) / NUMBER)
            for share, level in zip(found, LEVELS, strict=True)
        ]
        bad = bool(max(off) > 4 or (judge.exact and min(off) < -4))
        failed += bad
        text = ", ".join(f"{share:.5f}" for share in found)
        print(f"{'FAILED ' * bad}{judge.name}: shares below .1, .01, .001: {text}", flush=True)
    return failed


def runs() -> int:
    """Test every claim; the number of those that fail."""
    failed = 0
    for scenario, flags in SETTINGS:
        _, legs = judged(THEOREM3, scenario, flags, range(SEEDS))
        for claim in scenario.claims:
            if claim.kind == "statistical":
                found = 10.0 ** -legs[claim.id].residual.values.ravel()
                p = float(kstest(found, "uniform").pvalue)
                failed += not p > LEAST
                where = " ".join(f"{name}={value}" for name, value in flags.items())
                judged_cases = int(np.sum(legs[claim.id].reason.values == ""))
                print(
                    f"{claim.id} ({where}): {judged_cases} of {SEEDS} seeds judged, "
                    f"p of the KS test {p:.3g}, least p {found.min():.2g}",
                    flush=True,
                )
    return failed


def power() -> int:
    """Errors off by a twentieth with many repeats; the number of cases that do not see them."""
    statement.REPEATS, few = MANY, statement.REPEATS
    try:
        flags = {"mask": "dropout", "keep_prob": [0.3, 0.5, 0.7]}
        results, _ = judged(THEOREM3, MASKS, flags, range(4))
        (claim,) = (claim for claim in MASKS.claims if claim.id == "monte_carlo_rate")
        limit = tolerance("statistical", "float64", tests=24)
        unseen = 0
        for index, draws in enumerate(DRAWS):
            for factor in (1 - TWENTIETH, 1 + TWENTIETH):
                by = np.where(np.arange(len(DRAWS)) == index, factor, 1.0)
                rate = results.monte_carlo_rate
                wrong = rate * by.reshape([-1 if dim == "draws" else 1 for dim in rate.dims])
                leg = residuals(claim, MASKS, results.assign(monte_carlo_rate=wrong), "float64")
                seen = leg.residual.values.ravel() > limit
                unseen += int(np.sum(~seen))
                print(f"errors x {factor} at n = {draws}: {seen.sum()} of {seen.size} see them")
    finally:
        statement.REPEATS = few
    return unseen


def main() -> int:
    """All of it; the number of failures."""
    return synthetic() + power() + runs()


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    sys.exit(bool(main()))
