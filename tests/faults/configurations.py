"""Does a theorem hold wherever its flags may be? Random configurations of it, judged.

``python -m tests.faults.configurations [NAME ...] [--commands N] [--seed S] [--log FILE]`` draws
command lines of each theorem, all by default, runs and judges each in this process as the command
does, without controls, and prints those that end false or in a fault. It fails if there is one.
Half of the commands lie inside, where all flags are close to the quick preset; in the others one or
two flags are at an end of their domain or anywhere in it. At the end stands which share of the
points was judged. With ``--log`` every command is noted when it ends: the same call goes on there.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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

NEAR = 0.15
"""Decades around the quick preset in which a number inside is drawn."""


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


def number(flag: Flag, rng: np.random.Generator, *, far: bool) -> float:
    """Draw a number: near the quick preset or, far from it, at an end of the domain or in it."""
    ends = range_of(flag)
    if far and rng.random() < 0.5:
        return float(rng.choice([ends.least, ends.most, *([0.0] if ends.zero else [])]))
    usual = float(rng.choice(flag.quick)) or (0.0 if rng.random() < 0.5 else 1.0)
    if not far and not usual:
        return usual
    low, high = math.log10(ends.least), math.log10(ends.most)
    if not far:
        low, high = max(low, math.log10(usual) - NEAR), min(high, math.log10(usual) + NEAR)
    drawn = 10.0 ** rng.uniform(low, high)
    # A bounded number is as near to 1 as to 0.
    drawn = 1 - drawn if far and ends.most < 1 and rng.random() < 0.5 else drawn
    return float(f"{np.clip(drawn, ends.least, ends.most):.4g}")


def value(flag: Flag, rng: np.random.Generator, *, far: bool) -> Any:
    """Draw one value of a flag."""
    assert flag.domain is not None
    if flag.type is str:
        return str(rng.choice(flag.domain.wanted.removeprefix("one of ").split(", ")))
    if flag.type is float:
        drawn = number(flag, rng, far=far)
        return drawn if flag.domain.contains(drawn) else value(flag, rng, far=far)
    least, most = 0, MOST.get(flag.name, ANY)
    if not far:
        most = min(most, 2 * max(flag.quick))
        # Trainings of fewer steps than the preset has are rarely long enough.
        least = min(most, max(flag.quick) if flag.name == "steps" else min(flag.quick) // 2)
    whole = [n for n in range(least, most + 1) if flag.domain.contains(n)]
    places = np.geomspace(1, len(whole), 40).astype(int) - 1  # small ones more often
    return whole[rng.choice(places)]


def command(experiment: Experiment, rng: np.random.Generator) -> list[str]:
    """Draw the words of a command line; several values where they share a compilation."""
    room = POINTS
    words = ["--seed", str(rng.integers(2**31 - 2)), "--seeds", "1"]
    words += ["--dtype", str(rng.choice(["float64", "float64", "float32"]))]
    flags = [flag for flag in experiment.flags if flag.domain is not None]
    order = rng.permutation(np.array(flags, object))
    far = order[: rng.integers(1, 3)] if rng.random() < 0.5 else order[:0]
    for flag in order:
        several = flag.swept and not flag.shapes
        count = int(rng.integers(1, min(room, 4) + 1)) if several else 1
        is_far = any(flag is other for other in far)
        values = list(dict.fromkeys(value(flag, rng, far=is_far) for _ in range(count)))
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
    parser.add_argument("--log", type=Path)
    options = parser.parse_args(argv)
    names = options.names or REGISTRY
    return sum(wrong(name, options.commands, options.seed, options.log) for name in names)


def wrong(name: str, commands: int, seed: int, log: Path | None = None) -> int:
    """Draw, run and count commands of one theorem; how many are false or a fault."""
    experiment = without_controls(theorem(name))
    lines = log.read_text().splitlines() if log is not None and log.exists() else []
    notes = map(json.loads, lines)
    ended, judged, bad, n = Counter(), Counter(), 0, 0
    done = {note["command"]: note for note in notes if (note["name"], note["seed"]) == (name, seed)}
    while ended.total() < commands:
        n += 1
        note = done.get(n) or {"name": name, "seed": seed, "command": n} | ran(
            experiment, command(experiment, np.random.default_rng([seed, n]))
        )
        if log is not None and n not in done:
            with log.open("a") as file:
                file.write(json.dumps(note) + "\n")
        if note["ended"] == "bad input":
            bad += 1
            continue
        ended[note["ended"]] += 1
        judged += Counter(note["points"])
    share = 100 * (judged["held"] + judged["false"]) / max(1, judged.total())
    print(
        f"{name}, seed {seed}: commands {dict(ended)}, bad input {bad}; points {dict(judged)}, "
        f"{share:.0f} % judged"
    )
    return ended["false"] + ended["fault"]


def ran(experiment: Experiment, words: list[str]) -> dict[str, Any]:
    """How a command ended and, by their ends, the number of its points."""
    try:
        run = cli.parse(experiment, words).run
        found = verified(run)
    except cli.BadInput:
        return {"ended": "bad input", "points": {}}
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        print(f"FAULT {type(error).__name__}: {line}: {' '.join(words)}", flush=True)
        return {"ended": "fault", "points": {}}
    holds, about = found.verdict["holds"], found.verdict["undecided"]
    if holds is False:
        print(f"FALSE {why_false(found)}: {' '.join(words)}", flush=True)
    word = {True: "held", False: "false", None: "undecided" if about else "nothing applies"}
    return {"ended": word[holds], "points": points(found, run.experiment, run.dtype)}


if __name__ == "__main__":
    sys.exit(bool(main()))
