//! The options that say how tokens are chosen.

use clap::Args;
use gptrickle_core::sampler::{Generator, Params};
use serde::Deserialize;

/// How tokens are chosen; what is not said is as the core has it. The names are those of `generation_config.json`, too.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default)]
pub(super) struct SamplingArgs {
    /// Divides the logits: below 1 is bolder in what is likely, above 1 in what is not; 0 takes the likeliest token
    /// [default: 0.8]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.temperature = x))]
    pub(super) temperature: Option<f32>,

    /// Chooses among the K likeliest tokens; 0 among all [default: 50]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Chooses among the fewest tokens whose probabilities reach P [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.top_p = x))]
    top_p: Option<f32>,

    /// Chooses among tokens at least P times as probable as the likeliest [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.min_p = x))]
    min_p: Option<f32>,

    /// Chooses among the tokens whose information is nearest to the entropy, until their probabilities reach P
    /// [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.typical_p = x))]
    typical_p: Option<f32>,

    /// Chooses among tokens with a probability of P at least; 0 is off [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.epsilon_cutoff = x))]
    epsilon_cutoff: Option<f32>,

    /// Chooses among tokens with a probability of P or of sqrt(P) * e^-entropy, the lesser, at least; 0 is off [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.eta_cutoff = x))]
    eta_cutoff: Option<f32>,

    /// Makes tokens of the text so far less likely; 1 is off [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.repetition_penalty = x))]
    repetition_penalty: Option<f32>,

    /// How many of the last tokens the penalty looks at [default: the whole text]
    #[arg(long, value_name = "N")]
    #[serde(skip)]
    repetition_window: Option<usize>,

    /// Makes no sequence of N tokens that the text has already; 0 is off [default: 0]
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<usize>,

    /// Does not end the text before it has N tokens, those of the prompt among them [default: 0]
    #[arg(long, value_name = "N")]
    min_length: Option<usize>,

    /// Does not end the text before it has N new tokens [default: 0]
    #[arg(long, value_name = "N")]
    min_new_tokens: Option<usize>,

    /// What draws random numbers: pcg, or torch: as PyTorch on a CPU, so that a seed makes the text that it makes with
    /// transformers and an F32 or F16 model [default: pcg]
    #[arg(long, value_name = "RNG", value_parser = generator)]
    #[serde(skip)]
    rng: Option<Generator>,

    /// Where the random numbers start [default: 42]
    #[arg(long, value_name = "S")]
    #[serde(skip)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The core's controls.
    pub(super) fn params(&self) -> Params<'static> {
        let off = Params::default();
        Params {
            temperature: self.temperature.unwrap_or(off.temperature),
            top_k: self.top_k.unwrap_or(off.top_k),
            top_p: self.top_p.unwrap_or(off.top_p),
            min_p: self.min_p.unwrap_or(off.min_p),
            typical_p: self.typical_p.unwrap_or(off.typical_p),
            epsilon_cutoff: self.epsilon_cutoff.unwrap_or(off.epsilon_cutoff),
            eta_cutoff: self.eta_cutoff.unwrap_or(off.eta_cutoff),
            repetition_penalty: self.repetition_penalty.unwrap_or(off.repetition_penalty),
            repetition_window: self.repetition_window.unwrap_or(off.repetition_window),
            no_repeat_ngram_size: self.no_repeat_ngram_size.unwrap_or(off.no_repeat_ngram_size),
            min_length: self.min_length.unwrap_or(off.min_length),
            min_new_tokens: self.min_new_tokens.unwrap_or(off.min_new_tokens),
            generator: self.rng.unwrap_or(off.generator),
            ..off
        }
    }

    /// Where the random numbers start.
    pub(super) fn seed(&self) -> u64 {
        self.seed.unwrap_or(42)
    }

    /// What is said here, and what `other` says of the rest.
    pub(super) fn or(self, other: SamplingArgs) -> SamplingArgs {
        SamplingArgs {
            temperature: self.temperature.or(other.temperature),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            typical_p: self.typical_p.or(other.typical_p),
            epsilon_cutoff: self.epsilon_cutoff.or(other.epsilon_cutoff),
            eta_cutoff: self.eta_cutoff.or(other.eta_cutoff),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
            repetition_window: self.repetition_window.or(other.repetition_window),
            no_repeat_ngram_size: self.no_repeat_ngram_size.or(other.no_repeat_ngram_size),
            min_length: self.min_length.or(other.min_length),
            min_new_tokens: self.min_new_tokens.or(other.min_new_tokens),
            rng: self.rng.or(other.rng),
            seed: self.seed.or(other.seed),
        }
    }
}

/// Reads a control of the sampler and checks it against the core's range.
fn control(set: fn(&mut Params, f32)) -> impl Fn(&str) -> Result<f32, String> + Clone {
    move |text| {
        let value = text.parse().map_err(|_| "it must be a number".to_owned())?;
        let mut params = Params::default();
        set(&mut params, value);
        params.check().map(|()| value).map_err(|error| error.to_string())
    }
}

fn generator(text: &str) -> Result<Generator, String> {
    match text {
        "pcg" => Ok(Generator::Pcg),
        "torch" => Ok(Generator::Torch),
        _ => Err("it must be pcg or torch".to_owned()),
    }
}
