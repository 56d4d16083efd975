"""BERT: files of transformers, what it computes with them, layers in two parts, a real encoder."""

import json
import shutil
from base64 import b64encode
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from lrdyn import adapters
from lrdyn.data import MissingData, Refused, encoder, find, stsb, tokenizer_growth
from lrdyn.data.guarded import panics
from lrdyn.data.pairs import stsb_names
from lrdyn.data.tensors import opened, write
from lrdyn.networks import MLP, Tokens, mean_pooled, sentence_vectors
from paper_figs import fig07_few_shot
from tests.oracles import refuses

DATA = Path(__file__).with_name("data")
POOLED, HEADED = DATA / "bert", DATA / "bert_for_masked_lm"
MINILM = fig07_few_shot.UNTRAINED[f"{encoder.PACKAGE}/model"]
TEXTS = {
    kind: json.loads(texts)
    for kind, texts in opened(POOLED / "outputs.safetensors").metadata.items()
    if kind in ("single", "pairs")
}
CALL = jax.jit(lambda model, tokens: model(tokens))


@pytest.fixture(scope="module")
def pooled():
    return encoder.read(POOLED)


@pytest.fixture(scope="module")
def short(pooled):
    """The first layer alone: quick to compile."""
    return eqx.tree_at(lambda model: model.layers, pooled.model, pooled.model.layers[:1])


def stored(folder, kind):
    """Tokens and outputs of transformers."""
    found = opened(folder / "outputs.safetensors")
    ids, mask, types = (
        found[f"{kind}.{name}"] for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    return Tokens(ids.astype(np.int32), mask.astype(bool), types.astype(np.int32)), found


# Against transformers -----------------------------------------------------------------------------


def assert_near(found, expected):
    """At 1e-5, in float32."""
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("folder", [POOLED, HEADED])
@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_hidden_states_are_those_of_transformers(folder, kind):
    model, _ = encoder.read(folder)
    tokens, found = stored(folder, kind)
    hidden = CALL(model, tokens)
    expected = found[f"{kind}.hidden"]
    assert np.abs(expected).max() > 2
    assert not tokens.mask.all()
    assert_near(np.asarray(hidden)[tokens.mask], expected[tokens.mask])
    if folder == POOLED:
        assert_near(np.asarray(model.pooled(hidden)), found[f"{kind}.pooled"])
    else:
        with pytest.raises(ValueError, match="model: got a BERT without a pooler, wanted one"):
            model.pooled(hidden)


def test_every_layer_is_that_of_transformers(pooled):
    tokens, found = stored(POOLED, "pairs")

    @jax.jit
    def both(model, tokens):
        parts = [model.below(tokens, layer) for layer in range(4)]
        return parts, [model.above(h, tokens.mask, layer) for layer, h in enumerate(parts)]

    below, above = jax.device_get(both(pooled.model, tokens))
    mask = tokens.mask
    for layer, expected in enumerate(found["pairs.all"]):
        assert_near(below[layer][mask], expected[mask])
        assert_near(above[layer][mask], below[-1][mask])


@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_tokens_are_those_of_transformers(pooled, kind):
    found = encoder.tokens(pooled.tokenizer, *TEXTS[kind])
    for mine, theirs in zip(found, stored(POOLED, kind)[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_approximate_gelu_would_be_seen(pooled):
    tokens, found = stored(POOLED, "single")
    mlps = lambda model: [layer.mlp for layer in model.layers]  # noqa: E731
    others = [MLP(mlp.weights, mlp.biases, jax.nn.gelu) for mlp in mlps(pooled.model)]
    other = CALL(eqx.tree_at(mlps, pooled.model, others), tokens)
    assert np.abs(np.asarray(other) - found["single.hidden"])[tokens.mask].max() > 1e-4


# Sentences ----------------------------------------------------------------------------------------


def test_texts_are_cut_and_filled_up(pooled):
    first, second = TEXTS["pairs"]
    free = encoder.tokens(pooled.tokenizer, first, second)
    cut = encoder.tokens(pooled.tokenizer, first, second, length=12)
    again = encoder.tokens(pooled.tokenizer, first, second)
    assert free.ids.shape[1] > 12
    assert cut.ids.shape == (2, 12)
    assert cut.mask.all()
    # [CLS] A [SEP] B [SEP]: a mark at the start, one behind each.
    assert [(row == 3).sum() for row in cut.ids] == [2, 2]
    assert cut.ids[:, 0].tolist() == [2, 2]
    assert cut.types[:, -1].tolist() == [1, 1]
    np.testing.assert_array_equal(free.ids, again.ids)
    longer = encoder.tokens(pooled.tokenizer, ["A cat"], length=12)
    assert longer.mask.sum() == 4
    assert not longer.ids[0, 4:].any()


def test_what_is_filled_up_changes_nothing(pooled):
    short = encoder.tokens(pooled.tokenizer, *TEXTS["single"])
    long = encoder.tokens(pooled.tokenizer, *TEXTS["single"], length=20)
    length = short.ids.shape[1]
    one, other = CALL(pooled.model, short), CALL(pooled.model, long)
    assert_near(np.asarray(other)[:, :length][short.mask], np.asarray(one)[short.mask])
    unmasked = CALL(pooled.model, long._replace(mask=np.ones_like(long.mask)))
    assert np.abs(np.asarray(unmasked)[:, :length] - one)[short.mask].max() > 0.1


def test_vectors_of_many_sentences(pooled, short):
    words = TEXTS["single"][0][2].split()
    texts = [" ".join(words[:n]) for n in (9, 1, 5, 2, 2)] * 2
    tokens = encoder.tokens(pooled.tokenizer, texts, length=40)
    found = sentence_vectors(short, tokens, batch=4)
    hidden = np.asarray(CALL(short, tokens))
    expected = [rows[mask].mean(axis=0) for rows, mask in zip(hidden, tokens.mask, strict=True)]
    assert_near(found, np.array(expected))
    assert np.abs(found[0] - found[1]).max() > 0.1
    nothing = mean_pooled(jnp.ones((1, 2, 3)), jnp.zeros((1, 2), bool))
    assert not nothing.any()


# As a model of adapters ---------------------------------------------------------------------------


def test_adapters_of_a_value_matrix_and_the_words(short):
    select = ["layers.*.attention.value", "embeddings.words"]
    made = adapters.init(jax.random.key(0), short, select=select, rank=2)
    assert sorted(made) == ["embeddings.words", "layers.0.attention.value"]
    tokens, _ = stored(POOLED, "single")

    @jax.jit
    def compared(made):
        trained, frozen = adapters.split(
            jax.tree.map(lambda x: x + jnp.asarray(0.1, x.dtype), made)
        )

        def loss(trained, place):
            model = place(short, adapters.joined(trained, frozen))
            return jnp.mean(model.pooled(model(tokens)) ** 2)

        return [jax.value_and_grad(loss)(trained, f) for f in (adapters.apply, adapters.merge)]

    (apart, slopes), (merged, others) = jax.device_get(compared(made))
    np.testing.assert_allclose(apart, merged, rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (slopes, others)), strict=True):
        assert np.abs(other).max() > 1e-4
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1, np.abs(other).max()))


