"""What a task loses when an update is cut: ``python -m benchmarks.cut_updates [TASK ...]``.

It needs ``make encoder``. Query and value matrices of the last two layers of the small encoder are
trained in full by Adam, on sentiment and on similarity. The update of each is cut at its noise
floor, at 90 % and at 99 % of its squared norm, and at fixed ranks, and the task's loss on texts
that were not trained on is measured again. Where a matrix has no noise floor the first cut takes
90 % there, as ``lrdyn diagnose --extract DIR --rank noise`` does.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.common import table
from lrdyn import adapters
from lrdyn.adapters.adapter import Shift
from lrdyn.diagnosis import noise
from lrdyn.diagnosis.updates import rank_with
from lrdyn.studies.adapter_training import cells, sentences, tasks
from lrdyn.studies.adapter_training.cells import Bench, SentenceTraining, TrainingRequest
from lrdyn.studies.adapter_training.sentences import AUTO, Tested
from lrdyn.training import FORGETFUL

HEADER = (
    "task",
    "cut at",
    "r",
    "of squared norm",
    "of full training",
    "share of the gain (worst seed)",
    "correlation",
)
RATES = (1e-4, 3e-4)
"""Rates of Adam, which fall linearly to 0."""
FIXED = (4, 16, 64)
LAYERS, LENGTH, TESTED = 2, 32, 300


class Cut(NamedTuple):
    """One way of cutting, on one training."""

    ranks: tuple[int, ...]
    energy: float
    """Share of the squared norm of all updates together."""
    loss: float
    correlation: float


def noise_rank(values: np.ndarray, shape: tuple[int, int]) -> int | None:
    """How many values lie above the noise floor; None where there is none."""
    found = noise.floor(values, shape)
    return None if found is None else found.above


def _or_90(values: np.ndarray, shape: tuple[int, int]) -> int:
    found = noise_rank(values, shape)
    return _energy(0.9)(values, shape) if found is None else found


def _energy(share: float) -> Callable[[np.ndarray, tuple[int, int]], int]:
    def rank(values: np.ndarray, shape: tuple[int, int]) -> int:
        return rank_with(values, share) or 0

    return rank


WAYS: dict[str, Callable[[np.ndarray, tuple[int, int]], int]] = {
    "nothing": lambda values, shape: 0,
    "noise": _or_90,
    "90 %": _energy(0.9),
    "99 %": _energy(0.99),
    **{f"r = {r}": lambda values, shape, r=r: r for r in FIXED},
    "whole": lambda values, shape: len(values),
}


@eqx.filter_jit
def _tested(net: Any, data: Tested, added: dict[str, Any]) -> Float[Array, "2"]:
    """Loss and correlation on texts that were not trained on."""
    adapted = adapters.apply(net, added)
    parts = jax.tree.map(lambda x: x.reshape(-1, sentences.ROWS, *x.shape[1:]), data.rows)
    above = jax.lax.map(adapted.above, parts).reshape(data.rows.hidden.shape)
    outputs = adapted.scores(data.rows, above, len(data.scores))
    # The head has no bias: the mean of the scores is subtracted, as in the training.
    goal = data.scores - jnp.mean(data.scores)
    loss = jnp.mean((outputs - goal) ** 2)
    return jnp.stack([loss, jnp.corrcoef(outputs, goal)[0, 1]])


def cuts(bench: Bench, asked: TrainingRequest, seed: int) -> tuple[int, dict[str, Cut]]:
    """Train, and test the update cut in each way; and how many updates have a noise floor."""
    begun = bench.beginning(asked, jax.random.key(seed))
    program, _ = bench.program(asked, cells.norms_of, cells.norm_steps(asked.steps), begun)
    now, _, _ = program(*begun)
    net = bench.with_head(begun.head)
    parts = {}
    for path, adapter in now.items():
        update = np.asarray(adapter.onto(jnp.zeros_like(bench.weight(path))), np.float64)
        parts[path] = np.linalg.svd(update, full_matrices=False)
    shapes = {path: (len(U), Vt.shape[1]) for path, (U, _, Vt) in parts.items()}
    floors = sum(noise_rank(s, shapes[path]) is not None for path, (_, s, _) in parts.items())
    total = sum(float(np.sum(s**2)) for _, s, _ in parts.values())
    results = {}
    for name, way in WAYS.items():
        ranks = {path: way(s, shapes[path]) for path, (_, s, _) in parts.items()}
        added = {
            path: Shift(jnp.asarray((U[:, :r] * s[:r]) @ Vt[:r], bench.net.head.dtype))
            for path, (U, s, Vt) in parts.items()
            for r in [ranks[path]]
        }
        loss, correlation = _tested(net, bench.ground.tested["test"], added)
        kept = sum(float(np.sum(s[: ranks[p]] ** 2)) for p, (_, s, _) in parts.items())
        results[name] = Cut(tuple(ranks.values()), kept / total, float(loss), float(correlation))
    return floors, results


def report(
    names: Sequence[str] = tasks.TASKS, *, seeds: int = 2, examples: int = 512, steps: int = 200
) -> str:
    """A table: of each task and rate, what each cut keeps of the gain in the loss."""
    rows, lines = [], []
    for task in names:
        encoded = tasks.encode(
            tasks.Task(task, AUTO, AUTO, AUTO, AUTO, "", TESTED, LAYERS, LENGTH), "float32"
        )
        bench = Bench(SentenceTraining(encoded), FORGETFUL)
        sides = sum(bench.weight(bench.paths[0]).shape)
        size = int(np.prod(bench.weight(bench.paths[0]).shape))
        for rate in RATES:
            asked = TrainingRequest("full", 8, examples, rate, steps, 1.0)
            found = [cuts(bench, asked, seed) for seed in range(1, seeds + 1)]
            floors = [floor for floor, _ in found]
            about = f"{task}, rate {rate:g}"
            lines.append(f"{about}: a noise floor in {sum(floors)} of {seeds * len(bench.paths)}")
            for name in WAYS:
                each = [results[name] for _, results in found]
                # 1 where the task loses nothing, 0 where the cut gives back the encoder as it was.
                gains = [
                    (results["nothing"].loss - results[name].loss)
                    / (results["nothing"].loss - results["whole"].loss)
                    for _, results in found
                ]
                ranks = [r for cut in each for r in cut.ranks]
                rows.append(
                    (
                        about,
                        name,
                        f"{min(ranks)}-{max(ranks)}",
                        f"{np.mean([cut.energy for cut in each]):.1%}",
                        f"{np.mean(ranks) * sides / size:.1%}",
                        f"{np.mean(gains):.3f} ({min(gains):.3f})",
                        f"{np.mean([cut.correlation for cut in each]):.4f}",
                    )
                )
    return "\n".join([table(HEADER, rows), "", *lines])


if __name__ == "__main__":
    print(report(sys.argv[1:] or tasks.TASKS))
