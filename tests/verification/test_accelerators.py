"""Which accelerator is taken, found without opening it, and how processes share one.

There is no card: plugins, device files and drivers are made up, and JAX is asked for what it lacks.
"""

import threading
import time
from types import SimpleNamespace

import jax
import pytest

from lrdyn.commands import pool, verify
from lrdyn.theorem2.statement import THEOREM2
from lrdyn.verification.machine import accelerators, device_defaults, process, program_cache
from lrdyn.verification.running import jobs, produce
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.running.work import Context
from notebooks import __main__ as notebooks
from tests import conftest
from tests.jobs import claims_job
from tests.runs import started
from tests.verification.test_kept_programs import SETTINGS


@pytest.fixture
def card(monkeypatch):
    """An NVIDIA card as far as the library can tell."""
    monkeypatch.setattr(accelerators, "accelerator", lambda: "cuda")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages, and one of device files, which is empty."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    devices = {"cuda": (f"{tmp_path}/nvidia[0-9]*",), "tpu": (f"{tmp_path}/accel*",)}
    monkeypatch.setattr(accelerators, "FILES", devices)
    monkeypatch.setattr(accelerators, "_named", lambda: "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "site"


def install(site, name, *, entry_point):
    """Install a plugin that says by an entry point what it is, or lies below ``jax_plugins``."""
    if entry_point:
        facts = site / f"jax_{name}_plugin-1.2.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Name: jax-{name}-plugin\nVersion: 1.2\n")
        (facts / "entry_points.txt").write_text(f"[jax_plugins]\nxla_{name} = nothing\n")
    else:
        (site / "jax_plugins" / f"xla_{name}").mkdir(parents=True)
        (site / "jax_plugins" / f"xla_{name}" / "__init__.py").touch()


# Which one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry_point", [True, False])
def test_a_plugin_and_a_device_file_make_an_accelerator(site, tmp_path, monkeypatch, entry_point):
    assert accelerators.accelerator() == ""
    install(site, "cuda12", entry_point=entry_point)
    assert accelerators.accelerator() == ""  # no device
    (tmp_path / "nvidia0").touch()
    assert accelerators.accelerator() == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert accelerators.accelerator() == ""


def test_a_device_file_without_a_plugin_makes_none(site, tmp_path):
    (tmp_path / "nvidia0").touch()
    assert accelerators.accelerator() == ""


def test_libtpu_and_a_chip_make_a_tpu(site, tmp_path):
    (site / "libtpu.py").touch()
    assert accelerators.accelerator() == ""
    (tmp_path / "accel0").touch()
    assert accelerators.accelerator() == "tpu"


def test_a_plugin_of_another_platform_is_trusted(site):
    install(site, "metal", entry_point=True)
    assert accelerators.accelerator() == "xla_metal"


@pytest.mark.parametrize(
    ("named", "found"), [("cpu", ""), ("cpu,cuda", ""), ("cuda", "cuda"), ("tpu,cpu", "tpu")]
)
def test_a_platform_that_is_named_decides(site, monkeypatch, named, found):
    install(site, "metal", entry_point=True)
    monkeypatch.setattr(accelerators, "_named", lambda: named)
    assert accelerators.accelerator() == found


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JAX_PLATFORMS", "cuda"),
        ("JAX_PLATFORMS", "nosuch"),
        ("XLA_FLAGS", "--no_such_flag"),
        ("XLA_FLAGS", "nofile"),
    ],
)
def test_what_jax_or_xla_cannot_follow_is_one_line(variable, value, tmp_path):
    """XLA would end the process with 1, by which a command says that a claim is false."""
    words = ("-m", "lrdyn", "verify", "lora", "--out", tmp_path)
    with started(*words, cwd=tmp_path, **{variable: value}) as process:
        out, err = process.communicate(timeout=500)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"lora: error: {variable}: got '{value}' (")
    assert not list(tmp_path.iterdir())


# How it is shared --------------------------------------------------------------------------------


