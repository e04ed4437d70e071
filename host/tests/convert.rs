//! Checkpoints become files: the same file of every kind of checkpoint, the same values, one line for each that cannot.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gptrickle_core::gguf::{self, Tensor};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

const N_LAYER: usize = 2;
const N_EMBD: usize = 64;
const N_FF: usize = 96;
const N_CTX: usize = 24;
const N_VOCAB: usize = 260;
const END: &str = "<|endoftext|>";

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A checkpoint in the making.
#[derive(Clone)]
struct Checkpoint {
    config: Value,
    tensors: Tensors,
    dtype: Dtype,
    prefix: &'static str,
    buffers: bool,
    shards: usize,
    tokenizer: Vec<(&'static str, String)>,
}

impl Checkpoint {
    /// A tied one, as transformers writes it today. Its weights are the same in F16 and in BF16.
    fn new() -> Checkpoint {
        let mut tensors = Tensors::new();
        let mut add = |name: String, shape: &[usize]| {
            let seed = name.bytes().fold(0u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
            let weight = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 26) as f32 / 128.0 - 0.25;
            let weights = (0..shape.iter().product::<usize>() as u32).map(weight).collect();
            tensors.insert(name, (shape.to_vec(), weights));
        };
        add("wte.weight".into(), &[N_VOCAB, N_EMBD]);
        add("wpe.weight".into(), &[N_CTX, N_EMBD]);
        for layer in 0..N_LAYER {
            for norm in ["ln_1", "ln_2"] {
                add(format!("h.{layer}.{norm}.weight"), &[N_EMBD]);
                add(format!("h.{layer}.{norm}.bias"), &[N_EMBD]);
            }
            let linear = [
                ("attn.c_attn", N_EMBD, 3 * N_EMBD),
                ("attn.c_proj", N_EMBD, N_EMBD),
                ("mlp.c_fc", N_EMBD, N_FF),
                ("mlp.c_proj", N_FF, N_EMBD),
            ];
            for (name, inputs, outputs) in linear {
                add(format!("h.{layer}.{name}.weight"), &[inputs, outputs]);
                add(format!("h.{layer}.{name}.bias"), &[outputs]);
            }
        }
        add("ln_f.weight".into(), &[N_EMBD]);
        add("ln_f.bias".into(), &[N_EMBD]);
        let config = json!({ "model_type": "gpt2", "n_layer": N_LAYER, "n_head": 4, "n_embd": N_EMBD, "n_inner": N_FF,
            "n_positions": N_CTX, "vocab_size": N_VOCAB, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "bos_token_id": N_VOCAB - 1, "eos_token_id": N_VOCAB - 1 });
        let merges = [["t", "h"], ["th", "e"], ["Ġ", "the"]];
        let json = json!({
            "added_tokens": [{ "id": N_VOCAB - 1, "content": END, "special": true }],
            "normalizer": null,
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true },
            "model": { "type": "BPE", "vocab": vocab(), "merges": merges },
        });
        let tokenizer = vec![("tokenizer.json", json.to_string())];
        Checkpoint { config, tensors, dtype: Dtype::F32, prefix: "transformer.", buffers: false, shards: 1, tokenizer }
    }

    /// With the vocabulary in the older form.
    fn with_lists(mut self) -> Checkpoint {
        let merges = "#version: 0.2\nt h\nth e\nĠ the\n".to_owned();
        self.tokenizer = vec![("vocab.json", vocab().to_string()), ("merges.txt", merges)];
        self
    }

    /// With a head that is `change` of the embedding.
    fn with_head(mut self, change: impl Fn(f32) -> f32) -> Checkpoint {
        let (shape, weights) = &self.tensors["wte.weight"];
        let head = (shape.clone(), weights.iter().map(|&weight| change(weight)).collect());
        self.tensors.insert("lm_head.weight".into(), head);
        self
    }

    fn change(&self, change: impl FnOnce(&mut Checkpoint)) -> Checkpoint {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }

