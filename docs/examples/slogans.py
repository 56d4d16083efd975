"""What Theorem 2 says of three common phrases, at the settings of the survey's Figure 3."""

import jax
import jax.numpy as jnp

import lrdyn as lr

DIM, RANK, DEPTH, STEP, STEPS = 30, 3, 3, 1.0, 50  # step for half the mean squared error


def main() -> None:
    """Train, and print what moves."""
    weights_key, target_key = jax.random.split(jax.random.key(0))
    scales, steps = jnp.ones(DEPTH), lr.recorded_steps(STEPS)
    target = lr.truncated_gaussian_target(target_key, (DIM, DIM), RANK)
    weights = lr.orthogonal_layers(weights_key, (DIM,) * (DEPTH + 1), scales)
    trained = lr.simulate(
        lambda layers: lr.core.mean_factorization_loss(layers, target),
        weights,
        lr.gradient_descent(STEP),
        steps,
    ).params
    frame = lr.frame(weights, target, RANK)
    blocks = lr.theorem2.blocks(frame, trained, 2 * RANK)

    update = lr.singular_values(trained[0] - weights[0])
    print(f"numerical rank of W_1({STEPS}) - W_1(0): {lr.numerical_rank(update, DIM)} of {DIM}")
    print(f"its singular values: {update[0]:.3f} down to {update[-1]:.3f}")
    bulk = lr.rho(scales, STEP / DIM**2, 0.0, steps)[-1, 0]
    print(f"bulk at step 0 and {STEPS}: predicted 1.0000 {bulk:.4f}, measured {blocks.rho[0]:.4f}")
    deviation, off_block = blocks.bulk_deviation[0], blocks.off_block[0]
    print(f"spread of the bulk: {deviation:.0e}, off-diagonal blocks: {off_block:.0e}")


if __name__ == "__main__":
    lr.cli.setup()
    main()
