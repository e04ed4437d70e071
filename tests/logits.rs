//! Whole models against their float references: the logits of every position, and greedy continuations.

use std::path::Path;

use gptrickle_core::gpt2::KvFormat;
use gptrickle_tests::{logits, npy, token_ids, vectors};

/// The reference model folders.
const MODELS: [&str; 3] = ["micro", "tiny512", "tiny512-untied"];

/// The files of a folder with their types: `micro-Q4_0.gguf` has type `Q4_0`.
fn files(model: &str) -> Vec<(String, Vec<u8>)> {
    let folder = vectors().join(model);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let kind = path.file_stem()?.to_str()?.strip_prefix(model)?.strip_prefix('-')?.to_owned();
            (path.extension()? == "gguf").then(|| (kind, std::fs::read(&path).unwrap()))
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no models in {}", folder.display());
    files
}

fn rms(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

fn max_abs(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_as_near_the_float_reference_as_llama_cpp() {
    let mut worst = Vec::new();
    println!("{:16} {:8} {:>9} {:>9} {:>9} {:>6}", "model", "type", "max abs", "rms", "llama.cpp", "ratio");
    for model in MODELS {
        let reference = vectors().join(model).join("ref");
        let tokens = token_ids(&reference.join("tokens.txt"));
        for (kind, file) in files(model) {
            let Some(exact) = read(&reference, "dq", &kind) else { continue };
            let peer = read(&reference, "lc", &kind).unwrap();
            let ours = logits(&mut &file[..], &tokens, 32, KvFormat::F32).unwrap();
            let (rms, peer, max) = (rms(&ours, &exact), rms_of(&peer, &exact), max_abs(&ours, &exact));
            println!("{model:16} {kind:8} {max:9.6} {rms:9.6} {peer:9.6} {:6.3}", rms / peer);
            let float = matches!(kind.to_ascii_uppercase().as_str(), "F32" | "F16" | "BF16");
            if (float && max > 1e-3) || (!float && rms > 1.1 * peer) {
                worst.push(format!("{model} {kind}: max {max}, rms {rms}, llama.cpp {peer}"));
            }
        }
    }
    assert!(worst.is_empty(), "{worst:#?}");
}

fn rms_of(a: &[f32], b: &[f32]) -> f64 {
    rms(a, b)
}

fn read(reference: &Path, by: &str, kind: &str) -> Option<Vec<f32>> {
    let path = reference.join(format!("{by}_{kind}.npy"));
    path.exists().then(|| npy::read(&path).data)
}
