"""Studies that train, measure or draw something else than they say: a test notices each.

``python -m tests.faults.wrong_studies`` puts one wrong line at a time into a copy of the tree and
runs the test that holds the numbers of that part. Words choose some: ``... wrong_studies dropout``.
Nothing here says what is right: the numbers are those that were there once.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.mutants.running import MADE
from tests.runs import ROOT

STUDIES = "lrdyn/studies/"
UPDATES, DROPOUT, ADAPTERS = (
    STUDIES + name for name in ("weight_updates/", "dropout_spectra/", "adapter_training/")
)


class Wrong(NamedTuple):
    """One wrong place, and the test that is to notice it."""

    what: str
    file: str
    before: str
    after: str
    test: str
    """Which passes without it."""


NUMBERS = "tests/test_study_numbers.py"
SMALL = "tests/test_adapter_training.py::test_the_study_and_its_figures"
BLOCK = "tests/test_networks.py"
OWN_RATES = (
    "tests/test_adapter_training.py::test_ranks_are_trained_at_their_own_rates_and_at_the_first"
)


def trained(name: str) -> str:
    """The tiny training of that name."""
    return f"{NUMBERS}::test_a_tiny_training_leaves_the_numbers_that_are_kept[{name}]"


def found(study: str) -> str:
    """What its findings are made of."""
    return f"{NUMBERS}::test_findings_are_made_of_arrays_as_they_were[{study}]"


def drawn(figure: str) -> str:
    """The numbers of a figure and its caption."""
    return f"{NUMBERS}::test_figures_are_made_of_results_as_they_were[{figure}]"


WRONG = (
    Wrong(
        "the accuracy on test images is that on training images",
        UPDATES + "classifiers.py",
        "run.params, case.images.test_inputs[tested], case.images.test_labels[tested], run.state",
        "run.params, inputs, labels, run.state",
        trained("vgg"),
    ),
    Wrong(
        "batches are not shuffled",
        "lrdyn/training/batches.py",
        'np.argsort(drawn, kind="stable")',
        "np.arange(len(drawn))",
        trained("perceptron"),
    ),
    Wrong(
        "the least probable class counts",
        STUDIES + "pictures.py",
        "np.argmax(evaluate",
        "np.argmin(evaluated",
        trained("perceptron"),
    ),
    Wrong(
        "pixels are ten times as large",
        STUDIES + "pictures.py",
        "pixels.astype(precision) / 255",
        "pixels.astype(precision) / 25.5",
        trained("perceptron"),
    ),
    Wrong(
        "VGG takes plain descent",
        STUDIES + "pictures.py",
        "return optax.adam(RATE)",
        "return optax.sgd(RATE)",
        trained("vgg"),
    ),
    Wrong(
        "the rate does not rise and fall",
        STUDIES + "pictures.py",
        "return optax.adam(falling)",
        "return optax.adam(RATE)",
        trained("residual_network"),
    ),
    Wrong(
        "the perceptron has another activation",
        UPDATES + "classifiers.py",
        "activation=jax.nn.relu",
        "activation=jax.numpy.tanh",
        trained("perceptron"),
    ),
    Wrong(
        "VGG has no hidden layer",
        UPDATES + "classifiers.py",
        "hidden=(512,)",
        "hidden=()",
        trained("vgg"),
    ),
    Wrong(
        "labels are not shuffled",
        UPDATES + "updates.py",
        "return labels[np.asarray(order)]",
        "return labels",
        trained("perceptron"),
    ),
    Wrong(
        "the update is that since the end",
        UPDATES + "classifiers.py",
        "update_spectrum(penultimate(net) - before",
        "update_spectrum(penultimate(net)",
        trained("vision_transformer"),
    ),
    Wrong(
        "the first K directions are counted",
        UPDATES + "classifiers.py",
        "2 * case.images.classes",
        "case.images.classes",
        trained("perceptron"),
    ),
    Wrong(
        "the Gaussian matrix is the update",
        UPDATES + "updates.py",
        "update_spectrum(gaussian_like(key, after - before), directions)",
        "update_spectrum(after - before, directions)",
        trained("perceptron"),
    ),
    Wrong(
        "values that moved are counted from the other side",
        UPDATES + "updates.py",
        "> 0.01 * jnp.max(end)",
        "< 0.01 * jnp.max(end)",
        trained("linear_network"),
    ),
    Wrong(
        "the effective rank is that at the start",
        UPDATES + "updates.py",
        "outcome.measured.effective_rank[:, -1]",
        "outcome.measured.effective_rank[:, 0]",
        found("weight_updates"),
    ),
    Wrong(
        "the share on shuffled labels is added",
        UPDATES + "updates.py",
        "run.share[..., last] - run.share_shuffled[..., last]",
        "run.share[..., last] + run.share_shuffled[..., last]",
        found("weight_updates"),
    ),
    Wrong(
        "VGG, ResNet start at another deviation",
        "lrdyn/networks/residual_network.py",
        'np.sqrt((2 - path.startswith("head")) / inputs)',
        'np.sqrt((1 - path.startswith("head") / 2) / inputs)',
        trained("residual_network"),
    ),
    Wrong(
        "one mask hides entries of both parts of a block",
        "lrdyn/networks/vision_transformer.py",
        "apply_dropout(self.mlp(self.second(hidden)), rate, mlp_key)",
        "dropped(self.mlp(self.second(hidden)), rate, attention_key)",
        f"{BLOCK}::test_a_block_of_a_vision_transformer_hides_other_entries_of_each_part",
    ),
    Wrong(
        "spectra with dropout are of training data",
        DROPOUT + "synthetic.py",
        "net.features(case.held_inputs)",
        "net.features(case.inputs)",
        trained("dropout_perceptron"),
    ),
    Wrong(
        "what dropout misses is measured on training data",
        DROPOUT + "synthetic.py",
        "run.params(case.held_inputs) - case.held_target",
        "(run.params(case.inputs) - case.target)[:, : case.held_target.shape[1]]",
        trained("dropout_linear"),
    ),
    Wrong(
        "ResNet's spectra with dropout are of training images",
        DROPOUT + "residual.py",
        "read(jnp.asarray(test_inputs), net)",
        "read(jnp.asarray(inputs[: len(test_inputs)]), net)",
        trained("dropout_residual"),
    ),
    Wrong(
        "ResNet's accuracy with dropout is of training images",
        DROPOUT + "residual.py",
        "accuracy(run.params, test_inputs, test_labels, run.state)",
        "accuracy(run.params, inputs, labels, run.state)",
        trained("dropout_residual"),
    ),
    Wrong(
        "dropout hides as much without dropout",
        DROPOUT + "activations.py",
        'train(0.0, "without dropout")',
        'train(dropout, "without dropout")',
        trained("dropout_perceptron"),
    ),
    Wrong(
        "dropout's spectra are balanced the other way round",
        DROPOUT + "activations.py",
        "jnp.where(alive, columns, 0.0) / jnp.where(alive, rows, 1.0)",
        "jnp.where(alive, rows, 0.0) / jnp.where(alive, columns, 1.0)",
        trained("dropout_linear"),
    ),
    Wrong(
        "dropout's limit is that of another strength",
        DROPOUT + "synthetic.py",
        "dropout_strength(1 - case.dropout, width)",
        "dropout_strength(case.dropout, width)",
        trained("dropout_linear"),
    ),
    Wrong(
        "the drop with dropout has the other sign",
        DROPOUT + "activations.py",
        "plain_rank(outcome.measured)[:, -1] - rank(outcome.measured)[:, -1]",
        "rank(outcome.measured)[:, -1] - plain_rank(outcome.measured)[:, -1]",
        found("dropout_spectra"),
    ),
    Wrong(
        "LoRA+ has another ratio",
        ADAPTERS + "cells.py",
        "guess=-7, ratio=4.0",
        "guess=-7, ratio=8.0",
        SMALL,
    ),
    Wrong(
        "Deep LoRA is tried at LoRA's rates",
        ADAPTERS + "cells.py",
        "deep_lora(depth=3, init_scale=eps), guess=-5",
        "deep_lora(depth=3, init_scale=eps), guess=-6",
        trained("few_shot"),
    ),
    Wrong(
        "Deep LoRA has two factors",
        ADAPTERS + "cells.py",
        "deep_lora(depth=3, init_scale=eps)",
        "deep_lora(depth=2, init_scale=eps)",
        trained("few_shot"),
    ),
    Wrong(
        "LoRA from N(0, 1) starts as the other",
        ADAPTERS + "cells.py",
        "adapter.A * np.sqrt(adapter.A.shape[1])",
        "adapter.A",
        SMALL,
    ),
    Wrong(
        "rates are chosen on what is reported",
        ADAPTERS + "few_shot.py",
        'cells.seed_of_rates(place), part="rate_")',
        "cells.seed_of_rates(place))",
        trained("few_shot"),
    ),
    Wrong(
        "the worst rate is chosen",
        ADAPTERS + "rates.py",
        "return max(scores, key",
        "return min(scores, key",
        trained("few_shot"),
    ),
    Wrong(
        "the best rate may lie on the edge",
        ADAPTERS + "rates.py",
        "while best() in (min(scores), max(scores)) and",
        "while False and",
        trained("few_shot"),
    ),
    Wrong(
        "adapters are tested on texts that were trained on",
        ADAPTERS + "cells.py",
        'self.ground.pearson(self.with_head(begun.head), added, f"{part}test")',
        'self.ground.pearson(self.with_head(begun.head), added, "rate_test")',
        trained("few_shot"),
    ),
    Wrong(
        "Figure 4 is tested on texts that were trained on",
        ADAPTERS + "tasks.py",
        '(dev if name == "test" else train, parts[name])',
        '(train, parts["train"] if name == "test" else parts[name])',
        SMALL,
    ),
    Wrong(
        "the rate does not fall",
        ADAPTERS + "tuning.py",
        "optax.linear_schedule(rate, 0.0, steps)",
        "optax.constant_schedule(rate)",
        trained("few_shot"),
    ),
    Wrong(
        "scores are not less their mean",
        ADAPTERS + "cells.py",
        "scores - jnp.mean(scores[rows])",
        "scores",
        trained("few_shot"),
    ),
    Wrong(
        "norms of A and B change places",
        ADAPTERS + "factors.py",
        "norm_B=np.stack([run.norms[..., 0]",
        "norm_B=np.stack([run.norms[..., 1]",
        trained("factors"),
    ),
    Wrong(
        "LoRA+ ahead has the other sign",
        ADAPTERS + "factors.py",
        'pearson[:, COMPARED.index(method)] - pearson[:, COMPARED.index("lora")]',
        'pearson[:, COMPARED.index("lora")] - pearson[:, COMPARED.index(method)]',
        found("adapters"),
    ),
    Wrong(
        "the fall with r has the other sign",
        ADAPTERS + "ranks.py",
        "return at_last - at_first",
        "return at_first - at_last",
        found("adapters"),
    ),
    Wrong(
        "all ranks have their own rate",
        ADAPTERS + "ranks.py",
        "(chosen.rate, best[0].rate)",
        "(chosen.rate, chosen.rate)",
        OWN_RATES,
    ),
    Wrong(
        "the rank that is used is LoRA's for both",
        ADAPTERS + "few_shot.py",
        "partial(_mean_rank, method=method, examples=64)",
        'partial(_mean_rank, method="lora", examples=64)',
        found("adapters"),
    ),
    Wrong(
        "an energy of half counts",
        ADAPTERS + "cells.py",
        "share: float = 0.99",
        "share: float = 0.5",
        trained("few_shot"),
    ),
    Wrong(
        "Figure 4's frame is that of the matrix itself",
        ADAPTERS + "singular_value_evolution.py",
        "(start, slope, case.rank)",
        "(start, W, case.rank)",
        SMALL,
    ),
    Wrong(
        "Figure 4's descent is ten times as fast",
        ADAPTERS + "cells.py",
        "falling = optax.linear_schedule(rate, 0.0, steps)",
        "falling = optax.linear_schedule(10 * rate, 0.0, steps)",
        SMALL,
    ),
    Wrong(
        "Figure 4's angles are of what does not move",
        ADAPTERS + "singular_value_evolution.py",
        "angles = np.where(moved, ",
        "angles = np.where(~moved, ",
        found("adapters"),
    ),
    Wrong(
        "seed 0 counts",
        "paper_figs/shared.py",
        "run.sel(seed=run.seed[run.seed > 0])",
        "run",
        drawn("fig01"),
    ),
    Wrong(
        "Figure 1 shows shares of the first step",
        "paper_figs/fig01_weight_updates.py",
        "over_steps.values[-1]",
        "over_steps.values[1]",
        drawn("fig01"),
    ),
    Wrong(
        "Figure 2 shows squares of distances",
        "paper_figs/fig02_dropout_spectra.py",
        "np.sqrt(np.mean((spectra.values - limit.values) ** 2, axis=(1, 2)))",
        "np.mean((spectra.values - limit.values) ** 2, axis=(1, 2))",
        drawn("fig02"),
    ),
    Wrong(
        "Figure 5 takes the first rates for the toy",
        "paper_figs/fig05_lora_factors.py",
        "A_SIDE, B_SIDE = 0, 1",
        "A_SIDE, B_SIDE = 1, 0",
        SMALL,
    ),
    Wrong(
        "Figure 8 shows what remains to 1 of the ridge's correlation",
        "paper_figs/fig08_ranks.py",
        '"ridge": run(lambda run: run.ridge),',
        '"ridge": 1 - run(lambda run: run.ridge),',
        SMALL,
    ),
    Wrong(
        "Figure 7 shows the largest rank that is used",
        "lrdyn/studies/adapter_training/cells.py",
        "np.where(moved, ranks, 0).sum(axis=-1)",
        "count * np.where(moved, ranks, 0).max(axis=-1)",
        drawn("fig07"),
    ),
)


def copied(folder: Path) -> Path:
    """A copy of the tree."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=lambda _, names: [n for n in names if n in MADE])
    return tree


def noticed(tree: Path, wrong: Wrong) -> bool:
    """Whether its tests fail with one wrong place."""
    path = tree / wrong.file
    text = path.read_text()
    if wrong.before not in text:
        raise ValueError(f"{wrong.file}: got no {wrong.before!r}, which was to be replaced")
    words = ["-q", "-x", "-p", "no:cacheprovider", wrong.test]
    path.write_text(text.replace(wrong.before, wrong.after))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.write_text(text)
    if done.returncode not in (0, 1):
        raise ValueError(
            f"{wrong.what}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}"
        )
    return done.returncode == 1


def main(words: list[str]) -> int:
    """Try each; 1 if something wrong is not noticed."""
    chosen = [one for one in WRONG if all(word in f"{one.what} {one.file}" for word in words)]
    alive = []
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        for one in chosen:
            seen = noticed(tree, one)
            alive += [] if seen else [one.what]
            print(f"{'noticed' if seen else 'NOT NOTICED'}: {one.what}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} wrong studies are noticed")
    return int(bool(alive))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
