"""What the site adds to a page as it stands in the repository.

Names of the library become links into the reference, a link to a script or a command that runs one
of ``docs/examples`` offers it as a download, a quotation that
begins with one of the labels gets its colour, and a comment
``<!-- measured: theorem2 off_block bulk -->`` is replaced by what ``docs/results.md`` says of those
claims; a finding says if its theorem was edited since its verdict. On a code host the pages are
whole without any of that.
"""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

from docs import findings
from docs.site import reference
from docs.site.docstrings import ROOT

RESULTS = ROOT / "docs" / "results.md"
SCRIPT = re.compile(r"\[`?([^\]`]+)`?\]\(((?![^)]*notebooks/)[^)\s]+\.py)\)")
"""A link to a file of Python; notebooks are pages."""
EXAMPLE = re.compile(r"\bdocs/examples/[\w/]+\.py\b")
"""A script as commands name it."""
MEASURED = re.compile(r"^<!-- measured: (\w+) ([\w ]+) -->$", re.M)
LABELS = ("Proven", "Measured", "Expected")
"""How a quotation begins that says what kind of knowledge it is."""
MATHJAX = "tex-svg-full.js"
"""Of its files the one that asks for no other: it has all extensions and draws without fonts."""


def rows(theorem: str) -> dict[str, list[str]]:
    """Claim -> the cells of its row in the results of a theorem."""
    section = RESULTS.read_text().partition(f"\n`lrdyn verify {theorem}`")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    cells = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in lines]
    return {row[0].strip("`"): row for row in cells}


def measured(theorem: str, claims: list[str]) -> str:
    """A table of what was measured of some claims of a theorem."""
    lines = [
        "| claim | cases judged | float64 (tolerance) | float32 (tolerance) | least of a control |",
        "|---|---|---|---|---|",
    ]
    by_claim = rows(theorem)
    for claim in claims:
        name, _, _, judged, double, of_double, single, of_single, controls = by_claim[claim]
        each = [float(number) for number in re.findall(r" ([0-9][-0-9.e]*)(?:,|$)", controls)]
        least = f"{min(each):.2g} of {len(each)}" if each else "-"
        lines.append(
            f"| {name} | {judged} | {double} ({of_double}) | {single} ({of_single}) | {least} |"
        )
    return "\n".join(lines)


def rewrite(_: Sphinx, document: str, content: list[str]) -> None:
    """Change the text of a page before it is read."""
    if document.startswith("docs/api/"):
        return
    text = MEASURED.sub(lambda match: measured(match[1], match[2].split()), content[0])
    if document == "docs/findings":
        text = findings.marked_stale(text)
    # Within code nothing is a link.
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    parts[::2] = [SCRIPT.sub(r"{download}`\1 <\2>`", part) for part in parts[::2]]
    content[0] = "".join(parts)


class LinkedNames(SphinxTransform):
    """Code that is a public name becomes a link to what the reference says of it."""

    default_priority = 400

    def apply(self) -> None:
        """Look at every piece of code in running text."""
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext().removesuffix("()")
            known = name in reference.documented() or name in reference.aliases()
            if known and not isinstance(literal.parent, nodes.reference | pending_xref):
                link = pending_xref(
                    "",
                    refdoc=self.env.current_document.docname,
                    refdomain="py",
                    reftype="obj",
                    reftarget=reference.aliases().get(name, name),
                    refexplicit=True,
                )
                literal.replace_self(link)
                link += literal


class OfferedScripts(SphinxTransform):
    """A command that runs a script of ``docs/examples`` offers it, for a reader without a clone."""

    default_priority = 401  # behind LinkedNames, which replaces literals

    def apply(self) -> None:
        """Wrap code in running text; put a line below the first block that runs another script."""
        for literal in list(self.document.findall(nodes.literal)):
            found = EXAMPLE.search(literal.astext())
            if found and not isinstance(literal.parent, nodes.reference | pending_xref):
                link = self.offer(found[0])
                literal.replace_self(link)
                link += literal
        links = self.document.findall(download_reference)
        offered = {link["reftarget"].rpartition("/")[2] for link in links}
        for block in list(self.document.findall(nodes.literal_block)):
            line = nodes.paragraph("", "Download ")
            for path in dict.fromkeys(EXAMPLE.findall(block.astext())):
                if (name := path.rpartition("/")[2]) not in offered:
                    offered.add(name)
                    line += [nodes.Text(", ")] * (len(line) > 1)
                    line += self.offer(path)
                    line[-1] += nodes.literal("", name)
            if len(line) > 1:
                block.parent.insert(block.parent.index(block) + 1, line)

    def offer(self, path: str) -> download_reference:
        """A link that copies a file of the repository beside the pages."""
        return download_reference(
            "",
            refdoc=self.env.current_document.docname,
            refdomain="",
            reftype="download",
            refexplicit=True,
            reftarget=f"/{path}",
        )


class LabelledQuotations(SphinxTransform):
    """A quotation that begins with a label has its name as a class, of which ``site.css`` knows."""

    default_priority = 400

    def apply(self) -> None:
        """Look at the first words of every quotation."""
        for quotation in self.document.findall(nodes.block_quote):
            first = next(iter(quotation.findall(nodes.strong)), None)
            word = first.astext().rstrip(".") if first else ""
            if word in LABELS and quotation.astext().startswith(word):
                quotation["classes"] += ["labelled", word.lower()]


def add_mathjax(app: Sphinx, failure: Exception | None) -> None:
    """Put MathJax, out of its package, beside the pages."""
    package = find_spec("sphinx-mathjax-offline")
    if failure is None and package is not None and package.origin is not None:
        folder = app.outdir / "_static" / "mathjax"
        folder.mkdir(exist_ok=True)
        shutil.copy(Path(package.origin).parent / "static" / "mathjax" / MATHJAX, folder)


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("source-read", rewrite)
    app.connect("build-finished", add_mathjax)
    app.add_transform(LinkedNames)
    app.add_transform(OfferedScripts)
    app.add_transform(LabelledQuotations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
