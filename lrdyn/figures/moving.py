"""Figures that move: an animation of a figure over the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.core import checks
from lrdyn.figures import plotting
from lrdyn.system import whole_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".webp", ".gif", ".png")
"""Of files that hold an animation."""


def animate(
    figure: Figure,
    update: Callable[[Any], Any],
    frames: Sequence[Any],
    path: Path | str,
    *,
    milliseconds: int = 80,
    still: int = 3000,
    dpi: int = 150,
) -> Path:
    """Write an animation that repeats, and rests on its last frame; equal figures, equal files.

    Axes keep their place and their limits: draw all that will be seen, then ``update`` moves it.

    Args:
        figure: that of :func:`lrdyn.figures.panels`, for example.
        update: ``update(frame)`` changes what is drawn, as ``line.set_ydata`` does.
        frames: what ``update`` gets, one after the other: the recorded steps, for example.
        path: of the file: ``.webp`` (exact colours, smallest), ``.gif`` (256 colours) or ``.png``
            (exact colours; a viewer that knows no animated PNG shows the first frame).
        milliseconds: from one frame to the next.
        still: milliseconds that the last frame stays.
        dpi: dots an inch; browsers show 96 dots of an inch where a page does not say how wide.

    Returns:
        The file.

    Raises:
        ValueError: there is no frame, the suffix or a number is not as above, or there is no such
            folder.

    Example:
        >>> import tempfile
        >>> figure, (ax,) = plotting.panels(["a point that moves"])
        >>> (line,) = ax.plot([0, 1], [0, 1], "o")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     update = lambda step: line.set_ydata([0, 1 / (1 + step)])
        ...     animate(figure, update, range(3), f"{folder}/point.gif", dpi=40).name
        'point.gif'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    path, frames = Path(path), list(frames)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path: got {path.name!r}, wanted a name with {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"path: got {str(path)!r}, wanted one in a folder that exists")
    if not frames:
        raise ValueError("frames: got none, wanted one or more")
    for name, value in (("milliseconds", milliseconds), ("still", still), ("dpi", dpi)):
        checks.integer(name, value)
    with plotting.house_style(tex=getattr(figure, "with_tex", False)):
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        update(frames[-1])
        canvas.draw()
        figure.set_layout_engine("none")  # keeps the layout of the still: panels do not tremble
        images = []
        for frame in frames:
            update(frame)
            canvas.draw()
            images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    durations = [*[milliseconds] * (len(images) - 1), still]
    how: dict[str, Any] = {"save_all": True, "append_images": images[1:], "loop": 0}
    if path.suffix == ".webp":
        how |= {"lossless": True, "quality": 100, "method": 4}
    with whole_files.replace_file(path) as temporary:
        images[0].save(temporary, path.suffix[1:], duration=durations, **how)
    return path
