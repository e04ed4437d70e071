#!/usr/bin/env python3
"""Records what transformers makes of the models here, in float32 on a CPU: stories.json, tiny512.json, micro.json, and
what its warpers leave of some logits: warpers.json.

    pip install torch transformers gguf numpy
    python3 make.py

Weights are those of the GGUF file at hand, dequantised. Seeds are given to torch.manual_seed before each case.
"""

import json
import sys
from pathlib import Path

import gguf
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.generation import logits_process as lp

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
MODELS = {
    "stories": TESTS.parent.parent / "host/model/stories-Q4_K_M.gguf",
    "tiny512": TESTS / "tiny512/tiny512-Q8_0.gguf",
    "micro": TESTS / "micro/micro-f32.gguf",
}


def load(path):
    """The model and the tokenizer in a GGUF file."""
    reader = gguf.GGUFReader(path)
    value = lambda key: reader.fields[key].contents()
    weights = {
        t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).astype("float32").copy())
        for t in reader.tensors
    }
    vocab = value("tokenizer.ggml.tokens")
    config = GPT2Config(
        vocab_size=len(vocab),
        n_positions=value("gpt2.context_length"),
        n_embd=value("gpt2.embedding_length"),
        n_layer=value("gpt2.block_count"),
        n_head=value("gpt2.attention.head_count"),
        n_inner=value("gpt2.feed_forward_length"),
        layer_norm_epsilon=float(value("gpt2.attention.layer_norm_epsilon")),
        bos_token_id=value("tokenizer.ggml.eos_token_id"),
        eos_token_id=value("tokenizer.ggml.eos_token_id"),
    )
    model = GPT2LMHeadModel(config).eval()
    names = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"}
    parts = {
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    }
    state = {}
    for name, weight in weights.items():
        stem, kind = name.rsplit(".", 1)
        if stem == "output":
            continue
        if stem in names:
            state[f"transformer.{names[stem]}.{kind}"] = weight
        else:
            _, layer, part = stem.split(".")
            # Conv1D has its weights the other way round.
            state[f"transformer.h.{layer}.{parts[part]}.{kind}"] = weight.T.contiguous() if weight.ndim == 2 else weight
    state["lm_head.weight"] = weights.get("output.weight", weights["token_embd.weight"])
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("bias" in name and "attn.bias" in name for name in missing), (missing, unexpected)

    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    end = vocab[config.eos_token_id]
    return model, PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end, pad_token=end)


def run(model, tokenizer, prompt, seed, args):
    """New tokens of each sequence, without what ends or pads them, and the scores of beams."""
    pad = model.config.eos_token_id
    defaults = dict(do_sample=False, num_beams=1, top_k=50, top_p=1.0, temperature=1.0, eos_token_id=pad)
    config = GenerationConfig(**{**defaults, **args, "pad_token_id": pad, "return_dict_in_generate": True,
                                 "output_scores": True})
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    torch.manual_seed(seed)
    given = torch.tensor([prompt])
    more = {"tokenizer": tokenizer} if "stop_strings" in args else {}
    with torch.no_grad():
        out = model.generate(given, attention_mask=torch.ones_like(given), generation_config=config, **more)
    sequences = []
    for row in out.sequences.tolist():
        new = row[len(prompt) :]
        end = next((i for i, token in enumerate(new) if token in ends), len(new))
        if "stop_strings" in args:  # what follows a stop string is padding
            while end > 0 and new[end - 1] == pad:
                end -= 1
        sequences.append(new[:end])
    scores = getattr(out, "sequences_scores", None)
    return sequences, None if scores is None else scores.tolist()


def case(model, tokenizer, name, prompt, seed=0, **args):
    sequences, scores = run(model, tokenizer, prompt, seed, args)
    print(f"{name}: {[len(s) for s in sequences]}", file=sys.stderr)
    row = {"name": name, "prompt": prompt, "seed": seed, "args": args, "sequences": sequences}
    return row if scores is None else {**row, "scores": scores}


def write(name, value):
    """A case a line."""
    tools = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in value)
    (HERE / name).write_text(f'{{"tools":{json.dumps(tools)},"cases":[\n{lines}\n]}}\n')


