"""Threads of the LAPACK that JAX calls: one, whether or not the command line has set up a process.

With more, the decompositions of a refresh wait for each other busily, for forty times the seconds
of the processor.
"""

import os

import pytest

from tests.runs import python

SOURCE = """
import jax, jax.numpy as jnp, numpy, scipy.linalg.lapack
from pathlib import Path
from threadpoolctl import threadpool_info
import lrdyn

def threads():
    return {Path(i["filepath"]).parent.name: i["num_threads"] for i in threadpool_info()}

before = threads()
W = jnp.eye(4)
jax.jit(lambda G: lrdyn.adapters.choose_projectors(G, 2))(W)
after = threads()
ours = [name for name in after if name.startswith("scipy")] or list(after)
print({after[name] for name in ours})
print(all(after[name] == before[name] for name in after if name not in ours))
"""


@pytest.mark.parametrize(("asked", "wanted"), [(None, "{1}"), ("2", "{2}")])
def test_decompositions_have_one_thread_unless_a_user_said_how_many(
    tmp_path, monkeypatch, asked, wanted
):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core has one thread")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", asked)
    done = python("-", source=SOURCE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # The other library, which NumPy brings, has what it had.
    assert done.stdout.splitlines() == [wanted, "True"]
