"""The edge of stability: cycles by their powers, steps by hand, a chaotic orbit in 80 digits."""

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import t as t_distribution

from referee.descent import chain, gradients
from referee.redone import EPS, Redone, saved_as, saved_sides
from referee.results import Point, once
from referee.theorem2 import bulk, factorization_diverges, off_block

DIGITS = 80
"""Of the chaotic orbit: tripled thirty times, an error of the last one is still nothing."""
TINY = 1e-30
"""Imaginary part that stands for a small error: a step is a polynomial, so that the imaginary part
of its value is the derivative to the last digit."""

# Layers and one step ----------------------------------------------------------------------------


class SavedNetwork(NamedTuple):
    """Bases, target and step size."""

    bases: np.ndarray
    values: np.ndarray
    rate: float

    @property
    def depth(self) -> int:
        """L."""
        return len(self.bases) - 1

    def layers(self, blocks: np.ndarray) -> list[np.ndarray]:
        """``Q_l B_l Q_{l-1}^T``."""
        return [self.bases[l + 1] @ block @ self.bases[l].T for l, block in enumerate(blocks)]

    def blocks(self, layers: list[np.ndarray]) -> np.ndarray:
        """``Q_l^T W_l Q_{l-1}``."""
        return np.array(
            [self.bases[l + 1].T @ layer @ self.bases[l] for l, layer in enumerate(layers)]
        )

    def diagonal(self, *rows: Any) -> np.ndarray:
        """Blocks that are diagonal: the first values of each layer, a row each or one for all."""
        count = len(rows[0])
        whole = np.zeros((self.depth, len(self.values), len(self.values)))
        for block, row in zip(whole, np.broadcast_to(rows, (self.depth, count)), strict=True):
            np.fill_diagonal(block[:count, :count], row)
        return whole

    def step(self, layers: list[np.ndarray]) -> list[np.ndarray]:
        """One step of descent on ``1/2 ||W_L ... W_1 - Phi||_F^2``."""
        target = (self.bases[-1] * self.values) @ self.bases[0].T
        slopes = gradients(layers, chain(layers) - target)
        return [layer - self.rate * G for layer, G in zip(layers, slopes, strict=True)]

    def push(self, blocks: np.ndarray, errors: np.ndarray, steps: int = 1) -> np.ndarray:
        """What steps make of small errors, to first order: the imaginary part of complex steps."""
        layers = self.layers(blocks + 1j * TINY * errors)
        for _ in range(steps):
            layers = self.step(layers)
        return np.imag(self.blocks(layers)) / TINY

    def product(self, layers: list[np.ndarray]) -> np.ndarray:
        """``Q_L^T W_L ... W_1 Q_0``."""
        return self.bases[-1].T @ chain(layers) @ self.bases[0]


def network_of(point: Point) -> SavedNetwork:
    """The network of a point."""
    c = point.case
    parts = (c[f"network.{name}"] for name in ("bases", "values", "learning_rate"))
    bases, values, rate = (np.asarray(part, float) for part in parts)
    return SavedNetwork(bases, values, float(rate))


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function between two numbers, to the last digits."""
    return float(root_scalar(function, bracket=(low, high), xtol=EPS, rtol=4 * EPS).root)


# One mode ---------------------------------------------------------------------------------------


def edge(depth: int, s: float) -> float:
    """2 over the sharpness ``L s^{2 - 2/L}`` of the balanced minimum."""
    return 2 / (depth * s ** (2 - 2 / depth))


def scaled_rate(z: float, depth: int) -> float:
    """Eta of the two-cycle with a ratio z, s = 1, by powers of z."""
    k = (z - 1) * (z**depth + z ** (1 - depth)) / (z**depth - 1)
    return k * point_power(z, depth) ** (2 / depth - 1)


def point_power(z: float, depth: int) -> float:
    """``x^L`` of its lower point, s = 1."""
    return (1 + z ** (depth - 1)) / (1 + z ** (2 * depth - 1))


def slope(x: float, depth: int, s: float, rate: float) -> float:
    """``h'(rho)``."""
    return 1 - rate * ((2 * depth - 1) * x ** (2 * depth - 2) - (depth - 1) * s * x ** (depth - 2))


def ratio_of(depth: int, s: float, rate: float) -> float:
    """The z of the two-cycle at a step size."""
    scaled = rate * s ** (2 - 2 / depth)
    return root(lambda z: scaled_rate(z, depth) - scaled, 1 + 1e-9, 30.0)


