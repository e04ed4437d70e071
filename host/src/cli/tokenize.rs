//! `gptrickle tokenize`: text to token ids, and back.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::tokenizer::{Control, Token, Tokenizer};

use super::model::{self, ModelArgs, Opened};
use super::text_or_stdin;

const EXAMPLES: &str = "Examples:
  gptrickle tokenize \"Hello world\"                  an id and its text a line
  gptrickle tokenize --json - < story.txt           all ids as one array
  gptrickle tokenize --decode 550 503 258           text again
  gptrickle tokenize --json - < a | gptrickle tokenize --decode -";

/// Show the tokens of a text, or the text of tokens
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Text to encode, or ids to decode; "-" reads them from standard input
    #[arg(value_name = "TEXT", required = true)]
    text: Vec<String>,

    #[command(flatten)]
    model: ModelArgs,

    /// Turns ids, separated by spaces, commas or as a JSON array, into text
    #[arg(long)]
    decode: bool,

    /// Takes <|endoftext|> and other control tokens in the text as tokens, and writes them when decoding
    #[arg(long)]
    special: bool,

    /// Prints the ids as one JSON array, or the decoded text as one JSON string
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let text = text_or_stdin(&args.text.join(" "))?;
    let mut opened = args.model.open()?;
    let mut memory = vec![0; Tokenizer::bytes(&opened.model.vocabulary) + ALIGN];
    let tokenizer = Tokenizer::load(&opened.model.vocabulary, &mut opened.src, &mut Arena::new(&mut memory))
        .with_context(|| opened.name.clone())?;
    let control = if args.special { Control::Recognise } else { Control::Ignore };
    if args.decode {
        decode(&args, &mut opened, &tokenizer, control, &text)?;
    } else {
        encode(&args, &mut opened, &tokenizer, control, &text)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn encode(
    args: &Args,
    opened: &mut Opened,
    tokenizer: &Tokenizer,
    control: Control,
    text: &[u8],
) -> anyhow::Result<()> {
    let tokens = model::encode(tokenizer, &mut opened.src, text, control)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&tokens.iter().map(|token| token.0).collect::<Vec<_>>())?)?;
    } else {
        let mut bytes = vec![0; opened.model.vocabulary.max_token_bytes()];
        for token in tokens {
            let len = tokenizer.decode(&mut opened.src, token, Control::Recognise, &mut bytes)?;
            writeln!(out, "{token}\t{}", quoted(&bytes[..len]))?;
        }
    }
    Ok(out.flush()?)
}

fn decode(
    args: &Args,
    opened: &mut Opened,
    tokenizer: &Tokenizer,
    control: Control,
    text: &[u8],
) -> anyhow::Result<()> {
    let text = std::str::from_utf8(text).context("the ids are no text")?;
    let mut bytes = vec![0; opened.model.vocabulary.max_token_bytes()];
    let mut decoded = Vec::new();
    for token in parse_ids(text)? {
        let len = tokenizer.decode(&mut opened.src, token, control, &mut bytes)?;
        decoded.extend_from_slice(&bytes[..len]);
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&String::from_utf8_lossy(&decoded))?)?;
    } else {
        out.write_all(&decoded)?;
        if out.is_terminal() {
            writeln!(out)?; // the shell's prompt; a file or a pipe gets the very bytes
        }
    }
    Ok(out.flush()?)
}

/// The bytes of a token for people: as text, or as bytes where they are a part of a character.
pub(super) fn quoted(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("b\"{}\"", bytes.escape_ascii()),
    }
}

/// Reads token ids: whole numbers, with spaces, commas or brackets between them.
pub(super) fn parse_ids(text: &str) -> anyhow::Result<Vec<Token>> {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']')).filter(|word| !word.is_empty());
    let ids: Vec<Token> = words
        .map(|word| word.parse().map(Token).with_context(|| format!("\"{word}\" is no token id")))
        .collect::<Result<_, _>>()?;
    if ids.is_empty() {
        bail!("there are no token ids: give them as 1,2,3");
    }
    Ok(ids)
}
