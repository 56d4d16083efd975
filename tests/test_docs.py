"""The documents: their code runs, their commands and flags exist, their links lead somewhere."""

import ast
import dataclasses
import importlib.util
import json
import os
import pkgutil
import re
import sys
import threading
import types
from functools import partial
from graphlib import TopologicalSorter

import numpy as np
import pytest

import lrdyn
from docs import gallery, pictures, reach, updates
from docs.examples import pairs
from docs.refresh import INTRODUCTION, written
from lrdyn import __main__ as command
from lrdyn import cli
from lrdyn.commands import figures, pool
from lrdyn.corollary1.statement import COROLLARY1
from lrdyn.figures import exhibits
from lrdyn.registry import REGISTRY, theorems
from lrdyn.statements import GROUP
from lrdyn.studies import studies
from lrdyn.studies.real_updates import REAL_UPDATES
from paper_figs import EXHIBITS
from tests import pages
from tests.pages import EXAMPLES
from tests.runs import ROOT, finished, python

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "SECURITY.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/records/*.md"),
        *ROOT.glob("docs/theorems/*.md"),
    ]
)
BLOCKS = [*PAGES, ROOT / "CONTRIBUTING.md"]


@pytest.mark.tools
@pytest.mark.parametrize("page", BLOCKS, ids=lambda page: page.name)
def test_blocks_run_and_print_what_is_shown(page, tmp_path):
    pages.check(page, tmp_path)


