"""Make deep_factorization_5x5.json: gradient descent on a 5 x 5 factorisation in 50 digits.

Run ``python tests/data/make_deep_factorization_5x5.py``; it needs mpmath and a second. d = 5,
r = 2, L = 3, a scale and a weight decay per layer. All inputs are finite decimals: the starts are
products of rotations with cosine 3/5 and sine 4/5, the target a product of integer matrices
over 100. The bulk direction comes from 4 x 4 minors, singular values from mpmath's Jacobi SVD, the
gradient is written by hand; nothing here knows the recursion of Theorem 2 but the last assertion.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpmath import eye, matrix, mp, mpf, nstr, svd_r

mp.dps = 50
DIM, STEPS, RECORDED = 5, 40, (0, 1, 2, 5, 10, 20, 40)
ETA = mpf("0.1")
SCALES = [mpf("0.5"), mpf("0.9"), mpf("0.7")]
DECAYS = [mpf("0.03"), mpf("0"), mpf("0.01")]
PLANES = [
    [(0, 1), (1, 2), (2, 3), (3, 4), (0, 3)],
    [(2, 4), (0, 2), (1, 3), (1, 4), (0, 4)],
    [(1, 4), (0, 3), (2, 3), (0, 1), (2, 4)],
]
LEFT = matrix([[9, 1], [-4, 6], [2, -7], [0, 5], [3, 3]])
RIGHT = matrix([[5, -2, 0, 4, 1], [1, 6, -3, 2, -5]])
TARGET = LEFT * RIGHT / 100


def rotation(planes: list[tuple[int, int]]) -> Any:
    """Product of plane rotations by the angle of the 3-4-5 triangle."""
    result = eye(DIM)
    for i, j in planes:
        turn = eye(DIM)
        turn[i, i] = turn[j, j] = mpf(3) / 5
        turn[i, j], turn[j, i] = -mpf(4) / 5, mpf(4) / 5
        result = turn * result
    return result


def step(weights: Sequence[Any]) -> tuple[Any, list[Any]]:
    """1/2 ||W_3 W_2 W_1 - Phi||_F^2, and the layers after a step on it with decay."""
    A, B, C = weights
    error = C * B * A - TARGET
    slopes = (C * B).T * error, C.T * error * A.T, error * (B * A).T
    steps = zip(weights, slopes, DECAYS, strict=True)
    after = [(1 - ETA * decay) * W - ETA * slope for W, slope, decay in steps]
    return sum(x**2 for x in error) / 2, after


def orthogonal_to(rows: Any) -> Any:
    """Unit vector orthogonal to 4 rows of length 5: signed 4 x 4 minors."""
    vector = matrix(DIM, 1)
    for j in range(DIM):
        minor = matrix([[rows[i, k] for k in range(DIM) if k != j] for i in range(DIM - 1)])
        vector[j] = (-1) ** j * mp.det(minor)
    return vector / mp.norm(vector)


def bulk_directions(weights: Sequence[Any]) -> list[Any]:
    """v_1 orthogonal to row(Phi) and W(0)^T col(Phi); v_{l+1} = W_l(0) v_l / eps_l."""
    pulled = LEFT.T * weights[2] * weights[1] * weights[0]
    rows = matrix(4, DIM)
    rows[:2, :], rows[2:, :] = RIGHT, pulled
    directions = [orthogonal_to(rows)]
    for W, scale in zip(weights, SCALES, strict=True):
        directions.append(W * directions[-1] / scale)
    return directions


def text(x: Any, digits: int = 30) -> Any:
    """A number as it is stored, or what a matrix or list has of them."""
    if isinstance(x, matrix | list):
        return [text(part, digits) for part in (x.tolist() if isinstance(x, matrix) else x)]
    return nstr(x, digits, strip_zeros=True)


def main() -> None:
    weights = [scale * rotation(planes) for scale, planes in zip(SCALES, PLANES, strict=True)]
    directions = bulk_directions(weights)
    start, records, predicted = weights, [], SCALES
    for t in range(STEPS + 1):
        rho = [(directions[i + 1].T * W * directions[i])[0] for i, W in enumerate(weights)]
        assert all(abs(a - b) < mpf(10) ** -45 for a, b in zip(rho, predicted, strict=True))
        loss, following = step(weights)
        if t in RECORDED:
            values = [sorted(svd_r(W, compute_uv=False), reverse=True) for W in weights]
            record = {"loss": loss, "rho": rho, "singular_values": values, "weights": weights}
            records.append({"step": t} | {name: text(value) for name, value in record.items()})
        a, b, c = predicted
        others = (b * c) ** 2, (a * c) ** 2, (a * b) ** 2
        predicted = [
            x * (1 - ETA * decay - ETA * other)
            for x, decay, other in zip(predicted, DECAYS, others, strict=True)
        ]
        weights = following
    exact = {
        "learning_rate": ETA,
        "weight_decay": DECAYS,
        "scales": SCALES,
        "target": TARGET,
        "weights": start,
    }
    inputs = {"rank": 2} | {name: text(value, 50) for name, value in exact.items()}
    inputs["bulk_direction"] = text(list(directions[0]))
    out = Path(__file__).with_name("deep_factorization_5x5.json")
    out.write_text(
        json.dumps({"digits": mp.dps, "inputs": inputs, "records": records}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
