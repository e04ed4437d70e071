//! `gptrickle generate`: a prompt in, text out, token by token.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use gptrickle_core::arena::Arena;
use gptrickle_core::generate::{BeamOptions, Options, Overflow, Plan, Saved, Session};
use gptrickle_core::gpt2;
use gptrickle_core::ops::Engine;
use gptrickle_core::sampler::Params;
use gptrickle_core::source::Resident;
use gptrickle_core::tokenizer::{Control, Token};

use super::decoding::{CONTROLS, Decoding, DecodingArgs};
use super::model::{self, EngineArgs, HeadArgs, MemoryArgs, ModelArgs, Opened, ram_bytes};
use super::sampling::SamplingArgs;
use super::saved::SavedText;
use super::writing::{self, Run, beams, print, sequences};
use super::{interrupt, note, text_or_stdin};

const EXAMPLES: &str = "Examples:
  gptrickle generate \"Once upon a time\"
  gptrickle generate \"The cat\" --temperature 0 -n 20     the likeliest tokens
  gptrickle generate \"The cat\" --num-return-sequences 3     three texts, in the passes of one
  gptrickle generate \"The cat\" --num-beams 4 -n 40        the text that is likeliest as a whole
  gptrickle generate \"The cat\" --config generation_config.json --min-new-tokens 50
  gptrickle generate \"The cat\" --rng torch --seed 7       as transformers draws, with an F32 or F16 model
  gptrickle generate \"The cat\" -n 2000 --overflow slide:8    a text longer than the context
  gptrickle generate -m gpt2.Q4_0.gguf --prompt-file a.txt --stop END --stats
  gptrickle generate \"The cat\" -n 50 --save cat.session
  gptrickle generate -n 50 --resume cat.session            the next 50 tokens
  echo -n \"Hello\" | gptrickle generate - --json          one object a line

The same model, prompt, options and seed give the same text everywhere.";

/// Write text: continues a prompt, token by token
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Text to continue; "-" reads it from standard input, none lets the model begin
    #[arg(value_name = "PROMPT", conflicts_with = "prompt_file")]
    prompt: Option<String>,

    /// Read the prompt from a file, as it is
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    decoding: DecodingArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// When the context is full: stop, or slide:KEEP, which keeps the first KEEP tokens and the newest half of the others
    #[arg(long, value_name = "HOW", value_parser = overflow)]
    overflow: Option<Overflow>,

    /// Guesses up to N tokens from earlier text and checks them in one pass: the same text, in fewer passes, which pays
    /// where storage is slower than arithmetic; 0 is off
    #[arg(long, value_name = "N", default_value_t = 0)]
    lookup: u8,

    #[command(flatten)]
    head: HeadArgs,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// Saves the text so far at the end, or when it is interrupted, with all it takes to go on but what --bad-words,
    /// --eos-token-id and --stop say; replaces the file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Goes on with a saved text and its options, with the same model; a prompt is added to it. Give --bad-words,
    /// --eos-token-id and --stop again: they are not saved
    #[arg(long, value_name = "FILE", conflicts_with_all = SAVED.into_iter().chain(CONTROLS))]
    resume: Option<PathBuf>,

    /// Takes <|endoftext|> and other control tokens in the prompt as tokens, not as text
    #[arg(long)]
    special: bool,

    /// Prints speed, bytes read and memory to standard error at the end
    #[arg(long)]
    stats: bool,

    /// Memory to keep weights in beside the arena: what is kept, head first, is not read again for each token
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = ram_bytes)]
    ram: usize,

    /// Prints a hash over all logits at the end: equal hashes, equal bits
    #[arg(long)]
    logits_hash: bool,

    /// Prints one JSON object a line: each token, and at last the figures
    #[arg(long)]
    json: bool,
}

/// What a saved text brings along beside the controls.
const SAVED: [&str; 6] = ["context", "kv", "config", "repetition_window", "rng", "seed"];