A_PAGE = """\
Text with `make test` and `python -m experiments.theorem2 --dim 9`.

```python
from math import comb
print(comb(4, 2), "ways")
```

```text
6 ways
```

```python
half = comb(4, 2) / 2
print(f"{half:.1e} {half * 1e-15:.1e}")
```

```text machine
3.1e+00 2.2e-15
```

```python balance.py
start = balance(case.weights)  # another comment
return Theory(balance=start + case.learning_rate**2 * drift)
```

```console machine
$ echo "results/a/0123456789ab (2.5 s)" && touch 0123456789ab && false
results/a/ba9876543210 (1.0 s)
$ echo $?
1
$ ls ba9876543210 docs/examples/saddle.py
ba9876543210
docs/examples/saddle.py
```

```yaml workflows/theorems.yml
WORKFLOW
```

```console parsed it is an example
$ lrdyn verify theorem2 --dim 9 --judge FOLDER   # a comment
$ python docs/examples/balance.py --perturb
$ env -u NAME python -m paper_figs check fig03 --recompute
$ PYTHON=python3.13 make verify
shown, not compared
```
""".replace("WORKFLOW\n", (EXAMPLES / "workflows" / "theorems.yml").read_text())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("6 ways", "6 ways", None),
        ("6 ways", "7 ways", r"page.md:8: shows '7 ways', prints '6 ways'"),
        ("6 ways\n", "", "shows None, prints '6 ways'"),
        ("6 ways\n", "6 ways\nmore\n", "shows 'more', prints None"),
        ("3.1e+00", "3.3e+00", "prints '3.0e"),
        ("2.2e-15", "2.0e-14", "shows '3.1e"),
        ("text machine", "text", "shows '3.1"),
        ("import comb", "import combs", "cannot import name 'combs'"),
        ("half = ", "half = whole = combine = ", None),
        ("half = comb", "half = combine", "name 'combine' is not defined"),
        ("```text\n6", "```python\n1\n```\n\n```text\n6", "page.md:3: shows None"),
        ("```python\nhalf", "```text\nhalf", "page.md:12: text that no block prints"),
        ("balance.py\nstart", "balance.py\nbegin", "'begin = .* is not in balance.py"),
        ("(1.0 s)", "(1.0 h)", "shows 'results"),
        ("$ echo $?\n1", "$ echo $?\n0", "shows '0', prints '1'"),
        ("$ echo $?\n1\n", "", "status 1 before 'ls"),
        ("$ ls ba9876543210 ", "$ ls none ", "status 2, not shown|prints"),
        ("saddle.py\nba9876543210\n", "saddle.py\n", "shows 'docs/examples"),
        ("```console machine\n", "```console machine\nline\n", "'line' stands behind no command"),
        ("```python\nhalf", "```python with no_such_package\nhalf", None),
        ("```python\nhalf =", "```python with no_such_package\nhalf = =", "invalid syntax"),
        ("```python\nhalf", "```python with math\nhalff", "half"),
        ("```console machine\n", "```\n", "'```' is no kind of block"),
        ("```console machine\n", "```bash\n", "'```bash' is no kind of block"),
        ("```console machine\n", "  ```console\n", "is no kind of block"),
        ("cache: pip", "cache: uv", "shows ' *cache: uv', prints ' *cache: pip'"),
        ("          path: results\n", "", "shows .*if-no-files-found.*prints .*path: results"),
        ("```yaml workflows/theorems.yml", "```yaml", "is no kind of block"),
        ("parsed it is an example", "parsed", "'```console parsed' is no kind of block"),
        ("verify\nshown, not compared\n```", "verify", "a block that does not end"),
        ("--dim 9`", "--dims 9`", "--dims: got an unknown argument"),
        ("--dim 9 --judge", "--dims 9 --judge", "--dims: got an unknown argument"),
        ("--dim 9 --judge", "--dim x --judge", "--dim: got 'x'"),
        ("--perturb", "--perturbs", "--perturbs: got an unknown argument"),
        ("--recompute", "--recomputed", "--recomputed: got an unknown argument"),
        ("check fig03", "check fig33", "figure: got 'fig33'"),
        ("verify theorem2", "verify theorem9", "theorem9"),
        ("lrdyn verify", "lrdyn verifies", "got verifies"),
        ("experiments.theorem2", "experiments.theorem9", "theorem9"),
        ("experiments.theorem2", "experiment.theorem2", "No module named 'experiment'"),
        ("experiments.theorem2 --dim 9", "tests.faults signals", None),
        ("experiments.theorem2 --dim 9", "tests.faults.signal", "no such module"),
        ("experiments.theorem2 --dim 9", "tests.faults.configurations --commands 2", None),
        ("experiments.theorem2 --dim 9", "tests.faults.configurations --command 2", "got --comm"),
        ("make test", "make tests", "got tests"),
        ("examples/balance.py --p", "examples/balances.py --p", "balances.py"),
        ("PYTHON=python3.13 make", "cmake", "no such command"),
        ("PYTHON=python3.13 make verify", ". .venv/bin/activate", None),
        ("PYTHON=python3.13 make verify", ". verify", "no such command"),
        ("PYTHON=python3.13 make verify", "python3 -m venv mine", None),
        ("PYTHON=python3.13 make verify", "python3 -m venvs mine", "no such module"),
    ],
)
def test_a_page_that_is_wrong_is_found(old, new, said, tmp_path):
    assert old in A_PAGE
    (tmp_path / "page.md").write_text(A_PAGE.replace(old, new, 1))
    if said is None:
        pages.check(tmp_path / "page.md", tmp_path)
        return
    with pytest.raises(pages.Wrong, match=said):
        pages.check(tmp_path / "page.md", tmp_path)


def test_the_smallest_theorem_is_shown_whole():
    """What a reader copies from the page is the file, line by line."""
    shown = (ROOT / "docs" / "tutorial.md").read_text().partition("```python smallest.py\n")[2]
    assert shown.partition("```\n")[0] == (EXAMPLES / "smallest.py").read_text()


def test_figures_exist():
    for figure in set(re.findall(r"\bfig\d\d\b", "".join(page.read_text() for page in PAGES))):
        assert list((ROOT / "paper_figs").glob(f"{figure}_*.py")), figure


def test_flags_exist(capsys):
    def flags(text):
        return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))

    for study in studies():
        assert cli.main(study, ["--help"]) == 0
    assert cli.run("figures", lambda: figures.main([], ROOT, ["--help"])) == 0
    assert command.main(["diagnose", "--help"]) == 0
    assert command.main(["merge", "--help"]) == 0
    assert command.main(["judge-run", "--help"]) == 0
    for word in ("language", "images", "encoder"):
        assert cli.run("pairs", partial(pairs.main, [word, "--help"])) == 0
    of_studies = flags(capsys.readouterr().out)
    for theorem in theorems():
        assert cli.main(theorem, ["--help"]) == 0
    assert cli.run("all", lambda: pool.main(["all", "--help"])) == 0
    assert command.main(["--help"]) == 0
    known = flags(capsys.readouterr().out)
    said = flags("\n".join(page.read_text() for page in PAGES))
    assert said - known - of_studies <= {"--flag", *OF_OTHERS}
    assert known - {"--help"} <= flags((ROOT / "docs" / "commands.md").read_text())


