//! Causal attention: of each position to all up to itself.
//!
//! Head by head, `out = softmax(q · kᵀ / √head_dim) · v`. A score is a product of f32 rows, element `i` in lane
//! `i % FLOAT_LANES`, the lanes added pairwise; values are added position by position. So a position's result has the
//! same bits however many are computed together, and by whom.
//!
//! Together goes what shares its reads: [`TILE`] positions that follow each other take the same keys and values, a
//! single one takes as many keys at once.

use core::ops::Range;

use super::kv::{Kv, Layout, Rows, Stored};
use crate::ops::{Engine, softmax};
use crate::part::{item, part, part_mut, put, split_mut};
use crate::quant::{FLOAT_LANES, Lanes, LanesTask};

/// Positions, or keys, that are taken together.
const TILE: usize = 4;

/// Scores that one who computes attention of `n` positions has use for; those of one position will do.
pub(super) fn scores(n: usize, context: usize) -> usize {
    n.clamp(1, TILE) * context
}

/// The attention of some positions of a pass, in some heads.
pub(super) struct Attend<'a, P> {
    pub(super) kv: &'a Kv<'a>,
    pub(super) layout: Layout,
    pub(super) layer: usize,
    /// The sequence and the position of each of the pass.
    pub(super) place: &'a P,
    pub(super) positions: Range<usize>,
    pub(super) heads: Range<usize>,
    pub(super) qkv: &'a [f32],        // (B, 3 n_embd)
    pub(super) scores: &'a mut [f32], // as many for each part
    pub(super) out: &'a mut [f32],    // (positions, heads, head_dim)
}

impl<'a, P: Fn(usize) -> (usize, usize) + Sync> Attend<'a, P> {
    /// Computes it with the engine, shared out in at most so many `parts` as there is scores for.
    pub(super) fn share(self, engine: &Engine, parts: usize) {
        let parts = parts.min(engine.team.parts()).min(self.work() / engine.kernel.least_shared());
        self.split(engine, parts);
    }

    fn split(self, engine: &Engine, parts: usize) {
        let Range { start, end } = self.positions;
        let Range { start: head, end: heads_end } = self.heads;
        let (one, first) = (end - start == 1, parts / 2);
        if parts < 2 || one && heads_end - head == 1 {
            return engine.kernel.run_lanes(self);
        }
        let ([a, b], [a_heads, b_heads]) = if one {
            let middle = head + ((heads_end - head) * first / parts).max(1);
            ([start..end, start..end], [head..middle, middle..heads_end])
        } else {
            let middle = self.end_of(self.work() / parts * first);
            ([start..middle, middle..end], [head..heads_end, head..heads_end])
        };
        let Attend { kv, layout, layer, place, qkv, scores, out, .. } = self;
        let (out, b_out) = split_mut(out, a.len() * a_heads.len() * kv.head_dim);
        let middle = scores.len() / parts * first;
        let (scores, b_scores) = split_mut(scores, middle);
        let part = |positions, heads, scores, out| {
            let part = Attend { kv, layout, layer, place, positions, heads, qkv, scores, out };
            Some(part)
        };
        let (mut a, mut b) = (part(a, a_heads, scores, out), part(b, b_heads, b_scores, b_out));
        engine.team.join(&mut || a.take().into_iter().for_each(|a| a.split(engine, first)), &mut || {
            b.take().into_iter().for_each(|b| b.split(engine, parts - first))
        });
    }

    /// Multiplications of all positions.
    fn work(&self) -> usize {
        self.positions.clone().map(|i| self.work_of(i)).sum()
    }

    fn work_of(&self, i: usize) -> usize {
        2 * ((self.place)(i).1 + 1) * self.heads.len() * self.kv.head_dim
    }

    /// Where the positions end that make so much work: after the first, and before the last.
    fn end_of(&self, work: usize) -> usize {
        let mut left = work;
        let more = |i: &usize| {
            let before = left;
            left = left.saturating_sub(self.work_of(*i));
            before > 0
        };
        let n = (self.positions.start..self.positions.end - 1).take_while(more).count();
        self.positions.start + n.max(1)
    }
}

impl<P: Fn(usize) -> (usize, usize)> LanesTask for Attend<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.kv.rows() {
            // A loop of its own for f32: microcontrollers tell the format at each piece instead, in half the code.
            Rows::F32(values) if cfg!(target_pointer_width = "64") => self.heads(lanes, &**values),
            rows => self.heads(lanes, rows),
        }
    }
}

