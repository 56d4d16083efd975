"""Committed figures as regression tests: numbers, looks and pictures, and what each must catch."""

import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from matplotlib import rcParams
from matplotlib.colors import same_color, to_rgb
from matplotlib.lines import Line2D
from matplotlib.text import Text

from lrdyn.figures import baselines, exhibits, long, looks, pictures, plotting
from lrdyn.studies.adapter_training.few_shot import COMPARED
from lrdyn.verification.stating.claims import STILL_MOVING
from lrdyn.verification.storing import results_file
from paper_figs import BASELINES, EXHIBITS
from tests import figure_fixtures

FIGURES = {one.name: one for one in EXHIBITS if isinstance(one, exhibits.Figure)}

PAPER = BASELINES / "paper"
AT_PAPER = [
    name for name, one in FIGURES.items() if baselines.folder_of(one, BASELINES, "paper") == PAPER
]


def committed(name, folder=BASELINES):
    return results_file.load(folder / f"{name}.nc")["/"]


@pytest.fixture(scope="module", params=FIGURES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def numbers(name):
    return committed(name)


@pytest.fixture(scope="module")
def drawn(name):
    """One for all: what changes it puts it back."""
    return figure_fixtures.drawn(name)


@pytest.fixture(scope="module")
def wanted(name):
    return json.loads((BASELINES / f"{name}.json").read_text())


# Numbers -----------------------------------------------------------------------------------------

ROUND_OFF = 1e-6
"""A curve below this share of its scale is round-off, which no two machines share."""


def curves_of(variable):
    """Indices of every curve of a variable: all of one axis, one value of the others."""
    along = variable.attrs.get("curve_along", variable.dims[-1] if variable.dims else None)
    axes = [range(n) if d != along else [slice(None)] for d, n in variable.sizes.items()]
    return itertools.product(*axes)


def test_one_percent_in_any_curve_is_caught_and_named(name, numbers):
    """Of identities and deterministic runs; of a training, twice what it states."""
    for curve, variable in numbers.data_vars.items():
        if variable.dtype.kind != "f" or not baselines.is_compared(variable):
            continue
        kind, scale, one = baselines.kind_of(variable), baselines._scale(variable), numbers[[curve]]
        size = np.abs(np.nan_to_num(variable.values, posinf=0, neginf=0)) / scale
        assert size.max() >= ROUND_OFF
        for index in curves_of(variable):
            if size[index].max() < ROUND_OFF:
                continue
            moved = variable.copy(deep=True)
            place = np.unravel_index(np.argmax(np.where(at(size, index), size, -1)), size.shape)
            if kind in ("training", "round-off"):
                step = 2 * variable.attrs["tolerance"]
                moved.values[place] += step * np.broadcast_to(scale, size.shape)[place]
            else:
                moved.values[index] *= 1.01
            (difference,) = baselines.compare(one.assign({curve: moved}), one)
            assert (difference.amount or 0) > (difference.tolerance or np.inf)
            assert f"({kind}: tolerance" in difference.problem
            # A single number has no place.
            assert difference.curve.startswith(f"{curve}[" if variable.dims else curve)
            for axis, position in zip(variable.dims, index, strict=True):
                label = variable[axis].values[position] if axis in variable.coords else position
                assert isinstance(position, slice) or f"{axis}={label}" in difference.curve


def at(array, index):
    """Where an index points to."""
    mask = np.zeros(array.shape, bool)
    mask[index] = True
    return mask


def test_every_kind_has_a_tolerance(name, numbers):
    for curve, variable in numbers.data_vars.items():
        kind, own = baselines.kind_of(variable), variable.attrs.get("tolerance")
        assert kind in ("identity", "run", "training", "round-off"), curve
        if kind in ("training", "round-off"):
            assert own is not None, curve
        if FIGURES[name].long:
            assert kind != "round-off"
            assert own is None or own <= 0.05
    with pytest.raises(ValueError, match="kind: got 'training', wanted 'identity' or 'run'"):
        baselines.allowed_difference("training", "float64")


def test_panels_are_those_that_change(name, numbers, wanted):
    """A figure says which panels show a curve: what is drawn in those, and in no others, moves."""
    figure = FIGURES[name]
    named = {letter for letters in figure.panels.values() for letter in letters}
    assert named == {key[7] for key in wanted if key.startswith("panel") and wanted[key]["title"]}
    assert figure.panels.keys() <= numbers.data_vars.keys()
    for letters in sorted(set(figure.panels.values())):
        moved = {c: numbers[c] ** 1.5 for c, shown in figure.panels.items() if shown == letters}
        found = looks.describe_figure(figure.draw_styled(numbers.assign(moved)))
        lines = looks.differences(found, wanted)
        assert {line[7] for line in lines if re.match(DRAWN, line)} == {*letters}, [*moved]


DRAWN = r"panel \(\w\): (curve|shape)"


# Looks -------------------------------------------------------------------------------------------


def test_a_figure_looks_as_committed(name, drawn, wanted):
    assert looks.differences(looks.describe_figure(drawn), wanted) == []


def exchanged(first: Any, second: Any, what: str):
    """Give each of two artists what the other has, and put it back in the end."""
    for _ in range(2):
        values = [getattr(one, f"get_{what}")() for one in (second, first)]
        for one, value in zip((first, second), values, strict=True):
            getattr(one, f"set_{what}")(value)
        yield


def swap_labels(figure):
    """In a key, or at the ends of curves."""
    ax = next((ax for ax in figure.axes if ax.get_legend() or len(ax.texts) > 1), None)
    if ax is None:  # the key of the whole figure
        texts = figure.legends[0].get_texts()
        return None, "key", exchanged(texts[0], texts[1], "text")
    texts = ax.get_legend().get_texts() if ax.get_legend() else ax.texts
    return ax, "key|text", exchanged(texts[0], texts[1], "text")


def swap_titles(figure):
    first, second = figure.axes[:2]
    return first, "title", exchanged(first._left_title, second._left_title, "text")


def exchange_colours(figure):
    for ax in figure.axes:
        lines = [line for line in ax.lines if line.get_linestyle() != "None"]
        for pair in itertools.combinations(lines, 2):
            if not same_color(pair[0].get_color(), pair[1].get_color()):
                return ax, "curve", exchanged(pair[0], pair[1], "color")
    raise AssertionError("no two colours")


def move_a_limit(figure):
    ax = figure.axes[0]

    def moved():
        low, high = ax.get_xlim()
        ax.set_xlim(low, low + 1.05 * (high - low))
        yield
        ax.set_xlim(low, high)
        yield

    return ax, "x: limits", moved()


def change_a_scale(figure):
    ax = figure.axes[-2]

    def changed():
        scale, limits = ax.get_yscale(), ax.get_ylim()
        for one in ("linear" if scale == "log" else "symlog", scale):
            ax.set_yscale(one)
            yield
            ax.set_ylim(limits)

    return ax, "y: scale", changed()


CHANGES = (swap_labels, exchange_colours, move_a_limit, change_a_scale, swap_titles)


def test_changes_of_looks_are_caught_and_named(name, drawn, wanted):
    named = dict(zip(drawn.axes, looks.panel_names(drawn), strict=True))
    for change in CHANGES:
        ax, part, steps = change(drawn)
        next(steps)
        lines = looks.differences(looks.describe_figure(drawn), wanted)
        line = rf"{re.escape(named[ax])}: ({part})" if ax else f"({part})"
        if change is swap_titles:  # the letter is part of the title
            line = "got the order|" + line
        assert any(re.match(line, one) for one in lines), (change, lines)
        next(steps)
        assert looks.differences(looks.describe_figure(drawn), wanted) == []
    gone = looks.panel_names(drawn)[1]
    drawn.axes[1].remove()
    assert f"{gone}: missing" in looks.differences(looks.describe_figure(drawn), wanted)


# Pictures ----------------------------------------------------------------------------------------


def mpl(name):
    """The committed picture of a figure, as pytest-mpl is told to compare it."""
    return pytest.mark.mpl_image_compare(
        filename=f"{name}.png",
        style=str(plotting.STYLE),
        tolerance=pictures.TOLERANCE,
        savefig_kwargs={"dpi": pictures.DPI},
    )


@pytest.mark.parametrize("figure", [pytest.param(name, marks=mpl(name)) for name in FIGURES])
def test_a_picture_is_as_committed(figure):
    """From the committed numbers, which no change of the library moves; without text."""
    return pictures.remove_text(figure_fixtures.drawn(figure))


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in BASELINES.glob("*.png")) < 1_000_000
    assert {path.stem for path in BASELINES.glob("*.png")} == {*FIGURES}
    assert sum(path.stat().st_size for path in PAPER.glob("*.png")) < 500_000


