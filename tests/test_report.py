"""Reports: one page of results that is whole, escaped, readable by everybody, and needs nothing."""

import base64
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lrdyn import __main__ as command
from lrdyn import cli
from lrdyn.commands import verify
from lrdyn.figures import verdicts
from lrdyn.registry import theorems
from lrdyn.report import commands, page, pictures
from lrdyn.report.markup import EMPTY, element, text
from lrdyn.studies import studies
from lrdyn.verification.judging import verdict_text as texts
from lrdyn.verification.running.evaluate import DATA_DIR
from lrdyn.verification.running.produce import select_scenarios
from lrdyn.verification.runs import repeating
from lrdyn.verification.stating.mistakes import BadInput
from tests import reports
from tests.reports import HOSTILE, diagnosed, saved, searched
from tests.runs import ROOT, finished
from tests.verification.test_theorem import MY_THEOREM

VOID = EMPTY | {"br", "hr"}
NO_END = "an element is closed in another order than it was opened"


class Page(HTMLParser):
    """A page as a reader's program sees it: elements, their attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), attrs
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, NO_END

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    def all(self, *tags):
        return [attrs for tag, attrs, _ in self.elements if tag in tags]

    @property
    def text(self):
        return "".join(self.texts)


def made(folder):
    return page.report(page.contents(folder), "1.2.3")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Reports of a run, of a diagnosis, and of several whose every text is markup."""
    return {one.stem: one.read_text() for one in reports.pages(tmp_path_factory.mktemp("reports"))}


@pytest.fixture(params=["run", "diagnosis", "search", "beyond", "several"])
def html(request, every):
    return every[request.param]


def test_a_page_needs_no_other_file_and_no_script(html):
    found = Page(html)
    assert html.startswith("<!doctype html>\n")
    assert not found.all("script", "link", "iframe", "object", "base", "form")
    for tag, attributes, _ in found.elements:
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), tag
    assert not re.search(r"url\(|@import", html)
    (policy,) = [one for one in found.all("meta") if "http-equiv" in one]
    assert policy["content"].startswith("default-src 'none'")


def test_a_page_can_be_read_by_everybody(html):
    found = Page(html)
    assert found.all("html")[0]["lang"] == "en"
    assert len(found.all("title")) == len(found.all("main")) == len(found.all("h1")) == 1
    levels = [int(tag[1]) for tag, _, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [one["id"] for _, one, _ in found.elements if "id" in one]
    assert len(ids) == len(set(ids))
    links = [one["href"] for one in found.all("a")]
    named = [one["aria-labelledby"] for one in found.all("section")]
    assert {link.removeprefix("#") for link in links} | set(named) <= set(ids)
    assert all(one.get("alt") and one["width"] and one["height"] for one in found.all("img"))
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(one.get("scope") in ("col", "row", "rowgroup") for one in found.all("th"))
    scrolled = [one for one in found.all("div") if one.get("class") == "scroll"]
    assert len(scrolled) == len(found.all("table"))
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in scrolled)


def test_markup_in_the_data_stays_text(every):
    found = Page(every["several"])
    assert "alert(1)" not in every["several"].replace("alert(&quot;1&quot;)", "")
    # claim, control, finding, name, title, about, settings, machine, provenance, caption, matrix
    assert found.text.count(HOSTILE) >= 12
    assert sum(HOSTILE[:20] in one.get("alt", "") for one in found.all("img")) == 1
    assert sum(HOSTILE in one.get("aria-label", "") for one in found.all("div")) >= 3


def test_what_a_page_may_not_hold_is_made_visible():
    assert text("a\x00\u202eb\x1b") == r"a\x00\u202eb\x1b"
    assert element("p", "<", title='"') == '<p title="&quot;">&lt;</p>'


def test_a_run_is_told_whole(every):
    said = Page(every["run"]).text
    claim, control, finding = reports.verdict()["claims"]
    for entry in (claim, control, finding):
        assert entry["id"] in said
    for word in (
        "own holds: 1 of 1 claims hold, in up to 4 cases each; the nearest to failing is ",
        ", at 0.1 of its tolerance",
        "1 of 1 controls were seen to fail, as they must",
        "fails, as it must",
        "3 by theory's number of steps, 1 by the run's own certificate",
        "lrdyn verify FILE.py --dim 4 --steps 9 --seed 1 --seeds 1 --dtype float64",
        "2.5 to 3.5",
        "1e-06 over 3 statistical tests",
        "d" * 64,
        "0123abc",
        "Made by lrdyn 0",
    ):
        assert word in said, word
    assert claim["statement"] in said
    assert said.index("bound") < said.index("control shown")


