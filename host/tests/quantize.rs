//! `gptrickle quantize` and `importance` from end to end: types, layout, closeness, and what they refuse.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::ValueEnum;
use gptrickle::checksums;
use gptrickle::importance::Importance;
use gptrickle::mix::{FileType, Mix};
use gptrickle::quantize::{Options, Override, Plan, SECTOR};
use gptrickle::synth::Model;
use gptrickle_core::gguf::{self, Value};
use gptrickle_core::gpt2::KvFormat;
use gptrickle_core::quant::Format;
use gptrickle_tests::{files, logits, vectors};

fn synthetic(shape: &str, file_type: FileType, tied: bool) -> Vec<u8> {
    let model = Model { shape: shape.parse().unwrap(), file_type, tied, seed: 42 };
    model.write(Vec::new(), |_| Ok(())).unwrap()
}

fn quantized(input: &[u8], mix: &str) -> Vec<u8> {
    let options = Options { mix: mix.parse().unwrap(), overrides: &[], importance: None, requantize: false };
    written(input, &options)
}

fn written(input: &[u8], options: &Options) -> Vec<u8> {
    let plan = Plan::new(input, options).unwrap();
    plan.write(Cursor::new(Vec::new()), |_| Ok(())).unwrap().into_inner()
}

/// Type, place and bytes of each tensor.
fn tensors(mut file: &[u8]) -> BTreeMap<String, (&'static str, u64, u64)> {
    let header = gguf::open(&mut file, |_, _| Ok::<(), gguf::Error>(())).unwrap();
    let mut infos = header.tensors(&mut file);
    let mut found = BTreeMap::new();
    while let Some(info) = infos.next().unwrap() {
        found.insert(info.name.to_string(), (info.kind.name, info.span.at, info.span.len));
    }
    found
}

fn types(file: &[u8]) -> BTreeMap<String, &'static str> {
    tensors(file).into_iter().map(|(name, (kind, ..))| (name, kind)).collect()
}

fn keys(mut file: &[u8]) -> Vec<String> {
    let mut keys = Vec::new();
    gguf::open(&mut file, |key, value| {
        keys.push(format!("{key} {}", format!("{value:?}").split('(').next().unwrap()));
        Ok::<(), gguf::Error>(())
    })
    .unwrap();
    keys.sort();
    keys
}

/// The files that llama-quantize made of the same model: the same tensors, types and metadata.
#[test]
fn files_hold_what_those_of_llama_quantize_hold() {
    let all = files("micro");
    let (_, original) = all.iter().find(|(kind, _)| kind == "f32").unwrap();
    for (kind, theirs) in &all {
        let mut ours = quantized(original, kind);
        assert_eq!(types(&ours), types(theirs), "{kind}");
        assert_eq!(keys(&ours), keys(theirs), "{kind}");
        // Once more, which changes nothing.
        ours = quantized(&ours, kind);
        assert!(ours == quantized(original, kind), "{kind}");
    }
}

/// How far a row of logits is from another: the share of its power.
fn distance(logits: &[f32], from: &[f32]) -> f64 {
    let power = |all: &mut dyn Iterator<Item = f64>| all.map(|x| x * x).sum::<f64>();
    let off = power(&mut logits.iter().zip(from).map(|(a, b)| f64::from(a - b)));
    off / power(&mut from.iter().map(|&x| f64::from(x)))
}

