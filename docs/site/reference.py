"""The reference: a page for each topic, with every public name, and one that lists them all.

The pages are written when the site is built; nobody edits them.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

import lrdyn
from docs.site import docstrings
from docs.site.docstrings import ROOT, Entry
from lrdyn.registry import REGISTRY

PAGES = ROOT / "docs" / "api"


class Topic(NamedTuple):
    """A page of the reference."""

    file: str
    title: str
    modules: tuple[str, ...]
    """Packages, for what they hand out, and modules, for what they define."""


def rooms() -> Iterator[Topic]:
    """The topics of theorems: what their rooms hand out, where they do."""
    for name, place in REGISTRY.items():
        module = place.partition(".statement")[0]
        if docstrings.exports(module):
            first = (docstrings.module_docstring(module) or name).partition("\n")[0]
            yield Topic(name, first.rstrip("."), (module,))


TOPICS = (
    Topic(
        "state",
        "State a theorem and have it judged",
        (
            "lrdyn.verification.stating.statement",
            "lrdyn.verification.stating.flags",
            "lrdyn.verification.stating.fields",
            "lrdyn.verification.stating.claims",
            "lrdyn.verification.stating.forms",
            "lrdyn.verification.stating.points",
            "lrdyn.verification.stating.rest",
            "lrdyn.verification.running.sweep",
            "lrdyn.verification.machine.compiler_options",
            "lrdyn.statements",
            "lrdyn.testing",
            "lrdyn.verification.runs.verify",
            "lrdyn.verification.judging.entries",
            "lrdyn.cli",
        ),
    ),
    Topic("core", "Descent, losses, starts and spectra", ("lrdyn.core",)),
    *rooms(),
    Topic(
        "adapters",
        "Algorithm 1: adapters for any model",
        ("lrdyn.adapters", "lrdyn.adapters.peft", "lrdyn.adapters.peft_adapters"),
    ),
    Topic("networks", "Networks", ("lrdyn.networks", "lrdyn.networks.packing")),
    Topic("diagnosis", "Updates of your own model", ("lrdyn.diagnosis",)),
    Topic("recorded_runs", "Runs that were trained elsewhere", ("lrdyn.recorded_runs",)),
    Topic("data", "Data sets and files of weights", ("lrdyn.data",)),
    Topic(
        "training",
        "Trainings and studies",
        ("lrdyn.training", "lrdyn.studies", "lrdyn.studies.over_seeds"),
    ),
    Topic(
        "figures",
        "Figures of your own",
        ("lrdyn.figures", "lrdyn.figures.plotting", "lrdyn.figures.single_panels"),
    ),
)
TOP = "lrdyn"
"""The package itself hands out names of all topics."""


def names_of(module: str) -> dict[str, Entry]:
    """What a package hands out, or what a module defines."""
    if entries := docstrings.exports(module):
        return entries
    return {
        name: entry
        for name, entry in docstrings.definitions(module).items()
        if not name.startswith("_") and (entry.docstring or entry in handed_out())
    }


def handed_out() -> list[Entry]:
    """What the package itself hands out."""
    return [docstrings.definitions(module)[name] for module, name in shortcuts()]


@cache
def shortcuts() -> dict[tuple[str, str], str]:
    """Where a name is defined -> under which name the package itself hands it out."""
    names, public = {}, set(lrdyn.__all__)
    for node in docstrings.tree(TOP).body:
        for inner in getattr(node, "body", []):
            module = getattr(inner, "module", None)
            if module and module != TOP:
                for alias in inner.names:
                    if (alias.asname or alias.name) not in public:
                        continue
                    entry = docstrings.found(module, alias.name)
                    names[entry.module, entry.name] = f"{TOP}.{alias.asname or alias.name}"
    return names


@cache
def documented() -> dict[str, tuple[Topic, Entry]]:
    """Public name -> its topic and what it is; each object once."""
    names: dict[str, tuple[Topic, Entry]] = {}
    seen = set()
    for topic in TOPICS:
        for module in topic.modules:
            for name, entry in names_of(module).items():
                if (entry.module, entry.name) in seen:
                    continue
                seen.add((entry.module, entry.name))
                names[f"{module}.{name}"] = topic, entry
    missing = [name for place, name in shortcuts().items() if place not in seen]
    assert not missing, f"no topic has {', '.join(missing)}"
    return names


@cache
def aliases() -> dict[str, str]:
    """Any other dotted name of a public one -> its name in the reference."""
    names = {}
    for public, (_, entry) in documented().items():
        for other in (f"{entry.module}.{entry.name}", shortcuts().get((entry.module, entry.name))):
            if other and other != public:
                names[other] = public
    return names


# Pages ------------------------------------------------------------------------------------------


def page(topic: Topic, config: Config) -> Iterator[str]:
    """The text of one topic."""
    yield topic.title
    yield "=" * len(topic.title)
    yield ""
    yield from introduction(topic.modules[0], config)
    where = None
    for public, (owner, entry) in documented().items():
        if owner != topic:
            continue
        if entry.module != where:
            where = entry.module
            heading = f"``{where}``"
            yield from ("", heading, "-" * len(heading), "")
            if where not in topic.modules[:1]:
                yield from introduction(where, config)
        module, _, name = public.rpartition(".")
        yield from ("", f".. py:currentmodule:: {module}", "")
        short = shortcuts().get((entry.module, entry.name))
        note = f"Also ``{short}``." if short else ""
        text = docstrings.directive(entry._replace(name=name), note, config)
        # Both names stand in the inventory, for whoever refers to them from elsewhere.
        first, end, rest = text.partition("\n")
        yield from came_from(entry, module, name)
        yield f"{first}\n   :canonical: {short}{end}{rest}" if short else text


def came_from(entry: Entry, module: str, name: str) -> Iterator[str]:
    """A target for the way back from the source, which knows one name of a module.

    That is the name under which the first of its objects stands, while others may stand under
    the module's own.
    """
    first = next(
        public for public, (_, other) in documented().items() if other.module == entry.module
    )
    elsewhere = first.rpartition(".")[0]
    if elsewhere != module:
        yield from (".. raw:: html", "", f'   <span id="{elsewhere}.{name}"></span>', "")


def introduction(module: str, config: Config) -> Iterator[str]:
    """What the head of a module says, and a target for references to it."""
    yield f".. py:module:: {module}"
    yield ""
    yield docstrings.as_rst(docstrings.module_docstring(module), config)


def index() -> Iterator[str]:
    """The page that lists every name."""
    title = "Reference"
    yield from (title, "=" * len(title), "")
    yield (
        "Every public name, by topic, with the first line of its docstring; a leading ``lrdyn.`` "
        "is left out. Words and symbols are those of :doc:`the glossary <../glossary>` and of the "
        "pages of theorems; ``Float[Array, 'd d']`` is an array of that shape."
    )
    yield from ("", ".. toctree::", "   :hidden:", "")
    yield from (f"   {topic.file}" for topic in TOPICS)
    short = shortcuts()
    for topic in TOPICS:
        label = f":doc:`{topic.title} <{topic.file}>`"
        yield from ("", label, "-" * len(label), "", ".. list-table::", "   :widths: 30 70", "")
        rows = [
            (public, entry) for public, (owner, entry) in documented().items() if owner == topic
        ]
        # What most readers look for, and what the package hands out itself, stands first.
        for public, entry in sorted(
            rows, key=lambda row: (row[1].module, row[1].name) not in short
        ):
            shown = short.get((entry.module, entry.name), public)
            yield f"   * - :py:obj:`{shown.removeprefix('lrdyn.')} <{public}>`"
            yield f"     - {docstrings.escaped(entry.summary)}"


def write(app: Sphinx) -> None:
    """Write the pages that differ from those that are there."""
    PAGES.mkdir(exist_ok=True)
    texts = {topic.file: "\n".join(page(topic, app.config)) for topic in TOPICS}
    texts["index"] = "\n".join(index())
    for file, text in texts.items():
        path = PAGES / f"{file}.rst"
        if not path.exists() or path.read_text() != f"{text}\n":
            path.write_text(f"{text}\n")
    for path in PAGES.glob("*"):
        if path.stem not in texts:
            path.unlink()


def by_another_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Node
) -> nodes.Node | None:
    """Resolve a reference by the place of a definition, as docstrings have them."""
    if node.get("refdomain") != "py":
        return None
    target: Any = node["reftarget"]
    public = aliases().get(target) or aliases().get(f"{node.get('py:module')}.{target}")
    if public is None:
        return None
    domain = env.domains["py"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, shown)


def defining_module(_: Sphinx, module: str, name: str) -> str | None:
    """Where the source of a public name, or of a member of one, stands."""
    known = documented().get(f"{module}.{name.partition('.')[0]}")
    return known and known[1].module


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("builder-inited", write)
    app.connect("missing-reference", by_another_name)
    app.connect("viewcode-follow-imported", defining_module)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
