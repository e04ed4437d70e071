//! Checkpoints: any files are a message that says which one is wrong, or a model that opens.
//!
//! An input is four parts with a zero byte between them: `config.json`, `tokenizer.json`, the header of
//! `model.safetensors`, and what its tensors are filled with. Its first byte is the type of the file to be made.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::ValueEnum;
use gptrickle::checkpoint::Checkpoint;
use gptrickle::convert;
use gptrickle::mix::FileType;
use gptrickle_core::generate::Model;
use serde_json::{Value, json};

use super::{Target, assert_sayable};

pub(super) const TARGET: Target = Target {
    name: "checkpoint",
    about: "safetensors, config.json and tokenizer.json, converted to a file that opens",
    check,
    seeds,
    words: &[
        "n_layer",
        "n_head",
        "n_embd",
        "n_inner",
        "n_positions",
        "vocab_size",
        "layer_norm_epsilon",
        "model_type",
        "tie_word_embeddings",
        "lm_head.weight",
        "transformer.",
        "dtype",
        "shape",
        "data_offsets",
        "F32",
        "F16",
        "BF16",
        "F64",
        "I64",
        "BOOL",
        "__metadata__",
        "added_tokens",
        "special",
        "vocab",
        "merges",
        "pre_tokenizer",
        "ByteLevel",
        "16777215",
        "18446744073709551615",
        "null",
        "1e400",
    ],
};

/// Most bytes that tensors are filled with; a header that promises more is of a file that was cut.
const MOST: usize = 1 << 16;

/// A folder for this process.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("gptrickle-checkpoint-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for temporary files");
    folder
});

fn check(input: &[u8]) {
    let Some((&kind, input)) = input.split_first() else { return };
    let mut parts = input.splitn(4, |&byte| byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (config, tokenizer, header, fill) = (part(), part(), part(), part());
    let types = FileType::value_variants();
    let files = [("config.json", config), ("tokenizer.json", tokenizer), ("model.safetensors", &weights(header, fill))];
    for (name, bytes) in files {
        fs::write(FOLDER.join(name), bytes).expect("room for temporary files");
    }
    if let Err(error) = convert(types[usize::from(kind) % types.len()]) {
        assert_sayable(&format!("{error:#}").replace('\n', " "));
    }
}

/// Converts what is in the folder; what comes of it must open.
fn convert(file_type: FileType) -> anyhow::Result<()> {
    let model = convert::Model::new(Checkpoint::open(&FOLDER)?, file_type)?;
    let mut file = model.header().start(Vec::new())?;
    model.encode(|blocks| Ok(file.write(blocks)?))?;
    let file = file.finish()?;
    Model::open(&mut &file[..]).expect("what was converted can be opened");
    Ok(())
}

/// A safetensors file with this header and as many bytes behind it as it promises, up to [`MOST`].
fn weights(header: &[u8], fill: &[u8]) -> Vec<u8> {
    let tensors: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap_or_default();
    let end = |tensor: &Value| tensor.get("data_offsets")?.get(1)?.as_u64();
    let promised = tensors.values().filter_map(end).max().unwrap_or(0).min(MOST as u64);
    let data = fill.iter().copied().cycle().chain(std::iter::repeat(0)).take(promised as usize);
    (header.len() as u64).to_le_bytes().into_iter().chain(header.iter().copied()).chain(data).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    vec![seed(0, "F32", 4, false), seed(3, "F16", 2, true), seed(14, "BF16", 2, false)]
}

/// A checkpoint of one layer.
fn seed(kind: u8, dtype: &str, width: usize, untied: bool) -> Vec<u8> {
    let (n_embd, n_vocab, n_ctx) = (32, 4, 2);
    let config = json!({ "model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": n_embd, "n_inner": n_embd,
        "n_positions": n_ctx, "vocab_size": n_vocab, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "bos_token_id": 3, "eos_token_id": 3, "tie_word_embeddings": !untied });
    let tokenizer = json!({
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2 }, "merges": [["a", "b"]] },
        "added_tokens": [{ "id": 3, "content": "<e>", "special": true }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false },
        "post_processor": { "type": "ByteLevel" },
    });
    let mut at = 0;
    let mut header = serde_json::Map::new();
    let mut add = |name: &str, shape: &[usize]| {
        let end = at + width * shape.iter().product::<usize>();
        header.insert(name.into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        at = end;
    };
    add("wte.weight", &[n_vocab, n_embd]);
    add("wpe.weight", &[n_ctx, n_embd]);
    for norm in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
        add(&format!("{norm}.weight"), &[n_embd]);
        add(&format!("{norm}.bias"), &[n_embd]);
    }
    for (name, outputs) in
        [("attn.c_attn", 3 * n_embd), ("attn.c_proj", n_embd), ("mlp.c_fc", n_embd), ("mlp.c_proj", n_embd)]
    {
        add(&format!("h.0.{name}.weight"), &[n_embd, outputs]);
        add(&format!("h.0.{name}.bias"), &[outputs]);
    }
    if untied {
        add("lm_head.weight", &[n_vocab, n_embd]);
    }
    let parts = [config.to_string(), tokenizer.to_string(), Value::from(header).to_string(), "\x3c\x3d\x3e\x3f".into()];
    [&[kind][..], parts.join("\0").as_bytes()].concat()
}