#[test]
fn every_type_stays_near_the_original() {
    let original = synthetic("1,4,256,32,300", FileType::F32, true);
    let tokens: Vec<u32> = (0..32).map(|i| i * 7 % 300).collect();
    let expected = logits(&mut &original[..], &tokens, 32, KvFormat::F32).unwrap();
    let mut wrong = 0;
    // Random weights are harder than trained ones: about half as much again as measured.
    let bounds = [
        ("Q2", 0.6),
        ("Q3", 0.17),
        ("device2", 0.3),
        ("device4", 0.06),
        ("Q4", 0.06),
        ("IQ4", 0.06),
        ("Q5", 0.012),
        ("Q6", 0.004),
        ("F", 0.000001),
        ("", 0.001),
    ];
    let names = FileType::value_variants().iter().map(|kind| format!("{kind:?}"));
    for name in names.chain(["device2".into(), "device4".into()]) {
        let file = quantized(&original, &name);
        let found = logits(&mut &file[..], &tokens, 32, KvFormat::F32).unwrap();
        let off = distance(&found, &expected);
        let bound = bounds.iter().find(|(start, _)| name.starts_with(start)).map_or(0.0, |&(_, bound)| bound);
        println!("{name}: {off:.6} of the logits' power");
        wrong += usize::from(off > bound);
    }
    assert_eq!(wrong, 0, "too far from the original, see above");
}

#[test]
fn files_for_boards_are_laid_out_for_them() {
    let names = ["device2", "device4"];
    for (tied, mix) in [(true, names[0]), (true, names[1]), (false, names[0]), (false, names[1])] {
        let original = synthetic("2,4,256,32,300", FileType::F16, tied);
        let file = quantized(&original, mix);
        let mut src = &file[..];
        let mut entries = Vec::new();
        gguf::open(&mut src, |key, value| {
            entries.push((key.to_string(), *value));
            Ok::<(), gguf::Error>(())
        })
        .unwrap();
        let found = tensors(&file);
        assert!(!found.contains_key("output.weight"), "a copy of the embedding is stored once");
        assert!(found.values().all(|(_, at, _)| at.is_multiple_of(SECTOR.into())));
        let mut order: Vec<_> = found.iter().map(|(name, (_, at, _))| (*at, &**name)).collect();
        order.sort();
        let order: Vec<&str> = order.into_iter().map(|(_, name)| name).collect();
        assert_eq!(
            order[..4],
            ["position_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_norm.bias", "blk.0.attn_qkv.weight"]
        );
        assert_eq!(
            order[order.len() - 4..],
            ["blk.1.ffn_down.bias", "output_norm.weight", "output_norm.bias", "token_embd.weight"]
        );
        // Checksums of the file with zeros for them, before anything else in it.
        assert_eq!([&*entries[0].0, &entries[1].0], [checksums::CHUNK, checksums::TABLE]);
        let (Value::U32(chunk), Value::Array(table)) = (entries[0].1, entries[1].1) else { panic!("{entries:?}") };
        let place = table.span.at as usize..(table.span.at + table.span.len) as usize;
        let mut blank = file.clone();
        blank[place.clone()].fill(0);
        let chunks = blank.chunks(chunk as usize);
        let expected: Vec<u8> = chunks.flat_map(|bytes| crc32fast::hash(bytes).to_le_bytes()).collect();
        assert_eq!(file[place], expected);
        // A stock type of it has no table that no longer holds.
        let again = Options { requantize: true, ..options("Q8_0", &[]) };
        assert!(keys(&written(&file, &again)).iter().all(|key| !key.starts_with("gptrickle.")));
    }
}

fn options<'a>(mix: &str, overrides: &'a [Override]) -> Options<'a> {
    Options { mix: mix.parse::<Mix>().unwrap(), overrides, importance: None, requantize: false }
}

