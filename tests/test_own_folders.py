"""Nothing outside the library's own folders: links, names of others, stores, marks, umask."""

import ast
import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lrdyn import __main__ as command
from lrdyn.cli import parse
from lrdyn.commands import diagnose as diagnose_command
from lrdyn.commands import own_figures, pool
from lrdyn.data import download
from lrdyn.system import interrupts, whole_files
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.running.work import Context
from lrdyn.verification.runs import run_folder
from lrdyn.verification.stating import own_files
from lrdyn.verification.storing import checkpoints, files, parts, results_file
from tests.runs import ROOT, started
from tests.verification.test_theorem import MY_THEOREM

WORDS = ["--dim", "2", "--dtype", "float32", "--seeds", "1"]


@pytest.fixture
def mine(tmp_path, monkeypatch, unchecked):
    """The parsed run of a theorem of one's own, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRDYN_CACHE", "")
    (tmp_path / "mine.py").write_text(MY_THEOREM)
    return parse(own_files.own_experiment("mine.py"), WORDS).run


@pytest.fixture
def victim(tmp_path_factory):
    """A folder with somebody's work, which must stay as it is."""
    folder = tmp_path_factory.mktemp("victim")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "step-0000000001.ckpt").write_text("mine")
    (folder / "0-0123456789abcdef0123.npz").write_text("mine")
    (folder / ".lrdyn-01234567.nc").write_text("mine")
    yield folder
    assert contents(folder) == {
        "thesis/step-0000000001.ckpt": "mine",
        "0-0123456789abcdef0123.npz": "mine",
        ".lrdyn-01234567.nc": "mine",
    }


