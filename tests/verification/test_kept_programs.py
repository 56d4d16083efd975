"""Compiled programs on disk: found again untraced, and never in the place of others."""

import ast
import dataclasses
import logging
import os
import pickle
import shutil
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn import cli
from lrdyn.commands import ending, verify
from lrdyn.registry import REGISTRY
from lrdyn.system.private_files import NotPrivate, PrivateFolder
from lrdyn.theorem2 import subspace
from lrdyn.theorem2.statement import THEOREM2
from lrdyn.verification.judging import rounding
from lrdyn.verification.machine import kept_programs, program_cache
from lrdyn.verification.running import jobs, programs
from lrdyn.verification.running.work import Context
from lrdyn.verification.stating import sources
from tests.jobs import claims_job
from tests.programs import kept_at, of_command
from tests.runs import Told, finished, python, results_of, small_words

SMALL = ["--dim", "6", "--depth", "2", "--rank", "1", "--steps", "5"]
SETTINGS: dict[str, Any] = dict(cli.parse(THEOREM2, SMALL).run.settings)
SCENARIO = THEOREM2.scenarios[0]
CODE = "digest of the code"
STAGES = 2
"""Programs of that sweep: of the run with its cases, and of theory."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder where programs of Theorem 2 are kept."""
    monkeypatch.setattr(kept_programs, "_WARNED", set())
    # A test before this one may have let JAX keep what it compiles; such programs lack functions.
    kept_programs.let_jax_keep(None)
    return tmp_path / "kept"


def swept(base, precision="float64", code=CODE, programs: Any = True, **changed):
    """A small sweep of Theorem 2, whose program is kept; after an edit with another ``code``."""
    here = kept_programs.KeptPrograms(PrivateFolder(base / "kept"), CODE)
    kept = here if programs is True else programs
    job = claims_job(THEOREM2, SCENARIO, SETTINGS | changed, [0, 1], "/", precision, False)
    context = Context(progress=Told(), programs=kept and kept._replace(code=code))
    return job.run(context)["/"]


@pytest.fixture
def run(tmp_path):
    """That sweep, with programs of a folder of this test."""
    return partial(swept, tmp_path)


@pytest.fixture(scope="module")
def made_before(tmp_path_factory):
    """A folder with the program of that sweep, and what the sweep left: most tests begin there."""
    before, base = kept_at(), tmp_path_factory.mktemp("made_before")
    kept_programs.let_jax_keep(None)
    found = swept(base)
    kept_programs.let_jax_keep(before)
    return base, found


@pytest.fixture
def first(made_before, folder):
    """What the sweep left, whose program lies in the folder of this test."""
    base, found = made_before
    shutil.copytree(base, folder.parent, dirs_exist_ok=True)
    return found


@pytest.fixture
def untraceable(monkeypatch):
    """After a call of this, tracing is an error."""

    def refuse():
        monkeypatch.setattr(programs, "_trace_call", lambda *_: pytest.fail("traced"))

    return refuse


def test_a_program_that_calls_the_host_is_compiled_and_not_kept(tmp_path):
    """What it calls is a function of this process, which no file can hold."""

    def call(x):
        return {"y": jax.pure_callback(np.cos, jax.ShapeDtypeStruct((2,), x.dtype), x)}

    like = jax.ShapeDtypeStruct((2,), np.float32)
    for function, files in ((call, []), (lambda x: {"y": jnp.cos(x)}, [".json", ".program"])):
        folder = tmp_path / function.__name__.strip("<>")
        stored = kept_programs.KeptPrograms(PrivateFolder(folder), "").place("")
        facts = kept_programs.Facts({"y": like}, 8, "", (("float32", 3, 2),))
        lowered = jax.jit(function).lower(like)
        program = stored.compiled(lowered, {}, facts, (like,), jax.devices()[:1])
        np.testing.assert_array_equal(program(np.zeros(2, np.float32))["y"], [1, 1])
        assert sorted(path.suffix for path in folder.glob("*")) == files
    assert stored.facts() == facts


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_what_is_kept_is_not_traced_and_gives_the_same_bits(folder, untraceable, precision, run):
    first = run(precision)
    suffixes = sorted(path.suffix for path in folder.iterdir())
    assert suffixes == [".json"] * STAGES + [".program"] * STAGES
    untraceable()
    again = run(precision)
    assert first.identical(again)
    assert all(first[name].dtype == again[name].dtype for name in first.variables)


