"""Sweeps over processes of Dask: the same arrays, one task a part, and nothing lost."""

import contextlib
import os
import pickle
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import dask.config
import jax
import numpy as np
import psutil
import pytest
import xarray as xr
from cryptography.hazmat.primitives import serialization

import lrdyn as lr
from docs.examples import training
from lrdyn import cli
from lrdyn.commands import pool, verify
from lrdyn.registry import theorem
from lrdyn.training import loop
from lrdyn.verification.cluster import client as clusters
from lrdyn.verification.cluster import credentials, local_workers, origins, tasks, worker
from lrdyn.verification.machine import program_cache
from lrdyn.verification.running import arithmetic_probe, work
from lrdyn.verification.running.configuration import BadInput, run_of
from lrdyn.verification.running.produce import jobs_of, recipes_of
from lrdyn.verification.running.reductions import Quantiles, Worst
from lrdyn.verification.running.work import Context, PartRequest, Recipe
from lrdyn.verification.runs import run_folder
from lrdyn.verification.stating import own_files
from tests import forked
from tests.runs import XLA_FLAGS, Told, python, results_of, started, verdict_of
from tests.workers import Site, kill, until, write_mine

POINTS = lr.product(seed=range(40), size=[2, 3])


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The file of a user, imported, and one beside it."""
    folder = tmp_path_factory.mktemp("mine")
    return own_files.import_script(write_mine(folder))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The scheduler of two workers, whose programs are compiled like those of the tests."""
    temporary = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", XLA_FLAGS))
        patch.setenv("LRDYN_CACHE", str(tmp_path_factory.mktemp("cache")))
        before = dict(os.environ)
        with contextlib.ExitStack() as stack:
            with pytest.MonkeyPatch.context() as other:
                other.setattr(tempfile, "tempdir", str(temporary))
                found = stack.enter_context(clusters.start_workers(2))
            assert list(temporary.iterdir()) == [Path(found.security)]
            yield found
        changed = {name for name, _ in before.items() ^ os.environ.items()}
        # Dask sets some for its workers; these are the mark of a process, and of whose test it is.
        assert changed <= {"__DASK_PARENT_PID", "PYTEST_CURRENT_TEST", "KMP_DUPLICATE_LIB_OK"}
    assert not list(temporary.iterdir())


@pytest.fixture(scope="module")
def reached(local):
    """Flags by which a command reaches it."""
    return ["--cluster", local.address, "--cluster-security", local.security]


@pytest.fixture(scope="module")
def cluster(local):
    with clusters.connection(*local) as found:
        yield found


def run(mine, told=None, **more):
    """A sweep in parts of four points."""
    return lr.sweep(
        mine.chaotic, POINTS, shapes=("size",), memory=1, progress=told or Told(), **more
    )


@pytest.fixture(scope="module")
def whole(mine):
    return run(mine)


def test_a_function_of_a_file_gives_the_same_bits(cluster, mine, whole):
    told = Told()
    assert run(mine, told, client=cluster).identical(whole)
    assert told.expected == sum(told.computed) == POINTS.size
    assert len(told.computed) == 20


def test_a_client_of_dask_will_do_and_parts_are_kept_either_way(cluster, mine, whole, tmp_path):
    told, again = Told(stop_after=7), Told()
    with pytest.raises(KeyboardInterrupt):
        run(mine, told, client=cluster.client, store=tmp_path)
    assert run(mine, again, store=tmp_path).load().identical(whole)
    assert (len(again.saved), len(again.computed)) >= (7, 0)
    assert sum(again.saved) + sum(again.computed) == POINTS.size
    assert not list(tmp_path.glob("*.seen"))
    for path in sorted(tmp_path.glob("*.npz"))[3:]:
        path.unlink()
    last = Told()
    assert run(mine, last, client=cluster, store=tmp_path).load().identical(whole)
    assert len(last.saved) == 3


