"""What other optimisers than gradient descent do to the blocks of Theorem 2."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrdyn as lr
from lrdyn.theorem2 import collapse_metrics, setting, subspace
from lrdyn.theorem2.classifier_claims import make_classifier

KEY = jax.random.key(0)


def updates_of_muon() -> None:
    """How many directions the update of W_1 has: theory's blocks against dense layers."""
    for scale in (1.0, 0.3, 0.01):
        case = setting.make_case(
            KEY,
            dim=100,
            depth=3,
            rank=5,
            init_scale=scale,
            init_spread=1.0,
            weight_decay=0.0,
            decay_spread=1.0,
            learning_rate=2e-3,
            target_scale=1.0,
            steps=300,
            optimizer="muon",
        )
        last = np.array([0, 300])
        dense = lr.simulate(case.loss, case.weights, case.optimizer, last).records[0]
        measured = stable_rank(lr.singular_values(dense[1] - dense[0]))
        target = case.padded_target
        reduced = lr.simulate(
            lambda layers, target=target: lr.factorization_loss(layers, target),
            subspace.reduced_start(case.scales, 10 + case.spare),
            case.reduced_optimizer,
            last,
        ).records[0]
        change = reduced[1] - reduced[0]
        # Ten singular values of the block, and 90 times that of the bulk.
        values = jnp.concatenate(
            [lr.singular_values(change[:10, :10]), jnp.full(90, jnp.abs(change[10, 10]))]
        )
        predicted = stable_rank(values)
        print(f"eps {scale:g}: predicted {predicted:.2f}, measured {measured:.2f}", end="; ")
    print("stable rank of W_1(300) - W_1(0) under Muon")


def stable_rank(values: jax.Array) -> float:
    """``||.||_F^2 / ||.||_2^2``, of singular values."""
    return float(jnp.sum(values**2) / jnp.max(values) ** 2)


def collapse_by_layer() -> None:
    """D_{l+1} / D_l of a classifier against eps^2 / w_l^2, w_l the layer's largest value."""
    rates = {"descent": 0.02, "muon": 4e-3}
    for name, rate in rates.items():
        case = make_classifier(
            KEY,
            dim=24,
            depth=4,
            rank=3,
            per_class=8,
            target_scale=8**0.5,
            init_scale=0.5,
            init_spread=1.0,
            weight_decay=0.0,
            decay_spread=1.0,
            learning_rate=rate,
            steps=3000,
        )
        fading = optax.linear_schedule(rate, 0.0, 3000)
        rule = optax.contrib.muon(fading) if name == "muon" else optax.sgd(rate)
        run = lr.simulate(case.loss, case.weights, rule, np.array([3000]))
        D = collapse_metrics(run.params, case.inputs, case.labels, 3)
        top = jnp.stack([lr.singular_values(W)[0] for W in run.params[:-1]])
        words = ", ".join(
            f"{ratio:.3f} ({expected:.3f})"
            for ratio, expected in zip(D[1:] / D[:-1], 0.25 / top**2, strict=True)
        )
        print(f"collapse by layer, {name}: {words}")


def freeze_of_galore() -> None:
    """Where GaLore of rank r has moved the bulk, every 10 steps: 2r + 1 dimensions against d."""
    case = setting.make_case(
        KEY,
        dim=20,
        depth=2,
        rank=2,
        init_scale=0.1,
        init_spread=1.0,
        weight_decay=0.0,
        decay_spread=1.0,
        learning_rate=0.1,
        target_scale=1.0,
        steps=300,
    )
    steps = np.arange(0, 301, 10)

    def first_move(target: jax.Array, start: lr.core.Weights, right: jax.Array) -> int:
        run = lr.low_rank_descent(
            lr.GALORE,
            lambda layers: lr.factorization_loss(layers, target),
            start,
            optax.sgd(case.learning_rate),
            rank=2,
            period=10,
            side="left",
            steps=steps,
            record=lambda layers: jnp.linalg.norm(layers[0] @ right, axis=0),
        )
        moved = jnp.max(jnp.abs(run.records - case.scales[0]), axis=1) > 1e-9
        return int(steps[jnp.argmax(moved)]) if moved.any() else -1

    small = jnp.pad(case.reduced_target, (0, 1))
    alone = jnp.eye(5)[:, 4:]
    predicted = first_move(small, subspace.reduced_start(case.scales, 5), alone)
    measured = first_move(case.target, case.weights, case.frame.right[0, :, 4:])
    print(f"GaLore of rank 2 has moved the bulk by step {measured}, predicted {predicted}")


def basis_of_lora() -> None:
    """By how much B A changes when A starts from R A, R orthogonal."""
    keys = jax.random.split(KEY, 3)
    target = jax.random.normal(keys[0], (12, 10))
    A = jax.random.normal(keys[1], (4, 10)) / 10**0.5
    (R,) = lr.orthogonal_layers(keys[2], (4, 4), jnp.ones(1))
    rules = {"sgd": optax.sgd(0.02), "muon": optax.contrib.muon(0.01), "adam": optax.adam(0.01)}
    for name, rule in rules.items():
        ends = [
            lr.simulate(
                lambda factors: 0.5 * jnp.sum((factors[1] @ factors[0] - target) ** 2),
                (start, jnp.zeros((12, 4))),
                rule,
                np.array([60]),
            ).params
            for start in (A, R @ A)
        ]
        (first, second), size = [B @ A for A, B in ends], jnp.max(jnp.abs(ends[0][1] @ ends[0][0]))
        print(f"{name}: {float(jnp.max(jnp.abs(first - second)) / size):.0e}", end="; ")
    print("change of LoRA's B A with the basis of its inner space")


if __name__ == "__main__":
    lr.cli.setup()
    updates_of_muon()
    collapse_by_layer()
    freeze_of_galore()
    basis_of_lora()
