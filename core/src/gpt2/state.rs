//! The memory of a sequence: planned before the first weight is read, then cut from the caller's arena.

use crate::arena::{Arena, bytes_of};
use crate::ops::{Engine, Scratch, products};
use crate::quant::{GROUP, HALF};

use super::config::Config;
use super::error::Error;
use super::kv::{Kv, KvFormat, Layout};
use super::weights::Weights;

/// What the caller chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Positions of a sequence: prompt and new tokens together.
    pub context: usize,
    /// Most positions of one pass (B); 0 means 1.
    pub batch: usize,
    /// How keys and values are stored.
    pub kv: KvFormat,
    /// Sequences that go on from the same positions, side by side; 0 means 1.
    pub sequences: usize,
    /// Most positions of its own that a sequence has beside another, up to the context; of no meaning to a single one.
    pub own: usize,
}

impl Options {
    /// Sequences beside the first one.
    fn others(&self) -> usize {
        self.sequences.saturating_sub(1)
    }

    /// Positions that all sequences beside the first one have of their own, together.
    pub fn own_rows(&self) -> usize {
        self.others().saturating_mul(self.own.min(self.context))
    }

    /// Positions in the KV cache: a whole context, and what further sequences have of their own.
    pub fn rows(&self) -> usize {
        self.context.saturating_add(self.own_rows())
    }
}

/// Arena bytes by region, plain arithmetic on the model's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Where each tensor lies.
    pub weights: usize,
    /// Keys and values of every position.
    pub kv: usize,
    /// Residual stream and what is computed from it, for B positions.
    pub activations: usize,
}

impl Plan {
    /// The bytes that [`Weights::load`] and [`State::new`] will cut from an arena.
    pub fn new(config: &Config, options: &Options) -> Plan {
        let Config { n_layer, n_embd, .. } = *config;
        let b = |cols: usize| options.batch.max(1).saturating_mul(cols);
        let max_cols = config.max_cols();
        Plan {
            weights: Weights::bytes(n_layer),
            kv: Kv::bytes(options.kv, config, options.rows()),
            activations: [
                bytes_of::<f32>(b(n_embd)),
                bytes_of::<f32>(b(n_embd)),
                bytes_of::<f32>(b(wide(config))),
                bytes_of::<f32>(options.context),
                bytes_of::<i8>(b(max_cols)),
                bytes_of::<f32>(b(max_cols / GROUP)),
                bytes_of::<i16>(b(max_cols / HALF)),
                bytes_of::<f32>(products(options.batch.max(1))),
            ]
            .into_iter()
            .fold(0, usize::saturating_add),
        }
    }

    /// All regions together; `usize::MAX` when that overflows.
    pub fn total(&self) -> usize {
        self.weights.saturating_add(self.kv).saturating_add(self.activations)
    }
}

/// Width of the buffer that holds query, key and value, and later the feed-forward layer.
fn wide(config: &Config) -> usize {
    config.n_ff.max(3 * config.n_embd)
}

/// A sequence, or several that share their first positions: how many positions they have, their KV cache, and the
/// buffers of a pass of up to B positions.
#[derive(Debug)]
pub struct State<'a> {
    pub(super) config: Config,
    pub(super) batch: usize,
    pub(super) context: usize,
    /// Sequences there is room for.
    pub(super) sequences: usize,
    pub(super) layout: Layout,
    /// Positions of a sequence; all that go on have as many.
    pub(super) len: usize,
    pub(super) kv: Kv<'a>,
    pub(super) x: &'a mut [f32], // residual stream (B, n_embd)
    pub(super) h: &'a mut [f32], // normalised x, then the heads' output (B, n_embd)
    /// Query, key and value (B, 3 n_embd), and behind them scores; then the feed-forward layer (B, n_ff).
    pub(super) wide: &'a mut [f32],
    pub(super) scores: &'a mut [f32], // attention to each position (context)
    pub(super) scratch: Scratch<'a>,
}