class SavedMode(NamedTuple):
    """A mode beyond the edge, its cycle, and by how much rounding moves it."""

    network: SavedNetwork
    s: float
    z: float
    low: float
    """Singular value of a layer at the lower point."""
    multiplier: float
    stretch: float
    """Change of ln z over that of ln eta."""

    @property
    def sensitive(self) -> float:
        """By how much rounding is amplified in what two steps from the cycle make."""
        return 5 * self.network.depth * (1 + self.stretch)


@once
def mode_of(point: Point) -> SavedMode | None:
    """The mode of a point, if it is beyond the edge."""
    network = network_of(point)
    depth, s = network.depth, float(network.values[0])
    if float(point.case["edge_ratio"]) <= 1:
        return None
    z = ratio_of(depth, s, network.rate)
    low = (s * point_power(z, depth)) ** (1 / depth)
    multiplier = slope(low, depth, s, network.rate) * slope(z * low, depth, s, network.rate)
    small = 1e-6 * (z - 1)
    change = np.log(scaled_rate(z + small, depth) / scaled_rate(z - small, depth))
    return SavedMode(network, s, z, low, multiplier, 2 * small / z / change)


def two_cycle(point: Point) -> Redone | None:
    """One and two steps after the lower point."""
    if (of := mode_of(point)) is None:
        return None
    network, depth = of.network, of.network.depth
    once_more = network.step(network.layers(network.diagonal([of.low])))
    run = np.array([network.product(W)[0, 0] for W in (once_more, network.step(once_more))])
    theory = np.array([of.z * of.low, of.low]) ** depth
    saved = saved_sides(point, "two_cycle")
    return Redone(theory, run, None, of.sensitive, "equal", *saved, steps=2)


def cycle_reached(point: Point) -> Redone | None:
    """The last two steps of a descent."""
    if (of := mode_of(point)) is None or abs(of.multiplier) >= 1:
        return None
    network, depth = of.network, of.network.depth
    layers = network.layers(network.diagonal([float(point.case["start"])]))
    tail = []
    for _ in range(max(point.times) + 1):
        tail.append(network.product(layers)[0, 0])
        layers = network.step(layers)
        if tail[-1] <= 0:
            return None
    theory = np.array([of.low, of.z * of.low]) ** depth
    condition = of.sensitive / (1 - abs(of.multiplier))
    # Where the slowest errors have not decayed theory leaves the point out.
    if abs(tail[-3] - tail[-1]) > EPS * max(point.times) * tail[-1]:
        return None
    saved = saved_sides(point, "cycle_reached")
    # A cycle that attracts forgets what was rounded more than some steps ago.
    return Redone(theory, np.sort(tail[-2:]), None, condition, "equal", *saved, steps=10)


def cycle_multiplier(point: Point) -> Redone | None:
    """Two steps of an error that is the same in all layers."""
    if (of := mode_of(point)) is None:
        return None
    low = of.network.diagonal([of.low])
    run = np.mean(of.network.push(low, of.network.diagonal([1.0]), 2)[:, 0, 0])
    scale = max(1.0, abs(of.multiplier))
    saved = saved_sides(point, "cycle_multiplier")
    return Redone(of.multiplier, run, scale, 5 * of.sensitive, "equal", *saved, steps=2)


def balance_factor(point: Point) -> Redone | None:
    """Two steps of opposite errors of two layers: ``(2 - z)(2 - 1/z)``."""
    if (of := mode_of(point)) is None:
        return None
    signs = np.zeros((of.network.depth, 1))
    signs[:2, 0] = 1, -1
    pushed = of.network.push(of.network.diagonal([of.low]), of.network.diagonal(*signs), 2)
    run = (pushed[0, 0, 0] - pushed[1, 0, 0]) / 2
    theory = (2 - of.z) * (2 - 1 / of.z)
    saved = saved_sides(point, "balance_factor")
    condition = 5 * of.sensitive
    return Redone(theory, run, max(1.0, abs(theory)), condition, "equal", *saved, steps=2)


