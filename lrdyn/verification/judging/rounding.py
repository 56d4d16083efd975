"""The arithmetic behind a precision: its name, its expected errors, and what was measured.

A dtype says what an array is called. What a program does with it is another matter: a product of
matrices in float32 may be one of TF32 or of bfloat16, a float64 may be a pair of float32, and a
decomposition may stop at 1e-6. Tolerances are those of the name. So each device is measured once,
in each precision (:mod:`lrdyn.verification.running.arithmetic_probe`), and compared with
:data:`REFERENCE`. What is :data:`WORSE` leaves that precision out of a verdict: it would be the
device that is judged, not the theorem.

Errors are in units of machine epsilon of the precision, 2^-52 or 2^-23:

=================== ==============================================================================
``add``             largest relative error of x + y, ``multiply`` of x y: .5 cannot be avoided
``product``         the same of one product within a product of matrices: it tells the arithmetic
``convolution``     the same within a convolution (float32 alone)
``dot``             error of a sum of 64 products over the sum of their absolute values
``smallest``        power of ten that is still told from 0; ``largest``: from infinity
``svd``, ``eigh``,  ||A - U S V^T||_F / ||A||_F, the same of V D V^T and of Q (Q^T A): largest of
``qr``              several Gaussian matrices of three sizes
``orthogonal_...``  ||Q^T Q - I||_F of their factors
=================== ==============================================================================

On an accelerator the host decomposes (:mod:`lrdyn.core.linalg`), and these are its errors. What an
algorithm on trial decomposes stays on the device: :data:`ON_TRIAL`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from lrdyn.core.linalg import ON_TRIAL
from lrdyn.verification.stating.claims import tolerance

PRECISIONS = ("float64", "float32")

MATMULS: dict[str, str] = {
    "highest": "highest",
    "tf32": "TF32_TF32_F32",
    "bfloat16": "BF16_BF16_F32",
}
"""Word of ``--precision`` -> JAX's: an algorithm of dots is the same on each platform, or refused.

