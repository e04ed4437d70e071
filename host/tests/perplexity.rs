//! `gptrickle perplexity` against the plainest computation of the same windows, in f64.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use gptrickle_core::gpt2::KvFormat;
use gptrickle_tests::{logits, vectors};
use serde_json::Value;

const TEXT: &str = "The three little cats went to the old house near the lake. \"Who is there?\" said the first one, and \
                    the others hid behind the tree until it was dark.";

fn gptrickle(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gptrickle")).args(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = gptrickle(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text_file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("gptrickle-perplexity-{}-{name}.txt", std::process::id()));
    fs::write(&path, text).unwrap();
    path
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum();
    logits.iter().map(|&v| f64::from(v) - sum.ln()).collect()
}

fn close(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{found}, by hand {expected}");
}

/// transformers' loop over windows, word for word, and llama.cpp's Kullback-Leibler divergence over the same tokens.
#[test]
fn figures_are_those_of_a_plain_computation() {
    let text = text_file("plain", TEXT);
    let text = text.to_str().unwrap();
    let model = vectors().join("micro/micro-Q8_0.gguf");
    let reference = vectors().join("micro/micro-f32.gguf");
    let (file, reference_file) = (fs::read(&model).unwrap(), fs::read(&reference).unwrap());
    let (model, reference) = (model.to_str().unwrap(), reference.to_str().unwrap());
    let ids = json(&["tokenize", "-m", model, "--json", TEXT]);
    let ids: Vec<u32> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    for (context, stride) in [(32, 16), (32, 32), (24, 7)] {
        let (mut cost, mut reference_cost, mut divergence, mut n, mut agreed) = (0.0, 0.0, 0.0, 0, 0);
        let mut previous_end = 0;
        for begin in (0..ids.len()).step_by(stride) {
            let end = ids.len().min(begin + context);
            let window = &ids[begin..end];
            let run = |file: &[u8]| {
                let all = logits(&mut &*file, window, 5, KvFormat::F32).unwrap();
                all.chunks(264).map(log_probabilities).collect::<Vec<_>>()
            };
            let (own, better) = (run(&file), run(&reference_file));
            for i in 1..window.len() {
                if begin + i < previous_end {
                    continue;
                }
                let (p, q, id) = (&better[i - 1], &own[i - 1], window[i] as usize);
                cost -= q[id];
                reference_cost -= p[id];
                divergence += p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
                let best = |all: &[f64]| (0..264).max_by(|&a, &b| all[a].total_cmp(&all[b])).unwrap();
                agreed += usize::from(best(p) == best(q));
                n += 1;
            }
            previous_end = end;
            if end == ids.len() {
                break;
            }
        }
        let (context, stride) = (context.to_string(), stride.to_string());
        let args = ["-m", model, "-f", text, "--context", &context, "--stride", &stride, "--compare", reference];
        let found = json(&[&["perplexity", "--batch", "5", "--json"][..], &args].concat());
        let mean = |sum: f64| sum / f64::from(n);
        assert_eq!(found["scored"], n);
        close(&found["perplexity"], mean(cost).exp());
        close(&found["compare"]["reference_perplexity"], mean(reference_cost).exp());
        close(&found["compare"]["divergence"], mean(divergence));
        close(&found["compare"]["same_best"], agreed as f64 / f64::from(n));
        if stride == "16" {
            close(&found["bits_per_byte"], cost / 2f64.ln() / (TEXT.len() - 1) as f64); // a byte is the first token
        }
    }
    fs::remove_file(text).unwrap();
}

#[test]
fn what_cannot_be_measured_is_said() {
    let empty = text_file("empty", "");
    let words = text_file("words", TEXT);
    let [empty, words] = [&empty, &words].map(|path| path.to_str().unwrap());
    let model = vectors().join("micro/micro-Q8_0.gguf");
    let other = vectors().join("tiny512/tiny512-Q4_0.gguf");
    let (model, other) = (model.to_str().unwrap(), other.to_str().unwrap());
    for (args, why) in [
        (&["-f", "missing.txt"][..], "cannot read missing.txt"),
        (&["-f", empty], "nothing to predict"),
        (&["-f", words, "--stride", "0"], "--stride 0 cannot be had: it must be 1 to the context, 32"),
        (&["-f", words, "--stride", "33"], "--stride 33 cannot be had"),
        (&["-f", words, "--compare", other], "compare files of one model"),
        (&["-f", words, "--compare", "missing.gguf"], "missing.gguf"),
    ] {
        let output = gptrickle(&[&["perplexity", "-m", model][..], args].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
        assert!(error.contains(why), "{why}: {error}");
    }
    for path in [empty, words] {
        fs::remove_file(path).unwrap();
    }
}