def test_other_values_share_a_program(folder, untraceable, run):
    run(learning_rate=(0.01,))
    untraceable()
    other = run(learning_rate=(0.02,))
    folder.rename(folder.with_name("away"))
    with pytest.raises(pytest.fail.Exception, match="traced"):
        run(learning_rate=(0.02,))
    assert np.isfinite(other["loss_measured"].values).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setitem(SETTINGS, "steps", 6),
        lambda patch: patch.setitem(SETTINGS, "depth", (3,)),
        lambda patch: patch.setattr(jobs, "unoptimized_options", lambda level: {}),
        lambda patch: patch.setitem(rounding.MATMULS, "highest", "BF16_BF16_F32"),
    ],
    ids=["setting", "shape", "options", "precision"],
)
def test_another_program_is_never_taken(first, untraceable, monkeypatch, change, run):
    untraceable()
    assert run().identical(first)
    change(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="traced"):
        run()


def test_a_program_of_other_code_is_never_taken(first, untraceable, run):
    untraceable()
    assert run().identical(first)
    with pytest.raises(pytest.fail.Exception, match="traced"):
        run(code="digest of other code")


def test_an_edited_file_of_the_library_is_another_library(tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text("x = 1")
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    before = sources.library_digest.__wrapped__()
    (tmp_path / "one.py").write_text("x = 2")
    assert sources.library_digest.__wrapped__() != before


@pytest.mark.parametrize("ending", ["json", "program"])
@pytest.mark.parametrize(
    "damage", [lambda whole: b"{}", lambda whole: whole[:-1], lambda whole: b""]
)
def test_a_damaged_program_is_compiled_again(folder, first, run, ending, damage):
    paths = list(folder.glob(f"*.{ending}"))
    assert len(paths) == STAGES
    for path in paths:
        path.write_bytes(damage(path.read_bytes()))
    assert run().identical(first)
    assert all(len(path.read_bytes()) > 100 for path in paths)  # written again


# The first name: the code that decides ------------------------------------------------------


def edited(path, old, new):
    """Change a file."""
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A copy of the library, and the digest of what decides the programs of Theorem 2 there."""
    copy = tmp_path / "lrdyn"
    shutil.copytree(sources.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "PACKAGE", copy)

    return copy, partial(sources.deciding_code_digest, "lrdyn.theorem2.statement")


def test_an_edit_of_what_decides_no_program_leaves_its_name(library):
    copy, digest = library
    before = digest()
    for path in copy.rglob("*.py"):  # comments, layout and docstrings, everywhere
        path.write_text(f"# a comment\n\n{path.read_text()}\n# another\n")
    edited(copy / "theorem2" / "subspace.py", '"""Theorem 2', '"""The second theorem')
    edited(copy / "core" / "spectra.py", '    """', '    """It is said that: ')
    assert digest() == before
    for path in copy.rglob("*.py"):  # code that this theorem does not import
        room = path.relative_to(copy).parts[0]
        if room in ("figures", "commands", "studies", "diagnosis", "theorem4", "lora", "cli.py"):
            path.write_text(f"{path.read_text()}\nADDED = 1\n")
    assert digest() == before


MUTANTS = [
    ("theorem2/subspace.py", "return ", "return 2 * "),
    ("theorem2/setting.py", "return ", "return 3 * "),
    ("theorem2/statement.py", "return ", "return 1 - "),
    ("theorem2/collapse.py", "return ", "return -1 * "),
    ("theorem2/__init__.py", "as rho", "as frame"),
    ("core/linalg.py", "return ", "return 0 * "),
    ("core/descent.py", "return ", "return None or "),
    ("core/initialization.py", "return ", "return 2 * "),
    ("verification/running/evaluate.py", "fold_in(key, 1)", "fold_in(key, 2)"),
    ("verification/running/jobs.py", "True: 16", "True: 8"),
    ("verification/running/programs.py", "LEAST = 4", "LEAST = 5"),
    ("verification/machine/process.py", '"highest"', '"high"'),
    ("training/program.py", "return ", "return None and "),
    ("__init__.py", "ROOMS = ", "ROOMS = () or "),
]
"""A file, and what is exchanged in its code."""


def test_a_mutant_of_what_decides_has_another_name(library):
    copy, digest = library
    digests = {digest()}
    for name, old, new in MUTANTS:
        path = copy / name
        text = path.read_text()
        head, quotes, body = text.partition('"""\n\n')  # of the module's docstring
        path.write_text(head + quotes + mutated(body, old, new))
        digests.add(digest())
        path.write_text(text)
    assert len(digests) == 1 + len(MUTANTS)


def mutated(body, old, new):
    """Code with its first ``old`` outside of docstrings exchanged."""
    lines = body.splitlines(keepends=True)
    within = False
    for number, line in enumerate(lines):
        quoted = line.count('"""')
        if not within and not quoted and old in line and line.strip():
            lines[number] = line.replace(old, new, 1)
            return "".join(lines)
        within ^= quoted % 2 == 1
    raise AssertionError(f"no {old!r}")


def test_what_a_program_is_made_of_is_among_what_decides_it(run):
    """Every function of the library that runs while a program is made."""
    called = {}  # a code's own hash reads all of it

    def note(frame, event, _):  # at every call of any function: it does nothing that can wait
        if event == "call":
            called.setdefault(id(frame.f_code), frame.f_code)

    sys.setprofile(note)
    try:
        run(depth=(2, 4))
    finally:
        sys.setprofile(None)
    paths = {Path(code.co_filename) for code in called.values()}
    ran = {path for path in paths if path.is_relative_to(sources.PACKAGE)}
    deciding = sources.deciding_files("lrdyn.theorem2.statement")
    assert len(ran) > 10
    assert ran <= deciding


@pytest.mark.parametrize("theorem", REGISTRY.values())
def test_no_import_of_what_decides_is_hidden(theorem):
    """What is imported by a computed name, or executed from a text, no import would show."""
    hiding = {"import_module", "__import__", "spec_from_file_location", "exec", "eval"}
    for path in sources.deciding_files(theorem.partition(":")[0]) - {
        sources.PACKAGE / "__init__.py"
    }:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not names & hiding, path


def test_what_draws_is_taken_by_statements_alone_and_is_in_no_program():
    """So that an edit of a figure needs no new program."""
    for path in sources.PACKAGE.rglob("*.py"):
        room, *_ = path.relative_to(sources.PACKAGE).parts
        if f"lrdyn.{room}.statement" not in {n.partition(":")[0] for n in REGISTRY.values()}:
            continue
        if sources._draws(path):
            continue
        tree = ast.parse(path.read_text())
        drawing = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and "figures" in (node.module or "").split(".")
            for alias in node.names
        }
        assert not drawing or path.name == "statement.py", path
        plots = {
            name.id
            for node in ast.walk(tree)
            if isinstance(node, ast.keyword) and node.arg == "plots"
            for name in ast.walk(node)
            if isinstance(name, ast.Name)
        }
        read = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in drawing]
        assert drawing <= plots, path
        assert len(read) == len(drawing), path