@pytest.mark.parametrize("figure", AT_PAPER)
def test_a_figure_of_the_preset_paper_is_as_committed(figure):
    """Its settings, its looks and its picture, and how long it took."""
    numbers, exhibit = committed(figure, PAPER), FIGURES[figure]
    assert numbers.attrs["settings"] == results_file.canonical_json(exhibit.presets["paper"])
    assert (PAPER / f"{figure}.nc").stat().st_size < 100_000
    assert 0 < numbers.attrs["seconds_taken"] < 3600
    assert not json.loads(numbers.attrs["environment"])["git"].endswith("dirty")
    assert exhibit.look_changes(numbers, PAPER / figure) == []
    moved = numbers.assign({name: numbers[name] ** 1.5 for name in exhibit.panels})
    assert exhibit.look_changes(moved, PAPER / figure) != []


@pytest.mark.parametrize("figure", ["fig01_networks", "fig03", "theorem2"])
def test_changes_of_a_picture_are_caught_and_placed(figure):
    """Thin curves among many, markers, and maps."""
    drawn, path = figure_fixtures.drawn(figure), BASELINES / f"{figure}.png"
    assert pictures.difference(drawn, path) == ""
    drawn.set_layout_engine("none")  # it is as committed
    for change in (exchange_colours, move_a_limit):
        steps = change(drawn)[-1]
        next(steps)
        line = r"panel .*: picture, next to (no curve|curve \d+) at \(.*\): root mean square"
        assert re.match(line, pictures.difference(drawn, path))
        next(steps)
    drawn.axes[1].remove()
    assert "root mean square" in pictures.difference(drawn, path)


