"""Drawing: functions take data and ``ax``, and return ``ax``; matplotlib loads on first use."""

from __future__ import annotations

import contextlib
import shutil
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrdyn.core import checks
from lrdyn.core.show import shortened
from lrdyn.system import whole_files
from lrdyn.verification.stating.fields import SIZE

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    Panels = Sequence[Axes] | np.ndarray


STYLE = Path(__file__).with_name("lrdyn.mplstyle")
BLUE, ORANGE, GREEN, PINK, BLACK, GREY = SHADES = (
    "#006BA8",
    "#D55E00",
    "#1DB386",
    "#E8A8CC",
    "#000000",
    "#4A4A4A",
)
"""Hues of Okabe and Ito, of lightnesses that stay apart in grey print."""
# Three shades of one hue that stay apart in grey print as well.
BLUES, ORANGES = ("#003F66", "#0072B2", "#56B4E9"), ("#F5C04A", "#D55E00", "#8A3800")
DASHED = (0, (4, 1.5))
OPEN: dict[str, Any] = {"ls": "none", "marker": "o", "mfc": "white", "mew": 0.8}
"""Open circles; their colour is ``mec``."""
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0}
"""A legend to the right of its axis."""
TEXT_WIDTH = 7.0  # inches
UNDATED: dict[str, Any] = {"CreationDate": None}
"""What a PDF says of itself: equal figures give equal files."""
LIGHTLY: dict[str, Any] = {"pil_kwargs": {"compress_level": 3}}
"""How a PNG is compressed: a fraction of the default's time, a few kB more."""


WIDTHS = {"column": 3.25, "text": TEXT_WIDTH}
"""Inches of one column of a page of two, and of its text."""
HOUSE = "lrdyn"
"""Value of ``svg.hashsalt`` in the style, by which it is known: Matplotlib takes no settings of
somebody's own."""


def style(width: float | int | str = "text", *, tex: bool = False) -> AbstractContextManager[None]:
    r"""The style of this package, for the length of a ``with`` block.

    The settings of the caller are neither used inside nor changed after. What is drawn by
    :func:`panels` has this style outside of a block, too, at the width of the text.

    Args:
        width: of :func:`panels`: ``"column"`` (3.25 inches), ``"text"`` (7 inches), or inches.
        tex: whether LaTeX sets all text, in its own fonts; it takes a second or more a picture.
            Text is then LaTeX: ``"50 \\%"``, ``"a\\_1"``.

    Raises:
        ValueError: the width is none, or LaTeX is not installed.

    Example:
        >>> import matplotlib
        >>> size = matplotlib.rcParams["font.size"]
        >>> with style(width="column"):
        ...     figure, _ = panels(["loss"])
        ...     matplotlib.rcParams["font.size"], float(figure.get_size_inches()[0])
        (8.0, 3.25)
        >>> matplotlib.rcParams["font.size"] == size
        True
    """
    import matplotlib.style

    settings: dict[str, Any] = {"figure.figsize": (inches_of(width), 2.4)}
    if tex:
        if absent := [program for program in ("latex", "dvipng") if shutil.which(program) is None]:
            raise ValueError(
                f"tex: got True, wanted {' and '.join(absent)}, which is not installed"
            )
        settings |= {"text.usetex": True, "font.family": "serif"}
    return matplotlib.style.context([STYLE, settings], after_reset=True)


def inches_of(width: float | int | str) -> float:
    """Inches of a width that is given by a word or as a number.

    Example:
        >>> inches_of("column"), inches_of(5)
        (3.25, 5.0)
        >>> inches_of("page")
        Traceback (most recent call last):
        ValueError: width: got 'page', wanted 'column', 'text' or inches from 1 to 50
    """
    if isinstance(width, str) and width in WIDTHS:
        return WIDTHS[width]
    # Below an inch no axis is left beside its labels.
    is_number = isinstance(width, int | float | np.number) and not isinstance(width, bool)
    if is_number and 1 <= float(width) <= 50:
        return float(width)
    raise ValueError(f"width: got {width!r}, wanted 'column', 'text' or inches from 1 to 50")


