"""A day with an accelerator: ``python -m benchmarks.accelerator --minutes 9 --out day``.

What decides most comes first: the arithmetic of the device; then the verdict of every theorem in
float64, in float32, and with TF32's products, which must be FALSE where the platform has them;
every figure and table at its quick preset, compared with the committed numbers; what products,
points at a time and decompositions reach; steps of the trainings of Figures 1, 2 and 4 to 8; last
the figures of the paper's preset, the dearest at the end. The same command goes on where it
stopped, after ``--minutes`` and the piece that it is at. ``DIR/measured.json`` holds the numbers
of every device that was tried, ``DIR/report.md`` is written after each piece, and ``python -m
docs.accelerators --page`` fills its columns from the first.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import steps
from benchmarks.common import timed
from lrdyn import cli
from lrdyn.commands import figures
from lrdyn.commands.arguments import Parser, integer_reader, parse_folder
from lrdyn.commands.ending import Status
from lrdyn.core import linalg
from lrdyn.registry import REGISTRY, theorem
from lrdyn.statements import verify
from lrdyn.system.printer import say
from lrdyn.system.whole_files import replace_file
from lrdyn.theorem2 import subspace
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.running import arithmetic_probe
from paper_figs import BASELINES, EXHIBITS

MOST = 10**6
"""Bytes of the file of numbers, so that it can be committed."""
Numbers = dict[str, Any]
Pieces = dict[str, Callable[[], Numbers]]
PRECISIONS = {
    "float64": {"dtype": "float64"},
    "float32": {"dtype": "float32"},
    "tf32": {"dtype": "float32", "precision": "tf32"},
}
"""How a theorem is judged."""


class Day(NamedTuple):
    """What a day is asked for."""

    out: Path
    """Folder of the numbers, the report, finished parts of sweeps, and figures."""
    tiny: bool = False
    """Sizes that only show that everything runs."""
    largest: int = 8192
    """Side of the largest product of matrices; no decomposition has a larger one."""
    programs: KeptPrograms | None = None
    """Where compiled programs are kept, for figures."""


def arithmetic(day: Day) -> Pieces:
    """What sums, products and decompositions of the device are."""

    def measured(precision: str, word: str) -> Numbers:
        return dict(arithmetic_probe.measure_arithmetic(precision, word))

    asked = (("float64", "highest"), ("float32", "highest"), ("float32", "tf32"))
    return {
        f"arithmetic {p}{'' if w == 'highest' else f' {w}'}": partial(measured, p, w)
        for p, w in asked
    }


def verdict(name: str, asked: Mapping[str, str], store: Path, settings: Numbers) -> Numbers:
    """What a theorem's verdict says, and the seconds of it; finished parts are kept."""
    begin = time.perf_counter()
    verdict_of = verify(theorem(name), store=store, **asked, **settings).verdict
    claims = [claim for claim in verdict_of["claims"] if claim["kind"] != "control"]
    false = [claim["id"] for claim in claims if claim["holds"] is False]
    arithmetic = verdict_of.get("arithmetic", {})
    return {
        "holds": verdict_of["holds"],
        "false": false,
        "judged": sum(claim["holds"] is not None for claim in claims),
        "products": {p: arithmetic[p].get("products") for p in arithmetic},
        "seconds": time.perf_counter() - begin,
    }


def verdicts(day: Day) -> Pieces:
    """Every theorem in every precision."""
    names = ("corollary1",) if day.tiny else tuple(REGISTRY)
    return {
        f"{name} {precision}": partial(
            verdict,
            name,
            asked,
            day.out / "parts",
            {**steps.smallest(name), "seeds": 1} if day.tiny else {},
        )
        for name in names
        for precision, asked in PRECISIONS.items()
    }


def figure(name: str, preset: str, day: Day) -> Numbers:
    """Draw a figure or table from new runs, and compare it with the committed numbers."""
    begin = time.perf_counter()
    words = ["check", name, "--preset", preset, "--out", str(day.out / "figures")]
    ended = figures.main(EXHIBITS, BASELINES, words, machine=day.programs)
    assert ended is not None  # of ``check`` it says whether both are the same
    return {"same": ended.same, "seconds": time.perf_counter() - begin}


