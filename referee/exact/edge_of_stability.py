"""The edge of stability, in rational numbers: z, eta s and eta rho^2 are rational together.

With two layers a two-cycle of ratio z has eta s = z + 1/z - 1 and eta rho^2 = 1/z and z; a pair of
modes is followed in units in which rho_i = 1, so that no root is needed.
"""

from flint import fmpq, fmpq_mat

from referee.exact.claim import Both, ExactIdentity, Sides
from referee.exact.rational import identity


def powers(z: fmpq, depth: int) -> tuple[fmpq, fmpq]:
    """``x^L`` of the lower point, and ``eta x^{L-2}``, s = 1."""
    power = (1 + z ** (depth - 1)) / (1 + z ** (2 * depth - 1))
    return power, (z - 1) * (z**depth + z ** (1 - depth)) / (z**depth - 1)


def cycle(depth: int, wrong: bool = False) -> Sides:
    """There and back: both steps divided by rho, ``1 + eta (1 - rho^L) rho^{L-2}``."""
    z = fmpq(7, 4)
    power, rate = powers(z, depth)
    if wrong:
        power = (1 + z**depth) / (1 + z ** (2 * depth))
    up = 1 + rate * (1 - power)
    down = 1 + rate * z ** (depth - 2) * (1 - z**depth * power)
    return [z, 1 / z], [up, down]


def multiplier(depth: int, wrong: bool = False) -> Sides:
    """``h'(rho) h'(z rho)`` by P and Q, and from h' itself."""
    z, L = fmpq(7, 4), depth
    power, rate = powers(z, L)
    P = L + (2 * L - 1) * z ** (L - 1) - (L - 1) * z ** (2 * L - 1)
    Q = L * z ** (2 * L - 1) + (2 * L - 1) * z**L - (L - 1) * (0 if wrong else 1)
    theory = (1 - (z - 1) * P / (z ** (L - 1) * (z**L - 1))) * (1 - (z - 1) * Q / (z * (z**L - 1)))

    def slope(p: fmpq, k: fmpq) -> fmpq:
        return 1 - k * ((2 * L - 1) * p - (L - 1))

    return theory, slope(power, rate) * slope(z**L * power, rate * z ** (L - 2))


def balance(wrong: bool = False) -> Sides:
    """``b' = b (1 - eta^2 (p - s)^2 q^2)`` of three unbalanced layers."""
    a, b, c, s, rate = fmpq(3, 2), fmpq(2, 3), fmpq(5, 4), fmpq(1), fmpq(2, 5)
    excess = a * b * c - s
    after = a - rate * excess * b * c, b - rate * excess * a * c
    factor = 1 if wrong else 1 - (rate * excess * c) ** 2
    return (a**2 - b**2) * factor, after[0] ** 2 - after[1] ** 2


def pair(a: fmpq, e: fmpq, b: fmpq, q: fmpq) -> fmpq_mat:
    """One step of (D_12 / rho_2, D_21 / rho_1), a = eta rho_1^2 and b = eta rho_2^2 before it.

    In these units it is rational: eta rho_1 rho_2 becomes b and a; the step moves the units.
    """
    u, v = 1 - (a - e), 1 - (b - q)
    first, second = 1 + (b - q) - a, 1 + (a - e) - b
    return fmpq_mat([[first / v, a / v], [b / u, second / u]])


def around(e: fmpq, q: fmpq, start: tuple[fmpq, fmpq]) -> fmpq_mat:
    """Two steps of a pair."""
    whole, (a, b) = identity(2), start
    for _ in range(2):
        whole = pair(a, e, b, q) * whole
        a, b = a * (1 + e - a) ** 2, b * (1 + q - b) ** 2
    assert (a, b) == start, "no cycle"
    return whole


def resting(wrong: bool = False) -> Sides:
    """Trace and determinant of a pair whose second mode rests."""
    z, q = fmpq(3, 2), fmpq(3, 4)
    w = z + 1 / z
    c = 3 - q
    whole = around(w - 1, q, (1 / z, q))
    trace = c**2 - (w + 4) * c + (9 if wrong else 10)
    return [trace, (c - w) * (c - 2 * w) + 1], [whole[0, 0] + whole[1, 1], whole.det()]


