//! `config.json`: the model's shape, and that it computes what GPT-2 does.

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Folder, token_id};

const FILE: &str = "config.json";
/// The tanh approximation of GELU goes by many names.
const GELU: [&str; 4] = ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh"];

/// The shape of a GPT-2 model that computes as the original does.
#[derive(Debug, Clone)]
pub struct Config {
    /// Blocks of the transformer.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the feed-forward layer.
    pub n_ff: usize,
    /// Positions.
    pub n_ctx: usize,
    /// Rows of the token embedding.
    pub n_vocab: usize,
    /// Added to the variance by every LayerNorm.
    pub epsilon: f32,
    /// Whether the token embedding is said to be the head.
    pub tied: bool,
    special: Map<String, Value>, // all keys, of which NAME_token_id are asked for
}

/// The keys that matter.
#[derive(Deserialize)]
struct Keys {
    n_layer: usize,
    n_head: usize,
    n_embd: usize,
    n_inner: Option<usize>,
    n_positions: Option<usize>,
    n_ctx: Option<usize>,
    vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f32,
    activation_function: Option<String>,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default)]
    add_cross_attention: bool,
}

fn yes() -> bool {
    true
}

fn epsilon() -> f32 {
    1e-5
}

impl Config {
    pub(super) fn open(folder: Folder) -> anyhow::Result<Config> {
        let keys: Option<Map<String, Value>> = folder.json(FILE)?;
        let shown = folder.path(FILE);
        let keys = keys.with_context(|| {
            format!("there is no {}: name a folder that save_pretrained of transformers wrote", shown.display())
        })?;
        Config::from_keys(keys).with_context(|| shown.display().to_string())
    }

    fn from_keys(all: Map<String, Value>) -> anyhow::Result<Config> {
        match all.get("model_type").map(Value::as_str) {
            Some(Some("gpt2")) => {}
            Some(Some(other)) => {
                bail!("the checkpoint is of a model of type \"{other}\", only \"gpt2\" can be converted")
            }
            _ => bail!("model_type is missing: only a checkpoint of type \"gpt2\" can be converted"),
        }
        let keys: Keys = serde_json::from_value(Value::Object(all.clone())).context("the model's shape is not told")?;
        if let Some(name) = keys.activation_function.filter(|name| !GELU.contains(&&**name)) {
            bail!("activation_function is \"{name}\", only GPT-2's \"gelu_new\" can be run");
        }
        if !keys.scale_attn_weights || keys.scale_attn_by_inverse_layer_idx {
            bail!("attention is scaled otherwise than GPT-2's, which cannot be run");
        }
        if keys.add_cross_attention {
            bail!("add_cross_attention is set: a model that reads another one's output cannot be run");
        }
        let n_ctx = keys.n_positions.or(keys.n_ctx).context("n_positions is missing: how many positions are there?")?;
        Ok(Config {
            n_layer: keys.n_layer,
            n_head: keys.n_head,
            n_embd: keys.n_embd,
            n_ff: keys.n_inner.unwrap_or(keys.n_embd.saturating_mul(4)),
            n_ctx,
            n_vocab: keys.vocab_size,
            epsilon: keys.layer_norm_epsilon,
            tied: keys.tie_word_embeddings,
            special: all,
        })
    }

    /// The id of a special token such as `eos`, as this file has it.
    pub fn token(&self, name: &str) -> Option<u64> {
        token_id(self.special.get(&format!("{name}_token_id"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(change: impl Fn(&mut Value)) -> anyhow::Result<Config> {
        let mut keys = json!({ "model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 32,
            "n_inner": null, "vocab_size": 300, "eos_token_id": [7, 8], "bos_token_id": 9 });
        change(&mut keys);
        Config::from_keys(keys.as_object().unwrap().clone())
    }

    #[test]
    fn what_is_left_out_is_as_in_gpt2() {
        let config = read(|_| ()).unwrap();
        assert_eq!((config.n_ff, config.epsilon, config.tied), (256, 1e-5, true));
        assert_eq!((config.token("eos"), config.token("bos"), config.token("unk")), (Some(7), Some(9), None));
        let config = read(|keys| keys["n_inner"] = 96.into()).unwrap();
        assert_eq!(config.n_ff, 96);
    }

    #[test]
    fn other_models_are_refused() {
        let change = |key: &str, value: Value| format!("{:#}", read(|keys| keys[key] = value.clone()).unwrap_err());
        for (key, value, words) in [
            ("model_type", json!("bert"), "a model of type \"bert\", only \"gpt2\""),
            ("model_type", json!(1), "model_type is missing"),
            ("n_layer", json!("two"), "the model's shape is not told: invalid type: string \"two\", expected usize"),
            ("activation_function", json!("relu"), "activation_function is \"relu\""),
            ("scale_attn_weights", json!(false), "scaled otherwise"),
            ("scale_attn_by_inverse_layer_idx", json!(true), "scaled otherwise"),
            ("add_cross_attention", json!(true), "add_cross_attention"),
        ] {
            let error = change(key, value);
            assert!(error.contains(words), "{error}");
        }
    }
}
