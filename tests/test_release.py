"""What a release says of itself, in every file that says it; what is refused, and what is built."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement

from lrdyn.verification.stating.sources import library_digest
from notebooks import _kept
from release import __main__ as command
from release import build, installed, shown, stated
from release.stated import ROOT, Refused, Statement

pytestmark = pytest.mark.tools

CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECTIONS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Numbers that moved"]
NAMES_OF_CONDA = {"matplotlib-base": "matplotlib"}


def test_every_file_that_names_the_version_names_this_one():
    said = stated.statements()
    assert [one.file for one in said if one.what == "version"] == [
        "CHANGELOG.md",
        "CITATION.cff",
        "conda/recipe.yaml",
    ]
    assert stated.disagreements(PROJECT["version"], said) == []


@pytest.mark.parametrize(
    ("file", "old", "line"),
    [
        ("CITATION.cff", r"^version: .*", "CITATION.cff: version: got 9.9.9, wanted "),
        ("CITATION.cff", r"^date-released: .*", "CITATION.cff: date: got nothing, wanted "),
        ("conda/recipe.yaml", r"^  version: .*", "conda/recipe.yaml: version: got 9.9.9, wanted "),
        ("CHANGELOG.md", r"^## \[0.*\] - ", "CHANGELOG.md: version: got 9.9.9, wanted "),
    ],
)
def test_a_file_that_says_another_version_is_named(file, old, line, tmp_path):
    for name in ("CHANGELOG.md", "CITATION.cff", "conda/recipe.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    new = {"CHANGELOG.md": "## [9.9.9] - ", "conda/recipe.yaml": '  version: "9.9.9"'}
    another = new.get(file, "" if "date" in old else "version: 9.9.9")
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(re.sub(old, another, text, count=1, flags=re.M))
    (said,) = stated.disagreements(PROJECT["version"], stated.statements(tmp_path))
    assert said.startswith(line)


def test_the_citation_has_what_a_citation_needs():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)
    assert citation["license"] == PROJECT["license"]
    assert str(citation["version"]) == PROJECT["version"]


def test_the_changelog_keeps_its_form():
    """Unreleased above; below it releases, newest first, with known sections in their order."""
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.M)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", h) for h in headings[1:]]
    versions = [tuple(map(int, match.groups())) for match in released if match]
    assert len(versions) == len(headings) - 1
    assert versions == sorted(set(versions), reverse=True)
    for text in re.split(r"^## .*$", CHANGELOG, flags=re.M)[1:]:
        titles = re.findall(r"^### (.*)$", text, re.M)
        assert titles == [title for title in SECTIONS if title in titles]


def test_the_text_of_the_tag_is_the_changelog_without_what_git_takes_out():
    section = stated.newest(CHANGELOG)
    text = stated.text_of_tag(section)
    assert text.startswith(f"lrdyn {PROJECT['version']} ({section.date})\n\n")
    assert not re.search(r"^#", text, re.M)
    assert "\nAdded\n=====\n" in text
    bullets = [line for line in section.text.splitlines() if line.startswith("- ")]
    assert bullets
    assert [line for line in text.splitlines() if line.startswith("- ")] == bullets


def test_the_recipe_of_conda_asks_for_what_the_wheel_asks_for():
    recipe = yaml.safe_load((ROOT / "conda/recipe.yaml").read_text())
    stated_there = {}
    for line in recipe["requirements"]["run"]:
        name, _, bound = line.partition(" ")
        stated_there[NAMES_OF_CONDA.get(name, name)] = bound
    assert stated_there.pop("__unix") == ""
    python = stated_there.pop("python").replace(
        "${{ python_min }}", recipe["context"]["python_min"]
    )
    assert python == PROJECT["requires-python"]
    wanted = {one.name: str(one.specifier) for one in map(Requirement, PROJECT["dependencies"])}
    assert stated_there == wanted
    builders = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert {line.replace(" ", "") for line in recipe["requirements"]["host"]} >= set(builders)
    (entry,) = recipe["build"]["python"]["entry_points"]
    assert entry == "lrdyn = " + PROJECT["scripts"]["lrdyn"]
    assert recipe["about"]["summary"] == PROJECT["description"]


def test_the_workflow_runs_what_is_run_here():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    (setup,) = [step for step in job["steps"] if "setup-python" in step.get("uses", "")]
    versions = setup["with"]["python-version"].split()
    assert set(versions) <= set(installed.PYTHONS)
    assert {versions[0], versions[-1]} == {installed.PYTHONS[0], installed.PYTHONS[-1]}


def test_the_weekly_workflow_runs_what_can_be_run_here():
    """Both of its words are known to the script; a wrong one is a line."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())
    (job,) = workflow["jobs"].values()
    (run,) = [step for step in job["steps"] if "run" in step]
    assert run["run"] == 'bash .ci/releases "$RELEASES" "$EXTRA"'
    script = (ROOT / ".ci/releases").read_text()
    for row in job["strategy"]["matrix"]["include"]:
        assert row["python"] in installed.PYTHONS
        assert re.search(rf"^case \$which in .*\b{row['releases']}\b.*\) ;;", script, re.MULTILINE)
    for words in (["oldest"], ["newest", "rocm"]):
        ran = subprocess.run(
            ["bash", ROOT / ".ci/releases", *words], capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr.startswith(f"releases: got '{words[-1]}', wanted ")


def test_the_pythons_are_those_of_the_metadata():
    named = [c.rpartition(" :: ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    assert tuple(named) == installed.PYTHONS


def test_hooks_call_what_lint_calls():
    """The tools of the lock, and no repository of others."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (local,) = hooks["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"].split() for hook in local["hooks"]]
    assert all(entry[:2] == [".venv/bin/python", "-m"] for entry in entries)
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    called = re.findall(r"-m (ruff check|ruff format|basedpyright)", lint)
    assert [" ".join(e[2:4]) if e[2] == "ruff" else e[2] for e in entries] == called


@pytest.mark.parametrize("page", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*")), ids=str)
def test_a_form_of_an_issue_has_a_name_and_says_what_it_is_about(page):
    _, head, text = page.read_text().split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"name", "about"}
    assert text.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit, which the checks of a release look at."""
    for word in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{word}_NAME", "a")
        monkeypatch.setenv(f"GIT_{word}_EMAIL", "a@b")
        monkeypatch.setenv(f"GIT_{word}_DATE", "1700000000 +0000")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "a.txt").write_text("a")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "a")):
        build.output("git", *words)
    return tmp_path


