//! What `generate` is asked to make: flags first, then `generation_config.json`, then defaults.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{BeamOptions, EarlyStopping};
use gptrickle_core::sampler::Params;
use gptrickle_core::tokenizer::{Control, MAX_STOP, TextStream, Token, Tokenizer};
use serde::Deserialize;
use serde_json::Value;

use super::model::{self, Opened};
use super::note;
use super::sampling::SamplingArgs;

/// The largest number of texts or beams.
const MOST: u8 = u8::MAX;

/// How long texts may be, what ends them, and how many there are; the names are those of `generation_config.json`, too.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(default)]
pub(super) struct DecodingArgs {
    /// Takes controls from a generation_config.json; flags override them, and what neither says is as in transformers: the
    /// likeliest tokens, unless do_sample or --temperature says otherwise
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// Most tokens to make [default: 200]
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "max_length")]
    max_new_tokens: Option<usize>,

    /// Most tokens of the text, those of the prompt among them
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,

    /// Seconds after which the text ends where it is, with a token at least; 0 lets it take its time
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = seconds)]
    #[serde(deserialize_with = "seconds_of")]
    max_time: Option<Duration>,

    /// Whether tokens are drawn; otherwise the likeliest one is taken [default: true, with beams false]
    #[arg(long, value_name = "BOOL")]
    do_sample: Option<bool>,

    /// Writes N texts that go on from the prompt, with the seeds S, S + 1 and so on: each pass of the weights serves a
    /// token of every one, and each is the text of a run with its own seed; with beams, the N best ones [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    #[arg(conflicts_with_all = ["lookup", "overflow", "save", "resume"])]
    num_return_sequences: Option<u8>,

    /// Searches with N beams for the text that is likeliest as a whole, and shows it at the end [default: 1, no search]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    #[arg(conflicts_with_all = ["lookup", "overflow", "save", "resume", "logits_hash"])]
    num_beams: Option<u8>,

    /// Divides the score of a beam by its length to this power: above 0 for longer texts, below for shorter ones
    /// [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_penalty: Option<f32>,

    /// When a search ends that has as many texts as beams: true at once, false when better ones are unlikely, never when
    /// there cannot be any [default: false]
    #[arg(long, value_name = "WHEN", value_parser = early_stopping)]
    #[serde(deserialize_with = "early_stopping_of")]
    early_stopping: Option<EarlyStopping>,

    /// Does not write this, neither as it is nor after a space; may be given several times. It is not saved
    #[arg(long, value_name = "STR", value_parser = not_empty)]
    #[serde(skip)]
    bad_words: Vec<String>,

    /// Ends the text at these tokens instead of the file's own, such as 13,198. They are not saved
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_several")]
    eos_token_id: Vec<u32>,

    /// Ends the text before this string; may be given several times
    #[arg(long = "stop", id = "stop", value_name = "STR", value_parser = stop_string)]
    #[serde(deserialize_with = "one_or_several")]
    stop_strings: Vec<String>,

    /// Prints the prompt before each text
    #[arg(long)]
    #[serde(skip)]
    pub(super) return_full_text: bool,

    #[arg(skip)]
    bad_words_ids: Option<Vec<Vec<u32>>>,
}

/// A `generation_config.json`.
#[derive(Default, Deserialize)]
struct File {
    #[serde(flatten)]
    sampling: SamplingArgs,
    #[serde(flatten)]
    decoding: DecodingArgs,
}

/// Keys of transformers that say nothing of the text of a decoder-only model.
const WITHOUT_EFFECT: [&str; 16] = [
    "_from_model_config",
    "transformers_version",
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "return_legacy_cache",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "return_dict_in_generate",
    "trust_remote_code",
    "disable_compile",
];

/// Controls of what is chosen: keys that are read, and ids of the flags.
pub(super) const CONTROLS: [&str; 12] = [
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
];

/// Other keys that are read.
const KNOWN: [&str; 10] = [
    "max_new_tokens",
    "max_length",
    "max_time",
    "num_return_sequences",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "bad_words_ids",
    "eos_token_id",
    "stop_strings",
];

/// Keys that are not read, and off at 1.
const OFF_AT_1: [&str; 3] = ["num_beam_groups", "guidance_scale", "encoder_repetition_penalty"];

