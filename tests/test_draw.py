"""Drawing one's own arrays: style, panels, bands, spectra, theory over a run, files, talks."""

import base64
import io
import json
import re
import shutil
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from matplotlib.colors import LogNorm
from PIL import Image

import lrdyn
from lrdyn.core import chance
from lrdyn.figures import animate, band, looks, overlay, panels, plotting, save, spectrum, style
from lrdyn.figures.single_panels import Unfit, keep_panel, letters_of, require_room
from lrdyn.verification.stating.claims import tolerance
from paper_figs import BASELINES, EXHIBITS
from tests import figure_fixtures

SLACK = tolerance("identity", "float64")

# Style -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "inches"), [("column", 3.25), ("text", 7.0), (4.5, 4.5)])
def test_a_figure_is_as_wide_as_its_style(width, inches, tmp_path):
    with style(width=width):
        figure, _ = panels(["one"])
    assert figure.get_size_inches()[0] == inches
    (path,) = save(figure, str(tmp_path / "one"), formats=("svg",))
    assert f'width="{72 * inches:g}pt"' in path.read_text()


def drawn():
    """A panel with all that takes its looks from the settings of the moment."""
    figure, (ax,) = panels(["one"])
    ax.plot([1, 2], [1, 2], label="a")
    ax.errorbar([1, 2], [2, 1], [0.1, 0.1])
    ax.text(1, 1, "text")
    ax.set_xticks([1, 2], ["one", "two"])
    ax.grid(axis="x")
    ax.legend()
    shown = ax.scatter([1, 2], [1, 1], c=[0.0, 1.0])
    figure.colorbar(shown, label="colours")
    figure.legend(handles=[plotting.entry("b")], loc="outside lower center")
    figure.suptitle("all")
    return figure


def test_outside_of_a_block_a_figure_is_the_same_and_settings_stay(tmp_path):
    """Whatever the caller has set is neither used nor changed."""
    with style():
        (inside,) = save(drawn(), tmp_path / "inside", formats=["png"])
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "legend.frameon": True}):
        before = dict(mpl.rcParams)
        (outside,) = save(drawn(), tmp_path / "outside", formats=["png"])
        assert dict(mpl.rcParams) == before
    assert outside.read_bytes() == inside.read_bytes()
    assert looks.describe_figure(drawn())["panel (a)"]["curve 1"]["width"] == 1.2


@pytest.mark.parametrize("width", ["page", 0, -3.25, True, float("nan"), 1e3])
def test_no_other_width_is_taken(width, unchecked):
    with pytest.raises(ValueError, match=r"^width: got .*, wanted 'column', 'text' or inches"):
        style(width=width)


def test_without_latex_it_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ValueError, match=r"^tex: got True, wanted latex and dvipng, which is not"):
        style(tex=True)
    figure, _ = panels(["one"])
    with pytest.raises(ValueError, match=r"^formats: got 'pgf', wanted a TeX.*: xelatex, lualatex"):
        save(figure, tmp_path / "one", formats=["pdf", "pgf"])
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("dvipng") is None, reason="needs LaTeX and dvipng")
def test_latex_sets_the_text(tmp_path):
    """In the width of the block, and outside of it, too, where the figure is saved."""
    with style(width="column", tex=True):
        figure, _ = panels([r"singular values $\sigma_i$"])
    (path,) = save(figure, tmp_path / "tex", formats=["pdf"])
    assert figure.get_size_inches()[0] == 3.25
    assert b"CMMI8" in path.read_bytes()  # italic of Computer Modern, at 8 points
    assert b"CMR8" in path.read_bytes()
    assert b"DejaVu" not in path.read_bytes()


@pytest.mark.skipif(
    not any(map(shutil.which, ("xelatex", "lualatex", "pdflatex"))), reason="needs a TeX"
)
def test_a_pgf_has_its_text_as_text(tmp_path):
    figure, _ = panels(["loss"])
    (path,) = save(figure, tmp_path / "one", formats=["pgf"])
    assert "(a) loss" in path.read_text()


def test_a_suffix_says_the_format(tmp_path):
    """A name without one is written as PNG and PDF; a dot within a name is none."""
    figure, _ = panels(["one"], letters=False)
    for name, files in (
        ("a.pdf", ["a.pdf"]),
        ("b", ["b.png", "b.pdf"]),
        ("eps0.3", ["eps0.3.png", "eps0.3.pdf"]),
    ):
        assert [path.name for path in save(figure, tmp_path / name)] == files
    assert [path.name for path in save(figure, tmp_path / "c.pdf", formats="svg")] == ["c.svg"]