impl<P: Fn(usize) -> (usize, usize)> Attend<'_, P> {
    #[inline(always)]
    fn heads<L: Lanes, S: Stored>(self, lanes: L, stored: S) {
        let Attend { kv, layout, layer, place, positions, heads, qkv, scores, out } = self;
        let (dim, n, width) = (kv.head_dim, positions.len(), heads.len() * kv.head_dim);
        for (h, head) in heads.enumerate() {
            let mut i = 0;
            while i < n {
                let (sequence, position) = place(positions.start + i);
                let follows = |t: usize| place(positions.start + i + t) == (sequence, position + t);
                let room = scores.len() >= TILE * (position + TILE);
                let tile = if L::ROOMY && room && n - i >= TILE && (1..TILE).all(follows) { TILE } else { 1 };
                let q = part(qkv, (positions.start + i) * 3 * kv.n_embd + head * dim..);
                let scores = part_mut(scores, ..tile * (position + tile));
                let out = part_mut(out, i * width + h * dim..);
                let head = Head { lanes, kv, stored, layout, layer, sequence, position, head };
                if tile == TILE {
                    head.attend::<TILE, 1>(q, scores, out, width);
                } else if L::ROOMY {
                    head.attend::<1, TILE>(q, scores, out, width);
                } else {
                    head.attend::<1, 1>(q, scores, out, width);
                }
                i += tile;
            }
        }
    }
}

/// What the values count for one position, in one head: the weights that [`Attend`] mixes them with.
pub(super) struct Weigh<'a> {
    pub(super) kv: &'a Kv<'a>,
    pub(super) layout: Layout,
    pub(super) layer: usize,
    pub(super) sequence: usize,
    pub(super) position: usize,
    pub(super) head: usize,
    pub(super) q: &'a [f32],           // (n_embd), and what follows
    pub(super) weights: &'a mut [f32], // (position + 1)
}

impl LanesTask for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Weigh { kv, layout, layer, sequence, position, head, q, weights } = self;
        let q = part(q, head * kv.head_dim..);
        Head { lanes, kv, stored: kv.rows(), layout, layer, sequence, position, head }.weigh::<1, 1>(q, weights);
    }
}

/// One head, of a position and of those that follow it in its tile.
struct Head<'a, L, S> {
    lanes: L,
    kv: &'a Kv<'a>,
    stored: S,
    layout: Layout,
    layer: usize,
    sequence: usize,
    position: usize,
    head: usize,
}

