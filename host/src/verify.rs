//! Is a file whole and sane: its structure, its model, its vocabulary, every weight, and its checksums if it has any.
//!
//! Opening a file checks its header alone, as a board reads nothing twice. Here everything is read once: a scale that
//! is no number, a hole that a copy has left, a token that stands there twice. What makes the file unusable, or its text
//! nonsense, is a problem; what is only strange is a remark.
//!
//! Checksums: a file may have a table of them, of all its bytes; see [`gptrickle_core::checked`].

use std::collections::HashSet;

use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::checked::{Checked, Table};
use gptrickle_core::generate::Model;
use gptrickle_core::gguf::{self, Array, File, Strings, Tensor, Value};
use gptrickle_core::quant::{Format, dequantize};
use gptrickle_core::source::{self, Cause, Source};
use gptrickle_core::tokenizer::{Control, Token, Tokenizer};
use serde::Serialize;

use crate::checksums::crc32;

/// Weights that are decoded at a time, whole super-blocks.
const PIECE: usize = 1 << 16;
/// Most problems that a check tells one by one.
const TOLD: usize = 20;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing is wrong.
    Ok,
    /// There is a problem.
    Failed,
    /// There was nothing to check, or what it builds on has failed.
    Skipped,
}

/// A check and what it found.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it ended.
    pub result: Outcome,
    /// What there is.
    pub found: String,
    /// What is wrong, and where.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// What is strange.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

impl Check {
    fn new(name: &'static str) -> Check {
        Check { name, result: Outcome::Ok, found: String::new(), problems: Vec::new(), remarks: Vec::new() }
    }

    fn skipped(name: &'static str, why: &str) -> Check {
        Check { result: Outcome::Skipped, found: why.to_owned(), ..Check::new(name) }
    }

    fn problem(&mut self, what: impl ToString) {
        self.result = Outcome::Failed;
        match self.problems.len() {
            0..TOLD => self.problems.push(what.to_string()),
            TOLD => self.problems.push("and more".to_owned()),
            _ => {}
        }
    }

    fn remark(&mut self, what: impl ToString) {
        self.remarks.push(what.to_string());
    }
}

/// What is known of a tensor's values.
#[derive(Debug, Clone, Serialize)]
pub struct Values {
    /// The tensor's name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The least value.
    pub min: f32,
    /// The largest value.
    pub max: f32,
    /// Root of the mean square.
    pub rms: f64,
}

/// All checks of a file.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether none has failed.
    pub ok: bool,
    /// Each check, in order.
    pub checks: Vec<Check>,
    /// Each tensor whose values are all numbers.
    pub tensors: Vec<Values>,
}

/// Reads a file once from its first byte to its last, and tells `advance` the bytes of each piece.
///
/// # Errors
/// The file cannot be read. Whatever is wrong with what is in it is in the report.
pub fn verify(src: &mut impl Source, mut advance: impl FnMut(u64)) -> Result<Report, source::Error> {
    let mut checks = Vec::new();
    let mut tensors = Vec::new();
    let file = gguf::open(src, |_, _| Ok::<(), gguf::Error>(()));
    match unless_unreadable(file)? {
        Err(error) => {
            let mut structure = Check::new("structure");
            structure.problem(error);
            checks.push(structure);
            checks.extend(
                ["model", "vocabulary", "weights", "checksums"].map(|name| Check::skipped(name, "not checked")),
            );
        }
        Ok(file) => {
            checks.push(structure(&file, src)?);
            let (model, vocabulary) = model(src)?;
            checks.extend([model, vocabulary]);
            checks.push(weights(&file, src, &mut tensors, &mut advance)?);
            checks.push(checksums(src)?);
        }
    }
    Ok(Report { ok: checks.iter().all(|check| check.result != Outcome::Failed), checks, tensors })
}

/// Sets a device that fails apart from a file that is wrong.
fn unless_unreadable<T>(result: Result<T, gguf::Error>) -> Result<Result<T, gguf::Error>, source::Error> {
    match result {
        Err(gguf::Error::Source(error)) => Err(error),
        result => Ok(result),
    }
}

