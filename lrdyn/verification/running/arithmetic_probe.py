"""Measuring the arithmetic of the device at hand, as programs of theorems run on it."""

import hashlib
import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.backend import get_backend

from lrdyn.core import linalg
from lrdyn.verification.judging.rounding import (
    PRODUCTS,
    Measured,
    Meter,
    name_of,
    scope,
    shortfall_line,
    shortfalls,
    worst_measurement,
)
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.running.jobs import unoptimized_options
from lrdyn.verification.running.programs import ONE_AT_A_TIME
from lrdyn.verification.stating.mistakes import BadInput

SIZES = (4, 16, 48)
MATRICES = 3
"""Matrices of each size; more would tell no more of a device that is measured once."""


def measure_arithmetic(
    precision: str, word: str = "highest", programs: KeptPrograms | None = None
) -> Measured:
    """The arithmetic of the first device: once in a process, or once where programs are kept.

    Args:
        precision: ``float64`` or ``float32``.
        word: of ``--precision``.
        programs: where compiled programs and these numbers are kept, for other processes.

    Raises:
        BadInput: the platform has no such products.
    """
    word = word if precision == "float32" else "highest"
    if programs is None:
        return _measure_once(precision, word)
    # What is measured depends on these files alone; the library's digest would measure anew after
    # every edit.
    sources = [Path(__file__), Path(inspect.getfile(worst_measurement)), Path(linalg.__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    device, version = jax.local_devices()[0].device_kind, get_backend().platform_version
    decided_by = ("arithmetic", precision, word, device, version, digest)
    return programs.once(decided_by, lambda: dict(_measure_once(precision, word)))


@cache
def _measure_once(precision: str, word: str) -> Measured:
    try:
        numbers = measure_rounding(precision, word)
    except (ValueError, jax.errors.JaxRuntimeError):
        if word == "highest":
            raise
        raise _refusal(word, "which has none") from None
    measures = {"matmuls": word, "products": name_of(precision, numbers["product"])}
    if "convolution" in numbers:
        measures["convolutions"] = name_of(precision, numbers["convolution"])
    measures |= numbers
    # A compiler can take minutes for decompositions in an arithmetic that it has to emulate.
    if word == "highest" and not shortfalls(precision, measures):
        measures |= measure_decompositions(precision)
    return measures


def meter_here(programs: KeptPrograms | None = None) -> Meter:
    """A meter that measures the device of this process."""
    return lambda precision, word: [measure_arithmetic(precision, word, programs)]


def check_products(word: str, meter: Meter) -> None:
    """Refuse a word of ``--precision`` by which a device computes something else.

    Raises:
        BadInput: it does.
    """
    if word == "highest":
        return
    for measures in meter("float32", word):
        for kind in ("products", "convolutions"):
            if measures[kind] != PRODUCTS[word]:
                raise _refusal(word, f"whose {kind} are {measures[kind]}")


def _refusal(word: str, why: str) -> BadInput:
    platform = jax.default_backend()
    # Of the two lower words a platform has one or none, see docs/arithmetic.md.
    others = {"gpu": ("highest", "tf32"), "tpu": ("highest", "bfloat16")}.get(
        platform, ("highest",)
    )
    wanted = " or ".join(repr(other) for other in others if other != word)
    return BadInput(f"--precision: got {word!r} on a {platform}, {why}, wanted {wanted}")


def usual_precision(meter: Meter) -> tuple[str, str]:
    """The default precision of a theorem on a device and, if it is not float64, the reason."""
    measures = worst_measurement("float64", meter("float64", "highest"))
    return (
        ("float32", shortfall_line("float64", measures))
        if shortfalls("float64", measures)
        else ("float64", "")
    )


# The programs ---------------------------------------------------------------------------------


def measure_rounding(precision: str, word: str = "highest", draw: int = 0) -> dict[str, float]:
    """Measure how sums, products and dots round, and the range of the numbers.

    Products of single matrices and of a batch are measured, and the worse of the two counts: a
    device has kernels of its own for a batch, in which sweeps run.
    """
    numbers, eps = np.random.default_rng(draw), float(np.finfo(precision).eps)
    shapes = {"x": 2048, "y": 2048, "d": 16, "m": (16, 64)}  # between 1 and 2: no exponent changes
    inputs = {name: numbers.uniform(1, 2, shape) for name, shape in shapes.items()}
    inputs |= {name: numbers.standard_normal((64, 64)) for name in ("a", "b")}
    powers = np.array(POWERS[precision])
    # Squared on the device, they give the powers: a constant would only be copied.
    inputs["root"] = 10.0 ** (powers / 2)
    inputs = {name: array.astype(precision) for name, array in inputs.items()}

    def program(x: Mapping[str, Any]) -> dict[str, Any]:
        results = {
            "add": x["x"] + x["y"],
            "multiply": x["x"] * x["y"],
            "product": jnp.diag(x["d"]) @ x["m"],  # one product, and zeros, in each sum
            "dot": x["a"] @ x["b"],
            "batched_product": jax.vmap(jnp.diag)(_batch(x["d"])) @ _batch(x["m"]),
            "batched_dot": _batch(x["a"]) @ _batch(x["b"]),
            "reach": x["root"] * x["root"],
        }
        if precision == "float32":
            images, kernels = x["d"][:, None, None], x["m"][0][:, None, None]
            results["convolution"] = jax.lax.conv(images, kernels, (1,), "VALID")[:, :, 0]
        return results

    got, x = _run_program(program, inputs, precision, word), _as_longdouble(inputs)
    wanted = {
        "add": x["x"] + x["y"],
        "multiply": x["x"] * x["y"],
        "product": x["d"][:, None] * x["m"],
        "batched_product": _batch(x["d"])[:, :, None] * _batch(x["m"]),
        "convolution": x["d"][:, None] * x["m"][0],
    }
    errors = {
        name: float(np.max(np.abs(got[name] / exact - 1))) / eps
        for name, exact in wanted.items()
        if name in got
    }
    errors["product"] = float(np.max([errors["product"], errors.pop("batched_product")]))
    dots = {"dot": (x["a"], x["b"]), "batched_dot": (_batch(x["a"]), _batch(x["b"]))}
    of_dots = [np.abs(got[name] - a @ b) / (abs(a) @ abs(b)) for name, (a, b) in dots.items()]
    errors["dot"] = float(np.max([np.max(each) for each in of_dots])) / eps
    # 1e-3: is it this number, and not 0 or infinity? How exact it is, the other errors say.
    there = powers[np.abs(got["reach"].astype(float) / 10.0**powers - 1) < 1e-3]
    ends = {"smallest": 10.0 ** min([0, *there]), "largest": 10.0 ** max([0, *there])}
    return _round_digits(errors | ends)


def _batch(array: Any) -> Any:
    """An array, and rolled ones: a batch of several that are not the same."""
    roll = np.roll if isinstance(array, np.ndarray) else jnp.roll
    return (np if roll is np.roll else jnp).stack([roll(array, n, 0) for n in range(BATCH)])


BATCH = 3
"""Matrices of a batch."""
POWERS = {"float64": [-300, -200, -100, -37, 38, 100, 200, 300], "float32": [-37, 38]}
"""Powers of ten within the range of each precision: the ends of float32's, and of float64's."""


def measure_decompositions(precision: str, draw: int = 0) -> dict[str, float]:
    """Measure how far decompositions are from their matrices, and factors from orthogonal."""
    numbers, eps = np.random.default_rng(draw), float(np.finfo(precision).eps)
    inputs = {str(n): numbers.standard_normal((MATRICES, n, n)).astype(precision) for n in SIZES}

    def program(matrices: Mapping[str, Any]) -> dict[str, Any]:
        return {
            size: {
                "svd": jax.vmap(linalg.svd)(a),
                # A sum is symmetric to the bit, whatever the device rounds.
                "eigh": jax.vmap(linalg.eigh)(a + jnp.swapaxes(a, 1, 2)),
                "qr": jax.vmap(linalg.orthogonal_factor)(a),
            }
            for size, a in matrices.items()
        }

    errors_of: dict[str, float] = {}
    for size, got in _run_program(program, inputs, precision).items():
        a = _as_longdouble(inputs)[size]
        (U, values, V_T), (eigenvalues, V), Q = got["svd"], got["eigh"], got["qr"]
        each = {
            "svd": (a, (U * values[:, None, :]) @ V_T, (U, _transpose(V_T))),
            "eigh": (a + _transpose(a), (V * eigenvalues[:, None, :]) @ _transpose(V), (V,)),
            "qr": (a, Q @ (_transpose(Q) @ a), (Q,)),
        }
        for name, (whole, again, factors) in each.items():
            off = [_transpose(q) @ q - np.eye(q.shape[-1]) for q in factors]
            two = {name: [_norm(again - whole) / _norm(whole)]}
            two[f"orthogonal_{name}"] = [_norm(gram_error) for gram_error in off]
            for measure, errors in two.items():
                errors_of[measure] = max(errors_of.get(measure, 0.0), float(np.max(errors)) / eps)
    return _round_digits(errors_of)


def _run_program(program: Any, inputs: Any, precision: str, word: str = "highest") -> Any:
    """Run a program that is compiled as those of theorems are."""
    with scope(precision, word):
        with ONE_AT_A_TIME:  # sweeps are traced beside it
            lowered = jax.jit(program).lower(inputs)
        return _as_longdouble(
            jax.device_get(lowered.compile(compiler_options=unoptimized_options())(inputs))
        )


def _as_longdouble(arrays: Any) -> Any:
    """Arrays in the longest floating-point numbers of this machine."""
    # On x86 these have 64 bits of mantissa: reference sums in float64 would round like what they
    # judge.
    return jax.tree.map(lambda array: np.asarray(array).astype(np.longdouble), arrays)


def _transpose(matrices: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrices, 1, 2)


def _norm(matrices: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(matrices**2, (1, 2)))


def _round_digits(numbers: Mapping[str, float]) -> dict[str, float]:
    """Round to three digits: more would differ from one release to the next."""
    return {name: float(f"{value:.3g}") for name, value in numbers.items()}