impl File {
    /// Reads a file, and names the keys that it does not know.
    fn read(path: &Path) -> anyhow::Result<File> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let mut keys: BTreeMap<String, Value> =
            serde_json::from_str(&text).with_context(|| format!("{name} is no generation_config.json"))?;
        keys.retain(|_, value| !value.is_null());
        for (key, value) in &keys {
            let number = value.as_f64();
            let is_off = value == &Value::Bool(false)
                || number == Some(0.0)
                || number == Some(1.0) && OFF_AT_1.contains(&&**key);
            if CONTROLS.iter().chain(&KNOWN).any(|known| known == key) {
                // Alone first, so that an error names it.
                let alone = [(key.clone(), value.clone())].into_iter().collect();
                serde_json::from_value::<File>(Value::Object(alone)).with_context(|| format!("{name}: {key}"))?;
            } else if !WITHOUT_EFFECT.contains(&&**key) && !is_off {
                note(format_args!("{name}: {key} is not known here, and left out"));
            }
        }
        let file: File =
            serde_json::from_value(Value::Object(keys.into_iter().collect())).with_context(|| name.to_string())?;
        file.sampling.params().check().with_context(|| name.to_string())?;
        Ok(file)
    }
}

/// What is made, when all who have a say have spoken.
#[derive(Debug)]
pub(super) struct Decoding {
    pub(super) params: Params<'static>,
    pub(super) seed: u64,
    pub(super) stops: Vec<String>,
    pub(super) max_time: Option<Duration>,
    pub(super) num_return_sequences: u8,
    /// How to search, and with how many beams.
    pub(super) beams: Option<(u8, BeamOptions)>,
    /// Most new tokens, or most of all.
    longest: Longest,
    bad_words: Vec<String>,
    bad_words_ids: Vec<Vec<u32>>,
    eos_token_id: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Longest {
    New(usize),
    Whole(usize),
}

/// Tokens that the controls name.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) bad: Vec<Vec<Token>>,
    pub(super) ends: Vec<Token>,
}

impl DecodingArgs {
    /// Settles what is made.
    ///
    /// # Errors
    /// The file cannot be read, a value in it cannot be had, or two that are asked for contradict each other.
    pub(super) fn settle(&self, sampling: &SamplingArgs) -> anyhow::Result<Decoding> {
        let (mut sampling, flags) = (sampling.clone(), self.clone());
        let mut do_sample = flags.do_sample;
        let mut file = DecodingArgs::default();
        if let Some(path) = &self.config {
            let File { sampling: said, decoding } = File::read(path)?;
            // As in transformers: greedy unless something says otherwise, at temperature 1.
            do_sample = do_sample.or(decoding.do_sample).or(Some(sampling.temperature.is_some_and(|t| t > 0.0)));
            (sampling, file) = (sampling.or(said), decoding);
            sampling.temperature = sampling.temperature.or(Some(1.0));
        }
        let new = |args: &DecodingArgs| args.max_new_tokens.map(Longest::New);
        let whole = |args: &DecodingArgs| args.max_length.map(Longest::Whole);
        let longest = new(&flags).or(whole(&flags)).or(new(&file)).or(whole(&file)).unwrap_or(Longest::New(200));
        let mut params = sampling.params();
        let num_beams = flags.num_beams.or(file.num_beams).unwrap_or(1);
        let num_return_sequences = flags.num_return_sequences.or(file.num_return_sequences).unwrap_or(1);
        ensure!(num_beams > 0 && num_return_sequences > 0, "num_beams and num_return_sequences are 1 to {MOST}");
        if do_sample == Some(false) {
            params.temperature = 0.0;
        }
        if do_sample == Some(true) && params.temperature == 0.0 {
            bail!("do_sample is true and temperature 0: to draw tokens, use a temperature above 0");
        }
        let options = BeamOptions::default();
        let beams = BeamOptions {
            length_penalty: flags.length_penalty.or(file.length_penalty).unwrap_or(options.length_penalty),
            early_stopping: flags.early_stopping.or(file.early_stopping).unwrap_or(options.early_stopping),
        };
        ensure!(beams.length_penalty.is_finite(), "length_penalty must be a number");
        if num_beams > 1 {
            if do_sample == Some(true) {
                bail!("do_sample is true and num_beams {num_beams}: beams are searched, not drawn; leave out either");
            }
            if num_return_sequences > num_beams {
                bail!(
                    "num_return_sequences is {num_return_sequences} and num_beams {num_beams}: a search has as many texts \
                     as beams, ask for at most that many"
                );
            }
        }
        let (longest_name, most) = match longest {
            Longest::New(n) => ("max_new_tokens", n),
            Longest::Whole(n) => ("max_length", n),
        };
        let shortest = match longest {
            Longest::New(_) => ("min_new_tokens", params.min_new_tokens),
            Longest::Whole(_) => ("min_length", params.min_length),
        };
        if shortest.1 > most {
            bail!(
                "{} is {} and {longest_name} {most}: make the one smaller or the other larger",
                shortest.0,
                shortest.1
            );
        }
        Ok(Decoding {
            params,
            seed: sampling.seed(),
            stops: first_of(flags.stop_strings, file.stop_strings),
            max_time: flags.max_time.or(file.max_time).filter(|time| !time.is_zero()),
            num_return_sequences,
            beams: (num_beams > 1).then_some((num_beams, beams)),
            longest,
            bad_words_ids: if flags.bad_words.is_empty() { file.bad_words_ids.unwrap_or_default() } else { Vec::new() },
            bad_words: flags.bad_words,
            eos_token_id: first_of(flags.eos_token_id, file.eos_token_id),
        })
    }
}