def test_what_decides_is_sought_once_for_each_state_of_the_library(tmp_path, monkeypatch):
    kept = kept_programs.KeptPrograms(PrivateFolder(tmp_path / "kept"), CODE)
    first = kept.of("lrdyn.theorem2.statement")
    assert first.code == sources.deciding_code_digest("lrdyn.theorem2.statement")
    monkeypatch.setattr(kept_programs, "deciding_code_digest", lambda module: "sought again")
    assert kept.of("lrdyn.theorem2.statement") == first
    assert kept.of("lrdyn.lora.statement").code == "sought again"
    monkeypatch.setattr(kept_programs, "library_digest", lambda: "of an edited library")
    assert kept.of("lrdyn.theorem2.statement").code == "sought again"


# The second name: the lowered text -----------------------------------------------------------


@pytest.fixture
def uncompilable(monkeypatch):
    """After a call of this, compiling is an error."""

    def refuse():
        monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_, **__: pytest.fail("compiled"))

    return refuse


def test_after_an_edit_only_what_changed_is_compiled(folder, first, run, uncompilable):
    uncompilable()
    assert run(code="edited").identical(first)
    suffixes = sorted(path.suffix for path in folder.iterdir())
    assert suffixes == [".json"] * 2 * STAGES + [".program"] * STAGES


