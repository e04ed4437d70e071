"""Records what transformers' GPT2Model makes of a text inside: hidden states and attention, in float32 on the CPU.

    gptrickle synth --shape 3,4,32,64,300 --type F32 --tied --seed 7 -o synth-f32.gguf    # if it is not there
    python make.py            # writes NAME.tokens.txt, NAME.hidden.npy and NAME.attention.npy

torch 2.15.0 (CPU), transformers 5.24.0, gguf 0.19.0, numpy 2.4.6.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import GPT2Config, GPT2Model

HERE = Path(__file__).parent
SUFFIXES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def load(path):
    """A GPT2Model of an F32 file's weights."""
    file = gguf.GGUFReader(path)
    field = lambda name: file.fields[f"gpt2.{name}"].contents()
    tensors = {t.name: torch.tensor(np.array(t.data)).reshape(tuple(map(int, reversed(t.shape)))) for t in file.tensors}
    config = GPT2Config(
        vocab_size=tensors["token_embd.weight"].shape[0],
        n_positions=field("context_length"),
        n_embd=field("embedding_length"),
        n_layer=field("block_count"),
        n_head=field("attention.head_count"),
        n_inner=field("feed_forward_length"),
        layer_norm_epsilon=field("attention.layer_norm_epsilon"),
    )
    config._attn_implementation = "eager"  # the only one that tells its weights
    state = {
        "wte.weight": tensors["token_embd.weight"],
        "wpe.weight": tensors["position_embd.weight"],
        "ln_f.weight": tensors["output_norm.weight"],
        "ln_f.bias": tensors["output_norm.bias"],
    }
    for i in range(config.n_layer):
        for ours, theirs in SUFFIXES.items():
            weight = tensors[f"blk.{i}.{ours}.weight"]
            # transformers keeps these matrices transposed (Conv1D)
            state[f"h.{i}.{theirs}.weight"] = weight.T.contiguous() if weight.dim() == 2 else weight
            state[f"h.{i}.{theirs}.bias"] = tensors[f"blk.{i}.{ours}.bias"]
    model = GPT2Model(config).eval()
    model.load_state_dict(state)
    return model


def record(name, path, tokens):
    model = load(path)
    with torch.no_grad():
        out = model(torch.tensor([tokens]), output_hidden_states=True, output_attentions=True)
    hidden = torch.cat(out.hidden_states).numpy()  # (n_layer + 1, n_tokens, n_embd); the last one is after ln_f
    attention = torch.cat(out.attentions).numpy()  # (n_layer, n_head, n_tokens, n_tokens)
    assert hidden.dtype == attention.dtype == np.float32
    (HERE / f"{name}.tokens.txt").write_text(" ".join(map(str, tokens)) + "\n")
    np.save(HERE / f"{name}.hidden.npy", hidden)
    np.save(HERE / f"{name}.attention.npy", attention)
    print(name, hidden.shape, attention.shape, "largest value", np.abs(hidden).max(axis=(1, 2)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    micro = HERE.parent / "micro"
    record("micro", micro / "micro-f32.gguf", [int(id) for id in (micro / "ref/tokens.txt").read_text().split()])
    # 40 tokens of 300, in no order
    record("synth", HERE / "synth-f32.gguf", [(i * 37 + i * i) % 300 for i in range(40)])
