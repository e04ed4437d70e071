//! `gptrickle head-agreement`: how often a head in two stages chooses what the whole head does.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use gptrickle_core::arena::Arena;
use gptrickle_core::gpt2::{self, Head, Plan, State, Weights};
use gptrickle_core::sampler::{self, Params, Sampler, Shortlist, Sink};
use gptrickle_core::tokenizer::{Control, Token};
use serde::Serialize;

use super::model::{self, MemoryArgs, ModelArgs, Opened, head, head_name};
use super::sequence::text_of;
use super::text::with_tokenizer;
use super::{advance, progress};

const EXAMPLES: &str = "Examples:
  gptrickle head-agreement -m untied-Q2_K.gguf -f story.txt
  gptrickle head-agreement -m untied-Q4_0.gguf -f story.txt --head two-stage:16 --json

The text is run as it stands, a window of the context at a time, and at each position both heads choose the next token:
the likeliest one, and one that is drawn as generate draws by default, from the same random number.";

/// Tell how often a two-stage head chooses what the whole head does
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Text to run; "-" reads it from standard input
    #[arg(short, long, value_name = "TEXT")]
    file: PathBuf,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    memory: MemoryArgs,

    /// The two stages: two-stage:K, with K tokens that the first leaves to the second
    #[arg(long, value_name = "HOW", default_value = "two-stage", value_parser = head)]
    head: Head,

    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// All that is shown.
#[derive(Serialize)]
struct Report {
    head: String,
    tokens: usize,
    window: usize,
    /// Positions at which the likeliest token is the same.
    same_likeliest: usize,
    /// Positions at which the token that is drawn is the same.
    same_drawn: usize,
    bytes_per_token: u64,
    bytes_per_token_exact: u64,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut opened = args.model.open()?;
    if args.head == Head::Exact {
        bail!("--head exact is what it is compared with: use two-stage, or two-stage:K");
    }
    let header = opened.model.header;
    let reads = header.head_reads(args.head).with_context(|| opened.name.clone())?;
    let tokens = args.tokens(&mut opened)?;
    if tokens.is_empty() {
        bail!("the text is empty: there is no token to choose");
    }
    let mut report = Report {
        head: head_name(args.head),
        tokens: tokens.len(),
        window: args.memory.options(&header.config)?.context.min(tokens.len()),
        same_likeliest: 0,
        same_drawn: 0,
        bytes_per_token: header.bytes_per_token() - header.head_bytes + reads,
        bytes_per_token_exact: header.bytes_per_token(),
    };
    compare(&args, &mut opened, &tokens, &mut report)?;
    report.show(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Chooses the next token at each position with both heads, and counts in `report` how often it is the same.
fn compare(args: &Args, opened: &mut Opened, tokens: &[Token], report: &mut Report) -> anyhow::Result<()> {
    let header = &opened.model.header;
    let mut options = args.memory.options(&header.config)?;
    options.context = report.window;
    options.batch = options.batch.min(options.context);
    let (batch, n_vocab) = (options.batch, header.config.n_vocab);
    let candidates = args.head.candidates(n_vocab);
    let drawn = Params::default();
    let controls = [Params::greedy(), drawn, Params::greedy(), Params { top_k: drawn.top_k.min(candidates), ..drawn }];
    let samplers: usize = controls.iter().map(|params| params.bytes(n_vocab, 0, batch)).sum();
    let bytes = Plan::new(&header.config, &options).total() + Shortlist::bytes(candidates, batch) + samplers;
    let mut memory = model::memory(bytes)?;
    let mut arena = Arena::new(&mut memory);
    let src = &mut opened.src;
    let weights = Weights::load(header, &opened.model.file, src, &mut arena)?;
    let mut state = State::new(&header.config, &options, &mut arena)?;
    let mut shortlist = Shortlist::new(candidates, batch, &mut arena)?;
    let mut sampler = |params| Sampler::new(params, 42, n_vocab, 0, batch, &mut arena);
    let [likeliest, drawn, likeliest_staged, drawn_staged] = controls;
    let mut exact = [sampler(likeliest)?, sampler(drawn)?];
    let mut staged = [sampler(likeliest_staged)?, sampler(drawn_staged)?];

    let bar = progress(tokens.len(), "comparing heads");
    let mut done = 0;
    for window in tokens.chunks(options.context) {
        state.truncate(0);
        for tokens in window.chunks(batch) {
            let positions = 0..tokens.len();
            for sampler in exact.iter_mut().chain(staged.iter_mut()) {
                positions.clone().for_each(|i| sampler.begin_choice(i, 0, 0, |_| 0));
            }
            gpt2::forward(src, &weights, &mut state, tokens.iter().map(|token| token.0), true)?;
            gpt2::logits(src, &weights, &mut state, positions.clone(), |i, first, logits| {
                exact.iter_mut().for_each(|sampler| sampler.push(i, first as u32, logits));
            })?;
            shortlist.begin();
            gpt2::draft_logits(src, &weights, &mut state, positions.clone(), |i, first, logits| {
                shortlist.push(first, i, first as u32, logits);
            })?;
            if let Some((_, token)) = shortlist.not_finite() {
                return Err(sampler::Error::NotFinite { token }.into());
            }
            shortlist.sort(positions.len());
            let ids = shortlist.ids(positions.len());
            gpt2::rescore(src, &weights, &mut state, positions.len(), ids, |i, id, logit| {
                if let Some(n) = shortlist.rank(i, id) {
                    staged.iter_mut().for_each(|sampler| sampler.push_after(n, i, id, &[logit]));
                }
            })?;
            for i in positions {
                report.same_likeliest += usize::from(exact[0].pick(i)? == staged[0].pick(i)?);
                report.same_drawn += usize::from(exact[1].pick(i)? == staged[1].pick(i)?);
            }
            done += tokens.len();
            advance(&bar, done);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

impl Report {
    fn show(&self, json: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            return Ok(writeln!(out, "{}", serde_json::to_string(self)?)?);
        }
        let Report { head, tokens, window, bytes_per_token, bytes_per_token_exact, .. } = self;
        let percent = |n: usize| n as f64 / *tokens as f64 * 100.0;
        writeln!(out, "{head} beside the whole head, {tokens} tokens in windows of {window}")?;
        writeln!(out, "likeliest token the same   {:.2} %", percent(self.same_likeliest))?;
        writeln!(out, "drawn token the same       {:.2} %", percent(self.same_drawn))?;
        let times = *bytes_per_token_exact as f64 / *bytes_per_token as f64;
        writeln!(
            out,
            "read per token             {bytes_per_token} bytes, not {bytes_per_token_exact}: {times:.2} times fewer"
        )?;
        Ok(())
    }
}

impl Args {
    fn tokens(&self, opened: &mut Opened) -> anyhow::Result<Vec<Token>> {
        let text = text_of(&self.file)?;
        with_tokenizer(opened, |tokenizer, opened| {
            Ok(model::encode(tokenizer, &mut opened.src, &text, Control::Ignore)?)
        })
    }
}
