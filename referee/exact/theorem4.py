"""Theorem 4 and LoRA: gradients in factors are differences, which know no chain rule."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

from flint import arb, arb_mat, fmpq, fmpq_mat

from referee.exact.balls import balls
from referee.exact.claim import Both, ExactIdentity, Sides
from referee.exact.rational import (
    column_of,
    columns,
    derivative,
    diagonal,
    integers,
    low_rank,
    number,
    orthogonal,
    rows,
    squared_norm,
    with_roots,
    zeros,
)

ROWS, COLUMNS, RANK, PERIOD, STEPS = 4, 3, 2, 2, 6
RATE = number(Fraction(1, 50))
MOMENTUM = number(Fraction(9, 10))


def regression(w: fmpq_mat) -> fmpq:
    """The loss ``1/2 ||C W - Y||_F^2``."""
    return squared_norm(integers(5, ROWS, 131) * w - integers(5, COLUMNS, 132)) / 2


def regression_gradient(w: Any) -> Any:
    """The gradient of ``1/2 ||C W - Y||_F^2``, by hand."""
    known, wanted = integers(5, ROWS, 131), integers(5, COLUMNS, 132)
    if isinstance(w, arb_mat):
        known, wanted = balls(known), balls(wanted)
    return known.transpose() * (known * w - wanted)


def entrywise(loss: Callable[[fmpq_mat], fmpq], at: fmpq_mat, degree: int = 2) -> fmpq_mat:
    """The gradient of a loss, entry by entry, by differences that are exact."""
    gradient = zeros(at.nrows(), at.ncols())
    for i in range(at.nrows()):
        for j in range(at.ncols()):
            unit = zeros(at.nrows(), at.ncols())
            unit[i, j] = fmpq(1)
            gradient[i, j] = derivative(lambda t, unit=unit: loss(at + t * unit), degree)
    return gradient


@cache
def subspaces(side: str) -> list[fmpq_mat]:
    """P of every period: orthonormal columns, rational."""
    size = ROWS if side == "left" else COLUMNS
    return [columns(orthogonal(size, 141 + k), range(RANK)) for k in range(STEPS // PERIOD)]


class Path(NamedTuple):
    """How a path is walked."""

    momentum: bool
    policy: str = "keep"
    side: str = "left"


def refreshed(state: fmpq_mat, old: fmpq_mat, new: fmpq_mat, how: Path) -> fmpq_mat:
    """The momentum after a refresh, in the coordinates of the new P."""
    if how.policy == "reset":
        return zeros(state.nrows(), state.ncols())
    if how.policy == "transport" and how.side == "left":
        return new.transpose() * old * state
    if how.policy == "transport":
        return state * old.transpose() * new
    return state


def started(how: Path) -> tuple[fmpq_mat, fmpq_mat]:
    """W and the state at the start."""
    shape = (RANK, COLUMNS) if how.side == "left" else (ROWS, RANK)
    return integers(ROWS, COLUMNS, 133) / 3, zeros(*shape)


def update(state: fmpq_mat, gradient: fmpq_mat, how: Path) -> tuple[fmpq_mat, fmpq_mat]:
    """The state, and what is added."""
    state = MOMENTUM * state + gradient if how.momentum else gradient
    return state, -RATE * state


def galore(how: Path) -> fmpq_mat:
    """``W <- W + P opt(P^T G)``, or from the right: the weights at the end."""
    w, state = started(how)
    spaces = subspaces(how.side)
    for t in range(STEPS):
        k, begins = divmod(t, PERIOD)
        p = spaces[k]
        if begins == 0 and k:
            state = refreshed(state, spaces[k - 1], p, how)
        g = regression_gradient(w)
        g = p.transpose() * g if how.side == "left" else g * p
        state, moved = update(state, g, how)
        w += p * moved if how.side == "left" else moved * p.transpose()
    return w


def relora(how: Path) -> fmpq_mat:
    """W + B A with B = P frozen: A is trained and merged, its gradient taken by differences."""
    w, state = started(how)
    spaces = subspaces(how.side)
    # A begins at 0, as ReLoRA's frozen form does.
    adapter = zeros(state.nrows(), state.ncols())

    def added(a: fmpq_mat, p: fmpq_mat) -> fmpq_mat:
        return p * a if how.side == "left" else a * p.transpose()

    for t in range(STEPS):
        k, begins = divmod(t, PERIOD)
        if begins == 0 and k:
            w, adapter = w + added(adapter, spaces[k - 1]), adapter * 0
            state = refreshed(state, spaces[k - 1], spaces[k], how)
        loss = lambda a, w=w, p=spaces[k]: regression(w + added(a, p))  # noqa: E731
        state, moved = update(state, entrywise(loss, adapter), how)
        adapter += moved
    return w + added(adapter, spaces[-1])


def without_coordinates(how: Path) -> fmpq_mat:
    """The path by a momentum of the size of W: ``M <- mu M + P P^T G``."""
    w, _ = started(how)
    spaces = subspaces("left")
    large = zeros(ROWS, COLUMNS)
    for t in range(STEPS):
        k, begins = divmod(t, PERIOD)
        p = spaces[k]
        if begins == 0 and k:
            onto = {
                "keep": p * spaces[k - 1].transpose(),
                "reset": zeros(ROWS, ROWS),
                "transport": p * p.transpose(),
            }
            large = onto[how.policy] * large
        large = MOMENTUM * large + p * p.transpose() * regression_gradient(w)
        w -= RATE * large
    return w


def same_path(how: Path, other: Path | None = None) -> Sides:
    """Weights of both methods at the end."""
    return galore(how), relora(other or how)


def sum_rank(directions: int = RANK) -> Sides:
    """``rank(W(t) - W(0)) = r K``, here min(r K, n) of 4 x 3: one period has rank r."""
    how = Path(momentum=True)
    w, state = started(how)
    p = subspaces("left")[0]
    start = w
    for _ in range(STEPS):
        state, moved = update(state, p.transpose() * regression_gradient(w), how)
        w += p * moved
    return directions, (w - start).rank()


# Adam, in balls --------------------------------------------------------------------------------


def adam_path(adapter: bool, eps: fmpq | None = None) -> arb_mat:
    """Three steps of Adam on P^T G, or on A of W + P A."""
    p = balls(subspaces("left")[0])
    w = balls(integers(ROWS, COLUMNS, 133) / 3)
    a = arb_mat(RANK, COLUMNS)
    first, second = arb_mat(RANK, COLUMNS), arb_mat(RANK, COLUMNS)
    small = arb(eps if eps is not None else fmpq(1, 100))
    b1, b2 = arb(fmpq(9, 10)), arb(fmpq(99, 100))
    for t in range(1, 4):
        weights = w + p * a
        if adapter:  # dL/dA of 1/2 ||C (W + P A) - Y||^2 as a regression on C P
            known = balls(integers(5, ROWS, 131))
            target = balls(integers(5, COLUMNS, 132)) - known * w
            g = (known * p).transpose() * ((known * p) * a - target)
        else:
            g = p.transpose() * regression_gradient(weights)
        squares = arb_mat([[x * x for x in row] for row in g.tolist()])
        first = first * b1 + g * (1 - b1)
        second = second * b2 + squares * (1 - b2)
        moved = [
            [
                -arb(RATE) * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + small)
                for m, v in zip(*pair, strict=True)
            ]
            for pair in zip(first.tolist(), second.tolist(), strict=True)
        ]
        if adapter:
            a += arb_mat(moved)
        else:
            w += p * arb_mat(moved)
    return w + p * a


def adam(same_eps: bool = True) -> Sides:
    """GaLore's and ReLoRA's weights after three steps of Adam."""
    return adam_path(adapter=False), adam_path(True, None if same_eps else fmpq(1, 50))


# Duality for any linear map ---------------------------------------------------------------------


def quartic(theta: fmpq_mat) -> fmpq:
    """The loss ``1/4 sum (x . theta - y)^4``."""
    errors = integers(4, 5, 151, 2) * theta - integers(4, 1, 152, 2)
    return sum((e**4 for e in errors.entries()), fmpq(0)) / 4


def duality(scale: int = 2, power: int = 2, momentum: bool = True) -> Sides:
    """``theta <- theta + s^2 S^T opt(S g)`` is ``theta_0 + s S^T Lambda``."""
    onto = integers(2, 5, 153)
    # A small step: the digits of a quartic loss grow with every step, its size must not.
    small = fmpq(1, 5000)
    theta = integers(5, 1, 154) / 5
    weights = theta
    state = zeros(2, 1)
    factor = MOMENTUM if momentum else fmpq(0)
    for _ in range(2):
        state = factor * state + onto * entrywise(quartic, weights, 4)
        weights -= scale**power * small * (onto.transpose() * state)
    adapter, state = zeros(2, 1), zeros(2, 1)
    for _ in range(2):
        loss = lambda a: quartic(theta + scale * (onto.transpose() * a))  # noqa: E731
        state = factor * state + entrywise(loss, adapter, 4)
        adapter -= small * state
    return weights, theta + scale * (onto.transpose() * adapter)


# Gradients become low-rank ---------------------------------------------------------------------


def gradient_path(sign: int = 1) -> Sides:
    """``G_t = sum_ab (1 - eta b_a c_b)^t <V_ab, G_0> V_ab``, V = u_a v_b^T, and descent itself."""
    left, right = orthogonal(3, 161), orthogonal(3, 162)
    bs, cs = [fmpq(1, 2), fmpq(1), fmpq(3, 2)], [fmpq(1, 3), fmpq(2, 3), fmpq(1)]
    b = left * diagonal(bs) * left.transpose()
    c = right * diagonal(cs) * right.transpose()
    constant = integers(3, 3, 163)
    eta, steps = fmpq(2, 5), 5
    theory = zeros(3, 3)
    for i in range(3):
        for j in range(3):
            u, v = columns(left, [i]), columns(right, [j])
            coefficient = (u.transpose() * constant * v)[0, 0]
            theory += (1 - sign * eta * bs[i] * cs[j]) ** steps * coefficient * (u * v.transpose())
    w = zeros(3, 3)
    for _ in range(steps):
        w += eta * (constant - b * w * c)
    return theory, constant - b * w * c


def recursion(terms: int = 2, mean: bool = True) -> Sides:
    """``G_{t+1} = G_t - eta/N sum B_i G_t C_i`` of two terms whose matrices do not commute."""
    drawn = [integers(3, 3, 170 + k, 2) for k in range(2 * terms)]
    symmetric = [(x + x.transpose()) / 4 for x in drawn]
    constant = integers(3, 3, 163)
    eta, steps = fmpq(1, 10), 4

    def mapped(x: fmpq_mat) -> fmpq_mat:
        pairs = zip(symmetric[:terms], symmetric[terms:], strict=True)
        return sum((b * x * c for b, c in pairs), zeros(3, 3)) / terms

    theory = constant
    for _ in range(steps):
        theory = theory - eta * mapped(theory) * (1 if mean else terms)
    w = zeros(3, 3)
    for _ in range(steps):
        w += eta * (constant - mapped(w))
    return theory, constant - mapped(w)


def lemma_as_printed(printed: bool = False) -> Sides:
    """The counterexample: sr(G_0) = 2 where Lemma 3.3 of GaLore as printed allows 13/8.

    G_0^T G_0 is a multiple of I, so that sr(G_0) is its size, 2; the part of the smallest
    eigenvalue has the eigenvalues 1 and -1/4.
    """
    start = fmpq_mat([[fmpq(-3, 4), fmpq(1, 2)], [fmpq(1, 2), fmpq(3, 4)]])
    parallel = fmpq_mat([[0, fmpq(1, 2)], [fmpq(1, 2), fmpq(3, 4)]])
    gram = start.transpose() * start
    roots = with_roots([fmpq(1), fmpq(-1, 4)])
    assert gram == gram[0, 0] * diagonal([1, 1])
    assert parallel.charpoly() == roots
    stable = squared_norm(start) / gram[0, 0]
    allowed = squared_norm(parallel) + squared_norm(start - parallel)
    if printed:
        return True, bool(stable <= allowed)
    return [fmpq(2), fmpq(13, 8)], [stable, allowed]


# LoRA and its relatives ------------------------------------------------------------------------


def factors() -> tuple[fmpq_mat, fmpq_mat, fmpq_mat]:
    """W (4 x 3), B (4 x 2) and A (2 x 3)."""
    return integers(4, 3, 181) / 3, integers(4, 2, 182) / 2, integers(2, 3, 183) / 2


def fourth_powers(w: fmpq_mat) -> fmpq:
    """A loss that is no quadratic: the sum of fourth powers of ``C W - Y``, over 400."""
    errors = (integers(3, 4, 184, 2) * w - integers(3, 3, 185)).entries()
    return sum((e**4 for e in errors), fmpq(0)) / 400


def one_step(third: bool = True) -> Sides:
    """The change of s B A, and what it is in terms of G at B and A before the step."""
    w, b, a = factors()
    s, rate_a, rate_b = fmpq(3, 2), fmpq(1, 7), fmpq(1, 3)
    g = entrywise(fourth_powers, w + s * (b * a), 4)
    theory = -rate_a * s**2 * (b * b.transpose() * g) - rate_b * s**2 * (g * a.transpose() * a)
    if third:
        theory += rate_a * rate_b * s**3 * (g * a.transpose() * b.transpose() * g)
    of_b = entrywise(lambda moved: fourth_powers(w + s * (moved * a)), b, 4)
    of_a = entrywise(lambda moved: fourth_powers(w + s * (b * moved)), a, 4)
    new_b, new_a = b - rate_b * of_b, a - rate_a * of_a
    return theory, s * (new_b * new_a) - s * (b * a)


def dora_step(held: bool = True) -> Sides:
    """``dL/dB = s D G A^T``, ``dL/dA = s B^T D G``, ``dL/dm = diag(G V^T) / norms``, norms held.

    Rows of V have the norms 5, 7, 3 and 5, so that D is rational.
    """
    direction = fmpq_mat([[3, 4, 0], [2, 3, 6], [1, 2, 2], [0, -3, 4]])
    norms = [fmpq(5), fmpq(7), fmpq(3), fmpq(5)]
    _, b, a = factors()
    s = fmpq(3, 2)
    w = direction - s * (b * a)
    m = [fmpq(2), fmpq(3), fmpq(1), fmpq(4)]
    scale = diagonal([x / n for x, n in zip(m, norms, strict=True)])
    g = entrywise(fourth_powers, scale * direction, 4)
    across = g * direction.transpose()
    of_m = fmpq_mat([[across[i, i] / (norms[i] if held else 1) for i in range(4)]])
    theory = column_of(s * (scale * g * a.transpose()), s * (b.transpose() * scale * g), of_m)

    def loss(b: fmpq_mat, a: fmpq_mat, m: Sequence[fmpq]) -> fmpq:
        scale = diagonal([x / n for x, n in zip(m, norms, strict=True)])
        return fourth_powers(scale * (w + s * (b * a)))

    measured = column_of(
        entrywise(lambda moved: loss(moved, a, m), b, 4),
        entrywise(lambda moved: loss(b, moved, m), a, 4),
        entrywise(lambda moved: loss(b, a, moved.entries()), fmpq_mat([m]), 4),
    )
    return theory, measured


def pissa_residual(taken: int = 2) -> Sides:
    """W less its first two terms has the other singular values, and 0."""
    values = [fmpq(9, 4), fmpq(1), fmpq(1, 4)]
    w = low_rank(4, 3, values, 191)
    left, right = orthogonal(4, 191), orthogonal(3, 192)
    b = columns(left, range(2)) * diagonal([fmpq(3, 2), fmpq(1)])
    a = diagonal([fmpq(3, 2), fmpq(1)]) * rows(right.transpose(), range(2))
    frozen = w - b * a
    theory = with_roots([v**2 for v in values[taken:]] + [fmpq(0)] * taken)
    return theory, (frozen.transpose() * frozen).charpoly()


def identities() -> list[ExactIdentity]:
    """All of Theorem 4, the rank of gradients, duality, and LoRA."""
    shape = f"{ROWS} x {COLUMNS}, r = {RANK}, T = {PERIOD}, {STEPS} steps"

    def stated(
        theorem: str, claim: str, statement: str, at: str, sides: Both, wrong: Both, mistake: str
    ) -> ExactIdentity:
        return ExactIdentity(theorem, claim, statement, at, sides, wrong, mistake)

    listed = []
    for side in ("left", "right"):
        listed.append(
            stated(
                "theorem4",
                "weights",
                "GaLore and ReLoRA: the same weights, SGD",
                f"{shape}, {side}",
                lambda side=side: same_path(Path(False, side=side)),
                lambda side=side: same_path(Path(False, side=side), Path(True, side=side)),
                "momentum in one of them",
            )
        )
        for policy, other in (("keep", "reset"), ("reset", "keep"), ("transport", "keep")):
            listed.append(
                stated(
                    "theorem4",
                    "policy_weights",
                    f"GaLore and ReLoRA: the same weights, momentum, {policy}",
                    f"{shape}, {side}",
                    lambda side=side, policy=policy: same_path(Path(True, policy, side)),
                    lambda side=side, policy=policy, other=other: same_path(
                        Path(True, policy, side), Path(True, other, side)
                    ),
                    f"{other} in one of them",
                )
            )
    for policy, other in (("keep", "transport"), ("reset", "keep"), ("transport", "keep")):
        listed.append(
            stated(
                "theorem4",
                "lifted",
                f"M <- mu M + P P^T G, {policy}",
                shape,
                lambda policy=policy: (
                    without_coordinates(Path(True, policy)),
                    galore(Path(True, policy)),
                ),
                lambda policy=policy, other=other: (
                    without_coordinates(Path(True, other)),
                    galore(Path(True, policy)),
                ),
                f"the momentum of {other}",
            )
        )
    listed += [
        stated(
            "theorem4",
            "weights",
            "GaLore and ReLoRA: the same weights, Adam, enclosed",
            f"{ROWS} x {COLUMNS}, r = {RANK}, 3 steps",
            adam,
            lambda: adam(same_eps=False),
            "another eps",
        ),
        stated(
            "theorem4",
            "sum_rank",
            "rank(W(t) - W(0)) = r within a period",
            shape,
            sum_rank,
            lambda: sum_rank(RANK - 1),
            "one direction less",
        ),
        stated(
            "theorem4",
            "duality",
            "theta + S^T opt(S g) = theta_0 + S^T Lambda",
            "S 2 x 5, momentum, quartic loss",
            lambda: duality(1),
            lambda: duality(power=0),
            "alpha = 1 at s = 2",
        ),
        stated(
            "theorem4",
            "scale_linear",
            "alpha = s^2",
            "S 2 x 5, s = 2, momentum",
            duality,
            lambda: duality(power=1),
            "alpha = s",
        ),
        stated(
            "theorem4",
            "gradient_path",
            "G_t = sum (1 - eta l)^t <V, G_0> V",
            "3 x 3, N = 1, 5 steps",
            gradient_path,
            lambda: gradient_path(-1),
            "ascent",
        ),
        stated(
            "theorem4",
            "gradient_path",
            "G_{t+1} = G_t - eta/N sum B G_t C",
            "3 x 3, N = 2, 4 steps",
            recursion,
            lambda: recursion(mean=False),
            "1/N left out",
        ),
        stated(
            "theorem4",
            "lemma_3_3",
            "sr(G_0) = 2 where the printed bound is 13/8",
            "the counterexample",
            lemma_as_printed,
            lambda: lemma_as_printed(printed=True),
            "the printed bound",
        ),
        stated(
            "lora",
            "one_step",
            "change of s B A by G, B, A",
            "4 x 3, r = 2, quartic loss",
            one_step,
            lambda: one_step(third=False),
            "the third term left out",
        ),
        stated(
            "lora",
            "dora_step",
            "gradients in B, A, m with norms held",
            "4 x 3, r = 2, quartic loss",
            dora_step,
            lambda: dora_step(held=False),
            "norms left out in dL/dm",
        ),
        stated(
            "lora",
            "pissa_residual",
            "singular values of W - B A",
            "4 x 3, r = 2",
            pissa_residual,
            lambda: pissa_residual(1),
            "one value more",
        ),
    ]
    return listed