def test_several_models_at_once_and_in_float64(short):
    tokens, _ = stored(POOLED, "single")
    model = jax.tree.map(lambda x: x.astype(jnp.float64), short)
    values = jnp.stack([model.layers[0].attention.value * s for s in (1.0, 2.0)])

    @jax.jit
    def compared(model, values):
        lower = model.below(tokens, 0)

        def changed(W):
            return eqx.tree_at(lambda m: m.layers[0].attention.value, model, W)

        together = jax.vmap(lambda W: changed(W).above(lower, tokens.mask, 0))(values)
        return together, [changed(W)(tokens) for W in values]

    found, expected = jax.device_get(compared(model, values))
    assert found.dtype == np.float64
    assert np.abs(found[0] - found[1]).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


# Files --------------------------------------------------------------------------------------------


def changed(folder, *, renamed=None, config=None, **tensors):
    """A copy of the first model with other tensors, names or entries; None leaves one out."""
    shutil.copytree(POOLED, folder)
    found = dict(opened(folder / "model.safetensors")) | tensors
    names = renamed or (lambda name: name)
    kept = {names(name): one for name, one in found.items() if one is not None}
    write(folder / "model.safetensors", kept)
    entries = json.loads((folder / "config.json").read_text()) | (config or {})
    entries = {name: one for name, one in entries.items() if one is not ...}
    (folder / "config.json").write_text(json.dumps(entries))
    return folder