def test_a_search_is_told_whole(every):
    inside, beyond = Page(every["search"]).text, Page(every["beyond"]).text
    assert "no claim passes its threshold among 640 random points" in inside
    assert "the nearest is rho, at 0.5 of it" in inside
    for words in ("float64", "0.25", "1,200", "80", "python -m experiments.toy --seed 7", "dim"):
        assert words in inside
    assert "Claims fail where one of these alone is lost: d > 2 r." in beyond
    for words in ("31 of 600", "lost", "from 2.5e+02", "hypothesis: scenario", "--seed 14"):
        assert words in beyond
    assert "0 of 600" not in beyond  # what never failed is no edge


@pytest.mark.parametrize(
    ("changed", "sign"),
    [
        ({"ratios": {"float64": 1.5}}, "✗"),
        ({"repeated": 1.5}, "✗"),
        ({"ratios": {"float64": None}, "lost": True}, "✗"),
        ({"ratios": {}, "repeated": None, "command": None}, "○"),
        ({}, "✓"),
    ],
)
def test_the_verdict_of_a_search_is_that_of_its_claims(changed, sign, tmp_path):
    folder = searched(tmp_path / "s")
    content = json.loads((folder / "search.json").read_text())
    content["claims"][0] |= changed
    content["holds"] = sign != "✗"
    (folder / "search.json").write_text(json.dumps(content))
    assert f'">{sign} <span>' in made(folder).replace("\n", "")
    content["holds"] = not content["holds"]
    (folder / "search.json").write_text(json.dumps(content))
    assert '">✗ <span>' in made(folder) or sign == "✗"


@pytest.mark.parametrize(
    "changed",
    [{"claims": None}, {"claims": [{}]}, {"points": -1}, {"environment": []}, {"held": {"dim": 5}}],
)
def test_a_damaged_search_is_refused(changed, tmp_path):
    with pytest.raises(BadInput, match="wanted a folder of results"):
        made(searched(tmp_path / "s", **changed))


def test_a_search_of_neither_kind_is_refused(tmp_path):
    folder = searched(tmp_path / "s")
    content = json.loads((folder / "search.json").read_text())
    for wrong in ({"kind": "other"}, {"kind": "beyond"}):
        (folder / "search.json").write_text(json.dumps(content | wrong))
        with pytest.raises(BadInput, match="wanted"):
            made(folder)


def test_the_words_of_a_verdict():
    claim = reports.entry("a", "bound", holds=False)
    wrong = reports.verdict(holds=False, claims=[claim])
    assert texts.sentence(wrong) == (
        "own IS FALSE (no control): 0 of 1 claims hold, in up to 4 cases each; the nearest to "
        "failing is a, at 0.1 of its tolerance; false: a."
    )


def test_a_report_says_how_many_steps_a_claim_asks_for(tmp_path):
    """A verdict of an earlier release does not know."""
    counts = {"drawn": 4, "judged": 0, "left_out": {"too few steps": 4}}
    for more, said in (
        ({}, "how many would do is not known"),
        ({"more_steps": {"needed": 700, "flag": "steps"}}, "--steps 700 would do"),
    ):
        claim = reports.entry(
            "a",
            "bound",
            holds=None,
            cases=0,
            judged={"float64": counts | more},
            decided_by={"excused": 4},
        )
        folder = saved(tmp_path / said, holds=None, claims=[claim], undecided=["a"])
        page = made(folder)
        assert page.count(f"too few steps (4): {said}") == 3  # the sentence, the table, the claim