def drawn(preset: str, day: Day, seconds: Mapping[str, float]) -> Pieces:
    """All figures and tables of a preset whose runs take minutes at most, the dearest last."""
    names = [e.name for e in EXHIBITS if preset in e.presets and not e.long]
    if day.tiny:
        # The sweep of seconds; a figure in the other preset takes too long to show that it runs.
        names = ["fig06"] if preset == "quick" else []
    dear = sorted(names, key=lambda name: seconds.get(f"{name} quick", 0.0))
    return {f"{name} {preset}": partial(figure, name, preset, day) for name in dear}


def best(call: Callable[[], Any]) -> float:
    """Seconds of the best of three calls, after one that compiles."""
    return timed({"": call}, 3)[""].best


def product_rate(size: int, dtype: str, algorithm: Any) -> Numbers:
    """Operations in a second of square products, by one of JAX's names of what computes them."""
    with jax.enable_x64(dtype == "float64"):
        A = jnp.ones((size, size), dtype)
        multiply = jax.jit(lambda A: jnp.matmul(A, A, precision=algorithm))
        # A product of n x n matrices has 2 n^3 operations.
        return {"rate": 2.0 * size**3 / best(lambda: multiply(A))}


def lane_rate(lanes: int, count: int) -> Numbers:
    """Steps in a second, all points together, of the reduced dynamics of 6 x 6 by three."""
    targets = jnp.broadcast_to(jnp.eye(6), (lanes, 6, 6))
    at = np.array([0, count])

    @jax.jit
    def run(targets: jax.Array) -> Any:
        reduced = partial(subspace.reduced_dynamics, steps=at, weight_decay=0.0, learning_rate=0.01)
        return jax.vmap(lambda target: reduced(target, jnp.ones(3)).params)(targets)

    return {"steps": lanes * count / best(lambda: run(targets))}


def svd_times(size: int, count: int) -> Numbers:
    """Seconds of one SVD, of a batch, and of the same matrices one after another."""
    matrices = jax.random.normal(jax.random.key(0), (count, size, size))
    alone, together = jax.jit(linalg.svd), jax.jit(jax.vmap(linalg.svd))
    loop = jax.jit(lambda matrices: jax.lax.map(linalg.svd, matrices))
    return {
        "single": best(lambda: alone(matrices[0])),
        "batch": best(lambda: together(matrices)),
        "one by one": best(lambda: loop(matrices)),
        "matrices": count,
    }


