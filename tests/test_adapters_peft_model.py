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