@pytest.mark.parametrize(
    "mutant",
    [
        ("rho", lambda rho: lambda *given: 2 * rho(*given)),
        ("rho", lambda rho: lambda *given: rho(*given) + 1e-3),
        ("rho", lambda rho: lambda *given: -rho(*given)),
        (
            "frame",
            lambda frame: lambda weights, target, rank: frame(weights, target + jnp.eye(6), rank),
        ),
        ("frame", lambda frame: lambda weights, target, rank: frame(weights, target.T, rank)),
        ("frame", lambda frame: lambda weights, target, rank: frame(weights[::-1], target, rank)),
        ("reduced_start", lambda start: lambda scales, size: start(3 * scales, size)),
        ("reduced_start", lambda start: lambda scales, size: start(scales[::-1], size)),
        ("reduced_target", lambda of: lambda fixed, target, size: of(fixed, target.T, size)),
        ("reduced_target", lambda of: lambda fixed, target, size: 0 * of(fixed, target, size)),
    ],
)
def test_a_mutant_is_compiled_anew_and_killed(folder, first, run, monkeypatch, mutant):
    """Ten changes of Theorem 2's formulas, each of which leaves other arrays."""
    name, change = mutant
    monkeypatch.setattr(subspace, name, change(getattr(subspace, name)))
    changed = run(code="edited")
    # The frame is theory's and that in which the run is measured; the others are theory's alone.
    anew = 2 if name == "frame" else 1
    assert len(list(folder.glob("*.program"))) == STAGES + anew
    names = [name for name in first if not np.array_equal(first[name], changed[name])]
    assert names


def test_programs_that_differ_in_a_constant_have_two_names(tmp_path):
    """However large it is: its digits are in the text."""
    kept = kept_programs.KeptPrograms(PrivateFolder(tmp_path / "kept"), CODE)
    for last in (0.0, 1.0):
        constant = np.append(np.zeros(100_000), last)
        lowered = jax.jit(lambda x, c=constant: jnp.sum(x * c)).lower(1.0)
        outputs = {"y": jax.ShapeDtypeStruct((), "float64")}
        facts = kept_programs.Facts(outputs, 8, f"{last}")
        kept.place(f"{last}").compiled(lowered, {}, facts, (1.0,), jax.devices()[:1])
    assert len(list((tmp_path / "kept").glob("*.program"))) == 2


# Whose a program is --------------------------------------------------------------------------


class Planted:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (os.fspath(self.path),)


def as_link(path):
    path.rename(path.with_name("away"))
    path.symlink_to(path.with_name("away"))


OPEN_TO_OTHERS = {
    "a folder for all": (lambda path: path.chmod(0o777), "mode 777"),
    "a folder for a group": (lambda path: path.chmod(0o770), "mode 770"),
    "a folder that others see": (lambda path: path.chmod(0o711), "mode 711"),
    "a linked folder": (as_link, "a link, or no folder"),
    "a file": (lambda path: (path.rename(path.with_name("away")), path.touch()), "or no folder"),
}