def test_a_picture_comes_with_its_caption_and_no_damaged_one_is_shown(tmp_path):
    folder = saved(tmp_path / "a", picture="Drawn – of σ.")
    (path,) = folder.glob("*.png")
    found = pictures.read(path)
    assert (found.caption, found.name) == ("Drawn – of σ.", "spectrum")
    assert f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" in made(folder)
    path.with_suffix(".txt").write_text("A title. Beside it.\n\nNotes.")
    assert pictures.read(path).caption == "A title. Beside it.\n\nNotes."
    whole = path.read_bytes()
    for wrong in (whole[:-1], whole[:200], whole.replace(b"IDAT", b"JDAT"), b"GIF", b""):
        path.write_bytes(wrong)
        with pytest.raises(cli.BadInput, match=r"spectrum\.png: damaged"):
            made(folder)


def test_the_caption_of_a_figure_is_what_its_function_says():
    def losses(groups, more):
        """Draw the losses.

        One curve a seed.

        Args:
            groups: all.
        """

    assert verdicts.caption(losses) == "The losses. One curve a seed."
    assert verdicts.caption(lambda groups: None) == ""
    for experiment in (*theorems(), *studies()):
        for name, plot in experiment.plots.items():
            assert len(verdicts.caption(plot)) > 40, name


def test_pictures_without_room_are_named(tmp_path, monkeypatch):
    folder = saved(tmp_path / "a")
    size = len(made(folder).encode())
    monkeypatch.setattr(page, "MOST", size - 100)
    smaller = made(folder)
    assert len(smaller.encode()) < size - 100
    assert "spectrum.png is not in this page" in smaller
    monkeypatch.setattr(page, "MOST", 1000)
    with pytest.raises(cli.BadInput, match="tables alone take"):
        made(folder)


def test_equal_results_give_equal_pages(tmp_path):
    folder = saved(tmp_path / "a")
    assert made(folder) == made(folder)


# Folders --------------------------------------------------------------------------------------


def test_a_summary_says_which_runs_are_reported(tmp_path):
    for name in ("one", "other"):
        saved(tmp_path / name / "new", name=name)
        saved(tmp_path / name / "old", name=name)
    assert Page(made(tmp_path)).text.count("Made by") == 1
    assert len(page.contents(tmp_path).runs) == 4
    named = [{"folder": f"elsewhere/{name}/new"} for name in ("one", "other")]
    (tmp_path / "summary.json").write_text(json.dumps({"theorems": named}))
    (tmp_path / "figures").mkdir()
    (drawn,) = (tmp_path / "one" / "new").glob("*.png")
    shutil.copy(drawn, tmp_path / "figures" / "fig03.png")
    (tmp_path / "figures" / "fig03.txt").write_text("A paper's figure. It shows this.")
    found = page.contents(tmp_path)
    assert [run.folder.name for run in found.runs] == ["new", "new"]
    said = Page(made(tmp_path)).text
    assert "2 of 2 hold." in said
    assert "2 other runs in this folder are not in the report." in said
    assert "A paper's figure. It shows this." in said


