"""LoRA, DoRA, PiSSA and compressed Deep LoRA."""

from collections.abc import Callable, Iterable

import numpy as np

from referee import theorem2
from referee.descent import Layers, amplification, chain, descend
from referee.redone import Redone, largest, saved_sides
from referee.results import Point

SLOPES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda z: z,
    lambda z: 1 / (1 + np.exp(-z)),
    np.cos,
)
"""Derivatives of half the squares, of log(1 + exp), and of the sine."""
BENDS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    np.ones_like,
    lambda z: np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z))) ** 2,
    lambda z: -np.sin(z),
)
"""Their second derivatives."""


def rounding(point: Point, w: np.ndarray, bend: Callable[[np.ndarray], np.ndarray]) -> float:
    """Loss of digits of G at W by the rounding of ``W X - Y``, in units in the last place of 1."""
    x, y = point.case["inputs"], point.case["outputs"]
    lost = np.abs(bend(w @ x - y)) * (np.abs(w) @ np.abs(x) + np.abs(y))
    return float(np.max(lost @ np.abs(x).T))


def one_step(point: Point) -> Iterable[Redone]:
    """``-eta_A s^2 B B^T G - eta_B s^2 G A^T A + eta_A eta_B s^3 G A^T B^T G``, three losses."""
    c = point.case
    b, a, x, y, s = c["B"], c["A"], c["inputs"], c["outputs"], float(c["scale"])
    rate_a, rate_b = c["rates"]
    w = c["weight"] + s * b @ a
    for k, (slope, bend) in enumerate(zip(SLOPES, BENDS, strict=True)):
        errors = slope(w @ x - y)
        g = errors @ x.T
        terms = (
            -rate_a * s**2 * b @ (b.T @ g),
            -rate_b * s**2 * (g @ a.T) @ a,
            rate_a * rate_b * s**3 * (g @ a.T) @ (b.T @ g),
        )
        # In the factors: what B and A see of the data and of the errors.
        new_b = b - rate_b * s * errors @ (a @ x).T
        new_a = a - rate_a * s * (b.T @ errors) @ x.T
        # Terms of opposite signs are rounded by their sizes, not by their sum.
        size = np.max(sum(np.abs(term) for term in terms))
        lost = rounding(point, w, bend) / np.max(np.abs(g))
        scale = size * largest([1.0, lost]) + np.max(np.abs(s * b @ a))
        measured = s * new_b @ new_a - s * b @ a
        saved = (point.found["one_step_predicted"][k], point.found["one_step_measured"][k])
        yield Redone(sum(terms), measured, scale, 1.0, "equal", *saved)


def pissa_residual(point: Point) -> Redone:
    """The singular values of W beyond the r-th are those of what PiSSA freezes."""
    w, r = point.case["weight"], len(point.case["A"])
    left, values, right = np.linalg.svd(w)
    frozen = w - left[:, :r] * values[:r] @ right[:r]
    theory = np.pad(values[r:], (0, r))
    measured = np.linalg.svd(frozen, compute_uv=False)
    saved = saved_sides(point, "pissa_residual")
    # LAPACK's SVD drops each of n - 1 entries at up to 50 eps, where other claims lose 8.
    return Redone(theory, measured, values[0], 1 + (len(values) - 1) * 50 / 8, "equal", *saved)


def dora_step(point: Point) -> Iterable[Redone]:
    """``dB = s D G A^T``, ``dA = s B^T D G``, ``dm = diag(G V^T) / norms`` with constant norms."""
    c = point.case
    b, a, x, y, m = c["B"], c["A"], c["inputs"], c["outputs"], c["magnitude"]
    s = float(c["scale"])
    v = c["weight"] + s * b @ a
    norms = np.linalg.norm(v, axis=1)
    w = (m / norms)[:, None] * v
    for k, (slope, bend) in enumerate(zip(SLOPES, BENDS, strict=True)):
        errors = slope(w @ x - y)
        g = errors @ x.T
        scaled = (m / norms)[:, None] * g
        theory = [s * scaled @ a.T, s * b.T @ scaled, np.diag(g @ v.T) / norms]
        # Example by example: each adds its own outer product.
        of_b, of_a, of_m = np.zeros_like(b), np.zeros_like(a), np.zeros_like(m)
        for n in range(x.shape[1]):
            error, sample = m / norms * errors[:, n], x[:, n]
            of_b += s * np.outer(error, a @ sample)
            of_a += s * np.outer(b.T @ error, sample)
            of_m += errors[:, n] * (v @ sample) / norms
        formula, measured = flat(*theory), flat(of_b, of_a, of_m)
        lost = rounding(point, w, bend) / np.max(np.abs(g))
        scale = np.max(np.abs(formula)) * largest([1.0, lost])
        saved = (point.found["dora_step_predicted"][k], point.found["dora_step_measured"][k])
        yield Redone(formula, measured, scale, 1.0, "equal", *saved)


