"""What optax exports, name by name: how each is tried for equivariance, or why it is not.

:func:`exports` reads the names from the optax that is installed. Each belongs to an expression of
:data:`TRIED` or to a reason of :data:`EXCLUDED`; :func:`unknown` lists those that belong to
neither, as what a later release adds.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import optax
import optax.contrib

TRIED = (
    "optax.sgd(0.1)",
    "optax.sgd(0.1, momentum=0.9)",
    "optax.sgd(0.1, momentum=0.9, nesterov=True)",
    "optax.sgd(0.1, momentum=0.9, accumulator_dtype='float32')",
    "optax.sgd(0.1, momentum=0.9, accumulator_dtype='bfloat16')",
    "optax.chain(optax.identity(), optax.trace(0.9), optax.scale(-0.1))",
    "optax.chain(optax.ema(0.9), optax.scale_by_learning_rate(0.1))",
    "optax.chain(optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, 60)), optax.sgd(0.1))",
    "optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))",
    "optax.chain(optax.add_decayed_weights(0.1, mask=(True, False, False)), optax.sgd(0.1))",
    "optax.chain(optax.add_decayed_weights(0.1 * jnp.arange(10.0)[None]), optax.sgd(0.1))",
    "optax.chain(optax.masked(optax.trace(0.9), (True, False, True)), optax.scale(-0.1))",
    "optax.partition({0: optax.sgd(0.1), 1: optax.sgd(0.02)}, (0, 1, 1))",
    "optax.multi_transform({0: optax.sgd(0.1), 1: optax.sgd(0.02)}, (0, 1, 1))",
    "optax.named_chain(('first', optax.trace(0.5)), ('second', optax.sgd(0.1)))",
    "optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)",
    "optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1))",
    "optax.chain(optax.clip_by_block_rms(0.01), optax.sgd(0.1))",
    "optax.chain(optax.clip(0.01), optax.sgd(0.1))",
    "optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1))",
    "optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.02))",
    "optax.chain(optax.contrib.normalize(), optax.sgd(0.02))",
    "optax.chain(optax.centralize(), optax.sgd(0.1))",
    "optax.chain(optax.zero_nans(), optax.sgd(0.1))",
    "optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative())",
    "optax.chain(optax.flatten(optax.clip_by_global_norm(0.1)), optax.sgd(0.1))",
    "optax.chain(optax.apply_every(3), optax.sgd(0.1))",
    "optax.apply_if_finite(optax.sgd(0.1), 3)",
    "optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()",
    "optax.noisy_sgd(0.1, key=0)",
    "optax.chain(optax.add_noise(0.01, 0.55, 0), optax.sgd(0.1))",
    "optax.optimistic_gradient_descent(0.1)",
    "optax.chain(optax.scale_by_optimistic_gradient(), optax.sgd(0.1))",
    "optax.fromage(0.02)",
    "optax.lars(0.5)",
    "optax.chain(optax.scale_by_trust_ratio(), optax.sgd(0.02))",
    "optax.chain(optax.scale_by_param_block_norm(), optax.sgd(0.02))",
    "optax.chain(optax.scale_by_param_block_rms(), optax.sgd(0.1))",
    "optax.novograd(0.02)",
    "optax.chain(optax.scale_by_novograd(), optax.sgd(0.02))",
    "optax.polyak_sgd()",
    "optax.chain(optax.sgd(1.0), optax.scale_by_polyak())",
    "optax.lbfgs()",
    "optax.chain(optax.scale_by_lbfgs(), optax.sgd(0.1))",
    "optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10))",
    "optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(10))",
    "optax.lookahead(optax.sgd(0.1), 5, 0.5)",
    "optax.lookahead(optax.adam(0.02), 5, 0.5)",
    "optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.02)), 2)",
    "optax.contrib.schedule_free(optax.sgd(0.1), 0.1)",
    "optax.contrib.schedule_free_sgd(0.1)",
    "optax.contrib.schedule_free_adamw(0.02)",
    "optax.chain(optax.scale_by_distance_over_gradients(0.1), optax.scale(-1.0))",
    "optax.contrib.dog(1.0)",
    "optax.contrib.dowg(1.0)",
    "optax.contrib.mechanize(optax.sgd(0.1))",
    "optax.contrib.mechanize(optax.adam(0.02))",
    "optax.contrib.momo(0.1)",
    "optax.contrib.momo_adam(0.02)",
    "optax.contrib.prodigy(1.0, estim_lr0=1e-3)",
    "optax.contrib.dadapt_adamw(1.0, estim_lr0=1e-3)",
    "optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2))",
    "optax.contrib.muon(0.01)",
    "optax.contrib.muon(0.01, nesterov=False)",
    "optax.contrib.muon(0.01, weight_decay=0.1)",
    "optax.contrib.muon(0.05, adaptive=True)",
    "optax.contrib.muon(0.01, preconditioning='spectral')",
    "optax.contrib.muon(0.01, preconditioning='schatten')",
    "optax.contrib.muon(0.01, preconditioning='aol')",
    "optax.contrib.muon(0.01, ns_coeffs='dion')",
    "optax.contrib.muon(0.01, consistent_rms=0.2)",
    "optax.contrib.muon(0.01, ns_steps=10)",
    "optax.contrib.muon(0.01, mu_dtype='bfloat16')",
    "optax.chain(optax.contrib.scale_by_muon(weight_dimension_numbers=AXES), optax.scale(-0.01))",
    "optax.contrib.galore(0.1, rank=2, update_proj_gap=10, base_optimizer=optax.identity())",
    "optax.contrib.galore(0.02, rank=2, update_proj_gap=10)",
    "optax.chain(optax.contrib.scale_by_galore(2, 10, 1.0, optax.trace(0.0)), optax.scale(-0.1))",
    "optax.adam(0.02)",
    "optax.adamw(0.02)",
    "optax.nadam(0.02)",
    "optax.nadamw(0.02)",
    "optax.amsgrad(0.02)",
    "optax.adamax(0.02)",
    "optax.adamaxw(0.02)",
    "optax.radam(0.02)",
    "optax.adan(0.02)",
    "optax.adabelief(0.02)",
    "optax.adadelta(1.0)",
    "optax.adagrad(0.1)",
    "optax.adafactor(0.02)",
    "optax.adafactor(0.02, min_dim_size_to_factor=2)",
    "optax.rmsprop(0.02)",
    "optax.rmsprop(0.02, centered=True)",
    "optax.rprop(0.01)",
    "optax.sign_sgd(0.01)",
    "optax.signum(0.01)",
    "optax.lion(0.01)",
    "optax.sm3(0.1)",
    "optax.yogi(0.02)",
    "optax.chain(optax.scale_by_yogi(initial_accumulator_value=0.0), optax.scale(-0.02))",
    "optax.lamb(0.02)",
    "optax.optimistic_adam(0.02)",
    "optax.optimistic_adam_v2(0.02)",
    "optax.chain(optax.scale_by_adam(), optax.scale(-0.02))",
    "optax.chain(optax.scale_by_adamax(), optax.scale(-0.02))",
    "optax.chain(optax.scale_by_adan(), optax.scale(-0.02))",
    "optax.chain(optax.scale_by_amsgrad(), optax.scale(-0.02))",
    "optax.chain(optax.scale_by_adadelta(), optax.scale(-1.0))",
    "optax.chain(optax.scale_by_belief(), optax.scale(-0.02))",
    "optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=2), optax.scale(-0.02))",
    "optax.chain(optax.scale_by_lion(), optax.scale(-0.01))",
    "optax.chain(optax.scale_by_radam(), optax.scale(-0.02))",
    "optax.chain(optax.scale_by_rms(), optax.scale(-0.02))",
    "optax.chain(optax.scale_by_rprop(0.01), optax.scale(-1.0))",
    "optax.chain(optax.scale_by_rss(), optax.scale(-0.1))",
    "optax.chain(optax.scale_by_sign(), optax.scale(-0.01))",
    "optax.chain(optax.scale_by_sm3(), optax.scale(-0.1))",
    "optax.chain(optax.scale_by_stddev(), optax.scale(-0.02))",
    "optax.contrib.acprop(0.02)",
    "optax.chain(optax.contrib.scale_by_acprop(), optax.scale(-0.02))",
    "optax.contrib.ademamix(0.02)",
    "optax.chain(optax.contrib.scale_by_ademamix(), optax.scale(-0.02))",
    "optax.contrib.simplified_ademamix(0.002)",
    "optax.chain(optax.contrib.scale_by_simplified_ademamix(), optax.scale(-0.002))",
    "optax.contrib.adopt(0.02)",
    "optax.chain(optax.contrib.scale_by_adopt(), optax.scale(-0.02))",
    "optax.contrib.cocob()",
    "optax.contrib.scale_by_cocob()",
    "optax.contrib.madgrad(0.02)",
    "optax.contrib.scale_by_madgrad(0.02)",
)
"""Expressions in ``optax``, ``jnp`` and Muon's ``AXES`` of three layers, each an optimiser that is
tried, on layers of ten rows and columns."""

EXCLUDED = {
    "it changes nothing of a step, or makes none": (
        *("freeze", "set_to_zero", "snapshot", "measure_with_ema", "monitor"),
        "with_extra_args_support",
    ),
    "its function or its mask is the caller's": (
        *("conditionally_mask", "conditionally_transform", "selective_transform", "stateless"),
        *("stateless_with_tree_map", "skip_large_updates", "skip_not_finite"),
        "inject_stateful_hyperparams",
    ),
    "it takes gradients of single examples": (
        *("contrib.differentially_private_aggregate", "contrib.dpsgd", "microbatch"),
        *("per_example_global_norm_clip", "per_example_layer_norm_clip"),
    ),
    "it takes complex numbers": ("contrib.split_real_and_imaginary",),
    "it draws random probes of the Hessian": (
        *("contrib.sophia", "contrib.hutchinson_estimator_diag_hessian"),
    ),
    "no optimiser: a step size over steps": (
        *("constant_schedule", "cosine_decay_schedule", "cosine_onecycle_schedule"),
        *("exponential_decay", "join_schedules", "linear_onecycle_schedule", "linear_schedule"),
        *("piecewise_constant_schedule", "piecewise_interpolate_schedule", "polynomial_schedule"),
        *("sgdr_schedule", "warmup_constant_schedule", "warmup_cosine_decay_schedule"),
        "warmup_exponential_decay_schedule",
    ),
    "no optimiser: a loss": (
        *("convex_kl_divergence", "cosine_distance", "cosine_similarity", "ctc_loss"),
        *("ctc_loss_with_forward_probs", "generalized_kl_divergence", "hinge_loss", "huber_loss"),
        *("kl_divergence", "l2_loss", "log_cosh", "ntxent", "safe_softmax_cross_entropy"),
        *("sigmoid_binary_cross_entropy", "sigmoid_focal_loss", "smooth_labels"),
        *("softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels", "squared_error"),
    ),
    "no optimiser: a helper": (
        *("apply_updates", "bias_correction", "global_norm", "incremental_update"),
        *("init_empty_state", "matrix_inverse_pth_root", "multi_normal", "nnls"),
        *("periodic_update", "power_iteration", "safe_increment", "safe_int32_increment"),
        *("safe_norm", "safe_root_mean_squares", "scale_gradient", "tree_map_params"),
        *("update_infinity_moment", "update_moment", "update_moment_per_elem_norm"),
        *("value_and_grad_from_state", "contrib.schedule_free_eval_params"),
    ),
    "no optimiser: a type": (
        *("MaskOrFn", "OptState", "Params", "ScalarOrSchedule", "Schedule", "Updates"),
    ),
}
"""Why an export is not tried -> names below ``optax``. Classes, but for those that are tried, are
types too."""


def exports() -> dict[str, Callable[..., Any]]:
    """Every public function and class of ``optax`` and ``optax.contrib`` that is installed.

    Example:
        >>> {"sgd", "contrib.muon"} <= set(exports())
        True
    """
    rooms = (("", optax), ("contrib.", optax.contrib))
    return {
        prefix + name: value
        for prefix, room in rooms
        for name, value in vars(room).items()
        if not name.startswith("_") and callable(value)
    }


def names_in(expression: str) -> set[str]:
    """Exports that an expression tries.

    Example:
        >>> sorted(names_in("optax.chain(optax.contrib.normalize(), optax.sgd(0.1))"))
        ['chain', 'contrib.normalize', 'sgd']
    """
    return set(re.findall(r"optax\.((?:contrib\.)?\w+)", expression))


def optimizer_of(expression: str) -> optax.GradientTransformation:
    """The optimiser that an expression of :data:`TRIED` makes.

    Example:
        >>> optimizer_of("optax.sgd(0.1)").init(jnp.ones(1))
        (EmptyState(), EmptyState())
    """
    axes = (optax.contrib.MuonDimensionNumbers(),) * 3
    return eval(expression, {"optax": optax, "jnp": jnp, "AXES": axes})


def unknown(
    tried: tuple[str, ...] = TRIED, names: dict[str, Callable[..., Any]] | None = None
) -> list[str]:
    """Exports that are neither tried nor excluded with a reason.

    Args:
        tried: expressions.
        names: exports by name; of the optax that is installed by default.

    Example:
        >>> unknown(names={"sgd": optax.sgd, "new_rule": optax.sgd})
        ['new_rule']
    """
    seen = set().union(*map(names_in, tried))
    reasons = {name for names in EXCLUDED.values() for name in names}
    found = exports() if names is None else names
    return sorted(
        name
        for name, value in found.items()
        if name not in seen | reasons and not inspect.isclass(value)
    )


def gone() -> Iterator[str]:
    """Names that are tried or excluded here and that optax does not export (any more)."""
    known = set().union(*map(names_in, TRIED), *EXCLUDED.values())
    yield from sorted(known - set(exports()))