def ceilings(day: Day) -> Pieces:
    """Products, lanes, decompositions."""
    tiny = day.tiny
    kinds = {
        "float32 highest": ("float32", "highest"),
        "float32 tf32": ("float32", "TF32_TF32_F32"),
        "float32 bfloat16": ("float32", "BF16_BF16_F32"),
        "float64": ("float64", "highest"),
    }
    pieces: Pieces = {
        f"product {size} {kind}": partial(product_rate, size, *dtype_and_algorithm)
        for size in ((32,) if tiny else (1024, 4096, 8192))
        if size <= day.largest
        for kind, dtype_and_algorithm in kinds.items()
    }
    for lanes in (2, 4) if tiny else (16, 256, 4096):
        pieces[f"lanes {lanes}"] = partial(lane_rate, lanes, 10 if tiny else 1000)
    for size in (6,) if tiny else (6, 16, 32, 64, 128, 256, 512):
        if size > day.largest:
            continue
        # Fewer of the larger ones, so that each size takes about as long.
        count = 4 if tiny else max(4, 256 // max(1, size // 32))
        pieces[f"SVD {size}"] = partial(svd_times, size, count)
    return pieces


def step_time(make: Callable[[], steps.Step], precision: str, count: int) -> Numbers:
    """Seconds of a step of a training, and those until the first one ended."""
    begin = time.perf_counter()
    with jax.default_matmul_precision(precision):
        step = make()
        (run, (_, _, *rest), constants) = step.arguments
        loops = {e.primitive.name for e in jax.make_jaxpr(step.function)(*step.arguments).eqns}
        count = count if "while" in loops else 1  # of what is a single step on a CPU
        program = jax.jit(step.function)
        ends = jnp.asarray(0, jnp.int32), jnp.asarray(count, jnp.int32)

        def call() -> Any:
            return program(run, [*ends, *rest], constants)

        jax.block_until_ready(call())
        first = time.perf_counter() - begin
        return {"seconds": best(call) / count, "first": first}


TRAININGS = (
    ("weight_updates, convolutions", "Figure 1, VGG-16, a step"),
    ("dropout_spectra", "Figure 2, ResNet-18, a step"),
    ("weight_updates", "Figure 1, ViT-Base, a step"),
    ("adapters", "Figures 4 to 8, LoRA on BERT-base, a step"),
)
"""Tiny and large trainings of which a step is timed."""


def stepping(day: Day) -> Pieces:
    """Steps of some networks, in full precision and with TF32's products."""
    making = steps.TINY_STEPS if day.tiny else steps.PAPER_STEPS
    return {
        f"{name} {word}": partial(step_time, making[name], precision, 2 if day.tiny else 50)
        for name in ((small if day.tiny else large) for small, large in TRAININGS)
        for word, precision in (("highest", "highest"), ("tf32", "tensorfloat32"))
    }


def in_float32(pieces: Pieces) -> Pieces:
    """The same pieces, in programs whose default precision is float32."""

    def alone(piece: Callable[[], Numbers]) -> Numbers:
        with jax.enable_x64(False):
            return piece()

    return {name: partial(alone, piece) for name, piece in pieces.items()}


STAGES: dict[str, Callable[[Day, Mapping[str, float]], Pieces]] = {
    "arithmetic": lambda day, seconds: arithmetic(day),
    "verdicts": lambda day, seconds: verdicts(day),
    "figures": lambda day, seconds: drawn("quick", day, seconds),
    "ceilings": lambda day, seconds: in_float32(ceilings(day)),
    "steps": lambda day, seconds: in_float32(stepping(day)),
    "figures of the paper": lambda day, seconds: drawn("paper", day, seconds),
}
"""Stage -> its pieces, from what was asked for and the seconds of the pieces before."""


def machine(tiny: bool) -> Numbers:
    """What the numbers are of."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "jax": jax.__version__,
        "tiny": tiny,
    }


def opened(path: Path) -> list[Numbers]:
    """The days that are there, one for each device and release of JAX."""
    return json.loads(path.read_text()) if path.exists() else []


def carried_out(day: Day, minutes: float) -> list[str]:
    """Carry out what is missing of a day; the names of what is missing still."""
    path, of, begin = day.out / "measured.json", machine(day.tiny), time.monotonic()
    days = opened(path)
    mine = next((one for one in days if one["of"] == of), None)
    if mine is None:
        if days:
            others = ", ".join(one["of"]["device"] for one in days)
            say(f"{of['device']}: a device without numbers yet; those of {others} stay")
        mine = {"of": of, "stages": {}}
        days.append(mine)
    if of["platform"] == "cpu":
        say("no accelerator was found: these are the numbers of a CPU")
    missing = []
    for stage, pieces_of in STAGES.items():
        seconds = {
            name: numbers["seconds"]
            for stage in mine["stages"].values()
            for name, numbers in stage.items()
            if "seconds" in numbers
        }
        there = mine["stages"].setdefault(stage, {})
        for name, piece in pieces_of(day, seconds).items():
            if name in there and "fault" not in there[name]:
                continue
            if time.monotonic() - begin > 60 * minutes:
                missing.append(name)
                continue
            try:
                there[name] = piece()
            except Exception as error:  # of the device, its memory, its compiler: the rest goes on
                there[name] = {"fault": f"{type(error).__name__}: {error}"[:300]}
                missing.append(name)
            save(days, mine, missing, day.out)
            say(f"{name}: {there[name]}")
    save(days, mine, missing, day.out)
    return missing


def save(days: Sequence[Numbers], mine: Numbers, missing: Sequence[str], out: Path) -> None:
    """Write the numbers of all devices, and the report of this one."""
    text = json.dumps(days, indent=1) + "\n"
    assert len(text) < MOST
    for name, content in (("measured.json", text), ("report.md", report(mine, missing))):
        with replace_file(out / name) as file:
            file.write_text(content)


# The report -----------------------------------------------------------------------------------


def told(numbers: Numbers) -> str:
    """What came of a piece, in a few words.

    Example:
        >>> told({"holds": False, "false": ["rho"], "judged": 4, "seconds": 2.5})
        'FALSE: rho; 4 claims judged; 2.5 s'
        >>> told({"rate": 2e12}), told({"fault": "no memory"})
        ('2 TF/s', '**no memory**')
    """
    if "fault" in numbers:
        return f"**{numbers['fault']}**"
    words = []
    if "holds" in numbers:
        outcome = {True: "holds", False: "FALSE", None: "undecided"}[numbers["holds"]]
        words.append(outcome + (f": {', '.join(numbers['false'])}" if numbers["false"] else ""))
        words.append(f"{numbers['judged']} claims judged")
    if "same" in numbers:
        words.append("as committed" if numbers["same"] else "DIFFERS from what is committed")
    if "rate" in numbers:
        words.append(f"{numbers['rate'] / 1e12:.3g} TF/s")
    if "steps" in numbers:
        words.append(f"{numbers['steps']:.3g} steps a second")
    if "dot" in numbers:
        kinds = {numbers["products"], numbers.get("convolutions", numbers["products"])}
        words.append(
            f"products in {' and '.join(sorted(kinds))}; a dot within {numbers['dot']} eps"
        )
    words += [
        f"{numbers[name]:.3g} s {name}"
        for name in ("single", "batch", "one by one", "first")
        if name in numbers
    ]
    if "seconds" in numbers:
        words.append(f"{numbers['seconds']:.3g} s")
    return "; ".join(words)


def report(day: Numbers, missing: Sequence[str]) -> str:
    """The page for a person: every piece with what came of it, or that it was not reached."""
    of = day["of"]
    tiny = " Sizes are tiny: only that it runs is shown." if of["tiny"] else ""
    lines = [f"# {of['device']}", "", f"Platform {of['platform']}, JAX {of['jax']}.{tiny}"]
    for stage, pieces in day["stages"].items():
        if pieces:
            lines += ["", f"## {stage.capitalize()}", "", "| piece | outcome |", "|---|---|"]
            lines += [
                f"| {name} | {told(numbers).replace('|', chr(92) + '|')} |"
                for name, numbers in pieces.items()
            ]
    left = ", ".join(missing) if missing else "nothing"
    return "\n".join([*lines, "", f"Still missing: {left}.", ""])


def main(words: Sequence[str]) -> Status:
    """Carry out a day: 0 if all of it is there, 1 if a part failed or was not reached."""
    parser = Parser("accelerator", "Measure what an accelerator does, piece by piece.")
    parser.add_argument("--minutes", type=integer_reader("minutes", 1), default=9)
    parser.add_argument("--out", type=parse_folder, default="build/accelerator", metavar="DIR")
    parser.add_argument(
        "--largest", type=integer_reader("largest", 1), default=8192, help="side of a matrix"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    given: argparse.Namespace = parser.parse(words)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    day = Day(out, given.tiny, given.largest, cli.setup("float64"))
    missing = carried_out(day, given.minutes)
    left = "nothing is missing" if not missing else f"still missing: {', '.join(missing)}"
    say(f"{left}: {out / 'report.md'}")
    return Status(bool(missing))


if __name__ == "__main__":
    sys.exit(cli.run("accelerator", lambda: main(sys.argv[1:])))
