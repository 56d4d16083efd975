"""The documents: their code runs, their commands and flags exist, their links lead somewhere."""

import ast
import importlib.util
import pkgutil
import re
import sys

import pytest

import lrdyn
from docs.refresh import INTRODUCTION, written
from lrdyn import __main__ as command
from lrdyn import cli, pool
from lrdyn.theorems import theorems
from tests.runs import ROOT, finished, python

EXAMPLES = ROOT / "docs" / "examples"
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
TINY = ["--dim", "4", "--depth", "2", "--steps", "20", "--seeds", "1"]


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def printed_by(*words, **how):
    """What Python prints when it ends well."""
    done = python(*words, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written_by(folder, name):
    """Names of the files that a run left."""
    (run,) = (folder / "results" / name).iterdir()
    return {path.name for path in run.iterdir()}


def test_the_true_conjecture_holds(tmp_path):
    printed_by(EXAMPLES / "balance.py", *TINY, "--perturb", cwd=tmp_path)
    names = {"verdict.json", "results.nc", "verdict.png", "perturb.png"}
    assert written_by(tmp_path, "balance") >= names


def test_the_false_conjecture_is_caught_by_float64_alone(tmp_path):
    done = python(EXAMPLES / "balance_false.py", *TINY, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("balance ")]
    assert "does not scale with epsilon" in line
    printed_by(EXAMPLES / "balance_false.py", *TINY, "--dtype", "float32", cwd=tmp_path)


def test_the_slogans_example_runs(tmp_path):
    first, *_ = printed_by(EXAMPLES / "slogans.py", cwd=tmp_path).splitlines()
    assert first.endswith("30 of 30")


def test_the_code_of_the_readme_runs(tmp_path):
    blocks = fenced(ROOT / "README.md", "python")
    assert blocks
    for block in blocks:
        words, _, number = printed_by("-", cwd=tmp_path, source=block).strip().rpartition(":")
        assert words in (ROOT / "README.md").read_text()
        assert float(number) < 1e-12


def test_the_code_on_sweeps_runs(tmp_path):
    page = ROOT / "docs" / "sweeps.md"
    (block,) = fenced(page, "python")
    shown = printed_by("-", cwd=tmp_path, source=block)
    assert f"```\n\n```\n{shown}```\n" in page.read_text()


def test_the_tutorial_quotes_its_examples():
    """Every line of code in the tutorial is a line of one of its examples."""
    files, page = ("balance.py", "balance_false.py", "saddle.py"), ROOT / "docs" / "tutorial.md"
    assert all(name in page.read_text() for name in files)
    sources, quoted = (
        {line.split("  #")[0].strip() for text in texts for line in text.splitlines()}
        for texts in ([(EXAMPLES / name).read_text() for name in files], fenced(page, "python"))
    )
    assert quoted - sources <= {""}


def test_commands_exist():
    text = "".join(page.read_text() for page in PAGES)
    modules = set(re.findall(r"python -m ([a-z_]+(?:\.[a-z_]\w*)*)", text))
    assert {"experiments.theorem2", "experiments.corollary1", "paper_figs"} <= modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|\$ |\d )make ([a-z]+)", text)) <= targets
    for script in re.findall(r"docs/examples/\w+\.py", text):
        assert (ROOT / script).exists(), script
    for figure in set(re.findall(r"\bfig\d\d\b", text)):
        assert list((ROOT / "paper_figs").glob(f"{figure}_*.py")), figure


def test_flags_exist(capsys):
    def flags(text):
        return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))

    for theorem in theorems():
        assert cli.main(theorem, ["--help"]) == 0
    assert cli.run("all", lambda: pool.main(["all", "--help"])) == 0
    assert command.main(["--help"]) == 0
    known = flags(capsys.readouterr().out)
    assert flags("\n".join(page.read_text() for page in PAGES)) - known <= {"--flag"}
    section = (ROOT / "README.md").read_text().partition("## Run one theorem")[2]
    assert known - {"--help"} <= flags(section)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
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
    for name, (stated, sides, *_, controls) in found.items():
        assert sides
        assert committed[name][:2] == [stated, sides], name
        assert all(re.search("[0-9]|-", cell) for cell in committed[name][2:7])
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
    lines = printed_by(script, folders[0].parents[1], cwd=base).splitlines()
    assert [line.split()[0] for line in lines] == [theorem.name for theorem in theorems()]
    assert all(line.endswith("as the verdict says") for line in lines)


def test_an_experiment_without_a_claim_runs(tmp_path):
    small = ["--dim", "4", "--depth", "2", "--init-scale", "0.1", "--steps", "20", "--seeds", "1"]
    printed_by(EXAMPLES / "saddle.py", *small, cwd=tmp_path)
    assert written_by(tmp_path, "saddle") == {"verdict.json", "results.nc", "loss.png", "loss.pdf"}


def test_exported_names_in_the_documents_exist():
    for page in PAGES:
        for name in re.findall(r"\blrdyn\.([a-z_]+)(?:\.([a-z_]+))?", page.read_text()):
            first, second = name
            if importlib.util.find_spec(f"lrdyn.{first}"):
                module = importlib.import_module(f"lrdyn.{first}")
                there = not second or hasattr(module, second)
                assert there or importlib.util.find_spec(f"lrdyn.{first}.{second}"), name
            else:
                assert hasattr(lrdyn, first), name


FLOORS = (
    {"claims", "theorem"}, {"engine"}, {"drawing"}, {"theorems"}, {"cli"},
    {"figures", "own", "pool"}, {"__init__"}, {"__main__"},
)  # fmt: skip
"""Parts of the library from the lowest up; all that is not named stands below them."""


def floor(name):
    return next((at for at, names in enumerate(FLOORS, 1) if name in names), 0)


def imported(path):
    """Parts of the library that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
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


def test_no_name_hides_a_module():
    for module in pkgutil.walk_packages(lrdyn.__path__, "lrdyn."):
        importlib.import_module(module.name)
        package, _, name = module.name.rpartition(".")
        assert getattr(sys.modules[package], name) is sys.modules[module.name]