def test_a_tree_that_is_not_as_committed_is_refused(repository):
    build.clean_tree("0.2.0")
    assert build.commit_time() == "1700000000"
    (repository / "a.txt").write_text("b")
    with pytest.raises(Refused, match=r"git: got a.txt not as committed, wanted a clean tree"):
        build.clean_tree("0.2.0")
    (repository / "b.txt").write_text("b")
    with pytest.raises(Refused, match=r"git: got a.txt and 1 more not as committed"):
        build.clean_tree("0.2.0")


def test_a_tag_of_another_commit_is_refused(repository):
    build.output("git", "tag", "v0.2.0")
    build.clean_tree("0.2.0")
    (repository / "a.txt").write_text("b")
    build.output("git", "commit", "-qam", "b")
    build.clean_tree("0.3.0")
    with pytest.raises(Refused, match=r"git: got a tag v0.2.0 of .{12}, wanted a new version"):
        build.clean_tree("0.2.0")


def test_lines_that_are_not_released_are_refused(monkeypatch):
    monkeypatch.setattr(build, "clean_tree", lambda version: None)
    version = PROJECT["version"]
    empty = re.sub(r"(## \[Unreleased\]\n).*?(?=^## )", r"\1\n", CHANGELOG, flags=re.M | re.S)
    command.ready(version, empty)
    with pytest.raises(Refused, match=r"CHANGELOG.md: got lines under Unreleased, wanted "):
        command.ready(version, empty.replace("## [Unreleased]\n", "## [Unreleased]\n\n- One.\n"))


