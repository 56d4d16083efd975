"""Adapters on any model: both forms, what is selected, what is trained, what cannot be."""

import dataclasses
import inspect
import re
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn import adapters as ad
from lrdyn.adapters import memory
from lrdyn.networks import transformer
from tests import oracles
from tests.oracles import assert_close

any_: Any = ad
"""Without types: for wrong calls."""
KEY = jax.random.key(0)
M, N, R = 6, 8, 2
WORDS = {
    "lora": lr.LORA,
    "lora_a": ad.lora(zero="A", law="kaiming"),
    "lora_fa": ad.LORA_FA,
    "deep": ad.deep_lora(depth=4, init_scale=0.5),
    "deep_centred": ad.deep_lora(init_scale=0.5, centred=True),
    "compressed": ad.compressed_deep_lora(init_scale=0.5, centred=True),
    "pissa": ad.PISSA,
    "dora": ad.DORA,
}
AT_ITS_START = ("lora", "lora_a", "lora_fa", "deep_centred", "compressed", "pissa", "dora")
SHAPES = [(M, N), (N, M)]


def matrix(shape, seed=1):
    """Drawn by NumPy: JAX compiles a draw for each shape."""
    return jnp.asarray(oracles.normal(seed, shape)[0] / 3)


def drawn(name, W, scale: Any = 0.5):
    def of(W):
        return ad.init(KEY, {"W": W}, rank=R, method=WORDS[name], scale=scale, gradients={"W": W})

    return jax.jit(of)(W)


def moved(adapters):
    """The same adapters somewhere else."""
    trained, frozen = ad.split(adapters)
    rng = np.random.default_rng(3)

    def push(x):
        return jnp.asarray(np.asarray(x) + (0.3 * rng.normal(size=x.shape)).astype(x.dtype))

    pushed = jax.tree.map(push, trained)
    return ad.joined(pushed, frozen)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", AT_ITS_START)
def test_a_run_begins_at_the_model(name, shape):
    W = matrix(shape)
    assert_close(ad.merge({"W": W}, drawn(name, W))["W"], W, size=10)


USES = {
    "W x": lambda W, x, y, ids: W @ x[:, 0],
    "W X": lambda W, x, y, ids: W @ x,
    "W X, batched": lambda W, x, y, ids: W @ jnp.stack([x, 2 * x]),
    "x W": lambda W, x, y, ids: y[0] @ W,
    "X W": lambda W, x, y, ids: y @ W,
    "NumPy's x W": lambda W, x, y, ids: np.ones(len(W)) @ W,
    "X W, batched": lambda W, x, y, ids: jnp.stack([y, 2 * y]) @ W,
    "W^T x": lambda W, x, y, ids: W.T @ y[0],
    "W^T X": lambda W, x, y, ids: W.T @ y.T,
    "X W^T": lambda W, x, y, ids: x.T @ W.T,
    "x W^T": lambda W, x, y, ids: x[:, 0] @ W.T,
    "W^T^T x": lambda W, x, y, ids: W.T.T @ x,
    "W[ids]": lambda W, x, y, ids: W[ids],
    "W[i]": lambda W, x, y, ids: W[2],
    "W[1:]": lambda W, x, y, ids: W[1:],
}


@pytest.mark.parametrize("name", WORDS)
def test_both_forms_are_equal_in_value_and_gradient(name, dtype):
    shape = SHAPES[dtype == "float32"]  # which sides are the longer ones has to do with no dtype
    W = matrix(shape).astype(dtype)
    x, y = matrix((shape[1], 3), 4).astype(dtype), matrix((3, shape[0]), 5).astype(dtype)
    ids, split = jnp.array([[0, 2], [2, 5]]), ad.split(moved(drawn(name, W)))

    @partial(jax.jit, static_argnums=0)
    def both(form, trained):
        def loss(trained):
            net = form({"W": W}, ad.joined(trained, split.frozen))
            found = {use: of(net["W"], x, y, ids) for use, of in USES.items()}
            return sum(jnp.sum(jnp.sin(value)) for value in found.values()), found

        return jax.value_and_grad(loss, has_aux=True)(trained)

    (_, values), slopes = both(ad.apply, split.trained)
    (_, expected), right = both(ad.merge, split.trained)
    assert_close(values, expected, size=20 * N)
    assert_close(slopes, right, size=100 * N)
    assert jax.tree.all(jax.tree.map(lambda a: a.dtype == dtype, slopes))


class Embedded(eqx.Module):
    """A reader's model: an embedding, attention, a kernel, functions and integers."""

    embedding: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.MLP
    kernel: jax.Array
    order: jax.Array
    name: str = eqx.field(static=True, default="mine")

    def __call__(self, ids):
        hidden = jax.vmap(self.embedding)(ids)
        hidden = self.attention(hidden, hidden, hidden)
        return self.head(jnp.mean(hidden, axis=0))[self.order] * jnp.sum(self.kernel)