    /// Writes it into a new folder.
    fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        for (file, text) in &self.tokenizer {
            fs::write(folder.join(file), text).unwrap();
        }
        let width = self.dtype.bitsize() / 8;
        let bytes = |weight: &f32| match self.dtype {
            Dtype::F16 => f16::from_f32(*weight).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f32(*weight).to_le_bytes().to_vec(),
            Dtype::F32 => weight.to_le_bytes().to_vec(),
            _ => vec![0; width],
        };
        let mut stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (name, (shape, weights)) in &self.tensors {
            let prefix = if name == "lm_head.weight" { "" } else { self.prefix };
            let data = weights.iter().flat_map(bytes).collect();
            stored.push((format!("{prefix}{name}"), self.dtype, shape.clone(), data));
        }
        for layer in (0..N_LAYER).filter(|_| self.buffers) {
            let name = |buffer| format!("{}h.{layer}.attn.{buffer}", self.prefix);
            stored.push((name("bias"), Dtype::BOOL, vec![1, 1, N_CTX, N_CTX], vec![1; N_CTX * N_CTX]));
            stored.push((name("masked_bias"), self.dtype, vec![], vec![0; width]));
        }
        let file = |shard: usize| format!("model-{:05}-of-{:05}.safetensors", shard + 1, self.shards);
        let mut map = serde_json::Map::new();
        for shard in 0..self.shards {
            let part = stored.iter().skip(shard).step_by(self.shards);
            map.extend(part.clone().map(|(name, ..)| (name.clone(), file(shard).into())));
            let views = part.map(|(name, dtype, shape, data)| {
                (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
            });
            let file = if self.shards == 1 { "model.safetensors".to_owned() } else { file(shard) };
            fs::write(folder.join(file), serialize(views, None).unwrap()).unwrap();
        }
        if self.shards > 1 {
            let index = json!({ "metadata": {}, "weight_map": map });
            fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    }
}

/// The byte alphabet, three merges and the mark.
fn vocab() -> Value {
    let alphabet = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('\u{100}'..='\u{143}').map(String::from);
    let tokens = alphabet.chain(["th", "the", "Ġthe", END].map(str::to_owned));
    tokens.enumerate().map(|(id, token)| (token, Value::from(id))).collect::<serde_json::Map<_, _>>().into()
}

/// A folder for a test, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("convert-{name}"));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What is in it.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Exit code, standard output and standard error.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gptrickle")).args(args).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Converts a checkpoint, and returns the file and what was said of it.
fn convert(folder: &Folder, checkpoint: &Checkpoint, file_type: &str) -> (Vec<u8>, String) {
    let (from, to) = (folder.path("tiny"), folder.path("out.gguf"));
    let _ = fs::remove_dir_all(&from);
    checkpoint.write(&from);
    let (code, out, err) = run(&["convert", text(&from), "--type", file_type, "-o", text(&to), "--force"]);
    assert_eq!((code, &*out), (Some(0), ""), "{err}");
    (fs::read(to).unwrap(), err)
}

fn tensors(mut file: &[u8]) -> Vec<Tensor> {
    let header = gguf::open(&mut file, |_, _| Ok::<_, gguf::Error>(())).unwrap();
    let (mut all, mut tensors) = (Vec::new(), header.tensors(&mut file));
    while let Some(tensor) = tensors.next().unwrap() {
        all.push(tensor);
    }
    all
}

#[test]
fn every_value_is_where_it_belongs() {
    let folder = Folder::new("values");
    let checkpoint = Checkpoint::new().with_head(|weight| weight / 2.0);
    let (file, _) = convert(&folder, &checkpoint, "F32");
    let names = [
        ("token_embd", "wte"),
        ("position_embd", "wpe"),
        ("output_norm", "ln_f"),
        ("output", "lm_head"),
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ];
    let found = tensors(&file);
    assert_eq!(found.len(), checkpoint.tensors.len());
    for tensor in found {
        let name = tensor.name.to_string();
        let (part, suffix) = name.rsplit_once('.').unwrap();
        let (layer, part) = match part.strip_prefix("blk.").and_then(|part| part.split_once('.')) {
            Some((layer, part)) => (format!("h.{layer}."), part),
            None => (String::new(), part),
        };
        let from = names.iter().find(|(to, _)| *to == part).unwrap().1;
        let (shape, weights) = &checkpoint.tensors[&format!("{layer}{from}.{suffix}")];
        let bytes = &file[tensor.span.at as usize..][..tensor.span.len as usize];
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        match shape[..] {
            [rows, cols] if layer.is_empty() => {
                assert_eq!(tensor.dims, [cols as u64, rows as u64, 1, 1], "{name}");
                assert_eq!(values, *weights, "{name}");
            }
            [inputs, outputs] => {
                assert_eq!(tensor.dims, [inputs as u64, outputs as u64, 1, 1], "{name}");
                for (i, value) in values.iter().enumerate() {
                    assert_eq!(*value, weights[i % inputs * outputs + i / inputs], "{name}, value {i}");
                }
            }
            _ => assert_eq!(values, *weights, "{name}"),
        }
    }
}

#[test]
fn every_kind_of_checkpoint_makes_the_same_file() {
    let folder = Folder::new("kinds");
    let plain = Checkpoint::new();
    let (file, said) = convert(&folder, &plain, "F32");
    assert!(said.contains("out.gguf: F32, ") && said.lines().count() == 1, "{said}");
    let same = [
        ("F16", plain.change(|c| c.dtype = Dtype::F16)),
        ("BF16", plain.change(|c| c.dtype = Dtype::BF16)),
        ("shards", plain.change(|c| c.shards = 3)),
        ("bare names and buffers", plain.change(|c| (c.prefix, c.buffers) = ("", true))),
        ("buffers", plain.change(|c| c.buffers = true)),
        ("a head that is a copy", plain.clone().with_head(|weight| weight)),
        ("vocab.json and merges.txt", plain.clone().with_lists()),
        (
            "merges as texts",
            plain.change(|c| {
                c.tokenizer[0].1 = c.tokenizer[0].1.replace(r#"["t","h"],["th","e"]"#, r#""t h","th e""#);
            }),
        ),
    ];
    for (what, checkpoint) in same {
        assert!(convert(&folder, &checkpoint, "F32").0 == file, "{what}");
    }
    let head = convert(&folder, &plain.clone().with_head(|weight| -weight), "F32");
    assert!(
        head.1.contains("note: config.json ties the head to the embedding, but lm_head.weight is another"),
        "{}",
        head.1
    );
    let untied = plain.change(|c| c.config["tie_word_embeddings"] = false.into()).with_head(|weight| -weight);
    assert!(convert(&folder, &untied, "F32").0 == head.0, "separate heads");
}

#[test]
fn files_of_every_type_are_sound_and_run() {
    let folder = Folder::new("types");
    let checkpoint = Checkpoint::new();
    for file_type in ["F32", "f16", "BF16", "Q8_0", "Q4_0", "q4_k_m", "Q2_K", "IQ4_XS"] {
        convert(&folder, &checkpoint, file_type);
        let file = folder.path("out.gguf");
        let (code, out, _) = run(&["verify", text(&file)]);
        let ok = out.lines().filter(|line| line.contains(" ok ")).count();
        assert_eq!((code, ok, out.lines().count()), (Some(0), 4, 5), "{file_type}: {out}");
        let (code, _, err) = run(&["generate", "-m", text(&file), "the", "-n", "4"]);
        assert_eq!(code, Some(0), "{file_type}: {err}");
    }
}

#[test]
fn rows_without_a_token_are_made_up_and_strange_settings_are_told() {
    let folder = Folder::new("padded");
    let padded = Checkpoint::new().change(|c| {
        c.config["vocab_size"] = (N_VOCAB + 4).into();
        c.config["eos_token_id"] = 50256.into();
        let (shape, weights) = c.tensors.get_mut("wte.weight").unwrap();
        shape[0] += 4;
        weights.extend([0.5; 4 * N_EMBD]);
        c.tokenizer[0].1 = c.tokenizer[0].1.replace("\"add_prefix_space\":false", "\"add_prefix_space\":true");
    });
    let (_, said) = convert(&folder, &padded, "F16");
    let notes: Vec<_> = said.lines().filter(|line| line.starts_with("note: ")).collect();
    assert!(notes.len() == 2 && said.contains("eos_token_id is 50256") && said.contains("puts a space"), "{said}");
    let file = folder.path("out.gguf");
    let (code, out, _) = run(&["verify", text(&file)]);
    assert_eq!(code, Some(0), "{out}");
    assert!(
        out.contains("264 tokens, 3 merges, 256 of 256 bytes") && out.contains("note: no token ends a text"),
        "{out}"
    );
}

#[test]
fn what_cannot_be_converted_is_told_in_a_line_and_nothing_is_written() {
    let folder = Folder::new("refused");
    let (from, to) = (folder.path("tiny"), folder.path("out.gguf"));
    let refused = |words: &[&str], args: &[&str]| {
        let (code, out, err) = run(&[&["convert", text(&from), "-o", text(&to)], args].concat());
        assert_eq!((code, &*out, err.lines().count()), (Some(1), "", 1), "{err}");
        assert!(err.starts_with("error: ") && words.iter().all(|word| err.contains(word)), "{words:?}: {err}");
        assert!(folder.names().iter().all(|name| name == "tiny"), "{:?}", folder.names());
    };
    refused(&["cannot open", "tiny", "No such file"], &[]);

    type Change = fn(&mut Checkpoint);
    let changes: [(&[&str], Change); 18] = [
        (&["config.json", "type \"bert\", only \"gpt2\""], |c| {
            c.config = json!({ "model_type": "bert", "hidden_size": 768, "vocab_size": 30522 });
        }),
        (&["no tensor h.1.ln_2.bias"], |c| _ = c.tensors.remove("h.1.ln_2.bias")),
        (&["no tensor lm_head.weight"], |c| c.config["tie_word_embeddings"] = false.into()),
        (&["tensor transformer.h.0.attn.c_attn.weight has shape [192, 64], config.json makes it [64, 192]"], |c| {
            c.tensors.get_mut("h.0.attn.c_attn.weight").unwrap().0.reverse();
        }),
        (&["wpe.weight has shape [24, 64], config.json makes it [32, 64]"], |c| c.config["n_positions"] = 32.into()),
        (&["tensor score.weight, which no GPT2LMHeadModel"], |c| {
            c.prefix = "";
            c.tensors.insert("score.weight".into(), (vec![2, N_EMBD], vec![0.0; 2 * N_EMBD]));
        }),
        (&["tensor transformer.h.1.mlp.c_fc.weight has NaN at [1, 2]", "training failed"], |c| {
            c.tensors.get_mut("h.1.mlp.c_fc.weight").unwrap().1[N_FF + 2] = f32::NAN;
        }),
        (&["tensor transformer.ln_f.bias has -inf at [63]"], |c| {
            *c.tensors.get_mut("ln_f.bias").unwrap().1.last_mut().unwrap() = f32::NEG_INFINITY;
        }),
        (&["tensor transformer.wte.weight has inf at [0, 0]"], |c| {
            c.tensors.get_mut("wte.weight").unwrap().1[0] = 1e30; // in F16
            c.dtype = Dtype::F16;
        }),
        (&["wte.weight has the value 100000, beyond F16: use --type F32 or BF16"], |c| {
            c.tensors.get_mut("wte.weight").unwrap().1[0] = 1e5;
        }),
        (&["model.safetensors", "wte.weight has type F64, only F32, F16 and BF16"], |c| c.dtype = Dtype::F64),
        (&["config.json", "activation_function is \"relu\""], |c| c.config["activation_function"] = "relu".into()),
        (&["could not be run: 5 attention heads do not divide"], |c| c.config["n_head"] = 5.into()),
        (&["config.json", "n_embd"], |c| _ = c.config.as_object_mut().unwrap().remove("n_embd")),
        (&["neither tokenizer.json nor vocab.json and merges.txt"], |c| c.tokenizer.clear()),
        (&["tokenizer.json is damaged"], |c| c.tokenizer[0].1.truncate(1000)),
        (&["the tokenizer has 260 tokens, the embedding only 259 rows"], |c| {
            c.config["vocab_size"] = 259.into();
            let (shape, weights) = c.tensors.get_mut("wte.weight").unwrap();
            shape[0] = 259;
            weights.truncate(259 * N_EMBD);
        }),
        (&["could not be run", "merge 1 makes a text that is no token"], |c| {
            c.tokenizer[0].1 = c.tokenizer[0].1.replace(r#"["th","e"]"#, r#"["th","x"]"#);
        }),
    ];
    for (words, change) in changes {
        let _ = fs::remove_dir_all(&from);
        Checkpoint::new().change(change).write(&from);
        refused(words, &[]);
    }
}

#[test]
fn damaged_weights_are_told_in_a_line_and_nothing_is_written() {
    let folder = Folder::new("damaged");
    let (from, to) = (folder.path("tiny"), folder.path("out.gguf"));
    let refused = |words: &[&str]| {
        let (code, out, err) = run(&["convert", text(&from), "-o", text(&to)]);
        assert_eq!((code, &*out, err.lines().count()), (Some(1), "", 1), "{err}");
        assert!(err.starts_with("error: ") && words.iter().all(|word| err.contains(word)), "{words:?}: {err}");
        assert_eq!(folder.names(), ["tiny"]);
    };
    Checkpoint::new().change(|c| c.shards = 2).write(&from);
    let shard = from.join("model-00002-of-00002.safetensors");
    let whole = fs::read(&shard).unwrap();
    let change = |bytes: &[u8], words: &[&str]| {
        fs::write(&shard, bytes).unwrap();
        refused(&[&["model-00002-of-00002.safetensors"], words].concat());
    };
    let (len, header) = (whole.len(), u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize);
    change(
        &whole[..len - 1],
        &[&format!("tensors end at {len}, the file at {}", len - 1), "truncated", "copy it again"],
    );
    change(&whole[..8 + header / 2], &["ends within its header", "truncated"]);
    change(&whole[..5], &["has 5 bytes and no header"]);
    change(&[&whole[..], &[0]].concat(), &["damaged"]);
    change(&[&[0xff; 8], &whole[8..]].concat(), &["header claims 18446744073709551615 bytes"]);
    let json = String::from_utf8(whole[8..8 + header].to_vec()).unwrap();
    let with = |json: &str| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &whole[8 + header..]].concat();
    change(&with(&json.replacen("F32", "F3x", 1)), &["tensor transformer.", "has type F3x, only F32, F16 and BF16"]);
    change(&with(&json.replacen("shape", "shops", 1)), &["its header is damaged"]);
    fs::remove_file(&shard).unwrap();
    refused(&["cannot open", "model-00002-of-00002.safetensors", "No such file"]);
    fs::write(&shard, fs::read(from.join("model-00001-of-00002.safetensors")).unwrap()).unwrap();
    refused(&["stands in the checkpoint twice"]);
    fs::write(&shard, serialize(Vec::<(String, TensorView)>::new(), None).unwrap()).unwrap();
    refused(&["has no tensor transformer.", "though model.safetensors.index.json says so"]);
    fs::remove_file(from.join("model.safetensors.index.json")).unwrap();
    refused(&["has neither model.safetensors nor model.safetensors.index.json"]);
    fs::write(from.join("pytorch_model.bin"), "").unwrap();
    refused(&["pytorch_model.bin", "as safetensors"]);
}

#[test]
fn an_output_that_is_there_needs_force_and_stays_when_the_disk_is_full() {
    let folder = Folder::new("output");
    let (from, to) = (folder.path("tiny"), folder.path("out.gguf"));
    Checkpoint::new().write(&from);
    fs::write(&to, "precious").unwrap();
    let refused = |words: &[&str], args: &[&str]| {
        let (code, _, err) = run(&[&["convert", text(&from), "-o", text(&to)], args].concat());
        assert_eq!((code, err.lines().count()), (Some(1), 1), "{err}");
        assert!(err.starts_with("error: ") && words.iter().all(|word| err.contains(word)), "{words:?}: {err}");
        assert_eq!(
            (folder.names(), fs::read(&to).unwrap()),
            (vec!["out.gguf".into(), "tiny".into()], b"precious".into())
        );
    };
    refused(&["out.gguf is there already: --force replaces it"], &[]);
    #[cfg(target_os = "linux")]
    {
        std::os::unix::fs::symlink("/dev/full", folder.path("out.gguf.part")).unwrap();
        refused(&["cannot write", "out.gguf", "No space left"], &["--force"]);
        let (code, _, err) = run(&["convert", text(&from), "-o", "/dev/full"]);
        assert_eq!((code, &*err), (Some(1), "error: /dev/full is no regular file: name another\n"));
    }
    let (code, _, err) = run(&["convert", text(&from), "-o", text(&to), "--force"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(fs::read(&to).unwrap().starts_with(b"GGUF"));
    let (code, _, err) = run(&["convert", text(&from.join("config.json")), "-o", text(&folder.path("b.gguf"))]);
    assert!(code == Some(1) && err.contains("config.json is no folder: name the one"), "{err}");
}