impl<L: Lanes, S: Stored> Head<'_, L, S> {
    /// The attention of `Q` positions, queries a row of `qkv` apart, results `width` apart; of one position, `K` keys
    /// and `K` pieces of a value at once.
    #[inline(always)]
    fn attend<const Q: usize, const K: usize>(&self, q: &[f32], scores: &mut [f32], out: &mut [f32], width: usize) {
        self.weigh::<Q, K>(q, scores);
        let (mut c, dim) = (0, self.kv.head_dim);
        while K > 1 && c + K * FLOAT_LANES <= dim {
            self.mix::<Q, K>(c, scores, out, width);
            c += K * FLOAT_LANES;
        }
        while c < dim {
            self.mix::<Q, 1>(c, scores, out, width);
            c += FLOAT_LANES;
        }
    }

    /// What the values of keys count for each of `Q` queries.
    #[inline(always)]
    fn weigh<const Q: usize, const K: usize>(&self, q: &[f32], scores: &mut [f32]) {
        let n = self.position + Q;
        let mut j = 0;
        for rows in self.layout.rows(self.sequence, n) {
            let together = rows.start + if K > 1 { rows.len() / K * K } else { 0 };
            for row in (rows.start..together).step_by(K) {
                self.score::<Q, K>(q, row, part_mut(scores, j..));
                j += K;
            }
            for row in together..rows.end {
                self.score::<Q, 1>(q, row, part_mut(scores, j..));
                j += 1;
            }
        }
        let scale = 1.0 / libm::sqrtf(self.kv.head_dim as f32);
        for (t, scores) in scores.chunks_exact_mut(n.max(1)).enumerate() {
            let scores = part_mut(scores, ..=self.position + t);
            scores.iter_mut().for_each(|score| *score *= scale);
            softmax(scores);
        }
    }

    /// The products of `K` keys, from `row` on, with each of `Q` queries, whose scores are `position + Q` apart.
    #[inline(always)]
    fn score<const Q: usize, const K: usize>(&self, q: &[f32], row: usize, scores: &mut [f32]) {
        let (lanes, dim, n) = (self.lanes, self.kv.head_dim, self.position + Q);
        let mut sums = [[lanes.all(0.0); Q]; K];
        for c in (0..dim).step_by(FLOAT_LANES) {
            for (k, sums) in sums.iter_mut().enumerate() {
                let key = self.piece(self.kv.key(self.layer, row + k, self.head), c);
                for (t, sum) in sums.iter_mut().enumerate() {
                    // Behind a head's last element other numbers follow, which meet zeros.
                    let query = part(q, t * 3 * self.kv.n_embd + c..).first_chunk().unwrap_or(&[0.0; FLOAT_LANES]);
                    *sum = lanes.add(*sum, lanes.mul(lanes.load(query), key));
                }
            }
        }
        if Q == 1 {
            // While keys are multiplied, values come, and the other way round.
            (row..row + K).for_each(|row| self.prefetch(self.kv.value(self.layer, row, self.head)));
        }
        if let &[a, b, c, d] = sums.as_flattened() {
            let sums = lanes.sum_four([a, b, c, d]);
            (0..TILE).for_each(|i| put(scores, i % Q * n + i / Q, sums[i]));
        } else {
            put(scores, 0, lanes.sum(sums[0][0]));
        }
    }

    /// Elements `c` and following, `W` pieces, of all values, each value times its weight, added up.
    #[inline(always)]
    fn mix<const Q: usize, const W: usize>(&self, c: usize, weights: &[f32], out: &mut [f32], width: usize) {
        let (lanes, n) = (self.lanes, self.position + Q);
        let mut sums = [[lanes.all(0.0); Q]; W];
        let mut j = 0;
        for rows in self.layout.rows(self.sequence, self.position + 1) {
            for row in rows {
                let at = self.kv.value(self.layer, row, self.head);
                for (w, sums) in sums.iter_mut().enumerate() {
                    let piece = self.piece(at, c + w * FLOAT_LANES);
                    for (t, sum) in sums.iter_mut().enumerate() {
                        *sum = lanes.add(*sum, lanes.mul(lanes.all(item(weights, t * n + j)), piece));
                    }
                }
                if Q == 1 {
                    self.prefetch(self.kv.key(self.layer, row, self.head + 1));
                }
                j += 1;
            }
        }
        for (w, sums) in sums.into_iter().enumerate() {
            let c = c + w * FLOAT_LANES;
            for (t, mut sum) in sums.into_iter().enumerate() {
                // What a later position of the tile sees besides; no code for it where there is one.
                for position in (self.position + 1..=self.position + t).take(Q - 1) {
                    let row = self.layout.row(self.sequence, position);
                    let piece = self.piece(self.kv.value(self.layer, row, self.head), c);
                    sum = lanes.add(sum, lanes.mul(lanes.all(item(weights, t * n + position)), piece));
                }
                let out = part_mut(out, t * width + c..t * width + self.kv.head_dim);
                out.iter_mut().zip(lanes.values(sum)).for_each(|(out, sum)| *out = sum);
            }
        }
    }

    /// A piece, from element `c` on, of the head's part of a key or value, which begins `at`.
    #[inline(always)]
    fn piece(&self, at: usize, c: usize) -> L::Floats {
        self.stored.piece(self.lanes, at + c, FLOAT_LANES.min(self.kv.head_dim - c))
    }

    /// Asks for a head's part of a key or value.
    #[inline(always)]
    fn prefetch(&self, at: usize) {
        self.stored.prefetch(at..at + self.kv.head_dim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;
    use crate::gpt2::{Config, KvFormat};
    use crate::ops::Team;
    use crate::quant::{Kernel, dot_f32};
    use rand_pcg::Pcg32;
    use rand_pcg::rand_core::{Rng, SeedableRng};
    use std::vec;
    use std::vec::Vec;

    /// One after the other, in as many parts as it is asked for.
    #[derive(Debug)]
    struct Parts(usize);

    impl Team for Parts {
        fn parts(&self) -> usize {
            self.0
        }

        fn join(&self, a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
            b();
            a();
        }
    }

    /// The definition: one position, one head; keys and values as the cache gives them back.
    fn one(kv: &Kv, rows: &[usize], head: usize, q: &[f32]) -> Vec<f32> {
        let dim = kv.head_dim;
        let part = |at: usize| -> Vec<f32> {
            let lanes = Vec::from_iter((at..at + dim).step_by(FLOAT_LANES).map(|piece| {
                let len = FLOAT_LANES.min(at + dim - piece);
                Kernel::GENERIC.run_lanes(Read { kv, at: piece, len })[..len].to_vec()
            }));
            lanes.concat()
        };
        let scale = 1.0 / libm::sqrtf(dim as f32);
        let mut weights = Vec::from_iter(rows.iter().map(|&row| dot_f32(q, &part(kv.key(0, row, head))) * scale));
        softmax(&mut weights);
        let mut out = vec![0.0; dim];
        for (&row, weight) in rows.iter().zip(weights) {
            out.iter_mut().zip(part(kv.value(0, row, head))).for_each(|(out, v)| *out += weight * v);
        }
        out
    }

    struct Read<'a> {
        kv: &'a Kv<'a>,
        at: usize,
        len: usize,
    }

    impl LanesTask for Read<'_> {
        type Output = [f32; FLOAT_LANES];

        fn run<L: Lanes>(self, lanes: L) -> Self::Output {
            lanes.values(self.kv.rows().piece(lanes, self.at, self.len))
        }
    }

    #[test]
    fn every_kernel_tile_and_part_gives_the_bits_of_one_position_and_head() {
        let mut rng = Pcg32::seed_from_u64(7);
        let mut number = move || (rng.next_u32() >> 8) as f32 / 8_388_608.0 - 1.0;
        for (n_head, n_embd) in [(1, 32), (4, 32), (2, 96), (4, 160), (3, 192)] {
            let context = 24;
            let config = Config { n_layer: 1, n_ctx: 24, n_embd, n_head, n_ff: 32, n_vocab: 2, epsilon: 1e-5 };
            for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8_0, KvFormat::Q4_0] {
                // Rows behind the context are those that a second sequence has of its own.
                let layout = Layout { context, own: 8, shared: 9 };
                let mut memory = vec![0; Kv::bytes(format, &config, context + 8) + 64];
                let mut kv = Kv::take(format, &config, context + 8, &mut Arena::new(&mut memory)).unwrap();
                for row in 0..context + 8 {
                    let values = Vec::from_iter((0..2 * n_embd).map(|_| number()));
                    let saved = Kernel::available().map(|kernel| {
                        kv.store(kernel, 0, row, &values[..n_embd], &values[n_embd..]);
                        let mut bytes = Vec::new();
                        let mut keep = |piece: &[u8]| {
                            bytes.extend_from_slice(piece);
                            Ok::<(), ()>(())
                        };
                        kv.save(0, row, &mut keep).unwrap();
                        bytes
                    });
                    let saved = Vec::from_iter(saved);
                    assert!(saved.iter().all(|bytes| *bytes == saved[0]), "{format:?} {row}");
                }
                let places = [vec![(0, 0)], (5..12).map(|p| (0, p)).collect(), vec![(0, 14), (1, 14)], vec![(1, 9)]];
                for places in places {
                    let n = places.len();
                    let qkv = Vec::from_iter((0..n * 3 * n_embd).map(|_| number()));
                    let mut expected = Vec::new();
                    for (i, &(sequence, position)) in places.iter().enumerate() {
                        let rows = Vec::from_iter((0..=position).map(|position| layout.row(sequence, position)));
                        for (head, q) in qkv[i * 3 * n_embd..][..n_embd].chunks(kv.head_dim).enumerate() {
                            expected.extend(one(&kv, &rows, head, q).iter().map(|x| x.to_bits()));
                        }
                    }
                    for (kernel, parts) in
                        Kernel::available().flat_map(|kernel| [(kernel, 1), (kernel, 2), (kernel, 5)])
                    {
                        let mut scores = vec![0.0; parts * scores(n, context)];
                        let mut out = vec![f32::NAN; n * n_embd];
                        let place = |i: usize| places[i];
                        let attend = Attend {
                            kv: &kv,
                            layout,
                            layer: 0,
                            place: &place,
                            positions: 0..n,
                            heads: 0..n_head,
                            qkv: &qkv,
                            scores: &mut scores,
                            out: &mut out,
                        };
                        attend.split(&Engine { kernel, team: &Parts(parts) }, parts);
                        let bits = Vec::from_iter(out.iter().map(|x| x.to_bits()));
                        assert_eq!(bits, expected, "{kernel:?} {parts} {format:?} {n_head} {n_embd} {places:?}");
                    }
                }
            }
        }
    }
}
