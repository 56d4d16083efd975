"""Figures and tables: the runs they are drawn from, the numbers they show, the files they become.

A :class:`Figure` or a :class:`Table` is data, in this repository or in somebody else's. Both are an
:class:`Exhibit`, which names the experiments whose saved results it shows, if its numbers come from
any; they differ only in the files that are made from the numbers.
:func:`lrdyn.figures.rendering.render` makes them, and :func:`lrdyn.commands.figures.main` gives a
list of them a command line.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from lrdyn.figures import tables
from lrdyn.verification.judging.judging import Groups
from lrdyn.verification.judging.rounding import PRECISIONS
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating.fields import SIZE
from lrdyn.verification.stating.statement import Experiment, Study

Results = Mapping[str, Groups]
"""Source -> content of its ``results.nc``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A figure or a table of a paper, see :class:`Figure` and :class:`Table`.

    Args:
        name: short name, ``fig03``; also that of its files.
        title: one line.
        result: what the numbers say, in half a line behind the title; filled as the caption is.
        caption: text, a format string filled from the settings and the attributes of the dataset;
            of at most 120 words, as journals like it. Mathematics between dollar signs is that of
            LaTeX; elsewhere the signs are dropped.
        notes: what a page has room for beside the caption, such as settings; likewise.
        numbers: ``numbers(results, **settings)``: the numbers shown, with named dimensions and
            coordinates, from saved results alone; ``results`` has the names of ``sources``, and is
            empty where there are none: then the function makes or reads the numbers itself.
        sources: ``sources(**settings)``: name -> the run of an experiment; see :func:`run_sources`
            for one alone. By default none.
        files: files that ``numbers`` reads, such as a CSV or a log; numbers are made anew when the
            content of one changes.
        presets: preset -> settings, JSON-able; numbers are made anew when they differ. By default
            the preset ``quick`` without settings.
        needs: package that must be installed -> how to install it.
        thin: the part of the numbers kept as a baseline; everything by default.
        long: whether the runs take above a minute: then they are not run unless asked for, and the
            numbers are those of results that are there, or the committed ones. A curve states the
            ``tolerance`` within which another training may differ.
        turn: place among the long ones where all of them are trained, the smallest first.
        groups: groups of ``results.nc`` without which a long one is not drawn from results.
        precisions: those in which its runs show what it says.
        says: ``says(dataset)``: what the caption says of the numbers shown, name -> value; it is
            worked out whenever a caption is written, from the committed numbers as from new ones.
        shows: names of the theorems and studies whose claims it shows; a page lists it beside them.

    Example:
        >>> def numbers(results, steps):
        ...     return xr.Dataset({"loss": ("step", [0.5**t for t in range(steps)])})
        >>> losses = Exhibit(name="losses", title="A loss that halves", caption="{steps} steps.",
        ...                  numbers=numbers, presets={"quick": {"steps": 10}})
        >>> losses.sources(**losses.presets["quick"])
        {}
    """

    name: str
    title: str
    caption: str
    numbers: Callable[..., xr.Dataset]
    sources: Callable[..., Mapping[str, Run]] = lambda **settings: {}
    files: tuple[Path, ...] = ()
    presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=lambda: {"quick": {}}
    )
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    thin: Callable[[xr.Dataset], xr.Dataset] = lambda dataset: dataset
    long: bool = False
    turn: int = 0
    groups: tuple[str, ...] = ()
    precisions: tuple[str, ...] = PRECISIONS
    notes: str = ""
    result: str = ""
    says: Callable[[xr.Dataset], Mapping[str, Any]] = lambda dataset: {}
    shows: tuple[str, ...] = ()

    def texts(self, dataset: xr.Dataset) -> Mapping[str, str]:
        """Texts to be saved: suffix of a file -> its text. ``.txt`` is one of them."""
        return {".txt": caption(self, dataset) + notes(self, dataset)}

    def pictures(self, dataset: xr.Dataset, stem: Path) -> tuple[Path, ...]:
        """Save what is not text, atomically, beside a path without suffix; say where."""
        return ()

    def terminal_text(self, dataset: xr.Dataset) -> str:
        """Lines that the command line shows beside the path of its first file."""
        return ""

    def panels_of(self, name: str) -> str:
        """Which panels show a curve, in words; empty if the exhibit does not say."""
        return ""

    def save_looks(self, dataset: xr.Dataset, stem: Path) -> tuple[Path, ...]:
        """Save how committed numbers are drawn, beside a path without suffix; say where."""
        return ()

    def look_changes(self, dataset: xr.Dataset, stem: Path) -> list[str]:
        """Lines about how the looks of committed numbers differ from the committed looks."""
        return []


class Excerpt(NamedTuple):
    """A picture for a talk beside that of a figure; it is compared with nothing."""

    panels: Sequence[str] = ()
    """Letters of panels, each a picture of its own; without any, the whole figure."""
    width: float | int | str | None = None
    """As of :func:`lrdyn.figures.style`; None for that of the text, and of a panel for that of a
    column, or what its labels need."""
    formats: Sequence[str] = ("png", "pdf")
    """As of :func:`lrdyn.figures.save`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure(Exhibit):
    """One figure of a paper: a picture as PNG and PDF, its caption as text.

    Args:
        name: see :class:`Exhibit`, as for all that is not named here.
        draw: ``draw(dataset)``: the matplotlib figure, from the saved numbers alone.
        panels: curve, a variable of the numbers -> letters of the panels that show it; a
            difference is reported with them, and these panels are drawn alone where that is asked
            for (without any, each that has a letter in its title).
        width: of the picture that is compared, as of :func:`lrdyn.figures.style`.
    """

    draw: Callable[[xr.Dataset], Any]
    panels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    width: float | str = "text"

    def draw_styled(self, dataset: xr.Dataset) -> Any:
        """Draw numbers in the style of this package: the matplotlib figure."""
        from lrdyn.figures import plotting

        with plotting.style(self.width):
            return self.draw(dataset)

    def pictures(self, dataset: xr.Dataset, stem: Path) -> tuple[Path, ...]:
        """Draw numbers and save the picture as PNG and PDF, atomically."""
        from lrdyn.figures import plotting

        return plotting.save(self.draw_styled(dataset), stem)

    @property
    def letters(self) -> str:
        """The panels that its curves name, in order; empty if they name none."""
        return "".join(sorted(set("".join(self.panels.values()))))

    def draw_excerpts(self, dataset: xr.Dataset, excerpt: Excerpt) -> dict[str, Any]:
        """Draw pictures for talks: panels that stand alone, or the whole at another width.

        Args:
            dataset: the numbers.
            excerpt: which panels, how wide.

        Returns:
            Name of a file without suffix -> matplotlib figure; behind the name of the figure stand
            the letter of a panel and the width.

        Raises:
            Unfit: there is no such panel, or it does not fit, of :mod:`.single_panels`.
            ValueError: the width is none.

        Example:
            >>> from lrdyn.figures import plotting
            >>> def draw(dataset):
            ...     figure, (left, right) = plotting.panels(["loss", "rank"])
            ...     return figure
            >>> shown = Figure(name="f", title="", caption="", numbers=xr.Dataset, draw=draw)
            >>> list(shown.draw_excerpts(xr.Dataset(), Excerpt(panels=("a", "b"), width=4)))
            ['f_a_4in', 'f_b_4in']
        """
        from lrdyn.figures import plotting, single_panels

        width = excerpt.width
        words = "" if width is None else f"_{width}" if isinstance(width, str) else f"_{width:g}in"
        if not excerpt.panels:
            with plotting.style(width or self.width):
                figure = self.draw(dataset)
                single_panels.require_room(figure, self.name)
            return {f"{self.name}{words}": figure}
        return {
            f"{self.name}_{letter}{words}": single_panels.keep_panel(
                self.draw_styled(dataset), letter, width
            )
            for letter in excerpt.panels
        }

    def panels_of(self, name: str) -> str:
        """The letters of its panels."""
        letters = self.panels.get(name, "")
        return f"panel{'s' * (len(letters) > 1)} ({', '.join(letters)})" if letters else ""

    def save_looks(self, dataset: xr.Dataset, stem: Path) -> tuple[Path, ...]:
        """Save the looks as JSON, and the picture without text as PNG."""
        from lrdyn.figures import looks, pictures

        drawn, paths = (
            self.draw_styled(dataset),
            (stem.with_suffix(".json"), stem.with_suffix(".png")),
        )
        looks.save(looks.describe_figure(drawn), paths[0])
        pictures.save(drawn, paths[1])
        return paths

    def look_changes(self, dataset: xr.Dataset, stem: Path) -> list[str]:
        """Compare the looks first, since they name what differs; then the picture."""
        from lrdyn.figures import looks, pictures

        try:
            wanted = json.loads(stem.with_suffix(".json").read_text())
        except (OSError, ValueError):
            return [f"picture: nothing that can be read in {stem.with_suffix('.json')}"]
        drawn = self.draw_styled(dataset)
        if differences := looks.differences(looks.describe_figure(drawn), wanted):
            return differences
        difference = pictures.difference(drawn, stem.with_suffix(".png"))
        return [difference] if difference else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Exhibit):
    """One table of a paper: as text above its caption, as CSV and as LaTeX.

    Args:
        name: see :class:`Exhibit`, as for all that is not named here.
        tabulate: ``tabulate(dataset)``: the cells, from the saved numbers alone.
    """

    tabulate: Callable[[xr.Dataset], tables.Grid]

    def texts(self, dataset: xr.Dataset) -> Mapping[str, str]:
        """The table as text, CSV and LaTeX."""
        grid, below = self.tabulate(dataset), _filled_caption(self, dataset)
        return {
            ".txt": f"{tables.as_text(grid)}\n{caption(self, dataset)}{notes(self, dataset)}",
            ".csv": tables.as_csv(grid),
            ".tex": tables.as_latex(grid, f"{headline(self, dataset)}. {below}", self.name),
        }

    def terminal_text(self, dataset: xr.Dataset) -> str:
        """The table as text."""
        return tables.as_text(self.tabulate(dataset))


