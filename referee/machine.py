"""The BLAS of a run beside the one here: another kernel rounds otherwise."""

from collections.abc import Iterable, Mapping
from typing import Any

import scipy.linalg.lapack  # noqa: F401  (a LAPACK of its own, beside NumPy's)
from threadpoolctl import threadpool_info


def libraries_here() -> list[dict[str, Any]]:
    """The BLAS libraries of this process."""
    return [
        {
            "name": library["internal_api"],
            "version": library["version"],
            "architecture": library.get("architecture"),
        }
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]


def described(libraries: Iterable[Mapping[str, Any]]) -> str:
    """Names, versions and kernels, each once; threads are left out, by which signs do not move."""
    texts = {
        " ".join(str(library[k]) for k in ("name", "version", "architecture") if library.get(k))
        for library in libraries
    }
    return ", ".join(sorted(texts))


def another_blas(environment: Mapping[str, Any]) -> str:
    """The BLAS of a run and that of this process; empty if they are the same, or nobody knows."""
    libraries = environment.get("blas") or ()  # verdicts of earlier releases do not name it
    run, here = described(libraries), described(libraries_here())
    if not run or run == here:
        return ""
    kernels = {library.get("architecture") for library in libraries} - {None}
    same = f"; OPENBLAS_CORETYPE={kernels.pop()} chooses its kernel" if len(kernels) == 1 else ""
    return f"the run had another BLAS: {run}, here {here}{same}"
