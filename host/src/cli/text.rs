//! A text that is run once, as a whole, from an empty context.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::gpt2::{self, Config, Options};
use gptrickle_core::tokenizer::{Control, Token, Tokenizer};
use serde::Serialize;

use super::model::{self, MemoryArgs, Opened};
use super::sequence::text_of;
use super::text_or_stdin;
use super::tokenize::parse_ids;

/// Which text.
#[derive(Debug, clap::Args)]
pub(super) struct TextArgs {
    /// Text to run; "-" reads it from standard input
    #[arg(value_name = "TEXT", required_unless_present_any = ["file", "tokens"])]
    text: Option<String>,

    /// Reads the text from a file, as it is
    #[arg(short, long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,

    /// Token ids to run instead of a text
    #[arg(long, value_name = "IDS", conflicts_with_all = ["text", "file"])]
    tokens: Option<String>,

    #[command(flatten)]
    special: SpecialArgs,
}

impl TextArgs {
    /// The text's tokens, those that `generate` would run: with the one in front that the file wants there.
    pub(super) fn tokens(&self, opened: &mut Opened) -> anyhow::Result<Vec<Token>> {
        if let Some(ids) = &self.tokens {
            return parse_ids(ids);
        }
        let text = match &self.file {
            Some(path) => text_of(path)?,
            None => text_or_stdin(self.text.as_deref().unwrap_or_default())?,
        };
        let control = self.special.control();
        let tokens = with_tokenizer(opened, |tokenizer, opened| {
            let prefix = tokenizer.vocabulary().prefix();
            Ok(prefix.into_iter().chain(model::encode(tokenizer, &mut opened.src, &text, control)?).collect())
        });
        let tokens: Vec<Token> = tokens?;
        ensure!(!tokens.is_empty(), "the text is empty: there is no position to compute");
        Ok(tokens)
    }
}

/// What control tokens in a text are.
#[derive(Debug, clap::Args)]
pub(super) struct SpecialArgs {
    /// Takes <|endoftext|> and other control tokens in the text as tokens
    #[arg(long)]
    special: bool,
}

impl SpecialArgs {
    /// Whether they are tokens, or text as any other.
    pub(super) fn control(&self) -> Control {
        if self.special { Control::Recognise } else { Control::Ignore }
    }
}

/// Calls `f` with the model's tokenizer.
pub(super) fn with_tokenizer<R>(
    opened: &mut Opened,
    f: impl FnOnce(&Tokenizer, &mut Opened) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let vocabulary = opened.model.vocabulary;
    let mut memory = vec![0; Tokenizer::bytes(&vocabulary) + ALIGN];
    let tokenizer = Tokenizer::load(&vocabulary, &mut opened.src, &mut Arena::new(&mut memory))
        .with_context(|| opened.name.clone())?;
    f(&tokenizer, opened)
}

/// A token, and what it says.
#[derive(Debug, Serialize)]
pub(super) struct Word {
    /// Its id.
    pub(super) token: u32,
    /// Its bytes, as text.
    pub(super) text: String,
    /// Its bytes are no text by themselves, and `text` spells them: a part of a character.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) bytes: bool,
}

impl Word {
    /// Id and text for people.
    pub(super) fn named(&self) -> String {
        let Word { token, text, bytes } = self;
        if *bytes { format!("{token:>6}  b\"{text}\"") } else { format!("{token:>6}  {text:?}") }
    }
}

/// What tokens say.
pub(super) fn words(opened: &mut Opened, tokens: &[Token]) -> anyhow::Result<Vec<Word>> {
    with_tokenizer(opened, |tokenizer, opened| {
        let mut bytes = vec![0; opened.model.vocabulary.max_token_bytes()];
        let word = |&token: &Token| {
            let len = tokenizer.decode(&mut opened.src, token, Control::Recognise, &mut bytes)?;
            Ok(match std::str::from_utf8(&bytes[..len]) {
                Ok(text) => Word { token: token.0, text: text.to_owned(), bytes: false },
                Err(_) => Word { token: token.0, text: bytes[..len].escape_ascii().to_string(), bytes: true },
            })
        };
        tokens.iter().map(word).collect()
    })
}

/// The core's options, with a context that holds the text and no more.
pub(super) fn options(memory: &MemoryArgs, config: &Config, tokens: &[Token]) -> anyhow::Result<Options> {
    let options = memory.options(config)?;
    if tokens.len() > options.context {
        return Err(gpt2::Error::Full { tokens: tokens.len(), left: options.context }.into());
    }
    Ok(Options { context: tokens.len(), batch: options.batch.min(tokens.len()), ..options })
}
