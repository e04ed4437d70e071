//! The options that say how tokens are chosen.

use clap::Args;
use gptrickle_core::sampler::Params;

/// How tokens are chosen; the defaults are the core's.
#[derive(Debug, Args)]
pub(super) struct SamplingArgs {
    /// Divides the logits: below 1 is bolder in what is likely, above 1 in what is not; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = Params::default().temperature, allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.temperature = x))]
    temperature: f32,

    /// Chooses among the K likeliest tokens; 0 among all
    #[arg(long, value_name = "K", default_value_t = Params::default().top_k)]
    top_k: usize,

    /// Chooses among the fewest tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = Params::default().top_p, allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.top_p = x))]
    top_p: f32,

    /// Chooses among tokens at least P times as probable as the likeliest
    #[arg(long, value_name = "P", default_value_t = Params::default().min_p, allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.min_p = x))]
    min_p: f32,

    /// Makes tokens of the window less likely; 1 is off
    #[arg(long, value_name = "X", default_value_t = Params::default().repetition_penalty, allow_negative_numbers = true)]
    #[arg(value_parser = control(|params, x| params.repetition_penalty = x))]
    repetition_penalty: f32,

    /// How many of the last tokens the penalty looks at
    #[arg(long, value_name = "N", default_value_t = Params::default().repetition_window)]
    repetition_window: usize,

    /// Where the random numbers start
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub(super) seed: u64,
}

impl SamplingArgs {
    /// The core's controls.
    pub(super) fn params(&self) -> Params {
        Params {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            repetition_window: self.repetition_window,
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
