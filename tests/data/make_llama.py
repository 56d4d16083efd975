"""Make llama.npz: weights of a tiny LLaMA of transformers, tokens, and the logits of these.

Run ``python tests/data/make_llama.py [--out FILE]`` in an environment of its own with torch and
transformers; it takes seconds. Weights are float32, in which transformers computes norms and angles
of any model, drawn after ``torch.manual_seed(0)`` so large that attention is far from even. Gains
differ from 1, the eps of the norms is so large that it shows, and there are half as many heads of
keys as of queries.
"""

# pyright: reportMissingImports=false
import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 0.05,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}


def main() -> None:
    """Draw the model, and write what it computes."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path(__file__).with_name("llama.npz"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(torch.randn_like(one) * 0.5 + (one.dim() == 1))
        tokens = torch.randint(CONFIG["vocab_size"], (3, 9))
        logits = model(tokens).logits
    arrays = {name: one.detach().numpy() for name, one in model.named_parameters()}
    np.savez_compressed(
        arguments.parse_args().out, tokens=tokens.numpy(), logits=logits.numpy(), **arrays
    )


if __name__ == "__main__":
    main()