/// Once the header was read, only the device can fail.
fn device(error: gguf::Error) -> source::Error {
    match error {
        gguf::Error::Source(error) => error,
        other => unreachable!("the header was checked: {other}"),
    }
}

/// Keys and names stand there once, nothing but zeros lies between tensors, and nothing behind them.
fn structure(file: &File, src: &mut impl Source) -> Result<Check, source::Error> {
    let mut check = Check::new("structure");
    let File { version, n_entries, n_tensors, alignment, .. } = *file;
    let len = src.len();
    check.found =
        format!("GGUF version {version}, {n_entries} entries, {n_tensors} tensors, alignment {alignment}, {len} bytes");
    let mut seen = HashSet::new();
    let mut entries = file.entries(src);
    while let Some((key, _)) = entries.next().map_err(device)? {
        if !seen.insert(key.to_string()) {
            check.problem(format_args!("metadata key {key} stands in the file twice"));
        }
    }
    seen.clear();
    let mut at = file.data_at;
    for tensor in all_tensors(file, src)? {
        if !seen.insert(tensor.name.to_string()) {
            check.problem(format_args!("tensor {} stands in the file twice", tensor.name));
        }
        let gap = (tensor.span.at - at) as usize;
        if src.chunk(at, gap)?.iter().any(|&byte| byte != 0) {
            check.remark(format_args!("there is something between {} and the tensor before it", tensor.name));
        }
        at = tensor.span.at + tensor.span.len;
    }
    let behind = len.saturating_sub(file.end.next_multiple_of(alignment));
    if n_tensors > 0 && behind > 0 {
        check.remark(format_args!("{behind} bytes follow the last tensor"));
    }
    Ok(check)
}

fn all_tensors(file: &File, src: &mut impl Source) -> Result<Vec<Tensor>, source::Error> {
    let mut all = Vec::new();
    let mut tensors = file.tensors(src);
    while let Some(tensor) = tensors.next().map_err(device)? {
        all.push(tensor);
    }
    Ok(all)
}

/// Shape, names and types are those of a GPT-2 model; every byte can be written with its tokens.
fn model(src: &mut impl Source) -> Result<(Check, Check), source::Error> {
    use gptrickle_core::{generate, gpt2, tokenizer};
    let (mut check, name) = (Check::new("model"), "vocabulary");
    let model = match Model::open(src) {
        Ok(model) => model,
        Err(generate::Error::Source(error)) => return Err(error),
        Err(error) => {
            check.problem(error);
            return Ok((check, Check::skipped(name, "not checked")));
        }
    };
    let gpt2::Config { n_layer, n_head, n_embd, n_ctx, .. } = model.header.config;
    let head = if model.header.tied { "tied" } else { "separate" };
    check.found = format!("GPT-2, {n_layer} layers, {n_head} heads, {n_embd} wide, context {n_ctx}, {head} head");

    let mut vocabulary = Check::new(name);
    vocabulary.found = format!("{} tokens, {} merges", model.vocabulary.len(), model.vocabulary.n_merges());
    let mut memory = vec![0; Tokenizer::bytes(&model.vocabulary) + ALIGN];
    match Tokenizer::load(&model.vocabulary, src, &mut Arena::new(&mut memory)) {
        Ok(tokenizer) => {
            let mut scratch = vec![0; Tokenizer::scratch_len(1)];
            let mut bytes = 0;
            for byte in 0..=u8::MAX {
                match tokenizer.encode(src, &[byte], Control::Ignore, &mut scratch, &mut [Token(0)]) {
                    Ok(_) => bytes += 1,
                    Err(tokenizer::Error::NoToken { byte }) => {
                        vocabulary
                            .problem(format_args!("no token stands for byte 0x{byte:02x}: texts with it are refused"));
                    }
                    Err(error) => vocabulary.problem(error),
                }
            }
            vocabulary.found += &format!(", {bytes} of 256 bytes");
        }
        Err(error) => vocabulary.problem(error),
    }
    if model.vocabulary.eos().is_none() {
        vocabulary.remark("no token ends a text: it goes on until the context is full");
    }
    for twice in repeated_tokens(&model.file, src)? {
        vocabulary.problem(format_args!("token {twice} stands in the vocabulary twice: llama.cpp refuses the file"));
    }
    Ok((check, vocabulary))
}

