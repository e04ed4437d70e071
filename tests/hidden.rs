//! Hidden states and attention weights, as transformers' GPT2Model has them.

use std::fs;
use std::path::Path;

use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::Model;
use gptrickle_core::gpt2::{self, KvFormat, Options, Plan, Seen, State, Weights};
use gptrickle_tests::{files, npy, token_ids, vectors};

/// What a text leaves behind.
struct Watched {
    n_layer: usize,
    hidden: Vec<f32>,    // (n_layer + 1, n_tokens, n_embd), the last one normalised
    attention: Vec<f32>, // (n_layer, n_head, n_tokens, n_tokens)
}

fn watch(mut file: &[u8], tokens: &[u32], batch: usize, kv: KvFormat) -> Watched {
    let src = &mut file;
    let model = Model::open(src).unwrap();
    let config = model.header.config;
    let options = Options { context: tokens.len(), batch, kv, ..Options::default() };
    let mut memory = vec![0; Plan::new(&config, &options).total() + ALIGN];
    let mut arena = Arena::new(&mut memory);
    let weights = Weights::load(&model.header, &model.file, src, &mut arena).unwrap();
    let mut state = State::new(&config, &options, &mut arena).unwrap();

    let (n, n_embd, n_head) = (tokens.len(), config.n_embd, config.n_head);
    let mut hidden = vec![f32::NAN; (config.n_layer + 1) * n * n_embd];
    let mut attention = vec![0.0; config.n_layer * n_head * n * n];
    for (i, tokens) in tokens.chunks(batch).enumerate() {
        let mut keep = |layer: usize, x: &[f32]| {
            assert_eq!(x.len(), tokens.len() * n_embd);
            hidden[(layer * n + i * batch) * n_embd..][..x.len()].copy_from_slice(x);
        };
        gpt2::forward_watched(src, &weights, &mut state, tokens.iter().copied(), true, |seen| match seen {
            Seen::Residual(layer, x) => keep(layer, x),
            Seen::Input(..) => {}
            Seen::Attention { layer, head, weights } => {
                let row = (layer * n_head + head) * n + weights.len() - 1;
                attention[row * n..][..weights.len()].copy_from_slice(weights);
            }
        })
        .unwrap();
        keep(config.n_layer, gpt2::last_norm(src, &weights, &mut state, 0..tokens.len()).unwrap());
    }
    Watched { n_layer: config.n_layer, hidden, attention }
}

/// The largest difference of each layer.
fn by_layer(layers: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
    assert_eq!(a.len(), b.len());
    let layer = a.len() / layers;
    let largest = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    a.chunks_exact(layer).zip(b.chunks_exact(layer)).map(largest).collect()
}

#[test]
fn every_layer_is_that_of_transformers() {
    // A larger set (GPTRICKLE_VECTORS) has no such recordings.
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    let folder = vectors.join("hidden");
    for (name, file) in [("micro", "micro/micro-f32.gguf"), ("synth", "hidden/synth-f32.gguf")] {
        let file = fs::read(vectors.join(file)).unwrap();
        let read = |what: &str| npy::read(&folder.join(format!("{name}.{what}.npy")));
        let tokens = token_ids(&folder.join(format!("{name}.tokens.txt")));
        for batch in [1, 7, 64] {
            let Watched { n_layer, hidden, attention } = watch(&file, &tokens, batch, KvFormat::F32);
            let hidden = by_layer(n_layer + 1, &hidden, &read("hidden").data);
            let attention = by_layer(n_layer, &attention, &read("attention").data);
            println!("{name}, batch {batch}: hidden {hidden:?}, attention {attention:?}");
            assert!(hidden.iter().all(|&difference| difference < 1e-3), "{name}: {hidden:?}");
            assert!(attention.iter().all(|&difference| difference < 1e-4), "{name}: {attention:?}");
        }
    }
}

#[test]
fn a_row_of_attention_is_shares_of_what_came_before() {
    let tokens = token_ids(&vectors().join("tiny512/ref/tokens.txt"));
    let n = tokens.len();
    for (kind, file) in files("tiny512") {
        for kv in [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0, KvFormat::Q4_0] {
            let Watched { attention, .. } = watch(&file, &tokens, 5, kv);
            for (i, row) in attention.chunks_exact(n).enumerate() {
                let (seen, later) = row.split_at(i % n + 1);
                let sum: f64 = seen.iter().map(|&weight| f64::from(weight)).sum();
                assert!((sum - 1.0).abs() < 1e-5, "{kind} {kv:?} row {i}: {sum}");
                assert!(
                    seen.iter().all(|weight| (0.0..=1.0).contains(weight)) && later.iter().all(|&weight| weight == 0.0)
                );
            }
        }
    }
}

#[test]
fn the_batch_changes_no_bit() {
    let file = fs::read(vectors().join("tiny512/tiny512-Q4_K_M.gguf")).unwrap();
    let tokens = token_ids(&vectors().join("tiny512/ref/tokens.txt"));
    let [one, many] = [1, 16].map(|batch| watch(&file, &tokens, batch, KvFormat::Q8_0));
    assert!(one.hidden == many.hidden && one.attention == many.attention);
}
