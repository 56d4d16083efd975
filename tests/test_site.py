"""The site as it was built: it asks nobody, leaves no public name out, and typesets its formulas.

Run by ``make docs``, which builds it; an environment without Sphinx has nothing to test here.
"""

import html
import importlib
import inspect
import re
import types
from functools import cache
from html.parser import HTMLParser
from posixpath import dirname, join, normpath

import pytest

import lrdyn
from docs import refresh
from lrdyn.registry import REGISTRY
from notebooks import _kept
from tests.runs import ROOT

inventories = pytest.importorskip("sphinx.util.inventory", reason="make docs runs this")
docstrings, reference, words = (
    importlib.import_module(f"docs.site.{name}") for name in ("docstrings", "reference", "words")
)

SITE = ROOT / "build" / "site"
HOME = "docs/index.html"
LOADED = {"audio", "embed", "iframe", "img", "input", "link", "script", "source", "video"}
"""Tags that load what their attributes name."""


class Page(HTMLParser):
    """What a page loads, where it links to, and its text outside of scripts."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.scripts, self.ids = [], [], [], set()
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.inside = tag
        self.ids.add(values.get("id"))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED:
            self.loads += [v for k, v in attrs if k in {"src", "href", "srcset", "data"} and v]
        if "style" in values:
            self.loads += addresses(values["style"])

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)
        if self.inside == "style":
            self.loads += addresses(data)


def addresses(style):
    """What a style sheet loads."""
    return re.findall(r"url\(\s*['\"]?([^'\")]+)", style) + re.findall(
        r"@import\s+['\"]([^'\"]+)", style
    )


@cache
def pages():
    """Path -> page."""
    found = {path.relative_to(SITE).as_posix(): path for path in SITE.rglob("*.html")}
    return {name: Page(path.read_text()) for name, path in found.items() if "_static" not in name}


def linked(name):
    """Where the links of a page lead, within the site."""
    for href in pages()[name].links:
        if not re.match(r"[a-z]+:", href):
            path, _, anchor = href.partition("#")
            yield normpath(join(dirname(name), path)) if path else name, anchor


def foreign(address):
    """Whether a browser would ask another host for it."""
    return bool(re.match(r"\s*(?:[a-z]+:)?//", address)) and not address.startswith("data:")


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ("<script src='https://host/a.js'></script>", True),
        ("<link rel='preconnect' href='//host'>", True),
        ("<p style='background: url(\"https://host/a.png\")'>", True),
        ("<style>@import 'https://host/a.css'</style>", True),
        ("<img src='a.png'><a href='https://host'>a link asks nobody</a>", False),
    ],
)
def test_what_a_page_loads_from_others_is_found(text, loads):
    assert any(map(foreign, Page(text).loads)) == loads


def test_no_page_asks_another_host():
    assert len(pages()) > 50
    asked = {name: [one for one in page.loads if foreign(one)] for name, page in pages().items()}
    assert {name: one for name, one in asked.items() if one} == {}


def test_no_style_sheet_asks_another_host():
    sheets = {path: addresses(path.read_text()) for path in SITE.rglob("*.css")}
    assert sum(map(len, sheets.values())) > 0
    assert {path: one for path, one in sheets.items() if any(map(foreign, one))} == {}


def test_no_script_of_a_page_names_another_host():
    for name, page in pages().items():
        text = "".join(page.scripts)
        assert not re.search(r"https?://", text), name


def test_what_a_page_loads_is_there():
    for name, page in pages().items():
        for address in page.loads:
            path = address.partition("?")[0].partition("#")[0]
            if path and not address.startswith("data:"):
                assert (SITE / normpath(join(dirname(name), path))).exists(), (name, address)


def test_links_within_the_site_lead_somewhere():
    for name in pages():
        for path, anchor in linked(name):
            assert (SITE / path).exists(), (name, path)
            if anchor and path in pages():
                assert anchor in pages()[path].ids, (name, path, anchor)


def test_formulas_are_drawn_by_a_file_of_the_site():
    assert (SITE / "_static" / "mathjax" / words.MATHJAX).stat().st_size > 1e6
    loaded = pages()["docs/theorems/theorem2.html"].loads
    assert any(words.MATHJAX in address for address in loaded)


def test_a_script_that_a_page_names_is_a_download_of_that_page():
    """Whole: its copy has the bytes of the repository's."""
    named = 0
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT).with_suffix(".html").as_posix()
        places = {path.rpartition("/")[2]: path for path, _ in linked(name) if "_downloads" in path}
        for script in set(words.EXAMPLE.findall(page.read_text())):
            copy = SITE / places[script.rpartition("/")[2]]
            assert copy.read_bytes() == (ROOT / script).read_bytes(), (name, script)
            named += 1
    assert named > 0


# Notebooks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _kept.names())
def test_a_notebook_shows_all_that_its_run_gave(name):
    ran = {name: notebook for name, _, notebook in _kept.load()}[name]
    assert _kept.code_digest(_kept.read(name)) == _kept.code_digest(ran)
    outputs = [cell.outputs for cell in ran.cells if cell.get("outputs")]
    text = (SITE / "notebooks" / f"{name}.html").read_text()
    assert text.count('<div class="cell_output') == len(outputs) > 0
    pictures = sum("image/png" in one.get("data", {}) for of in outputs for one in of)
    assert (
        sum("_images" in address for address in pages()[f"notebooks/{name}.html"].loads) == pictures
    )


# Labels -----------------------------------------------------------------------------------------


