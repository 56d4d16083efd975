"""LoRA+: two rates."""

from collections.abc import Callable, Mapping

import jax
import optax

from lrdyn.adapters.model import Adapters, labels
from lrdyn.core import checks
from lrdyn.core.factorization import Scalar


def by_label(
    rules: Mapping[str, optax.GradientTransformation], adapters: Adapters
) -> optax.GradientTransformation:
    """An optimiser for each label of :func:`lrdyn.adapters.labels`; what is frozen stays.

    Args:
        rules: label -> optimiser, for ``A``, ``B``, ``magnitude``, ``factors``, ``inner``,
            ``frame``, ``extra``.
        adapters: what is trained.

    Raises:
        ValueError: there is a label without an optimiser.

    Example:
        >>> import jax.numpy as jnp, lrdyn
        >>> adapters = {"W": lrdyn.adapters.Factors(jnp.ones((2, 1)), jnp.ones((1, 2)))}
        >>> rule = by_label({"A": optax.sgd(1.0), "B": optax.sgd(2.0)}, adapters)
        >>> moves, _ = rule.update(adapters, rule.init(adapters))
        >>> moves["W"].B.tolist(), moves["W"].A.tolist()
        ([[-2.0], [-2.0]], [[-1.0, -1.0]])
    """
    known = labels(adapters)
    checks.instance("rules", rules, Mapping)
    every = {"frozen": optax.set_to_zero(), **rules}
    found = set(jax.tree.leaves(known))
    if missing := sorted(found - set(every)):
        checks.refuse("rules", ", ".join(rules) or "none", f"one for {', '.join(missing)}")
    return optax.multi_transform({name: every[name] for name in sorted(found)}, known)


def lora_plus(
    rule: Callable[[Scalar], optax.GradientTransformation],
    rate: Scalar,
    ratio: Scalar,
    adapters: Adapters,
) -> optax.GradientTransformation:
    """LoRA+ (arXiv 2402.12354): B is trained at ``ratio`` times the rate of A; ratio 1 is LoRA.

    The rates may be traced, so that one program serves every ratio. In Algorithm 1, where what is
    trained of LoRA is A and then B, ``optax.multi_transform({"A": ..., "B": ...}, ("A", "B"))`` is
    the same.

    Args:
        rule: maps a rate to an optimiser, such as ``optax.adam``.
        rate: of A, and of the parameters that are trained as they are.
        ratio: rate of B over that of A; 16 there.
        adapters: what is trained.

    Example:
        >>> import jax.numpy as jnp, lrdyn
        >>> adapters = {"W": lrdyn.adapters.Factors(jnp.ones((2, 1)), jnp.ones((1, 2)))}
        >>> rule = lora_plus(optax.sgd, 1.0, 16.0, adapters)
        >>> rule.update(adapters, rule.init(adapters))[0]["W"].B.tolist()
        [[-16.0], [-16.0]]
    """
    checks.instance("rule", rule)
    rate, ratio = checks.nonnegative("rate", rate), checks.nonnegative("ratio", ratio)
    one = rule(rate)
    names = set(jax.tree.leaves(labels(adapters))) - {"frozen"}
    return by_label(dict.fromkeys(names, one) | {"B": rule(ratio * rate)}, adapters)
