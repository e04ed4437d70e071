//! Whole models against their float references: the logits of every position, and greedy continuations.

use std::path::Path;

use gptrickle_core::gpt2::KvFormat;
use gptrickle_tests::{MODELS, files, logits, npy, token_ids, vectors};

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
    let mut table =
        format!("{:16} {:8} {:>9} {:>9} {:>9} {:>6}\n", "model", "type", "max abs", "rms", "llama.cpp", "ratio");
    for model in MODELS {
        let reference = vectors().join(model).join("ref");
        let tokens = token_ids(&reference.join("tokens.txt"));
        for (kind, file) in files(model) {
            let Some(exact) = read(&reference, "dq", &kind) else { continue };
            let peer = read(&reference, "lc", &kind).unwrap();
            let ours = logits(&mut &file[..], &tokens, 32, KvFormat::F32).unwrap();
            let [rms, peer] = [&ours, &peer].map(|logits| rms(logits, &exact));
            let max = max_abs(&ours, &exact);
            table += &format!("{model:16} {kind:8} {max:9.6} {rms:9.6} {peer:9.6} {:6.3}\n", rms / peer);
            let float = matches!(kind.to_ascii_uppercase().as_str(), "F32" | "F16" | "BF16");
            if (float && max > 1e-3) || (!float && rms > 1.1 * peer) {
                worst.push(format!("{model} {kind}: max {max}, rms {rms}, llama.cpp {peer}"));
            }
        }
    }
    println!("{table}");
    assert!(worst.is_empty(), "{worst:#?}");
}

/// The two largest logits: the token of the first, and how far ahead of the second it is.
fn best(logits: &[f32]) -> (u32, f32) {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    (order[0], logits[order[0] as usize] - logits[order[1] as usize])
}

/// Each token of the float reference's greedy continuation is ours, too, after the same tokens, wherever our best logit
/// is ahead by more than twice this file's error: then no error of that size could have made another one the best.
///
/// The margin is ours, as the reference's logits are recorded for the prompt alone.
#[test]
fn greedy_continuations_are_those_of_the_float_reference() {
    let (mut compared, mut all) = (0, 0);
    let mut table =
        format!("{:16} {:8} {:>9} {:>8} {:>5} {:>3}\n", "model", "type", "tolerance", "compared", "equal", "of");
    for model in MODELS {
        let reference = vectors().join(model).join("ref");
        let prompt = token_ids(&reference.join("tokens.txt"));
        for (kind, file) in files(model) {
            let Some(exact) = read(&reference, "dq", &kind) else { continue };
            let greedy = token_ids(&reference.join(format!("dq_{kind}.greedy.txt")));
            let tokens = [&prompt[..], &greedy].concat();
            // The last token is the last one's continuation: it is not run.
            let ours = logits(&mut &file[..], &tokens[..tokens.len() - 1], 32, KvFormat::F32).unwrap();
            let tolerance = 2.0 * max_abs(&ours[..exact.len()], &exact);
            let n_vocab = exact.len() / prompt.len();
            let (mut n, mut equal) = (0, 0);
            for (i, expected) in greedy.iter().enumerate() {
                let (token, margin) = best(&ours[(prompt.len() - 1 + i) * n_vocab..][..n_vocab]);
                equal += usize::from(token == *expected);
                if margin > tolerance {
                    assert_eq!(token, *expected, "{model} {kind}: token {i}, ahead by {margin}");
                    n += 1;
                }
            }
            table += &format!("{model:16} {kind:8} {tolerance:9.6} {n:8} {equal:5} {:3}\n", greedy.len());
            (compared, all) = (compared + n, all + greedy.len());
        }
    }
    println!("{table}{compared} of {all} are compared");
    assert!(compared > 0 && 2 * compared >= all, "too few are compared: {compared} of {all}");
}

fn read(reference: &Path, by: &str, kind: &str) -> Option<Vec<f32>> {
    let path = reference.join(format!("{by}_{kind}.npy"));
    path.exists().then(|| npy::read(&path).data)
}