# Records of trainings -----------------------------------------------------------------------------

RECORDS = {path.name.removesuffix("_record.json"): path for path in BASELINES.glob("*_record.json")}


def is_open(claim):
    return claim["kind"] not in ("control", "finding") and claim["holds"] is None


@pytest.mark.parametrize("figure", RECORDS)
def test_a_record_is_of_a_clean_revision_and_of_the_run_of_the_numbers(figure):
    exhibit, numbers = FIGURES[figure], committed(figure)
    assert exhibit.long
    for name, record in json.loads(RECORDS[figure].read_text()).items():
        verdict = record["verdict"]
        open_ = {claim.get("rest") for claim in verdict["claims"] if is_open(claim)}
        assert verdict["holds"] or (verdict["holds"] is None and open_ == {STILL_MOVING})
        assert re.fullmatch("[0-9a-f]{12}", verdict["environment"]["git"])
        assert verdict["config"] == json.loads(numbers.attrs["settings"])[name]
        assert verdict["environment"] == json.loads(numbers.attrs["environment"])


PLACE = re.compile(r"""(?:^|[\s("'=])/\w[\w.-]*/""")
"""The beginning of an absolute path, also within a sentence."""


@pytest.mark.parametrize("figure", [name for name, one in FIGURES.items() if one.long])
def test_what_is_committed_of_a_training_names_no_place_of_a_machine(figure):
    texts = [str(value) for value in committed(figure).attrs.values()]
    texts += [RECORDS[figure].read_text()] if figure in RECORDS else []
    assert not [text for text in texts if PLACE.search(text)]
    planted = {"encoder": ["/srv/models/small/model", "auto", "d/e"], "found": "/model"}
    assert PLACE.search(json.dumps(planted))
    assert long.make_portable(planted) == {
        "encoder": ["small/model", "auto", "d/e"],
        "found": "model",
    }


def findings(figure):
    """Values of the findings in the record of a figure of one study."""
    (record,) = json.loads(RECORDS[figure].read_text()).values()
    claims = record["verdict"]["claims"]
    return {claim["id"]: claim["finding"] for claim in claims if claim["kind"] == "finding"}


def test_figure_7_has_the_differences_of_its_findings():
    pearson, found = committed("fig07").pearson, findings("fig07")
    for task in pearson.task.values:
        for first, second in COMPARED:
            for n in pearson.examples.values:
                pair = pearson.sel(task=task, adapter=[first, second], examples=n)
                ahead = pair.sel(adapter=first).values - pair.sel(adapter=second).values
                finding = found[f"{task}_{first}_less_{second}_{n}"]
                assert finding["value"] == pytest.approx(np.mean(ahead), rel=1e-6)
                assert finding["spread"] == pytest.approx(np.std(ahead, ddof=1), rel=1e-6)