def oscillating(opposite: bool, wrong: bool = False) -> Sides:
    """Trace and determinant of two modes on two-cycles."""
    z, v = fmpq(3, 2), fmpq(4, 3)
    p = z / v if opposite != wrong else z * v
    both = z + 1 / z + v + 1 / v
    A = 6 - 2 * both + p + 1 / p
    whole = around(z + 1 / z - 1, v + 1 / v - 1, (1 / z, v if opposite else 1 / v))
    determinant = A * (A - p - 1 / p) + 1
    trace = 1 + determinant - 2 * A * (2 - both)
    return [trace, determinant], [whole[0, 0] + whole[1, 1], whole.det()]


def line(second: fmpq) -> Sides:
    """``(2 + e - a') = (2 + e - a) c^2`` where eta (s_1 + s_2) = 2, c^2 = -det of the step."""
    e, a = fmpq(4, 3), fmpq(5, 7)
    u = 1 + e - a
    # Without units: the determinant does not see them but for those of the next step.
    step = pair(a, e, second, second)
    return (2 + e - a * u**2), (2 + e - a) * -step.det() * u


def chebyshev(wrong: bool = False) -> Sides:
    """``h(sqrt(2 s) c) = - sqrt(2 s) T_3(c)`` at eta = 2/s, over sqrt(2 s)."""
    c = fmpq(3, 5)
    theory = -(4 * c**3 - 3 * c)
    return (-theory if wrong else theory), c - 2 * (2 * c**2 - 1) * c


def identities() -> list[ExactIdentity]:
    """What the page states, each with a formula that fails."""

    def stated(
        claim: str, statement: str, at: str, sides: Both, wrong: Both, mistake: str
    ) -> ExactIdentity:
        return ExactIdentity("edge_of_stability", claim, statement, at, sides, wrong, mistake)

    listed = []
    for depth in (2, 3, 6):
        listed += [
            stated(
                "two_cycle",
                "rho -> z rho -> rho",
                f"L = {depth}, z = 7/4",
                lambda depth=depth: cycle(depth),
                lambda depth=depth: cycle(depth, wrong=True),
                "z^L for z^{L-1}",
            ),
            stated(
                "cycle_multiplier",
                "h'(rho) h'(z rho) by P and Q",
                f"L = {depth}, z = 7/4",
                lambda depth=depth: multiplier(depth),
                lambda depth=depth: multiplier(depth, wrong=True),
                "L - 1 left out of Q",
            ),
        ]
    return [
        *listed,
        stated(
            "balance_law",
            "b' = b (1 - eta^2 (p - s)^2 q^2)",
            "L = 3, unbalanced",
            balance,
            lambda: balance(wrong=True),
            "b conserved",
        ),
        stated(
            "chebyshev_orbit",
            "h is minus T_3 at eta = 2/s",
            "c = 3/5",
            chebyshev,
            lambda: chebyshev(wrong=True),
            "T_3 without the sign",
        ),
        stated(
            "resting_multipliers",
            "trace and determinant, mode 2 at rest",
            "z = 3/2, eta s_2 = 3/4",
            resting,
            lambda: resting(wrong=True),
            "9 for 10",
        ),
        *(
            stated(
                "oscillating_multipliers",
                "trace and determinant by A and p",
                f"z = 3/2, v = 4/3, {phase}",
                lambda opposite=opposite: oscillating(opposite),
                lambda opposite=opposite: oscillating(opposite, wrong=True),
                "p of the other phase",
            )
            for opposite, phase in ((False, "in phase"), (True, "opposite phase"))
        ),
        stated(
            "line_conserved",
            "2 + e - a' = (2 + e - a) c^2",
            "e = 4/3, a = 5/7",
            lambda: line(fmpq(2, 3)),
            lambda: line(fmpq(3, 4)),
            "eta s_2 = 3/4, beside the line",
        ),
    ]