def embedded():
    """Such a model, filled by NumPy: JAX compiles a draw for each shape."""
    like = eqx.filter_eval_shape(
        lambda key: (
            eqx.nn.Embedding(7, 4, key=key),
            eqx.nn.MultiheadAttention(2, 4, key=key),
            eqx.nn.MLP(4, 3, 5, 1, key=key),
        ),
        KEY,
    )
    rng = np.random.default_rng(0)
    shapes, rest = eqx.partition(like, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    layers = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2), shapes)
    embedding, attention, head = eqx.combine(layers, rest)
    return Embedded(embedding, attention, head, jnp.ones((1, 1, 2, 2)), jnp.array([2, 0, 1]))


def called(net, x):
    """A model's outputs, compiled as a whole: operation by operation is slow."""
    arrays, rest = eqx.partition(net, eqx.is_array)
    return jax.jit(lambda arrays, x: eqx.combine(arrays, rest)(x))(arrays, x)


def test_layers_of_equinox_take_the_fast_form():
    net, ids = embedded(), jnp.array([1, 5, 1])

    @eqx.filter_jit
    def init(key, net):
        rank = {"attention.*": 1, "*": 2}
        return ad.init(key, net, select="*", rank=rank, extra=["*.bias", "kernel"])

    adapters = moved(init(KEY, net))
    assert adapters["attention.query_proj.weight"].A.shape == (1, 4)
    assert adapters["embedding.weight"].B.shape == (7, 2)
    found, whole = ad.apply(net, adapters), ad.merge(net, adapters)
    assert isinstance(found.embedding.weight, ad.Adapted)
    assert_close(called(found, ids), called(whole, ids), size=50)
    assert (found.name, found.head.activation) == ("mine", net.head.activation)
    assert jax.tree.structure(whole) == jax.tree.structure(net)
    back = ad.unmerge(whole, adapters)
    assert_close(eqx.filter(back, eqx.is_inexact_array), eqx.filter(net, eqx.is_inexact_array))


def test_our_transformer_takes_the_fast_form():
    net = transformer(KEY, features=3, width=4, hidden=8, outputs=2, heads=2)
    adapters, x = moved(ad.init(KEY, net, rank=2)), matrix((5, 3, 6))
    found, whole = ad.apply(net, adapters), ad.merge(net, adapters)
    assert_close(called(found, x), called(whole, x), size=200)


# What multiplies otherwise -------------------------------------------------------------------


OTHERWISE = {
    "einsum": lambda W: jnp.einsum("ij,j->i", W, jnp.ones(N)),
    "dot": lambda W: jnp.dot(W, jnp.ones(N)),
    "dot_general": lambda W: jax.lax.dot_general(W, jnp.ones(N), (((1,), (0,)), ((), ()))),
    "jnp.matmul": lambda W: jnp.matmul(jnp.ones(M), W),
    "a convolution": lambda W: jax.lax.conv(jnp.ones((N, 4)), W, (), "SAME"),
    "a function": jnp.tanh,
    "a sum": lambda W: W + 1.0,
    "a sum from the left": lambda W: jnp.ones((M, N)) + W,
    "a multiple": lambda W: 2 * W,
    "two indices": lambda W: W[0, 1],
    "a method": lambda W: W.reshape(-1),
    "an array": lambda W: jnp.asarray(W),
    "numpy": lambda W: np.asarray(W),
    "numpy's dot": lambda W: np.dot(np.ones(M), W),
    "a loop": list,
    "a transpose": lambda W: jnp.einsum("ij,i->j", W.T, jnp.ones(N)),
}


@pytest.mark.parametrize("use", OTHERWISE)
def test_other_uses_end_in_a_type_error_that_says_what_to_do(use):
    W = matrix((M, N))
    adapted = ad.apply({"W": W}, drawn("lora", W))["W"]
    with pytest.raises(TypeError, match=r"lrdyn\.adapters\.merge"):
        OTHERWISE[use](adapted)


# No array of the size of W -------------------------------------------------------------------