def contents(folder):
    """Path below a folder -> text, of every file."""
    return {
        os.fspath(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("place", ["sub", "sub/deeper", "beside/it", ".."])
def test_a_theorem_is_the_same_from_any_folder(place, mine, tmp_path, monkeypatch):
    """A folder of a file is no file of it, however the file is called from there."""
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / place)
    file = os.path.relpath(tmp_path / "mine.py")
    assert parse(own_files.own_experiment(file), WORDS).run.folder("out") == mine.folder("out")


LINKS = [
    "",
    "parts",
    "parts/0123456789ab",
    "checkpoints",
    "checkpoints/0123456789abcdef0123",
    "metrics.csv",
    "results.nc",
    "verdict.json",
    "verdict.png",
    ".lrdyn",
]


@pytest.mark.parametrize("flag", ["--out", "--store"])
@pytest.mark.parametrize("link", LINKS)
def test_a_link_below_a_folder_that_was_named_is_refused_before_the_run(
    link, flag, mine, victim, tmp_path, monkeypatch
):
    def ran(*given, **more):
        raise AssertionError("the run began")

    monkeypatch.setattr(run_folder, "produce_run", ran)
    where = {"--out": tmp_path / "out", "--store": tmp_path / "store"}
    path = mine.folder(where[flag]) / link
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    with pytest.raises(BadInput) as refused:
        run_folder.carry_out(mine, where["--out"], context=Context(store=Path(where["--store"])))
    assert str(refused.value) == (
        f"{flag}: got {os.fspath(where[flag])!r} with a symbolic link {os.fspath(path)!r}, "
        "wanted none"
    )
    assert path.is_symlink()


def test_a_run_clears_what_it_wrote_and_nothing_else(mine, victim, tmp_path):
    """Both folders that the user names are links, to a larger disk for example."""
    for name in ("out", "store"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    foreign = mine.folder(tmp_path / "store") / "parts" / "notes"
    _, path = run_folder.carry_out(
        mine, tmp_path / "out", context=Context(store=tmp_path / "store")
    )
    assert (path / "verdict.json").is_file()
    assert contents(tmp_path / "store") == {}  # of its parts nothing is left, nor of its folders
    assert list((tmp_path / "store").iterdir()) == []
    foreign.mkdir(parents=True)
    (foreign / "thesis.tex").write_text("mine")
    (foreign / "0-0123456789abcdef0123.npz").write_text("mine")
    run_folder.carry_out(mine, tmp_path / "out", context=Context(store=tmp_path / "store"))
    assert {path.name for path in foreign.iterdir()} == {"thesis.tex", "0-0123456789abcdef0123.npz"}


@pytest.mark.parametrize(
    ("there", "cleared"),
    [((".lrdyn",), True), (("verdict.json",), True), ((), True), (("thesis.tex",), False)],
)
def test_only_a_folder_of_the_library_is_cleared(there, cleared, tmp_path):
    for name in there:
        (tmp_path / name).write_text("")
    assert whole_files.mark_folder(tmp_path) is cleared
    part = tmp_path / "parts" / "0123456789ab" / "0-0123456789abcdef0123.npz"
    checkpoint = tmp_path / "checkpoints" / "0123456789abcdef0123" / "step-0000000001.ckpt"
    for path in (part, checkpoint):
        path.parent.mkdir(parents=True)
        path.write_text("")
    parts.clear(tmp_path)
    checkpoints.clear(tmp_path)
    assert [path.exists() for path in (part, checkpoint)] == [not cleared] * 2
    assert part.parents[1].exists() is not cleared


def test_clearing_follows_no_link(victim, tmp_path):
    """Not even one that came after the folder was looked at."""
    whole_files.mark_folder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "0123456789abcdef0123").symlink_to(victim / "thesis")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0123456789ab").symlink_to(victim)
    parts.clear(tmp_path)
    checkpoints.clear(tmp_path)
    shutil.rmtree(tmp_path / "parts")
    (tmp_path / "parts").symlink_to(victim)
    parts.clear(tmp_path)


def test_metrics_are_not_written_through_a_link(tmp_path):
    (tmp_path / "diary.csv").write_text("mine")
    (tmp_path / "metrics.csv").symlink_to(tmp_path / "diary.csv")
    for write in (
        whole_files.open_to_append,
        lambda path: whole_files.replace_file(path).__enter__(),
    ):
        with pytest.raises(whole_files.Linked, match=r"symbolic link.*metrics\.csv"):
            write(tmp_path / "metrics.csv")
    assert (tmp_path / "diary.csv").read_text() == "mine"


def test_a_scratch_name_of_somebody_stays(tmp_path):
    (tmp_path / ".lrdyn-0123456789abcdef").mkdir()  # a folder
    (tmp_path / ".lrdyn-of-mine").write_text("mine")
    (tmp_path / ".lrdyn-01234567.npz").write_text("half")
    whole_files.remove_scratch(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lrdyn-0123456789abcdef",
        ".lrdyn-of-mine",
    }


@pytest.mark.parametrize("name", [download.PARTS, "cifar-10-binary.tar.gz"])
def test_a_download_follows_no_link(name, victim, tmp_path):
    (tmp_path / name).symlink_to(victim if name == download.PARTS else victim / "absent")
    with pytest.raises(ValueError, match="got a symbolic link, wanted a file or folder"):
        download.download("cifar10", address="http://127.0.0.1:9/none", folder=tmp_path)


@pytest.mark.parametrize("name", ["diagnosis.csv", "diagnosis.png", "diagnosis.pdf"])
def test_a_diagnosis_follows_no_link(name, victim, tmp_path):
    np.savez(tmp_path / "a.npz", w=np.eye(3))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(victim / "thesis")
    words = [os.fspath(tmp_path / "a.npz"), os.fspath(tmp_path / "a.npz")]
    with pytest.raises(whole_files.Linked):
        diagnose_command.main([*words, "--out", os.fspath(tmp_path / "out")])


@pytest.mark.parametrize("link", ["figures", "figures/example.nc", "summary.json"])
def test_figures_and_summaries_follow_no_link(link, victim, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / link).parent.mkdir(parents=True)
    (tmp_path / "results" / link).symlink_to(victim)
    (tmp_path / "figures").mkdir()
    shutil.copy(ROOT / "lrdyn" / "commands" / "example.py", tmp_path / "figures")
    monkeypatch.setattr(pool, "verify_all", None)
    monkeypatch.setenv("LRDYN_CACHE", "")
    words = ["verify", "all", "--jobs", "1"] if link == "summary.json" else ["figures", "draw"]
    assert command.main(words) == 2
    err = capsys.readouterr().err
    assert err == f"lrdyn: error: results/{link}: got a symbolic link, wanted a file or folder\n"


# Stores -------------------------------------------------------------------------------------------


def test_a_second_run_on_one_store_is_bad_input(mine, tmp_path):
    store = mine.folder(tmp_path / "store")
    store.mkdir(parents=True)
    with files.lock(store), pytest.raises(BadInput, match=r"--store: got .* in use by another"):
        run_folder.carry_out(mine, tmp_path / "out", context=Context(store=tmp_path / "store"))


@pytest.mark.parametrize("written", ["relative", "absolute", "linked"])
def test_a_store_may_be_the_folder_of_the_results_by_another_name(written, mine, tmp_path):
    (tmp_path / "link").symlink_to("out")
    store = {"relative": "out", "absolute": tmp_path / "out", "linked": "link"}[written]
    path = mine.folder(tmp_path / "out")
    path.mkdir(parents=True)
    (path / checkpoints.LOG).write_text("run,step,name,value\na,1,loss,0.5\n")
    (path / whole_files.MARK).touch()
    _, path = run_folder.carry_out(mine, "out", context=Context(store=Path(store)))
    assert (path / checkpoints.LOG).read_text() == "run,step,name,value\na,1,loss,0.5\n"
    assert not (path / parts.FOLDER).exists()


def test_a_part_that_was_changed_is_computed_again(tmp_path):
    """Both sides of a claim are moved by the same amount: no residual would show it."""
    notes = []
    store = parts.Store(tmp_path, notes.append)
    arrays = {"a_predicted": np.arange(3.0), "a_measured": np.arange(3.0), "n": np.array(2)}
    store.save("0-ab", arrays)
    loaded = store.load("0-ab")
    assert loaded is not None
    assert all(np.array_equal(loaded[name], array) for name, array in arrays.items())
    before = parts._manifest("0-ab", arrays)
    moved = {name: array + 1 for name, array in arrays.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_manifest", lambda key, given: before)
        store.save("0-ab", moved)
    assert store.load("0-ab") is None
    assert notes[0].startswith(f"{tmp_path}/0-ab.npz: damaged (")


# A system that fails ------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--out", "--store"])
@pytest.mark.parametrize(
    "fails", ["make_folder", "lock", "remove_scratch", "mark_folder", "make_scratch"]
)
@pytest.mark.parametrize(
    ("number", "raised"), [(errno.EROFS, BadInput), (errno.ENOSPC, OSError)], ids=["user", "disk"]
)
def test_a_folder_that_cannot_be_used_is_left_as_it_was(
    fails, flag, number, raised, mine, tmp_path, monkeypatch
):
    where = {"--out": tmp_path / "out", "--store": tmp_path / "store"}
    owner = files if fails == "lock" else whole_files
    then, inside = getattr(owner, fails), mine.folder(where[flag])

    def failing(path, *given, **more):
        if path != inside:
            return then(path, *given, **more)
        if fails in ("make_folder", "mark_folder"):  # something was made
            then(path, *given, **more)
        raise OSError(number, os.strerror(number), os.fspath(path))

    monkeypatch.setattr(owner, fails, failing)
    with pytest.raises(raised, match=os.strerror(number)):
        run_folder.carry_out(mine, where["--out"], context=Context(store=Path(where["--store"])))
    assert not where[flag].exists()


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def failing(*given):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = parts.Store(tmp_path, lambda line: None)
    store.save("0-ab", {"a": np.arange(3.0)})
    monkeypatch.setattr(parts, "_read_array", failing)
    monkeypatch.setattr("hashlib.file_digest", failing)
    with pytest.raises(OSError, match=r"Input/output error: '.*0-ab\.npz'"):
        store.load("0-ab")
    with pytest.raises(OSError, match=r"Input/output error: '.*0-ab\.npz'"):
        results_file.checksum(tmp_path / "0-ab.npz")


def test_no_earlier_verdict_stands_beside_new_results(mine, tmp_path, monkeypatch):
    _, path = run_folder.carry_out(mine, tmp_path / "out")
    before = (path / "verdict.json").read_text()

    def failing(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_netcdf", failing)
        with pytest.raises(OSError, match="No space left"):
            run_folder.carry_out(mine, tmp_path / "out")
    assert (path / "verdict.json").read_text() == before
    monkeypatch.setattr(files, "write_json", failing)
    with pytest.raises(OSError, match="No space left"):
        run_folder.carry_out(mine, tmp_path / "out")
    assert not (path / "verdict.json").exists()


# Permissions and signals --------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_of_the_user_is_kept(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with whole_files.replace_file(tmp_path / "a") as temporary:
            temporary.write_text("a")
        private = whole_files.make_scratch(tmp_path, ".part")
        private.chmod(0o600)
        whole_files.move(private, tmp_path / "b")
        whole_files.open_to_append(tmp_path / "c").close()
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in sorted(tmp_path.iterdir())] == [mode] * 3


UNDERWAY = """
import time
from pathlib import Path
from lrdyn.system import (interrupts, whole_files)
interrupts.end_at_once()
with whole_files.scratch_folder(Path()) as folder, whole_files.replace_file(Path("kept")) as half:
    (folder / "figures").mkdir()
    (folder / "figures" / "a").write_text("a")
    half.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=[False, True], ids=["hearing", "ignoring"])
def parent(request):
    """This process hears the signals, or ignores them, as what a shell starts with ``&`` does."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    if request.param:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interrupts.SIGNALS)
@pytest.mark.usefixtures("parent")
def test_a_signal_leaves_no_scratch(number, tmp_path):
    (tmp_path / "kept").write_text("before")
    with started("-c", UNDERWAY, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert contents(tmp_path) == {"kept": "before"}
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_nothing_new_is_begun_once_a_process_ends(tmp_path):
    code = (
        "import threading; from pathlib import Path; from lrdyn.system import whole_files\n"
        "whole_files.remove_all_scratch()\n"
        "make = whole_files.make_scratch\n"
        "thread = threading.Thread(target=make, args=(Path(), ''), daemon=True)\n"
        "thread.start(); thread.join(0.3)\n"
        "print(list(Path().iterdir()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "[]\n"


def test_a_write_that_misses_its_scratch_ends_with_the_process(tmp_path, monkeypatch):
    """Its error would end the process with another status than that of the signal."""
    lock, begun, removed, raised = threading.Lock(), *(threading.Event() for _ in range(3))
    monkeypatch.setattr(whole_files, "_LOCK", lock)
    monkeypatch.setattr(whole_files, "_UNDERWAY", set())

    def write():
        with contextlib.suppress(FileNotFoundError), whole_files.replace_file(tmp_path / "a"):
            begun.set()
            removed.wait(10)
        raised.set()

    thread = threading.Thread(target=write)
    thread.start()
    begun.wait(10)
    whole_files.remove_all_scratch()
    removed.set()
    assert not raised.wait(0.1)
    lock.release()  # in place of the end of the process
    thread.join(10)
    assert raised.is_set()


def test_init_makes_all_of_its_folder_or_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def interrupted(figure, results, baselines, **how):
        baselines.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(own_figures, "write_baseline", interrupted)
    monkeypatch.setenv("LRDYN_CACHE", "")
    with pytest.raises(KeyboardInterrupt):
        own_figures.init()
    assert list(tmp_path.iterdir()) == []


# One module ---------------------------------------------------------------------------------------

CHANGES = {
    "unlink",
    "rmtree",
    "rmdir",
    "removedirs",
    "truncate",
    "rename",
    "renames",
    "move",
    "TemporaryDirectory",
    "mkdtemp",
    "mkstemp",
    "NamedTemporaryFile",
    "copyfile",
}
"""Names of functions of os, shutil, pathlib and tempfile that remove or replace."""
FILES = sorted(
    path.relative_to(ROOT)
    for name in ("lrdyn", "experiments", "paper_figs")
    for path in (ROOT / name).rglob("*.py")
)
ALLOWED = {"lrdyn/system/whole_files.py"}


def changes(path: Path) -> list[str]:
    """Calls of a file that change a file system, each with its line."""
    calls = [n for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.Call)]
    named = [(n.lineno, n.func) for n in calls if isinstance(n.func, ast.Attribute)]
    return [
        f"{path}:{line}: {ast.unparse(function)}"
        for line, function in named
        if function.attr in CHANGES
        or (function.attr in ("replace", "remove") and ast.unparse(function.value) == "os")
    ]


NOT_OF_FILES = (".rename", ".truncate", "whole_files.move", "method.move")
"""Methods of data sets, of a file that is being written, and the module itself."""


def test_all_removals_and_replacements_stand_in_one_module():
    """A function of that name of another thing (of arrays: ``rename``) has no path in it."""
    found = [line for path in FILES if os.fspath(path) not in ALLOWED for line in changes(path)]
    assert [line for line in found if not line.endswith(NOT_OF_FILES)] == []
    assert changes(Path("lrdyn/system/whole_files.py"))  # it sees them


@pytest.mark.parametrize("text", [1500 * "y/", "/".join(600 * ["y"])])
def test_folders_in_one_another_are_counted(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MY_THEOREM)
    assert command.main(["verify", "mine.py", *WORDS, "--out", text]) == 2
    assert "folders in one another, wanted a folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine.py"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_an_own_file_lies_in_folders_whose_names_are_text(tmp_path):
    folder = tmp_path / "\udcff"
    folder.mkdir()
    (folder / "mine.py").write_text(MY_THEOREM)
    with pytest.raises(BadInput, match="a folder whose name is no text, wanted a file in folders"):
        own_files.own_experiment(str(folder / "mine.py"))
