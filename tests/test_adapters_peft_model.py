"""Adapters of a model to PEFT's files and back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn
from lrdyn.adapters import Factors, Shift, apply, init, merge, peft
from lrdyn.adapters.peft_adapters import adapters_of, stored_of
from tests.test_adapters_peft import BASE, MADE

EPS = float(np.finfo(np.float32).eps)
KINDS = ("lora", "rslora", "dora", "patterns", "saved", "embedding", "conv1d", "pissa_converted")


def close(one, other):
    assert set(one) == set(other)
    for name in other:
        scale = max(1.0, float(np.abs(other[name]).max()))
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=32 * EPS * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_made_is_merged_as_ours_and_stored_again(kind, unchecked):
    stored, base = peft.read(MADE / kind), {name: jnp.asarray(W) for name, W in BASE.items()}
    adapters = adapters_of(stored, BASE)
    expected = peft.merged(stored, BASE)
    apart = max(np.abs(expected[name] - BASE[name]).max() for name in BASE)
    assert apart > 0.01
    close(merge(base, adapters), expected)
    how = {"bias": stored.config["bias"], "embeddings": stored.embeddings}
    again = stored_of(adapters, BASE, **how)
    close(peft.merged(again, BASE), expected)


def test_pissa_of_a_model_is_stored_as_a_lora_of_twice_the_rank(tmp_path):
    net = eqx.nn.MLP(4, 3, 6, 1, key=jax.random.key(0))
    adapters = init(jax.random.key(1), net, rank=2, method=lrdyn.adapters.PISSA, extra="*.bias")
    adapters = {
        path: eqx.tree_at(lambda a: a.A, one, one.A + 0.1)
        if isinstance(one, Factors)
        else Shift(jnp.ones_like(one.value))
        for path, one in adapters.items()
    }
    weights = {
        f"layers.{i}.{n}": getattr(net.layers[i], n) for i in (0, 1) for n in ("weight", "bias")
    }
    stored = stored_of(adapters, weights, bias="all")
    assert stored.config["r"] == 4
    peft.write(tmp_path, stored)
    found = peft.read(tmp_path, base=weights)
    whole = merge(net, adapters)
    for name, one in peft.merged(found, weights).items():
        _, place, leaf = name.split(".")
        np.testing.assert_allclose(one, getattr(whole.layers[int(place)], leaf), atol=1e-12)
    x = jnp.ones(4)
    np.testing.assert_allclose(apply(net, adapters_of(found, weights))(x), whole(x), atol=1e-12)


def test_what_peft_cannot_hold_is_named():
    one = Factors(jnp.ones((2, 1)), jnp.ones((1, 2)))
    seeds = Factors(jnp.ones((3, 2, 1)), jnp.ones((3, 1, 2)))
    deep = init(
        jax.random.key(0),
        {"q": {"weight": jnp.ones((2, 2))}},
        method=lrdyn.adapters.deep_lora(depth=3),
        rank=1,
    )
    with pytest.raises(ValueError, match=r"adapters: got one for q, wanted paths that end in"):
        stored_of({"q": one})
    with pytest.raises(ValueError, match=r"adapters\['q.weight'\]: got B of shape \(3, 2, 1\)"):
        stored_of({"q.weight": seeds})
    with pytest.raises(ValueError, match=r"adapters\['q.weight'\]: got type DeepFactors"):
        stored_of(deep)
    with pytest.raises(ValueError, match=r"weights: got no q.bias, wanted what is trained"):
        stored_of({"q.weight": one, "q.bias": Shift(jnp.ones(2))})
    with pytest.raises(ValueError, match=r"stored: got PiSSA, wanted LoRA"):
        adapters_of(peft.read(MADE / "pissa"))
    with pytest.raises(ValueError, match=r"weights: got no "):
        adapters_of(peft.read(MADE / "saved"))


@pytest.mark.parametrize(
    ("extra", "kind", "saved"),
    [
        ("layers.1.bias", "lora_only", {"layers.0.bias", "layers.1.bias"}),
        ("layers.*.bias", "lora_only", {"layers.0.bias", "layers.1.bias"}),
        ("norm.bias", "all", {"layers.0.bias", "layers.1.bias", "norm.bias"}),
        ("norm.*", "none", {"norm.weight", "norm.bias"}),
    ],
)
def test_biases_that_are_trained_are_saved_as_peft_keeps_them(extra, kind, saved, tmp_path):
    """PEFT keeps those of all adapted modules, or all: others are written as they are."""
    net = eqx.nn.MLP(4, 3, 6, 1, key=jax.random.key(0))
    weights = {
        f"layers.{i}.{n}": getattr(net.layers[i], n) for i in (0, 1) for n in ("weight", "bias")
    }
    weights |= {"norm.weight": jnp.ones(3), "norm.bias": jnp.zeros(3)}
    adapters = init(jax.random.key(1), weights, select="layers.*", rank=2, extra=extra)
    adapters = {
        path: Shift(jnp.ones_like(one.value)) if isinstance(one, Shift) else one
        for path, one in adapters.items()
    }
    stored = stored_of(adapters, weights)
    assert stored.config["bias"] == kind
    assert set(stored.saved) == saved
    peft.write(tmp_path, stored)
    found = peft.read(tmp_path, base=weights)
    for name, array in merge(weights, adapters).items():
        np.testing.assert_allclose(peft.merged(found, weights)[name], array, atol=1e-12)


def test_kernels_and_embeddings_of_flax_are_written_as_torch_has_them(tmp_path):
    """A kernel is in x out: torch's weight is its transpose, and so are the factors."""
    rng = np.random.default_rng(3)
    params = {
        "layers_0": {"kernel": rng.normal(size=(5, 7)), "bias": rng.normal(size=7)},
        "norm": {"scale": np.ones(7), "bias": np.zeros(7)},
        "tokens": {"embedding": rng.normal(size=(9, 5))},
    }
    params = jax.tree.map(jnp.asarray, params)
    chosen = ["*.kernel", "*.embedding"]
    adapters = init(jax.random.key(1), params, select=chosen, rank=2, extra="norm.*")
    adapters = {
        path: Shift(one.value + 1)
        if isinstance(one, Shift)
        else eqx.tree_at(lambda a: (a.A, a.B), one, (one.A + 0.1, one.B + 0.2))
        for path, one in adapters.items()
    }
    weights = {
        f"{module}.{leaf}": x for module, leaves in params.items() for leaf, x in leaves.items()
    }
    stored = stored_of(adapters, weights, names=lambda path: path.replace("_", "."))
    peft.write(tmp_path, stored)
    torch_base = {
        "layers.0.weight": np.asarray(params["layers_0"]["kernel"]).T,
        "layers.0.bias": np.asarray(params["layers_0"]["bias"]),
        "norm.weight": np.ones(7),
        "norm.bias": np.zeros(7),
        "tokens.weight": np.asarray(params["tokens"]["embedding"]),
    }
    found = peft.merged(peft.read(tmp_path, base=torch_base), torch_base)
    whole = merge(params, adapters)
    np.testing.assert_allclose(found["layers.0.weight"], whole["layers_0"]["kernel"].T, atol=1e-12)
    np.testing.assert_allclose(found["tokens.weight"], whole["tokens"]["embedding"], atol=1e-12)
    np.testing.assert_allclose(found["norm.weight"], whole["norm"]["scale"], atol=1e-12)
    assert stored.embeddings == {"tokens"}
    one = Factors(jnp.ones((2, 1)), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"adapters: got two for q, wanted a name for each"):
        stored_of({"q.weight": one, "q.kernel": one})
