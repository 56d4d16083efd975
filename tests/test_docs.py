"""The documents: their code runs, their commands and flags exist, their links lead somewhere."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.refresh import INTRODUCTION, written
from lrdyn import cli, pool
from lrdyn.theorems import theorems
from tests.runs import finished

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
TINY = ["--dim", "4", "--depth", "2", "--steps", "20", "--seeds", "1"]
HEADINGS = r"^#+ (.*)$"


def run(*words, cwd, source=None):
    """Run Python as a reader does: in another folder, the package installed or on the path."""
    environment = dict(os.environ)
    inside = "import lrdyn"
    found = subprocess.run([sys.executable, "-c", inside], cwd=cwd, capture_output=True)
    if found.returncode:
        environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, *map(str, words)],
        input=source,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def test_the_true_conjecture_holds(tmp_path):
    done = run(EXAMPLES / "balance.py", *TINY, "--perturb", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "results" / "balance").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names >= {"verdict.json", "results.nc", "verdict.png", "perturb.png"}


def test_the_false_conjecture_is_caught_by_float64_alone(tmp_path):
    done = run(EXAMPLES / "balance_false.py", *TINY, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("balance ")]
    assert "does not scale with epsilon" in line
    single = run(EXAMPLES / "balance_false.py", *TINY, "--dtype", "float32", cwd=tmp_path)
    assert single.returncode == 0, single.stdout + single.stderr


def test_the_slogans_example_runs(tmp_path):
    done = run(EXAMPLES / "slogans.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[:1]:
        assert line.endswith("30 of 30")


def test_the_code_of_the_readme_runs(tmp_path):
    blocks = fenced(ROOT / "README.md", "python")
    assert blocks
    for block in blocks:
        done = run("-", cwd=tmp_path, source=block)
        assert done.returncode == 0, done.stderr
        printed = done.stdout.strip().rpartition(":")
        assert printed[0] in (ROOT / "README.md").read_text()
        assert float(printed[2]) < 1e-12


def test_the_code_on_sweeps_runs(tmp_path):
    page = ROOT / "docs" / "sweeps.md"
    (block,) = fenced(page, "python")
    done = run("-", cwd=tmp_path, source=block)
    assert done.returncode == 0, done.stderr
    assert f"```\n\n```\n{done.stdout}```\n" in page.read_text()


@pytest.mark.parametrize("name", ["balance.py", "balance_false.py", "saddle.py"])
def test_the_tutorial_quotes_its_examples(name):
    """Every line of code in the tutorial is a line of one of its examples."""
    files = ("balance.py", "balance_false.py", "saddle.py")
    sources = "".join((EXAMPLES / f).read_text() for f in files)
    known = {line.split("  #")[0].strip() for line in sources.splitlines()} | {""}
    for block in fenced(ROOT / "docs" / "tutorial.md", "python"):
        for line in block.splitlines():
            assert line.split("  #")[0].strip() in known, line
    assert name in (ROOT / "docs" / "tutorial.md").read_text()


def test_commands_exist():
    text = "".join(page.read_text() for page in PAGES)
    modules = set(re.findall(r"python -m ([a-z_]+(?:\.[a-z_]\w*)?)", text))
    assert {"experiments.theorem2", "experiments.corollary1", "paper_figs"} <= modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|\$ |\d )make ([a-z]+)", text)) <= targets
    for script in re.findall(r"docs/examples/\w+\.py", text):
        assert (ROOT / script).exists(), script
    figures = set(re.findall(r"\bfig\d\d\b", text))
    for figure in figures:
        assert list((ROOT / "paper_figs").glob(f"{figure}_*.py")), figure


def test_flags_exist(capsys):
    known = set()
    for theorem in theorems():
        assert cli.main(theorem, ["--help"]) == 0
        known |= set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    assert cli.run("all", lambda: pool.main(["all", "--help"])) == 0
    known |= set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    mentioned = set()
    for page in PAGES:
        mentioned |= set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page.read_text()))
    assert mentioned - known <= {"--flag"}
    section = (ROOT / "README.md").read_text().partition("## Run one theorem")[2]
    assert known - {"--help"} <= set(re.findall(r"--[a-z][a-z0-9-]*", section))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(HEADINGS, file.read_text(), re.M)
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
    """Claim -> the cells of its row."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return {
        cells[0].strip("`"): cells[1:]
        for cells in (re.split(r"(?<!\\) \| ", line[2:-2]) for line in lines)
    }


