"""A day with an accelerator: ``python -m benchmarks.accelerator --minutes 9 --out day``.

What decides most comes first: the arithmetic of the device; then the verdict of every theorem in
float64, in float32, and with TF32's products, which must be FALSE where the platform has them;
every figure and table at its quick preset, drawn and compared with the committed numbers; what
products, memory, loops, points at a time and decompositions reach, beside what the maker promises;
the programs that ``make aot`` compiles, steps of the
trainings of Figures 1, 2 and 4 to 8 among them; last the figures of the paper's preset, the
dearest at the end, behind them those of trainings. What a device does not have is said in one line.

The command ends when ``--minutes`` are over and goes on when it is called again: finished pieces
are not repeated, and a piece that was cut has its finished parts. What was cut or failed comes
behind what was not begun yet. ``DIR/measured.json`` holds the numbers of every device that was
tried, each of which has a folder for its parts and figures, ``DIR/report.md`` is written after each
piece, and ``python -m docs.accelerators --page`` fills its columns from the first.
"""

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import steps
from benchmarks.accelerator_report import Numbers, is_finished, operations, report, told
from benchmarks.common import timed
from lrdyn import cli
from lrdyn.commands import figures
from lrdyn.commands.arguments import Parser, integer_reader, parse_folder
from lrdyn.commands.ending import Status
from lrdyn.core import linalg
from lrdyn.figures import baselines, long, rendering
from lrdyn.figures.exhibits import Exhibit
from lrdyn.registry import REGISTRY, theorem
from lrdyn.statements import verify
from lrdyn.system.interrupts import end_now
from lrdyn.system.messages import BadInput
from lrdyn.system.printer import say
from lrdyn.system.whole_files import replace_file
from lrdyn.theorem2 import subspace
from lrdyn.verification.judging import verdict_text
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.running import arithmetic_probe
from lrdyn.verification.running.arithmetic_probe import NoSuchProducts
from lrdyn.verification.storing import results_file
from paper_figs import BASELINES, EXHIBITS

MOST = 10**6
"""Bytes of the file of numbers, so that it can be committed."""
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
    """Folder of the numbers and the report."""
    tiny: bool = False
    """Sizes that only show that everything runs."""
    largest: int = 8192
    """Side of the largest product of matrices; no decomposition has a larger one."""
    programs: KeptPrograms | None = None
    """Where compiled programs are kept, for figures."""

    @property
    def folder(self) -> Path:
        """Folder of the finished parts and the figures of this device and release of JAX."""
        of = machine(self.tiny)
        words = f"{of['device']} jax {of['jax']}{' tiny' * self.tiny}"
        return self.out / re.sub(r"[^\w.]+", "-", words)


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
    """A theorem's verdict, with the arithmetic in which it was judged; finished parts are kept."""
    begin = time.perf_counter()
    found = verify(theorem(name), store=store, **asked, **settings).verdict
    kept = ("products", "convolutions", "dot", "svd", linalg.ON_TRIAL)
    judged = {precision for claim in found["claims"] for precision in claim["judged"]}
    return {
        "holds": found["holds"],
        # Products that are rounded to eleven bits are no identity of float32.
        "wanted": "precision" not in asked,
        "said": verdict_text.sentence(found).partition(": ")[2].rstrip("."),
        "measured": {
            precision: {name: numbers[name] for name in kept if name in numbers}
            for precision, numbers in found.get("arithmetic", {}).items()
            if precision in judged
        },
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
            day.folder / "parts",
            {**steps.smallest(name), "seeds": 1} if day.tiny else {},
        )
        for name in names
        for precision, asked in PRECISIONS.items()
    }


def figure(exhibit: Exhibit, preset: str, day: Day) -> Numbers:
    """Draw a figure or table from runs on this device, and compare it with the committed numbers.

    Its ``same`` is None where the committed numbers are those of another configuration.
    """
    begin, out = time.perf_counter(), day.folder / "figures" / preset
    train = ["--train"] if exhibit.long else []
    words = [exhibit.name, *train, "--preset", preset, "--out", str(out)]
    figures.main(EXHIBITS, BASELINES, words, machine=day.programs)
    seconds = time.perf_counter() - begin
    committed = baselines.folder_of(exhibit, BASELINES, preset) / f"{exhibit.name}.nc"
    wanted = results_file.load(committed)["/"]
    drawn = results_file.load(rendering.numbers_path(exhibit, out))["/"]
    if exhibit.long and (why := long.why_incomparable(drawn, wanted)):
        return {"same": None, "said": why, "seconds": seconds}
    thin = exhibit.thin(drawn)
    said = [*map(str, baselines.compare(thin, wanted))]
    nearest = baselines.nearest_to_its_tolerance(thin, wanted)
    same = not said
    if same and nearest is not None:
        said = [f"nearest its tolerance: {nearest}"]
    more = [f"and {len(said) - 3} more"] if len(said) > 3 else []
    return {"same": same, "said": "; ".join([*said[:3], *more]), "seconds": seconds}


