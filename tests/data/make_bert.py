"""Make the folders bert and bert_for_masked_lm: tiny random models, and what they compute.

Run ``python tests/data/make_bert.py [--out DIR]`` in an environment of its own with torch and
transformers; it takes seconds. Weights are float32, drawn after ``torch.manual_seed(0)`` so large
that an approximate GELU or a forgotten norm shows. A folder holds what ``save_pretrained`` writes
(``model.safetensors``, ``config.json``), ``tokenizer.json``, and ``outputs.safetensors``: of
:data:`SINGLE` and :data:`PAIRS`, which its header holds, ids, mask and types as transformers makes
them, the last hidden states, and, of the first model, what its pooler returns and all hidden
states. The second model has other sizes, no pooler, the prefix ``bert.`` and a head of its own.
"""

# pyright: reportMissingImports=false
import argparse
import json
import shutil
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

HERE = Path(__file__).parent
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = (
    "a the is are was in on at of and with two three man woman girl boy dog cat bird child people "
    "plays playing runs running eats eating sits sleeps rides reads guitar piano ball horse bike "
    "food fish book street park water tree red blue big small young old ##s ##ing ##ed"
).split()
LETTERS = [*(mark + x for mark in ("", "##") for x in string.ascii_lowercase), *"0123456789.,!?'"]
SINGLE = [
    "A man is playing a guitar.",
    "Two dogs run.",
    "The old woman reads a red book in a park!",
]
PAIRS = [
    ("A boy rides a bike.", "A child is riding."),
    ("The cat sleeps", "Birds eat fish near the blue water, and nobody was there."),
]
CONFIGS = {
    "bert": {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 40,
    },
    "bert_for_masked_lm": {
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "max_position_embeddings": 32,
        "layer_norm_eps": 1e-5,
    },
}


def tokenizer() -> Tokenizer:
    """Lower case, WordPiece, [CLS] A [SEP] B [SEP]."""
    words = [*SPECIAL, *WORDS, *(x for x in LETTERS if x not in WORDS)]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.add_special_tokens(SPECIAL)
    return made


def draw(model: torch.nn.Module) -> None:
    """Weights of variance 1 / inputs times 2, vectors around their starts."""
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.dim() > 1:
                one.normal_(0, (2 / one.shape[1]) ** 0.5)
            else:
                one.normal_(1.0 if "LayerNorm.weight" in name else 0.0, 0.3)


def make(out: Path, name: str) -> None:
    """Write a folder."""
    torch.manual_seed(0)
    folder, tokens = out / name, tokenizer()
    config = BertConfig(
        vocab_size=tokens.get_vocab_size(),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **CONFIGS[name],
    )
    pooled = name == "bert"
    model = (BertModel if pooled else BertForMaskedLM)(config).eval()
    draw(model)
    encoder = model if pooled else model.bert
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokens.save(str(folder / "tokenizer.json"), pretty=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    texts_of = {"single": [SINGLE], "pairs": [list(texts) for texts in zip(*PAIRS, strict=True)]}
    found = {}
    for kind, texts in texts_of.items():
        given = fast(*texts, padding=True, return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            outputs = encoder(**given, output_hidden_states=True)
        found |= {f"{kind}.{key}": value for key, value in given.items()}
        found[f"{kind}.hidden"] = outputs.last_hidden_state
        if pooled:
            found[f"{kind}.pooled"] = outputs.pooler_output
            found[f"{kind}.all"] = torch.stack(outputs.hidden_states)
    found = {key: value.contiguous().clone() for key, value in found.items()}
    written = {kind: json.dumps(texts) for kind, texts in texts_of.items()}
    save_file(found, folder / "outputs.safetensors", written)
    for file in folder.glob("generation_config.json"):
        file.unlink()
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(name, sorted(file.name for file in folder.iterdir()), size, "bytes")


def main() -> None:
    words = argparse.ArgumentParser(description="Tiny BERTs, and what they compute.")
    words.add_argument("--out", type=Path, default=HERE)
    out = words.parse_args().out
    for name in CONFIGS:
        make(out, name)


if __name__ == "__main__":
    main()