def same(one, other):
    return bool(eqx.tree_equal(one, other))


def test_other_files_of_the_same_model(tmp_path, pooled):
    old = changed(
        tmp_path / "old",
        renamed=lambda name: (
            "bert."
            + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
        ),
        config={"position_embedding_type": "absolute", "model_type": ...},
    )
    assert same(encoder.read(old).model, pooled.model)
    ids = {"embeddings.position_ids": np.arange(40)[None]}
    unpooled = {"pooler.dense.weight": None, "pooler.dense.bias": None}
    model = encoder.read(changed(tmp_path / "ids", **ids, **unpooled)).model
    assert same(model, eqx.tree_at(lambda m: m.pooler, pooled.model, None))
    weights = {name: one.astype(np.float16) for name, one in dict(opened(POOLED)).items()}
    half = encoder.read(changed(tmp_path / "half", **weights)).model
    rounded = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), pooled.model)
    assert same(half, rounded)


VALUE = "encoder.layer.2.attention.self.value.weight"
EMPTY: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({VALUE: None}, {}, f"{VALUE}: got no tensor of this name, wanted one: it is missing"),
        (
            {"pooler.dense.bias": None},
            {},
            r"pooler\.dense\.bias: got no tensor of this name, wanted one: it is missing",
        ),
        ({"encoder.layer.3.x": np.ones(2)}, {}, "layer.3.x: got an extra tensor, wanted no tensor"),
        ({VALUE: np.ones((24, 23), np.float32)}, {}, rf"{VALUE}: got shape \(24, 23\), want"),
        ({VALUE: np.ones((24, 24), int)}, {}, f"{VALUE}: got type int64, wanted float16 or"),
        ({}, {"num_hidden_layers": 2}, r"layer\.2\..*: got an extra tensor, wanted no tensor"),
        ({}, {"num_hidden_layers": 10**9}, r"layer\.\d+.*: got no tensor of this name, wanted one"),
        ({}, {"vocab_size": 200}, r"word_embeddings.weight: got shape \(123, 24\), wanted \(200,"),
        ({}, {"vocab_size": 2**31 - 1}, r"got shape \(123, 24\), wanted \(2147483647, 24\)"),
        ({}, {"intermediate_size": 2**31 - 1}, r"weight: got shape \(\d+, 24\), wanted \(2147"),
        (
            {"embeddings.word_embeddings.weight": np.ones((200, 24), np.float32)},
            {"vocab_size": 200},
            r"tokenizer.json: got a vocabulary of 123 words, .*wanted 200, ids up to 199",
        ),
        ({}, {"hidden_size": 28}, r"got shape \(123, 24\), wanted \(123, 28\)"),
        ({}, {"hidden_size": ...}, "config.json: hidden_size: got None, wanted an integer >= 1"),
        ({}, {"hidden_size": True}, "config.json: hidden_size: got True, wanted an integer >= 1"),
        ({}, {"num_attention_heads": 5}, "num_attention_heads: got 5, wanted a divisor of hidden"),
        ({}, {"layer_norm_eps": "x"}, "layer_norm_eps: got 'x', wanted a number above 0, below 1"),
        ({}, {"hidden_act": "gelu_new"}, "hidden_act: got 'gelu_new', wanted 'gelu'"),
        ({}, {"model_type": "roberta"}, "model_type: got 'roberta', wanted 'bert'"),
        ({}, {"position_embedding_type": "relative_key"}, "type: got 'relative_key', wanted 'abs"),
    ],
)
def test_files_are_refused_in_a_line(tensors, config, message, tmp_path):
    folder = changed(tmp_path / "a", config=config, **tensors)
    with pytest.raises(Refused, match=message) as caught:
        encoder.read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("config.json", "[]", "got a list, wanted a configuration of a BERT"),
        ("config.json", "{", "got a damaged file"),
        ("tokenizer.json", "{}", r"got a damaged file \(\w+\), wanted a tokenizer"),
    ],
)
def test_damaged_files_are_refused(name, body, message, tmp_path):
    (changed(tmp_path / "a") / name).write_text(body)
    with pytest.raises(Refused, match=rf"{name}: {message}"):
        encoder.read(tmp_path / "a")