#[test]
fn exceptions_name_matrices() {
    let original = synthetic("2,2,64,16,300", FileType::F16, true);
    let exception = |pattern: &str, format| Override { pattern: pattern.into(), format };
    let exceptions = [
        exception("blk.*.ffn_*.weight", Format::Q8_0),
        exception("blk.1.ffn_up.weight", Format::F32),
        exception("*token*", Format::Q5_1),
    ];
    let found = types(&written(&original, &options("Q4_0", &exceptions)));
    let kind = |name: &str| found[name];
    assert_eq!(kind("blk.0.ffn_up.weight"), "Q8_0");
    assert_eq!(kind("blk.1.ffn_down.weight"), "Q8_0");
    assert_eq!(kind("blk.1.ffn_up.weight"), "F32");
    assert_eq!(kind("token_embd.weight"), "Q5_1");
    assert_eq!(kind("blk.0.attn_qkv.weight"), "Q4_0");
    assert_eq!(kind("blk.0.ffn_up.bias"), "F32");

    let refused = |exceptions: &[Override]| Plan::new(&original, &options("Q4_0", exceptions)).unwrap_err().to_string();
    assert!(refused(&[exception("blk.2.*", Format::Q8_0)]).contains("no matrix is called blk.2.*"));
    let message = refused(&[exception("blk.0.attn_qkv.weight", Format::Q4_K)]);
    assert!(message.contains("blk.0.attn_qkv.weight cannot be Q4_K: its rows have 64 weights, no multiple of 256"));
    for (pattern, name, matches) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a*", "ab", true),
        ("*b", "ab", true),
        ("a*a", "a", false),
        ("a*b*c", "a-b-c", true),
        ("a*b*c", "a-c-b", false),
        ("*", "", true),
    ] {
        assert_eq!(exception(pattern, Format::F32).matches(name), matches, "{pattern} and {name}");
    }
}