def test_figure_8_has_the_changes_of_its_findings():
    pearson, found = committed("fig08").pearson, findings("fig08")
    for task in pearson.task.values:
        for name in pearson.adapter.values:
            for n in pearson.examples.values:
                for kind in ("own", "first"):
                    of_ranks = pearson.sel(task=task, adapter=name, examples=n, kind_of_rate=kind)
                    change = (of_ranks.sel(rank=64) - of_ranks.sel(rank=8)).values
                    finding = found[f"ranks_{task}_{n}_{name}_{kind}"]
                    assert finding["value"] == pytest.approx(np.mean(change), rel=1e-6)
                    assert finding["spread"] == pytest.approx(np.std(change, ddof=1), rel=1e-6)


def test_figure_5_has_the_differences_of_its_findings():
    pearson, found = committed("fig05").pearson, findings("fig05")
    for name in ("lora_plus_4", "lora_plus_16"):
        mean = float((pearson.sel(adapter=name) - pearson.sel(adapter="lora")).mean())
        assert found[f"factors_{name}_ahead"]["value"] == pytest.approx(mean, rel=1e-6)


def test_figure_2_has_the_ranks_of_its_findings():
    numbers, found = committed("fig02"), findings("fig02")
    for name in numbers.network.values:
        for kind in ("activations", "balanced"):
            of_kind = numbers.sel(network=name, of=kind)
            rank = found[f"{name}_{kind}_rank"]["value"]
            assert rank == pytest.approx(float(of_kind[f"{kind}_rank"]), rel=1e-5)
            drop, draws = found[f"{name}_{kind}_drop"], of_kind["drop"].values
            assert drop["value"] == pytest.approx(np.mean(draws), rel=1e-5)
            assert drop["spread"] == pytest.approx(np.std(draws, ddof=1), rel=1e-5)


def two_tasks(name):
    """Numbers of a figure with one task, and the same with another one beside it."""
    numbers = committed(name).isel(task=[0])
    shifted = numbers.assign(pearson=numbers.pearson**2).assign_coords(task=["similarity"])
    both = xr.concat([numbers.assign_coords(task=["sentiment"]), shifted], "task", data_vars="all")
    return numbers, both


@pytest.mark.parametrize(
    ("figure", "panels"), [("fig07", "abcd"), ("fig07_differences", "ab"), ("fig08", "abcdefghi")]
)
def test_another_task_has_panels_of_its_own(figure, panels):
    """And its differences are held at once with those of the first."""
    exhibit, (numbers, both) = FIGURES[figure], two_tasks(figure)
    for dataset in (numbers, both):
        caption = " ".join(exhibits.caption(exhibit, dataset).split())
        assert "(90 held at once, Bonferroni)" in caption
    body = caption.removeprefix(f"{figure}. {exhibits.headline(exhibit, both)}. ")
    assert len(body.split()) <= 120
    drawn = exhibit.draw_styled(both)
    assert sorted(ax.get_title("left")[1] for ax in drawn.axes) == list(panels)
    circles = [line for ax in drawn.axes for line in ax.lines if line.get_ls() == ":"]
    published = [line for line in circles if line.get_marker() == "o"]
    assert len(published) == {"fig07": 2, "fig07_differences": 0, "fig08": 4}[figure]


@pytest.mark.parametrize(("figure", "of_tasks"), [("fig07_differences", 1), ("fig08", 2)])
def test_an_interval_is_that_of_the_seeds_drawn(figure, of_tasks):
    """The last one, of the second task; seeds of both tasks have marks of their own."""
    drawn = FIGURES[figure].draw_styled(two_tasks(figure)[1])
    beside = drawn.axes[-1]
    seeds, interval = beside.lines[-4].get_xdata(), beside.lines[-3].get_xdata()
    t = scipy.stats.t.ppf(1 - 0.05 / (2 * 90), len(seeds) - 1)
    half = t * scipy.stats.sem(seeds)
    np.testing.assert_allclose(interval, [np.mean(seeds) - half, np.mean(seeds) + half])
    told = [text.get_text() for key in drawn.legends for text in key.get_texts()]
    assert ({"difference, sentiment", "difference, STS-B"} <= set(told)) == (of_tasks == 2)
    shapes = {line.get_marker() for ax in drawn.axes[-2:] for line in ax.lines}
    assert {".", "|"} <= shapes


