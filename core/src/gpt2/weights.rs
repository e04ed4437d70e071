//! The weights' directory: which tensor lies where, in the order in which a pass reads them.

use core::convert::Infallible;
use core::fmt;

use crate::arena::{Arena, TooSmall, bytes_of};
use crate::gguf::{File, Name, Tensor};
use crate::ops::Matrix;
use crate::part::{item, put};
use crate::quant::Format;
use crate::source::{self, Cause, Layout, Resident, Source};

use super::config::{Config, MAX_LAYERS, Metadata};
use super::error::Error;

/// A tensor's place in the pass order: embeddings, then each layer's twelve, then the last norm and the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role(usize);

/// A tensor's name within its layer, and its (rows, columns); vectors have one column.
type Entry = (&'static str, fn(&Config) -> (usize, usize));

/// A layer's tensors in pass order.
const LAYER: [Entry; 12] = [
    ("attn_norm.weight", |c| (c.n_embd, 1)),
    ("attn_norm.bias", |c| (c.n_embd, 1)),
    ("attn_qkv.weight", |c| (3 * c.n_embd, c.n_embd)),
    ("attn_qkv.bias", |c| (3 * c.n_embd, 1)),
    ("attn_output.weight", |c| (c.n_embd, c.n_embd)),
    ("attn_output.bias", |c| (c.n_embd, 1)),
    ("ffn_norm.weight", |c| (c.n_embd, 1)),
    ("ffn_norm.bias", |c| (c.n_embd, 1)),
    ("ffn_up.weight", |c| (c.n_ff, c.n_embd)),
    ("ffn_up.bias", |c| (c.n_ff, 1)),
    ("ffn_down.weight", |c| (c.n_embd, c.n_ff)),
    ("ffn_down.bias", |c| (c.n_embd, 1)),
];

/// The tensors outside the layers, the last one may be missing.
const OUTSIDE: [Entry; 5] = [
    ("token_embd.weight", |c| (c.n_vocab, c.n_embd)),
    ("position_embd.weight", |c| (c.n_ctx, c.n_embd)),
    ("output_norm.weight", |c| (c.n_embd, 1)),
    ("output_norm.bias", |c| (c.n_embd, 1)),
    ("output.weight", |c| (c.n_vocab, c.n_embd)),
];

/// Where a layer's matrices stand in [`LAYER`].
pub(super) const ATTN_QKV: usize = 2;
pub(super) const ATTN_OUTPUT: usize = 4;
pub(super) const FFN_UP: usize = 8;
pub(super) const FFN_DOWN: usize = 10;

const TOKEN_EMBD: Role = Role(0);
const POSITION_EMBD: Role = Role(1);
const OUTPUT_NORM: Role = Role(2);
pub(super) const OUTPUT: Role = Role(4);
const MAX_ROLES: usize = OUTSIDE.len() + LAYER.len() * MAX_LAYERS as usize;

impl Role {
    pub(super) fn of_layer(layer: usize, i: usize) -> Role {
        Role(OUTSIDE.len() + layer * LAYER.len() + i)
    }

    /// The role that a tensor of this name plays in a model of `n_layer` layers.
    fn from_name(name: &Name, n_layer: usize) -> Option<Role> {
        if let Some(i) = OUTSIDE.iter().position(|tensor| name.is(tensor.0)) {
            return Some(Role(i));
        }
        let name = name.as_bytes()?.strip_prefix(b"blk.")?;
        let (layer, suffix) = name.split_at_checked(name.iter().position(|&byte| byte == b'.')?)?;
        // Zeros in front would give a layer two names; four digits are too many for any layer.
        if layer != b"0" && !matches!(layer, [b'1'..=b'9', ..] if layer.len() < 4) {
            return None;
        }
        let digit = |byte: u8| byte.is_ascii_digit().then(|| usize::from(byte - b'0'));
        let layer = layer.iter().try_fold(0, |n, &byte| Some(10 * n + digit(byte)?))?;
        let i = LAYER.iter().position(|tensor| suffix.get(1..) == Some(tensor.0.as_bytes()))?;
        (layer < n_layer).then(|| Role::of_layer(layer, i))
    }

    /// The layer, if it has one, and the rest of the name.
    fn parts(self) -> (Option<usize>, &'static Entry) {
        match self.0.checked_sub(OUTSIDE.len()) {
            None => (None, &OUTSIDE[self.0]),
            Some(i) => (Some(i / LAYER.len()), &LAYER[i % LAYER.len()]),
        }
    }

    fn shape(self, config: &Config) -> (usize, usize) {
        (self.parts().1.1)(config)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (Some(layer), (name, _)) => write!(f, "blk.{layer}.{name}"),
            (None, (name, _)) => f.write_str(name),
        }
    }
}

