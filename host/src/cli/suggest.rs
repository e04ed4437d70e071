//! `gptrickle suggest`: a few short ways to go on, all from the same passes of the weights.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{Options, Plan, Sequences, Session, StopReason};
use gptrickle_core::gpt2;
use gptrickle_core::ops::Engine;
use gptrickle_core::source::Source;
use gptrickle_core::tokenizer::{Control, TextStream};
use serde::Serialize;

use super::decoding::seconds;
use super::model::{self, EngineArgs, MemoryArgs, ModelArgs};
use super::sampling::SamplingArgs;
use super::writing::{certain, held_back, print};
use super::{interrupt, text_or_stdin};

const EXAMPLES: &str = "Examples:
  gptrickle suggest \"Once upon a time\"
  gptrickle suggest \"The cat\" --num-return-sequences 5 -n 8
  gptrickle suggest -m distilgpt2.Q4_K_M.gguf \"The quick brown fox\" --max-time 1.5
  echo -n \"Hello\" | gptrickle suggest - --json            one object

Each is what generate makes with the same options; a line end in one is shown as \\n.";

/// Suggest continuations: three short ones, in the passes of one
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(mut_arg("temperature", |arg| arg.default_value("1")))]
#[command(mut_arg("top_k", |arg| arg.default_value("256")))]
#[command(mut_arg("top_p", |arg| arg.default_value("0.9")))]
#[command(mut_arg("min_p", |arg| arg.default_value("0")))]
#[command(mut_arg("repetition_penalty", |arg| arg.default_value("1")))]
pub(super) struct Args {
    /// Text to continue; "-" reads it from standard input
    #[arg(value_name = "TEXT")]
    text: String,

    #[command(flatten)]
    model: ModelArgs,

    /// Most tokens of each
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    max_new_tokens: usize,

    /// How many, with the seeds S, S + 1 and so on
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..))]
    num_return_sequences: u8,

    /// Seconds after which they end where they are, with a token at least; 0 lets them take their time
    #[arg(long, value_name = "S", default_value = "10", allow_negative_numbers = true, value_parser = seconds)]
    max_time: Duration,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    prompt: String,
    prompt_tokens: usize,
    /// Of the weights, after those of the prompt, whose last one makes the first token of each.
    passes: u64,
    suggestions: Vec<Suggestion>,
}

#[derive(Serialize)]
struct Suggestion {
    text: String,
    /// Alone it is made from this seed; none if one generator draws for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    stop: &'static str,
    new_tokens: usize,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let prompt = text_or_stdin(&args.text)?;
    let mut opened = args.model.open()?;
    let options = Options {
        state: gpt2::Options {
            sequences: args.num_return_sequences.into(),
            own: args.max_new_tokens,
            ..args.memory.options(&opened.model.header.config)?
        },
        sampling: args.sampling.params(),
        seed: args.sampling.seed(),
        ..Options::default()
    };
    let name = || opened.name.clone();
    let mut memory = model::memory(Plan::new(&opened.model, &options).total())?;
    let mut arena = Arena::new(&mut memory);
    let mut session = Session::new(&opened.model, &options, &mut opened.src, &mut arena).with_context(name)?;
    session.set_engine(engine);
    session.limit(args.max_new_tokens);
    interrupt::listen()?;

    let start = Instant::now();
    let src = &mut opened.src;
    model::push_text(&mut session, src, &prompt, Control::Ignore)?;
    while session.pending() > 0 && !interrupt::pressed() {
        session.pass(src).with_context(name)?;
    }
    let (prompt_tokens, passes) = (session.tokens().len(), session.passes());
    let mut sequences = session.sequences().with_context(name)?;
    let in_time = || args.max_time.is_zero() || start.elapsed() < args.max_time;
    let suggestions = make(&mut sequences, src, in_time).with_context(name)?;
    let interrupted = suggestions.iter().any(|suggestion| suggestion.stop == StopReason::Interrupted.name());
    if args.json {
        let prompt = String::from_utf8_lossy(&prompt).into_owned();
        let report = Report { prompt, prompt_tokens, passes: sequences.passes() - passes, suggestions };
        print(&(serde_json::to_string(&report)? + "\n"))?;
    } else {
        let line = |(i, suggestion): (usize, &Suggestion)| format!("{}. {}\n", i + 1, one_line(&suggestion.text));
        print(&suggestions.iter().enumerate().map(line).collect::<String>())?;
    }
    Ok(if interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// Makes all texts to their ends, or while there is time, which is not looked at before each has a token.
fn make<S: Source>(
    sequences: &mut Sequences,
    src: &mut S,
    in_time: impl Fn() -> bool,
) -> anyhow::Result<Vec<Suggestion>> {
    let mut texts = vec![(String::new(), TextStream::new(&[])?, 0); sequences.len()];
    let mut steps = 0;
    loop {
        let stop = match () {
            () if interrupt::pressed() => Some(StopReason::Interrupted),
            () if steps >= texts.len() && !in_time() => Some(StopReason::MaxTime),
            () => None,
        };
        if let Some(reason) = stop {
            (0..texts.len()).for_each(|i| sequences.stop(i, reason));
        }
        let Some((i, token)) = sequences.next(src)? else { break };
        let (text, stream, new_tokens) = &mut texts[i];
        text.push_str(&certain(sequences.tokenizer(), src, token, stream)?.0);
        *new_tokens += 1;
        steps += 1;
    }
    let suggestion = |(i, (text, stream, new_tokens)): (usize, (String, TextStream, usize))| Suggestion {
        text: text + &held_back(stream),
        seed: sequences.seed(i),
        stop: sequences.stop_reason(i).map_or("", StopReason::name),
        new_tokens,
    };
    Ok(texts.into_iter().enumerate().map(suggestion).collect())
}

/// The text without line ends and other characters that control a terminal, which are shown as in Rust.
fn one_line(text: &str) -> String {
    text.chars().fold(String::new(), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default())
        } else {
            line.push(c)
        }
        line
    })
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_suggestion_is_one_line() {
        assert_eq!(one_line(" \"Hi\",\n\tsaid \\ \u{e9}\x1b"), " \"Hi\",\\n\\tsaid \\ \u{e9}\\u{1b}");
    }
}
