"""Formulas in pictures, each set once: Matplotlib sets them anew for every picture and every layout.

It keeps them for one renderer, and a layout makes a renderer of its own; a formula takes some ten
milliseconds, most of it in reading its TeX.
"""

import functools
from typing import Any

from matplotlib import mathtext, rcParams


def share() -> None:
    """Let all renderers of this process share what they set, if Matplotlib has it so."""
    parser = mathtext.MathTextParser
    cached = getattr(parser, "_parse_cached", None)
    one_by_one = getattr(cached, "__wrapped__", None)
    if one_by_one is None or not hasattr(parser("agg"), "_output_type"):
        return
    parsers = {output: parser(output) for output in ("agg", "path")}
    of_output = {each._output_type: each for each in parsers.values()}

    @functools.lru_cache(10_000)
    def parsed(output: str, fonts: tuple[Any, ...], how: tuple[Any, ...]) -> Any:
        return one_by_one(of_output[output], *how)

    def _parse_cached(self: Any, *how: Any) -> Any:
        fonts = tuple(str(rcParams[name]) for name in FONTS)
        return parsed(self._output_type, fonts, how)

    parser._parse_cached = _parse_cached


FONTS = [name for name in rcParams if name.startswith(("mathtext.", "font."))]
"""Settings that say in which fonts a formula is set."""