def balance_law(point: Point) -> Redone | None:
    """The difference of two squares, by factors along scalars and by dense layers."""
    if (of := mode_of(point)) is None:
        return None
    network, start = of.network, np.asarray(point.case["unbalanced"], float)
    count = len(point.found["balance_law_predicted"])

    def factors(x: np.ndarray) -> np.ndarray:
        b, path = x[0] ** 2 - x[1] ** 2, []
        for _ in range(count):
            excess, others = np.prod(x) - of.s, np.prod(x[2:])
            b *= 1 - (network.rate * excess * others) ** 2
            x = x - network.rate * excess * np.array(
                [np.prod(np.delete(x, l)) for l in range(len(x))]
            )
            path.append(b)
        return np.array(path)

    theory, layers, run = factors(start), network.layers(network.diagonal(*start[:, None])), []
    for _ in range(count):
        layers = network.step(layers)
        first, second = network.blocks(layers)[:2, 0, 0]
        run.append(first**2 - second**2)
    scale = max(of.s ** (2 / network.depth), np.abs(theory).max())
    away = 1 + 1e-9 * np.cos(np.arange(len(start)) ** 2)
    condition = np.abs(factors(start * away) - theory).max() / scale / 1e-9
    saved = saved_sides(point, "balance_law")
    return Redone(theory, np.array(run), scale, 10 + condition, "equal", *saved, steps=count)


@once
def doubling(point: Point) -> Redone:
    """Where the multiplier is -1: along the closed form, and along cycles that are searched for."""
    depth = network_of(point).depth

    def of_ratio(z: float) -> float:
        x, rate = point_power(z, depth) ** (1 / depth), scaled_rate(z, depth)
        return slope(x, depth, 1.0, rate) * slope(z * x, depth, 1.0, rate) + 1

    theory = scaled_rate(root(of_ratio, 1.05, 3.0), depth) / edge(depth, 1.0)

    def step(x: Any, rate: float) -> Any:
        return x - rate * (x**depth - 1) * x ** (depth - 1)

    def searched(ratio: float) -> float:
        rate = ratio * edge(depth, 1.0)
        # h(h(x)) - x has the lower point between the preimages of 0 and the minimum.
        x = root(lambda x: step(step(x, rate), rate) - x, 0.6, 0.95)
        return float(np.imag(step(step(x + 1j * TINY, rate), rate))) / TINY + 1

    run = root(searched, 1.2, 1.27)
    return Redone(theory, run, None, 5.0, "equal", *saved_sides(point, "doubling"), steps=2)


# Twice the edge ----------------------------------------------------------------------------------


CIRCLE = 20_011
"""Parts of the circle in which a start is given."""


def cosine(turns: Decimal) -> Decimal:
    """The cosine of so many turns, by its series."""

    # Machin's formula for pi.
    def inverse_tangent(x: int) -> Decimal:
        term = total = Decimal(1) / x
        k = 1
        while abs(term) > Decimal(10) ** -(DIGITS + 5):
            term /= -x * x
            k += 2
            total += term / k
        return total

    angle = 2 * turns * 4 * (4 * inverse_tangent(5) - inverse_tangent(239))
    term = total = Decimal(1)
    k = 0
    while abs(term) > Decimal(10) ** -(DIGITS + 5):
        k += 2
        term *= -angle * angle / (k * (k - 1))
        total += term
    return total


@once
def chebyshev_orbit(point: Point) -> Redone:
    """Cosines of tripled angles against the cubic recursion in 80 digits, and dense layers."""
    network, p = network_of(point), int(point.case["numerator"])
    s, count = float(network.values[0]), len(point.found["chebyshev_orbit_predicted"])
    with localcontext() as context:
        context.prec = DIGITS + 10
        size = (2 * Decimal(s)).sqrt()
        exact = [
            (-1) ** t * size * cosine(Decimal(pow(3, t, CIRCLE) * p % CIRCLE) / CIRCLE)
            for t in range(count)
        ]
        rho, orbit = exact[0], []
        for _ in range(count):
            orbit.append(rho)
            rho = 3 * rho - 2 * rho**3 / Decimal(s)
        apart = max(abs(a - b) for a, b in zip(exact, orbit, strict=True)) / size
        # Thirty tripled digits of eighty: whatever is left is no rounding of float64.
        assert apart < Decimal(10) ** -50, "the closed form is not the orbit"
        theory = np.array([float(value) for value in exact])
    layers, run = network.layers(network.diagonal([theory[0]])), []
    for _ in range(count):
        run.append(network.blocks(layers)[0, 0, 0])
        layers = network.step(layers)
    growth, grown = np.empty(count), 0.0
    for t in range(count):
        grown = 3 * grown + 1 / abs(np.sin(2 * np.pi * (pow(3, t, CIRCLE) * p % CIRCLE) / CIRCLE))
        growth[t] = np.sqrt(2 * s) * grown
    saved, saved_run = saved_sides(point, "chebyshev_orbit")
    # Both sides in units of what has become of a rounding a step.
    sides = (theory / growth, np.array(run) / growth, 1.0, 4.0, "equal")
    return Redone(*sides, saved / growth, saved_run / growth)


