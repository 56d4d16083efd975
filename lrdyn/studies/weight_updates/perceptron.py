"""A multilayer perceptron (Example 2.1 of the survey) on images, beside one on shuffled labels."""

import jax
import optax
from jaxtyping import Array, Key

from lrdyn.data import Images
from lrdyn.engine.statement import Finding, Scenario
from lrdyn.networks import MLP, mlp
from lrdyn.studies.over_seeds import only
from lrdyn.studies.weight_updates import trained
from lrdyn.studies.weight_updates.classify import Classifier, classifier, measure_classifier


def make_mlp(
    key: Key[Array, ""], *, flat_data: str, examples: int, mlp_width: int, mlp_depth: int,
    mlp_rate: float, mlp_epochs: int, batch_size: int,
) -> Classifier:  # fmt: skip
    """Layers of one width, ReLU, plain descent on mini-batches."""

    def draw(key: Key[Array, ""], found: Images) -> MLP:
        sizes = (found.train_inputs[0].size, *[mlp_width] * (mlp_depth - 1), found.classes)
        return mlp(key, sizes, activation=jax.nn.relu)

    return classifier(
        key, draw, data=flat_data, examples=examples, batch=batch_size, epochs=mlp_epochs,
        optimizer=optax.sgd(mlp_rate), shuffled=True,
    )  # fmt: skip


PERCEPTRON = Scenario[Classifier](
    "mlp", make_mlp, measure=measure_classifier,
    claims=(trained.share_claim("mlp", 0.9, "0.9956"),),
    controls=(trained.share_control("mlp"),),
    dims=trained.DIMS,
    narrow=lambda settings: only("mlp", settings),
    diverged="diverged_at", trains=True, seeds=4,
    findings=(
        *trained.findings("mlp"),
        Finding("mlp_shuffled",
                "share of the top 2K directions, less that of a training on shuffled labels",
                lambda one: one.measured["share_end"] - one.measured["share_shuffled"],
                reads=("share_end", "share_shuffled"),
                above=0.0),
    ),
)  # fmt: skip
