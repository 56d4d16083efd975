"""Pairs of checkpoints: a small model is trained, and its weights stay as they were on the way.

Each word of the command line trains one kind of model, and writes its matrices W(t) before the
first step and behind every stage, a file of safetensors each. Of two of these files
``lrdyn verify real_updates --before A --after B`` and ``lrdyn diagnose A B`` ask how many singular
values of the update W(t) - W(0) hold how much of its energy ||W(t) - W(0)||_F^2.
"""

import re
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lrdyn import cli, data, networks
from lrdyn.commands.arguments import Parser, fraction_reader, integer_reader, parse_folder
from lrdyn.commands.diagnose import user_files
from lrdyn.data import encoder, guarded, tensors
from lrdyn.networks import MLP, Attention, Bert, LayerNorm, Tokens, attention, mean_pooled
from lrdyn.networks.weights import draw_weights
from lrdyn.studies import pictures
from lrdyn.studies.adapter_training import sentences, tasks, tuning
from lrdyn.studies.weight_updates import classifiers
from lrdyn.system import whole_files
from lrdyn.system.printer import complain, say
from lrdyn.training import Batches, train
from lrdyn.training.keeping import Forgetful

HELD_OUT = 20  # one part in so many of a text, its end, is not trained on
WINDOWS, SENTENCES = 256, 500  # that are tested, at most
IMAGES = 128  # of a mini-batch
RATE, TUNING_RATE, WARMUP = 1e-3, 3e-4, 0.05
SIZES = {
    "mlp": {"mlp_width": 512, "mlp_depth": 4, "mlp_rate": 0.1},
    "vgg": {"vgg_layers": "16", "vgg_norm": "yes"},
    "resnet": {"resnet_width": 16},
    "vit": {"vit_patch": 4, "vit_width": 128, "vit_depth": 6, "vit_heads": 4},
}
DEVIATION = 0.02  # of the language model's weights at the start, as GPT-2 has it


class Telling(Forgetful):
    """Says once in half a minute how far a training is."""

    def __init__(self):
        self.last = time.monotonic()

    def tell(self, moment, name):
        if time.monotonic() - self.last >= 30:
            self.last, loss = time.monotonic(), moment.metrics["loss"]
            complain(f"{name}: step {moment.step:,} of {moment.steps:,}, loss {loss:.4g}")


def trained(name, key, loss, model, rule, batches, steps, state=None):
    """Train, and refuse weights that are lost."""
    how = {"state": state, "name": name, "keeper": Telling()}
    # By default all weights are recorded.
    how["record"] = lambda model, state: jnp.zeros(())
    run = train(key, loss, model, rule, batches, (steps,), **how)
    if (step := int(run.diverged_at)) >= 0:
        raise cli.BadInput(f"{name}: got a loss that is lost at step {step}, wanted a lower rate")
    return run


def adam(rate, steps):
    """Return Adam whose rate rises in a line, then falls as a cosine."""
    rises = max(1, round(WARMUP * steps))
    last = max(steps, rises + 1)
    # Not from 0: the first step would be none.
    return optax.adam(optax.warmup_cosine_decay_schedule(rate / rises, rate, rises, last))


def write(place, name, model):
    """Write the matrices of a model, a kernel as out x (in k k)."""
    # Kinds of layers are told by words between dots, and a glob takes brackets for a choice.
    dots, weights = str.maketrans("[", ".", "]"), {}
    for path, W in networks.matrices(model).items():
        weights[re.sub(r"\[(\d+)\]$", r"_\1", path).translate(dots)] = W
    with user_files("FOLDER", "a folder that can be written to"):
        whole_files.make_folder(Path(place), below=Path(place))
        tensors.write(Path(place, f"{name}.safetensors"), weights)