OF_OTHERS = (
    "--again",
    "--array",
    "--check",
    "--commands",
    "--cpus-per-task",
    "--dashboard-address",
    "--host",
    "--interface",
    "--log",
    "--no-deps",
    "--nthreads",
    "--no-dashboard",
    "--nworkers",
    "--protocol",
    "--record",
    "--requeue",
    "--scheduler-file",
    "--seconds",
    "--time",
    "--tls-ca-file",
    "--tls-cert",
    "--tls-key",
    "--wrap",
    "--xla",
    "--device",
    "--largest",
    "--limit",
    "--minutes",
    "--page",
    "--resume",
    "--sample",
    "--stage",
    "--tiny",
    "--write",
)
"""Flags of pip, of Dask and of Slurm on the page of clusters, of the tools of the tests, and of
what a page of accelerators starts."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in slugs, target


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(EXAMPLES.glob("*.py"))], ids=lambda page: page.name
)
def test_no_path_of_a_machine(page):
    text = page.read_text()
    assert not re.search(r"/(?:tmp|work|home|root|Users|usr|opt)/", text)
    assert not re.search(r"https?://(?!arxiv\.org)", text)


def rows_of(text):
    """Section and claim -> the cells of its row: two theorems may have a claim of one name."""
    rows, section = {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            section = line
        if line.startswith("| `"):
            claim, *cells = re.split(r"(?<!\\) \| ", line[2:-2])
            key = section, claim.strip("`")
            assert key not in rows
            rows[key] = cells
    return rows


def test_a_row_of_results_is_that_of_its_theorem():
    text = (ROOT / "docs" / "results.md").read_text()
    rows = rows_of(text)
    assert len(rows) == sum(line.startswith("| `") for line in text.splitlines())
    assert {section for section, claim in rows if claim == "parameters"} == {
        "## Corollary 1",
        "## LoRA and its relatives",
    }


@pytest.mark.tools
def test_the_table_of_results_says_what_the_theorems_say(tmp_path_factory):
    """Written from a run it has the same rows, words and controls; only numbers differ."""
    base = tmp_path_factory.getbasetemp()
    verdicts = {t.name: finished(t.name, base).verdict for t in theorems()}
    committed, found = (
        rows_of(text) for text in ((ROOT / "docs" / "results.md").read_text(), written(verdicts))
    )
    assert list(committed) == list(found)
    for name, (stated, sides, *_, controls) in found.items():
        assert sides
        assert committed[name][:2] == [stated, sides], name
        assert all(re.search("[0-9]|-", cell) for cell in committed[name][2:7])
        words = [re.sub(r" [0-9][-0-9.e]*", "", text) for text in (controls, committed[name][-1])]
        assert words[0] == words[1], name
    introduction = INTRODUCTION.partition("(JAX")[0]
    assert (ROOT / "docs" / "results.md").read_text().startswith(introduction)


def test_the_page_of_figures_says_what_the_captions_say():
    assert gallery.PAGE.read_text() == gallery.written()
    images = {path.stem for path in gallery.IMAGES.glob("*.png")}
    reaches = {f"reach_{name}" for name in reach.committed()}
    figures = [one for one in EXHIBITS if isinstance(one, exhibits.Figure)]
    papers = {gallery.image_of(one.name, "paper") for one in figures if gallery.has_two(one)}
    others = {updates.IMAGE, *pictures.shown_pictures()}
    assert images == reaches | papers | {one.name for one in figures} | others


def test_the_page_of_updates_says_what_is_kept_of_their_runs():
    assert updates.PAGE.read_text() == updates.written()
    kept = json.loads(updates.KEPT.read_text())
    assert [*kept] == [*updates.PAIRS]
    for pair in kept.values():
        assert re.fullmatch("[0-9a-f]{12}", pair["environment"]["git"])
        assert sum(one["energy"] for one in pair["kinds"]) == pytest.approx(1, abs=1e-3)
        for one in pair["kinds"]:
            # What holds .9 of the energy of the median matrix holds about as much in the mean.
            most, largest = (min(shape) for shape in one["shapes"])
            if most < largest or one["ranks"][0] < 0.1 * most:  # finer than the grid
                continue
            assert one["ranks"][0] <= one["ranks"][1] <= most
            at = np.interp(np.array(one["ranks"]) / most, updates.GRID, one["shares"])
            assert (np.abs(at - (0.9, 0.99)) < 0.1).all() or most < 20, one


def test_what_is_said_of_updates_is_what_was_measured():
    kept = json.loads(updates.KEPT.read_text())
    kinds = {name: {one["kind"]: one for one in pair["kinds"]} for name, pair in kept.items()}

    def of_chance(names, *parts):
        """Least and largest share of chance, for .9 and .99."""
        chosen = [
            np.array(one["ranks"]) / one["chance"]
            for name in names
            for kind, one in kinds[name].items()
            if kind.startswith(parts)
        ]
        ends = zip(np.min(chosen, axis=0), np.max(chosen, axis=0), strict=True)
        return [tuple(f"{end:.2f}"[1:] for end in pair) for pair in ends]

    text = " ".join(updates.READING.replace("> ", "").split())
    inner = ("attention.", "mlp.")
    (low, high), (low99, high99) = of_chance(("language", "language_tuned", "encoder"), *inner)
    assert f"need {low} to {high} of the values" in text
    (few, more), (few99, more99) = of_chance(("vit",), *inner)
    assert f"and {few} to {more} in the vision transformer" in text
    assert f"need {low99} to {high99} and {few99} to {more99}." in text
    ((low, high), _) = of_chance(("resnet",), "first", "second")
    ((of_vgg, _), _) = of_chance(("vgg",), "convolution")
    assert f"({low} and {high} of it in ResNet, {of_vgg} in VGG)" in text
    assert f"is not: {kinds['vgg']['classifier.0']['ranks'][0]:g} values hold .9." in text
    hidden = [one["ranks"][0] for kind, one in kinds["vit"].items() if kind != "head"]
    assert max(hidden) <= 20 < kinds["mlp"]["weights_0"]["ranks"][0]
    assert max(kinds["mlp"][f"weights_{i}"]["ranks"][0] for i in (1, 2, 3)) <= 20
    for kind in ("attention.query", "mlp.weights_0"):
        before, after = (kinds[name][kind]["ranks"][0] for name in ("language", "language_tuned"))
        assert before < after
        assert re.search(rf"{before:g}\b.* and {after:g}\b", text)
    assert kinds["language_tuned"]["unembedding"]["ranks"][0] == 1


def test_what_is_kept_of_an_update_is_counted_in_its_results(tmp_path, command_line):
    """Of a matrix of rank one among others, and of two of one kind."""
    rng = np.random.default_rng(0)
    before = {f"layers.{i}.W": rng.normal(size=(6, 4)).astype(np.float32) for i in range(2)}
    before["head"] = rng.normal(size=(3, 5)).astype(np.float32)
    after = {name: W + np.float32(0.1) for name, W in before.items()}
    for name, weights in (("before", before), ("after", after)):
        np.savez(tmp_path / f"{name}.npz", allow_pickle=False, **weights)
    files = [tmp_path / f"{name}.npz" for name in ("before", "after")]
    words = ("--before", files[0], "--after", files[1], "--out", tmp_path / "out")
    assert command_line(REAL_UPDATES, *words)[0] == 0
    (results,) = (tmp_path / "out").glob("*/*/results.nc")
    kinds = {one["kind"]: one for one in updates.found(results)["kinds"]}
    assert kinds.keys() == {"W", "head"}
    assert [kinds["W"][name] for name in ("matrices", "shapes", "ranks")] == [
        2,
        [[6, 4]] * 2,
        [1, 1],
    ]
    assert kinds["W"]["energy"] == pytest.approx(48 / 63, abs=1e-3)
    assert kinds["head"]["chance"] == [2, 3]
    np.testing.assert_allclose(kinds["W"]["shares"][10:], 1, atol=1e-4)


# Pages of theorems ------------------------------------------------------------------------------

THEOREM_PAGES = sorted(ROOT.glob("docs/theorems/*.md"))


def test_every_claim_is_on_one_page():
    blocks = re.findall(
        r"^<!-- measured: (\w+) ([\w ]+) -->$",
        "\n".join(page.read_text() for page in THEOREM_PAGES),
        re.M,
    )
    shown = sorted((name, claim) for name, claims in blocks for claim in claims.split())
    stated = [(t.name, c.id) for t in theorems() for s in t.scenarios for c in s.claims]
    assert shown == sorted(stated)


def test_the_pictures_of_how_far_theorems_reach_show_every_control_with_degrees():
    shown = reach.committed()
    for theorem in (theorem for theorem in theorems() if theorem.name in shown):
        stated = {c.id: c for s in theorem.scenarios for c in s.controls if c.amounts}
        assert set(shown[theorem.name]) == set(stated)
        for name, control in stated.items():
            one = shown[theorem.name][name]
            assert control.statement in one.title
            assert one.label == control.amount_label
            assert one.amounts.tolist() == [0, *control.amounts]
            for precision, residuals in one.residuals.items():
                assert (residuals[0] <= one.tolerances[precision]).all(), name
                assert (residuals[-1] > 10 * one.tolerances[precision]).all(), name
        picture = f"images/reach_{theorem.name}.png"
        assert (ROOT / "docs" / picture).stat().st_size < 200_000
        assert any(f"(../{picture})" in page.read_text() for page in THEOREM_PAGES)


def test_what_is_kept_of_a_reach_is_read_again():
    assert reach.NUMBERS.read_text() == reach.saved(reach.committed())


def test_the_tables_of_departures_are_those_of_the_pictures():
    section = (ROOT / "docs" / "claims.md").read_text().partition("## Controls: seen to fail")[2]
    rows = re.findall(r"^\| ([a-z][^|]*) \| ([0-9].*) \|$", section.partition("\n## ")[0], re.M)
    shown = reach.committed()["theorem2"]
    order = ("gaussian_start", "rank_above_r", "noisy_gradient", "not_whitened", "masked_loss")
    for (_, cells), name in zip(
        [row for row in rows if row[0] not in ("distance", "entries hidden")], order, strict=True
    ):
        largest = shown[name].residuals["float64"].max(axis=1)
        said = [float(cell) for cell in cells.split(" | ")]
        assert len(said) == len(largest)
        assert 0.2 < said[0] / largest[0] < 5
        assert all(0.95 < a / b < 1.05 for a, b in zip(said[1:], largest[1:], strict=True)), name


@pytest.mark.tools
def test_a_referee_without_the_library(tmp_path_factory):
    """It needs no library of ours, and takes the newest run beside a search."""
    ran = finished("theorem2", tmp_path_factory.getbasetemp())
    script = EXAMPLES / "referee.py"
    assert "lrdyn" not in script.read_text().replace("without lrdyn", "")
    done = python(script, ran.folder.parents[1], cwd=tmp_path_factory.mktemp("elsewhere"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"rho: .* in [0-9]+ cases, as the verdict says\n", done.stdout)


def test_exported_names_in_the_documents_exist():
    for page in PAGES:
        text = page.read_text().replace(GROUP, "")  # of entry points, which is no module
        for name in re.findall(r"\blrdyn\.([a-z_0-9]+)(?:\.([a-z_0-9]+))?", text):
            first, second = name
            if importlib.util.find_spec(f"lrdyn.{first}"):
                module = importlib.import_module(f"lrdyn.{first}")
                there = not second or hasattr(module, second)
                assert there or importlib.util.find_spec(f"lrdyn.{first}.{second}"), name
            else:
                assert hasattr(lrdyn, first), name


BELOW = (
    *("system", "core", "training", "networks", "data", "verification", "shared_flags"),
    "figures",
)
"""Parts of the library below what it is about, in the order in which they may import each other."""
ABOVE = (
    *("registry", "studies", "report", "statements", "testing", "commands", "cli"),
    *("__init__", "__main__"),
)
"""Those above. Between them are the rooms of theorems, adapters and what looks at updates, which
may import each other without a circle."""
OF_USERS = ("commands/example.py", "commands/example_arrays.py")
"""What `lrdyn figures init` copies: it imports the library as its users do."""


def imported(path):
    """Parts of the library that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, *rest = node.module.split(".")
            if first == "lrdyn":
                yield from rest[:1] or (name.name for name in node.names)
        elif isinstance(node, ast.Import):
            names = [name.name.split(".") for name in node.names]
            yield from ((rest or ["__init__"])[0] for first, *rest in names if first == "lrdyn")