def test_differences_are_sorted_by_their_mean_over_the_tasks():
    """The rows are the same in both panels, and all 64 differences are there."""
    drawn = figure_fixtures.drawn("fig07_differences")
    means = np.array(
        [
            [line.get_xdata()[0] for line in ax.lines if line.get_marker() in "os"]
            for ax in drawn.axes
        ]
    )
    assert means.shape == (2, 32)
    assert np.all(np.diff(means.mean(axis=0)) <= 0)
    label = drawn.axes[0].get_yticklabels()[-1].get_text()
    assert label == "LoRA, N(0, 1/d) less N(0, 1), n = 1024"
    pearson = committed("fig07").pearson.sel(examples=1024)
    largest = pearson.sel(adapter="lora") - pearson.sel(adapter="lora_unit")
    np.testing.assert_allclose(means[:, 0], largest.mean("seed").values)


def test_a_title_says_what_the_numbers_say():
    """And another thing of other numbers."""
    figure, numbers = FIGURES["fig07"], committed("fig07")
    start = "Adapters on few examples: Deep LoRA won {} of 8 and lost {} against LoRA from N(0, 1)"
    end = "; on STS-B untrained cosines beat all methods"
    said = exhibits.headline(figure, numbers)
    assert said.startswith(start.format(6, 0))
    assert said.endswith(end)
    for shift, wins in ((1, 8), (-1, 0)):
        moved = numbers.pearson.where(numbers.adapter != "deep_lora", numbers.pearson + shift)
        said = exhibits.headline(figure, numbers.assign(pearson=moved))
        assert said.startswith(start.format(wins, 8 - wins))
    said = exhibits.headline(figure, numbers.assign(pearson=numbers.pearson + 1))
    assert end not in said
    title = figure.draw_styled(numbers).axes[2].get_title("left")
    assert title == "(c) STS-B: untrained cosines win"
    ranks, numbers = FIGURES["fig08"], committed("fig08")
    kept = "3 of 12 fall when the rate is kept, none of 12 fall at the best rate of each"
    assert exhibits.headline(ranks, numbers) == f"Adapters over the rank: {kept}"
    flipped = numbers.assign(
        pearson=(numbers.pearson.dims, numbers.pearson.values[..., ::-1].copy())
    )
    kept = "none of 12 fall when the rate is kept, 3 of 12 fall at the best rate of each"
    assert exhibits.headline(ranks, flipped).endswith(kept)
    said = exhibits.headline(FIGURES["fig05"], committed("fig05"))
    assert "at n = 64, 30 seeds: +0.089 (ratio 4, above 0)" in said


@pytest.mark.parametrize("figure", ["fig07", "fig07_differences", "fig08"])
def test_of_one_seed_nothing_is_compared(figure):
    exhibit, numbers = FIGURES[figure], committed(figure).isel(seed=[0])
    caption = exhibits.caption(exhibit, numbers)
    assert "held at once" not in caption
    assert "none" not in caption + exhibits.notes(exhibit, numbers)
    panels = {"fig07": 4, "fig07_differences": 1, "fig08": 8}
    assert len(exhibit.draw_styled(numbers).axes) == panels[figure]


# For every reader's eyes and printer -------------------------------------------------------------

DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
"""On linear RGB. Machado, Oliveira, Fernandes, IEEE Trans. Vis. Comput. Graph. 15 (2009) 1291,
severity 1.0."""
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
"""Of linear sRGB, IEC 61966-2-1."""
APART = 15.0
"""Distance in CIELAB of two curves of one panel: 2.3 is just seen on large areas side by side, thin
lines need some times that."""


def seen(color):
    """A colour in CIELAB (white D65) as a deuteranope sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = TO_XYZ @ np.clip(DEUTERANOPIA @ linear, 0, 1) / TO_XYZ.sum(axis=1)
    small = ratio / (3 * (6 / 29) ** 2) + 4 / 29
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), small)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def closest(colors):
    return min(
        (float(np.linalg.norm(seen(a) - seen(b))), a, b)
        for a, b in itertools.combinations(sorted(set(colors)), 2)
    )


def test_the_simulation_confuses_what_deuteranopes_do():
    np.testing.assert_allclose(seen("white"), [100, 0, 0], atol=0.1)
    assert closest(["#CC79A7", "#8C8C8C"])[0] < 10
    assert closest(["blue", "yellow"])[0] > 100


def test_colours_stay_apart_under_deuteranopia(name, wanted):
    assert closest(plotting.SHADES)[0] > APART
    for panel, parts in wanted.items():
        if not panel.startswith("panel"):
            continue
        curves = [look for part, look in parts.items() if part.startswith("curve")]
        colors = {look[key] for look in curves for key in ("color", "edge") if key in look}
        if len(colors - {"none"}) > 1:
            assert closest(colors - {"none"})[0] > APART, (name, panel)


GREY_APART = 6.0
"""Difference of the lightness (CIELAB) of two curves of one panel in grey."""


def lightness(color):
    """Of a colour in grey, 0 to 100: what a printer without colours leaves."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = float(linear @ TO_XYZ[1])
    return (
        116 * (np.cbrt(ratio) if ratio > (6 / 29) ** 3 else ratio / (3 * (6 / 29) ** 2) + 4 / 29)
        - 16
    )