def test_a_panel_may_have_no_letter():
    (one, two), (ax,) = panels(["left", "right"])[1], panels(["alone"], letters=False)[1]
    assert [panel.get_title(loc="left") for panel in (one, two, ax)] == [
        "(a) left",
        "(b) right",
        "alone",
    ]


def test_a_table_of_pandas_has_its_places_and_names():
    """Its columns are the abscissae; the axis of the seeds is its name or its number."""
    losses = xr.DataArray([[1.0, 2.0], [3.0, 6.0]], {"seed": [0, 1], "step": [10, 20]})
    table = losses.to_pandas()
    unnamed: Any = table.copy()
    unnamed.index.name = unnamed.columns.name = None
    for array, over in ((table, "seed"), (table, 0), (unnamed, 0), (table.T, 1), (losses, "seed")):
        _, (ax,) = panels(["one"])
        (line,) = band(ax, array, over=over).lines
        assert np.asarray(line.get_xydata()).tolist() == [[10, 2], [20, 4]]


def test_one_quantity_may_have_two_names():
    steps = xr.DataArray(np.arange(4), dims="step")
    figure = overlay((2.0 * steps).rename("trained"), (2.0 * steps).rename("rho"))
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "(a) trained"


def test_titles_and_files_are_checked(tmp_path, unchecked):
    with pytest.raises(
        ValueError, match=r"^titles: got 'loss', wanted a list of texts: \['loss'\]"
    ):
        panels("loss")
    wrong: tuple[Any, ...] = ([], [1])
    for titles in wrong:
        with pytest.raises(ValueError, match=r"^titles: got \[.*\], wanted a text"):
            panels(titles)
    with pytest.raises(ValueError, match=r"^height: got 0"):
        panels(["one"], height=0)
    figure, _ = panels(["one"])
    for formats, got in ((["jpg"], "'jpg'"), ([], "none")):
        with pytest.raises(ValueError, match=rf"^formats: got {got}, wanted some of png, pdf"):
            save(figure, tmp_path / "one", formats=formats)
    with pytest.raises(ValueError, match=r"^path: got .*nowhere.*, wanted one in a folder"):
        save(figure, tmp_path / "nowhere" / "one")
    assert not any(tmp_path.iterdir())


def test_a_name_may_hold_a_dot_and_end_in_a_suffix(tmp_path):
    figure, _ = panels(["one"])
    for name in ("eps_0.1", "eps_0.1.pdf"):
        files = save(figure, tmp_path / name, formats=("pdf", "svg"))
        assert [path.name for path in files] == ["eps_0.1.pdf", "eps_0.1.svg"]


def test_equal_figures_give_equal_files(tmp_path):
    twice = [save(drawn(), tmp_path / name, formats=("pdf", "svg")) for name in "ab"]
    for one, other in zip(*twice, strict=True):
        assert one.read_bytes() == other.read_bytes()


# Bands -------------------------------------------------------------------------------------------

DRAWS = np.random.default_rng(0).normal(size=(5, 7))
STEPS = np.array([0, 1, 2, 4, 8, 16, 32])


def band_ends(ax):
    """Lower and upper end of the shaded area at each point."""
    (area,) = ax.collections
    vertices = area.get_paths()[0].vertices
    return np.array(
        [[f(vertices[vertices[:, 0] == x, 1]) for x in STEPS] for f in (np.min, np.max)]
    )


@pytest.mark.parametrize("form", ["named", "named last", "array"])
def test_a_band_is_the_mean_and_its_standard_error(form):
    _, (ax,) = panels(["one"])
    array = xr.DataArray(DRAWS, {"step": STEPS}, ("seed", "step"))
    if form == "array":
        band(ax, DRAWS, over=0, x=STEPS)
    else:
        band(ax, array.T if form == "named last" else array)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), STEPS)
    np.testing.assert_allclose(line.get_ydata(), DRAWS.mean(axis=0), atol=SLACK)
    reach = scipy.stats.sem(DRAWS, axis=0)
    ends = [DRAWS.mean(axis=0) - reach, DRAWS.mean(axis=0) + reach]
    np.testing.assert_allclose(band_ends(ax), ends, atol=SLACK)