def test_only_names_come_back_where_the_store_is_seen(cluster, mine, tmp_path):
    found = []

    def result(self, future, one, generation):
        found.append(future.result())
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters.ClusterParts, "_result", result)
        run(mine, client=cluster, store=tmp_path)
        assert found == [None] * 20
        run(mine, client=cluster)
        assert {type(one) for one in found[20:]} == {dict}


def test_large_shared_arrays_go_to_a_worker_once(cluster, mine):
    x = np.arange(20_000.0)
    found = lr.sweep(mine.scaled, lr.product(x=[1.0, 2.0]), shared=x, client=cluster)
    assert np.array_equal(found["y"], np.stack([x, 2 * x]))


def test_a_long_sweep_is_cut_by_its_time_and_reduced_by_workers(cluster, mine, monkeypatch):
    monkeypatch.setattr(work, "MANY", 4)
    monkeypatch.setattr(work, "SECONDS", 1e6)
    points, told = lr.product(seed=range(300), size=[2, 3]), Told()
    kept = {"top": Worst("trace", 5), "all": Quantiles("B")}
    how = {"shapes": ("size",), "lanes": 1, "reduce": kept}
    found = lr.sweep(mine.chaotic, points, **how, client=cluster, progress=told)
    assert found.identical(lr.sweep(mine.chaotic, points, **how))
    # Of each shape three are tried, and the other 204 points cut anew into 64, 64, 64, 12.
    assert len(told.computed) == 2 * (3 + 4)


def test_what_no_worker_could_find_is_named(cluster):
    with pytest.raises(ValueError, match=r"function: got .*<lambda>, wanted one at the top level"):
        lr.sweep(lambda x: {"y": x}, lr.product(x=[1.0]), client=cluster)


def test_a_theorem_by_its_name(cluster):
    known = theorem("theorem2")
    run = run_of(known, dim=8, depth=2, rank=1, steps=10, seeds=2)
    job = next(jobs_of(known, run.settings, "float64", run.seeds_of, False, False))
    context = Context(elsewhere=cluster)
    recipe = next(recipes_of(known, run.settings, "float64", False, False, context))
    here, there = job.run(), job.run(context, recipe)
    assert here.keys() == there.keys()
    assert all(there[group].identical(here[group]) for group in here)


def test_the_arithmetic_is_that_of_the_workers(cluster):
    found = cluster.measure_arithmetic("float32", "highest")
    assert found == [arithmetic_probe.measure_arithmetic("float32")]
    assert {"products", "svd"} <= found[0].keys()
    with pytest.raises(BadInput, match="tf32"):
        cluster.measure_arithmetic("float32", "tf32")


def command(mine, *words):
    """The command of the user's theorem; its verdict."""
    out = Path(words[words.index("--out") + 1])
    assert cli.main(mine.DOUBLE, [*map(str, words), "--seeds", "3"]) == 0
    return verdict_of(out)


@pytest.fixture
def undrawn(monkeypatch, unchecked):
    monkeypatch.setattr(verify.verdicts, "draw", lambda *found: None)
    monkeypatch.setenv("LRDYN_CACHE", "")
    yield
    jax.config.update("jax_enable_x64", True)


def test_the_command_of_a_file(local, reached, cluster, mine, tmp_path, undrawn, capsys):
    here = command(mine, "--out", tmp_path / "here")
    store = tmp_path / "store"
    there = command(mine, *reached, "--store", store, "--out", tmp_path / "there")
    lines = capsys.readouterr().out.splitlines()
    said = [one for one in lines if one.startswith("double: cluster: ")]
    assert said == [f"double: cluster: 2 workers at {local.address}"]
    for group in ("/", "/float32", "/controls/treble/float64"):
        one, other = (results_of(tmp_path / name, group) for name in ("here", "there"))
        xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())
    (kind,) = there["environment"].pop("workers")
    assert (kind["workers"], kind["jax"], kind["lrdyn"]) == (2, jax.__version__, lr.__version__)
    assert {"device", "processor", "distributed", "python"} <= kind.keys()
    assert here["environment"] == there["environment"]
    assert not list(store.rglob("*.npz"))