@once
def averages(point: Point) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss and mean of ln |h'| along each run from a uniform angle."""
    network, angles = network_of(point), np.asarray(point.case["angles"], float)
    s = float(network.values[0])
    rho = np.sqrt(2 * s) * np.cos(angles)
    losses, slopes = [], []
    for _ in range(AVERAGED):
        losses.append((rho**2 - s) ** 2 / 2)
        slopes.append(np.log(np.abs(1 - network.rate * (3 * rho**2 - s))))
        rho = rho - network.rate * (rho**2 - s) * rho
    return np.mean(losses, 0), np.mean(slopes, 0)


AVERAGED = 80
"""Steps of these runs."""


def student(draws: np.ndarray, mean: float) -> float:
    """Two-sided p-value of Student's test."""
    far = abs(draws.mean() - mean) / (draws.std(ddof=1) / np.sqrt(len(draws)))
    return float(2 * t_distribution.sf(far, len(draws) - 1))


def tested(
    point: Point, theory: float, draws: np.ndarray, name: str, saved: str
) -> list[Redone] | None:
    """The p-value of a mean, of draws made here and of those that were saved."""
    # In float32 rounding leaves the interval, and nothing is claimed.
    if point.flags["dtype"] == "float32":
        return None
    found = [-np.log10(max(student(each, theory), 1e-300)) for each in (draws, point.found[saved])]
    least = [Redone(0.0, value, 1.0, 1.0, "statistical", tolerance=7.5) for value in found]
    return [*least, saved_as(theory, point.found[name])]


def mean_loss(point: Point) -> list[Redone] | None:
    """``s^2 / 4``."""
    s = float(network_of(point).values[0])
    return tested(point, s**2 / 4, averages(point)[0], "mean_loss", "losses")


def lyapunov_exponent(point: Point) -> list[Redone] | None:
    """``ln 3``."""
    return tested(point, np.log(3.0), averages(point)[1], "lyapunov_exponent", "exponents")


# Two layers, two modes --------------------------------------------------------------------------


@once
def modes_of(point: Point) -> dict[str, Any] | None:
    """What a point of two modes says, if the first is beyond the edge."""
    c = point.case
    e, ratio = float(c["edge_ratio"]), float(c["mode_ratio"])
    if e <= 1:
        return None
    network = network_of(point)
    return {
        "network": network,
        "s": float(network.values[0]),
        "e": e,
        "q": e * ratio,
        "second": 1 + (e - 1) * ratio,
        "line": np.asarray(c["scaled"], float),
        "square": float(c["square"]),
        "errors": np.asarray(c["errors"], float),
    }


def at(of: dict[str, Any], first: float, second: float) -> SavedNetwork:
    """The network at these eta s_1 and eta s_2."""
    values = np.zeros_like(of["network"].values)
    rate = first / of["s"]
    values[:2] = of["s"], second / rate
    return SavedNetwork(of["network"].bases, values, rate)


def opened(e: float) -> float:
    """The z of two layers: ``z + 1/z = e + 1``."""
    return ((e + 1) + np.sqrt((e + 1) ** 2 - 4)) / 2


PLACES = [(0, 0, 1), (0, 1, 0), (1, 1, 0), (1, 0, 1)]
"""Entries of the pair: of W_1 and, transposed, of W_2."""


def pair_matrix(rhos: np.ndarray, network: SavedNetwork) -> np.ndarray:
    """One step of (a_12, a_21, c_12, c_21) by hand, W_1 = diag + a and W_2^T = diag + c."""
    (r, v), (s, w), eta = rhos, network.values[:2], network.rate
    E, F = r * r - s, v * v - w
    # E_12 = r a_12 + v c_21 and E_21 = v a_21 + r c_12.
    moves = np.array(
        [
            [r * r, 0, F, r * v],
            [0, v * v, r * v, E],
            [F, r * v, r * r, 0],
            [r * v, E, 0, v * v],
        ]
    )
    return np.eye(4) - eta * moves


