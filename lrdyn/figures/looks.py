"""Looks of a figure, panel by panel, as text that is committed: what a picture cannot name.

A picture says that something moved; this says what: the panel, the curve, its colour, the label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.system import whole_files

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

Looks = Mapping[str, Any]
"""Name of a part -> its parts, down to numbers and texts; JSON-able."""

SAME = 1e-6
"""Relative difference below which two numbers are one: limits and ends of curves from equal numbers
differ by round-off only."""


def describe_figure(figure: Figure) -> Looks:
    """Describe a figure: its size, title and key, and of each panel axes, key, texts and curves.

    Neighbouring curves of one look are one entry, such as those of a spectrum.

    Example:
        >>> from lrdyn.figures import plotting
        >>> figure, (ax,) = plotting.panels(["loss"])
        >>> _ = ax.plot([0, 1], [2, 1], color="#0072b2")
        >>> describe_figure(figure)["panel (a)"]["curve 1"]["color"]
        '#0072b2'
    """
    parts: dict[str, Any] = {"size": [float(side) for side in figure.get_size_inches()]}
    parts["title"] = figure.get_suptitle()
    parts |= _keys(figure.legends)
    for place, ax in enumerate(figure.axes):
        parts[_panel_name(ax, place)] = _panel_looks(ax)
    return parts


def panel_names(figure: Figure) -> list[str]:
    """Names of the panels, in the order of ``figure.axes``: by their letters, else by number."""
    return [_panel_name(ax, place) for place, ax in enumerate(figure.axes)]


def _panel_name(ax: Axes, place: int) -> str:
    lettered = re.match(r"\((\w)\)", _title(ax))
    return f"panel ({lettered[1]})" if lettered else f"panel {place + 1}"


def _title(ax: Axes) -> str:
    return " ".join(filter(None, (ax.get_title(loc) for loc in ("left", "center", "right"))))


def _panel_looks(ax: Axes) -> dict[str, Any]:
    parts: dict[str, Any] = {"title": _title(ax)}
    parts |= {name: _axis_looks(ax, name) for name in "xy"}
    parts |= dict(_curves(ax.lines))
    shapes = [*ax.collections, *ax.patches, *ax.images]
    parts |= {f"shape {n}": _shape(shape) for n, shape in enumerate(shapes, 1)}
    parts |= {
        f"text {n}": {"text": t.get_text(), "color": _hex(t.get_color())}
        for n, t in enumerate(ax.texts, 1)
    }
    return parts | _keys(filter(None, [ax.get_legend()]))


def _keys(legends: Iterable[Legend]) -> dict[str, Any]:
    """The legend entries of a panel, or of a whole figure, as one part."""
    pairs = [zip(legend.get_texts(), legend.legend_handles, strict=True) for legend in legends]
    keys = {text.get_text(): _key(handle) for each in pairs for text, handle in each}
    return {"key": keys} if keys else {}


def _axis_looks(ax: Axes, name: str) -> dict[str, Any]:
    from matplotlib.ticker import FixedFormatter

    axis: Axis = getattr(ax, f"{name}axis")
    low, high = getattr(ax, f"get_{name}lim")()
    parts = {
        "label": axis.get_label_text(),
        "scale": axis.get_scale(),
        "limits": [float(low), float(high)],
    }
    if isinstance(written := axis.get_major_formatter(), FixedFormatter):
        parts["ticks"] = list(written.seq)
    return parts


def _curves(lines: Iterable[Line2D]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Describe curves by number, with their box; neighbours that look alike are one entry."""
    begin = 1
    for look, group in groupby(lines, _line):
        boxes = np.array([[_ends(data) for data in line.get_data()] for line in group])
        end = begin + len(boxes) - 1
        name = f"curve {begin}" if begin == end else f"curves {begin} to {end}"
        yield name, look | {axis: _ends(boxes[:, i]) for i, axis in enumerate("xy")}
        begin = end + 1


def _line(line: Line2D) -> dict[str, Any]:
    more = {"alpha": line.get_alpha(), "order": float(line.get_zorder()), "label": _label(line)}
    return _stroke(line) | more


def _stroke(line: Line2D) -> dict[str, Any]:
    look: dict[str, Any] = {"dashes": line.get_linestyle()}
    if look["dashes"] != "None":
        look |= {"color": _hex(line.get_color()), "width": float(line.get_linewidth())}
    if line.get_marker() == "None":
        return look
    return look | {
        "marker": str(line.get_marker()),
        "size": float(line.get_markersize()),
        "face": _hex(line.get_markerfacecolor()),
        "edge": _hex(line.get_markeredgecolor()),
    }