class Block(eqx.Module):
    """H_1 + MLP(LN(H_1)), H_1 = H + Attention(LN(H)); no byte looks at a later one."""

    first: LayerNorm
    attention: Attention
    second: LayerNorm
    mlp: MLP

    def __call__(self, hidden: Float[Array, "width columns"], sequences: int):
        mask = attention.causal(hidden.shape[1] // sequences)
        hidden = hidden + self.attention(self.first(hidden), sequences=sequences, mask=mask)
        return hidden + self.mlp(self.second(hidden))


class LanguageModel(eqx.Module):
    """Logits of the next byte, W_U LN(H_depth), H_0 = W_E[bytes] + P."""

    embedding: Float[Array, "256 width"]
    positions: Float[Array, "1 context width"]  # of three axes: P is no matrix of weights
    blocks: tuple[Block, ...]
    norm: LayerNorm
    unembedding: Float[Array, "256 width"]

    def __call__(self, text: Int[Array, "batch length"]) -> Float[Array, "batch length 256"]:
        hidden = self.embedding[text.astype(jnp.int32)] + self.positions[:, : text.shape[1]]
        hidden = hidden.reshape(-1, hidden.shape[-1]).T  # in ``lrdyn.networks`` tokens are columns
        for block in self.blocks:
            hidden = block(hidden, len(text))
        return (self.unembedding @ self.norm(hidden)).T.reshape(*text.shape, 256)


def language_model(key, *, width, depth, heads, context):
    """Draw a language model: Gaussian weights, gains 1, biases 0."""

    def build(key):  # shapes alone count here
        zeros, square, table = (jnp.zeros((*rows, width)) for rows in ((), (width,), (256,)))
        norm, wide = LayerNorm(zeros, zeros), jnp.zeros((4 * width, width))
        mlp = MLP((wide, wide.T), (jnp.zeros(4 * width), zeros), jax.nn.gelu)
        block = Block(norm, Attention(*[square] * 4, heads=heads), norm, mlp)
        positions = jnp.zeros((1, context, width))
        return LanguageModel(table, positions, (block,) * depth, norm, table)

    return draw_weights(key, build, lambda path, inputs: DEVIATION)


def bits(net, windows):
    """Compute the bits per byte that a model needs for all bytes of windows but the first."""
    logits, labels = net(windows[:, :-1]), windows[:, 1:].astype(jnp.int32)
    return networks.cross_entropy(logits.reshape(-1, 256), labels.ravel()) / np.log(2)


@eqx.filter_jit
def bits_of_many(net, windows):
    """Compute them some windows at a time."""
    return jnp.mean(jax.lax.map(lambda one: bits(net, one[None]), windows, batch_size=32))


def read_text(flag, path, context, batch):
    """Read the bytes of a file: batches of windows to train on, and windows to test on."""
    with user_files(flag, "a text"):
        text = np.frombuffer(guarded.content(Path(path), most=2**30), np.uint8)
    if len(text) < (least := HELD_OUT * (context + 1 + batch)):
        wanted = f"{least} or more, for windows of {context + 1}"
        raise cli.BadInput(f"{flag}: got {len(text)} bytes, wanted {wanted}")
    length, window = len(text) - len(text) // HELD_OUT, np.arange(context + 1)[None]

    def take(text, starts):
        return text[starts[:, None] + window]

    ends = np.arange(length, len(text) - context, context)
    tested = take(text, ends[pictures.spread_out(WINDOWS, len(ends))])
    return Batches(text[:length], batch, take=take, count=length - context), tested


def language(options):
    """Train a language model on one text, then on another."""
    with user_files("--heads"):
        attention.check_heads(options.width, options.heads)
    files = {"--text": options.text, "--tuned-on": options.tuned_on}
    sizes = options.context, options.batch
    text, tuned = (read_text(flag, path, *sizes) for flag, path in files.items())
    keys = jax.random.split(jax.random.key(options.seed), 3)
    shape = {name: vars(options)[name] for name in ("width", "depth", "heads", "context")}

    def leave(name, net):
        write(options.folder, name, net)
        found = [f"{bits_of_many(net, tested):.4f}" for _, tested in (text, tuned)]
        say(f"{name}: {found[0]} bits per byte at the end of --text, {found[1]} of --tuned-on")
        return net

    def loss(net, state, batch, key):
        return bits(net, batch), (state, {})

    net = leave("start", language_model(keys[0], **shape))
    for name, key, (batches, _), steps, rate in (
        ("text", keys[1], text, options.steps, RATE),
        ("tuned", keys[2], tuned, options.tuning_steps, TUNING_RATE),
    ):
        run = trained(name, key, loss, net, adam(rate, steps), batches, steps)
        net = leave(name, run.params)


def drawn_classifier(options):
    """Draw one of the networks of Figure 1, as the study ``weight_updates`` trains it."""
    name, key = options.network, jax.random.key(options.seed)
    how = {f"{name}_epochs": options.epochs, "batch_size": IMAGES, **SIZES[name]}
    how |= {"data_dir": options.data_dir, "examples": options.examples}
    if name == "mlp":
        return classifiers.make_mlp(key, flat_data=options.data, **how)
    make = getattr(classifiers, f"make_{name}")
    how |= {"data": options.data, "warmup": WARMUP, "augment": "yes"}
    return make(key, shuffled_epochs=1, **how)  # no such training is made here


def images(options):
    """Train a classifier of images, which are moved and mirrored but for the perceptron."""
    with user_files("--data-dir", "images"):
        case = drawn_classifier(options)
    found, net = case.images, case.net
    chosen = pictures.spread_out(options.examples, len(found.train_labels))
    inputs, labels = found.train_inputs[chosen], found.train_labels[chosen].astype(np.int32)
    write(options.folder, "start", net)
    batches = Batches({"x": inputs, "y": labels}, min(case.batch, len(inputs)))
    steps = options.epochs * batches.epoch
    loss = pictures.augmented_cross_entropy if case.augment else pictures.cross_entropy
    state = networks.initial_state(net) or None
    run = trained(options.network, case.key, loss, net, case.rule(steps), batches, steps, state)
    write(options.folder, "trained", run.params)
    chosen = pictures.spread_out(pictures.TESTED, len(found.test_labels))
    tested = found.test_inputs[chosen], found.test_labels[chosen]
    right = pictures.accuracy(run.params, *tested, run.state)
    say(f"accuracy on {len(chosen):,} images that are not trained on: {right:.4f}")


def tune(options):
    """Train all weights of a pretrained encoder on scored sentences, below a head that stays."""
    with user_files("--encoder", "an encoder"):
        pretrained = encoder.read(sentences.folder_of(options.encoder))
    with user_files("--text-file", "scored sentences"):
        texts = tasks.read_sentiment(options.text_file, options.data_dir)
        words = encoder.tokens(pretrained.tokenizer, texts.first, length=options.length)
        pretrained.model.embeddings.check(words)
    parts = tasks.parts_of(len(texts.scores), SENTENCES, own_test=False)
    learned = parts["train"][: options.examples]
    if (count := len(learned)) < tuning.BATCH:
        wanted = f"{tuning.BATCH} or more beside those that are tested"
        raise cli.BadInput(f"--examples: got {count} sentences, wanted {wanted}")
    words = Tokens(*(x[:, : np.count_nonzero(words.mask.any(axis=0))] for x in words))
    scores = texts.scores.astype(np.float32)
    # Without the pooler, which a mean over the tokens does not read.
    model = Bert(pretrained.model.embeddings, pretrained.model.layers, None)
    head_key, key = jax.random.split(jax.random.key(options.seed))
    head = tuning.HEAD * jax.random.normal(head_key, model.embeddings.norm.gain.shape)
    bias = float(np.mean(scores[learned]))

    def loss(model, state, batch, key):
        tokens, scores = batch
        outputs = mean_pooled(model(tokens), tokens.mask) @ head + bias
        return jnp.mean((outputs - scores) ** 2), (state, {})

    def examples(rows):
        return Tokens(*(x[rows] for x in words)), scores[rows]

    def leave(name, model):
        write(options.folder, name, model)
        tokens, known = examples(parts["test"])
        outputs = networks.sentence_vectors(model, tokens) @ np.asarray(head)
        found = np.corrcoef(outputs, known)[0, 1]
        say(f"{name}: correlation {found:.4f} on {len(known)} sentences that are not trained on")

    leave("start", model)
    rule = tuning.adam(options.steps)(options.rate)
    batches = Batches(examples(learned), tuning.BATCH)
    leave("tuned", trained("encoder", key, loss, model, rule, batches, options.steps).params)


def parser():
    """Describe the command line."""
    root = Parser("pairs", "Train a small model, and keep its weights before and after.")
    words = root.add_subparsers(dest="WORD", required=True)

    def word(name, run, **numbers):
        flags = words.add_parser(name, description=run.__doc__, help=run.__doc__)
        flags.add_argument("folder", type=parse_folder, metavar="FOLDER", help="where the files go")
        for number, default in {**numbers, "seed": 1}.items():
            kind = integer_reader(number, 0 if number == "seed" else 1)
            how = {"type": kind, "default": default, "help": "default: %(default)s"}
            flags.add_argument(f"--{number.replace('_', '-')}", metavar="N", **how)
        flags.set_defaults(run=run)
        return flags.add_argument

    shape = {"width": 128, "depth": 4, "heads": 4, "context": 128, "batch": 32}
    add = word("language", language, steps=2000, tuning_steps=500, **shape)
    add("--text", required=True, metavar="FILE", help="bytes of the first stage")
    add("--tuned-on", required=True, metavar="FILE", help="bytes of the second")
    add = word("images", images, examples=50_000, epochs=10)
    add("--network", choices=SIZES, default="resnet", help="default: %(default)s")
    add("--data", choices=data.IMAGES, default="cifar10", help="default: %(default)s")
    add("--data-dir", default="", metavar="DIR", help="where they are looked for first")
    add = word("encoder", tune, examples=1024, steps=300, length=40)
    add("--encoder", default="auto", metavar="DIR", help="a folder; by default a package")
    add("--text-file", default="auto", metavar="FILE", help="score<TAB>text; by default tweets")
    add("--data-dir", default="", metavar="DIR", help="where they are looked for first")
    add(
        "--rate",
        type=fraction_reader("rate"),
        default=1e-4,
        metavar="R",
        help="default: %(default)s",
    )
    return root


def main(words):
    """Run one command line."""
    options = parser().parse(words)
    cli.setup("float32")
    options.run(options)


if __name__ == "__main__":
    sys.exit(cli.run("pairs", lambda: main(sys.argv[1:]), own_process=True))