@pytest.fixture
def lrdyn(tmp_path, monkeypatch, unchecked, capsys):
    """Run ``lrdyn`` here, in an empty folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: (command.main(list(words)), *capsys.readouterr())


def test_the_command_writes_and_names_its_file(lrdyn):
    saved(Path("a"))
    assert lrdyn("report", "a") == (0, "report: a/report.html\n", "")
    first = Path("a/report.html").read_text()
    assert lrdyn("report", "a", "--out", "new/b.html") == (0, "report: new/b.html\n", "")
    assert Path("new/b.html").read_text() == first
    assert lrdyn("report", "a")[0] == 0  # its own file is written anew
    assert sorted(os.listdir("new")) == ["b.html"]


def damage(name):
    """What is wrong with a folder of results, by name."""

    def wrong(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-20])

    return wrong


def no_judged(folder):
    content = json.loads((folder / "verdict.json").read_text())
    content["claims"][0]["judged"] = {}
    (folder / "verdict.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "words", "said"),
    [
        (None, ["none"], "got 'none' (no such folder), wanted a folder of results"),
        (None, ["a/verdict.json"], "(a file), wanted a folder of results"),
        (None, ["empty"], "got 'empty' (no results in it), wanted a folder of results"),
        (None, ["a", "--out", "empty"], "--out: got 'empty' (a folder), wanted a file"),
        (None, ["a", "--out", "mine.html"], "(a file that is no report), wanted a new name"),
        (None, ["a", "--out", "link.html"], "link.html: got a symbolic link"),
        (None, ["a", "--out", "mine.html/x"], "wanted a file in a folder"),
        (None, [], "RESULTS: got nothing, wanted a value"),
        (damage("verdict.json"), ["a"], "(verdict.json: damaged"),
        (damage("results.nc"), ["a"], "(results.nc: damaged"),
        (damage("spectrum.png"), ["a"], "(spectrum.png: damaged"),
        (no_judged, ["a"], "(verdict.json: damaged"),
        (lambda folder: (folder / "results.nc").unlink(), ["a"], "(results.nc: not found)"),
        (lambda folder: shutil.copy("b/results.nc", folder), ["a"], "its checksum is not that"),
        (damage("../d/diagnosis.json"), ["d"], "(diagnosis.json: damaged"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(spoil, words, said, lrdyn):
    folder = saved(Path("a"))
    saved(Path("b"), "other")
    diagnosed(Path("d"))
    Path("empty").mkdir()
    Path("mine.html").write_text("<p>mine")
    Path("link.html").symlink_to("mine.html")
    if spoil:
        spoil(folder)
    before = sorted(Path().rglob("*"))
    status, out, err = lrdyn("report", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("lrdyn: error: ")
    assert said in err
    assert sorted(Path().rglob("*")) == before
    assert Path("mine.html").read_text() == "<p>mine"


LINKED = (
    "one/new/verdict.json",
    "one/new/results.nc",
    "one/new/spectrum.png",
    "one/new/spectrum.txt",
    "one/new",
    "one",
    "found/diagnosis.json",
    "found/diagnosis.png",
    "figures/fig03.png",
    "figures/fig03.txt",
    "figures",
    "summary.json",
)


@pytest.mark.parametrize("name", LINKED)
def test_no_link_below_a_reported_folder_is_followed(name, lrdyn):
    folder = Path("results")
    drawn = saved(folder / "one" / "new") / "spectrum.png"
    diagnosed(folder / "found")
    (folder / "figures").mkdir()
    shutil.copy(drawn, folder / "figures" / "fig03.png")
    for picture in (drawn, folder / "figures" / "fig03.png"):
        picture.with_suffix(".txt").write_text("A caption.")
    (folder / "summary.json").write_text(json.dumps({"theorems": [{"folder": "x/one/new"}]}))
    assert lrdyn("report", "results")[0] == 0
    (folder / "report.html").unlink()
    # Of the same content, so that the link alone is what is wrong.
    shutil.move(folder / name, "elsewhere")
    (folder / name).symlink_to(Path("elsewhere").absolute())
    status, out, err = lrdyn("report", "results")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "link" in err
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("x/..", "it names a folder above it"),
        ("../..", "it names a folder above it"),
        (f"x/{5000 * 'a'}", "it names a folder that is none: File name too long"),
        ("x/a\0b", "a name with a NUL in it"),
    ],
)
def test_a_summary_names_folders_below_its_own(named, said, lrdyn):
    saved(Path("a/b"))
    Path("a/summary.json").write_text(json.dumps({"theorems": [{"folder": named}]}))
    status, out, err = lrdyn("report", "a")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_run_that_is_named_twice_is_reported_once(tmp_path):
    saved(tmp_path / "a" / "b")
    named = [{"folder": f"{where}/a/b"} for where in "xyx"]
    (tmp_path / "summary.json").write_text(json.dumps({"theorems": named}))
    assert len(page.contents(tmp_path).runs) == 1


def test_results_that_were_changed_are_said_to_be(tmp_path):
    folder = saved(tmp_path / "a", changed=True, results_sha256=None)
    assert "The results were changed since their run" in made(folder)


# Commands that repeat a case ------------------------------------------------------------------


@pytest.mark.parametrize("experiment", [*theorems(), *studies()], ids=lambda one: one.name)
def test_the_command_of_a_case_asks_for_that_case(experiment):
    asked = verify.parse(experiment, []).run
    title = commands.command_of(experiment.name, experiment.summary)
    assert title == f"lrdyn verify {experiment.name}"
    for scenario in select_scenarios(experiment, asked.settings).scenarios:
        mine = scenario.narrow(dict(asked.settings))
        swept = {flag.name for flag in experiment.flags if flag.swept and mine[flag.name]}
        worst = {name: mine[name][-1] for name in swept if mine[name] is not None}
        line = repeating.repeating(title, asked.config, worst | {"seed": 1})
        _, _, _, *words = shlex.split(line)
        again = verify.parse(experiment, words).run
        # `other_problems` has all but the first; one alone is the first, of `trajectory`.
        place = "trajectory" if scenario.id == "other_problems" else scenario.id
        (same,) = [s for s in again.concerned.scenarios if s.id == place]
        there = same.narrow(dict(again.settings))
        assert all(value in there[name] for name, value in worst.items()), scenario.id
        assert (again.seed, again.seeds, again.dtype) == (1, 1, asked.dtype)
        others = {n: v for n, v in asked.settings.items() if n not in swept | {DATA_DIR}}
        assert all(again.settings[name] == value for name, value in others.items())


def test_words_of_a_command_are_quoted():
    config = reports.CONFIG | {"flag": "a; rm -rf ~ $(x)"}
    line = repeating.repeating("lrdyn verify t", config, {"seed": 0})
    assert "a; rm -rf ~ $(x)" in shlex.split(line)


# Colours ----------------------------------------------------------------------------------------


def schemes():
    """Name -> colours of the style, by their names."""
    style = page.STYLE.read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    assert len(blocks) == 3
    found = [dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in blocks]
    return dict(zip(("light", "dark", "print"), found, strict=True))


def luminance(color):
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
@pytest.mark.parametrize("ground", ["ground", "raised"])
@pytest.mark.parametrize("color", ["text", "quiet", "link", "holds", "false", "open"])
def test_every_text_stands_out_from_its_ground(scheme, ground, color):
    colors = schemes()[scheme]
    dark, bright = sorted(luminance(colors[name]) for name in (ground, color))
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_the_style_has_no_colour_beside_its_names():
    style = page.STYLE.read_text()
    used = re.sub(r":root \{.*?\}", "", style, flags=re.S)
    assert set(re.findall(r"#\w{3,8}\b", used)) == {"#ffffff"}  # behind figures


# Runs -------------------------------------------------------------------------------------------


def test_a_run_names_the_claim_of_each_control(tmp_path_factory):
    ran = finished("corollary1", tmp_path_factory.getbasetemp())
    html = made(ran.folder)
    said = Page(html).text
    ids = {entry["id"] for entry in ran.verdict["claims"]}
    for entry in ran.verdict["claims"]:
        assert entry["id"] in said
        if entry["kind"] == "control":
            assert entry["claim"] in ids
            assert texts.outcome(entry) in said
    assert ">Controls</th>" not in html
    assert said.count("control ") >= sum("claim" in one for one in ran.verdict["claims"])
    assert f"lrdyn verify corollary1 --dim {ran.verdict['config']['dim'][0]} " in said
    assert "Residual over tolerance of every case" in said  # the caption within the PNG


def test_a_theorem_of_ones_own_without_the_repository(tmp_path):
    """What pip installs is enough, for a run with ``--report`` and for a report of its folder."""
    shutil.copytree(
        ROOT / "lrdyn", tmp_path / "site" / "lrdyn", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "mine.py").write_text(MY_THEOREM)
    kept = {name: os.environ[name] for name in ("PATH", "LRDYN_CACHE") if name in os.environ}
    surroundings = kept | {"PYTHONPATH": str(tmp_path / "site"), "HOME": str(tmp_path)}

    def lrdyn(*words):
        ended = subprocess.run(
            [sys.executable, "-m", "lrdyn", *words],
            cwd=tmp_path,
            env=surroundings,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert not ended.returncode, ended.stderr
        return ended.stdout.splitlines()

    *_, last = lrdyn("verify", "mine.py", "--report")
    (run,) = (tmp_path / "results" / "my_theorem").iterdir()
    assert last == f"report: results/my_theorem/{run.name}/report.html"
    found = Page((run / "report.html").read_text())
    assert "lrdyn verify mine.py --dim" in found.text
    assert lrdyn("report", f"results/my_theorem/{run.name}") == [last]
    assert "lrdyn verify FILE.py --dim" in Page((run / "report.html").read_text()).text
