"""Does a theorem hold wherever its flags may be? Random configurations of it, judged.

``python -m tests.faults.configurations [NAME ...] [--commands N] [--seed S]`` draws command lines
over the whole domain of every flag of each theorem, all by default, runs and judges each in this
process as the command does, without controls, and prints those that end false or in a fault. It
fails if there is one.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from lrdyn import cli
from lrdyn.engine.configuration import Run
from lrdyn.engine.flags import Flag
from lrdyn.engine.judging import worst_ratio
from lrdyn.engine.statement import Experiment
from lrdyn.engine.verify import Verification, verify_run
from lrdyn.engine.work import DEFAULT
from lrdyn.registry import REGISTRY, theorem

MOST = {"dim": 14, "rows": 7, "cols": 7, "rank": 3, "depth": 5, "steps": 1500, "draw": 1000}
"""Largest integers that are drawn, for a case to take seconds; of other flags ``ANY``."""

ANY = 6

POINTS = 64
"""Most settings of a command, which share a compilation."""

NEAR = 2.0
"""Decades around the presets in which a number that is not far from them is drawn."""

FAR = (0.05, 0.4)
"""Probability that a number is far from them, of a command: where all are, little is judged."""


# Drawing ------------------------------------------------------------------------------------


def edge(inside: Callable[[Any], bool], within: float, without: float) -> float:
    """The last positive number towards ``without`` that a domain contains, by bisection."""
    for _ in range(80):
        # Powers of ten: the decades of small numbers count as much as those of large ones.
        middle = math.sqrt(within) * math.sqrt(without)
        within, without = (middle, without) if inside(middle) else (within, middle)
    return within


class Range(NamedTuple):
    """The positive numbers that a flag accepts, and whether 0 is one of them."""

    least: float
    most: float
    zero: bool


def range_of(flag: Flag) -> Range:
    """Ends of the domain of a flag of floating-point numbers."""
    assert flag.domain is not None
    some = next(x for x in (*flag.quick, *flag.paper, 1.0) if x > 0 and flag.domain.contains(x))
    powers = [10.0**k for k in range(-307, 309)]
    inside = [x for x in (*powers, some) if flag.domain.contains(x)]
    least, most = min(inside), max(inside)
    if least > powers[0]:
        least = edge(flag.domain.contains, least, least / 10)
    if most < powers[-1]:
        most = edge(flag.domain.contains, most, most * 10)
    return Range(least, most, flag.domain.contains(0.0))


def number(flag: Flag, rng: np.random.Generator, far: float) -> float:
    """Draw a number: near the presets, anywhere in the domain or at an end of it."""
    ends, how = range_of(flag), rng.random()
    if how < far / 3:
        return float(rng.choice([ends.least, ends.most, *([0.0] if ends.zero else [])]))
    usual = [x for x in (*flag.quick, *flag.paper) if x > 0] or [1.0]
    middle = math.log10(rng.choice(usual))
    low, high = math.log10(ends.least), math.log10(ends.most)
    if how >= far:
        low, high = max(low, middle - NEAR), min(high, middle + NEAR)
    drawn = 10.0 ** rng.uniform(low, high)
    bounded = ends.most < 1  # also as near to 1 as to 0
    drawn = 1 - drawn if bounded and rng.random() < 0.5 else drawn
    return float(f"{np.clip(drawn, ends.least, ends.most):.4g}")


def value(flag: Flag, rng: np.random.Generator, far: float) -> Any:
    """Draw one value of a flag."""
    assert flag.domain is not None
    if flag.type is str:
        return str(rng.choice(flag.domain.wanted.removeprefix("one of ").split(", ")))
    if flag.type is float:
        drawn = number(flag, rng, far)
        return drawn if flag.domain.contains(drawn) else value(flag, rng, far)
    whole = [n for n in range(MOST.get(flag.name, ANY) + 1) if flag.domain.contains(n)]
    places = np.geomspace(1, len(whole), 40).astype(int) - 1  # small ones more often
    return whole[rng.choice(places)]


def command(experiment: Experiment, rng: np.random.Generator) -> list[str]:
    """Draw the words of a command line; several values where they share a compilation."""
    room, far = POINTS, float(rng.choice(FAR))
    words = ["--seed", str(rng.integers(2**31 - 2)), "--seeds", "1"]
    words += ["--dtype", str(rng.choice(["float64", "float64", "float32"]))]
    flags = [flag for flag in experiment.flags if flag.domain is not None]
    for flag in rng.permutation(np.array(flags, object)):
        several = flag.swept and not flag.shapes
        count = int(rng.integers(1, min(room, 4) + 1)) if several else 1
        values = list(dict.fromkeys(value(flag, rng, far) for _ in range(count)))
        room //= len(values)
        words += ["--" + flag.name.replace("_", "-"), *map(str, values)]
    return words


# Running ------------------------------------------------------------------------------------


def without_controls(experiment: Experiment) -> Experiment:
    """The same claims; controls run at settings of their own, which are not drawn here."""
    kept = tuple(replace(s, controls=()) for s in experiment.scenarios)
    return replace(experiment, scenarios=kept)


def verified(run: Run) -> Verification:
    """Produce and judge as the command does."""
    cli.setup(run.dtype)
    return verify_run(run, DEFAULT)


def points(found: Verification, experiment: Experiment, dtype: str) -> Counter:
    """How many points of the first scenario hold, are undecided, or false."""
    claims = [c for c in experiment.scenarios[0].claims if not c.seeds]
    ratios = worst_ratio(claims, found.legs, dtype).values if claims else np.full(1, np.nan)
    words = np.where(ratios <= 1, "held", np.where(np.isnan(ratios), "undecided", "false"))
    return Counter(words.ravel().tolist())


def why_false(found: Verification) -> str:
    """Claims that are false, with residual, tolerance and the worst case."""
    return "; ".join(
        f"{c['id']} {c['residual']} > {c['tolerance']} (float32 {c.get('residual_float32')} > "
        f"{c.get('tolerance_float32')}, scales {c['scales_with_epsilon']}) at {c['worst_case']}"
        for c in found.verdict["claims"]
        if c["holds"] is False
    )


def main(argv: list[str] | None = None) -> int:
    """Draw, run and judge commands; the number of those that are false or a fault."""
    parser = argparse.ArgumentParser(prog="configurations", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *REGISTRY], metavar="NAME")
    parser.add_argument("--commands", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    names = options.names or REGISTRY
    return sum(wrong(name, options.commands, options.seed) for name in names)


def wrong(name: str, commands: int, seed: int) -> int:
    """Draw, run and count commands of one theorem; how many are false or a fault."""
    experiment = without_controls(theorem(name))
    rng = np.random.default_rng(seed)
    ended, judged = Counter(), Counter()
    while ended.total() - ended["bad input"] < commands:
        words = command(experiment, rng)
        try:
            run = cli.parse(experiment, words).run
            found = verified(run)
        except cli.BadInput:
            ended["bad input"] += 1
            continue
        except Exception as error:
            ended["fault"] += 1
            line = (str(error).splitlines() or [""])[0]
            print(f"FAULT {type(error).__name__}: {line}: {' '.join(words)}", flush=True)
            continue
        holds, about = found.verdict["holds"], found.verdict["undecided"]
        word = {True: "held", False: "false", None: "undecided" if about else "nothing applies"}
        ended[word[holds]] += 1
        judged += points(found, run.experiment, run.dtype)
        if holds is False:
            print(f"FALSE {why_false(found)}: {' '.join(words)}", flush=True)
    print(f"{name}, seed {seed}: commands {dict(ended)}; points {dict(judged)}")
    return ended["false"] + ended["fault"]


if __name__ == "__main__":
    sys.exit(bool(main()))