def by_hand(network: SavedNetwork, rhos: np.ndarray) -> np.ndarray:
    """Trace, determinant and factor of the product in two steps."""
    whole = np.eye(4)
    for _ in range(2):
        whole = pair_matrix(rhos, network) @ whole
        rhos = rhos - network.rate * (rhos**2 - network.values[:2]) * rhos
    return split(whole)


def split(whole: np.ndarray) -> np.ndarray:
    """What is odd under the exchange of a and c, and what is even."""
    a, c = whole[:2, :2], whole[:2, 2:]
    odd, even = a - c, a + c
    return np.array([np.trace(odd), np.linalg.det(odd), np.trace(even) - 1])


def by_steps(network: SavedNetwork, rhos: np.ndarray) -> np.ndarray:
    """The same from dense steps."""
    columns = []
    for place in PLACES:
        errors = np.zeros((2, len(network.values), len(network.values)))
        errors[place] = 1.0
        pushed = network.push(network.diagonal(rhos), errors, 2)
        columns.append([pushed[p] for p in PLACES])
    return split(np.array(columns).T)


def resting_multipliers(point: Point) -> Redone | None:
    """Mode 1 on its cycle, mode 2 at rest."""
    if (of := modes_of(point)) is None:
        return None
    network = at(of, of["e"], of["q"])
    z = opened(of["e"])
    rhos = np.sqrt(np.array([1 / z / network.rate, network.values[1]]))
    theory, run = by_hand(network, rhos), by_steps(network, rhos)
    saved = saved_sides(point, "resting_multipliers")
    condition = 10 * (1 + 1 / (z - 1))
    return Redone(theory, run, max(1.0, np.abs(theory).max()), condition, "equal", *saved)


def both_phases(of: dict[str, Any], side: Any) -> np.ndarray:
    """A side for two modes on their cycles, in phase and in opposite phase."""
    network = at(of, of["e"], of["second"])
    z, v = opened(of["e"]), opened(of["second"])
    return np.array(
        [side(network, np.sqrt(np.array([1 / z, x]) / network.rate)) for x in (1 / v, v)]
    )


def oscillating_multipliers(point: Point) -> Redone | None:
    """Both modes on their cycles."""
    if (of := modes_of(point)) is None:
        return None
    theory, run = both_phases(of, by_hand), both_phases(of, by_steps)
    saved = saved_sides(point, "oscillating_multipliers")
    condition = 10 * (1 + 1 / (opened(of["second"]) - 1))
    return Redone(theory, run, max(1.0, np.abs(theory).max()), condition, "equal", *saved)


def radius(invariants: np.ndarray) -> float:
    """The largest multiplier."""
    trace, determinant, product = invariants
    return float(max(np.abs(np.roots([1, -trace, determinant])).max(), abs(product)))


def two_modes_unstable(point: Point) -> Redone | None:
    """One of them is above 1."""
    if (of := modes_of(point)) is None:
        return None
    run = np.array([radius(phase) for phase in both_phases(of, by_steps)])
    condition = 30 * (1 + 1 / (opened(of["second"]) - 1))
    if run.min() - 1 < 100 * condition * EPS:
        return None
    saved_run = point.found["oscillating_radius_measured"]
    return Redone(np.ones(2), run, None, 5.0, "at least", None, saved_run)


GRID = (np.linspace(1.02, 1.22, 6), np.linspace(0.4, 0.96, 8))
"""Of eta s_1 and s_2 / s_1."""
ERROR = ((1.0, 0.3), (-0.6, 0.8))
"""Of entries (1, 2) and (2, 1) of both layers."""
GRID_STEPS, TURN, CHANGE = 400, 1e-4, 5.0


def beside(blocks: np.ndarray, s: float) -> float:
    """Largest entry (1, 2) or (2, 1) of D and of the product."""
    D, product = (blocks[0] - blocks[1].T) / 2, blocks[1] @ blocks[0] / np.sqrt(s)
    return float(np.abs([D[0, 1], D[1, 0], product[0, 1], product[1, 0]]).max())


