"""Formulas in pictures, each set once: Matplotlib sets them anew for every layout and picture.

It keeps them for one renderer, and a layout makes a renderer of its own; a formula takes some ten
milliseconds, most of it in reading its TeX.
"""

import functools
from collections.abc import Hashable
from typing import Any

import matplotlib as mpl
from matplotlib.mathtext import MathTextParser


def share() -> None:
    """Let all renderers of this process share what they set, if Matplotlib has it so."""
    one_by_one = getattr(getattr(MathTextParser, "_parse_cached", None), "__wrapped__", None)
    if one_by_one is None or not hasattr(MathTextParser("agg"), "_output_type"):
        return
    settings: Any = mpl.rcParams
    fonts = [name for name in settings if name.startswith(("mathtext.", "font."))]

    @functools.lru_cache(10_000)
    def kept(output: str, settings_of_fonts: str, *how: Hashable) -> Any:
        return one_by_one(parsers[output], *how)

    def parse(self: Any, *how: Hashable) -> Any:
        return kept(self._output_type, str([settings[name] for name in fonts]), *how)

    made: list[Any] = [MathTextParser("agg"), MathTextParser("path")]
    parsers = {each._output_type: each for each in made}
    setattr(MathTextParser, "_parse_cached", parse)  # noqa: B010  (it is not declared)