def flat(*parts: np.ndarray) -> np.ndarray:
    """All entries in a row."""
    return np.concatenate([np.ravel(part) for part in parts])


def zero_factors(point: Point) -> Redone:
    """Both factors 0: ``dB = G (A X)...`` and ``dA = B^T G`` have no entry that is not 0."""
    c = point.case
    errors = np.cos(c["weight"] @ c["inputs"] - c["outputs"])
    of_b = errors @ (0 * c["A"] @ c["inputs"]).T
    of_a = (0 * c["B"]).T @ errors @ c["inputs"].T
    measured = np.count_nonzero(of_b) + np.count_nonzero(of_a)
    saved = saved_sides(point, "zero_factors")
    return Redone(0, measured, 1.0, 1.0, "count", *saved)


COPIES = 4
"""How often the wider adapter has each row of A."""


def first_parts(point: Point) -> Iterable[tuple[int, np.ndarray, np.ndarray, float]]:
    """Loss, G, the errors of all examples, and what rounding loses of G; at W, where B = 0."""
    w, x, y = (point.case[name] for name in ("weight", "inputs", "outputs"))
    for k, (slope, bend) in enumerate(zip(SLOPES, BENDS, strict=True)):
        errors = slope(w @ x - y)
        g = errors @ x.T
        yield k, g, errors, largest([1.0, rounding(point, w, bend) / np.max(np.abs(g))])


def first_step(point: Point) -> Iterable[Redone]:
    """``- eta s^2 G A^T A``, whatever the rank: c times the rows of A, ``s / sqrt(c)``."""
    c = point.case
    a, x, s, rate = c["A"], c["inputs"], float(c["scale"]), c["rates"][1]
    wide, less = np.tile(a, (COPIES, 1)), s / np.sqrt(COPIES)
    for k, g, errors, lost in first_parts(point):
        theory = -rate * s**2 * (g @ a.T) @ a
        new_b = -rate * less * errors @ (wide @ x).T
        scale = np.max(np.abs(theory)) * lost
        saved = (point.found["first_step_predicted"][k], point.found["first_step_measured"][k])
        yield Redone(theory, less * new_b @ wide, scale, 1.0, "equal", *saved)


def first_adam(point: Point) -> Iterable[Redone]:
    """``- eta s sign(G A^T) A``, whatever the rank: c times the rows of A, ``s / c``."""
    c = point.case
    a, x, s, rate = c["A"], c["inputs"], float(c["scale"]), c["rates"][1]
    wide, less = np.tile(a, (COPIES, 1)), s / COPIES
    scale = rate * s * np.max(np.sum(np.abs(a), axis=0))
    for k, g, errors, lost in first_parts(point):
        seen = g @ a.T
        size = np.max(np.abs(g)) * lost * np.max(np.sum(np.abs(a), axis=1))
        coarse = float(np.finfo(point.found["first_adam_measured"].dtype).eps)
        if np.min(np.abs(seen)) <= 8 * sum(g.shape) * coarse * size:
            continue  # A sign that rounding decides.
        # Adam's first step is the gradient over its own size, entry by entry.
        of_b = less * errors @ (wide @ x).T
        new_b = -rate * of_b / np.sqrt(of_b**2)
        saved = (point.found["first_adam_predicted"][k], point.found["first_adam_measured"][k])
        yield Redone(
            -rate * s * np.sign(seen) @ a, less * new_b @ wide, scale, 1.0, "equal", *saved
        )