def test_a_study_trains_elsewhere_and_ends_here(reached, tmp_path, undrawn, capsys):
    """Each run is a task; what ended there is not trained again here."""
    words = ["--width", "10", "--steps", "40", "--seeds", "2"]
    there = [*words, *reached, "--store", str(tmp_path), "--out", str(tmp_path / "b")]
    assert cli.main(training.TEACHER, [*words, "--out", str(tmp_path / "a")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "produce_run", interrupted(run_folder.produce_run))
        assert cli.main(training.TEACHER, there) == 130
    (kept,) = tmp_path.glob("teacher/*")
    assert list(kept.glob("checkpoints/*/step-*.ckpt"))
    assert len(list(kept.glob("metrics-*.csv"))) > 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_Loop", None)  # nothing may be trained here
        back = [*words, "--store", str(tmp_path), "--out", str(tmp_path / "b")]
        assert cli.main(training.TEACHER, back) == 0
    logs = [path.read_text().splitlines() for path in tmp_path.rglob("metrics*.csv")]
    last, other = ({line for line in log if ",40,loss," in line} for log in logs)
    assert last == other
    assert len(last) > 1
    for group in ("/", "/learned", "/float64"):
        one, other = (results_of(tmp_path / name, group) for name in "ab")
        xr.testing.assert_identical(one.drop_attrs(), other.drop_attrs())


def interrupted(produced):
    """A run that Ctrl-C ends when all is computed."""

    def run(*given, **more):
        produced(*given, **more)
        raise KeyboardInterrupt

    return run


def test_a_point_that_raises_is_named_and_the_others_go_on(
    reached, mine, tmp_path, undrawn, capsys
):
    words = [*reached, "--out", str(tmp_path), "--seeds", "2"]
    assert cli.main(mine.SLOW, words) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "error: seed=0, rate=0.3: ArithmeticError: the third rate (and 1 parts more)" in said
    assert len(list(tmp_path.rglob("*.npz"))) == 6


def pids(cluster):
    return list(cluster.client.run(os.getpid).values())


def test_a_worker_killed_in_flight(cluster, mine, whole):
    killed = threading.Timer(0.3, lambda: os.kill(pids(cluster)[0], signal.SIGKILL))
    killed.start()
    before = set(pids(cluster))
    for _ in range(3):
        assert run(mine, client=cluster).identical(whole)
    killed.join()
    until(lambda: len(cluster.alive()) == 2, 20)
    assert len(before & set(pids(cluster))) == 1


def test_all_workers_lost_then_new_ones(cluster, mine, whole, tmp_path):
    def kill():
        for pid in pids(cluster):
            os.kill(pid, signal.SIGKILL)

    killed = threading.Timer(0.2, kill)
    killed.start()
    assert run(mine, client=cluster, store=tmp_path).load().identical(whole)
    killed.join()
    assert run(mine, client=cluster).identical(whole)


def begun(site, *words):
    """The command of the user's file on a cluster that has no worker yet, waiting for one."""
    mine = f"{write_mine(site.folder)}:DOUBLE"
    where = ("--cluster", site.address, "--out", site.folder / "out")
    line = ("-m", "lrdyn", "verify", mine, "--memory", "1B", *where, *words)
    how = {"cache": site.cache, "interpreter": forked.interpreter()}
    process = started(*line, cwd=site.folder, **how)
    assert process.stdout is not None
    process.stdout.readline()  # that the scheduler is without TLS
    line = process.stdout.readline()
    assert line.startswith(f"double: cluster: no workers at {site.address}")
    assert line.endswith(", waiting for one\n")
    time.sleep(5)
    assert process.poll() is None
    return process


def test_a_command_waits_for_a_first_worker_and_says_one_line_of_a_lost_scheduler(tmp_path):
    """As under Slurm: the scheduler answers at once, and workers come when there is room."""
    with Site(tmp_path, workers=0) as site:
        process = begun(site, "--seeds", "60")
        site.workers.append(site.worker())
        until(lambda: list(tmp_path.rglob("*.npz")), 60)
        kill(site.scheduler)
        _, errors = process.communicate(timeout=120)
        lost = f"{site.address}: the scheduler is lost; finished parts are kept"
        assert (process.returncode, errors) == (3, f"double: error: {lost}\n")
        site.restart()
        process = begun(site, "--seeds", "2")
        site.workers.append(site.worker())
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")


def test_waiting_ends_with_the_reason_if_the_first_worker_is_refused(tmp_path, monkeypatch):
    other = worker.release()._replace(jax="0.1")
    monkeypatch.setattr(worker, "release", lambda: other)
    with Site(tmp_path, workers=0) as site, clusters.connection(site.address) as cluster:
        site.workers.append(site.worker())
        with pytest.raises(BadInput, match=r"worker tcp://\S+: got .*, wanted .* JAX 0.1"):
            cluster.measure_arithmetic("float32", "highest")


def test_each_look_sees_all_workers(local):
    """A client also asks for the scheduler's facts by itself, for those without the workers."""
    with dask.config.set({"distributed.client.scheduler-info-interval": "1ms"}):
        with clusters.connection(*local) as cluster:
            assert [len(cluster.alive()) for _ in range(300)] == 300 * [2]
            assert cluster.generation == 1  # no time without any


def test_two_users_do_not_mix(local, cluster, mine, whole, tmp_path):
    """Files of the same names that say other things, at the same time on the same workers."""
    path = write_mine(tmp_path, factor=2.0)
    mine_beside = sys.modules.pop("beside")
    try:
        other = own_files.import_script(path)
    finally:
        sys.modules["beside"] = mine_beside
    other_whole = run(other)
    assert not other_whole.identical(whole)
    with clusters.connection(*local) as second:
        found = {}
        thread = threading.Thread(target=lambda: found.update(other=run(other, client=second)))
        thread.start()
        assert run(mine, client=cluster).identical(whole)
        thread.join()
    assert found["other"].identical(other_whole)


def test_another_release_is_refused(local, monkeypatch):
    real = worker.release()
    other = real._replace(jax="0.1", digest="0" * 64)
    monkeypatch.setattr(worker, "release", lambda: other)
    said = (
        rf"worker tls\S+: got lrdyn {real.lrdyn} \({real.digest[:12]}\) with JAX .*, wanted lrdyn"
    )
    with pytest.raises(BadInput, match=said), clusters.connection(*local):
        pass


def test_another_program_is_refused(mine):
    """As a worker would whose library traces to something else."""
    how = {"batched": False, "lanes": 2, "memory": 1, "compiler_options": {}, "shared": None}
    how |= {"in_cache": False, "x64": True, "matmuls": "highest", "reduce": {}}
    recipe = Recipe(None, "lrdyn.verification.running.sweep:sweep_of", how)
    outputs = (("B", (2, 2), "float32"),)
    asked = PartRequest((("size", 2),), {"seed": np.arange(4)}, lanes=2, most=4, outputs=outputs)
    task = tasks.PartTask(origins.origin(mine.chaotic, "function"), "key", asked)
    failed = tasks.compute_part(pickle.dumps(recipe), pickle.dumps(task))
    assert isinstance(failed, tasks.TaskFailure)
    assert failed.line.endswith("among its results, wanted [('B', (2, 2), 'float32')]")


@pytest.mark.parametrize("text", ["local:0", "local:", "nowhere", "local:-1", "", "a b:1"])
def test_addresses_are_checked(text, mine, capsys, unchecked):
    assert cli.main(mine.DOUBLE, ["--cluster", text]) == 2
    assert "--cluster: got " in capsys.readouterr().err


def test_nobody_there_is_bad_input(unchecked, mine, tmp_path, capsys, monkeypatch):
    """Before anything is sent, a line says who could run code there, once."""
    monkeypatch.setattr(clusters, "TIMEOUT", 0.5)
    monkeypatch.setattr(clusters, "_WARNED", set())
    monkeypatch.setenv("LRDYN_CACHE", "")
    words = ["--cluster", "tcp://127.0.0.1:9", "--out", str(tmp_path / "out")]
    assert cli.main(mine.DOUBLE, words) == 2
    said = capsys.readouterr()
    assert "--cluster: got 'tcp://127.0.0.1:9'" in said.err
    assert said.out.splitlines() == [
        "double: cluster: tcp://127.0.0.1:9 is without TLS: whoever reaches it, or the network "
        "between, can run code on its workers and, by what they send back, as you on this machine"
    ]
    assert not (tmp_path / "out").exists()
    assert cli.main(mine.DOUBLE, words) == 2
    assert not capsys.readouterr().out


@pytest.mark.parametrize("address", ["tls://127.0.0.1:9", "local:2"])
def test_that_line_is_not_said_of_tls(address, capsys):
    clusters.warn_of_exposure("double", address)
    assert not capsys.readouterr().out


def test_tls_without_certificates_is_bad_input(unchecked, mine, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LRDYN_CACHE", "")
    words = ["--cluster", "tls://127.0.0.1:9", "--out", str(tmp_path / "out")]
    assert cli.main(mine.DOUBLE, words) == 2
    assert "wanted certificates for it: --cluster-security DIR, or" in capsys.readouterr().err


# Certificates --------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [[], ["local:2"], ["tcp://127.0.0.1:9"], ["127.0.0.1:9"]])
def test_certificates_without_an_address_that_uses_them(beside, mine, unchecked, capsys):
    words = [word for address in beside for word in ("--cluster", address)]
    assert cli.main(mine.DOUBLE, [*words, "--cluster-security", "x"]) == 2
    got = f"--cluster {beside[0]}" if beside else "no --cluster"
    line = f"--cluster-security: got {got} beside it, wanted --cluster tls://HOST:PORT"
    assert line in capsys.readouterr().err


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Two folders with certificates."""
    folders = [tmp_path_factory.mktemp("certificates") for _ in range(2)]
    for folder in folders:
        credentials.make(folder)
    return folders


def encrypted(path):
    """A private key as its owner would protect it with a pass phrase."""
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    how = serialization.BestAvailableEncryption(b"pass phrase")
    coding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(coding, form, how)


UNFIT = {
    "missing": (lambda path, other: (path / "ca.pem").unlink(), "ca.pem.*No such file"),
    "readable": (lambda path, other: (path / "key.pem").chmod(0o640), "key.pem.*mode 640"),
    "writable": (lambda path, other: (path / "ca.pem").chmod(0o666), "ca.pem.*mode 666"),
    "folder": (
        lambda path, other: ((path / "cert.pem").unlink(), (path / "cert.pem").mkdir()),
        "cert.pem.*no file",
    ),
    "mixed": (
        lambda path, other: shutil.copy(other / "key.pem", path / "key.pem"),
        "wanted ca.pem, cert.pem and key.pem that belong together",
    ),
    "empty": (lambda path, other: (path / "cert.pem").write_text(""), "that belong together"),
    "encrypted": (
        lambda path, other: (path / "key.pem").write_bytes(encrypted(path / "key.pem")),
        "key.pem.*encrypted.*wanted a key without a pass phrase",
    ),
}


@pytest.mark.parametrize("change", UNFIT)
def test_certificates_are_checked(certificates, change, tmp_path):
    one, other = certificates
    shutil.copytree(one, tmp_path / "mine")
    clusters.credentials(tmp_path / "mine")
    make, reason = UNFIT[change]
    make(tmp_path / "mine", other)
    with pytest.raises(BadInput, match=rf"--cluster-security: got .*{reason}"):
        clusters.connect("tls://127.0.0.1:9", str(tmp_path / "mine"))


def test_another_certificate_is_refused(local, certificates, monkeypatch):
    monkeypatch.setattr(clusters, "TIMEOUT", 2.0)
    with pytest.raises(BadInput, match=r"--cluster: got 'tls://\S+' \(.*, wanted local:N or"):
        clusters.connect(local.address, str(certificates[0]))


STRANGER = """
import asyncio, os, ssl, sys

from distributed.core import connect

user, folder, *ports = sys.argv[1:]
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    for name in ("key.pem", "cert.pem"):
        try:
            print("READ", open(f"{folder}/{name}").read())
        except PermissionError:
            pass
anyone = ssl.create_default_context()
anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE


async def asks(scheme, port, **how):
    # As a client of Dask, and as any worker of it answers.
    comm = await connect(f"{scheme}://127.0.0.1:{port}", timeout=3, **how)
    await comm.write({"op": "identity", "reply": True})
    return await comm.read()


async def looks(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    return await reader.readline()


async def answer(asked):
    try:
        return await asyncio.wait_for(asked, 5)
    except (Exception, asyncio.CancelledError):
        return None


async def main():
    asked = [(asks("tcp", p), asks("tls", p, ssl_context=anyone), looks(p)) for p in ports]
    found = await asyncio.gather(*[answer(one) for three in asked for one in three])
    for index in range(len(ports)):
        print(found[3 * index : 3 * index + 3])


asyncio.run(main())
"""


def test_another_user_is_refused(local, cluster):
    """At every port, without TLS, with TLS but no certificate, and as a browser."""
    user, folder, *ports = "65534", local.security
    for pid in (os.getpid(), *pids(cluster)):
        ports += [str(port) for _, port in listening(pid)]
    assert len(ports) == 8
    ended = python("-c", STRANGER, user, folder, *ports)
    assert not ended.stderr
    found = ended.stdout.splitlines()
    pages = "[None, None, b'HTTP/1.1 404 Not Found\\r\\n']"
    assert found.count(pages) == 3
    assert found.count("[None, None, b'']") + found.count("[None, None, None]") == 5


def test_no_key_is_in_an_environment_or_a_command_line(local, cluster):
    key = Path(local.security, "key.pem").read_text().splitlines()[1]
    for pid in pids(cluster):
        process = psutil.Process(pid)
        words = [*process.cmdline(), *process.environ().values()]
        assert not any(key in word or "PRIVATE KEY" in word for word in words)


def test_files_of_local_workers_are_private(local):
    assert stat.S_IMODE(os.stat(local.security).st_mode) == 0o700
    modes = {
        name: os.stat(Path(local.security, name)).st_mode & 0o777
        for name in ("key.pem", "cert.pem", "ca.pem")
    }
    assert set(modes.values()) == {0o600}


def test_what_a_killed_process_left_is_removed(tmp_path, monkeypatch):
    """What another one works in, what is not of this kind, and what a link leads to are not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = (".lrdyn-left", ".lrdyn-half", ".lrdyn-x", "elsewhere")
    left, half, mine, elsewhere = (tmp_path / name for name in names)
    (half / "dask-scratch-space").mkdir(parents=True)
    for folder in (left, mine, elsewhere):
        folder.mkdir()
        (folder / "file").write_text("")
    for folder in (left, elsewhere):
        (folder / local_workers.LOCK).write_text("")
    (tmp_path / ".lrdyn-link").symlink_to("elsewhere")
    with local_workers._scratch_folder() as running:
        local_workers.remove_left_behind()
        assert sorted(running.iterdir()) == [running / local_workers.LOCK]
    assert {path.name for path in tmp_path.iterdir()} == {".lrdyn-x", ".lrdyn-link", "elsewhere"}
    assert len(list(elsewhere.iterdir())) == 2


def test_all_theorems_share_local_workers(monkeypatch, certificates, capsys):
    """Each gets the address and the certificates that were made for it."""

    @contextlib.contextmanager
    def given(*found):
        yield (
            found[0] if len(found) == 1 else SimpleNamespace(described=lambda: f"cluster: {found}")
        )

    there = local_workers.Local("tls://127.0.0.1:9", str(certificates[0]))
    monkeypatch.setattr(clusters, "start_workers", lambda count: given(there))
    monkeypatch.setattr(clusters, "connection", given)
    words = ["--cluster", "local:2"]
    asked = cli.parse(theorem("theorem1"), words).options
    with pool._share_cluster(asked, {"theorem1": words}) as dealt:
        options = cli.parse(theorem("theorem1"), dealt["theorem1"]).options
    assert (options.cluster, options.cluster_security) == there
    assert str(there.address) in capsys.readouterr().out


def test_nothing_listens_beyond_this_machine(cluster):
    """In this process and in the workers."""
    found = [host for pid in (os.getpid(), *pids(cluster)) for host, _ in listening(pid)]
    assert found
    assert set(found) == {"127.0.0.1"}


def listening(pid):
    """Addresses and ports that a process listens at, of IPv4 and IPv6."""
    return [
        one.laddr
        for one in psutil.Process(pid).net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    ]


def test_without_what_makes_certificates_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(BadInput, match=r"'cryptography', wanted the extra 'cluster': pip"):
        credentials.make(tmp_path)


def test_without_dask_the_extra_is_named(monkeypatch, unchecked):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "lrdyn.verification.cluster.client")
    monkeypatch.delattr("lrdyn.verification.cluster.client")
    with pytest.raises(BadInput, match=r"pip install 'lrdyn\[cluster\]'"):
        verify.cluster_module()


# What is compiled ----------------------------------------------------------------------------


def test_programs_of_another_processor_are_not_taken(tmp_path, monkeypatch):
    """A home that two machines share."""
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    least = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]
    folders = []
    try:
        for features in ("x86_64 sse", "x86_64 sse avx512f", "x86_64 sse"):
            monkeypatch.setattr(program_cache, "features", lambda said=features: said)
            program_cache.keep(tmp_path)
            folders.append(jax.config.jax_compilation_cache_dir)  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    assert folders[0] == folders[2] != folders[1]
    assert {Path(folder).parent for folder in folders} == {tmp_path}


def test_what_was_used_longest_ago_goes_first(tmp_path):
    """Programs by their names, in folders by theirs, and nothing behind a link."""
    one, two = (tmp_path / f"jaxlib-0.1-cpu-{12 * end}" for end in "ab")
    old, older, new = f"lrdyn-{32 * '1'}.zip", f"jit_f-{64 * '2'}-cache", f"jit_f-{64 * '3'}-atime"
    linked = tmp_path / "linked" / old
    (tmp_path / f"jaxlib-0.1-cpu-{12 * 'c'}").symlink_to("linked")
    mine = [tmp_path / "data" / old, one / "thesis.tex", linked, tmp_path / "key"]
    for path, age in (
        (one / old, 30),
        (two / older, 40),
        (one / new, 10),
        *((m, 90) for m in mine),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (time.time() - age, time.time() - age))
    (one / f"lrdyn-{32 * '4'}.zip").symlink_to(linked)
    for most, kept in ((250, {one / old, one / new}), (100, {one / new}), (1, set())):
        program_cache.prune(tmp_path, most)
        assert {path for path in (one / old, two / older, one / new) if path.exists()} == kept
    assert all(path.exists() for path in mine)


def test_the_bound_is_a_size(monkeypatch):
    assert program_cache.most() == 2 * 10**9
    monkeypatch.setenv("LRDYN_CACHE_MAX", "5MB")
    assert program_cache.most() == 5_000_000
    monkeypatch.setenv("LRDYN_CACHE_MAX", "much")
    with pytest.raises(BadInput, match="LRDYN_CACHE_MAX: got 'much', wanted a size such as"):
        program_cache.most()