Parameters and the state of an optimiser stay as they are, and so does float64, whose products are
always ``highest``."""
PRODUCTS: Mapping[str, str] = {"tf32": "TF32", "bfloat16": "bfloat16"}
"""Word of ``--precision`` -> what its products must be measured to be."""

REASON = "arithmetic of this device"
"""Why a precision is left out of a verdict."""
WORSE = 8.0
"""An error of more than this many times the reference shows another arithmetic or algorithm."""
REFERENCE: Mapping[str, Mapping[str, float]] = {
    "float64": {
        "add": 0.5,
        "multiply": 0.5,
        "product": 0.5,
        "dot": 2.4,
        "smallest": 1e-300,
        "largest": 1e300,
        "svd": 22.0,
        "orthogonal_svd": 62.0,
        "eigh": 12.0,
        "orthogonal_eigh": 59.0,
        "qr": 3.8,
        "orthogonal_qr": 22.0,
    },
    "float32": {
        "add": 0.5,
        "multiply": 0.5,
        "product": 0.5,
        "convolution": 0.5,
        "dot": 2.2,
        "smallest": 1e-37,
        "largest": 1e38,
        "svd": 10.0,
        "orthogonal_svd": 55.0,
        "eigh": 11.0,
        "orthogonal_eigh": 49.0,
        "qr": 4.4,
        "orthogonal_qr": 23.0,
    },
}
"""The worst of XLA and LAPACK on a CPU: ``python -m lrdyn.commands.arithmetic 100``."""
ADMITTED = "admitted_on_device"
"""Number beside that of :data:`lrdyn.core.linalg.ON_TRIAL`: what :func:`admitted_on_trial` says."""
BLOCKS = "blocks_on_device"
"""Number beside it: largest entry beyond its block of a singular vector of a block-diagonal
matrix."""
GOVERNED = frozenset({"product", "dot", "convolution"})
"""What a word of ``--precision`` decides, and what is therefore no fault of the device."""

LADDER: Mapping[str, Mapping[str, float]] = {
    "float64": {"float64": -53.0, "pairs of float32": -44.0, "float32": -22.0},
    "float32": {
        "float32": -24.0,
        "bfloat16 in six passes": -22.0,
        "TF32 in three passes": -19.0,
        "bfloat16 in three passes": -14.0,
        "TF32": -10.0,
        "bfloat16": -7.0,
    },
}
"""Precision -> what a product can be -> log2 of the largest relative error that it can have."""

Measured = Mapping[str, Any]
"""What was measured of a device in one precision: words, and the numbers of the table above."""
Meter = Callable[..., Sequence[Measured]]
"""Measures each kind of device that computes, in a precision with a word of ``--precision``; and,
with ``on_trial=``, SVDs of these rows and columns."""


@contextmanager
def scope(precision: str, word: str = "highest") -> Iterator[None]:
    """Trace programs inside with a precision, and with products of matrices named in MATMULS.

    Example:
        >>> import jax.numpy as jnp
        >>> with scope("float32"):
        ...     str(jnp.ones(1).dtype)
        'float32'
    """
    # On a CPU "highest" is what it does anyway; a GPU would take TF32, and a TPU bfloat16.
    matmuls = MATMULS[word if precision == "float32" else "highest"]
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision(matmuls):
        yield


def admitted_on_trial(rows: int, columns: int) -> float:
    """Error in eps that an SVD on trial may have: the tolerance of one step of the run.

    An identity admits ``8 eps (sqrt(n (1 + steps)) + steps / 2)`` of a run with dot products of
    length n, times its condition (:func:`lrdyn.verification.stating.claims.tolerance`). An SVD that
    is K eps off disturbs the run as a step does whose rounding is K eps, and errors of refreshes
    add like those of steps. With T steps from one refresh to the next no more than a T-th of the
    steps is theirs, and the tolerance of the others is left to the rounding of the run.

    Example:
        >>> admitted_on_trial(8, 6)
        36.0
    """
    size = max(rows, columns)
    return tolerance("identity", "float64", size=size) / float(np.finfo("float64").eps)


def name_of(precision: str, error: float) -> str:
    """What arithmetic a product has, by its largest relative error in units of epsilon.

    Example:
        >>> name_of("float32", 0.5), name_of("float32", 6730.0), name_of("float64", 15.8)
        ('float32', 'TF32', 'pairs of float32')
    """
    bits = {"float64": 52, "float32": 23}[precision]
    rungs = LADDER[precision].items()
    return next((name for name, most in rungs if error <= 2.0 ** (most + bits)), "unknown")


def shortfalls(precision: str, measured: Measured) -> dict[str, float]:
    """The measured numbers that are more than WORSE times the reference, with that ratio.

    Of products of a precision that was asked for by its word nothing is expected.

    Example:
        >>> shortfalls("float32", {"matmuls": "highest", "add": 0.5, "product": 6730.0})
        {'product': 13460.0}
        >>> shortfalls("float32", {"matmuls": "tf32", "add": 0.5, "product": 6730.0})
        {}
    """
    free = GOVERNED if measured["matmuls"] != "highest" else ()
    ratios = {}
    for name, usual in REFERENCE[precision].items():
        if name in free or name not in measured:
            continue
        got = measured[name]
        # The largest number of a precision is worse when it is smaller, all others when they are
        # larger.
        times = (usual / got if got else float("inf")) if name == "largest" else got / usual
        # Not ``times > WORSE``, which a NaN would pass: a device that returns one is no better.
        if not times <= WORSE:
            ratios[name] = times
    return ratios


def shortfalls_on_trial(measured: Measured, *, blocks: bool = False) -> dict[str, float]:
    """The same of the SVDs of algorithms on trial, which some scenarios rest on and others do not.

    Args:
        measured: what was measured of the device.
        blocks: whether vectors of a block-diagonal matrix must stay in its blocks, to the bit.

    Example:
        >>> shortfalls_on_trial({ON_TRIAL: 45.0, ADMITTED: 18.0, BLOCKS: 1.0})
        {'svd_on_device': 2.5}
        >>> shortfalls_on_trial({})
        {}
    """
    ratios = {}
    if ON_TRIAL in measured and not measured[ON_TRIAL] <= measured[ADMITTED]:
        ratios[ON_TRIAL] = measured[ON_TRIAL] / measured[ADMITTED]
    if blocks and not measured.get(BLOCKS, 0.0) <= 0.0:
        ratios[BLOCKS] = float("inf")
    return ratios


def worst_measurement(precision: str, of_kinds: Sequence[Measured]) -> Measured:
    """The measurement, among several kinds of devices, that is furthest from the reference.

    Example:
        >>> kinds = [{"matmuls": "highest", "add": add} for add in (0.5, 16.0)]
        >>> worst_measurement("float64", kinds)["add"]
        16.0
    """

    def worst(kind: Measured) -> float:
        short = shortfalls(precision, kind) | shortfalls_on_trial(kind, blocks=True)
        return max(short.values(), default=0.0)

    return max(of_kinds, key=worst)


def unfit_precisions(arithmetic: Mapping[str, Measured]) -> list[str]:
    """Precisions that are left out of a verdict: their arithmetic is worse than their name says."""
    return [
        precision for precision, measured in arithmetic.items() if shortfalls(precision, measured)
    ]


def short_precisions(arithmetic: Mapping[str, Measured]) -> list[str]:
    """Precisions that are left out of a verdict, or of the scenarios that decompose on trial."""
    return [
        precision
        for precision, measured in arithmetic.items()
        if shortfalls(precision, measured) or shortfalls_on_trial(measured, blocks=True)
    ]


def shortfall_line(precision: str, measured: Measured) -> str:
    """Say in a line what is worse than the reference, or than is admitted on trial.

    Example:
        >>> measured = {"matmuls": "highest", "products": "pairs of float32", "add": 16.0}
        >>> shortfall_line("float64", measured)
        'float64: arithmetic of this device: products are pairs of float32; add 16 eps of 0.5'
    """
    ends = {"smallest": "smallest number", "largest": "largest number"}
    usual = {**REFERENCE[precision], ON_TRIAL: measured.get(ADMITTED), BLOCKS: 0.0}
    short = shortfalls(precision, measured) | shortfalls_on_trial(measured, blocks=True)
    each = [
        f"{ends.get(name, name)} {measured[name]:.3g}{'' if name in ends else ' eps'} "
        f"of {usual[name]:.3g}"
        for name in short
    ]
    products = measured.get("products", precision)
    first = [] if products == precision else [f"products are {products}"]
    return f"{precision}: {REASON}: {'; '.join([*first, *each])}"
