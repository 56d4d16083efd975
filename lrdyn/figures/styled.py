"""Figures and axes that keep the house's style, whatever is set when something is added to them."""

from __future__ import annotations

import base64
import functools
import inspect
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import image, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrdyn.figures import plotting

SCREEN = 96
"""Pixels of an inch of a page in a browser."""


class StyledFigure(Figure):
    """A figure that is drawn and saved in the style in which it was made."""

    def __init__(self, **how: Any):
        super().__init__(**how)
        self.with_tex = bool(rcParams["text.usetex"])
        self.shared_keys: list[plotting.SharedKey] = []
        """Keys that panels need beside their own when they stand alone."""

    def draw(self, renderer: Any) -> None:
        """Draw it, in its style."""
        with plotting.house_style(tex=self.with_tex):
            super().draw(renderer)

    def _ipython_display_(self) -> None:
        """Show it in a notebook, without pyplot: a PNG with two dots a pixel, for sharp screens.

        Where pyplot is loaded IPython would draw it a second time, in other dots.
        """
        from IPython.display import display

        dots = self.get_dpi()
        self.set_dpi(2 * SCREEN)
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        picture = io.BytesIO()
        image.imsave(picture, np.asarray(canvas.buffer_rgba()), format="png", **plotting.LIGHTLY)
        self.set_dpi(dots)
        width, height = (round(SCREEN * inches) for inches in self.get_size_inches())
        shown = {
            "image/png": base64.b64encode(picture.getvalue()).decode(),
            "text/plain": repr(self),
        }
        display(shown, metadata={"image/png": {"width": width, "height": height}}, raw=True)

    def savefig(self, fname: Any, **how: Any) -> None:
        """Save it as Matplotlib does, in its style; :func:`lrdyn.figures.save` does more."""
        with plotting.house_style(tex=self.with_tex):
            super().savefig(fname, **how)


class StyledAxes(Axes):
    """Axes to which each line, text and key is added in the style of their figure."""


def _in_its_style(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that adds to a figure, under the settings of the style.

    Matplotlib takes widths and fonts of what is added from the settings of that moment: a panel
    that was made in the style would get its curves and its key in another.
    """

    @functools.wraps(method)
    def add(self: Axes | Figure, *args: Any, **how: Any) -> Any:
        figure = self.get_figure(root=True)
        with plotting.house_style(tex=isinstance(figure, StyledFigure) and figure.with_tex):
            return method(self, *args, **how)

    return add


# What Matplotlib defines in this class is what draws. Limits stand in the one below it, and so does
# what makes ticks at once.
TICKS = ("set_xticks", "set_yticks", "set_xticklabels", "set_yticklabels", "grid")
_ADDING = [
    name
    for name, method in vars(Axes).items()
    if inspect.isfunction(method) and not name.startswith(("_", "get_")) and name != "set"
]
for _class, _names in (
    (StyledAxes, [*_ADDING, *TICKS]),
    (StyledFigure, ["legend", "text", "suptitle", "supxlabel", "supylabel", "colorbar"]),
):
    for _name in _names:
        setattr(_class, _name, _in_its_style(getattr(_class, _name)))