@pytest.mark.parametrize("intervals", [1, 3])
def test_intervals_are_those_of_students_test_corrected_for_their_number(intervals):
    _, (ax,) = panels(["one"])
    band(ax, xr.DataArray(DRAWS, {"step": STEPS}, ("seed", "step")), intervals=intervals)
    wanted = [
        scipy.stats.ttest_1samp(column, 0).confidence_interval(1 - 0.05 / intervals)
        for column in DRAWS.T
    ]
    np.testing.assert_allclose(band_ends(ax).T, wanted, atol=SLACK)


def test_one_seed_has_no_band_and_bars_stand_at_points():
    _, (one, bars) = panels(["one", "bars"])
    band(one, DRAWS[:1], over=0)
    assert not one.collections
    band(bars, DRAWS, over=0, bars=True, errors=2.0)
    (segments,) = bars.collections
    lengths = [np.ptp(path.vertices[:, 1]) for path in segments.get_paths()]
    np.testing.assert_allclose(lengths, 4 * scipy.stats.sem(DRAWS, axis=0), atol=SLACK)


@pytest.mark.parametrize(
    ("array", "more", "said"),
    [
        (xr.DataArray(DRAWS, dims=("seed", "step")), {"over": "sed"}, "over: got 'sed'"),
        (DRAWS, {}, "over: got 'seed', wanted 0 or 1"),
        (DRAWS[0], {"over": 0}, r"array: got shape \(7,\), wanted two axes"),
        (DRAWS, {"over": 0, "x": STEPS[1:]}, r"x: got shape \(6,\), wanted one number for each"),
        (DRAWS, {"over": 0, "errors": 0.0}, "errors: got 0.0"),
        (DRAWS, {"over": 0, "intervals": 0}, "intervals: got 0"),
        (
            xr.DataArray(DRAWS[None], dims=("rank", "seed", "step")),
            {},
            "array: got the axes rank, seed, step, wanted seed and one more",
        ),
    ],
)
def test_what_is_no_band_is_named(array, more, said, unchecked):
    _, (ax,) = panels(["one"])
    with pytest.raises(ValueError, match=f"^{said}"):
        band(ax, array, **more)


# Spectra -----------------------------------------------------------------------------------------


def test_a_spectrum_is_over_its_largest_beside_a_gaussian_of_the_size():
    _, (ax,) = panels(["one"])
    values = np.array([4.0, 2.0, 1.0, 0.0, np.nan])
    spectrum(ax, values, marks=(2, 4), chance=(5, 8))
    *marks, random, curve = ax.lines
    assert [line.get_xdata()[0] for line in marks] == [2, 4]
    np.testing.assert_allclose(curve.get_ydata(), [1.0, 0.5, 0.25])
    np.testing.assert_array_equal(curve.get_xdata(), [1, 2, 3])
    gaussian = np.mean(
        [
            np.linalg.svd(np.random.default_rng(seed).normal(size=(5, 8)), compute_uv=False)
            for seed in range(2000)
        ],
        axis=0,
    )
    # The law is that of large matrices: within some per cent at this size.
    np.testing.assert_allclose(random.get_ydata(), gaussian / gaussian[0], atol=0.1)


def test_chance_is_square_unless_a_size_is_said():
    _, (ax,) = panels(["one"])
    spectrum(ax, [2.0, 1.0, 0.5], chance=True)
    square = chance.gaussian_singular_values(3, 3)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), square / square[0])


@pytest.mark.parametrize(
    ("values", "more", "said"),
    [
        (np.ones((2, 2)), {}, r"values: got shape \(2, 2\)"),
        ([], {}, r"values: got shape \(0,\)"),
        ([0.0, 1.0], {}, "values: got 0 as the largest"),
        ([np.nan], {}, "values: got nan as the largest"),
        ([2.0, 1.0], {"marks": (0,)}, "marks: got 0"),
        ([2.0, 1.0], {"chance": (3,)}, r"chance: got \(3,\)"),
        ([2.0, 1.0], {"index": [1]}, r"index: got shape \(1,\), wanted \(2,\)"),
    ],
)
def test_what_is_no_spectrum_is_named(values, more, said, unchecked):
    _, (ax,) = panels(["one"])
    with pytest.raises(ValueError, match=f"^{said}"):
        spectrum(ax, values, **more)


# Theory over a run -------------------------------------------------------------------------------