def test_the_table_of_results_says_what_the_theorems_say(tmp_path_factory):
    """Written from a run it has the same rows, words and controls; only numbers differ."""
    base = tmp_path_factory.getbasetemp()
    verdicts = {t.name: finished(t.name, base).verdict for t in theorems()}
    committed, found = (
        rows_of(text) for text in ((ROOT / "docs" / "results.md").read_text(), written(verdicts))
    )
    assert list(committed) == list(found)
    number = r"[0-9][-0-9.e]*|-"
    for name, cells in found.items():
        stated, sides, *_, controls = cells
        assert sides
        assert committed[name][:2] == [stated, sides], name
        assert all(re.search(number, cell) for cell in committed[name][2:7])
        words = [re.sub(r" [0-9][-0-9.e]*", "", text) for text in (controls, committed[name][-1])]
        assert words[0] == words[1], name
    introduction = INTRODUCTION.partition("(JAX")[0]
    assert (ROOT / "docs" / "results.md").read_text().startswith(introduction)


def test_a_referee_without_the_library(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    folders = [finished(theorem.name, base).folder for theorem in theorems()]
    script = EXAMPLES / "referee.py"
    assert len(script.read_text().splitlines()) <= 60
    assert "lrdyn" not in script.read_text().replace("without lrdyn", "")
    done = run(script, folders[0].parents[1], cwd=base)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [theorem.name for theorem in theorems()]
    assert all(line.endswith("as the verdict says") for line in lines)


def test_an_experiment_without_a_claim_runs(tmp_path):
    small = ["--dim", "4", "--depth", "2", "--init-scale", "0.1", "--steps", "20", "--seeds", "1"]
    done = run(EXAMPLES / "saddle.py", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results" / "saddle").iterdir()
    names = {"verdict.json", "results.nc", "loss.png", "loss.pdf"}
    assert {path.name for path in folder.iterdir()} == names


def test_exported_names_in_the_documents_exist():
    import lrdyn

    for page in PAGES:
        for name in re.findall(r"\blrdyn\.([a-z_]+)(?:\.([a-z_]+))?", page.read_text()):
            first, second = name
            if importlib.util.find_spec(f"lrdyn.{first}"):
                module = importlib.import_module(f"lrdyn.{first}")
                assert not second or hasattr(module, second), name
            else:
                assert hasattr(lrdyn, first), name


FLOORS = (
    {"claims", "theorem"}, {"engine"}, {"drawing"}, {"theorems"}, {"cli"}, {"figures", "pool"},
    {"__init__"},
)  # fmt: skip
"""Parts of the library from the lowest up; all that is not named stands below them."""


def floor(name):
    return next((at for at, names in enumerate(FLOORS, 1) if name in names), 0)


def imported(path):
    """Parts of the library that a file imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            first, *rest = node.module.split(".")
            if first == "lrdyn":
                yield from rest[:1] or (one.name for one in node.names)


def test_imports_go_one_way():
    package = ROOT / "lrdyn"
    seen = set()
    for path in sorted(package.rglob("*.py")):
        mine = path.relative_to(package).with_suffix("").parts[0]
        above = [name for name in imported(path) if floor(name) > floor(mine)]
        assert not above, f"{path.relative_to(ROOT)} imports {above}, which stand above it"
        seen.add(mine)
    assert set().union(*FLOORS) <= seen
