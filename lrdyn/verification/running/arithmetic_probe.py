"""Measuring the arithmetic of the device at hand, as programs of theorems run on it."""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.backend import get_backend

from lrdyn.core import linalg
from lrdyn.verification.judging.rounding import (
    ADMITTED,
    BLOCKS,
    PRODUCTS,
    Measured,
    Meter,
    admitted_on_trial,
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


class NoSuchProducts(BadInput):
    """A device does not have the products that were asked for, and computes others or none."""


def measure_arithmetic(
    precision: str,
    word: str = "highest",
    programs: KeptPrograms | None = None,
    on_trial: Sequence[tuple[int, int]] = (),
) -> Measured:
    """The arithmetic of the first device: once in a process, or once where programs are kept.

    Args:
        precision: ``float64`` or ``float32``.
        word: of ``--precision``.
        programs: where compiled programs and these numbers are kept, for other processes.
        on_trial: rows and columns of what algorithms on trial decompose, which is measured too.

    Raises:
        NoSuchProducts: the platform has none of that word.
    """
    word = word if precision == "float32" else "highest"
    if on_trial:
        usual = measure_arithmetic(precision, word, programs)
        return {**usual, **measure_on_trial(precision, on_trial)}
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

    def measure(
        precision: str, word: str, on_trial: Sequence[tuple[int, int]] = ()
    ) -> list[Measured]:
        more = {"on_trial": on_trial} if on_trial else {}
        return [measure_arithmetic(precision, word, programs=programs, **more)]

    return measure


def check_products(word: str, meter: Meter, *, convolutions: bool = True) -> None:
    """Refuse a word of ``--precision`` by which a device computes something else.

    Args:
        word: of ``--precision``.
        meter: measures the devices.
        convolutions: whether theirs count. A word permits a library an arithmetic and does not
            oblige it: cuDNN takes whatever kernel it finds the fastest.

    Raises:
        NoSuchProducts: it does.
    """
    if word == "highest":
        return
    for measures in meter("float32", word):
        for kind in ("products", "convolutions") if convolutions else ("products",):
            if measures[kind] != PRODUCTS[word]:
                raise _refusal(word, f"whose {kind} are {measures[kind]}")


def _refusal(word: str, why: str) -> NoSuchProducts:
    platform = jax.default_backend()
    # Of the two lower words a platform has one or none, see docs/arithmetic.md.
    others = {"gpu": ("highest", "tf32"), "tpu": ("highest", "bfloat16")}.get(
        platform, ("highest",)
    )
    wanted = " or ".join(repr(other) for other in others if other != word)
    return NoSuchProducts(f"--precision: got {word!r} on a {platform}, {why}, wanted {wanted}")


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
    # Between 1 and 2: no exponent changes. Libraries have other kernels, of another arithmetic, for
    # what is much smaller than the tiles of their products.
    shapes = {"x": 2048, "y": 2048, "d": WIDE, "m": (WIDE, WIDE), "kernels": (CHANNELS, CHANNELS)}
    shapes["images"] = (IMAGES, 8, 8)
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
            # One product, and zeros, in each sum: one channel of an image is not 0, and of a kernel
            # its middle.
            channel = jnp.eye(IMAGES, CHANNELS, dtype=x["images"].dtype)[:, :, None, None]
            middle = jnp.zeros((3, 3), x["images"].dtype).at[1, 1].set(1)
            kernels = x["kernels"][:, :, None, None] * middle[None, None]
            images = channel * x["images"][:, None]
            results["convolution"] = jax.lax.conv(images, kernels, (1, 1), "SAME")
        return results

    got, x = _run_program(program, inputs, precision, word), _as_longdouble(inputs)
    wanted = {
        "add": x["x"] + x["y"],
        "multiply": x["x"] * x["y"],
        "product": x["d"][:, None] * x["m"],
        "batched_product": _batch(x["d"])[:, :, None] * _batch(x["m"]),
        "convolution": x["images"][:, None] * x["kernels"].T[:IMAGES, :, None, None],
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


WIDE, CHANNELS, IMAGES = 128, 64, 4
"""Rows and columns of the products that are measured; channels of convolutions, and images."""
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


def measure_on_trial(
    precision: str, shapes: Sequence[tuple[int, int]], draw: int = 0
) -> dict[str, float]:
    """Measure the SVDs that algorithms on trial take, at the shapes that they take them of.

    A batch of matrices is decomposed, and the first by itself: Gaussian ones, ones of half of the
    rank, ones with two singular values, of which each is several times there, and block-diagonal
    ones. The error is the larger of ``||A - U S V^T||_F / ||A||_F`` and of ``||Q^T Q - I||_2``:
    no norm of factors that grows with the number of their columns, for each is a direction.

    Args:
        precision: ``float64`` or ``float32``.
        shapes: rows and columns.
        draw: of the random matrices.

    Returns:
        The error in eps, where it is the largest share of what is admitted; that; and the largest
        entry beyond its block, over all shapes.

    Example:
        >>> sorted(measure_on_trial("float32", [(3, 2)]))
        ['admitted_on_device', 'blocks_on_device', 'svd_on_device']
    """
    eps, inputs = float(np.finfo(precision).eps), {}
    for m, n in shapes:
        several = _matrices_on_trial(np.random.default_rng(draw), m, n)
        inputs[f"{m} {n}"] = several.astype(precision)

    def program(matrices: Mapping[str, Any]) -> dict[str, Any]:
        together, alone = jax.vmap(linalg.svd_on_device), linalg.svd_on_device
        return {shape: (together(a), alone(a[0])) for shape, a in matrices.items()}

    numbers = []
    for shape, (together, alone) in _run_program(program, inputs, precision).items():
        a, (m, n) = _as_longdouble(inputs)[shape], map(int, shape.split())
        both = [np.concatenate([x, y[None]]) for x, y in zip(together, alone, strict=True)]
        U, V = both[0], _transpose(both[2])
        a = np.concatenate([a, a[:1]])
        off = [_norm(a - (U * both[1][:, None, :]) @ both[2]) / _norm(a)]
        grams = [_transpose(q) @ q - np.eye(q.shape[-1]) for q in (U, V)]
        off += [np.linalg.norm(gram.astype(float), 2, (1, 2)) for gram in grams]
        # A NaN of the device is the largest error of all.
        error = float(np.max(np.nan_to_num(np.concatenate(off), nan=np.inf))) / eps
        blocks = slice(3 * MATRICES, 4 * MATRICES)
        numbers.append((error, admitted_on_trial(m, n), _beyond_blocks(U[blocks], V[blocks]) / eps))
    error, admitted, _ = max(numbers, key=lambda each: each[0] / each[1])
    beyond = max(each[2] for each in numbers)
    return _round_digits({linalg.ON_TRIAL: error, ADMITTED: admitted, BLOCKS: beyond})


def _matrices_on_trial(numbers: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Matrices of four kinds, MATRICES of each."""
    rank = min(m, n)
    half = max(1, rank // 2)
    gaussian = numbers.standard_normal((MATRICES, m, n))
    deficient = gaussian[:, :, :half] @ numbers.standard_normal((MATRICES, half, n))
    left, right = (np.linalg.qr(numbers.standard_normal((MATRICES, k, k)))[0] for k in (m, n))
    values = np.repeat([2.0, 1.0], [half, rank - half])
    tied = (left[:, :, :rank] * values) @ right[:, :rank]
    blocks = np.zeros_like(gaussian)
    blocks[:, :half, :half] = gaussian[:, :half, :half]
    blocks[:, half:rank, half:rank] = np.eye(rank - half)
    return np.concatenate([gaussian, deficient, tied, blocks])


def _beyond_blocks(*factors: np.ndarray) -> float:
    """Largest entry of singular vectors beyond the block that holds most of each."""
    largest = 0.0
    for vectors in factors:
        half = max(1, vectors.shape[-1] // 2)
        parts = np.split(np.abs(vectors), [half], axis=1)
        within, beyond = (np.max(part, 1, initial=0.0) for part in parts)
        largest = max(largest, float(np.max(np.minimum(within, beyond))))
    return largest


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