def split(pattern):
    """The tokenizer with a regular expression."""
    content = json.loads((POOLED / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return json.dumps(content)


def test_a_pattern_of_exponential_time_is_refused(tmp_path):
    path = changed(tmp_path / "a") / "tokenizer.json"
    path.write_text(split(r" ?\p{L}+|\s+(?!\S)|\s+"))
    assert encoder.read(tmp_path / "a")
    path.write_text(split("(a+)+$"))
    with pytest.raises(Refused, match=r"Regex: got \(a\+\)\+\$, wanted .*without a repetition"):
        encoder.read(tmp_path / "a")


STEPS = st.sampled_from(
    [
        normalizers.BertNormalizer(),
        normalizers.ByteLevel(),
        normalizers.Lowercase(),
        normalizers.NFC(),
        normalizers.NFD(),
        normalizers.NFKC(),
        normalizers.NFKD(),
        normalizers.Nmt(),
        normalizers.Prepend("ab"),
        normalizers.Replace("", "b"),
        normalizers.Replace("a", "aaaa"),
        normalizers.Replace("bc", "\ufdfa"),
        normalizers.Replace(Regex("a?"), "bc"),
        normalizers.Strip(),
        normalizers.StripAccents(),
    ]
)
CUTS = st.sampled_from(
    [
        pre_tokenizers.BertPreTokenizer(),
        pre_tokenizers.ByteLevel(),
        pre_tokenizers.CharDelimiterSplit("a"),
        pre_tokenizers.Digits(),
        pre_tokenizers.FixedLength(2),
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Metaspace("x"),
        pre_tokenizers.Punctuation(),
        pre_tokenizers.Split("b", "isolated"),
        pre_tokenizers.UnicodeScripts(),
        pre_tokenizers.Whitespace(),
        pre_tokenizers.WhitespaceSplit(),
    ]
)


@given(
    steps=st.lists(STEPS, max_size=4),
    cuts=st.lists(CUTS, max_size=3),
    text=st.text("ab \u0130\u0390\ufdfa\U0001d160\u4e2d\u1f82", min_size=1, max_size=5),
)
def test_no_text_grows_by_more_than_is_said(steps, cuts, text):
    made = Tokenizer(models.WordLevel({"": 0}, ""))
    made.normalizer = normalizers.Sequence(steps)
    made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    growth = tokenizer_growth.growth(json.loads(made.to_str()), Path("a"))
    try:
        with panics(Path("a"), "steps on which the library does not fail"):
            words = made.pre_tokenizer.pre_tokenize_str(made.normalizer.normalize_str(text))
    except Refused:
        reject()
    assert sum(len(word.encode()) for word, _ in words) <= growth * len(text.encode())


def with_part(name, value):
    """The tokenizer with a part of another kind."""
    return json.dumps(json.loads((POOLED / "tokenizer.json").read_text()) | {name: value})


def sequence(step, number=1):
    return {"type": "Sequence", "normalizers": number * [step], "pretokenizers": number * [step]}


FORTY = {"type": "Replace", "pattern": {"String": "a"}, "content": 40 * "a"}
TABLE = b64encode(bytes(4) + 6000 * b"x").decode()
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "s", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"s": {"id": "s", "ids": 100 * [0], "tokens": 100 * ["x"]}},
}
GROWING = {
    "letters for a letter": ("normalizer", sequence(FORTY, 5)),
    "letters for none": ("normalizer", FORTY | {"pattern": {"String": ""}, "content": 5000 * "a"}),
    "without its kind": ("normalizer", {"pattern": {"String": "a"}, "content": 9999 * "a"}),
    "sequences in a sequence": ("normalizer", sequence(sequence(sequence(FORTY), 2), 2)),
    "a table": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": TABLE}),
    "bytes of bytes": (
        "pre_tokenizer",
        sequence({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}, 30),
    ),
    "marks": ("post_processor", TEMPLATE),
    "marks twice": ("post_processor", {"type": "Sequence", "processors": 2 * [TEMPLATE]}),
    "long words": ("model", {"type": "WordPiece", "max_input_chars_per_word": 10**6}),
}


@pytest.mark.parametrize("kind", GROWING)
def test_a_tokenizer_that_makes_too_much_of_a_text_is_refused(kind, tmp_path):
    (changed(tmp_path / "a") / "tokenizer.json").write_text(with_part(*GROWING[kind]))
    with pytest.raises(Refused, match=r"tokenizer.json: .*got .*, wanted (at most|one of)"):
        encoder.read(tmp_path / "a")