/// How the logits of a choice come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Head {
    /// From every row of the head.
    #[default]
    Exact,
    /// From the head's rows of `candidates` tokens alone, the ones that the token embedding, as a head, finds likeliest:
    /// in an untied file that is a smaller copy of nearly the same matrix. Other tokens cannot be chosen.
    TwoStage {
        /// Tokens that are scored by the head; 0 means 1.
        candidates: usize,
    },
}

impl Head {
    /// Tokens whose logits a choice is made from.
    pub fn candidates(self, n_vocab: usize) -> usize {
        match self {
            Head::Exact => n_vocab,
            Head::TwoStage { candidates } => candidates.clamp(1, n_vocab.max(1)),
        }
    }
}

/// What the header says of the model, checked: every tensor is there once, with the right shape and a format that can
/// be multiplied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    /// The model's shape.
    pub config: Config,
    /// Whether the head is the token embedding, as there is no `output.weight`.
    pub tied: bool,
    /// Bytes of the block and last-norm tensors: what a token reads besides head and embeddings.
    pub block_bytes: u64,
    /// Those of them that are the last norm's, which is read with the head.
    pub norm_bytes: u64,
    /// Bytes of the head.
    pub head_bytes: u64,
    /// Bytes of the token embedding, which is the head if they are tied.
    pub token_embd_bytes: u64,
    /// Bytes of one row of both embeddings.
    pub embedding_bytes: u64,
    /// The longest row of any tensor, in bytes: what a source must be able to lend at once.
    pub longest_row: usize,
}

impl Header {
    /// Checks metadata and every tensor's name, shape and format; reads the header's tensor list once.
    ///
    /// # Errors
    /// Not a GPT-2 model, or not one that can be multiplied → the variants of [`Error`], which name key or tensor.
    pub fn read<S: Source>(file: &File, metadata: &Metadata, src: &mut S) -> Result<Header, Error> {
        let mut config = metadata.config(src)?;
        let mut tensors = file.tensors(src);
        while let Some(tensor) = tensors.next()? {
            if tensor.name.is(OUTSIDE[TOKEN_EMBD.0].0) {
                config.set_vocab(tensor.dims[1])?;
            }
        }
        let mut header = Header {
            config,
            tied: true,
            block_bytes: 0,
            norm_bytes: 0,
            head_bytes: 0,
            token_embd_bytes: 0,
            embedding_bytes: 0,
            longest_row: 0,
        };
        let mut seen = [0u64; MAX_ROLES.div_ceil(64)];
        let mut tensors = file.tensors(src);
        while let Some(tensor) = tensors.next()? {
            let (role, matrix) = place(&tensor, &config)?;
            let (word, bit) = (role.0 / 64, 1 << (role.0 % 64));
            if item(&seen, word) & bit != 0 {
                return Err(Error::DuplicateTensor { tensor: tensor.name });
            }
            let noted = item(&seen, word) | bit;
            put(&mut seen, word, noted);
            header.longest_row = header.longest_row.max(matrix.row_bytes());
            match role {
                TOKEN_EMBD => {
                    header.embedding_bytes += matrix.row_bytes() as u64;
                    header.token_embd_bytes = matrix.bytes();
                }
                POSITION_EMBD => header.embedding_bytes += matrix.row_bytes() as u64,
                OUTPUT => (header.tied, header.head_bytes) = (false, matrix.bytes()),
                _ => {
                    header.block_bytes += matrix.bytes();
                    if role.0 < OUTSIDE.len() {
                        header.norm_bytes += matrix.bytes();
                    }
                }
            }
        }
        if header.tied {
            header.head_bytes = header.token_embd_bytes;
        }
        for role in (0..OUTSIDE.len() + config.n_layer * LAYER.len()).map(Role) {
            if role != OUTPUT && item(&seen, role.0 / 64) & 1 << (role.0 % 64) == 0 {
                return Err(Error::MissingTensor { role });
            }
        }
        Ok(header)
    }

