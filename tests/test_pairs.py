"""The example that trains small models and leaves their weights before and after."""

import os
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from docs.examples import pairs
from lrdyn import cli
from lrdyn.data import sets
from lrdyn.diagnosis import reading
from lrdyn.studies.real_updates import REAL_UPDATES
from tests.datasets import write_npz
from tests.runs import results_of, verdict_of
from tests.sentences import BERT, write_sentences

SHAPE = {"width": 8, "depth": 1, "heads": 2, "context": 8}
LANGUAGE = [f"--{name}={size}" for name, size in SHAPE.items()] + ["--batch=2"]


def run(*words):
    return cli.run("pairs", lambda: pairs.main([os.fspath(word) for word in words]))


def write_text(path, count, seed=0):
    """Bytes of which the second half of each pair follows from the first."""
    first = np.random.default_rng(seed).integers(97, 113, count // 2, np.uint8)
    path.write_bytes(np.stack([first, first + 8], axis=1).tobytes())
    return path


def languages(folder, *words):
    """Run the language model on two texts, 40 and 20 windows long."""
    texts = ("--text", folder / "a.txt", "--tuned-on", folder / "b.txt")
    return run("language", folder / "made", *texts, *LANGUAGE, *words)


def weights(folder, *names):
    """Matrices of files by name, which all of them have, in one shape and finite."""
    opened = [reading.weights(name, folder / f"{name}.safetensors") for name in names]
    first, *others = ({n: info.shape for n, info in each.infos.items()} for each in opened)
    assert all(shapes == first for shapes in others)
    assert all(len(shape) == 2 for shape in first.values())
    assert {info.dtype for info in opened[0].infos.values()} == {"float32"}
    found = [{name: each[name] for name in first} for each in opened]
    assert all(np.isfinite(W).all() for each in found for W in each.values())
    return found


def moved(before, after):
    return {name for name, W in before.items() if np.abs(after[name] - W).max() > 0}


def test_a_language_model_leaves_three_files_of_which_pairs_are_read(tmp_path, command_line):
    write_text(tmp_path / "a.txt", 500)
    write_text(tmp_path / "b.txt", 400, seed=1)
    assert languages(tmp_path, "--steps", "4", "--tuning-steps", "2") == 0
    made = tmp_path / "made"
    assert len(list(made.iterdir())) == 3
    start, text, tuned = weights(made, "start", "text", "tuned")
    layer = [f"attention.{name}" for name in ("query", "key", "value", "output")]
    layer += ["mlp.weights_0", "mlp.weights_1"]
    assert set(start) == {"embedding", "unembedding", *(f"blocks.0.{name}" for name in layer)}
    assert start["blocks.0.mlp.weights_0"].shape == (32, 8)
    assert moved(start, text) == moved(text, tuned) == set(start)

    files = [made / f"{name}.safetensors" for name in ("text", "tuned")]
    words = ("--before", files[0], "--after", files[1], "--out", tmp_path / "out")
    status, printed, errors = command_line(REAL_UPDATES, *words)
    assert status == 0, errors + printed
    assert printed.count("bits per byte") == 3
    assert verdict_of(tmp_path / "out")["holds"] is True
    energies = results_of(tmp_path / "out").isel(seed=0)["energy_measured"].values
    expected = [np.sum((tuned[name].astype(float) - W) ** 2) for name, W in text.items()]
    np.testing.assert_allclose(np.sort(energies), np.sort(expected), rtol=1e-5)


TINY = {
    "mlp": ({"mlp_width": 6, "mlp_depth": 3}, "weights_0", (6, 64)),
    "resnet": ({"resnet_width": 2}, "stem.convolution.weight", (2, 9)),
    "vit": ({"vit_width": 8, "vit_depth": 1, "vit_heads": 2}, "head.weight", (10, 8)),
}


@pytest.mark.parametrize("network", TINY)
def test_classifiers_leave_all_their_matrices(network, tmp_path, monkeypatch, capsys):
    sizes, matrix, shape = TINY[network]
    monkeypatch.setitem(pairs.SIZES, network, pairs.SIZES[network] | sizes)
    rng, counts = np.random.default_rng(0), (512, 40)
    known = sets.KNOWN["mnist"]._replace(train=counts[0], test=counts[1], shape=(8, 8, 1))
    monkeypatch.setitem(sets.KNOWN, "mnist", known)
    parts = [(rng.integers(0, 256, (n, 8, 8), np.uint8), np.arange(n) % 10) for n in counts]
    write_npz(tmp_path / "mnist.npz", (*parts[0], *parts[1]), described="made up")
    words = ("--network", network, "--data", "mnist", "--data-dir", tmp_path, "--epochs", "1")
    assert run("images", tmp_path / "made", *words, "--examples", "256") == 0
    start, trained = weights(tmp_path / "made", "start", "trained")
    assert start[matrix].shape == shape
    assert moved(start, trained) == set(start)
    said, right = capsys.readouterr().out.split(": ")
    assert said == "accuracy on 40 images that are not trained on"
    assert 0 <= float(right) <= 1


def test_an_encoder_is_trained_whole(tmp_path, capsys):
    texts = write_sentences(tmp_path / "texts.tsv", 160)
    words = ("--encoder", BERT, "--text-file", texts, "--rate", "1e-3", "--length", "12")
    assert run("encoder", tmp_path / "made", *words, "--steps", "30") == 0
    start, tuned = weights(tmp_path / "made", "start", "tuned")
    original = reading.weights("original", BERT)
    assert len(start) == 3 + 3 * 6
    for name, tensor in {
        "embeddings.words": "embeddings.word_embeddings.weight",
        "layers.2.attention.value": "encoder.layer.2.attention.self.value.weight",
    }.items():
        (found,) = (n for n in original.infos if n.endswith(tensor))
        np.testing.assert_array_equal(start[name], original[found])
    assert moved(start, tuned) == set(start)
    rows = np.abs(tuned["embeddings.positions"] - start["embeddings.positions"]).max(axis=1)
    assert not rows[12:].any()  # no text is so long
    said = re.findall(r"^(.*): correlation (\S+) on 40 ", capsys.readouterr().out, re.M)
    assert [name for name, _ in said] == ["start", "tuned"]
    before, after = (float(value) for _, value in said)
    assert after > max(before, 0.3)


@pytest.fixture(scope="module")
def net():
    with jax.enable_x64(False):
        drawn = pairs.language_model(jax.random.key(0), **SHAPE)
    # At the start all logits are close to 0.
    return jax.tree.map(lambda x: 20 * x if x.ndim > 1 else x, drawn)


def test_no_byte_of_a_window_looks_at_a_later_one(net):
    text = np.random.default_rng(0).integers(0, 256, (3, 8), np.uint8)
    other = text.copy()
    other[1, 5] ^= 1
    with jax.enable_x64(False):
        call = eqx.filter_jit(lambda text: net(text))
        first, second = (np.asarray(call(jnp.asarray(x))) for x in (text, other))
    differ = np.abs(first - second).max(axis=2) > 1e-3
    assert differ[1].tolist() == [False] * 5 + [True] * 3
    assert not differ[[0, 2]].any()
    np.testing.assert_array_equal(first[1, :5], second[1, :5])


def test_bits_are_those_of_the_next_byte(net):
    windows = np.random.default_rng(0).integers(0, 256, (3, 9), np.uint8)
    with jax.enable_x64(False):
        found = float(pairs.bits_of_many(net, windows))
        logits = np.asarray(net(jnp.asarray(windows[:, :-1])), float)
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    of_next = [shares[b, t, windows[b, t + 1]] for b in range(3) for t in range(8)]
    assert found == pytest.approx(-np.mean(np.log2(of_next)), rel=1e-5)


def test_what_is_tested_is_not_trained_on(tmp_path):
    text = np.random.default_rng(0).integers(0, 256, 600, np.uint8)
    (tmp_path / "a.txt").write_bytes(text.tobytes())
    batches, tested = pairs.read_text("--text", tmp_path / "a.txt", 8, 4)
    windows = np.asarray(batches.take(batches.data, jnp.arange(batches.count)))
    np.testing.assert_array_equal(windows[-1], text[561:570])
    assert windows.shape == (562, 9)
    np.testing.assert_array_equal(tested, [text[570:579], text[578:587], text[586:595]])


@pytest.mark.parametrize(
    ("size", "message"),
    [(None, "--tuned-on: got '"), (100, "got 100 bytes, wanted 220 or more, for windows of 9")],
)
def test_a_text_that_is_too_short_or_missing_is_refused_in_one_line(
    tmp_path, capsys, size, message
):
    write_text(tmp_path / "a.txt", 500)
    if size:
        write_text(tmp_path / "b.txt", size)
    assert languages(tmp_path) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("pairs: error: --tuned-on: got ")
    assert message in said.err
    assert not (tmp_path / "made").exists()


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path, capsys):
    for name in ("a.txt", "b.txt", "made"):
        write_text(tmp_path / name, 500)
    assert languages(tmp_path) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "made' (Not a directory)" in said.err
