"""What a GPU or a TPU would run: main programs of the theorems, steps of the trainings, by name.

They are made here and run nowhere: to be lowered, or compiled ahead of time.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from lrdyn import adapters, networks
from lrdyn.core.platforms import for_any_platform
from lrdyn.data import encoder
from lrdyn.registry import REGISTRY, theorem
from lrdyn.studies.adapter_training import sentences, tuning
from lrdyn.studies.pictures import cross_entropy
from lrdyn.training import Batches, train
from lrdyn.training.program import Program
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.running.jobs import Job, job_for, plan_claims
from lrdyn.verification.running.produce import jobs_of
from lrdyn.verification.running.programs import Group
from lrdyn.verification.running.work import DEFAULT
from lrdyn.verification.stating.statement import Experiment
from paper_figs import table1_memory

LANES = 16
"""Points of a chunk, each another seed."""


class Step(NamedTuple):
    """A function, and arrays or shapes that it takes."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    """Arguments that it may overwrite."""
    x64: bool = False
    """Whether JAX has 64-bit numbers where it is traced, lowered and compiled."""
    trains: bool = False
    """Whether it is a step of a training, or a loop of them between two numbers of steps."""


def smallest(name: str) -> dict[str, Any]:
    """Settings at which a theorem is compiled in seconds: of each small value the first."""
    small = theorem(name).small.items()
    return {flag: value[:1] if isinstance(value, tuple) else value for flag, value in small}


def traced_jobs(experiment: Experiment, **settings: Any) -> Iterator[Job]:
    """All sweeps of an experiment whose functions are traced, of claims and of controls."""
    run = run_of(experiment, **settings)
    seeds = range(settings.get("seeds", 1))
    for job in jobs_of(run.concerned, run.settings, "float64", seeds, False, True):
        if job.scenario.traced and not job.scenario.trains:
            yield job


def main_job(name: str, precision: str, **settings: Any) -> Job:
    """The sweep of a theorem that carries its verdict: its first traced scenario over seeds."""
    stated = theorem(name)
    run = run_of(stated, **{**smallest(name), **settings})
    first = next(s for s in run.concerned.scenarios if s.traced and not s.trains)
    plan = plan_claims(stated, first, run.settings, range(LANES), "/", precision)
    return job_for(stated, plan, run.settings, True)


def programs_of(job: Job) -> list[Step]:
    """The programs of a sweep, one for each shape, with the first points of each as arguments."""
    sweep = job.sweep(DEFAULT)
    with sweep.scope(), for_any_platform():
        parts, _ = sweep.parts()
        groups = {part.group.digest: part.group for part in parts if part.group}
        # Of a group in stages this is the whole function, which is not traced before.
        traced = [(group.traced().jaxpr, _first_points(group)) for group in groups.values()]
    x64 = job.precision == "float64"
    return [Step(jaxpr_as_fun(jaxpr), arguments, x64=x64) for jaxpr, arguments in traced]


def _first_points(group: Group) -> tuple[Any, ...]:
    """Arguments of the program of a group: the points of its first call, as a sweep hands them."""
    points = group.parts[0][: group.lanes]
    if group.several:  # filled up, as the slots of a part are
        points = np.resize(points, group.lanes)
        values, used = group.values(points), np.arange(group.lanes) < len(group.parts[0])
    else:
        values, used = {n: v[0] for n, v in group.values(points).items()}, np.bool_(True)
    return tuple(jax.tree.leaves((values, used, group.plan.shared.tree)))


def main_program(name: str, precision: str, **settings: Any) -> Step:
    """The program of :func:`main_job`, that of its first shape."""
    return programs_of(main_job(name, precision, **settings))[0]


class _Found(Exception):
    """Carries a program out of a training that is about to compile it."""


def training_step(training: Callable[[], Any]) -> Step:
    """What a training is about to compile first, which is a loop of its steps or one of them."""

    def found(program: Program) -> None:
        raise _Found(program)

    try:
        with mock.patch.object(Program, "compile", found):
            training()
    except _Found as raised:
        program: Program = raised.args[0]
    else:
        raise ValueError("training: got one that compiles nothing, wanted one that compiles a step")
    jaxpr, structure = program.closed.jaxpr, jax.tree.structure(program.out)

    def call(first: Any, rest: Any, constants: Any) -> Any:
        leaves = jax.tree.leaves((first, rest))
        outputs = jaxpr_as_fun(ClosedJaxpr(jaxpr, list(constants)))(*leaves)
        return jax.tree.unflatten(structure, outputs)

    first, *rest = program.like
    return Step(call, (first, rest, program.closed.consts), donate=(0,), trains=True)


def image_step(
    draw: Callable[[jax.Array], networks.Network], side: int, channels: int, count: int, batch: int
) -> Step:
    """A step of a network on images, with Adam on the cross-entropy, as the studies train them."""
    net = draw(jax.random.key(0))
    pictures = np.zeros((count, side, side, channels), np.uint8)
    batches = Batches({"x": pictures, "y": np.zeros(count, np.int32)}, batch)
    state = networks.initial_state(net)
    key, rule = jax.random.key(1), optax.adam(1e-3)
    return training_step(lambda: train(key, cross_entropy, net, rule, batches, [1], state=state))


MATRICES = [f"attention.{name}" for name in ("query", "key", "value", "output")]
MATRICES += ["mlp.weights.0", "mlp.weights.1"]


def encoder_step(layers: int, width: int, heads: int, batch: int, length: int, rank: int) -> Step:
    """A step of LoRA on every matrix of an encoder and its pooler, as Figures 4 to 8 train it."""
    sizes = {
        "vocab_size": 32,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": length,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    model = encoder.blank(jax.random.key(0), encoder.BertConfig(**sizes), True)
    net = tuning.CrossEncoder(model, jnp.zeros(width), 0, "pooler")
    select = [f"model.layers.{l}.{name}" for l in range(layers) for name in MATRICES]
    select += ["model.pooler.weight"]
    added = adapters.init(jax.random.key(1), net, select=select, method=adapters.LORA, rank=rank)
    hidden = np.zeros((batch, length, width), np.float32)
    pairs = sentences.Examples(hidden, np.ones((batch, length), bool), np.zeros(batch, np.float32))
    loss = partial(tuning.squared_error, net)
    batches, rule = Batches(pairs, batch), tuning.adam(500)(1e-4)
    return training_step(lambda: train(jax.random.key(2), loss, added, rule, batches, [1]))


TINY_STEPS: dict[str, Callable[[], Step]] = {
    "weight_updates": lambda: image_step(
        partial(networks.vit, size=8, patch=4, channels=1, width=8, depth=1, heads=2), 8, 1, 8, 4
    ),
    "weight_updates, convolutions": lambda: image_step(
        partial(networks.vgg, layers=(4, "pool"), size=8, channels=1, hidden=(4,)), 8, 1, 8, 4
    ),
    "dropout_spectra": lambda: image_step(
        partial(networks.resnet, blocks=(1, 1), widths=(2, 4), channels=1, dropout=0.5), 8, 1, 8, 4
    ),
    "adapters": lambda: encoder_step(layers=2, width=8, heads=2, batch=4, length=4, rank=2),
}
"""A step of each kind of network that the studies train, small."""
PAPER_STEPS: dict[str, Callable[[], Step]] = {
    "Figure 1, ViT-Base, a step": lambda: image_step(
        partial(networks.vit, size=32, patch=4, hidden=3072), 32, 3, 50_000, 128
    ),
    "Figure 1, VGG-16, a step": lambda: image_step(
        partial(networks.vgg, hidden=(512,)), 32, 3, 50_000, 128
    ),
    "Figure 2, ResNet-18, a step": lambda: image_step(
        partial(networks.resnet, dropout=0.5), 32, 3, 50_000, 128
    ),
    "Figures 4 to 8, LoRA on BERT-base, a step": lambda: encoder_step(
        layers=12, width=768, heads=12, batch=16, length=128, rank=64
    ),
}
"""The same at the paper's sizes."""