    /// Bytes a single decoded token reads: every weight it uses, once.
    pub fn bytes_per_token(&self) -> u64 {
        self.bytes_per_prompt(1, 1)
    }

    /// Bytes that a choice reads of the head, which [`bytes_per_token`](Header::bytes_per_token) counts as all of it.
    ///
    /// # Errors
    /// Two stages of a file whose head is its token embedding → [`Error::OneHead`]; they read no less than the whole
    /// head → [`Error::DraftHead`].
    pub fn head_reads(&self, head: Head) -> Result<u64, Error> {
        let (exact, n_vocab) = (self.head_bytes, self.config.n_vocab);
        match head {
            Head::Exact => Ok(exact),
            Head::TwoStage { .. } if self.tied => Err(Error::OneHead),
            Head::TwoStage { .. } => {
                let rows = exact / n_vocab.max(1) as u64 * head.candidates(n_vocab) as u64;
                let reads = self.token_embd_bytes + rows;
                if reads < exact { Ok(reads) } else { Err(Error::DraftHead { reads, exact }) }
            }
        }
    }

    /// Bytes that a prompt of so many tokens and the token after it read: the blocks once for each batch, last norm and
    /// head once, a row of both embeddings for each token.
    pub fn bytes_per_prompt(&self, tokens: usize, batch: usize) -> u64 {
        let passes = tokens.div_ceil(batch.max(1)) as u64;
        let blocks = (self.block_bytes - self.norm_bytes).saturating_mul(passes);
        let rows = self.embedding_bytes.saturating_mul(tokens as u64);
        blocks.saturating_add(rows).saturating_add(self.norm_bytes + self.head_bytes)
    }
}

/// The role of a tensor and how to multiply it; shape and format are checked here.
fn place(tensor: &Tensor, config: &Config) -> Result<(Role, Matrix), Error> {
    let name = tensor.name;
    let role = Role::from_name(&name, config.n_layer);
    let role = role.ok_or(Error::UnknownTensor { tensor: name })?;
    let (rows, cols) = role.shape(config);
    let dims = if cols == 1 { [rows as u64, 1, 1, 1] } else { [cols as u64, rows as u64, 1, 1] };
    if tensor.dims != dims {
        return Err(Error::Shape { tensor: name, found: tensor.dims, expected: (rows, cols) });
    }
    let format = Format::from_id(tensor.kind.id).filter(|format| cols != 1 || format.is_float());
    let format = format.ok_or(Error::Format { tensor: name, kind: tensor.kind, vector: cols == 1 })?;
    if !format.is_built() {
        return Err(Error::NotBuilt { tensor: name, kind: tensor.kind });
    }
    Ok((role, Matrix { format, at: tensor.span.at, rows, cols }))
}

/// Scale and shift of a LayerNorm.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// Scale (n_embd).
    pub weight: Matrix,
    /// Shift (n_embd).
    pub bias: Matrix,
}

/// A matrix and what is added to its product.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// The matrix.
    pub weight: Matrix,
    /// Added to each row's product (rows).
    pub bias: Matrix,
}

/// One block of the transformer.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// Before attention.
    pub attn_norm: Norm,
    /// Query, key and value of all heads (3 n_embd, n_embd).
    pub attn_qkv: Linear,
    /// From the heads back to the residual stream (n_embd, n_embd).
    pub attn_output: Linear,
    /// Before the feed-forward layer.
    pub ffn_norm: Norm,
    /// Into the feed-forward layer (n_ff, n_embd).
    pub ffn_up: Linear,
    /// And back (n_embd, n_ff).
    pub ffn_down: Linear,
}

/// Where every weight lies: eight bytes of arena a tensor, the weights stay in the file.
#[derive(Debug)]
pub struct Weights<'a> {
    config: Config,
    /// By role: offset · 16 + index in [`Format::ALL`] (roles).
    slots: &'a [u64],
    /// What is read whole after the last norm.
    head: Role,
}

