"""The two commands: what they write, what they refuse, and how they end."""

import dataclasses
import io
import json
import os
import re
import runpy

import jax
import numpy as np
import pytest

from lrdyn import cli
from lrdyn.commands import pool
from lrdyn.completion.statement import COMPLETION
from lrdyn.corollary1.statement import COROLLARY1
from lrdyn.registry import BEYOND_THE_SURVEY, theorems
from lrdyn.registry import theorem as registered
from lrdyn.studies import studies
from lrdyn.theorem1.statement import THEOREM1
from lrdyn.theorem2.statement import THEOREM2
from lrdyn.theorem3.statement import THEOREM3
from lrdyn.theorem4.statement import THEOREM4
from lrdyn.verification.storing import files
from tests.runs import finished, python, results_of, small_words, verdict_of
from tests.verification.test_theorem import MY_THEOREM

THEOREMS = theorems()
DEEP = (THEOREM2, COROLLARY1)
SMALL = [
    "--depth",
    "2",
    "--steps",
    "10",
    "--seeds",
    "1",
    "--init-scale",
    "0.5",
    "--init-spread",
    "1",
    "--weight-decay",
    "0",
    "--decay-spread",
    "1",
]
TINY = ["--dim", "8", "--rank", "1", *SMALL]


def main_claims(theorem):
    """The theorem reduced to the claims of its first scenario: the command line is the same."""
    first = dataclasses.replace(theorem.scenarios[0], controls=())
    return dataclasses.replace(theorem, scenarios=(first,))


@pytest.fixture
def command(drawing_command_line):
    """Run a command line in this process and in an empty folder: status, stdout, stderr."""
    return drawing_command_line


@pytest.fixture
def my_theorem(tmp_path):
    """A theorem in a file of its own."""
    (tmp_path / "my_theorem.py").write_text(MY_THEOREM)
    return runpy.run_path(str(tmp_path / "my_theorem.py"))["THEOREM"]