@pytest.mark.parametrize("change", OPEN_TO_OTHERS)
def test_code_in_a_folder_that_others_can_use_is_not_run(
    change, folder, first, tmp_path, caplog, run
):
    ran = tmp_path / "ran"
    for path in folder.glob("*.program"):
        path.write_bytes(zlib.compress(pickle.dumps(Planted(ran))))
    make, reason = OPEN_TO_OTHERS[change]
    make(folder)
    before = sorted(tmp_path.rglob("*"))
    assert run().identical(first)
    assert sorted(tmp_path.rglob("*")) == before  # nothing ran, and nothing was written
    (line,) = caplog.messages
    assert line.startswith(f"program cache: got {os.fspath(folder)!r} (")
    assert reason in line
    assert line.endswith(
        "), wanted a folder of yours with mode 700; such programs are compiled again"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_a_folder_of_somebody_else_is_not_used(tmp_path):
    folder = PrivateFolder(tmp_path / "programs")
    folder.write("one", b"content")
    os.chown(folder.path, 65534, -1)
    for use in (lambda: folder.read("one"), lambda: folder.write("two", b"")):
        with pytest.raises(
            NotPrivate, match=r"got '.*' \(of user 65534\), wanted a folder of yours"
        ):
            use()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_programs_of_somebody_else_are_not_removed(tmp_path):
    """Two users may have their folders in one that is for all."""
    theirs, mine = (tmp_path / f"jaxlib-0.1-cpu-{12 * end}" for end in "ab")
    for folder in (theirs, mine):
        folder.mkdir()
        (folder / f"lrdyn-{32 * '1'}.program").write_bytes(bytes(100))
    os.chown(theirs / f"lrdyn-{32 * '1'}.program", 65534, -1)
    program_cache.prune(tmp_path, 50)
    assert [len(list(folder.iterdir())) for folder in (theirs, mine)] == [1, 0]


def test_a_command_lets_that_line_through(capfd, monkeypatch):
    """Warnings of other libraries it does not."""
    monkeypatch.setattr(kept_programs, "_WARNED", set())
    logger = logging.getLogger("lrdyn")
    monkeypatch.setattr(logger, "propagate", False)  # to pytest's handlers
    try:
        ending._speak_plainly()
        kept_programs.warn_once(PrivateFolder(Path("x")), "a line")
    finally:
        logging.disable(logging.NOTSET)
    assert capfd.readouterr().err == "program cache: a line\n"


def test_what_is_made_is_private_and_lies_in_any_folder(tmp_path):
    """Behind a link, and in one that is for all: what others make there is not used."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o777)
    (tmp_path / "base").symlink_to("elsewhere")
    folder = PrivateFolder(tmp_path / "base" / "programs")
    before = os.umask(0)
    try:
        folder.write("one", b"content")
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (folder.path, folder.path / "one")]
    assert modes == [0o700, 0o600]
    assert folder.path.parent.stat().st_mode & 0o777 == 0o777  # it was there before
    assert folder.read("one") == b"content"


def test_another_folder_in_its_place_is_noticed(tmp_path):
    """Whoever can write to the folder around it may exchange it at any time."""
    folder = PrivateFolder(tmp_path / "programs")
    folder.write("one", b"content")
    with folder.opened():
        folder.path.rename(tmp_path / "away")
        folder.path.mkdir()
        folder.path.chmod(0o755)
        (folder.path / "one").write_bytes(b"another")
    with pytest.raises(NotPrivate, match="mode 755"):
        folder.read("one")


@pytest.fixture
def jax_settings(monkeypatch):
    """What `keep` sets is set back."""
    monkeypatch.setattr(kept_programs, "_WARNED", set())
    seconds = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    folder = jax.config.values["jax_compilation_cache_dir"]
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    kept_programs.let_jax_keep(folder)


def test_jax_keeps_in_a_private_folder_alone(tmp_path, jax_settings, caplog):
    folder = tmp_path / "cache" / program_cache.kind()
    kept = program_cache.keep(tmp_path / "cache")
    assert kept is not None
    assert kept.folder.path == folder
    assert jax.config.values["jax_compilation_cache_dir"] == os.fspath(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    kept_programs._WARNED.clear()
    assert program_cache.keep(tmp_path / "cache") is None
    assert jax.config.values["jax_compilation_cache_dir"] is None
    (line,) = caplog.messages
    assert line.startswith("program cache: got '")
    assert line.endswith("; no program is taken from there or kept")


# Whose programs are kept ---------------------------------------------------------------------


def test_others_keep_nothing(folder, run):
    run(programs=None)
    assert not folder.exists()
    assert verify.is_ours(THEOREM2)
    assert not verify.is_ours(dataclasses.replace(THEOREM2))


def test_programs_that_are_kept_do_not_pass_through_the_cache_of_jax(
    tmp_path, untraceable, jax_settings, monkeypatch, run
):
    """A program that JAX reads from its folder is whole, but not when it is written down again.

    Nor does JAX write it down for its own cache, which would take as long as to write it for ours.
    """
    kept = program_cache.keep(tmp_path / "cache")
    assert kept is not None
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    first = run(programs=None)
    entries = {path.name for path in kept.folder.path.glob("jit_*")}
    assert entries
    assert all(program_cache.PROGRAMS.fullmatch(name) for name in entries)
    put = []
    monkeypatch.setattr(program_cache.PrivateCache, "put", lambda _, key, value: put.append(key))
    assert run(programs=kept).identical(first)
    assert not [key for key in put if key.startswith(f"jit_{kept_programs.OURS}-")]
    assert {path.name for path in kept.folder.path.glob("jit_*")} == entries
    assert len(list(kept.folder.path.glob("lrdyn-*"))) == 2 * STAGES
    untraceable()
    assert run(programs=kept).identical(first)


def cube_and_one(x):
    return x**3 + 1


def compiled():
    jax.clear_caches()
    return jax.jit(cube_and_one).lower(2.0).compile()(2.0)


def test_what_jax_keeps_is_read_from_a_private_folder_alone(tmp_path, jax_settings, caplog):
    kept = program_cache.keep(tmp_path / "cache")
    assert kept is not None
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert compiled() == 9.0
    (entry,) = kept.folder.path.glob("jit_cube_and_one-*-cache")
    entry.write_bytes(b"code of somebody else")
    kept.folder.path.chmod(0o777)
    assert compiled() == 9.0
    assert entry.read_bytes() == b"code of somebody else"  # nor is anything written there
    (line,) = caplog.messages
    assert line.endswith("; such programs are compiled again")


def test_a_damaged_entry_of_jax_is_compiled_again_and_replaced(tmp_path, jax_settings):
    kept = program_cache.keep(tmp_path / "cache")
    assert kept is not None
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert compiled() == 9.0
    (entry,) = kept.folder.path.glob("jit_cube_and_one-*-cache")
    whole = entry.read_bytes()
    for content in (whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b""):
        entry.write_bytes(content)
        assert compiled() == 9.0
        assert entry.read_bytes() != content


def test_another_cache_of_jax_stays_as_it_is(tmp_path, jax_settings):
    program_cache.keep(tmp_path / "cache")
    kept_programs.let_jax_keep(os.fspath(tmp_path / "own"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: x**5 - 1).lower(2.0).compile()
    (entry,) = (tmp_path / "own").glob("jit_*-cache")
    assert entry.read_bytes()


def test_a_command_that_ran_before_traces_nothing(tmp_path, tmp_path_factory):
    ran = finished("theorem1", tmp_path_factory.getbasetemp())
    cache, out = of_command("theorem1"), tmp_path / "out"

    def kept():
        return {path: path.stat() for path in cache.rglob("lrdyn-*.*")}

    before = kept()
    again = python(
        "-m", "experiments.theorem1", *small_words("theorem1"), "--out", out, cache=cache
    )
    assert again.returncode == 0, again.stderr
    assert results_of(out).identical(ran.group("/"))
    after = kept()
    assert {path: facts.st_ino for path, facts in after.items()} == {
        path: facts.st_ino for path, facts in before.items()
    }  # none was written, or written again
    read = {path.suffix for path in after if after[path].st_mtime_ns > before[path].st_mtime_ns}
    assert read == {".json", ".program"}
