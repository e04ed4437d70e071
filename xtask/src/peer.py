"""One run of llama.cpp's C API on one GGUF file, as one line of JSON on standard output.

Arguments: FILE THREADS CONTEXT PROMPT DECODE. Nothing is timed but calls of the library: `start_s` is from its set-up,
after Python has imported it, to the logits of a first token; `prefill_s` and `decode_s` are time inside llama_decode.
"""

import ctypes
import json
import sys
from time import perf_counter

import llama_cpp
import numpy


def status(field):
    """A figure of /proc/self/status, in bytes."""
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


def silent(level, text, data):
    pass


def fill(batch, tokens, first):
    """Puts tokens into the batch, at positions from `first` on; only the last one's logits are wanted."""
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i] = token
        batch.pos[i] = first + i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = i == len(tokens) - 1


def decode(context, batch):
    """Seconds that the library takes for the batch."""
    start = perf_counter()
    code = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_synchronize(context)
    took = perf_counter() - start
    if code != 0:
        sys.exit(f"llama_decode: {code}")
    return took


def likeliest(context, n_vocab):
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    return int(numpy.ctypeslib.as_array(logits, shape=(n_vocab,)).argmax())


def main():
    path, (threads, n_ctx, n_prompt, n_decode) = sys.argv[1], map(int, sys.argv[2:])
    log = llama_cpp.llama_log_callback(silent)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    rss_before = status("VmRSS")

    start = perf_counter()
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = params.n_ubatch = n_prompt
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit("llama.cpp makes no context")
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(n_prompt, 0, 1)
    tokens = [(7 + 31 * i) % n_vocab for i in range(n_prompt)]
    fill(batch, tokens[:1], 0)
    decode(context, batch)
    start_s = perf_counter() - start

    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    fill(batch, tokens, 0)
    prefill_s = decode(context, batch)
    decode_s = 0.0
    for i in range(n_decode):
        fill(batch, [likeliest(context, n_vocab)], n_prompt + i)
        decode_s += decode(context, batch)

    report = {
        "version": llama_cpp.__version__,
        "system": llama_cpp.llama_print_system_info().decode(),
        "start_s": start_s,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "rss_before_bytes": rss_before,
        "peak_rss_bytes": status("VmHWM"),
    }
    print(json.dumps(report))


main()