def test_imports_go_one_way():
    package, imports = ROOT / "lrdyn", {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).with_suffix("").parts[0]
        if path.relative_to(package).as_posix() not in OF_USERS:
            imports.setdefault(room, set()).update(set(imported(path)) - {room})
    between = imports.keys() - {*BELOW, *ABOVE}
    assert {place.split(".")[1] for place in REGISTRY.values()} <= between
    order = [*BELOW, *TopologicalSorter({r: imports[r] & between for r in between}).static_order()]
    for place, room in enumerate(order := [*order, *ABOVE]):
        above = imports.get(room, set()) & {*order[place + 1 :]}
        assert not above, f"{room} imports {above}, which stand above it"


ROOMS_OF_VERIFICATION = (
    *("stating", "storing", "judging", "machine", "running", "runs", "searching"),
    "cluster",
)
"""Parts of ``lrdyn.verification``, in the order in which they may import each other."""


def test_verification_knows_nothing_of_its_subject():
    """It judges statements of whatever subject: no theorem, network or adapter is imported."""
    package = ROOT / "lrdyn" / "verification"
    order, seen = ROOMS_OF_VERIFICATION, set()
    for path in sorted(package.rglob("*.py")):
        seen |= {room := path.relative_to(package).parts[0]}
        assert {*imported(path)} <= {"verification", "core", "data", "system", "training"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            first, _, rest = module.removeprefix("lrdyn.").partition(".")
            if first == "verification" and rest:
                other = rest.partition(".")[0]
                assert order.index(other) <= order.index(room), f"{path} imports {module}"
    assert seen == {*order, "__init__.py"}


def test_no_module_holds_what_a_computation_reads():
    """What a run needs is passed to it; of the terminal alone a module knows that it is gone."""
    for path in sorted((ROOT / "lrdyn").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        named = {node.id for node in nodes if isinstance(node, ast.Name)}
        assert "ContextVar" not in named, path
        kept = any(isinstance(node, ast.Global) for node in nodes)
        assert not kept or path.name == "printer.py", path


@pytest.mark.tools
def test_the_way_of_one_run(tmp_path, monkeypatch):
    """The page names functions in the order in which a run comes to them."""
    monkeypatch.setenv("LRDYN_CACHE", "")  # programs that are kept are not traced
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## The way of one run")[2]
    hops = [
        (file, name)
        for file, names in re.findall(r"^\d+\. `([\w/]+\.py)` ((?:`\w+`,? ?)+)", section, re.M)
        for name in re.findall(r"\w+", names)
    ]
    assert len(hops) > 15
    called: dict[int, types.CodeType] = {}  # a code's own hash reads all of it

    def follow(frame, event, _):  # at every call of any function: it does nothing that can wait
        if event == "call":
            called.setdefault(id(frame.f_code), frame.f_code)

    words = ["--dim", "6", "--depth", "2", "--rank", "1", "--steps", "2", "--seeds", "1"]
    # One control is all of the way: each of the others compiles, and is followed, once more.
    first = COROLLARY1.scenarios[0]
    first = dataclasses.replace(first, controls=first.controls[:1])
    short = dataclasses.replace(COROLLARY1, scenarios=(first,))
    threading.setprofile(follow)
    sys.setprofile(follow)
    try:
        assert cli.main(short, [*words, "--dtype", "float32", "--out", str(tmp_path)]) in (
            0,
            4,
        )
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    package = os.path.dirname(lrdyn.__file__)
    came_to = dict.fromkeys(
        (os.path.relpath(code.co_filename, package), code.co_name)
        for code in called.values()
        if code.co_filename.startswith(package)
    )
    assert [hop for hop in came_to if hop in hops] == hops


def test_no_name_hides_a_module():
    for module in pkgutil.walk_packages(lrdyn.__path__, "lrdyn."):
        importlib.import_module(module.name)
        package, _, name = module.name.rpartition(".")
        assert getattr(sys.modules[package], name) is sys.modules[module.name]