def controls(model, tokenizer, prompt, new, words, ends):
    """Each control alone and some together: `words` are token sequences to bar, `ends` tokens that end a text early."""
    make = lambda name, **args: case(model, tokenizer, name, prompt, **{"max_new_tokens": new, **args})
    beams = lambda name, n=4, **args: make(f"{n} beams, {name}", num_beams=n, **args)
    yield make("greedy")
    yield make("repetition_penalty 1.3", repetition_penalty=1.3)
    yield make("repetition_penalty 0.9", repetition_penalty=0.9)
    for n in (1, 2, 3):
        yield make(f"no_repeat_ngram_size {n}", no_repeat_ngram_size=n)
    yield make("bad_words_ids", bad_words_ids=words)
    yield make("eos_token_id", eos_token_id=ends)
    yield make("min_new_tokens", eos_token_id=ends, min_new_tokens=new - 6)
    yield make("min_length", eos_token_id=ends[:1], min_length=len(prompt) + new // 2)
    yield make("max_length", max_length=len(prompt) + new - 2, max_new_tokens=None)
    together = dict(repetition_penalty=1.1, no_repeat_ngram_size=3, bad_words_ids=words, min_new_tokens=new - 2)
    yield make("all processors", **together)
    yield beams("plain", 2)
    yield beams("plain")
    ending = dict(eos_token_id=ends[0], min_new_tokens=new - 16)
    yield beams("no length_penalty", length_penalty=0.0, **ending, num_return_sequences=4)
    yield beams("length_penalty 2", length_penalty=2.0, **ending, num_return_sequences=2)
    yield beams("length_penalty -1", length_penalty=-1.0, **ending, num_return_sequences=3)
    for stop in (True, False, "never"):
        yield beams(f"early_stopping {stop}", early_stopping=stop, **ending, num_return_sequences=3)
        yield beams(f"early_stopping {stop}, early", early_stopping=stop, eos_token_id=ends[0], num_return_sequences=4)
    yield beams("early_stopping never, length_penalty 0.5", early_stopping="never", length_penalty=0.5,
                eos_token_id=ends[0], min_new_tokens=new // 2, num_return_sequences=2)
    yield beams("two ends", 3, eos_token_id=ends, num_return_sequences=3)
    yield beams("min_new_tokens", 2, eos_token_id=ends, min_new_tokens=new - 8, early_stopping=True)
    yield beams("no_repeat_ngram_size 2", no_repeat_ngram_size=2, early_stopping=True)
    yield beams("repetition_penalty 1.2", repetition_penalty=1.2)
    yield beams("repetition_penalty 0.95", 2, repetition_penalty=0.95)
    yield beams("bad_words_ids", bad_words_ids=words)
    yield beams("all processors", 2, **together, length_penalty=1.5, early_stopping=True, num_return_sequences=2)


PROMPTS = [
    "Once upon a time", "The cat", "One day, a little girl", "Tom and his dog", "In the forest", "\"Hello,\" said",
    "It was a cold day", "Lily had a red ball", "The old man", "A bird sat on", "There was a king", "Mom said", "Ben was sad",
    "The sun was", "Sam found a box", "Every night", "The fox and the", "She looked at", "They went to the park", "A big bear",
]


def stories():
    model, tokenizer = load(MODELS["stories"])
    ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    prompt = ids(PROMPTS[0])
    words = [ids(word) for word in (" Lily", " little", " girl", " happy", " a big", " to play with")]
    ends = [ids(".")[0], ids("!")[0]]
    yield from controls(model, tokenizer, prompt, 84, words, ends)
    strings = dict(stop_strings=["climb", "pected hap"], max_new_tokens=120)
    yield case(model, tokenizer, "stop_strings", prompt, **strings)
    yield case(model, tokenizer, "3 beams, stop_strings", prompt, **strings, num_beams=3, num_return_sequences=2)
    # Each way to stop early ends elsewhere.
    for penalty in (1.0, 2.0):
        for stop in (True, False, "never"):
            yield case(model, tokenizer, f"4 beams, length_penalty {penalty}, early_stopping {stop}", prompt,
                       num_beams=4, early_stopping=stop, length_penalty=penalty, eos_token_id=ends[0],
                       min_new_tokens=64, max_new_tokens=140, num_return_sequences=4)
    # Sampled as torch draws.
    for name, args in {
        "top_k": dict(top_k=50),
        "top_p": dict(top_k=0, top_p=0.9),
        "temperature, top_k, top_p": dict(temperature=0.7, top_k=50, top_p=0.9),
    }.items():
        for seed, text in enumerate(PROMPTS, 42):
            for n in (1, 5):
                yield case(model, tokenizer, f"{name}, {n} sampled", ids(text), seed, **args, do_sample=True,
                           max_new_tokens=32, num_return_sequences=n)
    for name, args in {
        "min_p": dict(min_p=0.1, top_k=0),
        "typical_p": dict(typical_p=0.5, top_k=0),
        "epsilon_cutoff": dict(epsilon_cutoff=0.02, top_k=0),
        "eta_cutoff": dict(eta_cutoff=0.05, top_k=0),
        "temperature": dict(temperature=1.3, top_k=0),
        "all warpers": dict(temperature=1.2, top_k=200, top_p=0.95, min_p=0.01, typical_p=0.9, epsilon_cutoff=3e-3,
                            eta_cutoff=5e-3, repetition_penalty=1.1, no_repeat_ngram_size=3),
    }.items():
        yield case(model, tokenizer, f"{name}, sampled", prompt, 7, **args, do_sample=True, max_new_tokens=72,
                   num_return_sequences=2)


def random(name, prompt, new):
    """Controls of a model with random weights; what is barred and what ends a text stands in its greedy text."""
    model, tokenizer = load(MODELS[name])
    greedy = case(model, tokenizer, "", prompt, max_new_tokens=new)["sequences"][0]
    words = [greedy[1:2], greedy[4:6], greedy[7:10]]
    # The two that come up latest.
    ends = sorted(set(greedy), key=greedy.index)[-2:]
    yield from controls(model, tokenizer, prompt, new, words, ends)


def tiny512():
    # The prompt of its own references.
    prompt = [int(id) for id in (TESTS / "tiny512/ref/tokens.txt").read_text().split()][:8]
    yield from random("tiny512", prompt, 100)


def micro():
    yield from random("micro", [72, 101, 108, 108], 27)


def warpers():
    """Probabilities that are left of logits of a peaked, a flat and a usual distribution."""
    torch.manual_seed(1)
    rows = [torch.randn(300) * scale for scale in (0.3, 2.0, 5.0)]
    builders = dict(
        temperature=lp.TemperatureLogitsWarper, top_k=lp.TopKLogitsWarper, top_p=lp.TopPLogitsWarper,
        min_p=lp.MinPLogitsWarper, typical_p=lp.TypicalLogitsWarper, epsilon_cutoff=lp.EpsilonLogitsWarper,
        eta_cutoff=lp.EtaLogitsWarper,
    )
    settings = [
        dict(temperature=0.5), dict(temperature=3.0), dict(top_k=7), dict(top_p=0.6), dict(min_p=0.05),
        dict(typical_p=0.2), dict(typical_p=0.9), dict(epsilon_cutoff=0.002), dict(epsilon_cutoff=0.5),
        dict(eta_cutoff=0.003), dict(eta_cutoff=0.3),
        dict(temperature=1.5, top_k=100, top_p=0.95, min_p=0.01, typical_p=0.8, epsilon_cutoff=1e-3, eta_cutoff=2e-3),
    ]
    for i, logits in enumerate(rows):
        left = []
        for setting in settings:
            scores = logits[None]
            for name, value in setting.items():
                scores = builders[name](value)(None, scores)
            p = scores.softmax(dim=-1)[0]
            left.append({"args": setting, "p": {int(id): float(p[id]) for id in torch.nonzero(p)[:, 0]}})
        yield {"name": f"row {i}", "logits": logits.tolist(), "left": left}


if __name__ == "__main__":
    for make in (warpers, micro, tiny512, stories):
        if sys.argv[1:] in ([], [make.__name__]):
            write(f"{make.__name__}.json", make())