def test_theory_is_lines_and_a_run_markers():
    run = xr.Dataset(
        {"loss": ("step", STEPS**2.0, {"long_name": "the loss"}), "extra": ("step", STEPS)},
        {"step": STEPS},
    )
    theory = run[["loss"]] + 1
    figure = overlay(run, theory.assign(loss=theory.loss.assign_attrs(long_name="the loss")))
    (ax,) = figure.axes
    line, markers = ax.lines
    assert (ax.get_title(loc="left"), ax.get_xlabel()) == ("(a) the loss", "step")
    np.testing.assert_array_equal(line.get_xydata(), np.c_[STEPS, STEPS**2.0 + 1])
    np.testing.assert_array_equal(markers.get_xydata(), np.c_[STEPS, STEPS**2.0])
    assert (line.get_linestyle(), markers.get_linestyle()) == ("-", "None")


def test_of_many_curves_those_are_drawn_that_move_most():
    speed = np.arange(30.0)
    curves = STEPS[:, None] * np.random.default_rng(0).permutation(speed)
    (ax,) = overlay({"x": curves}, {"x": curves}, steps=STEPS).axes
    slopes = sorted(np.asarray(line.get_ydata())[-1] / STEPS[-1] for line in ax.lines[::2])
    np.testing.assert_allclose(slopes, speed[-12:])