def vectors_stay(point: Point) -> Redone | None:
    """The side of the line, and whether a turned start is turned back."""
    if (of := modes_of(point)) is None:
        return None
    theory, run, judged = [], [], point.found["decided"] == 1
    for e in GRID[0]:
        for ratio in GRID[1]:
            network = at(of, e, e * ratio)
            blocks = network.diagonal(
                np.sqrt(np.array([1 / opened(e) / network.rate, network.values[1]]))
            )
            multiplier = radius(by_hand(network, np.diag(blocks[0])[:2]))
            turn = TURN * np.sqrt(of["s"]) * np.array(ERROR)
            blocks[:, 0, 1] += turn[:, 0]
            blocks[:, 1, 0] += turn[:, 1]
            layers = network.layers(blocks)
            first = beside(network.blocks(layers), of["s"])
            look = 2 * np.ceil(CHANGE / abs(np.log(multiplier)))
            for _ in range(int(min(look, GRID_STEPS))):
                layers = network.step(layers)
            theory.append(int(e + e * ratio < 2))
            run.append(int(beside(network.blocks(layers), of["s"]) < first))
    saved, saved_run = (side[judged] for side in saved_sides(point, "vectors_stay"))
    sides = (np.array(theory)[judged], np.array(run)[judged], 1.0, 1.0, "count")
    return Redone(*sides, saved, saved_run)


@once
def line(point: Point) -> tuple[np.ndarray, np.ndarray, float, dict[str, Any]] | None:
    """Squared size of D and a along an orbit on the line, by hand, and 2 + e - a at least."""
    of = modes_of(point)
    if of is None or abs(of["line"].sum() - 2) > 8 * point.epsilon:
        return None
    e = float(of["line"][0])
    most = max(of["square"], 4 * (1 + e) ** 3 / 27)
    if of["square"] >= 2 + e:
        return None
    network = at(of, *of["line"])
    layers = network.layers(
        network.diagonal(np.sqrt(np.array([of["square"] / network.rate, network.values[1]])))
    )
    d, sizes, squares = of["errors"], [], []
    for _ in range(len(point.found["line_growth"])):
        blocks = network.blocks(layers)
        sizes.append(float(np.sum(d**2)))
        squares.append(network.rate * blocks[0, 0, 0] * blocks[1, 0, 0])
        errors = np.zeros_like(blocks)
        errors[0, 0, 1], errors[0, 1, 0] = d
        errors[1, 1, 0], errors[1, 0, 1] = -d
        pushed = network.push(blocks, errors)
        d = np.array([pushed[0, 0, 1] - pushed[1, 1, 0], pushed[0, 1, 0] - pushed[1, 0, 1]]) / 2
        layers = network.step(layers)
    return np.array(sizes), np.array(squares), 2 + e - most, of


def line_conserved(point: Point) -> list[Redone] | None:
    """``||D||^2 / (2 + e - a)`` is what it was."""
    if (found := line(point)) is None:
        return None
    sizes, squares, least, of = found
    e = float(of["line"][0])
    start = sizes[0] / (2 + e - of["square"])
    run, steps = sizes / (2 + e - squares), len(sizes)
    theory = np.full(steps, start)
    condition = float((2 + e) / least * steps)
    saved = saved_sides(point, "line_conserved")
    return [
        Redone(theory, run, None, condition, "equal", *saved),
        Redone(
            np.zeros(steps),
            np.zeros(steps),
            1.0,
            condition,
            "zero",
            None,
            point.found["line_others"],
        ),
    ]


def line_bounded(point: Point) -> list[Redone] | None:
    """``ln ||D|| / ||D_0||`` between its bounds."""
    if (found := line(point)) is None:
        return None
    sizes, _, least, of = found
    e = float(of["line"][0])
    low, high = 0.5 * np.log(np.array([least, 2 + e]) / (2 + e - of["square"]))
    growth, condition = 0.5 * np.log(sizes / sizes[0]), (2 + e) / least * len(sizes)
    bounds, saved = point.found["line_bounds"], point.found["line_growth"]
    # A chaotic orbit forgets its start within some steps, so that the path is one's own.
    return [
        Redone(np.full_like(growth, low), growth, 1.0, condition, "at least"),
        Redone(np.full_like(growth, high), growth, 1.0, condition, "at most"),
        Redone(np.full_like(growth, low), saved, 1.0, condition, "at least"),
        Redone(np.full_like(growth, high), saved, 1.0, condition, "at most"),
        saved_as(np.array([low, high]), bounds, condition=condition),
    ]


# Any depth --------------------------------------------------------------------------------------