def test_memory_is_taken_as_it_is_needed_unless_somebody_said_otherwise(monkeypatch):
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    for given, wanted in (
        ({}, "false"),
        ({name: "true"}, "true"),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".4"}, None),
        ({"XLA_CLIENT_MEM_FRACTION": ".4"}, None),
        ({"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}, None),
    ):
        monkeypatch.setattr(accelerators.os, "environ", dict(given))
        accelerators.share_memory()
        assert accelerators.os.environ.get(name) == wanted


def test_all_runs_one_theorem_at_a_time_on_a_card_and_opens_none_to_know(card, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("opened")

    monkeypatch.setattr(process, "setup", opened)
    monkeypatch.setattr(accelerators, "open_devices", opened)
    monkeypatch.setattr(process, "cores", lambda: 4)
    assert pool.take_jobs(["--seeds", "3"]) == (1, ["--seeds", "3"])
    assert pool.take_jobs(["--jobs", "3"]) == (3, [])
    cluster = ["--cluster=local:2"]
    assert pool.take_jobs(cluster) == (4, cluster)  # its workers compute
    monkeypatch.setattr(accelerators, "accelerator", lambda: "")
    assert pool.take_jobs([]) == (4, [])


def test_tests_run_in_one_process_on_a_card(card, monkeypatch):
    assert conftest.pytest_xdist_auto_num_workers(None) == 1
    monkeypatch.setattr(accelerators, "accelerator", lambda: "")
    assert conftest.pytest_xdist_auto_num_workers(None) is None


def test_notebooks_run_one_at_a_time_on_a_card(monkeypatch, capsys):
    lock, running, most = threading.Lock(), [], []

    def run(path):
        with lock:
            running.append(path)
            most.append(len(running))
        time.sleep(0.05)
        with lock:
            running.remove(path)
        return notebooks.Ran(None, "")

    monkeypatch.setattr(notebooks, "execute", run)
    monkeypatch.setattr(notebooks._kept, "keep", lambda *_, **__: None)
    for platform, wanted in (("cuda", 1), ("", notebooks.AT_A_TIME)):
        monkeypatch.setattr(accelerators, "accelerator", lambda found=platform: found)
        most.clear()
        notebooks.main([])
        assert max(most) == wanted


HOST_ONLY = """
import jax
from lrdyn import cli
cli.setup(host_only=True)
print(jax.default_backend())
"""


def test_a_process_that_computes_nothing_opens_no_card(tmp_path):
    """JAX is told to take a card that is not there: whoever opens it would end here."""
    with started("-c", HOST_ONLY, cwd=tmp_path, JAX_PLATFORMS="cuda") as process:
        out, err = process.communicate(timeout=500)
    assert (process.returncode, out) == (0, "cpu\n"), err


@pytest.mark.parametrize(
    ("words", "alone"), [(["--cluster", "local:2"], True), (["--seeds", "1"], False)]
)
def test_the_parent_of_workers_is_one(words, alone, monkeypatch):
    class Stopped(Exception):
        pass

    asked = {}

    def setup(dtype, **given):
        asked.update(given)
        raise Stopped

    monkeypatch.setattr(verify, "setup", setup)
    with pytest.raises(Stopped):
        verify.verify_command(verify.parse(THEOREM2, words))
    assert asked["host_only"] is alone


# Devices of a CPU --------------------------------------------------------------------------------

COUNT = """
import jax
from lrdyn import cli
cli.setup(host_devices=2)
print(jax.local_device_count())
"""
EIGHT = "--xla_force_host_platform_device_count=8"


@pytest.mark.parametrize(
    "given", [{"JAX_NUM_CPU_DEVICES": "8"}, {"XLA_FLAGS": f"--xla_cpu_enable_fast_math=0 {EIGHT}"}]
)
def test_devices_that_the_environment_asks_for_are_there(given, tmp_path):
    with started("-c", COUNT, cwd=tmp_path, **given) as process:
        out, err = process.communicate(timeout=500)
    assert (process.returncode, out) == (0, "8\n"), err


def test_what_the_environment_asks_for_is_read(monkeypatch):
    for given, wanted in (
        ({}, None),
        ({"XLA_FLAGS": EIGHT.replace("8", "3") + " " + EIGHT}, 8),  # the last one counts
        ({"XLA_FLAGS": EIGHT, "JAX_NUM_CPU_DEVICES": "4"}, 4),
        ({"JAX_NUM_CPU_DEVICES": "-1"}, None),
        ({"JAX_NUM_CPU_DEVICES": "0"}, None),
        ({"XLA_FLAGS": "--xla_dump_to=x"}, None),
    ):
        monkeypatch.setattr(accelerators.os, "environ", dict(given))
        assert accelerators.host_devices_asked() == wanted


# The same bits -----------------------------------------------------------------------------------


def test_deterministic_kernels_are_asked_for_once(card, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    for _ in range(2):
        said = accelerators.run_deterministically()
        assert said == "--deterministic: --xla_gpu_deterministic_ops=true on cuda"
        assert accelerators.os.environ["XLA_FLAGS"] == (
            "--xla_dump_to=x --xla_gpu_deterministic_ops=true"
        )


@pytest.mark.parametrize(("platform", "word"), [("", "CPU"), ("tpu", "TPU")])
def test_elsewhere_there_is_nothing_to_do_and_that_is_said(platform, word, monkeypatch):
    monkeypatch.setattr(accelerators, "accelerator", lambda: platform)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert accelerators.run_deterministically() == f"--deterministic: nothing to do on a {word}"
    assert "XLA_FLAGS" not in accelerators.os.environ


def test_workers_elsewhere_need_the_flag_themselves(capsys):
    given = ["--deterministic", "--cluster", "tls://there:8786"]
    with pytest.raises(BadInput, match="--deterministic: got it beside --cluster, wanted XLA_F"):
        verify.run_deterministically("theorem2", verify.parse(THEOREM2, given).options)
    given[-1] = "local:2"
    verify.run_deterministically("theorem2", verify.parse(THEOREM2, given).options)
    assert capsys.readouterr().out == "theorem2: --deterministic: nothing to do on a CPU\n"


# Kept programs -----------------------------------------------------------------------------------


def test_kept_programs_are_named_by_plugin_and_driver(site, tmp_path, monkeypatch):
    install(site, "cuda12", entry_point=True)
    client = SimpleNamespace(platform_version="PJRT C API\ncuda 12090")
    monkeypatch.setattr(accelerators, "DRIVER", tmp_path / "driver")
    (tmp_path / "driver").write_text("NVRM version: 580.1\nGCC version: 12\n")
    found = accelerators.releases(SimpleNamespace(platform="cuda", client=client))
    assert "jax-cuda12-plugin 1.2" in found
    assert found[-2:] == ("PJRT C API\ncuda 12090", "NVRM version: 580.1")
    assert accelerators.releases(SimpleNamespace(platform="cpu", client=client)) == ()


def test_another_release_has_another_folder(monkeypatch):
    before = program_cache.kind()
    monkeypatch.setattr(accelerators, "releases", lambda device: ("jax-cuda12-plugin 1.2",))
    one = program_cache.kind()
    monkeypatch.setattr(accelerators, "releases", lambda device: ("jax-cuda12-plugin 1.3",))
    assert len({before, one, program_cache.kind()}) == 3


# What they have ----------------------------------------------------------------------------------


def test_sweeps_that_run_side_by_side_share_the_memory_of_a_card(monkeypatch):
    """A CPU's limit is that of each, as ever."""
    seen, card = [], SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 2**36})
    job = claims_job(THEOREM2, THEOREM2.scenarios[0], SETTINGS, (0,), "/", "float64")
    monkeypatch.setattr(jobs.Job, "run", lambda job, context: seen.append(context.memory) or {})
    monkeypatch.setattr(produce.os, "cpu_count", lambda: 4)
    for device, count in ((card, 8), (card, 2), (jax.devices("cpu")[0], 8)):
        monkeypatch.setattr(produce.jax, "local_devices", lambda device=device: [device])
        context = Context(memory=device_defaults.usual_memory(device))
        produce._run_side_by_side([job] * count, context, produce._Announced(context.progress))
    assert seen == 8 * [2**35 // 4] + 2 * [2**35 // 2] + 8 * [device_defaults.ON_A_CPU]


@pytest.mark.parametrize(("capability", "said"), [("8.9", "1/64"), ("7.5", "1/32"), ("9.0", "")])
def test_a_card_that_is_slow_in_float64_is_named(capability, said):
    card = SimpleNamespace(compute_capability=capability, device_kind="A card")
    told = accelerators.slow_doubles(card)
    assert (said in told and "A card" in told) if said else told == ""


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_command_says_so_where_it_runs_in_float64(monkeypatch, command_line, tmp_path, precision):
    monkeypatch.setattr(verify, "slow_doubles", lambda device: "slow")
    words = "--dim 4 --depth 2 --rank 1 --steps 2 --seeds 1 --out".split()
    _, text, _ = command_line(THEOREM2, *words, tmp_path, "--dtype", precision)
    assert text.startswith("theorem2: slow\n") == (precision == "float64")
