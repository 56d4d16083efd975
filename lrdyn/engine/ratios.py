"""Residual over tolerance at each point of a sweep, for figures."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from lrdyn.engine.judging import Legs, left_out
from lrdyn.engine.statement import Claim

if TYPE_CHECKING:
    import xarray


def worst_ratio(
    several: Sequence[Claim], legs: Mapping[str, Legs], precision: str
) -> "xarray.DataArray":
    """Largest :func:`ratio_of` over the claims about single cases, at each point of a sweep."""
    ratios = [
        ratio_of(legs[claim.id][precision], precision) for claim in several if not claim.seeds
    ]
    # NaN, a claim that was not judged, gives way to a number.
    return reduce(lambda a, b: a.where(~(b > a.fillna(-1)), b), ratios)


def ratio_of(
    leg: "xarray.Dataset", precision: str, *, everything: bool = False
) -> "xarray.DataArray":
    """Residual / tolerance at each point; tolerance 0 counts as one rounding.

    It is infinite where the residual is lost, and NaN where the case is left out unless
    ``everything`` is asked for.
    """
    limit = leg.tolerance.values
    ratio = leg.residual.values / np.where(limit > 0, limit, np.finfo(precision).eps)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    # In NumPy: xarray takes ten times as long for arrays as small as these.
    judged = everything | (left_out(leg) == "")
    return leg.residual.copy(data=np.where(judged, ratio, np.nan))