def _ends(data: Any) -> list[float]:
    """Least and largest number; infinite the wrong way round if there is none."""
    numbers = np.asarray(data, float)
    numbers = numbers[np.isfinite(numbers)]
    return [float(numbers.min(initial=np.inf)), float(numbers.max(initial=-np.inf))]


def _shape(shape: Any) -> dict[str, Any]:
    """Kind and colours of what is filled, with the range of the values shown in colours."""
    look: dict[str, Any] = {"kind": type(shape).__name__, "label": _label(shape)}
    mapped = getattr(shape, "get_array", lambda: None)()
    if mapped is not None:
        limits = [float(end) for end in shape.get_clim()]
        look |= {
            "colormap": shape.get_cmap().name,
            "limits": limits,
            "values": _ends(np.ma.filled(np.ma.asarray(mapped, float), np.nan)),
        }
    elif hasattr(shape, "get_facecolor"):
        look["color"] = _hex(shape.get_facecolor())
    if type(shape).__name__ == "PathCollection":
        # Dots may show a number by their area.
        look["sizes"] = _ends(shape.get_sizes())
    return look


def _key(handle: Any) -> Any:
    from matplotlib.lines import Line2D

    return _stroke(handle) if isinstance(handle, Line2D) else _shape(handle)


def _label(artist: Artist) -> str:
    label = str(artist.get_label())
    # Matplotlib's own, ``_child3``, which count what was drawn before.
    return "" if label.startswith("_") else label


def _hex(color: Any) -> str:
    from matplotlib.colors import to_hex, to_rgba_array

    every = to_rgba_array(color)
    return to_hex(every[0], keep_alpha=True).removesuffix("ff") if len(every) else "none"


# Committed looks ---------------------------------------------------------------------------------


def save(present: Looks, path: Path) -> None:
    """Write looks as JSON, atomically, one part of a panel a line."""
    parts = [f"{_json(name)}: {_lines(part)}" for name, part in _round_numbers(present).items()]
    with whole_files.replace_file(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _lines(part: Any) -> str:
    if not isinstance(part, Mapping):
        return _json(part)
    inner = (f" {_json(name)}: {_json(value)}" for name, value in part.items())
    return "{\n" + ",\n".join(inner) + "\n}"


def _json(part: Any) -> str:
    return json.dumps(part, ensure_ascii=False)


def _round_numbers(part: Any) -> Any:
    """Numbers with the digits that are compared, and no NaN, which JSON does not know."""
    if isinstance(part, Mapping):
        return {name: _round_numbers(inner) for name, inner in part.items()}
    if isinstance(part, list | tuple | np.ndarray):
        return [_round_numbers(inner) for inner in part]
    if isinstance(part, float):
        # Nine digits are more than SAME looks at, and few enough for a committed file that people
        # read.
        return float(f"{part:.9g}") if np.isfinite(part) else None
    return part


def differences(present: Looks, wanted: Looks) -> list[str]:
    """Lines that name the panel, the curve and what is different about it.

    Example:
        >>> wanted = {"panel (a)": {"x": {"limits": [0.0, 1.0]}}, "panel (b)": {}}
        >>> differences({"panel (a)": {"x": {"limits": [0.0, 2.0]}}}, wanted)
        ['panel (a): x: limits: got [0.0, 2.0], wanted [0.0, 1.0]', 'panel (b): missing']
    """
    return list(_differences(_round_numbers(present), _round_numbers(wanted)))


def _differences(present: Any, wanted: Any) -> Iterator[str]:
    if not (isinstance(present, Mapping) and isinstance(wanted, Mapping)):
        if not _is_same(present, wanted):
            yield f"got {_part_text(present)}, wanted {_part_text(wanted)}"
        return
    # The order is that of drawing: what comes later covers what comes before.
    if present.keys() == wanted.keys() and list(present) != list(wanted):
        yield f"got the order {_part_text(list(present))}, wanted {_part_text(list(wanted))}"
    for name in [*wanted, *(name for name in present if name not in wanted)]:
        if name not in present:
            yield f"{name}: missing"
        elif name not in wanted:
            yield f"{name}: not in the baseline"
        else:
            yield from (f"{name}: {text}" for text in _differences(present[name], wanted[name]))


def _part_text(part: Any) -> str:
    return "something else" if isinstance(part, Mapping) else _json(part)


def _is_same(present: Any, wanted: Any) -> bool:
    if isinstance(present, list) and isinstance(wanted, list):
        same = len(present) == len(wanted)
        return same and all(map(_is_same, present, wanted))
    if isinstance(present, float) and isinstance(wanted, float):
        return abs(present - wanted) <= SAME * max(abs(present), abs(wanted))
    return bool(present == wanted)