def sizes_of(jaxpr):
    """Shapes of all that a program computes, inside its calls too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes_of(inner)


@pytest.mark.parametrize("name", WORDS)
def test_no_gradient_of_the_size_of_the_matrix_is_formed(name):
    m, n = 40, 50
    W, x, y = matrix((m, n)), matrix((n, 3)), matrix((4, m))
    trained, frozen = ad.split(drawn(name, W))

    def loss(form, trained):
        net = form({"W": W}, ad.joined(trained, frozen))["W"]
        return jnp.sum((net @ x) ** 2) + jnp.sum((y @ net) ** 2) + jnp.sum((net.T @ y.T) ** 2)

    def shapes(form):
        program = jax.make_jaxpr(jax.grad(partial(loss, form)))(trained)
        return [shape for shape in sizes_of(program.jaxpr) if {m, n} <= set(shape)]

    # The squares of W, of which DoRA takes the norms of rows, in each of the three uses.
    assert shapes(ad.apply) == ([(m, n)] * 3 if name == "dora" else [])
    assert len(shapes(ad.merge)) > 1


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("lora", 2 * R * (M + N)),
        ("lora_fa", 2 * R * M),
        ("pissa", 2 * R * (M + N)),
        ("dora", 2 * R * (M + N) + 2 * M),
        ("deep", 2 * R * (M + N) + 4 * R * R),
    ],
)
def test_the_state_is_that_of_the_table_to_the_byte(name, entries):
    method = WORDS[name]
    trained = ad.split(drawn(name, matrix((M, N)).astype("float32"))).trained
    state = optax.adam(1.0).init(trained)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert held == 4 * entries + 4 == memory.state_bytes(method, M, N, R)


# What is selected ----------------------------------------------------------------------------


def test_leaves_are_chosen_by_the_names_of_their_paths():
    net = embedded()
    chosen = partial(ad.init, KEY, net, rank=1)
    names = {"attention.query_proj.weight", "attention.value_proj.weight"}
    assert set(chosen(select=["*.query_proj.*", "*.value_proj.*"])) == names
    assert set(chosen(select=re.compile(r"attention\.(query|value)_proj\.weight"))) == names
    with_head = chosen(select="attention.*", extra="head.*")
    assert {path for path, one in with_head.items() if isinstance(one, ad.Shift)} == {
        f"head.layers.{layer}.{name}" for layer in (0, 1) for name in ("weight", "bias")
    }


def test_a_draw_depends_on_its_path_alone():
    net = embedded()
    some, every = ad.init(KEY, net, select="head.*"), ad.init(KEY, net)
    assert eqx.tree_equal(some, {path: every[path] for path in some})


def test_scales_are_per_path_and_may_depend_on_the_rank():
    net, rank = embedded(), {"attention.*": 2, "*": 4}
    how = {"attention.*": ad.over_rank(16), "head.layers.0.*": ad.over_root(16), "*": 3.0}
    found = ad.init(KEY, net, rank=rank, scale=how)
    assert found["attention.key_proj.weight"].scale == 8.0
    assert found["head.layers.0.weight"].scale == 8.0
    assert found["embedding.weight"].scale == 3.0


def test_labels_name_what_is_trained():
    W = {"W": matrix((M, M)), "b": jnp.ones(M)}
    found = ad.labels(ad.init(KEY, W, rank=R, extra="b", method=WORDS["compressed"], gradients=W))
    assert found["W"].factors == ("frame", "inner", "inner", "inner", "frame")
    assert set(jax.tree.leaves((found["W"].start, found["W"].scale, found["W"].gap))) == {"frozen"}
    assert found["b"].value == "extra"
    fa = ad.labels(drawn("lora_fa", W["W"]))["W"]
    assert (fa.A, fa.B) == ("frozen", "B")


@pytest.mark.parametrize("name", WORDS)
def test_no_gradient_reaches_what_is_frozen(name):
    W = matrix((M, N))
    adapters = moved(drawn(name, W))
    loss = jax.jit(lambda a: jnp.sum((ad.apply({"W": W}, a)["W"] @ matrix((N, 3))) ** 2))
    slopes = jax.grad(loss)(adapters)
    trained, frozen = ad.split(slopes)
    assert not any(leaf.any() for leaf in jax.tree.leaves(frozen))
    assert all(leaf.any() for leaf in jax.tree.leaves(trained))


def test_dora_has_no_way_back():
    W = {"W": matrix((M, N))}
    with pytest.raises(ValueError, match="adapters: got one of DoRA, wanted others: its norms are"):
        ad.unmerge(W, drawn("dora", W["W"]))


def test_what_is_rebased_beside_leaves_with_nothing_to_subtract():
    net = {"W": matrix((M, N)), "b": jnp.ones(M)}
    adapters = ad.init(KEY, net, select="W", extra="b", rank=R, method=ad.PISSA)
    base, plain = ad.rebase(net, adapters)
    assert plain["W"].start is None
    assert np.linalg.matrix_rank(np.asarray(net["W"] - base["W"]), tol=1e-8) == R
    assert_close(ad.merge(base, plain), net, size=10)


def test_pissa_in_algorithm_1_is_descent_on_its_adapters():
    W, target = matrix((M, N)), matrix((M, N), 2)
    loss, rule = lambda W: jnp.sum((W - target) ** 2) / 2, optax.sgd(0.1)
    run = lr.low_rank_descent(ad.PISSA, loss, W, rule, steps=(0, 1, 2, 3), rank=R)
    trained, frozen = ad.split(ad.init(KEY, {"W": W}, method=ad.PISSA, rank=R))
    weights = [W]
    for _ in range(3):
        slopes = jax.grad(lambda t: loss(ad.merge({"W": W}, ad.joined(t, frozen))["W"]))(trained)
        trained = jax.tree.map(lambda x, slope: x - 0.1 * slope, trained, slopes)
        weights.append(ad.merge({"W": W}, ad.joined(trained, frozen))["W"])
    assert_close(run.records, jnp.stack(weights), size=20)
    assert int(run.diverged_at) == -1


@pytest.mark.parametrize("root", [ad.Adapter, ad.LinearMap])
def test_every_class_is_abstract_or_final(root):
    """As in equinox: no class below a final one, and no concrete method is overridden."""

    def below(cls):
        return [cls, *(deeper for child in cls.__subclasses__() for deeper in below(child))]

    classes = [cls for cls in below(root) if cls.__module__.startswith("lrdyn.adapters")]
    assert len(classes) > 2
    for cls in classes:
        assert inspect.isabstract(cls) == bool(cls.__subclasses__()) == (cls is root)
        if cls is not root:
            concrete = set(vars(root)) - root.__abstractmethods__
            assert not {n for n in set(vars(cls)) & concrete if not n.startswith("_")}, cls
    if root is ad.Adapter:
        fields = [{field.name for field in dataclasses.fields(cls)} for cls in classes[1:]]
        assert set.intersection(*fields) == {"scale", "start", "trained"}


NET = {"W": jnp.ones((3, 3)), "b": jnp.ones(3), "ids": jnp.arange(3)}
FACTORS = ad.Factors(jnp.ones((3, 1)), jnp.ones((1, 3)))
test_wrong_calls = oracles.refuses(
    (lambda: any_.init(KEY, NET, select="V"), "select: got 'V', wanted a pattern of some"),
    (lambda: any_.init(KEY, NET, select="b"), "select: got 'b', wanted a pattern of some"),
    (lambda: any_.init(KEY, NET, select=3), "select: got 3, wanted a glob"),
    (lambda: any_.init(KEY, NET, extra="c"), "extra: got 'c', wanted a pattern of some arrays"),
    (lambda: any_.init(KEY, NET, rank=0), "rank: got 0, wanted at least 1"),
    (lambda: any_.init(KEY, NET, rank={"V": 1}), "rank: got patterns V, wanted one of them for W"),
    (lambda: any_.init(KEY, NET, scale=0.0), "scale: got 0.0, wanted > 0"),
    (lambda: any_.init(KEY, NET, method=lr.GALORE), "method: got one that trains W itself"),
    (lambda: any_.init(KEY, NET, method=lr.RELORA_FROZEN), "gradients: got none, wanted those"),
    (
        lambda: any_.init(KEY, NET, method=any_.compressed_deep_lora(), gradients=NET, rank=3),
        "rank: got 3, wanted an even number",
    ),
    (lambda: any_.apply(NET, {"V": FACTORS}), "adapters: got one for V, wanted paths of arrays"),
    (lambda: any_.merge(NET, {"ids": FACTORS}), "adapters: got one for ids, wanted paths"),
    (lambda: any_.lora(zero="C"), "zero: got 'C', wanted 'A' or 'B'"),
    (lambda: any_.deep_lora(depth=1), "depth: got 1, wanted at least 2"),
    (lambda: any_.draw_projectors(KEY, NET, 1, law="cauchy"), "law: got 'cauchy', wanted one of"),
    (lambda: any_.by_label({"A": optax.sgd(1.0)}, {"W": FACTORS}), "got A, wanted one for B"),
)


def test_what_stands_for_a_matrix_has_the_names_of_an_array_and_no_others():
    """One of an array is refused with its name; another is not there, as ``hasattr`` asks."""
    adapted = ad.Adapted(jnp.ones((2, 3)), ad.Factors(B=jnp.ones((2, 1)), A=jnp.ones((1, 3))))
    assert (adapted.shape, adapted.size, len(adapted)) == ((2, 3), 6, 2)
    assert not hasattr(adapted, "nonsense")
    with pytest.raises(TypeError, match=r"^reshape: got "):
        adapted.reshape  # noqa: B018 (to look at it is what is refused)


def test_what_an_adapter_trains_is_said_by_its_name():
    shift: Any = ad.Shift
    with pytest.raises(TypeError):
        shift(jnp.ones(2), ("value",))
    assert shift(jnp.ones(2), trained=()).trained == ()