def drawn(preset: str, day: Day, seconds: Mapping[str, float]) -> Pieces:
    """Figures and tables of a preset, the dearest last; of the paper's also those of trainings.

    Of the preset ``paper`` those that differ from ``quick`` are drawn.
    """
    there = [exhibit for exhibit in EXHIBITS if preset in exhibit.presets]
    if day.tiny:
        chosen = [exhibit for exhibit in there if exhibit.name == "fig03"]
    else:
        quick = [exhibit for exhibit in there if not exhibit.long]
        own = [e for e in quick if baselines.folder_of(e, BASELINES, preset) != BASELINES]
        chosen = sorted(
            quick if preset == baselines.QUICK else own,
            key=lambda exhibit: seconds.get(f"{exhibit.name} quick", 0.0),
        )
        if preset != baselines.QUICK:
            chosen += sorted((e for e in there if e.long), key=lambda exhibit: exhibit.turn)
    return {f"{exhibit.name} {preset}": partial(figure, exhibit, preset, day) for exhibit in chosen}


def best(call: Callable[[], Any]) -> float:
    """Seconds of the best of three calls, after one that compiles."""
    return timed({"": call}, 3)[""].best


def gaussian(*shape: int, dtype: str = "float32") -> jax.Array:
    """Numbers whose digits are all in use: a card that multiplies ones draws less power."""
    return jax.random.normal(jax.random.key(0), shape, dtype)


KINDS = {
    "float32": ("float32", "highest"),
    "tf32": ("float32", "TF32_TF32_F32"),
    "bfloat16": ("float32", "BF16_BF16_F32"),
    "float64": ("float64", "highest"),
}
"""Arithmetic of a product -> precision of its matrices, and JAX's name of what computes it."""


def product_rate(size: int, arithmetic: str) -> Numbers:
    """Operations in a second of square products."""
    dtype, algorithm = KINDS[arithmetic]
    with jax.enable_x64(dtype == "float64"):
        A = gaussian(size, size, dtype=dtype)
        multiply = jax.jit(lambda A: jnp.matmul(A, A, precision=algorithm))
        try:
            multiply.lower(A)
        except ValueError as error:
            raise NoSuchProducts(str(error)) from None
        # A product of n x n matrices has 2 n^3 operations.
        rate = 2.0 * size**3 / best(lambda: multiply(A))
        return {"rate": rate, "arithmetic": arithmetic}


def memory_rate(megabytes: int) -> Numbers:
    """Bytes in a second, read and written, of a sum that does nothing but pass by."""
    numbers, add = gaussian(megabytes * 2**18), jax.jit(lambda x: x + 1)
    return {"bytes": 2.0 * numbers.nbytes / best(lambda: add(numbers))}


def loop_time(count: int) -> Numbers:
    """Seconds of a step of a loop of small products, of which each is a kernel or two."""
    A = gaussian(8, 8) / 8
    run = jax.jit(lambda A: jax.lax.fori_loop(0, count, lambda _, X: A @ X, A))
    return {"a step": best(lambda: run(A)) / count}


def lane_rate(lanes: int, count: int) -> Numbers:
    """Steps in a second, all points together, of the reduced dynamics of 6 x 6 by three."""
    targets, scales = gaussian(lanes, 6, 6), jnp.full((lanes, 3), 0.3)
    rates, at = jnp.full(lanes, 1e-3), np.array([count])

    @jax.jit
    def run(*data: jax.Array) -> Any:
        return subspace.reduced_lanes(*data, at, record=lambda _: ()).params

    seconds = best(lambda: run(targets, scales, rates, 0 * rates))
    return {"steps": lanes * count / seconds, "a step": seconds / count}


def svd_times(size: int, count: int, dtype: str, decompose: Callable[..., Any]) -> Numbers:
    """Seconds of one SVD, of a batch, of the same one after another, and of them by NumPy here."""
    with jax.enable_x64(dtype == "float64"):
        matrices = gaussian(count, size, size, dtype=dtype)
        alone, together = jax.jit(decompose), jax.jit(jax.vmap(decompose))
        loop = jax.jit(lambda matrices: jax.lax.map(decompose, matrices))
        on_host = np.asarray(matrices)
        return {
            "single": best(lambda: alone(matrices[0])),
            "batch": best(lambda: together(matrices)),
            "one by one": best(lambda: loop(matrices)),
            "by NumPy": best(lambda: np.linalg.svd(on_host, full_matrices=False)),
            "matrices": count,
        }


