"""What Theorem 4 trains, with gradients by hand: matrices, a perceptron, a transformer block.

A function takes parameters, in the order in which they are saved, and data. It returns the loss and
for each parameter the derivative: of a vector as it is, of a matrix as errors E and inputs X, of
which it is ``E X^T``. So a matrix can be an :class:`AdaptedLayer`, whose factors are trained.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class AdaptedLayer(NamedTuple):
    """A matrix with an adapter beside it, ``W x + B (A x)``."""

    weight: np.ndarray
    B: np.ndarray
    A: np.ndarray

    def __matmul__(self, inputs: np.ndarray) -> np.ndarray:
        """``W X + B (A X)``."""
        return self.weight @ inputs + self.B @ (self.A @ inputs)

    @property
    def T(self) -> "AdaptedLayer":
        """The transposed layer, ``W^T + A^T B^T``."""
        return AdaptedLayer(self.weight.T, self.A.T, self.B.T)


class Slope(NamedTuple):
    """The derivative in a matrix, ``E X^T``."""

    errors: np.ndarray
    inputs: np.ndarray


Parameters = Sequence[Any]
Slopes = list[Any]
Loss = Callable[[Parameters, Sequence[np.ndarray]], tuple[float, Slopes]]


def regression(parameters: Parameters, data: Sequence[np.ndarray]) -> tuple[float, Slopes]:
    """``1/2 ||W X - Y||_F^2``."""
    (W,), (X, Y) = parameters, data
    errors = W @ X - Y
    return float(np.sum(errors**2)) / 2, [Slope(errors, X)]


def logistic(parameters: Parameters, data: Sequence[np.ndarray]) -> tuple[float, Slopes]:
    """Mean cross-entropy of ``softmax(W X)`` and the classes Y, one-hot."""
    (W,), (X, Y) = parameters, data
    shares = softmax(W @ X)
    loss = -np.sum(np.log(np.sum(shares * Y, axis=0)))
    return float(loss) / X.shape[1], [Slope((shares - Y) / X.shape[1], X)]


def softmax(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """``exp z_i / sum exp z``."""
    # Less the largest, against overflow: the shares stay as they are.
    powers = np.exp(scores - scores.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def mlp(parameters: Parameters, data: Sequence[np.ndarray]) -> tuple[float, Slopes]:
    """``||W_2 tanh(W_1 X + b_1) + b_2 - Y||_F^2 / 2n``."""
    (W_1, W_2, b_1, b_2), (X, Y) = parameters, data
    hidden = np.tanh(W_1 @ X + b_1[:, None])
    distance = W_2 @ hidden + b_2[:, None] - Y
    errors = distance / X.shape[1]
    before = (W_2.T @ errors) * (1 - hidden**2)
    slopes = [Slope(before, X), Slope(errors, hidden), before.sum(1), errors.sum(1)]
    return float(np.sum(distance * errors)) / 2, slopes


# A transformer --------------------------------------------------------------------------------


def transformer(parameters: Parameters, data: Sequence[np.ndarray]) -> tuple[float, Slopes]:
    """``W_U LN H_2``, ``H_2 = H_1 + MLP(LN H_1)``, ``H_1 = H_0 + Attention(LN H_0)``.

    ``H_0 = W_E X``, a token a column. Half the squared distance to Y, the mean over examples and
    tokens.
    """
    W_E, W_Q, W_K, W_V, W_O, W_1, W_2, b_1, b_2, g_1, c_1, g_2, c_2, g_3, c_3, W_U = parameters
    examples = data[0].shape[0]
    X, Y = (np.moveaxis(array, 1, 0).reshape(array.shape[1], -1) for array in data)
    H_0 = W_E @ X
    N_1, back_1 = normalised(H_0, g_1, c_1)
    mixed, back_mixed = attention(W_Q @ N_1, W_K @ N_1, W_V @ N_1, examples)
    H_1 = H_0 + W_O @ mixed
    N_2, back_2 = normalised(H_1, g_2, c_2)
    before = W_1 @ N_2 + b_1[:, None]
    hidden, bend = gelu(before)
    H_2 = H_1 + W_2 @ hidden + b_2[:, None]
    N_3, back_3 = normalised(H_2, g_3, c_3)
    distance = W_U @ N_3 - Y
    # Backwards; a letter with _ is the derivative of the loss in it.
    errors = distance / X.shape[1]
    H_2_, g_3_, c_3_ = back_3(W_U.T @ errors)
    before_ = (W_2.T @ H_2_) * bend
    more, g_2_, c_2_ = back_2(W_1.T @ before_)
    H_1_ = H_2_ + more
    Q_, K_, V_ = back_mixed(W_O.T @ H_1_)
    more, g_1_, c_1_ = back_1(W_Q.T @ Q_ + W_K.T @ K_ + W_V.T @ V_)
    of_attention = [Slope(Q_, N_1), Slope(K_, N_1), Slope(V_, N_1), Slope(H_1_, mixed)]
    of_mlp = [Slope(before_, N_2), Slope(H_2_, hidden), before_.sum(1), H_2_.sum(1)]
    of_norms = [g_1_, c_1_, g_2_, c_2_, g_3_, c_3_]
    first, last = Slope(H_1_ + more, X), Slope(errors, N_3)
    value = float(np.sum(distance * errors)) / 2
    return value, [first, *of_attention, *of_mlp, *of_norms, last]


def normalised(
    hidden: np.ndarray, gain: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """``g (h - mean) / sqrt(variance + 1e-5) + c`` of each column, and its derivatives."""
    centred = hidden - hidden.mean(0)
    spread = np.sqrt((centred**2).mean(0) + 1e-5)
    unit = centred / spread

    def back(errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        of_unit = gain[:, None] * errors
        along = (of_unit * unit).mean(0)
        return (
            # Mean and spread depend on the column: their parts are taken off.
            (of_unit - of_unit.mean(0) - unit * along) / spread,
            (errors * unit).sum(1),
            errors.sum(1),
        )

    return gain[:, None] * unit + bias[:, None], back


def attention(
    Q: np.ndarray, K: np.ndarray, V: np.ndarray, examples: int
) -> tuple[np.ndarray, Callable[[np.ndarray], tuple[np.ndarray, ...]]]:
    """``V softmax(K^T Q / sqrt(size))`` of the tokens of each example, and its derivatives."""
    apart = lambda array: np.stack(np.split(array, examples, axis=1))  # noqa: E731
    together = lambda arrays: np.concatenate(list(arrays), axis=1)  # noqa: E731
    q, k, v = apart(Q), apart(K), apart(V)
    root = np.sqrt(len(Q))
    shares = softmax(k.mT @ q / root, axis=1)

    def back(errors: np.ndarray) -> tuple[np.ndarray, ...]:
        e = apart(errors)
        of_shares = v.mT @ e
        # The derivative of softmax: diag(p) - p p^T.
        of_scores = shares * (of_shares - (shares * of_shares).sum(1, keepdims=True)) / root
        return together(k @ of_scores), together(q @ of_scores.mT), together(e @ shares.mT)

    return together(v @ shares), back


def gelu(before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``, and its derivative."""
    root = np.sqrt(2 / np.pi)
    bent = np.tanh(root * (before + 0.044715 * before**3))
    slope = root * (1 + 3 * 0.044715 * before**2)
    return before / 2 * (1 + bent), (1 + bent) / 2 + before / 2 * (1 - bent**2) * slope


LOSSES: dict[str, tuple[Loss, tuple[str, ...]]] = {
    "regression": (regression, ("",)),
    "logistic": (logistic, ("",)),
    "mlp": (mlp, (".weights.0", ".weights.1", ".biases.0", ".biases.1")),
    "transformer": (
        transformer,
        (
            ".embedding",
            *(f".attention.{name}" for name in ("query", "key", "value", "output")),
            *(f".mlp.{name}" for name in ("weights.0", "weights.1", "biases.0", "biases.1")),
            *(f".norms.{k}.{name}" for k in range(3) for name in ("gain", "bias")),
            ".unembedding",
        ),
    ),
}
"""Problem -> loss, and the names of its parameters behind ``params``."""
