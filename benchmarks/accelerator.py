"""A day with an accelerator, in four stages: ``python -m benchmarks.accelerator --stage 1``.

The first judges every theorem in float64, in float32, and with TF32's products, which must be FALSE
where the platform has them. The second finds what products of matrices reach, how many points at a
time pay, and what an SVD takes alone and in a batch; the third times steps of Figures 1 and 2, the
fourth those of ViT-Base, then of adapters. Each takes at most ``--minutes``, and the same command
goes on where it stopped. All is in one file of JSON, from which ``python -m docs.accelerators
--page`` fills its columns.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import steps
from benchmarks.common import timed
from lrdyn import cli
from lrdyn.commands.arguments import Parser, integer_reader
from lrdyn.commands.ending import Status
from lrdyn.core import linalg
from lrdyn.registry import REGISTRY, theorem
from lrdyn.statements import verify
from lrdyn.system.printer import say
from lrdyn.system.whole_files import replace_file
from lrdyn.theorem2 import subspace
from lrdyn.verification.stating.mistakes import BadInput

FILE = Path(__file__).parents[1] / "docs" / "accelerators_measured.json"
MOST = 10**6
"""Bytes of the file, so that it can be committed."""
Numbers = dict[str, Any]
Pieces = dict[str, Callable[[], Numbers]]
PRECISIONS = {
    "float64": {"dtype": "float64"},
    "float32": {"dtype": "float32"},
    "tf32": {"dtype": "float32", "precision": "tf32"},
}
"""How a theorem is judged in the first stage."""


def verdict(name: str, asked: Mapping[str, str], settings: Mapping[str, Any]) -> Numbers:
    """What a theorem's verdict says, and the seconds of it."""
    begin = time.perf_counter()
    verdict_of = verify(theorem(name), **asked, **settings).verdict
    claims = [claim for claim in verdict_of["claims"] if claim["kind"] != "control"]
    false = [claim["id"] for claim in claims if claim["holds"] is False]
    return {
        "holds": verdict_of["holds"],
        "false": false,
        "judged": sum(claim["holds"] is not None for claim in claims),
        "seconds": time.perf_counter() - begin,
    }


def verdicts(tiny: bool) -> Pieces:
    """Every theorem in every precision."""
    names = ("corollary1",) if tiny else tuple(REGISTRY)
    return {
        f"{name} {precision}": partial(
            verdict, name, asked, {**steps.smallest(name), "seeds": 1} if tiny else {}
        )
        for name in names
        for precision, asked in PRECISIONS.items()
    }


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


def ceilings(tiny: bool) -> Pieces:
    """Products, lanes, decompositions."""
    kinds = {
        "float32 highest": ("float32", "highest"),
        "float32 tf32": ("float32", "TF32_TF32_F32"),
        "float32 bfloat16": ("float32", "BF16_BF16_F32"),
        "float64": ("float64", "highest"),
    }
    pieces: Pieces = {
        f"product {size} {kind}": partial(product_rate, size, *dtype_and_algorithm)
        for size in ((32,) if tiny else (1024, 4096, 8192))
        for kind, dtype_and_algorithm in kinds.items()
    }
    for lanes in (2, 4) if tiny else (16, 256, 4096):
        pieces[f"lanes {lanes}"] = partial(lane_rate, lanes, 10 if tiny else 1000)
    for size in (6,) if tiny else (6, 16, 32, 64, 128, 256, 512):
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


def stepping(tiny: bool, small: Sequence[str], large: Sequence[str]) -> Pieces:
    """Steps of some networks, in full precision and with TF32's products."""
    making = steps.TINY_STEPS if tiny else steps.PAPER_STEPS
    return {
        f"{name} {word}": partial(step_time, making[name], precision, 2 if tiny else 50)
        for name in (small if tiny else large)
        for word, precision in (("highest", "highest"), ("tf32", "tensorfloat32"))
    }


STAGES: dict[int, Callable[[bool], Pieces]] = {
    1: verdicts,
    2: ceilings,
    3: partial(
        stepping,
        small=["weight_updates, convolutions", "dropout_spectra"],
        large=["Figure 1, VGG-16, a step", "Figure 2, ResNet-18, a step"],
    ),
    4: partial(
        stepping,
        small=["weight_updates", "adapters"],
        large=["Figure 1, ViT-Base, a step", "Figures 4 to 8, LoRA on BERT-base, a step"],
    ),
}


def machine(tiny: bool) -> Numbers:
    """What the numbers are of."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "jax": jax.__version__,
        "tiny": tiny,
    }


def opened(path: Path, of: Numbers) -> Numbers:
    """The numbers that are there, of this machine."""
    if not path.exists():
        return {"of": of, "stages": {}}
    measured = json.loads(path.read_text())
    if measured["of"] != of:
        raise BadInput(
            f"--out: got {path} with measurements of {measured['of']}, wanted those of {of}"
        )
    return measured


def carried_out(stage: int, path: Path, tiny: bool, minutes: float) -> list[str]:
    """Carry out what is missing of a stage; the names of what is missing still."""
    measured = opened(path, machine(tiny))
    there = measured["stages"].setdefault(str(stage), {})
    pieces, begin = STAGES[stage](tiny), time.monotonic()
    for name, piece in pieces.items():
        if name in there and "fault" not in there[name]:
            continue
        if time.monotonic() - begin > 60 * minutes:
            break
        try:
            there[name] = piece()
        except Exception as error:  # of the device, its memory, its compiler: the rest goes on
            there[name] = {"fault": f"{type(error).__name__}: {error}"[:300]}
        text = json.dumps(measured, indent=1) + "\n"
        assert len(text) < MOST
        with replace_file(path) as file:
            file.write_text(text)
        say(f"{name}: {there[name]}")
    return [name for name in pieces if "fault" in there.get(name, {"fault": "not reached"})]


def main(words: Sequence[str]) -> Status:
    """Carry out a stage: 0 if all of it is there, 1 if a part failed or was not reached."""
    parser = Parser("accelerator", "Measure what an accelerator does, a stage at a time.")
    parser.add_argument("--stage", type=int, choices=tuple(STAGES), required=True)
    parser.add_argument("--minutes", type=integer_reader("minutes", 1), default=7)
    parser.add_argument("--out", type=Path, default=FILE, metavar="FILE")
    parser.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
    given: argparse.Namespace = parser.parse(words)
    cli.setup("float32")
    missing = carried_out(given.stage, given.out, given.tiny, given.minutes)
    left = "nothing is missing" if not missing else f"still missing: {', '.join(missing)}"
    say(f"stage {given.stage}: {left}")
    return Status(bool(missing))


if __name__ == "__main__":
    sys.exit(cli.run("accelerator", lambda: main(sys.argv[1:])))