def run_sources(
    experiment: Experiment, *, preset: str = "paper"
) -> Callable[..., Mapping[str, Run]]:
    """Sources of an exhibit that shows one run with one seed, under the name of its experiment.

    Its settings are the flags of the experiment, all of them, and ``seed``. The preset ``paper``
    lets XLA optimise the programs; ``quick`` suits those that take longer to compile than to run.

    Example:
        >>> from lrdyn.verification.stating.statement import Scenario
        >>> line = Experiment("line", "a line", (), (Scenario("line", lambda key: key),))
        >>> run_sources(line)(seed=3)["line"].config["seed"]
        3
    """
    return lambda **settings: {
        experiment.name: run_of(experiment, preset=preset, seeds=1, **settings)
    }


def set_precision(exhibit: Exhibit, dtype: str) -> Exhibit:
    """An exhibit whose runs have a precision; those of studies, which train, keep their own.

    Example:
        >>> from lrdyn.verification.stating.statement import Scenario
        >>> line = Experiment("line", "a line", (), (Scenario("line", lambda key: key),))
        >>> shown = Exhibit(name="f", title="", caption="", sources=run_sources(line),
        ...                 numbers=xr.Dataset, presets={})
        >>> set_precision(shown, "float32").sources()["line"].dtype
        'float32'
    """

    def sources(**settings: Any) -> dict[str, Run]:
        runs = exhibit.sources(**settings).items()
        return {
            name: run if isinstance(run.experiment, Study) else run._replace(dtype=dtype)
            for name, run in runs
        }

    return dataclasses.replace(exhibit, sources=sources)