def test_the_steps_of_albert_are_not_too_many():
    table = b64encode(bytes(4) + b"\0".join((b"a", 33 * b"x", b""))).decode()
    names = ("NFKD", "StripAccents", "Lowercase")
    steps = [*({"type": name} for name in names), {"type": "Precompiled"}]
    steps[-1]["precompiled_charsmap"] = table
    cut = {"type": "Metaspace", "replacement": "\u2581"}
    content = {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": cut}
    tokenizer_growth.check(content, Path("a"))


def test_a_panic_of_rust_is_a_line(tmp_path, capfd):
    """A pattern without nested repetitions for which the library gives up, 80 letters later."""
    path = changed(tmp_path / "a") / "tokenizer.json"
    path.write_text(split(12 * "a*" + "$"))
    tokenizer = encoder._tokenizer(path, 123)
    with pytest.raises(Refused, match=r"tokenizer.json: got a file on which its reader fails, wa"):
        encoder.tokens(tokenizer, [80 * "a" + "!"])
    assert capfd.readouterr() == ("", "")


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(MissingData, match=r"encoder: got 'none', wanted a folder with config.json"):
        encoder.read("none")
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package")
    with pytest.raises(MissingData, match=r"encoder: got none, wanted .*or run make encoder"):
        encoder.folder()
    (changed(tmp_path / "a") / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        encoder.read(tmp_path / "a")


def tiny():
    return encoder.read(POOLED)


def tokens(length=4, ids=5, types=0):
    shape = (1, length)
    return Tokens(np.full(shape, ids), np.ones(shape, bool), np.full(shape, types))


HIDDEN, MASK = jnp.ones((1, 4, 24)), jnp.ones((1, 4), bool)
test_a_bert_refuses = refuses(
    (lambda: tiny().model(tokens(41)), "tokens: got sequences of length 41, wanted at most 40"),
    (lambda: tiny().model(tokens(ids=123)), r"tokens.ids: got .*123.*, wanted 0 to 122"),
    (lambda: tiny().model(tokens(types=2)), r"tokens.types: got .*2.*, wanted 0 to 1"),
    (
        lambda: tiny().model(tokens()._replace(mask=MASK[:, 1:])),
        r"mask: got shape \(1, 3\), wanted \(1, 4\)",
    ),
    (
        lambda: tiny().model(tokens()._replace(mask=np.ones((1, 4)))),
        "mask: got dtype float64, wanted booleans",
    ),
    (lambda: tiny().model.below(tokens(), 4), "layer: got 4, wanted 0 to 3"),
    (lambda: tiny().model.above(HIDDEN, MASK, -1), "layer: got -1, wanted 0 to 3"),
    (lambda: tiny().model.above(HIDDEN[..., 1:], MASK, 0), r"hidden: got shape \(1, 4, 23\)"),
    (lambda: sentence_vectors(tiny().model, tokens(ids=-1)), r"tokens.ids: got .*-1"),
    (lambda: sentence_vectors(tiny().model, tokens(), batch=0), "batch: got 0, wanted at least 1"),
    (lambda: encoder.tokens(tiny().tokenizer, []), "first: got 0 and 0 sentences, wanted as many"),
    (lambda: encoder.tokens(tiny().tokenizer, ["A"], []), "first: got 1 and 0 sentences, wanted"),
    (lambda: encoder.tokens(tiny().tokenizer, ["A"], length=2), "length: got 2, wanted at least 3"),
)


# A real encoder -----------------------------------------------------------------------------------


@pytest.mark.encoder
@pytest.mark.parametrize(("split", "expected"), [("dev", MINILM), ("test", 0.827)])
def test_cosines_of_minilm_on_stsb(split, expected):
    try:
        model, tokenizer = encoder.read()
    except MissingData as error:
        pytest.skip(str(error))
    if find(stsb_names(split)) is None:
        pytest.skip(f"no STS-B ({split}) in $LRDYN_DATA")
    first, second, scores = stsb(split=split)
    if np.isnan(scores).any():
        pytest.skip("GLUE's test part has no scores")
    tokens = encoder.tokens(tokenizer, first + second, length=128)
    one, other = np.split(sentence_vectors(model, tokens), 2)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found = np.corrcoef(np.sum(one * other, axis=1) / lengths, scores)[0, 1]
    assert abs(found - expected) < 1e-3