def test_every_reason_has_its_line(monkeypatch, capsys):
    said = [Statement("A", "version", "1"), Statement("CHANGELOG.md", "date", "2")]
    monkeypatch.setattr(stated, "statements", lambda: [*said, Statement("B", "date", "3")])
    monkeypatch.setattr(stated, "unreleased", lambda changelog: "")
    assert command.main(["tools"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"release: A: version: got 1, wanted {PROJECT['version']}, as pyproject.toml has it",
        "release: B: date: got 3, wanted 2, as CHANGELOG.md has it",
    ]


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Two notebooks that were run with these sources."""
    for folder in ("FOLDER", "KEPT"):
        monkeypatch.setattr(_kept, folder, tmp_path / folder)
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(_kept, "ROOT", tmp_path)
    for name in ("a", "b"):
        (_kept.FOLDER / f"{name}.py").write_text(f"# %%\n{name} = 1\n")
        _kept.keep(_kept.read(name), name, library_digest(), whole=True)
    return tmp_path


def test_notebooks_that_were_run_with_other_sources_are_refused(runs):
    shown.require_runs()
    _kept.keep(_kept.read("a"), "a", "those of another day", whole=True)
    with pytest.raises(Refused, match=r"^notebooks: got no run of a with these sources, wanted"):
        shown.require_runs()
    (_kept.FOLDER / "b.py").write_text("# %%\nb = 2\n")
    with pytest.raises(Refused, match=r"^notebooks: got no run of a and 1 more with these"):
        shown.require_runs()


def test_the_archive_of_notebooks_holds_each_as_it_was_run(runs):
    """Twice the same to the byte, with the time of the commit."""
    first, second = (shown.pack("1.0", "1700000000", runs).read_bytes() for _ in range(2))
    assert first == second
    with zipfile.ZipFile(runs / "lrdyn-1.0-notebooks.zip") as archive:
        for name in ("a", "b"):
            entry = archive.getinfo(f"lrdyn-1.0-notebooks/{name}.ipynb")
            assert entry.date_time == (2023, 11, 14, 22, 13, 20)
            assert json.loads(archive.read(entry))["cells"][0]["source"] == [f"{name} = 1"]


TOOLS = """\
#!{python}
import os, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--outdir") + 1])
out.mkdir()
(out / "a.whl").write_text({written})
"""


@pytest.mark.parametrize("seen", ["TZ", "LC_ALL", "PYTHONHASHSEED", "PWD", "umask", "content"])
def test_two_builds_that_differ_are_refused(seen, repository, tmp_path_factory):
    """By what differs between two machines: a build that looks at one of these is caught."""
    work = tmp_path_factory.mktemp("work")
    looks = {"PWD": "sys.argv[-1]", "umask": "str(os.umask(0))", "content": "'the same'"}
    written = looks.get(seen, f"os.environ[{seen!r}] + os.environ['SOURCE_DATE_EPOCH']")
    tools = work / "tools"
    tools.write_text(TOOLS.format(python=sys.executable, written=written))
    tools.chmod(0o755)
    if seen == "content":
        (made,) = build.built_twice(tools, work)
        assert made.read_text() == "the same"
        return
    with pytest.raises(Refused, match=r"a.whl: got other bytes from a second build"):
        build.built_twice(tools, work)


def test_what_is_built_is_the_commit(repository, tmp_path_factory):
    """A file that git does not keep is in no build."""
    work = tmp_path_factory.mktemp("work")
    (repository / "new.txt").write_text("new")
    tools = work / "tools"
    listed = "' '.join(sorted(os.listdir(sys.argv[-1])))"
    tools.write_text(TOOLS.format(python=sys.executable, written=listed))
    tools.chmod(0o755)
    (made,) = build.built_twice(tools, work)
    assert made.read_text() == "a.txt"


def test_a_python_that_is_named_must_be_one():
    mine = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert installed.interpreters([sys.executable])[mine] == sys.executable
    with pytest.raises(Refused, match=r"--python: got none, no Python with venv, wanted one of"):
        installed.interpreters(["none"])


def test_a_python_that_is_missing_is_none(monkeypatch):
    monkeypatch.setattr(installed, "release_of", lambda path: None)
    assert installed.interpreters([]) == dict.fromkeys(installed.PYTHONS)


def test_what_is_tried_sees_no_setting_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("LRDYN_CACHE", "a")
    monkeypatch.setenv("PYTHONPATH", "a")
    settings = installed.surroundings(tmp_path)
    assert settings["HOME"] == os.fspath(tmp_path)
    assert "PATH" in settings
    assert {"LRDYN_CACHE", "PYTHONPATH"}.isdisjoint(settings)


COMMAND = """\
#!{python}
import json, pathlib, sys
if sys.argv[1:] == ["--version"]:
    print("lrdyn", {version!r})
else:
    folder = pathlib.Path("results/corollary1/0")
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text(json.dumps({{"holds": {holds}}}))
    print("a last line")
    sys.exit({status})
"""


@pytest.mark.parametrize(
    ("version", "holds", "status", "said"),
    [
        ("0.2.0", True, 0, None),
        ("0.1.0", True, 0, "Python 3.11: lrdyn --version: got lrdyn 0.1.0, wanted 0.2.0"),
        ("0.2.0", False, 1, r"got status 1 \(a last line\), wanted a theorem that holds"),
        ("0.2.0", False, 0, "wanted a theorem that holds"),
    ],
)
def test_a_wheel_whose_theorem_does_not_hold_is_refused(version, holds, status, said, tmp_path):
    script = tmp_path / "lrdyn"
    text = COMMAND.format(python=sys.executable, version=version, holds=holds, status=status)
    script.write_text(text)
    script.chmod(0o755)
    environment = installed.Environment(tmp_path / "python", "3.11")
    if said is None:
        line = installed.run_a_theorem(environment, "0.2.0", tmp_path / "home")
        assert line == "a last line"
        return
    with pytest.raises(Refused, match=said):
        installed.run_a_theorem(environment, "0.2.0", tmp_path / "home")


def test_what_was_handed_out_before_is_replaced_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "DIST", tmp_path / "dist")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        command.hand_out(tmp_path / name, tmp_path / "before")
    assert [path.name for path in (tmp_path / "dist").iterdir()] == ["two"]
    assert [path.name for path in (tmp_path / "before").iterdir()] == ["one"]


def test_a_tool_that_fails_leaves_what_is_there(monkeypatch, capsys):
    def fails(tools, named):
        raise subprocess.CalledProcessError(1, ["twine", "check"])

    monkeypatch.setattr(command, "release", fails)
    assert command.main(["tools"]) == 3
    assert capsys.readouterr().err == "release: twine check ended with 1; dist/ is as it was\n"
