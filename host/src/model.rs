//! The front door: a model's file, opened, and the texts it makes.
//!
//! What a command line does step by step, in one call with its defaults: plan, memory, threads, a session, and whole
//! characters of what its tokens say. Who needs more takes these steps, with [`gptrickle_core::generate`].

use std::convert::Infallible;
use std::path::Path;
use std::thread;

use anyhow::Context;
use bytesize::ByteSize;
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::checked::{Checked, Table};
use gptrickle_core::generate::{self, Options, Plan, Session, StopReason};
use gptrickle_core::gpt2;
use gptrickle_core::ops::Engine;
use gptrickle_core::quant::Kernel;
use gptrickle_core::sampler::Params;
use gptrickle_core::source::{Counting, Source};
use gptrickle_core::tokenizer::{self, Control, Flow, MAX_TOKEN, TextStream, Token, Tokenizer};

use crate::checksums::crc32;
use crate::source::{DEMO, ModelFile};
use crate::threads::Threads;

/// A model that was opened and checked; its weights stay in the file.
#[derive(Debug)]
pub struct Model {
    /// Its bytes, counted.
    pub(crate) src: Bytes,
    /// What its header says.
    pub(crate) model: generate::Model,
    /// What people call it.
    pub(crate) name: String,
}

/// A model's bytes, compared with the file's checksums if it has some, then counted.
pub(crate) type Bytes = Counting<Checked<ModelFile, Vec<u32>>>;

impl Model {
    /// Opens a GGUF file of a GPT-2 model and maps it into memory; reads the header, and no weights.
    ///
    /// # Errors
    /// The file cannot be opened, or holds no model that can be run; the error says which file, what and why.
    pub fn open(path: impl AsRef<Path>) -> anyhow::Result<Model> {
        let path = path.as_ref();
        Model::new(ModelFile::map(path)?, path.display().to_string())
    }

    /// Opens the demo model, which is a part of this crate: 3.6 MB, and it writes short, simple stories.
    ///
    /// # Errors
    /// None, as a test opens it.
    pub fn demo() -> anyhow::Result<Model> {
        Model::new(ModelFile::BuiltIn(DEMO), "the built-in model".to_owned())
    }

    /// Opens a model of any file, which errors call `name`.
    ///
    /// # Errors
    /// The file cannot be read, holds no model that can be run, or is not what its checksums say.
    pub fn new(file: ModelFile, name: String) -> anyhow::Result<Model> {
        let mut src = checked(file).map(Counting::new).with_context(|| name.clone())?;
        let model = generate::Model::open(&mut src).with_context(|| name.clone())?;
        Ok(Model { src, model, name })
    }

    /// What the header says: shape, tensors, vocabulary.
    pub fn header(&self) -> &generate::Model {
        &self.model
    }

    /// A text that goes on from `prompt`; nothing runs before [`Generation::text`] or [`Generation::stream`].
    pub fn generate<'a>(&'a mut self, prompt: &'a str) -> Generation<'a> {
        let context = self.model.header.config.n_ctx;
        let state = gpt2::Options { context, batch: BATCH, ..gpt2::Options::default() };
        let options = Options { state, seed: SEED, ..Options::default() };
        Generation { model: self, prompt, options, max_new_tokens: MAX_NEW_TOKENS, stops: Vec::new() }
    }
}

/// The same bytes, compared as they are lent with the checksums that the file has, if it has any.
fn checked(mut file: ModelFile) -> Result<Checked<ModelFile, Vec<u32>>, generate::Error> {
    let table = Table::find(&mut file)?;
    let words = vec![0; table.map_or(0, |table| table.chunks())];
    Ok(Checked::new(file, table, words, crc32)?)
}

// Defaults, those of the command line.
/// Positions of a prompt that share a pass of the weights.
const BATCH: usize = 32;
/// Where random numbers start.
const SEED: u64 = 42;
/// Most tokens to make.
const MAX_NEW_TOKENS: usize = 200;

/// A text to be made: what is not set is as in `gptrickle generate`.
#[derive(Debug)]
pub struct Generation<'a> {
    model: &'a mut Model,
    prompt: &'a str,
    options: Options<'a>,
    max_new_tokens: usize,
    stops: Vec<&'a str>,
}

impl<'a> Generation<'a> {
    /// Makes at most `n` tokens; 200 if it is not said.
    pub fn max_new_tokens(mut self, n: usize) -> Self {
        self.max_new_tokens = n;
        self
    }

    /// How tokens are chosen: temperature, top-k and their like; the core's defaults if it is not said.
    pub fn sampling(mut self, params: Params<'a>) -> Self {
        self.options.sampling = params;
        self
    }

    /// Where the random numbers start: the same seed gives the same text everywhere; 42 if it is not said.
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// Ends the text before this string; may be said several times.
    pub fn stop(mut self, text: &'a str) -> Self {
        self.stops.push(text);
        self
    }