def pair_step(errors: np.ndarray, rhos: np.ndarray, network: SavedNetwork) -> np.ndarray:
    """One step of (e^l_12, e^l_21), by matrices of the two modes alone."""
    small = SavedNetwork(
        np.array([np.eye(2)] * (network.depth + 1)), network.values[:2], network.rate
    )
    blocks = np.zeros((network.depth, 2, 2))
    blocks[:, 0, 1], blocks[:, 1, 0] = errors.T
    pushed = small.push(small.diagonal(rhos), blocks)
    return np.stack([pushed[:, 0, 1], pushed[:, 1, 0]], axis=1)


def scalar_step(rhos: np.ndarray, network: SavedNetwork) -> np.ndarray:
    """One step of two balanced modes."""
    depth = network.depth
    return rhos - network.rate * (rhos**depth - network.values[:2]) * rhos ** (depth - 1)


def off_diagonal_step(point: Point) -> Redone | None:
    """Errors of a pair along its orbit: 2 x 2 layers, and dense ones."""
    if float(point.case["edge_ratio"]) <= 1:
        return None
    network, count = network_of(point), len(point.found["off_diagonal_step_predicted"])
    start, first = (np.asarray(point.case[n], float) for n in ("start", "errors"))

    def follow(start: np.ndarray) -> np.ndarray:
        rhos, errors, path = start, first, []
        for _ in range(count):
            errors, rhos = pair_step(errors, rhos, network), scalar_step(rhos, network)
            path.append(errors)
        return np.array(path)

    theory = follow(start)
    layers = network.layers(network.diagonal(start))
    blocks = np.zeros((network.depth, len(network.values), len(network.values)))
    blocks[:, 0, 1], blocks[:, 1, 0] = first.T
    run = []
    for _ in range(count):
        blocks = network.push(network.blocks(layers), blocks)
        layers = network.step(layers)
        run.append(np.stack([blocks[:, 0, 1], blocks[:, 1, 0]], axis=1))
    sizes = np.abs(theory).max((1, 2), keepdims=True)
    moved = follow(start * (1 + 1e-8 * np.array([1.0, -0.7])))
    condition = (np.abs(moved - theory) / sizes).max() / 1e-8
    saved, saved_run = (side / sizes for side in saved_sides(point, "off_diagonal_step"))
    sides = (theory / sizes, np.array(run) / sizes, 1.0, 10 + float(condition), "equal")
    return Redone(*sides, saved, saved_run, steps=count)


FLOOR, CEILING = 1e3, 1e-3
"""Between so many roundings and this size the growth of rounding is taken."""


def quotient_rate(network: SavedNetwork, rhos: np.ndarray) -> float:
    """The largest exponent modulo gauge: eigenvalues of two steps, in a complement of gauge."""
    depth = network.depth

    def matrix(rhos: np.ndarray) -> np.ndarray:
        units = np.eye(2 * depth).reshape(-1, depth, 2)
        return np.array([pair_step(unit, rhos, network).ravel() for unit in units]).T

    whole = matrix(scalar_step(rhos, network)) @ matrix(rhos)
    return float(np.log(quotient_radius(whole, rhos)) / 2)


def quotient_radius(whole: np.ndarray, rhos: np.ndarray) -> float:
    """The largest eigenvalue of two steps that return to rho, in a complement of gauge."""
    depth = len(whole) // 2
    turns = np.zeros((depth - 1, depth, 2))
    for l in range(depth - 1):
        turns[l, l], turns[l, l + 1] = (rhos[1], -rhos[0]), (-rhos[0], rhos[1])
    basis = np.linalg.qr(turns.reshape(depth - 1, -1).T, mode="complete")[0][:, depth - 1 :]
    return float(np.abs(np.linalg.eigvals(basis.T @ whole @ basis)).max())


def rounding_rate(point: Point) -> list[Redone] | None:
    """The exponent, and how rounding has left a run of one's own."""
    c = point.case
    if float(c["edge_ratio"]) <= 1 or point.flags["dtype"] == "float32":
        return None
    network, start = network_of(point), np.asarray(c["start"], float)
    depth, s = network.depth, float(network.values[0])
    rate = quotient_rate(network, start)
    z = ratio_of(depth, s, network.rate)
    low = (s * point_power(z, depth)) ** (1 / depth)
    stable = abs(slope(low, depth, s, network.rate) * slope(z * low, depth, s, network.rate)) < 1
    first, last = np.log(FLOOR) / rate, np.log(CEILING / EPS) / rate
    inside = [t for t in point.times if first <= t <= last]
    second = network.rate / edge(depth, float(network.values[1]))
    if not stable or second >= 1 or rate <= 0 or max(point.times) < last or len(inside) < 4:
        return None
    layers, beside = network.layers(network.diagonal(start)), []
    for t in range(inside[-1] + 1):
        if t in inside:
            product = network.product(layers)
            beside.append(np.abs(product - np.diag(np.diag(product))).max() / s)
        layers = network.step(layers)
    saved = point.found["beside"][[point.times.index(t) for t in inside]]
    slopes = [float(np.polyfit(inside, np.log(each), 1)[0]) for each in (beside, saved)]
    return [
        *(Redone(rate, mine, rate, 1.0, "limit", tolerance=0.1) for mine in slopes),
        saved_as(rate, point.found["rounding_rate"], condition=100.0),
    ]


