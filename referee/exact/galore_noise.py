"""GaLore under gradient noise, in whole and in rational numbers.

The last step is a schedule: every list of small counts is run, task by task. What a period makes
of a small Y is a derivative at 0, which dual numbers give without a limit.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement

from flint import fmpq

from referee.exact.claim import Both, ExactIdentity, Sides

MOST, TASKS = 5, 5
"""Largest count, and how many values."""


def greedy(counts: tuple[int, ...], machines: int) -> int:
    """Refreshes until nothing is left, of which each takes the largest counts."""
    left, refreshes = list(counts), 0
    while any(left):
        left.sort(reverse=True)
        left = [n - 1 if place < machines and n else n for place, n in enumerate(left)]
        refreshes += 1
    return refreshes


def makespan(machines: int, wrong: bool = False) -> Sides:
    """``K = max(max N_i, ceil(sum N_i / r))``, of all lists of counts."""
    every = list(combinations_with_replacement(range(MOST + 1), TASKS))
    longest = (lambda counts: 0) if wrong else max
    theory = [max(longest(c), -(-sum(c) // machines)) for c in every]
    return theory, [greedy(c, machines) for c in every]


class Dual:
    """``a + b h`` with ``h^2 = 0``."""

    def __init__(self, at: fmpq, slope: fmpq) -> None:
        self.at, self.slope = at, slope

    def __add__(self, other: "Dual") -> "Dual":
        return Dual(self.at + other.at, self.slope + other.slope)

    def __mul__(self, other: "Dual") -> "Dual":
        return Dual(self.at * other.at, self.at * other.slope + self.slope * other.at)


Matrix = list[list[Dual]]


def times(A: Matrix, B: Matrix) -> Matrix:
    """Product of 2 x 2 matrices."""
    return [[A[i][0] * B[0][j] + A[i][1] * B[1][j] for j in (0, 1)] for i in (0, 1)]


def turned(A: Matrix) -> Matrix:
    """The transpose."""
    return [[A[j][i] for j in (0, 1)] for i in (0, 1)]


def projector(G: Matrix, left: bool) -> Matrix:
    """That on the vector of ``G G^T``, or ``G^T G``, which is the second one at h = 0.

    With Lagrange's polynomial ``(B - mu) / (lambda - mu)``: to first order the eigenvalues do not
    move, as h stands beside the diagonal alone.
    """
    B = times(G, turned(G)) if left else times(turned(G), G)
    low, high = B[0][0].at, B[1][1].at
    unit = Dual(1 / (high - low), fmpq(0))
    shifted = [
        [B[i][j] + Dual(-low if i == j else fmpq(0), fmpq(0)) for j in (0, 1)] for i in (0, 1)
    ]
    return [[unit * entry for entry in row] for row in shifted]


SIGNS = (1, -1, -1, 1, -1, -1)


def stall(left: bool, wrong: bool = False) -> Sides:
    """``1 - eta kappa S``, or ``1 - kappa (1 - (1 - eta)^{T_0})``, and the slope of a period."""
    s, noise, rate = fmpq(3, 5), fmpq(5, 4), fmpq(1, 7)
    kappa = noise**2 / (noise**2 - s**2)
    if left:
        theory = 1 - rate * kappa * (SIGNS[0] * sum(SIGNS) + (1 if wrong else 0))
    else:
        theory = 1 - kappa * (rate * len(SIGNS) if wrong else 1 - (1 - rate) ** len(SIGNS))

    def gradient(X: Matrix, sign: int) -> Matrix:
        # D = s at X = 0 in the first entry, Y beside it.
        return [
            [X[0][0] + Dual(s, fmpq(0)), X[0][1]],
            [Dual(fmpq(0), fmpq(0)), Dual(sign * noise, fmpq(0))],
        ]

    zero = Dual(fmpq(0), fmpq(0))
    X = [[zero, Dual(fmpq(0), fmpq(1))], [zero, zero]]
    P = projector(gradient(X, SIGNS[0]), left)
    step = Dual(-rate, fmpq(0))
    for sign in SIGNS:
        G = gradient(X, sign)
        moved = times(P, G) if left else times(G, P)
        X = [[X[i][j] + step * moved[i][j] for j in (0, 1)] for i in (0, 1)]
    # Y moves by the factor, the value itself to first order not at all.
    return [theory, fmpq(0), fmpq(0)], [X[0][1].slope, X[0][0].at, X[0][0].slope]


def identities() -> list[ExactIdentity]:
    """What the page states, each with a formula that fails."""

    def stated(
        claim: str, statement: str, at: str, sides: Callable[..., Sides], mistake: str
    ) -> ExactIdentity:
        wrong: Both = lambda: sides(wrong=True)  # noqa: E731
        return ExactIdentity("galore_noise", claim, statement, at, sides, wrong, mistake)

    return [
        *(
            stated(
                "last_move",
                "K = max(max N_i, ceil(sum N_i / r))",
                f"r = {r}, all {TASKS} counts up to {MOST}",
                lambda wrong=False, r=r: makespan(r, wrong),
                "ceil(sum N_i / r)",
            )
            for r in (2, 3, 4)
        ),
        stated(
            "stall_factor",
            "1 - eta kappa S, P on the left",
            "s = 3/5, sigma = 5/4",
            lambda wrong=False: stall(left=True, wrong=wrong),
            "S + 1",
        ),
        stated(
            "stall_factor",
            "1 - kappa (1 - (1 - eta)^{T_0}), P on the right",
            "s = 3/5, sigma = 5/4",
            lambda wrong=False: stall(left=False, wrong=wrong),
            "eta T_0 for 1 - (1 - eta)^{T_0}",
        ),
    ]