    /// Has room for `n` tokens, prompt and new ones together; for all that the model knows if it is not said.
    pub fn context(mut self, n: usize) -> Self {
        self.options.state.context = n;
        self
    }

    /// Makes the text and returns it, without the prompt.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn text(self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.stream(|part| text.push_str(part))?;
        Ok(text)
    }

    /// Makes the text, shows it part by part as it comes about, without the prompt, and says why it ended.
    ///
    /// Parts are whole characters. Every core of the machine takes part; `show` is called in one of their threads.
    ///
    /// # Errors
    /// The prompt or the context does not fit the model, a control is out of range, a stop string is empty or over
    /// [`tokenizer::MAX_STOP`] bytes long, there is too little memory, or the file cannot be read.
    pub fn stream(self, show: impl FnMut(&str) + Send) -> anyhow::Result<StopReason> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let made = Threads::run(threads, |team| self.run(Engine { kernel: Kernel::best(), team }, show));
        made.context("cannot start threads")?
    }

    fn run(self, engine: Engine, mut show: impl FnMut(&str)) -> anyhow::Result<StopReason> {
        let Model { src, model, name } = self.model;
        let mut options = self.options;
        options.state.batch = options.state.batch.min(options.state.context); // no pass has more
        let mut stream = TextStream::new(&self.stops)?;
        let mut memory = memory(Plan::new(model, &options).total())?;
        let mut arena = Arena::new(&mut memory);
        let mut session = Session::new(model, &options, src, &mut arena).with_context(|| name.clone())?;
        session.set_engine(engine);
        session.limit(self.max_new_tokens);
        push_text(&mut session, src, self.prompt.as_bytes(), Control::Ignore)?;
        while let Some(token) = session.next(src).with_context(|| name.clone())? {
            let (part, flow) = certain(session.tokenizer(), src, token, &mut stream)?;
            show(&part);
            if let Flow::Stopped { .. } = flow {
                return Ok(StopReason::StopString);
            }
        }
        show(&held_back(stream));
        Ok(session.stop_reason().unwrap_or(StopReason::MaxTokens))
    }
}

/// Memory for an arena of `bytes`; pages that are never written to, such as those of positions that no text reaches, cost
/// nothing.
pub(crate) fn memory(bytes: usize) -> anyhow::Result<Vec<u8>> {
    let bytes = bytes.saturating_add(ALIGN);
    // Zeroed memory is asked for as such, which ends the process if there is none: so first without zeroes.
    Vec::<u8>::new().try_reserve_exact(bytes).with_context(|| {
        format!("{} of memory are needed: use a smaller --context, --batch or --kv", ByteSize::b(bytes as u64))
    })?;
    Ok(vec![0; bytes])
}

/// Adds `text` to the session's, with memory for words of any length, and says how many tokens that is.
pub(crate) fn push_text(
    session: &mut Session,
    src: &mut impl Source,
    text: &[u8],
    control: Control,
) -> anyhow::Result<usize> {
    let prefix = session.tokenizer().vocabulary().prefix().filter(|_| session.tokens().len() == 0);
    let mut tokens: Vec<Token> = prefix.into_iter().collect();
    tokens.extend(encode(session.tokenizer(), src, text, control)?);
    if !tokens.is_empty() {
        session.push(&tokens)?;
    }
    Ok(tokens.len())
}

/// The tokens of `text`, with memory for words of any length; none in front or behind.
pub(crate) fn encode(
    tokenizer: &Tokenizer,
    src: &mut impl Source,
    text: &[u8],
    control: Control,
) -> Result<Vec<Token>, tokenizer::Error> {
    let mut scratch = vec![0; Tokenizer::scratch_len(text.len())];
    let mut tokens = Vec::new();
    tokenizer.encode_each(src, text, control, &mut scratch, |token| tokens.push(token))?;
    Ok(tokens)
}

/// The text that is certain with a token, and whether a stop string ends it.
pub(crate) fn certain(
    tokenizer: &Tokenizer,
    src: &mut impl Source,
    token: Token,
    stream: &mut TextStream,
) -> anyhow::Result<(String, Flow)> {
    let mut bytes = [0; MAX_TOKEN];
    let len = tokenizer.decode(src, token, Control::Ignore, &mut bytes)?;
    let mut text = String::new();
    let Ok(flow) = stream.push(&bytes[..len], |part| {
        text.push_str(part);
        Ok::<(), Infallible>(())
    });
    Ok((text, flow))
}

/// What is shown if the text ends here.
pub(crate) fn held_back(stream: TextStream) -> String {
    let mut text = String::new();
    let Ok(_) = stream.finish(|part| {
        text.push_str(part);
        Ok::<(), Infallible>(())
    });
    text
}