def ceilings(day: Day) -> Pieces:
    """Products, memory, loops, lanes, decompositions."""
    tiny = day.tiny
    pieces: Pieces = {
        f"product {size} {kind}": partial(product_rate, size, kind)
        for size in ((32,) if tiny else (1024, 4096, 8192))
        if size <= day.largest
        for kind in KINDS
    }
    pieces["memory"] = partial(memory_rate, 1 if tiny else 1024)
    pieces["loop of 8 x 8"] = partial(loop_time, 10 if tiny else 10_000)
    for lanes in (2, 4) if tiny else (16, 256, 4096):
        pieces[f"lanes {lanes}"] = partial(lane_rate, lanes, 10 if tiny else 1000)
    # Of recorded numbers by the host, and of an algorithm on trial by the device.
    for where, decompose in (("", linalg.svd), (" on the device", linalg.svd_on_device)):
        for dtype in ("float32", "float64"):
            for size in (6,) if tiny else (6, 16, 32, 64, 128, 256, 512):
                if size > day.largest:
                    continue
                # Fewer of the larger ones, so that each size takes about as long.
                count = 4 if tiny else max(4, 256 // max(1, size // 32))
                piece = partial(svd_times, size, count, dtype, decompose)
                pieces[f"SVD {size} {dtype}{where}"] = piece
    return pieces


def program_time(name: str, make: Callable[[], steps.Step], word: str, count: int) -> Numbers:
    """Seconds of a run of a program, of a training those of a step, and until the first one ended.

    Args:
        name: of the program, by which its operations are known.
        make: makes it.
        word: of ``--precision``.
        count: steps of a training that one call carries out.
    """
    # JAX takes a word that a platform does not know without a word, and computes in float32.
    arithmetic_probe.check_products(word, arithmetic_probe.meter_here(), convolutions=False)
    begin = time.perf_counter()
    x64 = name.endswith("float64")
    step = steps.in_precision(make, x64)
    with (
        jax.enable_x64(x64),
        jax.default_matmul_precision({"tf32": "tensorfloat32"}.get(word, word)),
    ):
        arguments = steps.filled(step.arguments)
        if step.trains:
            run, (_, _, *rest), constants = arguments
            loops = {e.primitive.name for e in jax.make_jaxpr(step.function)(*arguments).eqns}
            count = count if "while" in loops else 1  # of what is a single step on a CPU
            ends = jnp.asarray(0, jnp.int32), jnp.asarray(count, jnp.int32)
            arguments = (run, [*ends, *rest], constants)
        program = jax.jit(step.function)
        jax.block_until_ready(program(*arguments))
        first = time.perf_counter() - begin
        seconds = best(lambda: program(*arguments)) / (count if step.trains else 1)
    numbers = {"first": first, "seconds": seconds}
    if step.trains and name in operations():  # of a loop they are counted once
        arithmetic = "float32" if word == "highest" else word
        numbers |= {"operations": operations()[name], "arithmetic": arithmetic}
    return numbers


def tiny_programs() -> dict[str, Callable[[], steps.Step]]:
    """One of each kind of program that is compiled ahead, small."""
    sizes = {"rows": 8, "columns": 12, "rank": 2, "batch": 4, "dtype": "float32"}
    return {
        **{f"Table 1, {name}": make for name, make in steps.table1_steps(sizes).items()},
        "theorem1, float64": partial(steps.main_program, "theorem1", "float64"),
        **steps.TINY_STEPS,
    }


def programs(day: Day) -> Pieces:
    """What is compiled ahead (``make aot``), in full precision; trainings with TF32's products."""
    making = tiny_programs() if day.tiny else steps.compiled_ahead()
    trainings = steps.TINY_STEPS if day.tiny else steps.PAPER_STEPS
    count = 2 if day.tiny else 50
    pieces: Pieces = {}
    for name, make in making.items():
        pieces[name] = partial(program_time, name, make, "highest", count)
        if name in trainings:
            pieces[f"{name} tf32"] = partial(program_time, name, make, "tf32", count)
    return pieces


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
    "programs": lambda day, seconds: in_float32(programs(day)),
    "figures of the paper": lambda day, seconds: drawn("paper", day, seconds),
}
"""Stage -> its pieces, from what was asked for and the seconds of the pieces before."""


# The day --------------------------------------------------------------------------------------