impl<'a> Weights<'a> {
    /// Arena bytes of a model's directory.
    pub const fn bytes(n_layer: usize) -> usize {
        bytes_of::<u64>(OUTSIDE.len() + n_layer * LAYER.len())
    }

    /// Notes where each tensor lies; reads the header's tensor list once.
    ///
    /// # Errors
    /// The source failed; the arena is too small.
    pub fn load<S: Source>(header: &Header, file: &File, src: &mut S, arena: &mut Arena<'a>) -> Result<Self, Error> {
        let config = header.config;
        let slots: &mut [u64] = arena.take(OUTSIDE.len() + config.n_layer * LAYER.len())?;
        let mut tensors = file.tensors(src);
        while let Some(tensor) = tensors.next()? {
            let (role, matrix) = place(&tensor, &config)?;
            let index = Format::ALL.iter().position(|&format| format == matrix.format).unwrap_or(0);
            put(slots, role.0, matrix.at << 4 | index as u64);
        }
        if header.tied {
            put(slots, OUTPUT.0, item(slots, TOKEN_EMBD.0));
        }
        src.settle()?;
        Ok(Weights { config, slots, head: OUTPUT })
    }

    /// Says which head is read whole, and so what is hinted at and kept first: the exact one before this is called.
    pub fn set_head(&mut self, head: Head) {
        self.head = match head {
            Head::Exact => OUTPUT,
            Head::TwoStage { .. } => TOKEN_EMBD,
        };
    }

    fn matrix(&self, role: Role) -> Matrix {
        let slot = item(self.slots, role.0);
        let (rows, cols) = role.shape(&self.config);
        let format = Format::ALL.get((slot & 15) as usize).copied().unwrap_or(Format::F32);
        Matrix { format, at: slot >> 4, rows, cols }
    }

    /// Embedding of each token (n_vocab, n_embd).
    pub fn token_embd(&self) -> Matrix {
        self.matrix(TOKEN_EMBD)
    }

    /// Embedding of each position (n_ctx, n_embd).
    pub fn position_embd(&self) -> Matrix {
        self.matrix(POSITION_EMBD)
    }

    /// The norm after the last layer.
    pub fn output_norm(&self) -> Norm {
        Norm { weight: self.matrix(OUTPUT_NORM), bias: self.matrix(Role(OUTPUT_NORM.0 + 1)) }
    }

    /// The head (n_vocab, n_embd): its own matrix, or the token embedding.
    pub fn output(&self) -> Matrix {
        self.matrix(OUTPUT)
    }

    /// All tensors of a pass in the order in which they are read, the head's too if it follows; then the next pass's
    /// layers, after a `None` for the embeddings: nobody knows which of their rows come next.
    pub fn pass(&self, head: bool) -> impl Iterator<Item = Option<Matrix>> + Clone {
        self.in_order(true, head)
    }

    /// As [`pass`](Self::pass), from the last norm on.
    pub fn head_pass(&self) -> impl Iterator<Item = Option<Matrix>> + Clone {
        self.in_order(false, true)
    }

    /// What is surely read after the head: the next pass, after embeddings of which nobody knows the rows yet.
    pub fn next_pass(&self) -> impl Iterator<Item = Option<Matrix>> + Clone {
        self.in_order(false, false)
    }

    fn in_order(&self, layers: bool, head: bool) -> impl Iterator<Item = Option<Matrix>> + Clone {
        let in_layers = self.slots.len().saturating_sub(OUTSIDE.len());
        let layers = if layers { in_layers } else { 0 };
        let pass = layers + if head { 3 } else { 0 };
        (0..pass + 1 + in_layers).map(move |i| {
            let role = match i {
                _ if i < layers => OUTSIDE.len() + i,
                _ if i < pass => item(&[OUTPUT_NORM.0, OUTPUT_NORM.0 + 1, self.head.0], i - layers),
                _ => OUTSIDE.len() + i.checked_sub(pass + 1)?,
            };
            Some(self.matrix(Role(role)))
        })
    }