def both_oscillate(point: Point) -> list[Redone] | None:
    """The largest multiplier of two modes on cycles of their own: 2 x 2 layers, and dense ones."""
    if float(point.case["edge_ratio"]) <= 1:
        return None
    first, ratio = network_of(point), float(point.flags["mode_ratio"])
    depth, s = first.depth, float(first.values[0])
    share = first.rate / edge(depth, s)
    # The second mode: its step is 1 + (eta / eta_c - 1) s_2 / s_1 times that of its own edge.
    power = 2 * (depth - 1) / depth
    second = s * ((1 + (share - 1) * ratio) / share) ** (1 / power)
    values = np.zeros_like(first.values)
    values[:2] = s, second
    network = SavedNetwork(first.bases, values, first.rate)
    ends = []
    for target in (s, second):
        z = ratio_of(depth, target, network.rate)
        low = (target * point_power(z, depth)) ** (1 / depth)
        ends.append((low, z * low))
    theory, run, saved = [], [], []
    for phase, other in enumerate(ends[1]):
        rhos = np.array([ends[0][0], other])
        theory.append(np.exp(2 * quotient_rate(network, rhos)))
        rows = []
        for unit in np.eye(2 * depth).reshape(-1, depth, 2):
            blocks = np.zeros((depth, len(values), len(values)))
            blocks[:, 0, 1], blocks[:, 1, 0] = unit.T
            pushed = network.push(network.diagonal(rhos), blocks, 2)
            rows.append(np.stack([pushed[:, 0, 1], pushed[:, 1, 0]], axis=1).ravel())
        run.append(quotient_radius(np.array(rows).T, rhos))
        saved.append(quotient_radius(np.asarray(point.found["oscillating_round"][phase]).T, rhos))
    apart = np.array(theory)
    if apart.min() - 1 <= 0.01:
        return None
    return [
        *(
            Redone(apart, np.array(mine), float(apart.max()), 1.0, "limit", tolerance=0.01)
            for mine in (run, saved)
        ),
        saved_as(apart, point.found["oscillating_radius"], condition=1e4),
    ]


# Blocks -----------------------------------------------------------------------------------------


def blocks_beyond_the_edge(point: Point) -> list[Redone] | None:
    """No entry outside of both blocks, and a bulk that is a multiple of the identity."""
    parts = [off_block(point), bulk(point)]
    # That nothing amplifies rounding across them is the claim.
    return [part._replace(condition=1.0) for part in parts if part is not None]


CLAIMS = {
    "two_cycle": {
        "two_cycle": two_cycle,
        "cycle_reached": cycle_reached,
        "cycle_multiplier": cycle_multiplier,
        "balance_factor": balance_factor,
        "balance_law": balance_law,
        "doubling": doubling,
    },
    "twice_the_edge": {
        "chebyshev_orbit": chebyshev_orbit,
        "mean_loss": mean_loss,
        "lyapunov_exponent": lyapunov_exponent,
    },
    "alignment": {
        "resting_multipliers": resting_multipliers,
        "oscillating_multipliers": oscillating_multipliers,
        "two_modes_unstable": two_modes_unstable,
        "vectors_stay": vectors_stay,
        "line_conserved": line_conserved,
        "line_bounded": line_bounded,
    },
    "any_depth": {
        "off_diagonal_step": off_diagonal_step,
        "rounding_rate": rounding_rate,
        "both_oscillate": both_oscillate,
    },
    "blocks": {"blocks_beyond_the_edge": blocks_beyond_the_edge},
}
"""Scenario -> claim -> both of its sides."""
DIVERGES = {"blocks": factorization_diverges}
"""Scenario -> whether the run of a point diverges, where nothing is claimed."""