def machine(tiny: bool) -> Numbers:
    """What the numbers are of."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "jax": jax.__version__,
        "tiny": tiny,
    }


class Book:
    """The numbers of all devices in ``measured.json``, and the day of this device among them.

    Raises:
        BadInput: the file that is there holds no days.
    """

    def __init__(self, day: Day):
        self.day, self.of = day, machine(day.tiny)
        path = day.out / "measured.json"
        try:
            self.days: list[Numbers] = json.loads(path.read_text()) if path.exists() else []
            mine = next((one for one in self.days if one["of"] == self.of), None)
        except (ValueError, TypeError, KeyError):
            wanted = "what a day left there, or another folder"
            raise BadInput(f"--out: got {str(path)!r} without days, wanted {wanted}") from None
        if mine is None:
            if self.days:
                others = ", ".join(f"{one['of']['device']}" for one in self.days)
                say(f"{self.of['device']}: a device without numbers yet; those of {others} stay")
            mine = {"of": self.of, "stages": {stage: {} for stage in STAGES}}
            self.days.append(mine)
        self.mine, self.stages = mine, mine["stages"]
        for stage in STAGES:  # an earlier release may have had fewer
            self.stages.setdefault(stage, {})
        revision = results_file.environment("float64")["git"]
        if revision and revision not in mine.setdefault("revisions", []):
            mine["revisions"].append(revision)

    def pieces(self) -> Iterator[tuple[str, str, Callable[[], Numbers]]]:
        """Stage, name and work of every piece, in the order of the stages."""
        for stage, pieces_of in STAGES.items():
            seconds = {
                name: numbers["seconds"]
                for stage in self.stages.values()
                for name, numbers in stage.items()
                if "seconds" in numbers
            }
            for name, piece in pieces_of(self.day, seconds).items():
                yield stage, name, piece

    def missing(self) -> list[str]:
        """Names of the pieces that are to come, or to come again."""
        return [name for stage, name, _ in self.pieces() if not self.has(stage, name)]

    def has(self, stage: str, name: str) -> bool:
        """Whether a piece is finished."""
        return is_finished(self.stages[stage].get(name))

    def write(self) -> None:
        """Write the numbers of all devices, and the report: that of this device comes first."""
        text = json.dumps(self.days, indent=1) + "\n"
        assert len(text) < MOST
        others = [report(one) for one in self.days if one is not self.mine]
        page = "\n".join([report(self.mine, self.missing()), *others])
        for name, content in (("measured.json", text), ("report.md", page)):
            with replace_file(self.day.out / name) as file:
                file.write_text(content)


def carried_out(day: Day, minutes: float, end: Callable[[], None] | None = None) -> list[str]:
    """Carry out what is missing of a day; the names of what is missing still.

    Args:
        day: what is asked for.
        minutes: no piece is begun behind them.
        end: called from another thread where they are over in the midst of a piece, when that is
            in the book as cut and what is missing was said; it is to end the process. None lets
            the piece come to its end.

    Raises:
        BadInput: the folder holds something else.
    """
    book, begin = Book(day), time.monotonic()
    if book.of["platform"] == "cpu":
        say("no accelerator was found: these are the numbers of a CPU")
    writing = threading.Lock()

    def keep(stage: str, name: str, numbers: Numbers) -> None:
        with writing:
            book.stages[stage][name] = numbers
            book.write()
            say(f"{name}: {told(numbers, book.of['device'])}")

    @contextmanager
    def limited(stage: str, name: str) -> Iterator[None]:
        began = time.monotonic()

        def cut() -> None:
            keep(stage, name, {"cut": time.monotonic() - began})
            say(said_of(book.missing(), day.out))
            assert end is not None
            end()

        timer = threading.Timer(max(0.0, begin + 60 * minutes - began), cut)
        timer.daemon = True
        if end is not None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    tried: set[tuple[str, str]] = set()
    # What was cut or failed comes behind what was not begun: it must not keep all else waiting.
    for again in (False, True):
        for stage, name, piece in book.pieces():
            if book.has(stage, name) or (stage, name) in tried:
                continue
            if (name in book.stages[stage]) is not again:
                continue
            if time.monotonic() - begin > 60 * minutes:
                break
            tried.add((stage, name))
            try:
                with limited(stage, name):
                    numbers = piece()
            except NoSuchProducts as error:
                numbers = {"absent": str(error)}
            except Exception as error:  # of the device, its memory, its compiler: the rest goes on
                numbers = {"fault": f"{type(error).__name__}: {error}"[:300]}
            keep(stage, name, numbers)
    book.write()
    return book.missing()


def said_of(missing: Sequence[str], out: Path) -> str:
    """The last line of the command."""
    left = f"still missing: {', '.join(missing)}" if missing else "nothing is missing"
    return f"{left}: {out / 'report.md'}"


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

    missing = carried_out(day, given.minutes, partial(end_now, 1))
    say(said_of(missing, out))
    return Status(bool(missing))


if __name__ == "__main__":
    sys.exit(cli.run("accelerator", lambda: main(sys.argv[1:]), own_process=True))