fn overflow(text: &str) -> Result<Overflow, String> {
    let keep = text.strip_prefix("slide:").and_then(|keep| keep.parse().ok());
    match (text, keep) {
        ("stop", _) => Ok(Overflow::Stop),
        (_, Some(keep)) => Ok(Overflow::Slide { keep }),
        _ => Err("it must be stop, or slide:KEEP with a number of tokens to keep".to_owned()),
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.engine.run(|engine| run_on(engine, &args))
}

fn run_on(engine: Engine, args: &Args) -> anyhow::Result<ExitCode> {
    let prompt = args.prompt()?;
    let mut opened = args.model.open()?;
    let mut saved = args.resume.as_deref().map(|path| SavedText::open(path, &mut opened)).transpose()?;
    let decoding = args.decoding.settle(&args.sampling)?;
    args.check(&decoding)?;
    let words = decoding.words(&mut opened)?;
    let bad_words: Vec<&[Token]> = words.bad.iter().map(Vec::as_slice).collect();
    let mut options = args.options(&opened, &decoding, saved.as_ref().map(|saved| &saved.head))?;
    options.sampling = Params { bad_words_ids: &bad_words, eos_token_id: &words.ends, ..options.sampling };
    let mut memory = model::memory(Plan::new(&opened.model, &options).total())?;
    let mut arena = Arena::new(&mut memory);
    let mut session =
        Session::new(&opened.model, &options, &mut opened.src, &mut arena).with_context(|| opened.name.clone())?;
    session.set_engine(engine);
    if let Some(saved) = &mut saved {
        saved.restore(&mut session)?;
    }
    if let Some(overflow) = args.overflow {
        session.set_overflow(overflow)?;
    }
    if args.logits_hash != session.logits_hash().is_some() {
        session.hash_logits(args.logits_hash);
    }
    // Before the text is made: it is a pity to find out afterwards.
    let save = args.save.as_deref().map(|path| SavedText::create(path, &mut opened)).transpose()?;

    interrupt::listen()?;

    let control = if args.special { Control::Recognise } else { Control::Ignore };
    model::push_text(&mut session, &mut opened.src, &prompt, control)?;
    let prompt_tokens = session.tokens().len().max(1); // an empty one begins with a token of its own
    session.limit(decoding.limit(prompt_tokens)?);
    let beams = decoding.beams.map(|(_, beams)| beams);
    let beam_bytes = beams.map_or(0, |_| BeamOptions::bytes(&opened.model, &options));
    let mut beam_memory = model::memory(beam_bytes)?;
    opened.describe(&options, arena.used() + beam_bytes);
    let most = opened.model.header.block_bytes + opened.model.header.head_bytes;
    let mut resident = vec![0; usize::try_from(most).map_or(args.ram, |most| most.min(args.ram))];
    let mut src = Resident::new(&mut opened.src, &mut resident);
    session.keep(&mut src).with_context(|| opened.name.clone())?;
    let mut run = Run {
        src: &mut src,
        name: &opened.name,
        stops: &decoding.stops,
        max_time: decoding.max_time,
        full_text: args.decoding.return_full_text.then(|| String::from_utf8_lossy(&prompt)),
        json: args.json,
        bandwidth: args.model.bandwidth(),
        engine,
        arena_bytes: arena.used() + beam_bytes,
    };
    let texts = decoding.num_return_sequences;
    let result = run.read_prompt(&mut session, &prompt).and_then(|prefill| match (beams, texts) {
        (Some(options), _) => {
            let search = session.beams(&options, &mut Arena::new(&mut beam_memory))?;
            beams::write(&mut run, search, prefill, texts.into())
        }
        (None, 1) => writing::write(&mut run, &mut session, prefill),
        (None, _) => sequences::write(&mut run, &mut session, prefill),
    });
    if let Some((fingerprint, output)) = save {
        SavedText::write(&session, fingerprint, output)?; // also what was made before something failed
    }
    let summary = result?;
    if args.json {
        print(&(serde_json::to_string(&summary)? + "\n"))?;
    }
    if args.stats {
        summary.print();
    }
    if let Some(hash) = summary.logits_hash.as_ref().filter(|_| !args.json) {
        note(format_args!("logits hash     {hash}"));
    }
    for text in summary.sequences.iter().filter(|_| !args.json) {
        if let Some(hash) = &text.logits_hash {
            note(format_args!("logits hash     {hash}, of {}", text.sequence + 1));
        }
    }
    Ok(if summary.interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

impl Args {
    fn prompt(&self) -> anyhow::Result<Vec<u8>> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => text_or_stdin(text),
            (None, Some(path)) => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// Refuses what a configuration file asks for beside flags that cannot be had with it.
    fn check(&self, decoding: &Decoding) -> anyhow::Result<()> {
        let alone = [
            ("--lookup", self.lookup > 0),
            ("--overflow", self.overflow.is_some()),
            ("--save", self.save.is_some()),
            ("--resume", self.resume.is_some()),
        ];
        match alone.iter().find(|(_, given)| *given && decoding.sequences() > 1) {
            Some((name, _)) => bail!("{name} goes with one text: leave out num_beams and num_return_sequences"),
            None => Ok(()),
        }
    }

    fn options(&self, opened: &Opened, decoding: &Decoding, saved: Option<&Saved>) -> anyhow::Result<Options<'static>> {
        if let Some(saved) = saved {
            let batch = self.memory.batch().min(saved.options(1).state.context);
            return Ok(Options { lookup: self.lookup.into(), head: self.head.how, ..saved.options(batch) });
        }
        Ok(Options {
            state: gpt2::Options {
                sequences: decoding.sequences().into(),
                own: decoding.most(),
                ..self.memory.options(&opened.model.header.config)?
            },
            sampling: decoding.params,
            seed: decoding.seed,
            lookup: self.lookup.into(),
            head: self.head.how,
        })
    }
}