/// The flag's list, or the file's where there is none.
fn first_of<T>(flag: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flag.is_empty() { file } else { flag }
}

impl Decoding {
    /// The most new tokens that a text can have, whatever the prompt.
    pub(super) fn most(&self) -> usize {
        match self.longest {
            Longest::New(n) | Longest::Whole(n) => n,
        }
    }

    /// Most new tokens after a prompt of so many.
    ///
    /// # Errors
    /// It is as long already as the whole text may be.
    pub(super) fn limit(&self, prompt: usize) -> anyhow::Result<usize> {
        match self.longest {
            Longest::New(n) => Ok(n),
            Longest::Whole(n) if n > prompt => Ok(n - prompt),
            Longest::Whole(n) => {
                bail!("max_length is {n} and the prompt has {prompt} tokens: use a larger one, or max_new_tokens")
            }
        }
    }

    /// Sequences that a pass serves.
    pub(super) fn sequences(&self) -> u8 {
        self.beams.map_or(self.num_return_sequences, |(num_beams, _)| num_beams)
    }

    /// The tokens that the controls name, in this model's vocabulary.
    pub(super) fn words(&self, opened: &mut Opened) -> anyhow::Result<Words> {
        let tokens = |ids: &Vec<u32>| ids.iter().copied().map(Token).collect::<Vec<_>>();
        let mut words =
            Words { bad: self.bad_words_ids.iter().map(tokens).collect(), ends: tokens(&self.eos_token_id) };
        if !self.bad_words.is_empty() {
            let Opened { src, model, name } = opened;
            let mut memory = vec![0; Tokenizer::bytes(&model.vocabulary) + ALIGN];
            let tokenizer =
                Tokenizer::load(&model.vocabulary, src, &mut Arena::new(&mut memory)).with_context(|| name.clone())?;
            for word in &self.bad_words {
                let spaced = format!(" {word}");
                let other = (!word.starts_with(' ')).then_some(&spaced);
                for word in [Some(word), other].into_iter().flatten() {
                    words.bad.push(model::encode(&tokenizer, src, word.as_bytes(), Control::Ignore)?);
                }
            }
        }
        Ok(words)
    }
}

/// Reads a number of seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "it must be a number of seconds from 0 on".to_owned())
}

fn early_stopping(text: &str) -> Result<EarlyStopping, String> {
    match text {
        "true" => Ok(EarlyStopping::Yes),
        "false" => Ok(EarlyStopping::Estimate),
        "never" => Ok(EarlyStopping::Never),
        _ => Err("it must be true, false or never".to_owned()),
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn stop_string(text: &str) -> Result<String, String> {
    match TextStream::new(&[text]) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("it has {} bytes, and must have 1 to {MAX_STOP}", text.len())),
    }
}

fn seconds_of<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let number = f64::deserialize(from)?;
    seconds(&number.to_string()).map(Some).map_err(serde::de::Error::custom)
}

fn early_stopping_of<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<EarlyStopping>, D::Error> {
    let value = match Value::deserialize(from)? {
        Value::String(text) => text,
        other => other.to_string(),
    };
    early_stopping(&value).map(Some).map_err(serde::de::Error::custom)
}

fn one_or_several<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        One(T),
        Several(Vec<T>),
    }
    Ok(match Either::deserialize(from)? {
        Either::One(one) => vec![one],
        Either::Several(several) => several,
    })
}