impl<'a> State<'a> {
    /// Cuts the buffers from `arena`: the bytes that [`Plan`] tells, less those of the weights.
    ///
    /// # Errors
    /// A context of 0 or over `n_ctx` → [`Error::Context`]; too little memory → [`Error::Arena`].
    pub fn new(config: &Config, options: &Options, arena: &mut Arena<'a>) -> Result<Self, Error> {
        let Options { context, batch, kv, sequences, own } = *options;
        let batch = batch.max(1);
        if context == 0 || context > config.n_ctx {
            return Err(Error::Context { asked: context, n_ctx: config.n_ctx });
        }
        let n_embd = config.n_embd;
        let b = |cols: usize| batch.saturating_mul(cols);
        let max_cols = config.max_cols();
        Ok(State {
            config: *config,
            batch,
            context,
            sequences: sequences.max(1),
            layout: Layout { context, own: own.min(context), shared: 0 },
            len: 0,
            kv: Kv::take(kv, config, options.rows(), arena)?,
            x: arena.take_as_is(b(n_embd))?,
            h: arena.take_as_is(b(n_embd))?,
            wide: arena.take_as_is(b(wide(config)))?,
            scores: arena.take_as_is(context)?,
            scratch: Scratch {
                engine: Engine::default(),
                q: arena.take_as_is(b(max_cols))?,
                d: arena.take_as_is(b(max_cols / GROUP))?,
                sums: arena.take_as_is(b(max_cols / HALF))?,
                products: arena.take_as_is(products(batch))?,
            },
        })
    }

    /// Says who multiplies from here on.
    pub fn set_engine(&mut self, engine: Engine<'a>) {
        self.scratch.engine = engine;
    }

    /// Who multiplies.
    pub fn engine(&self) -> Engine<'a> {
        self.scratch.engine
    }

    /// Positions of the sequence, or of each that goes on.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was given yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions a sequence can have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Most positions of one pass.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// How keys and values are stored.
    pub fn kv_format(&self) -> KvFormat {
        self.kv.format()
    }

    /// Bytes of one position's keys and values, as [`save`](State::save) hands them on.
    pub fn position_bytes(&self) -> usize {
        2 * self.config.n_layer * self.kv.row_bytes()
    }

    /// Hands on the keys and values of the first `n` positions as they are stored, little-endian.
    ///
    /// # Errors
    /// The sink's own.
    ///
    /// # Panics
    /// There are fewer positions.
    pub fn save<E>(&self, n: usize, sink: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        assert!(n <= self.len, "{n} positions of {}", self.len);
        for position in 0..n {
            for layer in 0..self.config.n_layer {
                self.kv.save(layer, position, sink)?;
            }
        }
        Ok(())
    }

    /// Takes the keys and values of the first `n` positions from `read`, which fills what it is given.
    ///
    /// # Errors
    /// The reader's own, and then there are no positions.
    ///
    /// # Panics
    /// The context is shorter.
    pub fn restore<E>(&mut self, n: usize, read: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        assert!(n <= self.context, "{n} positions of {}", self.context);
        self.len = 0;
        for position in 0..n {
            for layer in 0..self.config.n_layer {
                self.kv.restore(layer, position, read)?;
            }
        }
        self.len = n;
        Ok(())
    }

    /// A buffer that is free between passes: at least three times `n_embd` words.
    pub fn scratch(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(self.wide)
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Most positions of its own that a sequence beside the first one can have.
    pub fn own(&self) -> usize {
        self.layout.own
    }

    /// Makes the first `n` positions those of every sequence: from there on each has its own.
    pub fn share(&mut self, n: usize) {
        self.layout.shared = n.min(self.context);
    }

    /// Copies the positions that are a sequence's own, keys and values of every layer, to another sequence.
    pub fn copy_own(&mut self, from: usize, to: usize) {
        for position in self.layout.shared..self.len {
            let (from, to) = (self.layout.row(from, position), self.layout.row(to, position));
            (0..self.config.n_layer).for_each(|layer| self.kv.copy(layer, from, to));
        }
    }

    /// Which row of the KV cache holds which position.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}