def table1_steps(given: dict[str, Any] | None = None) -> dict[str, Callable[[], Step]]:
    """Programs of Table 1: the steps and refreshes of the methods, by ``method form``."""
    given = given or table1_memory.PRESET
    m, n, r, b, dtype = (given[name] for name in ("rows", "columns", "rank", "batch", "dtype"))
    batch = table1_memory.batch_of(m, n, b, dtype)

    def step(program: table1_memory.Program) -> Step:
        state = jax.eval_shape(program.init, program.weights)
        return Step(program.step, (program.weights, state, batch), (0, 1))

    def renewal(program: table1_memory.Program) -> Step:
        state = jax.eval_shape(program.init, program.weights)
        key = jax.eval_shape(lambda: jax.random.key(0))
        assert program.refresh is not None
        return Step(program.refresh, (program.weights, state, batch, key), (0, 1))

    steps: dict[str, Callable[[], Step]] = {}
    for (method, form), program in table1_memory.programs(m, n, r, dtype).items():
        steps[f"{method} {form}"] = partial(step, program)
        if program.refresh is not None:
            steps[f"{method} refresh"] = partial(renewal, program)
    return steps


def compiled_ahead() -> dict[str, Callable[[], Step]]:
    """All that is compiled ahead of time: name -> what makes it."""
    table = {f"Table 1, {name}": make for name, make in table1_steps().items()}
    single, double = (
        {f"{name}, {precision}": partial(main_program, name, precision) for name in REGISTRY}
        for precision in ("float32", "float64")
    )
    return table | single | PAPER_STEPS | double


def filled(arguments: Any) -> Any:
    """Arrays in the place of shapes: of numbers positive Gaussian ones, of indices zeros.

    Example:
        >>> filled((jax.ShapeDtypeStruct((2,), "int32"), 3.0))
        (Array([0, 0], dtype=int32), 3.0)
    """

    def array(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            # Positive, as second moments are; not constant, for a card multiplies those faster.
            return abs(jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype))
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(array, arguments)


def in_precision(step: Callable[[], Step], x64: bool) -> Step:
    """Make a step with JAX's numbers as it is to have them, and every product in full precision."""
    with jax.enable_x64(x64), jax.default_matmul_precision("highest"):
        return step()