def test_a_quotation_with_a_label_has_its_class():
    for name in pages():
        if name.startswith("docs/theorems/"):
            text = (SITE / name).read_text()
            classes = re.findall(r'<blockquote class="labelled (\w+)"', text)
            assert len(classes) == text.count("<blockquote"), name
            assert {"proven", "measured"} & set(classes), name
    home = (SITE / HOME).read_text()
    assert re.findall(r'<blockquote class="labelled (\w+)"', home) == [
        label.lower() for label in words.LABELS
    ]


def luminance(color):
    """Of a colour written as six hexadecimal digits, by the rules of WCAG 2."""
    shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("where", "behind"), [("html", "#ffffff"), ('html[data-theme="dark"]', "#121212")]
)
def test_labels_can_be_read_in_light_and_in_dark(where, behind):
    style = (SITE / "_static" / "site.css").read_text()
    colors = dict(
        re.findall(r"--(\w+): (#\w{6});", style.partition(f"{where} {{")[2].partition("}")[0])
    )
    assert set(colors) == {label.lower() for label in words.LABELS}
    for name, color in colors.items():
        dark, light = sorted(map(luminance, (color, behind)))
        assert (light + 0.05) / (dark + 0.05) > 7, name


# The reference ----------------------------------------------------------------------------------


@cache
def inventory():
    """Public name -> page and anchor, from the file that other sites would read."""
    with (SITE / "objects.inv").open("rb") as file:
        found = inventories.InventoryFile.load(file, "", join)
    return {
        name: item.uri.partition("#")[::2]
        for role in ("py:function", "py:class", "py:data")
        for name, item in found[role].items()
    }


def public_names():
    """(Where it can be reached, the object), as Python sees the library."""
    for name in (*lrdyn.__all__, *map(refresh.room_of, REGISTRY)):
        value = getattr(lrdyn, name)
        if not isinstance(value, types.ModuleType):
            if not name.startswith("__"):
                yield f"lrdyn.{name}", value
            continue
        for inner, one in vars(value).items():
            if not inner.startswith("_") and not isinstance(one, types.ModuleType):
                yield f"lrdyn.{name}.{inner}", one


def known(name):
    """The name under which the reference has a public one."""
    return name if name in inventory() else reference.aliases().get(name, name)


def test_every_public_name_is_in_the_reference():
    names = dict(public_names())
    assert names
    assert [name for name in names if known(name) not in inventory()] == []


def test_an_alias_is_the_same_object():
    for name, value in public_names():
        module, _, attribute = known(name).rpartition(".")
        there = getattr(importlib.import_module(module), attribute)
        assert there is value or there == value, name


def test_every_public_name_is_two_clicks_from_the_home_page():
    one_click = {path for path, _ in linked(HOME) if path in pages()}
    two_clicks = {place for path in one_click for place in linked(path)}
    assert [name for name, place in inventory().items() if place not in two_clicks] == []


def test_every_name_of_the_reference_says_something():
    bare = [name for name, (_, entry) in reference.documented().items() if not entry.docstring]
    assert bare == []


def test_signatures_are_shown_as_they_are_written():
    whole = (SITE / "docs/api/theorem2.html").read_text()
    signature = whole.partition('id="lrdyn.theorem2.frame"')[2].partition("</dt>")[0]
    text = html.unescape(re.sub(r"<[^>]+>", "", signature)).replace("\n", "")
    assert "frame(weights: Square, target: Float[Array, 'd d'], rank: int) → Frame" in text
    assert "[source]" in text


# Docstrings and pages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("docstring", "rst"),
    [
        ("Line.\n\n    W_l = rho_l I", "Line.\n\n::\n\n    W_l = rho_l I"),
        ("Line::\n\n    |x| * 2\n\nMore.", "Line::\n\n    |x| * 2\n\nMore."),
        ("|x| and ``|y|`` * :func:`f_`", "\\|x\\| and ``|y|`` \\* :func:`f_`"),
        ("``a *\nb`` *", "``a *\nb`` \\*"),
        ("* one |x|\n* two", "* one \\|x\\|\n* two"),
        ("W_ is", "W\\_ is"),
        ("Example:\n    >>> 1 | 2\n    3", "Example:\n    >>> 1 | 2\n    3"),
        ("Example:\n    >>> a_\n    >>> b | c", "Example:\n    >>> a_\n    >>> b | c"),
    ],
)
def test_a_docstring_is_no_markup_but_where_it_means_to_be(docstring, rst):
    assert "\n".join(docstrings.with_formulas(docstring.splitlines())) == rst


def test_a_colon_in_what_is_returned_is_no_type():
    config = importlib.import_module("sphinx.ext.napoleon").Config(napoleon_use_rtype=False)
    text = docstrings.as_rst("Line.\n\nReturns:\n    The last one: 0.", config)
    assert "The last one: 0." in text


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[a](../x/a.py)", "{download}`a <../x/a.py>`"),
        ("[`a`](a.py)", "{download}`a <a.py>`"),
        ("[a](../../notebooks/a.py)", "[a](../../notebooks/a.py)"),
        ("[a](a.md)", "[a](a.md)"),
    ],
)
def test_a_link_to_a_script_offers_it(link, shown):
    content = [f"text {link} text"]
    words.rewrite(None, "docs/page", content)
    assert content == [f"text {shown} text"]


def test_what_was_measured_comes_from_the_page_of_results():
    line = words.measured("theorem2", ["off_block"]).splitlines()[-1]
    row = words.rows("theorem2")["off_block"]
    assert row[4] in line
    assert row[3] in line
    assert inspect.cleandoc(row[1])
    with pytest.raises(KeyError, match="no_claim"):
        words.measured("theorem2", ["no_claim"])