fn gptrickle(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gptrickle")).args(args).output().unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("gptrickle-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// One line that says why, and no file, not even a part of one.
#[test]
fn what_cannot_be_done_leaves_nothing() {
    let folder = folder("refused");
    let [input, damaged, quantised, taken, out] =
        ["in.gguf", "nan.gguf", "q.gguf", "taken.gguf", "out.gguf"].map(|name| folder.join(name));
    let mut bytes = synthetic("1,2,64,16,300", FileType::F32, true);
    fs::write(&input, &bytes).unwrap();
    fs::write(&quantised, quantized(&bytes, "Q4_0")).unwrap();
    let (_, at, _) = tensors(&bytes)["blk.0.ffn_up.weight"];
    bytes[at as usize + 64 * 4 * 3 + 8..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&damaged, &bytes).unwrap();
    fs::write(&taken, "mine").unwrap();
    let nothing = folder.join("nothing.gguf");
    let other = vectors().join("micro/ref/tokens.txt");
    for (args, why) in [
        (vec![text(&damaged), text(&out), "Q4_0"], "blk.0.ffn_up.weight, row 3: weight 2 is NaN"),
        (vec![text(&quantised), text(&out), "Q5_0"], "--allow-requantize"),
        (vec![text(&input), text(&taken), "Q5_0"], "is there already: --force replaces it"),
        (vec![text(&input), text(&folder), "Q5_0"], "is no regular file"),
        (vec![text(&nothing), text(&out), "Q5_0"], "cannot open"),
        (vec![text(&other), text(&out), "Q5_0"], "tokens.txt"),
        (vec![text(&input), text(&out), "Q2_K", "--importance", text(&input)], "is it a model?"),
        (vec![text(&input), text(&out), "Q2_K", "--tensor", "x=Q2_K"], "no matrix is called x"),
    ] {
        let output = gptrickle(&[&["quantize"][..], &args].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{why}: {error}");
        assert!(error.contains(why), "{why}: {error}");
    }
    for (args, why) in [
        ([text(&input), text(&out), "Q9"], "device2 or device4"),
        ([text(&input), text(&out), "--tensor=x=Q9"], "a matrix can be"),
    ] {
        let output = gptrickle(&[&["quantize"][..], &args].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains(why), "{why}");
    }
    let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["in.gguf", "nan.gguf", "q.gguf", "taken.gguf"]);
    assert_eq!(fs::read(&taken).unwrap(), b"mine");

    let ok = gptrickle(&["quantize", text(&input), text(&taken), "Q5_0", "--force", "--threads", "3"]);
    assert!(ok.status.success(), "{}", String::from_utf8_lossy(&ok.stderr));
    assert_eq!(fs::read(&taken).unwrap(), quantized(&fs::read(&input).unwrap(), "Q5_0"), "whatever the threads");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn importance_is_gathered_and_used() {
    let folder = folder("importance");
    let [words, gathered, plain, weighted] =
        ["words.txt", "imatrix.gguf", "plain.gguf", "weighted.gguf"].map(|name| folder.join(name));
    fs::write(&words, "The cat sat on the mat, and the dog sat by the door, where the sun came in. ".repeat(3))
        .unwrap();
    let model = vectors().join("micro/micro-f32.gguf");
    let gather = ["importance", "-m", text(&model), "-f", text(&words), "-o", text(&gathered)];
    let output = gptrickle(&gather);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let importance = Importance::read(&mut &fs::read(&gathered).unwrap()[..]).unwrap();
    assert_eq!(importance.len(), 5, "four matrices and the head");
    let up = importance.of("blk.0.ffn_up.weight").unwrap();
    assert_eq!(up.len(), 64);
    assert!(up.iter().all(|&x| x > 0.0));
    assert_eq!(importance.of("blk.0.ffn_down.weight").unwrap().len(), 256);
    assert!(importance.of("token_embd.weight").is_some(), "the head, which is tied");
    assert!(importance.of("output.weight").is_none());
    assert_eq!(gptrickle(&gather).status.code(), Some(1), "it is there already");

    for (out, more) in [(&plain, &[][..]), (&weighted, &["--importance", text(&gathered)])] {
        let output = gptrickle(&[&["quantize", text(&model), text(out), "Q4_1"][..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let (plain, weighted) = (fs::read(&plain).unwrap(), fs::read(&weighted).unwrap());
    assert_eq!(types(&plain), types(&weighted));
    assert!(keys(&weighted).contains(&"quantize.imatrix.chunks_count U32".to_owned()));
    let tokens: Vec<u32> = (0..32).map(|i| i * 11 % 264).collect();
    let run = |file: &[u8]| logits(&mut &*file, &tokens, 32, KvFormat::F32).unwrap();
    let original = run(&fs::read(&model).unwrap());
    let off = distance(&run(&weighted), &original);
    assert!(off < 0.05, "{off}");
    fs::remove_dir_all(&folder).unwrap();
}

/// What goes together on a text makes its logits come out closer than what is large on it does, in every family of codes.
#[test]
fn products_are_gathered_and_used() {
    let folder = folder("products");
    let [words, gathered, out] = ["words.txt", "imatrix.gguf", "out.gguf"].map(|name| folder.join(name));
    let sentence = "The cat sat on the mat, and the dog sat by the door, where the sun came in. ";
    fs::write(&words, sentence.repeat(3)).unwrap();
    let model = vectors().join("micro/micro-f32.gguf");
    let ok = |args: &[&str]| {
        let output = gptrickle(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    ok(&["importance", "-m", text(&model), "-f", text(&words), "-o", text(&gathered), "--products"]);
    let plain = folder.join("plain.gguf");
    ok(&["importance", "-m", text(&model), "-f", text(&words), "-o", text(&plain)]);
    let [with, without] = [&gathered, &plain].map(|file| Importance::read(&mut &fs::read(file).unwrap()[..]).unwrap());
    let products = with.products("blk.0.ffn_up.weight").unwrap();
    let squares = with.of("blk.0.ffn_up.weight").unwrap();
    assert_eq!(
        (without.of("blk.0.ffn_up.weight").as_ref(), without.products("blk.0.ffn_up.weight")),
        (Some(&squares), None)
    );
    assert_eq!(products.len(), 64 * 64);
    let count = f64::from(products[0] / squares[0]).round() as f32;
    for (i, square) in squares.iter().enumerate() {
        assert!((products[65 * i] - count * square).abs() < 1e-3 * count * square, "input {i}");
    }

    // Without a text the model writes one, the same each time.
    let own = ["a.gguf", "b.gguf"].map(|name| {
        let file = folder.join(name);
        ok(&["importance", "-m", text(&model), "-o", text(&file)]);
        Importance::read(&mut &fs::read(file).unwrap()[..]).unwrap()
    });
    assert_eq!((&*own[0].dataset, own[0].chunks), ("the model's own text", 256));
    assert_eq!(own[0], own[1]);
    assert_ne!(own[0].of("blk.0.ffn_up.weight"), Some(squares));

    let tokens: Vec<u32> = ok(&["tokenize", "--json", "-m", text(&model), sentence])
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|token| token.parse().ok())
        .collect();
    let run = |file: &[u8]| logits(&mut &*file, &tokens[..32], 32, KvFormat::F32).unwrap();
    let original = run(&fs::read(&model).unwrap());
    for mix in ["Q4_0", "Q4_1", "IQ4_NL"] {
        let off = |importance: &Importance| {
            let input = fs::read(&model).unwrap();
            let importance = Some((importance, "imatrix.gguf"));
            distance(&run(&written(&input, &Options { importance, ..options(mix, &[]) })), &original)
        };
        let (with, without) = (off(&with), off(&without));
        println!("{mix}: {with}, {without} without products");
        assert!(with < without, "{mix}: {with}, {without} without products");
    }

    let mut damaged = fs::read(&gathered).unwrap();
    let (_, at, bytes) = tensors(&damaged)["blk.0.ffn_up.weight.in_products"];
    damaged[at as usize..][..bytes as usize]
        .chunks_exact_mut(4)
        .for_each(|x| x.copy_from_slice(&(-1f32).to_le_bytes()));
    fs::write(&gathered, damaged).unwrap();
    let output = gptrickle(&["quantize", text(&model), text(&out), "Q4_1", "--importance", text(&gathered)]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("blk.0.ffn_up.weight's inputs are those of no text"), "{said}");
    assert!(!out.exists());
    fs::remove_dir_all(&folder).unwrap();
}

/// A card that lost a bit of a weight, of the vocabulary or of the table itself: a line that says where, and no text,
/// whether the file is mapped or read.
#[test]
fn a_file_for_boards_that_lost_a_bit_writes_no_text() {
    let folder = folder("lost-a-bit");
    let path = folder.join("model.gguf");
    let file = quantized(&synthetic("2,4,256,32,300", FileType::F16, true), "device4");
    let found = tensors(&file);
    let middle = |name: &str| (found[name].1 + found[name].2 / 2) as usize;
    let string = |text: &[u8]| file.windows(text.len()).position(|bytes| bytes == text).unwrap();
    let places = [
        ("tensor blk.0.attn_qkv.weight, or one beside it, is damaged", middle("blk.0.attn_qkv.weight")),
        ("tensor blk.1.ffn_down.weight, or one beside it, is damaged", middle("blk.1.ffn_down.weight")),
        ("tensor token_embd.weight, or one beside it, is damaged", middle("token_embd.weight")),
        ("checksum", string(b"gpt2.attention.layer_norm_epsilon") + 37),
        ("checksum", string(b"tokenizer.ggml.tokens") + 45),
        ("checksum", string(checksums::TABLE.as_bytes()) + checksums::TABLE.len() + 16),
    ];
    let generate = |source: &[&str]| {
        gptrickle(&[&["generate", "-m", text(&path), "a", "-n", "8", "--temperature", "0"][..], source].concat())
    };
    for source in
        [&["--source", "mmap"][..], &["--source", "file"], &["--source", "file,no-prefetch", "--buffer", "4KiB"]]
    {
        fs::write(&path, &file).unwrap();
        let whole = generate(source);
        assert!(whole.status.success() && !whole.stdout.is_empty(), "{}", String::from_utf8_lossy(&whole.stderr));
        for (words, at) in places {
            let mut damaged = file.clone();
            damaged[at] ^= 16;
            fs::write(&path, damaged).unwrap();
            let output = generate(source);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &[][..]), "{words}, {at}: {said}");
            assert!(said.contains(words), "{words} is missing: {said}");
        }
    }
    fs::remove_dir_all(&folder).unwrap();
}