def one_seed(groups: Groups) -> xr.Dataset:
    """Arrays of the first scenario of a run with one seed, without what judges need.

    Example:
        >>> root = xr.Dataset({"y": ("seed", [3.0]), SIZE: ("seed", [2])}, attrs={"digest": "0"})
        >>> dataset = one_seed({"/": root})
        >>> list(dataset), dataset["y"].dims, dataset.attrs
        (['y'], (), {})
    """
    return groups["/"].isel(seed=0, drop=True).drop_vars(SIZE).drop_attrs(deep=False)


def missing_packages(exhibit: Exhibit) -> str:
    """Name what a figure or table lacks to be computed here; empty if nothing."""
    absent = [name for name in exhibit.needs if importlib.util.find_spec(name) is None]
    return ", ".join(f"the package {name} ({exhibit.needs[name]})" for name in absent)


def caption(exhibit: Exhibit, dataset: xr.Dataset) -> str:
    r"""Caption with its settings and results filled in, wrapped.

    Example:
        >>> f = Exhibit(
        ...     name="f", title="Title", caption="Rank {rank}, {gap:.0e}.", sources=dict,
        ...     numbers=xr.Dataset, presets={})
        >>> caption(f, xr.Dataset(attrs={"settings": '{"rank": 3}', "gap": 1e-15}))
        'f. Title. Rank 3, 1e-15.\n'
    """
    text = f"{exhibit.name}. {headline(exhibit, dataset)}. {_filled_caption(exhibit, dataset)}"
    return f"{wrap(tables.plain_text(text))}\n"


def headline(exhibit: Exhibit, dataset: xr.Dataset) -> str:
    r"""Title and, behind a colon, what these numbers say; the title alone where they say nothing.

    Example:
        >>> f = Exhibit(
        ...     name="f", title="Title", result="{wins} of 8 won", caption="", sources=dict,
        ...     numbers=xr.Dataset, presets={})
        >>> headline(f, xr.Dataset(attrs={"settings": "{}", "wins": 5}))
        'Title: 5 of 8 won'
    """
    result = _fill_in(exhibit, exhibit.result, dataset)
    return f"{exhibit.title}: {result}" if result else exhibit.title


def wrap(text: str) -> str:
    """Text in lines of a hundred letters at most, broken at spaces alone.

    Names have hyphens: of one that is broken and joined again a space would be left.
    """
    return textwrap.fill(text, 100, break_on_hyphens=False)


def notes(exhibit: Exhibit, dataset: xr.Dataset) -> str:
    """Notes with their values behind an empty line, wrapped; empty if there are none."""
    if not exhibit.notes:
        return ""
    return f"\n{wrap(tables.plain_text(_fill_in(exhibit, exhibit.notes, dataset)))}\n"


def _fill_in(exhibit: Exhibit, text: str, dataset: xr.Dataset) -> str:
    """A text with the settings, and with what the numbers say, in one line.

    What says nothing of its precision has the double.
    """
    values = {"precision": "double precision"}
    values |= {**json.loads(dataset.attrs["settings"]), **dataset.attrs, **exhibit.says(dataset)}
    return " ".join(text.format_map(values).split())


def _filled_caption(exhibit: Exhibit, dataset: xr.Dataset) -> str:
    """The caption with its values filled in, in one line."""
    text = _fill_in(exhibit, exhibit.caption, dataset)
    return text + (f" Drawn from {source}." if (source := dataset.attrs.get("drawn_from")) else "")