def tree(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# End to end ----------------------------------------------------------------------------------


@pytest.fixture(params=[theorem.name for theorem in THEOREMS])
def ran(request, tmp_path_factory):
    return finished(request.param, tmp_path_factory.getbasetemp())


@pytest.fixture(params=[theorem.name for theorem in DEEP])
def deep(request, tmp_path_factory):
    return finished(request.param, tmp_path_factory.getbasetemp())


def test_a_command_writes_the_files_of_the_contract(ran):
    swept = [v for v in ran.verdict["config"].values() if isinstance(v, list) and len(v) > 1]
    pictures = ["verdict", *registered(ran.verdict["name"]).plots]
    pictures += ["sweep"] if any(not isinstance(values[0], str) for values in swept) else []
    wanted = {"verdict.json": b"{\n  ", "results.nc": b"\x89HDF", ".lrdyn": b"lrdy"}
    wanted |= {f"{name}.png": b"\x89PNG" for name in pictures}
    wanted |= {f"{name}.pdf": b"%PDF" for name in pictures}
    assert {path.name: path.read_bytes()[:4] for path in ran.folder.iterdir()} == wanted


def test_a_command_ends_with_its_verdict(ran):
    *_, last = ran.process.stdout.splitlines()
    assert last == f"{ran.verdict['name']} holds: {ran.folder}"
    shown = [line.split()[0] for line in ran.process.stdout.splitlines() if line]
    claims = [claim["id"] for claim in ran.verdict["claims"] if claim["kind"] != "control"]
    assert set(claims) <= set(shown)


def test_a_verdict_follows_the_schema(ran):
    assert set(ran.verdict) == {
        "schema",
        "name",
        "holds",
        "config",
        "claims",
        "results_sha256",
        "changed",
        "arithmetic",
        "judged_by",
        "environment",
        "undecided",
        "statistics",
    }
    assert (ran.verdict["holds"], ran.verdict["undecided"]) == (True, [])
    assert ran.verdict["statistics"]["false_alarm"] == 1e-6
    kinds = {"exact", "identity", "bound", "limit", "rate", "statistical", "control"}
    wanted = {"id", "kind", "statement", "hypotheses_met", "residual", "tolerance", "holds"}
    for claim in ran.verdict["claims"]:
        assert set(claim) >= wanted | {"cases", "worst_case"}
        if claim["kind"] == "finding":
            assert claim["holds"] is claim["tolerance"] is None
            continue
        for counts in claim["judged"].values():
            assert counts["drawn"] == counts["judged"] + sum(counts["left_out"].values())
        assert claim["kind"] in kinds
        assert all(isinstance(claim[name], float) for name in ("residual", "tolerance"))
        assert all(isinstance(claim[name], bool) for name in ("holds", "hypotheses_met"))
        assert isinstance(claim["cases"], int)
        swept = {flag.name for flag in registered(ran.verdict["name"]).flags if flag.swept}
        assert set(claim["worst_case"]) >= {"seed"} | swept
    assert {"identity", "control"} <= {claim["kind"] for claim in ran.verdict["claims"]}


def test_a_verdict_says_what_it_came_from(ran):
    name, environment = ran.verdict["name"], ran.verdict["environment"]
    names = {"jax", "jaxlib", "numpy", "python", "platform", "device_kind", "devices", "dtype"}
    names |= {"git", "blas"}
    assert set(environment) == names
    assert (environment["jax"], environment["dtype"]) == (jax.__version__, "float64")
    assert ran.verdict["config"] == cli.parse(registered(name), small_words(name)).run.config


def test_a_configuration_is_flags_and_defaults(deep):
    config = deep.verdict["config"]
    assert (config["dim"], config["steps"], config["target"]) == ([9], 1000, None)
    assert (config["init_scale"], config["preset"]) == ([0.3, 1.0], "quick")


@pytest.mark.parametrize("group", ["/", "/float32"])
def test_results_hold_the_arrays_of_the_contract(deep, group):
    results = deep.group(group)
    for name in ("rho_predicted", "rho_measured", "off_block"):
        assert results[name].dims[-2:] == ("step", "layer")
        assert results[name].dtype == (group.strip("/") or "float64")
    values = results.get("singular_values_measured", results.get("singular_values"))
    assert values.dims[-3:] == ("step", "layer", "index")
    assert set(values.dims) >= {"seed", "depth", "rank", "init_scale", "weight_decay", "dim"}
    assert (results.sizes["layer"], results.sizes["index"]) == (3, 9)
    assert set(results.dims) - set(results.coords) <= {
        "layer",
        "index",
        "row",
        "column",
        "network",
        "count",
    }


# --target ------------------------------------------------------------------------------------


def matrix(rank):
    rng = np.random.default_rng(0)
    return 10 * rng.normal(size=(8, rank)) @ rng.normal(size=(rank, 8))


def test_a_target_of_low_rank(command, tmp_path):
    """Size, rank and a stable step follow from the file."""
    np.save(tmp_path / "phi.npy", matrix(2))
    status, out, err = command(main_claims(COROLLARY1), *SMALL, "--target", "phi.npy")
    assert status == 0, err
    assert "corollary1 holds" in out
    results = results_of(tmp_path)
    largest = np.linalg.norm(matrix(2), 2)
    assert (results["dim"].values.tolist(), results["rank"].values.tolist()) == ([8], [2])
    assert results["learning_rate"].values * largest**2 == pytest.approx(0.1)
    assert verdict_of(tmp_path)["config"]["target"]["shape"] == [8, 8]


HALF = io.BytesIO()
np.save(HALF, matrix(2))
TARGETS = {
    "full.npy": (matrix(8), "got a matrix of rank 8 and width 8, wanted a width above"),
    "flat.npy": (matrix(2)[:, :3], r"got an array of shape \(8, 3\), wanted a square matrix"),
    "line.npy": (np.ones(4), r"got an array of shape \(4,\), wanted a square matrix"),
    "nan.npy": (matrix(2) * np.nan, "got an entry nan in 'nan.npy', wanted"),
    "huge.npy": (matrix(2) * 1e200, "got an entry .*e.20. in 'huge.npy', wanted"),
    "infinite.npy": (matrix(2) * np.inf, "got an entry -?inf in 'infinite.npy', wanted"),
    "zero.npy": (
        np.zeros((8, 8)),
        "got a matrix of norm 0, wanted a largest singular value from",
    ),
    "empty.npy": (np.zeros((0, 0)), "got 'empty.npy', wanted an .npy file of real numbers"),
    "complex.npy": (matrix(2) * 1j, "got 'complex.npy', wanted an .npy file of real numbers"),
    "words.npy": (np.array([["a"]]), "got 'words.npy', wanted an .npy file of real numbers"),
    "text.npy": (b"1 0\n0 1\n", "got 'text.npy', wanted an .npy file"),
    "nothing.npy": (b"", "got 'nothing.npy', wanted an .npy file"),
    "half.npy": (HALF.getvalue()[:200], "got 'half.npy', wanted an .npy file"),
    "cut.npz": (HALF.getvalue()[:0] + b"PK\x03\x04" + 60 * b"\0", "got 'cut.npz', wanted an .npy"),
    "open.npy": (b"\x93NUMPY\x01\x00\x20\x00{'descr': '<f8', 'fort" + b" " * 20, "got 'open.npy'"),
    "vast.npy": (
        HALF.getvalue().replace(b"(8, 8), }  ", b"(10**9, 10**9)}")[:128],
        "got 'vast.npy', wanted",
    ),
    "tiny.npy": (matrix(2) * 1e-300, "got a matrix of norm .*e-.*wanted a largest singular value"),
    "least.npy": (np.full((8, 8), np.iinfo(np.int64).min), "got an entry -9.* in 'least.npy'"),
    "missing.npy": (None, r"got 'missing.npy' \(no such file\), wanted an .npy file"),
    ".": (None, r"got '.' \(.*Is a directory.*\), wanted an .npy file"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_bad_targets(name, command, tmp_path):
    content, message = TARGETS[name]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        np.save(tmp_path / name, content)
    assert_refused(command, tmp_path, THEOREM2, [*SMALL, "--target", name], message)


# Bad input -----------------------------------------------------------------------------------


def assert_refused(command, folder, theorem, words, message):
    """Status 2, exactly one line on stderr, nothing written."""
    before = tree(folder)
    status, out, err = command(theorem, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{theorem.name}: error: --")
    assert re.search(message, err), err
    assert tree(folder) == before


OUTSIDE = {
    "an integer >= 1": ("--rank 0", "--steps 0", "--steps 1.5"),
    "an integer >= 2": ("--depth 1", "--depth 3 1"),
    "an integer >= 3": ("--dim ten", "--dim expected", "--dim nan"),
    "a number from 1e-12 to 1e.12": (
        "--init-scale 0",
        "--init-scale -1",
        "--init-scale inf",
        "--target-scale -1e-3",
        "--learning-rate 0",
        "--learning-rate 0,1",
        "--init-scale 0.1 nan",
    ),
    "a number from 1e-06 to 1e.06": ("--init-spread 0",),
    "0 or a number from 1e-12 to 1e.12": (
        "--weight-decay -0.1",
        "--weight-decay -inf",
        "--weight-decay 1e999",
    ),
}
"""What a flag wants -> words of which the last is outside."""
BAD = [
    *(
        (words, f"{words.split()[0]}: got '{words.split()[-1]}', wanted {wanted}")
        for wanted, every in OUTSIDE.items()
        for words in every
    ),
    ("--dim 8 --rank 9", "--rank: got 9 with d = 8, wanted d > 2 rank"),
    ("--dim 8 --rank 4", "--rank: got 4 with d = 8, wanted d > 2 rank"),
    ("--dim 20 8 --rank 1 4", "--rank: got 4 with d = 8, wanted d > 2 rank"),
    ("--steps 1" + "0" * 400, r"--steps: got '10+\.\.\.0+', wanted an integer >= 1, below"),
    ("--dim", "--dim: got nothing, wanted at least one argument"),
    ("--dim --rank 1", "--dim: got nothing, wanted at least one argument"),
    ("--out", "--out: got nothing, wanted one argument"),
    ("--dim 8 --target phi.npy", "--target: got 'phi.npy' .*wanted an .npy file"),
]
COMMON = [
    ("--unknown 3", "--unknown: got an unknown argument, wanted one of those in --help"),
    ("--see 3", "--see: got an unknown argument"),
    ("--dtype float16", "--dtype: got 'float16', wanted one of .*float64.*float32"),
    ("--preset huge", "--preset: got 'huge', wanted one of .*quick.*paper"),
    ("--seeds 0", "--seeds: got '0', wanted an integer >= 1"),
    ("--seed -1", "--seed: got '-1', wanted an integer >= 0"),
    ("--seed 99999999999999999999", "--seed: got '9+', wanted"),
    ("--seed 2147483647 --seeds 2", "--seed: got 2147483647, wanted all seeds below 2"),
]


@pytest.mark.parametrize("theorem", DEEP, ids=lambda theorem: theorem.name)
@pytest.mark.parametrize(("words", "message"), BAD, ids=[words[:40] for words, _ in BAD])
def test_bad_input(theorem, words, message, command, tmp_path):
    out = [] if words == "--out" else ["--out", "new/deeper"]
    assert_refused(command, tmp_path, theorem, [*words.split(), *out], message)


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.name)
@pytest.mark.parametrize(("words", "message"), COMMON, ids=[words[:40] for words, _ in COMMON])
def test_bad_input_of_every_command(theorem, words, message, command, tmp_path):
    assert_refused(command, tmp_path, theorem, words.split(), message)


@pytest.mark.parametrize(
    ("theorem", "flag"),
    [(theorem, flag) for theorem in THEOREMS for flag in theorem.flags if flag.type != "array"],
    ids=lambda x: x.name,
)
def test_no_flag_takes_what_is_outside_its_domain(theorem, flag, command, tmp_path):
    name = "--" + flag.name.replace("_", "-")
    for word in ("nan", "-inf", "1e999", "", "word", "-7"):
        message = re.escape(f"{name}: got {word!r}, wanted {flag.domain.wanted}")
        assert_refused(command, tmp_path, theorem, [f"{name}={word}"], message)


@pytest.mark.parametrize(
    ("theorem", "words", "message"),
    [
        (THEOREM1, "--rank 5", "--rank: got 5 with k = 6 and d = 4, wanted r <= min"),
        (THEOREM1, "--rank-deficit 4", "--rank-deficit: got 4 with k = 6 and d = 4, wanted less"),
        (THEOREM1, "--tie 2", "--tie: got '2', wanted 0 or 1"),
        (THEOREM1, "--depth 1", "--depth: got '1', wanted an integer >= 2"),
        (COROLLARY1, "--excess-rank -1", "--excess-rank: got '-1', wanted an integer >= 0"),
        (COROLLARY1, "--dim 8 --rank 1 --excess-rank 3", "--excess-rank: got 3 .*wanted d > 2"),
        (THEOREM2, "--excess-rank 1", "--excess-rank: got an unknown argument"),
        (COMPLETION, "--dim 24 8 --rank 4", "--rank: got 4 with d = 8, wanted d > 2 rank"),
        (THEOREM3, "--rows 13 --mask input", "--rows: got 13, 13 parts to mask, wanted at most 12"),
        (THEOREM3, "--mask patch --patch-size 8", "--patch-size: got 8, wanted at most --rows 6"),
        (THEOREM3, "--mask patch --patch-size 4", "--patch-size: got 4 with --rows 6, wanted a"),
        (THEOREM3, "--width 5", "--block-size: got 2 with --width 5, wanted a divisor"),
        (THEOREM4, "--rows 10 --cols 8 --rank 2 9", "--rank: got 9 with 10 x 8, wanted at most"),
        (COMPLETION, "--observed 1.1", "--observed: got '1.1', wanted a number > 0 and <= 1"),
    ],
)
def test_bad_input_of_one_theorem(theorem, words, message, command, tmp_path):
    assert_refused(command, tmp_path, theorem, words.split(), message)


@pytest.mark.parametrize("out", ["file", "file/below", "file/far/below"])
def test_an_output_folder_that_cannot_be(out, command, tmp_path):
    (tmp_path / "file").write_text("kept")
    message = rf"--out: got '{out}' \(.*\), wanted a writable folder"
    assert_refused(command, tmp_path, THEOREM2, [*TINY, "--out", out], message)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission(command, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    message = r"--out: got 'closed' \(Permission denied\), wanted a writable folder"
    assert_refused(command, tmp_path, THEOREM2, [*TINY, "--out", "closed"], message)


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.name)
def test_help(theorem, command, tmp_path):
    status, out, err = command(theorem, "--help")
    assert (status, err) == (0, "")
    text = " ".join(out.split())
    for flag in theorem.flags:
        assert f"--{flag.name.replace('_', '-')}" in text
        assert f"{flag.symbol}: {flag.help}" in text
    assert tree(tmp_path) == {}


# Divergence ----------------------------------------------------------------------------------

DIVERGING = ["--dim", "8", "--rank", "1", *SMALL, "--steps", "200", "--learning-rate"]


def test_a_diverging_step_size_does_not_poison_its_neighbours(command, tmp_path):
    status, out, _ = command(main_claims(THEOREM2), *DIVERGING, "0.1", "50")
    (line,) = [line for line in out.splitlines() if "diverged" in line]
    assert status == 0
    assert line.startswith("factorization: diverged at step 2: seed=0 dim=8")
    assert "learning_rate=50" in line
    for claim in verdict_of(tmp_path)["claims"]:
        assert (claim["holds"], claim["cases"], claim["cases_total"]) == (True, 1, 2)
        assert claim["worst_case"]["learning_rate"] == 0.1
    results = results_of(tmp_path)
    assert results["diverged_at"].squeeze().values.tolist() == [-1, 2]
    assert np.isfinite(results["loss_measured"].sel(learning_rate=0.1)).all()


def test_nothing_but_divergence_is_undecided(command, tmp_path):
    """Theory's own run diverges, too: nothing is judged, and the line says why."""
    status, out, errors = command(main_claims(THEOREM2), *DIVERGING, "50", "60")
    assert status == 4, errors
    assert "off_block: undecided, diverges (" in out
    assert "diverged at step 2" in out
    assert "theorem2 is undecided (no control): " in out
    assert tree(tmp_path)


# All of them ---------------------------------------------------------------------------------


def register(monkeypatch, *some):
    """Have these theorems, and no others, in the registry."""
    monkeypatch.setattr(pool, "theorems", lambda: some)
    monkeypatch.setattr(pool, "theorem", {one.name: one for one in some}.__getitem__)


def experiments(capsys, *words):
    return cli.run("experiments", lambda: pool.main(list(words))), *capsys.readouterr()


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_the_listing(words, capsys):
    status, out, err = experiments(capsys, *words)
    assert (status, err) == (0, "")
    usage, heading, listed = out.partition("theorems\n")  # a page of help has examples above it
    assert usage.startswith("usage: ") if words else not usage
    first, *lines = (heading + listed).splitlines()
    beyond, head = lines.index("beyond the survey"), lines.index("studies, which train")
    of_survey = [one for one in THEOREMS if one.name not in BEYOND_THE_SURVEY]
    others = [registered(name) for name in BEYOND_THE_SURVEY]
    groups = (lines[:beyond], lines[beyond + 1 : head], lines[head + 1 :])
    for found, wanted in zip(groups, (of_survey, others, studies()), strict=True):
        for line, one in zip(found, wanted, strict=True):
            assert line.split(maxsplit=1) == [one.name, one.summary]
    assert first == "theorems"


def test_an_unknown_command(capsys):
    status, out, err = experiments(capsys, "theorem5")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "got 'theorem5' (did you mean 'theorem4'?), wanted 'all', or one that is listed" in err
    status, out, err = experiments(capsys, "theorem4")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "got 'theorem4', wanted: lrdyn verify theorem4" in err


def test_a_flag_goes_to_the_theorems_that_have_it():
    first = dataclasses.replace(THEOREM2.scenarios[0], steps="", controls=(), at={})
    flags = THEOREM2.flags[:2]
    bare = dataclasses.replace(THEOREM2, name="bare", flags=flags, scenarios=(first,))
    words = ["--rank", "1", "-1", "--seeds=3", "--depth", "2"]
    assert pool.split_flags(words, (THEOREM2, bare)) == [words, ["--seeds=3", "--depth", "2"]]
    with pytest.raises(cli.BadInput, match=r"--rnak: got an unknown argument .*'--rank'"):
        pool.split_flags(["--rnak", "1"], (THEOREM2, bare))


def test_bad_input_of_the_last_stops_all_of_them(command, capsys, tmp_path, monkeypatch):
    picky = dataclasses.replace(COROLLARY1, check=lambda point: refuse())

    def refuse():
        raise ValueError("--rank: got 1, wanted something else")

    register(monkeypatch, THEOREM2, picky)
    err = "experiments: error: --rank: got 1, wanted something else\n"
    assert experiments(capsys, "all", "--jobs", "1", *TINY) == (2, "", err)
    assert tree(tmp_path) == {}


def test_all_of_them_in_one_table(command, my_theorem, capsys, tmp_path, monkeypatch):
    (scenario,) = my_theorem.scenarios
    tame = dataclasses.replace(scenario.controls[1], predict=scenario.predict)
    untested = dataclasses.replace(scenario, controls=(tame,))
    false = dataclasses.replace(my_theorem, name="false", scenarios=(untested,))
    register(monkeypatch, my_theorem, false)
    status, out, _ = experiments(capsys, "all", "--jobs", "1", "--dim", "2", "--dtype", "float32")
    assert status == 1
    heading, good, bad, fault, _, last = out.splitlines()
    assert last == "1 of 2 theorems hold"
    assert heading.split()[:3] == ["theorem", "claims", "cases"]
    count = len(scenario.controls)
    for line, name, controls, word in (
        (good, "my_theorem", f"{count}/{count}", "holds"),
        (bad, "false", "0/1", "IS FALSE"),
    ):
        (folder,) = tmp_path.glob(f"results/{name}/*")
        assert line.endswith(f"{controls:8}  {word:8}  {folder.relative_to(tmp_path)}")
        entries = [c for c in verdict_of(folder)["claims"] if c["kind"] != "control"]
        nearest = max(entries, key=lambda c: c["residual"] / c["tolerance"])
        ratio = nearest["residual"] / nearest["tolerance"]
        shown = [name, f"{len(entries)}/{len(entries)}", str(entries[0]["cases_total"])]
        assert line.split()[:5] == [*shown, f"{ratio:.2f}", nearest["id"]]
    assert fault == f"  {tame.id}: NOT SEEN TO FAIL"


def test_all_of_them_in_lines_for_programs_in_one_and_with_controls(
    command, my_theorem, capsys, tmp_path, monkeypatch
):
    other = dataclasses.replace(my_theorem, name="other")
    register(monkeypatch, my_theorem, other)
    words = ("all", "--jobs", "1", "--dim", "2", "--dtype", "float32")
    status, out, _ = experiments(capsys, *words, "--format", "json")
    assert status == 0
    lines = list(map(json.loads, out.splitlines()))
    for name in ("my_theorem", "other"):
        *entries, last = (line for line in lines if line["theorem"] == name)
        verdict = json.loads((tmp_path / last["file"]).read_text())
        assert last["holds"] is verdict["holds"] is True
        assert entries == [{"theorem": name, **entry} for entry in verdict["claims"]]
    # The flag stands behind one that not every theorem has.
    _, out, _ = experiments(capsys, *words, "-q")
    assert out == "2 of 2 theorems hold\n"
    _, out, _ = experiments(capsys, *words, "-v")
    for control in my_theorem.scenarios[0].controls:
        assert sum(line.startswith(f"{control.id} ") for line in out.splitlines()) == 2


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "1.5"])
def test_bad_jobs(jobs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = f"experiments: error: --jobs: got {jobs!r}, wanted an integer >= 1\n"
    assert experiments(capsys, "all", "--jobs", jobs) == (2, "", err)
    assert tree(tmp_path) == {}


def test_a_fault_in_another_process_is_one_line(tmp_path):
    file = tmp_path / "file"
    file.touch()
    done = python("-m", "experiments", "all", "--jobs", "2", "--seeds", "1", "--out", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"experiments: error: --out: got '{file}'")
    assert done.stderr.count("\n") == 1


def test_a_full_disk_is_a_fault_of_the_machine(command, my_theorem, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "results.nc")

    monkeypatch.setattr(files, "write_netcdf", full)
    status, _, err = command(my_theorem, "--dim", "2", "--dtype", "float32")
    assert status == 3
    message = "results.nc: No space left on device; finished parts are kept"
    assert err.splitlines()[-1] == f"my_theorem: error: {message}"
    assert not list(tmp_path.rglob("verdict.json"))