    /// Keeps in memory what a pass would read, as much as there is room for, and says how many bytes a token that
    /// saves: rows of the head that is read whole first, then the other tensors in file order, the last one as far as its
    /// rows fit.
    ///
    /// # Errors
    /// The source failed → [`Error::Source`], [`Error::Damaged`].
    pub fn keep<S: Source>(&self, src: &mut Resident<S>) -> Result<u64, Error> {
        let mut saved = 0;
        self.each_to_keep(src.room(), |at, len, of| {
            let kept = src.keep(at, len)?;
            saved += of.map_or(0, |_| kept as u64);
            Ok::<_, Error>(kept)
        })
        .map_err(|error| self.blame(error))?;
        Ok(saved)
    }

    /// What [`keep`](Self::keep) would keep in `room` bytes, as `show(role, rows, all rows, bytes)`, and where
    /// it would lie; reads nothing.
    pub fn plan_to_keep(&self, room: usize, mut show: impl FnMut(Role, usize, usize, usize)) -> Layout {
        let mut layout = Layout::new(room);
        let Ok(()) = self.each_to_keep(room, |at, len, of| {
            let kept = layout.add(at, len);
            if let Some(role) = of.filter(|_| kept > 0) {
                let matrix = self.matrix(role);
                let tied = role == OUTPUT && item(self.slots, OUTPUT.0) == item(self.slots, TOKEN_EMBD.0);
                show(if tied { TOKEN_EMBD } else { role }, kept / matrix.row_bytes(), matrix.rows, kept);
            }
            Ok::<_, Infallible>(kept)
        });
        layout
    }

    /// Calls `keep(offset, bytes, whose rows)` for each stretch worth keeping; it says how many it took of the room.
    fn each_to_keep<E>(
        &self,
        mut room: usize,
        mut keep: impl FnMut(u64, usize, Option<Role>) -> Result<usize, E>,
    ) -> Result<(), E> {
        // Alignment may leave a gap between two tensors; it is kept with them, so that they are one stretch.
        const GAP: u64 = 4096;
        let mut next = Some(self.head);
        let mut end = 0;
        while let Some(role) = next.filter(|_| room > 0) {
            let matrix = self.matrix(role);
            if role != self.head {
                match matrix.at - end {
                    gap @ 1..GAP if end > 0 => room -= keep(end, gap as usize, None)?,
                    _ => {}
                }
                end = matrix.at + matrix.bytes();
            }
            let rows = (room / matrix.row_bytes()).min(matrix.rows);
            room -= keep(matrix.at, rows * matrix.row_bytes(), Some(role))?;
            next = self.first_from(end);
        }
        Ok(())
    }

    /// Says which tensor is damaged, where a checksum says that one is.
    pub(super) fn blame(&self, error: Error) -> Error {
        let Error::Source(source @ source::Error { offset, len, cause: Cause::Checksum }) = error else { return error };
        let reaches = |role: &Role| {
            let matrix = self.matrix(*role);
            matrix.at < offset + len as u64 && offset < matrix.at + matrix.bytes()
        };
        let first = (0..self.slots.len()).map(Role).filter(reaches).min_by_key(|&role| self.matrix(role).at);
        first.map_or(error, |tensor| Error::Damaged { tensor, error: source })
    }

    /// The tensor that lies first from offset `at` on, of those between embeddings and head.
    fn first_from(&self, at: u64) -> Option<Role> {
        let roles = (0..self.slots.len()).map(Role).filter(|role| ![TOKEN_EMBD, POSITION_EMBD, OUTPUT].contains(role));
        roles.filter(|&role| self.matrix(role).at >= at).min_by_key(|&role| self.matrix(role).at)
    }

    /// A layer's weights.
    pub fn layer(&self, layer: usize) -> Layer {
        let norm =
            |i| Norm { weight: self.matrix(Role::of_layer(layer, i)), bias: self.matrix(Role::of_layer(layer, i + 1)) };
        let linear = |i| Linear {
            weight: self.matrix(Role::of_layer(layer, i)),
            bias: self.matrix(Role::of_layer(layer, i + 1)),
        };
        Layer {
            attn_norm: norm(0),
            attn_qkv: linear(ATTN_QKV),
            attn_output: linear(ATTN_OUTPUT),
            ffn_norm: norm(6),
            ffn_up: linear(FFN_UP),
            ffn_down: linear(FFN_DOWN),
        }
    }
}

impl From<TooSmall> for Error {
    fn from(error: TooSmall) -> Self {
        Error::Arena(error)
    }
}