def around_pretrained(
    point: Point, centred: bool
) -> tuple[theorem2.FactorizationCase, np.ndarray] | None:
    """The run, and ``||f - f_C||_F``: the adapter of full width and the one of width 2r."""
    if (of := theorem2.setting_of(point)) is None:
        return None
    base = point.case["pretrained"]
    goal = base + of.target

    def trained(start: Layers, onto: np.ndarray, back: np.ndarray) -> np.ndarray:
        away = onto @ chain(start) @ back.T if centred else 0

        def residual(whole: np.ndarray) -> np.ndarray:
            return onto.T @ (base + onto @ whole @ back.T - away - goal) @ back

        path = descend(start, residual, of.rate, of.decay, of.times, chain)
        return np.array([onto @ whole @ back.T - away for whole in path])

    full = np.eye(len(base))
    frames = theorem2.frame(of.layers, of.target, of.rank)
    k = 2 * of.rank
    # In the frame of Theorem 2 the layers start as multiples of I.
    small = [s * np.eye(k) for s in of.scales]
    difference = trained(of.layers, full, full) - trained(
        small, frames[-1][:, :k], frames[0][:, :k]
    )
    return of, np.linalg.norm(difference, axis=(1, 2))


def deep_lora(point: Point) -> Redone | None:
    """``sqrt(d - 2r) prod |rho_l|`` apart at every step."""
    if (both := around_pretrained(point, False)) is None:
        return None
    of, measured = both
    theory = np.sqrt(of.bulk) * np.prod(np.abs(theorem2.rho(of)), axis=1)
    scale, condition = of_products(of)
    saved = saved_sides(point, "deep_lora")
    return Redone(theory, measured, scale, condition, "equal", *saved)


def deep_lora_centred(point: Point) -> Redone | None:
    """Not apart at all where both subtract their start."""
    if (both := around_pretrained(point, True)) is None:
        return None
    of, measured = both
    scale, _ = of_products(of)
    # Descent less the start on a target is descent on the target and the start.
    _, condition = of_products(of._replace(target=of.target + chain(of.layers)))
    saved = point.found["deep_lora_centred"]
    return Redone(0 * measured, measured, scale, condition, "zero", None, saved)


def of_products(of: theorem2.FactorizationCase) -> tuple[float, float]:
    """The size of what is subtracted, and by how much the product amplifies a disturbance."""
    run = lambda start: of.dense(start, chain)  # noqa: E731
    scale = largest([np.sqrt(len(of.target)) * np.prod(of.scales), np.linalg.norm(of.target)])
    return scale, amplification(run, of.layers, scale, run(of.layers))


def parameters(point: Point) -> Redone:
    """By shapes r (m + n) a matrix, r^2 more for Deep LoRA, 3 r^2 more compressed."""
    counted = []
    for width, inner, words, depth, positions in (
        (768, 3072, 28996, 12, False),
        (768, 3072, 28996, 12, True),
        (384, 1536, 30522, 6, False),
    ):
        layer = [(width, width)] * 4 + [(inner, width), (width, inner)]
        shapes = layer * depth + [(words, width), (width, width)]
        shapes += [(512, width)] if positions else []
        # r = 8: r (m + n), and r^2 or 3 r^2 more for each matrix.
        plain = sum(8 * (m + n) for m, n in shapes)
        each = [len(shapes), plain, plain + 64 * len(shapes), plain + 192 * len(shapes)]
        counted.append(each)
    counts = np.array(counted)
    return Redone(counts, counts, 1.0, 1.0, "count", *saved_sides(point, "parameters"))


CLAIMS = {
    "one_step": {
        "one_step": one_step,
        "pissa_residual": pissa_residual,
        "dora_step": dora_step,
        "zero_factors": zero_factors,
        "first_step": first_step,
        "first_adam": first_adam,
    },
    "compressed": {"deep_lora": deep_lora, "deep_lora_centred": deep_lora_centred},
    "counts": {"parameters": parameters},
}
"""Scenario -> claim -> both of its sides."""
DIVERGES = {"compressed": theorem2.factorization_diverges}
"""Scenario -> whether the run of a point diverges, where nothing is claimed."""