def drawn_alike(look):
    """What a curve is but for its colour, and that colour."""
    other = {part: look.get(part) for part in ("dashes", "marker", "size", "label")}
    filled = look.get("face") == look.get("edge")
    return (str(other), filled), look["edge"] if look["dashes"] == "None" else look["color"]


def test_colours_stay_apart_in_grey(name, wanted):
    """Curves of one panel that differ in nothing but their colour."""
    assert lightness("white") == pytest.approx(100, abs=0.1)
    pairs = itertools.combinations(map(lightness, plotting.SHADES), 2)
    assert min(abs(a - b) for a, b in pairs) > GREY_APART
    for panel, parts in wanted.items():
        looks_of = (
            [look for part, look in parts.items() if part.startswith("curve")]
            if (panel.startswith("panel"))
            else []
        )
        for a, b in itertools.combinations(map(drawn_alike, looks_of), 2):
            if a[0] == b[0] and a[1] != b[1]:
                assert abs(lightness(a[1][:7]) - lightness(b[1][:7])) > GREY_APART, (name, panel)


def test_text_and_lines_are_large_enough_to_print(name, drawn):
    """At the width of a page: 7 points and half a point."""
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    assert drawn.get_size_inches()[0] == pytest.approx(plotting.TEXT_WIDTH)
    small = [t.get_text() for t in drawn.findobj(Text) if t.get_text() and t.get_fontsize() < 7]
    assert small == []
    lines = [one for ax in drawn.axes for one in ax.lines if one.get_linestyle() != "None"]
    assert all(isinstance(one, Line2D) and one.get_linewidth() >= 0.5 for one in lines)


def test_captions_are_of_120_words_at_most(name, numbers):
    """The rest are notes, on the page."""
    figure = FIGURES[name]
    text = " ".join(exhibits.caption(figure, numbers).split())
    text = text.removeprefix(f"{name}. {exhibits.headline(figure, numbers)}. ")
    assert len(text.split()) <= 120
    assert len(exhibits.headline(figure, numbers).split()) <= 40


def test_fonts_are_embedded_as_outlines_of_truetype(tmp_path):
    """Type 42, which journals ask for, and no Type 3."""
    _, path = plotting.save(figure_fixtures.drawn("fig03"), tmp_path / "fig03")
    content = path.read_bytes()
    assert b"/FontFile2" in content
    assert b"/CIDFontType2" in content or b"/Subtype /TrueType" in content
    assert b"/Type3" not in content


WIDEST = 7.0
"""Inches of the text of a page, over both columns: no figure is made smaller to fit."""


def test_text_and_lines_can_be_read_in_print(name, drawn):
    """Seven points at the least, lines of half a point, at the size at which a figure is made."""
    assert drawn.get_size_inches()[0] <= WIDEST
    with plotting.style():
        assert rcParams["savefig.dpi"] >= 300
        widths = [value for name, value in rcParams.items() if re.match(r"[xy]tick.*width", name)]
        assert len(widths) == 4
        assert min(*widths, rcParams["axes.linewidth"]) >= 0.5
    drawn.draw_without_rendering()  # numbers at the ticks are made then
    texts = [one for one in drawn.findobj(Text) if one.get_visible() and one.get_text().strip()]
    assert len(texts) > 10
    assert min(one.get_fontsize() for one in texts) >= 7
    lines = [one for one in drawn.findobj(Line2D) if one.get_visible() and len(one.get_xdata())]
    drawn_lines = [one for one in lines if one.get_linestyle() != "None"]
    assert min(one.get_linewidth() for one in drawn_lines) >= 0.5