def house_style(*, tex: bool | None = None) -> AbstractContextManager[None]:
    """The style that is set, if it is the one of this package; else that one.

    Args:
        tex: whether LaTeX must set the text; None for what is set.
    """
    from matplotlib import rcParams

    is_set = rcParams["svg.hashsalt"] == HOUSE
    if is_set and tex in (None, bool(rcParams["text.usetex"])):
        return contextlib.nullcontext()
    return style(tex=bool(tex))


class SharedKey(NamedTuple):
    """A key that several panels of a figure need."""

    entries: Sequence[Any]
    """What has a label."""
    panels: Sequence[Axes]
    """Whose curves it explains."""


def blank_figure(height: float) -> Figure:
    """An empty figure of the width of the style; without pyplot no window opens."""
    from matplotlib import rcParams

    with house_style():
        from lrdyn.figures.styled import StyledFigure

        size = rcParams["figure.figsize"][0], height
        return StyledFigure(figsize=size, layout="constrained")


def panels(
    titles: Sequence[str], *, height: float | int = 2.4, rows: int = 1, letters: bool = True
) -> tuple[Figure, np.ndarray]:
    """Make a figure with a panel for each title, row after row, in the style of this package.

    Args:
        titles: one for each panel, which gets its letter in front.
        height: of the figure, in inches.
        rows: how many rows of panels.
        letters: whether panels have letters; one that is alone in a column may need none.

    Returns:
        The figure, as wide as :func:`style` says (7 inches outside of its block), and an array of
        its axes, one for each title.

    Raises:
        ValueError: there is no title, or a number is not positive.

    Example:
        >>> figure, (loss, rank) = panels(["loss", "rank"])
        >>> loss.get_title(loc="left"), float(figure.get_size_inches()[0])
        ('(a) loss', 7.0)
    """
    if isinstance(titles, str):
        raise ValueError(f"titles: got {titles!r}, wanted a list of texts: [{titles!r}]")
    titles = list(titles)
    if not titles or not all(isinstance(title, str) for title in titles):
        raise ValueError(f"titles: got {shortened(repr(titles))}, wanted a text for each panel")
    if not height > 0:
        raise ValueError(f"height: got {height!r}, wanted inches above 0")
    checks.integer("rows", rows)
    with house_style():
        from lrdyn.figures.styled import StyledAxes

        figure, shape = blank_figure(float(height)), (rows, -(-len(titles) // rows))
        axes = figure.subplots(*shape, squeeze=False, subplot_kw={"axes_class": StyledAxes}).ravel()
        for unused in axes[len(titles) :]:
            unused.remove()
        axes = axes[: len(titles)]
        entitle(axes, titles, letters=letters)
    return figure, axes


def draw_panels(
    plots: Mapping[str, Callable[[Axes, xr.Dataset], Any]], dataset: xr.Dataset, **shape: Any
) -> Figure:
    """A figure of :func:`panels`: title of a panel -> what draws it from the numbers."""
    figure, axes = panels(list(plots), **shape)
    for ax, plot in zip(axes, plots.values(), strict=True):
        plot(ax, dataset)
    return figure


LETTERS = string.ascii_lowercase
"""Of the panels of a figure, in their order."""


def entitle(axes: Iterable[Axes], titles: Iterable[str], *, letters: bool = True) -> None:
    """Give each panel its title, behind its letter."""
    for letter, (title, ax) in zip(LETTERS, zip(titles, axes, strict=True), strict=False):
        ax.set_title(f"({letter}) {title}" if letters else title)


def plot_compared(
    ax: Axes,
    x: np.ndarray,
    predicted: np.ndarray,
    measured: np.ndarray,
    *,
    color: str,
    marker: str = "o",
    every: int | tuple[int, int] = 1,
) -> Axes:
    """Draw a prediction as a line and what was measured as open markers on it.

    There is one marker each ``every`` points; ``(start, every)`` staggers coincident curves.

    Args:
        ax: the axes.
        x: abscissae.
        predicted: ordinates of the line.
        measured: ordinates of the markers.
        color: of both.
        marker: shape of the markers.
        every: points from one marker to the next, or the first one and that number.
    """
    ax.plot(x, predicted, color=color, lw=1.0)
    markers = {**OPEN, "marker": marker, "mec": color, "markevery": every}
    ax.plot(x, measured, clip_on=False, zorder=3, **markers)
    return ax


def entry(text: str, color: Any = GREY, **look: Any) -> Line2D:
    """A line of a legend; ``**OPEN`` makes it a marker."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, label=text, **{"lw": 1.0, **look})


def key(
    ax: Axes,
    entries: Sequence[Any] | None = None,
    loc: Any = "best",
    *,
    serves: Panels = (),
    **place: Any,
) -> Axes:
    """Add a legend of these lines, or of all that have a label.

    Args:
        ax: the panel that has it.
        entries: lines, see :func:`entry`; None for what has a label.
        loc: where, as Matplotlib has it; by default where it covers least.
        serves: other panels whose curves it explains: one that stands alone takes the key along.
        place: what else Matplotlib's ``legend`` takes.
    """
    lines = ax.get_legend_handles_labels()[0] if entries is None else entries
    ax.legend(handles=lines, loc=loc, borderaxespad=0.2, labelspacing=0.3, **place)
    if len(serves):
        share_key(ax.get_figure(root=True), lines, serves)
    return ax


def share_key(figure: Any, entries: Sequence[Any], panels: Panels) -> None:
    """Remember lines of a key for panels that need them where they stand alone."""
    from lrdyn.figures.styled import StyledFigure

    if isinstance(figure, StyledFigure):
        figure.shared_keys.append(SharedKey(list(entries), list(panels)))


def common_key(
    figure: Figure,
    entries: Sequence[Any],
    *,
    serves: Sequence[tuple[Sequence[Any], Panels]] | None = None,
    **look: Any,
) -> Figure:
    """Add one key below all panels, in as many columns as fit beside each other.

    Args:
        figure: the figure.
        entries: lines, see :func:`entry`.
        serves: which of the lines explain which panels; all of them every panel by default.
        look: what else Matplotlib's ``legend`` takes.
    """
    with house_style(tex=getattr(figure, "with_tex", False)):
        for rows in range(1, len(entries) + 1):
            columns = -(-len(entries) // rows)
            place = {"loc": "outside lower center", "ncols": columns}
            legend = figure.legend(handles=list(entries), **place, **look)
            # A little less than the figure, or the key would run from edge to edge.
            if legend.get_window_extent().width <= 0.95 * figure.bbox.width or columns == 1:
                break
            legend.remove()
    for lines, panels in [(entries, figure.axes)] if serves is None else serves:
        share_key(figure, lines, panels)
    return figure


def label_once(axes: Panels, text: str) -> None:
    """Name the ordinate of panels side by side at the first of them.

    The others have the name, too, but it is seen only where one stands alone.
    """
    for ax in axes:
        ax.set_ylabel(text)
        ax.yaxis.label.set_visible(ax is axes[0])


def label_last(axes: Panels, text: str) -> None:
    """Name the abscissa of panels above each other at the last of them, as :func:`label_once`."""
    for ax in axes:
        ax.set_xlabel(text)
        ax.xaxis.label.set_visible(ax is axes[-1])


def label_log_ticks(axis: Axis) -> None:
    r"""Label 1, 2 and 5 of each decade of a log axis that holds fewer than two powers of ten.

    One number on an axis gives its place, but no scale. The limits must be final.

    Example:
        >>> figure, (ax,) = panels(["distance"])
        >>> _ = ax.set(yscale="log", ylim=(4e-4, 3e-3))
        >>> label_log_ticks(ax.yaxis)
        >>> figure.draw_without_rendering()
        >>> len([tick for tick in ax.get_yticks() if 4e-4 <= tick <= 3e-3])
        3
    """
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    low, high = np.log10(sorted(axis.get_view_interval()))
    if np.floor(high) > np.ceil(low):
        return
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    everything = (np.inf, np.inf)  # as wide as an axis may be and have all its ticks labelled
    axis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=everything))
    axis.set_minor_formatter(NullFormatter())


def ink(color: Any) -> str:
    """A colour for text on white: the same hue, dark enough to be read.

    WCAG 2 asks of small text for a contrast of 4.5, (1 + .05) over (luminance + .05).

    Example:
        >>> ink(BLUE) == BLUE.lower(), ink(PINK)
        (True, '#956a82')
    """
    from matplotlib.colors import to_hex, to_rgb

    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    linear *= min(1.0, (1.05 / 4.5 - 0.05) / max(luminance, 1e-9))
    small = 12.92 * linear
    red, green, blue = np.where(small <= 0.04045, small, 1.055 * linear ** (1 / 2.4) - 0.055)
    return to_hex((float(red), float(green), float(blue)))


def label_ends(
    ax: Axes, values: Sequence[float], texts: Sequence[str], colors: Sequence[Any], title: str = ""
) -> Axes:
    """Write labels right of an axis, whose limits are final, at the ends of its curves.

    Args:
        ax: the axes.
        values: ordinates of the ends.
        texts: a label for each.
        colors: a colour for each.
        title: what stands above the labels.
    """
    to_axis = ax.transData + ax.transAxes.inverted()
    heights = np.array([to_axis.transform((ax.get_xlim()[1], value))[1] for value in values])
    for height, text, color in zip(spread(heights, 0.075), texts, colors, strict=True):
        ax.text(1.03, height, text, color=ink(color), transform=ax.transAxes, va="center")
    if title:
        ax.text(1.03, 1.0, title, transform=ax.transAxes, va="bottom")
    return ax


def spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """Move numbers as little as needed to be ``gap`` apart, keeping their order.

    Least squares under ``h_{i+1} - h_i >= gap``: with the gaps subtracted it is isotonic
    regression, solved by pooling adjacent violators.

    Example:
        >>> spread(np.array([0.5, 0.5, 2.0]), 0.1).round(6).tolist()
        [0.45, 0.55, 2.0]
    """
    # Stable: labels of equal height stay in the order of their curves.
    order = np.argsort(heights, kind="stable")
    slots = gap * np.arange(len(heights))
    pools: list[list[float]] = []
    for height in heights[order] - slots:
        pools.append([height])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    moved = np.empty(len(heights))
    moved[order] = np.repeat([np.mean(p) for p in pools], [len(p) for p in pools]) + slots
    return moved


def first_point(results: xr.Dataset, *names: str, of: str = SIZE) -> xr.Dataset:
    """Select the first seed and the first value of every swept flag, except the named axes."""
    return results.isel({name: 0 for name in results[of].dims if name not in names})


FORMATS = ("png", "pdf", "svg", "pgf")
TEX_SYSTEMS = ("xelatex", "lualatex", "pdflatex")
"""One of them measures the text of a PGF."""


def save(
    figure: Figure,
    path: Path | str,
    *,
    formats: Sequence[str] | None = None,
    for_a_look: bool = False,
) -> tuple[Path, ...]:
    r"""Write a figure in several formats, atomically; equal figures give equal files.

    Its label (``figure.set_label``) is what it shows in words: a report takes it from the PNG.

    Args:
        figure: what is written.
        path: where, with or without the suffix of a format: ``"spectrum"``, ``"spectrum.pdf"``.
        formats: by default that of the suffix, and without one PNG and PDF; among ``"png"`` (300
            dots an inch), ``"pdf"``, ``"svg"`` (text as outlines) and ``"pgf"``, which LaTeX reads
            (``\input{spectrum.pgf}``) and sets in the fonts of the paper.
        for_a_look: whether nobody prints it. The PNG then has the dots of a screen, and the PDF
            drawings of the glyphs (Type 3), which look the same and take a sixth of the time of
            the subsets of the fonts (TrueType) that journals ask for.

    Returns:
        The files, in the order of the formats.

    Raises:
        ValueError: a format is unknown, or is ``"pgf"`` and no TeX is installed, or there is no
            such folder.

    Example:
        >>> import tempfile
        >>> figure, (ax,) = panels(["loss"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [file.name for file in save(figure, f"{folder}/loss", formats=("svg",))]
        ['loss.svg']
    """
    from matplotlib import rc_context, rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = Path(path)
    suffix = path.suffix.removeprefix(".")
    if suffix in FORMATS:
        path = path.with_suffix("")
    if formats is None:
        formats = (suffix,) if suffix in FORMATS else ("png", "pdf")
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    check_formats(formats)
    if not path.parent.is_dir():
        raise ValueError(f"path: got {str(path)!r}, wanted one in a folder that exists")
    settings: dict[Any, Any] = {"pdf.fonttype": 3 if for_a_look else 42}
    if "pgf" in formats:  # without rcfonts the text has the fonts of the paper that reads it
        settings |= {"pgf.texsystem": _tex_system(), "pgf.rcfonts": False}
    # Figure.savefig draws everything once more for each file, to see what the layout would be.
    with house_style(tex=getattr(figure, "with_tex", False)), rc_context(settings):
        figure.set_dpi(rcParams["figure.dpi" if for_a_look else "savefig.dpi"])
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        figure.set_layout_engine("none")  # keeps the layout computed above
        files = tuple(path.with_name(f"{path.name}.{name}") for name in formats)
        for name, file in zip(formats, files, strict=True):
            WRITERS[name](figure, canvas, file)
    return files


def check_formats(formats: Sequence[str]) -> None:
    """Refuse what :func:`save` cannot write.

    Raises:
        ValueError: a format is unknown, or is ``"pgf"`` and no TeX is installed.

    Example:
        >>> check_formats(["jpg"])
        Traceback (most recent call last):
        ValueError: formats: got 'jpg', wanted some of png, pdf, svg, pgf
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"formats: got {got}, wanted some of {', '.join(FORMATS)}")
    if "pgf" in formats and not _tex_system():
        systems = ", ".join(TEX_SYSTEMS)
        raise ValueError(f"formats: got 'pgf', wanted a TeX, which measures its text: {systems}")


def _tex_system() -> str:
    return next((name for name in TEX_SYSTEMS if shutil.which(name)), "")


def _write_png(figure: Figure, canvas: Any, path: Path) -> None:
    from matplotlib import image

    label = str(figure.get_label())
    how: dict[str, Any] = {"dpi": figure.dpi, "format": "png", **LIGHTLY}
    described = {"Description": label} if label else None
    with whole_files.replace_file(path) as temporary:
        image.imsave(temporary, np.asarray(canvas.buffer_rgba()), metadata=described, **how)


def _write_pdf(figure: Figure, canvas: Any, path: Path) -> None:
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    with whole_files.replace_file(path) as temporary:
        FigureCanvasPdf(figure).print_pdf(temporary, metadata=UNDATED)


def _write_svg(figure: Figure, canvas: Any, path: Path) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    label = str(figure.get_label())
    described = {"Date": None} | ({"Description": label} if label else {})
    with whole_files.replace_file(path) as temporary:
        FigureCanvasSVG(figure).print_svg(temporary, metadata=described)


def _write_pgf(figure: Figure, canvas: Any, path: Path) -> None:
    from matplotlib.backends.backend_pgf import FigureCanvasPgf

    with whole_files.scratch_folder() as folder:
        # Its pictures have names of its own, by which it reads them.
        FigureCanvasPgf(figure).print_pgf(folder / path.name)
        for made in sorted(folder.iterdir()):
            with whole_files.replace_file(path.with_name(made.name)) as temporary:
                temporary.write_bytes(made.read_bytes())


WRITERS: Mapping[str, Callable[[Figure, Any, Path], None]] = {
    "png": _write_png,
    "pdf": _write_pdf,
    "svg": _write_svg,
    "pgf": _write_pgf,
}