/// Texts that are two tokens.
fn repeated_tokens(file: &File, src: &mut impl Source) -> Result<Vec<String>, source::Error> {
    let Some(array) = array(file, src, "tokenizer.ggml.tokens")? else { return Ok(Vec::new()) };
    let (mut seen, mut twice) = (HashSet::new(), Vec::new());
    let mut tokens = Strings::new(src, &array);
    while let Some(text) = tokens.next().map_err(device)? {
        if !seen.insert(text.to_owned()) {
            twice.push(format!("\"{}\"", text.escape_ascii()));
        }
    }
    Ok(twice)
}

/// The value of a key.
fn value(file: &File, src: &mut impl Source, key: &str) -> Result<Option<Value>, source::Error> {
    let mut entries = file.entries(src);
    while let Some((name, value)) = entries.next().map_err(device)? {
        if name.as_str() == Some(key) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The array of a key.
fn array(file: &File, src: &mut impl Source, key: &str) -> Result<Option<Array>, source::Error> {
    Ok(value(file, src, key)?.and_then(|value| if let Value::Array(array) = value { Some(array) } else { None }))
}

/// Every scale and every weight of every block is a finite number.
fn weights(
    file: &File,
    src: &mut impl Source,
    known: &mut Vec<Values>,
    advance: &mut impl FnMut(u64),
) -> Result<Check, source::Error> {
    let mut check = Check::new("weights");
    let mut total = 0u64;
    let mut weights = Vec::new();
    let tensors = all_tensors(file, src)?;
    for Tensor { name, kind, dims, span } in &tensors {
        let Some(format) = Format::from_id(kind.id) else {
            check.remark(format_args!("{name} has type {}, whose values are not checked", kind.name));
            advance(span.len);
            continue;
        };
        let (block_len, block_bytes) = format.block();
        let blocks = (PIECE / block_len).min((src.max_chunk() / block_bytes).max(1));
        let (mut min, mut max, mut squares) = (f32::INFINITY, f32::NEG_INFINITY, 0f64);
        let mut wrong: Option<(u64, f32)> = None; // offset of the block, the first such weight
        let mut n_wrong = 0u64;
        let (mut at, end) = (span.at, span.at + span.len);
        while at < end {
            let bytes = ((end - at) as usize).min(blocks * block_bytes);
            weights.resize(bytes / block_bytes * block_len, 0.0);
            dequantize(format, src.chunk(at, bytes)?, &mut weights);
            for (i, block) in weights.chunks_exact(block_len).enumerate() {
                // The products of a scale that is no finite number are none either, whatever they are products with.
                if let Some(&weight) = block.iter().find(|weight| !weight.is_finite()) {
                    wrong.get_or_insert((at + (i * block_bytes) as u64, weight));
                    n_wrong += 1;
                }
                for &weight in block {
                    (min, max) = (min.min(weight), max.max(weight));
                    squares += f64::from(weight) * f64::from(weight);
                }
            }
            at += bytes as u64;
            advance(bytes as u64);
        }
        let n = dims.iter().product::<u64>();
        total += n;
        if let Some((offset, weight)) = wrong {
            let block = (offset - span.at) / block_bytes as u64;
            let row = block * block_len as u64 / dims[0].max(1);
            check.problem(format_args!(
                "{name}: {weight} in row {row}, block {block} at offset {offset}; {n_wrong} {} blocks are no finite numbers",
                kind.name
            ));
            continue;
        }
        if dims[1] > 1 && min == 0.0 && max == 0.0 {
            check.remark(format_args!("{name} is all zero: is there a hole in the file?"));
        }
        let rms = (squares / n.max(1) as f64).sqrt();
        known.push(Values { name: name.to_string(), kind: kind.name, min, max, rms });
    }
    check.found = format!("{total} values in {} tensors", tensors.len());
    if check.problems.is_empty() {
        check.found += ", all of them finite";
    }
    Ok(check)
}

/// Every chunk has the checksum that the file has for it.
fn checksums(src: &mut impl Source) -> Result<Check, source::Error> {
    const NAME: &str = "checksums";
    let table = match unless_unreadable(Table::find(src))? {
        Ok(Some(table)) => table,
        Ok(None) => return Ok(Check::skipped(NAME, "the file has none")),
        Err(error) => {
            let mut check = Check::new(NAME);
            check.problem(error);
            return Ok(check);
        }
    };
    let mut check = Check::new(NAME);
    check.found = format!("{} chunks of {} bytes", table.chunks(), table.chunk_bytes());
    let mut src = Checked::new(src, Some(table), vec![0; table.chunks()], crc32)?;
    for at in (0..src.len()).step_by(table.chunk_bytes() as usize) {
        match src.chunk(at, 1).map(|_| ()).and_then(|()| src.settle()) {
            Err(error) if error.cause == Cause::Checksum => {
                let end = error.offset + error.len as u64;
                check.problem(format_args!(
                    "bytes {} to {end} are not those that the file's checksum is of: copy it again",
                    error.offset
                ));
            }
            result => result?,
        }
    }
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksums::{CHUNK, TABLE};
    use crate::gguf_writer::Writer;
    use gptrickle_core::source::Cause;
    use std::fs;

    /// A small model of llama.cpp's making.
    fn micro() -> Vec<u8> {
        let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/micro/micro-Q8_0.gguf");
        fs::read(vectors).unwrap()
    }

    fn report(mut file: &[u8]) -> Report {
        verify(&mut file, |_| ()).unwrap()
    }

    fn check(report: &Report, name: &str) -> Check {
        report.checks.iter().find(|check| check.name == name).unwrap().clone()
    }

    /// The problems of a file, of which one check alone has some.
    fn problems(file: &[u8], name: &str) -> Vec<String> {
        let report = report(file);
        let failed: Vec<_> = report.checks.iter().filter(|check| check.result == Outcome::Failed).collect();
        assert_eq!((report.ok, failed.len(), failed[0].name), (false, 1, name), "{report:?}");
        failed[0].problems.clone()
    }

    #[test]
    fn a_sound_file_is_read_once_and_its_values_are_known() {
        let file = micro();
        let mut read = 0;
        let report = verify(&mut &file[..], |bytes| read += bytes).unwrap();
        assert!(report.ok && report.tensors.len() == 16, "{report:?}");
        let header = gguf::open(&mut &file[..], |_, _| Ok::<_, gguf::Error>(())).unwrap();
        let tensors = all_tensors(&header, &mut &file[..]).unwrap();
        assert_eq!(read, tensors.iter().map(|tensor| tensor.span.len).sum::<u64>());
        let results: Vec<_> = report.checks.iter().map(|check| (check.name, check.result)).collect();
        let [ok, none] = [Outcome::Ok, Outcome::Skipped];
        assert_eq!(
            results,
            [("structure", ok), ("model", ok), ("vocabulary", ok), ("weights", ok), ("checksums", none)]
        );
        for Values { min, max, rms, name, .. } in &report.tensors {
            assert!(min <= max && *rms > 0.0 && *rms <= f64::from(max.max(-min)), "{name}");
        }
    }

    #[test]
    fn a_scale_that_is_no_number_is_told_with_its_place() {
        let mut file = micro();
        let header = gguf::open(&mut &file[..], |_, _| Ok::<_, gguf::Error>(())).unwrap();
        let tensors = all_tensors(&header, &mut &file[..]).unwrap();
        let tensor = tensors.iter().find(|tensor| tensor.name.as_str() == Some("blk.0.ffn_up.weight")).unwrap();
        let at = tensor.span.at as usize + 5 * 34; // rows of 64 are 2 blocks
        file[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
        let found = problems(&file, "weights");
        let place = format!("blk.0.ffn_up.weight: NaN in row 2, block 5 at offset {at}; 1 Q8_0 blocks");
        assert!(found.len() == 1 && found[0].starts_with(&place), "{found:?}");
        file[at..at + 2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
        assert_eq!(problems(&file, "weights").len(), 1);
    }

    #[test]
    fn what_a_copy_has_lost_or_left_is_told() {
        let file = micro();
        let cut = report(&file[..file.len() - 4096]);
        assert_eq!((cut.ok, cut.checks.len(), cut.tensors.len()), (false, 5, 0));
        assert!(check(&cut, "structure").problems[0].contains("truncated"), "{cut:?}");
        assert_eq!(check(&cut, "weights").result, Outcome::Skipped);
        let longer = report(&[&file[..], &[0; 100]].concat());
        assert!(longer.ok, "{longer:?}");
        assert_eq!(check(&longer, "structure").remarks, ["100 bytes follow the last tensor"]);

        let mut hole = file.clone();
        let header = gguf::open(&mut &file[..], |_, _| Ok::<_, gguf::Error>(())).unwrap();
        let tensors = all_tensors(&header, &mut &file[..]).unwrap();
        let tensor = tensors.iter().find(|tensor| tensor.dims[1] > 1).unwrap();
        hole[tensor.span.at as usize..][..tensor.span.len as usize].fill(0);
        let hole = report(&hole);
        assert!(hole.ok && check(&hole, "weights").remarks[0].contains("is all zero"), "{hole:?}");
    }

    #[test]
    fn a_token_that_stands_there_twice_is_told() {
        let mut file = micro();
        let quote = [&1u64.to_le_bytes()[..], b"\""].concat();
        let at = file.windows(9).position(|bytes| bytes == quote).unwrap() + 8;
        file[at] = b'#';
        let found = problems(&file, "vocabulary");
        assert!(found[0].starts_with("no token stands for byte 0x22"), "{found:?}");
        assert!(found[1].starts_with("token \"#\" stands in the vocabulary twice"), "{found:?}");
    }

    /// A file of one tensor, with these checksums of 64 bytes each.
    fn with_checksums(chunk: impl Into<crate::gguf_writer::Value>, table: &[u32]) -> Vec<u8> {
        let table =
            crate::gguf_writer::Value::array(4, table.len() as u64, table.iter().flat_map(|crc| crc.to_le_bytes()));
        let header = Writer::new().entry(CHUNK, chunk).entry(TABLE, table).tensor("w", &[10], 0, 40);
        let mut data = header.start(Vec::new()).unwrap();
        (0..10u8).for_each(|i| data.write(&f32::from(i).to_le_bytes()).unwrap());
        data.finish().unwrap()
    }

    #[test]
    fn checksums_are_compared_chunk_by_chunk() {
        let blank = with_checksums(64u32, &[0; 4]);
        assert_eq!(blank.len(), 4 * 64);
        let mut table: Vec<u32> = blank.chunks(64).map(crc32fast::hash).collect();
        let found = |chunk: u32, table: &[u32]| check(&report(&with_checksums(chunk, table)), "checksums");
        let good = found(64, &table);
        assert_eq!((good.result, &*good.found), (Outcome::Ok, "4 chunks of 64 bytes"), "{good:?}");
        table[2] ^= 1;
        let bad = found(64, &table);
        assert!(bad.problems.len() == 1 && bad.problems[0].starts_with("bytes 128 to 192 are not"), "{bad:?}");
        for (chunk, table) in [(64, &table[..3]), (0, &table)] {
            assert!(found(chunk, table).problems[0].contains("do not fit the file"), "{chunk}");
        }
        let wrong = check(&report(&with_checksums(64u64, &table)), "checksums");
        assert!(wrong.problems[0].contains("do not fit the file"), "{wrong:?}");
    }

    #[test]
    fn a_device_that_fails_is_no_problem_of_the_file() {
        struct Failing<'f>(&'f [u8], u64);
        impl Source for Failing<'_> {
            fn len(&self) -> u64 {
                self.0.len() as u64
            }
            fn max_chunk(&self) -> usize {
                8192
            }
            fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], source::Error> {
                if offset + len as u64 > self.1 {
                    return Err(source::Error { offset, len, cause: Cause::Device(5) });
                }
                Ok(&self.0[offset as usize..][..len])
            }
        }
        let file = micro();
        for good in [10, 5000, 60_000] {
            assert!(verify(&mut Failing(&file, good), |_| ()).is_err(), "{good}");
        }
        assert!(verify(&mut Failing(&file, file.len() as u64), |_| ()).unwrap().ok);
    }
}