@pytest.mark.parametrize(
    ("run", "theory", "said"),
    [
        ({"loss": STEPS}, {"los": STEPS}, "theory: got 'los'.*, wanted what run has: loss"),
        ({"loss": STEPS}, {"loss": STEPS[1:]}, r"theory: got {'step': 6} of 'loss', wanted {'ste"),
        ({}, {"loss": STEPS}, "run: got .*, wanted arrays with the axis 'step'"),
        (xr.Dataset({"loss": ("t", STEPS)}), {"loss": STEPS}, "run: got 'loss' without it"),
    ],
)
def test_what_theory_does_not_fit_is_named(run, theory, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        overlay(run, theory)
    with pytest.raises(ValueError, match=r"^steps: got shape \(2,\), wanted \(7,\)"):
        overlay({"a": STEPS}, {"a": STEPS}, steps=[1, 2])


# Panels that stand alone -------------------------------------------------------------------------


def two_panels():
    """Two maps of one colour bar, one of which has the key and the names of the axes of both."""
    figure, axes = panels(["left", "right"])
    norm = LogNorm(0.1, 10.0)
    images = [ax.imshow(np.full((2, 2), 1 + place), norm=norm) for place, ax in enumerate(axes)]
    figure.colorbar(images[0], ax=list(axes), label="residual")
    plotting.label_once(axes, "depth")
    plotting.key(axes[0], [plotting.entry("predicted")], "upper left", serves=axes)
    plotting.common_key(figure, [plotting.entry("all")])
    return figure


@pytest.mark.parametrize(("letter", "keys"), [("a", ["all"]), ("b", ["predicted", "all"])])
def test_a_panel_takes_along_what_it_needs(letter, keys):
    figure = keep_panel(two_panels(), letter, width=4)
    ax, bar = figure.axes
    assert figure.get_size_inches()[0] == 4
    assert ax.get_title(loc="left") == {"a": "left", "b": "right"}[letter]
    assert (ax.get_ylabel(), ax.yaxis.label.get_visible()) == ("depth", True)
    assert bar.get_ylabel() == "residual"
    assert float(np.mean(np.asarray(ax.images[0].get_array()))) == {"a": 1, "b": 2}[letter]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == keys


def test_a_panel_that_is_not_there_or_does_not_fit_is_named():
    with pytest.raises(Unfit, match=r"^panel: got 'z', wanted one of the letters a, b$"):
        keep_panel(two_panels(), "z")
    figure, (ax,) = panels(["one"])
    ax.set_yticks([0], ["a name that takes more than all of the width of the picture"])
    with pytest.raises(Unfit, match=r"^width: got 1.5 inches for panel a, whose labels need"):
        keep_panel(figure, "a", width=1.5)


def test_a_figure_without_room_for_an_axis_is_named():
    with style(width=1):
        figure, (ax,) = panels(["one"])
        ax.set_yticks([0], ["a name that takes more than all of the width"])
        with pytest.raises(Unfit, match=r"^width: got 1 inches for mine, wanted more"):
            require_room(figure, "mine")


ALONE = [
    (exhibit.name, letter)
    for exhibit in EXHIBITS
    for letter in figure_fixtures.letters(exhibit, BASELINES)
]
"""Every panel of every figure that has committed numbers."""


@pytest.mark.parametrize(("name", "letter"), ALONE, ids="-".join)
def test_every_panel_of_every_figure_stands_alone(name, letter):
    """Its curves are those that it has in the figure, and it has names for both axes or none."""
    whole = figure_fixtures.drawn(name)
    before = letters_of(whole)[letter]
    count = len(before.lines), len(before.collections), len(before.images)
    labels = before.get_xlabel(), before.get_ylabel()
    figure = keep_panel(whole, letter)
    ax = figure.axes[0]
    assert (len(ax.lines), len(ax.collections), len(ax.images)) == count
    assert (ax.get_xlabel(), ax.get_ylabel()) == labels
    assert ax.xaxis.label.get_visible()
    assert ax.yaxis.label.get_visible()
    assert not re.match(r"\(\w\)", ax.get_title(loc="left"))


# Ticks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", figure_fixtures.NAMES)
def test_a_log_axis_has_two_numbers_at_least(name):
    """One gives a place and no scale."""
    figure = figure_fixtures.drawn(name)
    figure.draw_without_rendering()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            if axis.get_scale() != "log" or not ax.axison:
                continue
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            numbers = {
                tick.label1.get_text()
                for tick in ticks
                if low <= tick.get_loc() <= high and tick.label1.get_text()
            }
            assert len(numbers) != 1, (name, ax.get_title(loc="left"), axis.axis_name)


def test_the_words_of_the_page_of_controls_are_no_ids():
    """What stands in a picture of how far a theorem reaches is English and mathematics."""
    from docs import reach

    ids = {c.id for t in lrdyn.registry.theorems() for s in t.scenarios for c in s.claims}
    for departures in reach.committed().values():
        for one in departures.values():
            words = f"{one.title} {re.sub(r'[$].*?[$]', '', one.label)}"
            assert not re.search(r"_|\|\||=", words)
            assert not {word for word in words.split() if "_" in word} & ids
    assert json.loads(reach.NUMBERS.read_text())


# Animations and notebooks -----------------------------------------------------------------------


def moving():
    figure, (ax,) = panels(["a point"])
    (line,) = ax.plot([0, 1], [0, 1], "o")
    return figure, lambda height: line.set_ydata([0, height])


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_an_animation_shows_each_frame_and_ends_on_the_last(suffix, tmp_path):
    """Each frame is the picture of its own height, in the layout of the last."""
    frames = (0.2, 0.6, 1.0)
    path = animate(*moving(), frames, tmp_path / f"a.{suffix}", milliseconds=50, still=900, dpi=60)
    durations = []
    with Image.open(path) as opened:
        shown: Any = opened
        assert (shown.n_frames, shown.info["loop"]) == (3, 0)
        for place, height in enumerate(frames):
            alone = animate(*moving(), [height], tmp_path / f"{height}.{suffix}", dpi=60)
            with Image.open(alone) as other:
                shown.seek(place)
                pair = [np.asarray(one.convert("RGB"), float) for one in (shown, other)]
            assert np.abs(pair[0] - pair[1]).mean() < 0.1
            durations.append(shown.info["duration"])
    assert durations == [50, 50, 900]
    again = animate(*moving(), frames, tmp_path / f"b.{suffix}", milliseconds=50, still=900, dpi=60)
    assert again.read_bytes() == path.read_bytes()


def test_what_cannot_be_an_animation_is_one_line(tmp_path, unchecked):
    with pytest.raises(ValueError, match=r"^path: got 'a.mp4', wanted a name with .webp, .gif"):
        animate(*moving(), [1], tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"^frames: got none, wanted one or more"):
        animate(*moving(), [], tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"^path: got .*nowhere.*, wanted one in a folder"):
        animate(*moving(), [1], tmp_path / "nowhere" / "a.gif")
    with pytest.raises(ValueError, match=r"^still: got 0"):
        animate(*moving(), [1], tmp_path / "a.gif", still=0)
    assert not any(tmp_path.iterdir())


def test_a_figure_shows_itself_in_a_notebook_once_and_sharply(capsys):
    """At two dots a pixel of a browser, whatever backend is chosen; its own dots stay."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell: Any = InteractiveShell.instance()
    with style(width=5):
        figure, _ = panels(["one"], height=2)
    before = figure.get_dpi()
    with capture_output() as captured:
        shell.display_formatter.format(figure)
    (shown,) = captured.outputs
    assert shown.metadata["image/png"] == {"width": 480, "height": 192}
    with Image.open(io.BytesIO(base64.b64decode(shown.data["image/png"]))) as picture:
        assert picture.size == (960, 384)
    assert figure.get_dpi() == before
