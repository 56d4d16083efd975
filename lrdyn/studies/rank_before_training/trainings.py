"""What is known before a training, the training, and how well the one predicts the other.

Of every matrix of the blocks the rank r that holds .9 of the squared norm is taken, of what is
known at the start and of the update of full training at the end. All matrices of a network have one
smaller side, so that no correlation comes from their shapes.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn import networks
from lrdyn.core.spectra import effective_rank
from lrdyn.data import language
from lrdyn.diagnosis.spectrum import values_of
from lrdyn.diagnosis.updates import rank_with
from lrdyn.networks import mean_pooled
from lrdyn.networks.llama_network import llama
from lrdyn.studies.adapter_training import sentences, tasks
from lrdyn.studies.adapter_training.sentences import Examples
from lrdyn.studies.over_seeds import first_lost, restrict_to
from lrdyn.studies.pictures import spread_out
from lrdyn.studies.rank_before_training.layers import inputs_of, matrices_of
from lrdyn.studies.rank_before_training.prediction import (
    mean_of_kind,
    predict_ranks,
    spearman,
    without_kind,
)
from lrdyn.training import Batches, train
from lrdyn.training.keeping import Keeper
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Finding, Outcome, Scenario

SHARE = 0.9
"""Share of the squared norm that a rank holds, as ``lrdyn diagnose`` has it."""
PREDICTORS = {
    "weights": "of W at the start",
    "gradient": "of the gradient of one batch",
    "gradients": "of the mean gradient of k batches",
    "adam": "of Adam's step from the same k gradients",
    "activations": "of the centred inputs of the matrix, k batches",
    "kind": "of the updates of its kind in the other blocks",
    "pilot": "of the update after a tenth of the training",
}
"""Number that may tell the rank of an update -> whose rank it is."""
BEFORE = ("weights", "gradient", "gradients", "adam", "activations")
"""Those that are known before the training. Beside them stand two that are not, for comparison."""
BETTER = 0.5
"""Correlation that the pilot was expected to exceed, from seed 0: the instrument sees something."""
PILOT = 10
WINDOWS = 64
"""Windows of a text that a model is tested on."""
EPS = 1e-8
"""Of Adam."""
WARMUP = 0.05


class TrainingCase(NamedTuple):
    """A network with what it is trained on before, and what it is then tuned on."""

    key: Key[Array, ""]
    net: PyTree
    pretraining: tuple[Batches, int, float] | None
    """Batches, steps and rate; None of a network that comes trained."""
    tuning: Batches
    steps: int
    rule: optax.GradientTransformation
    loss: Callable[[PyTree, PyTree], Float[Array, ""]]
    """``loss(net, batch)``."""
    tested: PyTree
    """A batch that is not trained on."""
    select: Callable[[str], bool]
    """Which matrices are looked at."""
    gradients: int
    """k."""


class RanksMeasured(NamedTuple):
    """Ranks of all matrices, and how well those of an update were predicted."""

    rank: Int[np.ndarray, "matrix"] = ABSENT
    """Smallest r that holds .9 of the squared norm of the update."""
    known: Float[np.ndarray, "predictor matrix"] = ABSENT
    """What may tell it, in the order of :data:`PREDICTORS`."""
    effective: Float[np.ndarray, "matrix"] = ABSENT
    """Effective rank of the update."""
    known_effective: Float[np.ndarray, "predictor matrix"] = ABSENT
    """Effective ranks of what may tell it."""
    correlation: Float[np.ndarray, "predictor"] = ABSENT
    """Spearman's correlation over the matrices."""
    effective_correlation: Float[np.ndarray, "predictor"] = ABSENT
    """The same of effective ranks."""
    within_kind: Float[np.ndarray, "predictor"] = ABSENT
    """The same of what is left of log r when its mean over the blocks is subtracted for each kind
    of matrix: whether blocks are told apart, and not queries from perceptrons alone."""
    gain: Float[np.ndarray, "predictor"] = ABSENT
    """Share of the error of the best constant rank that is saved."""
    p: Float[np.ndarray, "predictor"] = ABSENT
    """Of a permutation of the matrices, of this seed alone."""
    tested_loss: Float[np.ndarray, "moment"] = ABSENT
    """Loss on what was not trained on, at the start and at the end."""
    smaller_side: Int[np.ndarray, ""] = ABSENT
    """min(m, n) of every matrix."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """Step at which a training was lost, -1 if none was."""


# The networks ----------------------------------------------------------------------------------


def _windows_of(text: language.Text, context: int, batch: int) -> tuple[Batches, np.ndarray]:
    """Windows of a text to train on, from any token on, and others to test on."""
    span = np.arange(context + 1)[None]

    def take(tokens: Any, starts: Any) -> Any:
        return tokens[starts[:, None] + span]

    count = len(text.training) - context
    held_out = language.windows(text.validation, context)
    tested = held_out[spread_out(WINDOWS, len(held_out))]
    return Batches(text.training, batch, take=take, count=count), tested.astype(np.int32)


read_text = lru_cache(maxsize=4)(language.read_text)


def next_token_loss(net: Any, windows: Int[Array, "batch length_plus_1"]) -> Float[Array, ""]:
    """Mean cross-entropy of the tokens of windows, each behind those before it."""
    windows = jnp.asarray(windows, jnp.int32)
    logits = net(windows[:, :-1])
    return networks.cross_entropy(logits.reshape(-1, logits.shape[-1]), windows[:, 1:].ravel())


def make_language(optimizer: str) -> Callable[..., TrainingCase]:
    """Make the function that draws a LLaMA which learns one text, and is then tuned on another.

    Args:
        optimizer: of the tuning, ``adam`` or ``sgd``.
    """

    def make(
        key: Key[Array, ""],
        *,
        text: str,
        tuned_on: str,
        width: int,
        depth: int,
        heads: int,
        context: int,
        batch: int,
        steps: int,
        tuning_steps: int,
        gradients: int,
    ) -> TrainingCase:
        net_key, key = jax.random.split(key)
        net = llama(
            net_key,
            vocabulary=language.BYTES,
            width=width,
            depth=depth,
            heads=heads,
            # The usual 8/3 of the width, a gated perceptron having three matrices.
            hidden=-(-8 * width // 3),
        )
        learned, _ = _windows_of(read_text(text), context, batch)
        tuning, tested = _windows_of(read_text(tuned_on), context, batch)
        rule = optax.adam if optimizer == "adam" else optax.sgd
        return TrainingCase(
            key=key,
            net=net,
            pretraining=(learned, steps, RATES["pretraining"]),
            tuning=tuning,
            steps=tuning_steps,
            rule=_falling(rule, RATES[optimizer], tuning_steps),
            loss=next_token_loss,
            tested=tested,
            select=lambda path: path.startswith("blocks."),
            gradients=gradients,
        )

    return make


RATES = {"pretraining": 3e-3, "adam": 1e-3, "sgd": 0.3, "encoder": 1e-4}
"""Largest rates; those of the tuning lie below that of the first training, as is usual."""


def _falling(
    rule: Callable[[Any], optax.GradientTransformation], rate: float, steps: int
) -> optax.GradientTransformation:
    """A rate that rises in a line and falls as a cosine."""
    rises = max(1, round(WARMUP * steps))
    last = max(steps, rises + 1)
    # Not from 0: the first step would be none.
    return rule(optax.warmup_cosine_decay_schedule(rate / rises, rate, rises, last))


class _Scorer(eqx.Module):
    """An encoder without its tables, and the head that reads the mean over the tokens."""

    model: Any
    head: Float[Array, "width"]

    def __call__(self, batch: Examples) -> Float[Array, "batch"]:
        above = self.model.above(batch.hidden, batch.mask, 0)
        return mean_pooled(above, batch.mask) @ self.head


def squared_error(net: _Scorer, batch: Examples) -> Float[Array, ""]:
    """Mean of (f - score)^2 over a batch."""
    return jnp.mean((net(batch) - batch.scores) ** 2)


def make_encoder(
    key: Key[Array, ""],
    *,
    encoder: str,
    text_file: str,
    data_dir: str = "",
    encoder_batch: int,
    length: int,
    sentences_learned: int,
    tuning_steps: int,
    gradients: int,
) -> TrainingCase:
    """A pretrained encoder that learns the sentiment of sentences, all of its layers."""
    head_key, key = jax.random.split(key)
    pretrained = sentences.read(sentences.folder_of(encoder))
    texts = tasks.read_sentiment(text_file, data_dir)
    parts = tasks.parts_of(len(texts.scores), 2 * WINDOWS, own_test=False)
    precision = jnp.zeros(()).dtype
    learned, tested = (
        sentences.encode(pretrained, texts, rows, length=length, layer=0, precision=precision)
        for rows in (parts["train"][:sentences_learned], parts["test"])
    )
    centre = jnp.mean(learned.scores)
    learned, tested = (part._replace(scores=part.scores - centre) for part in (learned, tested))
    model = sentences.upper_layers(pretrained.model, precision)
    head = 0.02 * jax.random.normal(head_key, model.embeddings.norm.gain.shape)
    # The pooler is not read: it has no gradient.
    model = eqx.tree_at(lambda m: m.pooler, model, None, is_leaf=lambda x: x is None)
    return TrainingCase(
        key=key,
        net=_Scorer(model, head),
        pretraining=None,
        tuning=Batches(learned, min(encoder_batch, len(learned.scores))),
        steps=tuning_steps,
        rule=_falling(optax.adam, RATES["encoder"], tuning_steps),
        loss=squared_error,
        tested=tested,
        select=lambda path: path.startswith("model.layers."),
        gradients=gradients,
    )


# What is measured -------------------------------------------------------------------------------


class Ranks(NamedTuple):
    """Two ranks of a matrix."""

    share: int
    """Smallest r with .9 of the squared norm."""
    effective: float


def ranks_of(matrix: Float[np.ndarray, "m n"]) -> Ranks:
    """The rank that holds .9 of the squared norm, and the effective rank; 1 of zeros.

    Example:
        >>> ranks_of(np.diag([3.0, 1.0, 1e-9]))[0]
        1
    """
    values = values_of(np.asarray(matrix, np.float64))
    if not values[0] > 0:
        return Ranks(1, 1.0)
    return Ranks(rank_with(values, SHARE) or 1, float(effective_rank(jnp.asarray(values))))


def known_before(
    net: PyTree,
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    batches: list[PyTree],
    select: Callable[[str], bool],
) -> dict[str, dict[str, np.ndarray]]:
    """Matrices that are known before a training: what each is of -> path -> matrix.

    Args:
        net: the network at its start.
        loss: ``loss(net, batch)``.
        batches: k batches, of which the first alone gives ``gradient``.
        select: takes the path of a matrix.
    """
    arrays, rest = eqx.partition(net, eqx.is_inexact_array)

    @jax.jit
    def look(arrays: PyTree, batch: PyTree) -> tuple[dict[str, Array], dict[str, Array]]:
        def of_batch(arrays: PyTree) -> Float[Array, ""]:
            return loss(eqx.combine(arrays, rest), batch)

        whole = eqx.combine(arrays, rest)
        inputs = inputs_of(whole, lambda net: loss(net, batch), select)
        centred = {p: X - jnp.mean(X, axis=1, keepdims=True) for p, X in inputs.items()}
        # The eigenvalues of X X^T over its rows: as large as the matrix is, however many tokens.
        grams = {path: X @ X.T for path, X in centred.items()}
        return matrices_of(jax.grad(of_batch)(arrays), select), grams

    found = [jax.device_get(look(arrays, batch)) for batch in batches]
    weights = {path: np.asarray(W) for path, W in matrices_of(net, select).items()}
    result: dict[str, dict[str, np.ndarray]] = {name: {} for name in BEFORE}
    for path, W in weights.items():
        slopes = np.array([gradients[path] for gradients, _ in found], np.float64)
        mean = slopes.mean(axis=0)
        result["weights"][path] = W
        result["gradient"][path] = slopes[0]
        result["gradients"][path] = mean
        result["adam"][path] = mean / (np.sqrt((slopes**2).mean(axis=0)) + EPS)
        gram = np.sum([grams[path] for _, grams in found], axis=0, dtype=np.float64)
        sizes, vectors = np.linalg.eigh(gram)
        result["activations"][path] = np.sqrt(np.maximum(sizes, 0)) * vectors
    return result


def measure_ranks(case: TrainingCase, keeper: Keeper) -> RanksMeasured:
    """Train, and compare the ranks of the updates with what was known before."""

    def loss(net: PyTree, state: None, batch: PyTree, key: Any) -> Any:
        return case.loss(net, batch), (None, {})

    first_key, key = jax.random.split(case.key)
    net, lost = case.net, []
    if case.pretraining is not None:
        batches, steps, rate = case.pretraining
        rule = _falling(optax.adam, rate, steps)
        run = train(
            first_key,
            loss,
            net,
            rule,
            batches,
            (steps,),
            record=lambda net, state: jnp.zeros(()),
            keeper=keeper,
            name="first training",
        )
        net = run.params
        lost.append(run.diverged_at)
    order = case.tuning.order(key, 0)
    count = max(1, min(case.gradients, case.tuning.epoch))
    batches = [
        jax.device_get(case.tuning.at(case.tuning.data, order, step)) for step in range(count)
    ]
    known = known_before(net, case.loss, batches, case.select)
    pilot = max(1, case.steps // PILOT)
    run = train(
        key,
        loss,
        net,
        case.rule,
        case.tuning,
        tuple(sorted({pilot, case.steps})),
        record=lambda net, state: matrices_of(net, case.select),
        keeper=keeper,
        name="tuning",
    )
    lost.append(run.diverged_at)
    start, paths = known["weights"], list(known["weights"])
    updates = {
        path: np.asarray(run.records[path], np.float64)[[0, -1]] - start[path] for path in paths
    }
    known["pilot"] = {path: update[0] for path, update in updates.items()}
    end = [ranks_of(np.nan_to_num(updates[path][1])) for path in paths]
    kinds = [kind_of_path(path) for path in paths]
    test = eqx.filter_jit(case.loss)
    return RanksMeasured(
        **_compare(known, end, paths, kinds),
        tested_loss=np.array([float(test(state, case.tested)) for state in (net, run.params)]),
        smaller_side=np.asarray(min(start[paths[0]].shape)),
        diverged_at=np.asarray(first_lost(lost)),
    )


def kind_of_path(path: str) -> str:
    """What a matrix is, whichever block it is of.

    Example:
        >>> kind_of_path("blocks.2.mlp.up"), kind_of_path("model.layers.0.mlp.weights.1")
        ('mlp.up', 'mlp.weights.1')
    """
    words = path.split(".")
    first = next(place for place, word in enumerate(words) if word.isdigit())
    return ".".join(words[first + 1 :])


def _compare(
    known: Mapping[str, Mapping[str, np.ndarray]],
    end: list[Ranks],
    paths: list[str],
    kinds: list[str],
) -> dict[str, np.ndarray]:
    """Ranks of what is known and of the update, and how well the one predicts the other."""
    measured: dict[str, np.ndarray] = {}
    for place, (name, said) in enumerate((("rank", "known"), ("effective", "known_effective"))):
        ranks = np.array([found[place] for found in end], float)
        rows = [
            mean_of_kind(ranks, kinds)
            if predictor == "kind"
            else np.array([ranks_of(known[predictor][path])[place] for path in paths], float)
            for predictor in PREDICTORS
        ]
        found = [
            predict_ranks(row[None], ranks[None], fit=predictor != "kind")
            for row, predictor in zip(rows, PREDICTORS, strict=True)
        ]
        measured[name], measured[said] = ranks, np.stack(rows)
        correlations = np.array([one.correlation for one in found])
        if name == "effective":
            measured["effective_correlation"] = correlations
        else:
            measured |= {
                "correlation": correlations,
                "within_kind": np.array(
                    [spearman(without_kind(row, kinds), without_kind(ranks, kinds)) for row in rows]
                ),
                "gain": np.array([one.gain for one in found]),
                "p": np.array([one.p for one in found]),
            }
    measured["rank"] = measured["rank"].astype(int)
    return measured


# What is said of it -----------------------------------------------------------------------------

RanksOutcome = Outcome[Any, RanksMeasured]


def _entry(field: Callable[[RanksMeasured], np.ndarray], place: int) -> Any:
    return lambda outcome: field(outcome.measured)[:, place]


def _findings(cell: str) -> tuple[Finding[Any, RanksMeasured], ...]:
    """Correlation and gain of each number of a cell."""
    findings: list[Finding[Any, RanksMeasured]] = []
    for place, (name, words) in enumerate(PREDICTORS.items()):
        expected: dict[str, Any] = {"above": BETTER} if name == "pilot" else {"against": 0.0}
        findings += [
            Finding(
                f"{cell}_{name}",
                f"rank correlation over matrices: r {words} with r of the update",
                _entry(lambda run: run.correlation, place),
                reads=lambda theory, run: (run.correlation,),
                rest="equal steps",
                **expected,
            ),
            Finding(
                f"{cell}_{name}_gain",
                f"share of the error of one rank for all that r {words} saves",
                _entry(lambda run: run.gain, place),
                reads=lambda theory, run: (run.gain,),
                against=0.0,
                rest="equal steps",
            ),
        ]
    findings.append(
        Finding(
            f"{cell}_learned",
            "loss at the end of the tuning over that at its start, on what is not trained on",
            lambda outcome: outcome.measured.tested_loss[:, 1] / outcome.measured.tested_loss[:, 0],
            reads=lambda theory, run: (run.tested_loss,),
            below=1.0,
            rest="equal steps",
        )
    )
    return tuple(findings)


LANGUAGE, DESCENT, ENCODER = "language", "language_sgd", "bert"
CELLS = (LANGUAGE, DESCENT, ENCODER)


def _scenario(
    cell: str, make: Callable[..., TrainingCase]
) -> Scenario[TrainingCase, Any, RanksMeasured]:
    return Scenario[TrainingCase, Any, RanksMeasured](
        cell,
        make,
        train=measure_ranks,
        measured=RanksMeasured,
        findings=_findings(cell),
        narrow=partial(restrict_to, cell, flag="cell"),
        diverged=lambda run: run.diverged_at,
        seeds=5,
    )


TRAININGS = (
    _scenario(LANGUAGE, make_language("adam")),
    _scenario(DESCENT, make_language("sgd")),
    _scenario(ENCODER, make_encoder),
)
