//! Synthetic models: they run, and hold what llama.cpp's own files of the same shape and type hold.

use std::collections::BTreeMap;
use std::fs;

use clap::ValueEnum;
use gptrickle::mix::FileType;
use gptrickle::synth::Model;
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{self, Options, Plan, Session};
use gptrickle_core::gguf;
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::sampler::Params;
use gptrickle_core::tokenizer::{Control, Tokenizer};
use gptrickle_tests::vectors;

fn model(shape: &str, file_type: FileType, tied: bool) -> Model {
    Model { shape: shape.parse().unwrap(), file_type, tied, seed: 42 }
}

fn synthetic(shape: &str, file_type: FileType, tied: bool) -> Vec<u8> {
    model(shape, file_type, tied).write(Vec::new(), |_| Ok(())).unwrap()
}

/// Shape, type and place of each tensor; keys of the metadata with the ids of their values' types.
type Contents = (BTreeMap<String, ([u64; 4], &'static str, u64)>, Vec<String>);

fn contents(mut src: &[u8]) -> Contents {
    let file = gguf::open(&mut src, |_, _| Ok::<(), gguf::Error>(())).unwrap();
    let mut keys = Vec::new();
    let mut entries = file.entries(&mut src);
    while let Some((key, value)) = entries.next().unwrap() {
        let kind = format!("{value:?}");
        keys.push(format!("{key} {}", kind.split('(').next().unwrap()));
    }
    keys.sort();
    let mut tensors = BTreeMap::new();
    let mut first = u64::MAX;
    let mut infos = file.tensors(&mut src);
    while let Some(info) = infos.next().unwrap() {
        first = first.min(info.span.at);
        tensors.insert(info.name.to_string(), (info.dims, info.kind.name, info.span.at));
    }
    tensors.values_mut().for_each(|tensor| tensor.2 -= first);
    (tensors, keys)
}

/// Every file of the reference vectors has a synthetic twin: the same tensors, types, order and metadata.
#[test]
fn files_are_laid_out_as_llama_quantize_lays_them_out() {
    let families = [
        ("micro", "1,2,64,32,264", true),
        ("tiny512", "2,4,256,128,512", true),
        ("tiny512-untied", "2,4,256,128,512", false),
    ];
    let mut n_files = 0;
    for (family, shape, tied) in families {
        for entry in fs::read_dir(vectors().join(family)).unwrap() {
            let path = entry.unwrap().path();
            let Some(name) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".gguf") else { continue };
            let kind = name.strip_prefix(family).unwrap().trim_start_matches('-');
            let file_type = FileType::from_str(kind, true).unwrap();
            let (mut real, mut keys) = contents(&fs::read(&path).unwrap());
            let (mut ours, our_keys) = contents(&synthetic(shape, file_type, tied));
            if file_type.base().is_float() {
                // Straight from the converter, which has another order.
                real.values_mut().chain(ours.values_mut()).for_each(|tensor| tensor.2 = 0);
            }
            assert_eq!(ours, real, "{name}");
            keys.retain(|key| !key.starts_with("quantize.imatrix"));
            assert_eq!(our_keys, keys, "{name}");
            n_files += 1;
        }
    }
    assert!(n_files >= 27, "{n_files} files compared");
}

#[test]
fn every_type_runs() {
    for &file_type in FileType::value_variants() {
        // Rows of 64 make most types fall back, rows of 256 do not.
        for (shape, tied) in [("2,2,64,16,300", true), ("1,4,256,16,300", false)] {
            let file = synthetic(shape, file_type, tied);
            let mut src = &file[..];
            let model = generate::Model::open(&mut src).unwrap();
            assert_eq!(model.header.tied, tied);
            let state = gpt2::Options { context: 16, batch: 4, kv: KvFormat::F32, ..Default::default() };
            let options = Options { state, sampling: Params::default(), seed: 1, ..Options::default() };
            let mut memory = vec![0; Plan::new(&model, &options).total() + ALIGN];
            let mut session = Session::new(&model, &options, &mut src, &mut Arena::new(&mut memory)).unwrap();
            session.push_text(&mut src, b"the tea", Control::Ignore).unwrap();
            assert!(session.next(&mut src).unwrap().is_some(), "{file_type:?}");
        }
    }
}

/// The signal neither fades nor grows, however deep the model: logits have a deviation of about 4.
#[test]
fn logits_are_sane_at_any_depth() {
    for (shape, file_type) in
        [("1,4,256,16,300", FileType::Q4_0), ("48,4,256,16,300", FileType::Q2_K), ("128,1,32,16,300", FileType::F16)]
    {
        let file = synthetic(shape, file_type, true);
        let logits = gptrickle_tests::logits(&mut &file[..], &[1, 2, 3, 4, 5, 6, 7, 8], 8, KvFormat::F32).unwrap();
        let square = logits.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / logits.len() as f64;
        assert!((3.0..6.0).contains(&square.sqrt()), "{shape} {file_type:?}: RMS {}", square.sqrt());
    }
}

#[test]
fn a_vocabulary_of_gpt2s_size_encodes_and_decodes() {
    let model = model("1,1,32,8,50257", FileType::Q4_0, true);
    let file = model.write(Vec::new(), |_| Ok(())).unwrap();
    let header_bytes = file.len() as u64 - model.tensor_bytes();
    assert!((1_700_000..1_900_000).contains(&header_bytes), "{header_bytes} bytes, GPT-2's has 1.77 MB");
    let mut src = &file[..];
    let model = generate::Model::open(&mut src).unwrap();
    let vocabulary = &model.vocabulary;
    let mut memory = vec![0; Tokenizer::bytes(vocabulary) + ALIGN];
    let mut arena = Arena::new(&mut memory);
    let tokenizer = Tokenizer::load(vocabulary, &mut src, &mut arena).unwrap();
    let text = "Once upon a time, there was a little boy.\n<|endoftext|>";
    let mut ids = Vec::new();
    let mut scratch = vec![0; Tokenizer::scratch_len(text.len())];
    let control = Control::Recognise;
    tokenizer.encode_each(&mut src, text.as_bytes(), control, &mut scratch, |token| ids.push(token)).unwrap();
    assert!(ids.len() < 30, "words are more than letters: {ids:?}");
    assert_eq!(ids.last().unwrap().0, 50256);
    let mut bytes = vec![0; vocabulary.max_token_bytes()];
    let mut decoded = Vec::new();
    for id in ids {
        let len = tokenizer.decode(&mut src, id, control, &mut bytes).unwrap();
        decoded.extend_from_slice(&bytes[..len]);
    }
    assert_eq!(decoded, text.as_bytes());
}
