//! `gptrickle inspect`: what is in a file, and what it takes to run it.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::Context;
use gptrickle_core::generate::{Model, Options, Plan};
use gptrickle_core::gguf::{self, Strings, Value};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::sampler::Params;
use gptrickle_core::source::Source;
use serde::Serialize;
use serde_json::{Map, json};

use super::model::ModelArgs;
use crate::source::ModelFile;

const EXAMPLES: &str = "Examples:
  gptrickle inspect -m model.gguf
  gptrickle inspect -m model.gguf --json | jq '.tensors[] | .name, .type'

Any GGUF file can be inspected; what it takes to run is shown for GPT-2 models.";

/// Show metadata, tensors, bytes read per token and memory plans of a file
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// All that is shown.
#[derive(Serialize)]
struct Report {
    version: u32,
    alignment: u64,
    file_bytes: u64,
    metadata: Map<String, serde_json::Value>,
    tensors: Vec<Tensor>,
    types: BTreeMap<&'static str, Total>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Run>,
    /// Why the model cannot be run.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    shape: Vec<u64>,
    offset: u64,
    bytes: u64,
}

#[derive(Serialize, Default)]
struct Total {
    tensors: usize,
    bytes: u64,
}

/// What it takes to run.
#[derive(Serialize)]
struct Run {
    tied: bool,
    bytes_per_token: u64,
    block_bytes: u64,
    head_bytes: u64,
    embedding_bytes: u64,
    longest_row_bytes: usize,
    plans: Vec<PlanRow>,
}

/// Arena bytes with the default sampling.
#[derive(Serialize)]
struct PlanRow {
    context: usize,
    batch: usize,
    kv: &'static str,
    arena_bytes: usize,
    kv_bytes: usize,
    tokenizer_bytes: usize,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut src = args.model.file()?;
    let report = report(&mut src).with_context(|| args.model.name())?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        report.print(&mut out)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn report(src: &mut ModelFile) -> Result<Report, gguf::Error> {
    let file = gguf::open(src, |_, _| Ok::<(), gguf::Error>(()))?;
    let mut metadata = Vec::new();
    let mut entries = file.entries(src);
    while let Some((key, value)) = entries.next()? {
        metadata.push((key.to_string(), value));
    }
    let metadata = metadata.into_iter().map(|(key, value)| Ok((key, readable(src, &value)?)));
    let metadata = metadata.collect::<Result<_, gguf::Error>>()?;

    let mut tensors = Vec::new();
    let mut types: BTreeMap<&str, Total> = BTreeMap::new();
    let mut infos = file.tensors(src);
    while let Some(info) = infos.next()? {
        let n_dims = info.dims.iter().rposition(|&dim| dim != 1).map_or(1, |last| last + 1);
        let total = types.entry(info.kind.name).or_default();
        total.tensors += 1;
        total.bytes += info.span.len;
        tensors.push(Tensor {
            name: info.name.to_string(),
            kind: info.kind.name,
            shape: info.dims[..n_dims].to_vec(),
            offset: info.span.at,
            bytes: info.span.len,
        });
    }
    let (run, error) = match Model::open(src) {
        Ok(model) => (Some(Run::new(&model)), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let (version, alignment, file_bytes) = (file.version, file.alignment, src.len());
    Ok(Report { version, alignment, file_bytes, metadata, tensors, types, run, error })
}

/// A metadata value as JSON: long arrays and strings are cut, and say how long they are.
fn readable(src: &mut ModelFile, value: &Value) -> Result<serde_json::Value, gguf::Error> {
    const SHOWN: u64 = 3;
    const LETTERS: u64 = 400;
    Ok(match *value {
        Value::U8(n) => json!(n),
        Value::I8(n) => json!(n),
        Value::U16(n) => json!(n),
        Value::I16(n) => json!(n),
        Value::U32(n) => json!(n),
        Value::I32(n) => json!(n),
        Value::U64(n) => json!(n),
        Value::I64(n) => json!(n),
        Value::F32(x) => serde_json::from_str(&x.to_string()).unwrap_or_else(|_| json!(x.to_string())),
        Value::F64(x) => json!(x),
        Value::Bool(b) => json!(b),
        Value::String(span) => {
            let len = span.len.min(LETTERS).min(src.max_chunk() as u64);
            let text = String::from_utf8_lossy(src.chunk(span.at, len as usize)?).into_owned();
            if len < span.len { json!(format!("{text}… ({} bytes)", span.len)) } else { json!(text) }
        }
        Value::Array(array) => {
            let mut first = Vec::new();
            let mut strings = Strings::new(src, &array);
            while (first.len() as u64) < SHOWN
                && let Some(text) = strings.next()?
            {
                first.push(String::from_utf8_lossy(text).into_owned());
            }
            json!({ "array_of": array.n, "first": first })
        }
    })
}

impl Run {
    fn new(model: &Model) -> Run {
        let header = &model.header;
        let n_ctx = header.config.n_ctx;
        let contexts = [128, 256, 512, 1024].into_iter().filter(|&context| context < n_ctx).chain([n_ctx]);
        let kinds =
            [("f32", KvFormat::F32), ("f16", KvFormat::F16), ("q8_0", KvFormat::Q8_0), ("q4_0", KvFormat::Q4_0)];
        let plans = contexts.flat_map(|context| kinds.map(|(name, kv)| (context, name, kv)));
        Run {
            tied: header.tied,
            bytes_per_token: header.bytes_per_token(),
            block_bytes: header.block_bytes,
            head_bytes: header.head_bytes,
            embedding_bytes: header.embedding_bytes,
            longest_row_bytes: header.longest_row,
            plans: plans.map(|(context, name, kv)| PlanRow::new(model, context, name, kv)).collect(),
        }
    }
}

impl PlanRow {
    fn new(model: &Model, context: usize, kv_name: &'static str, kv: KvFormat) -> PlanRow {
        let state = gpt2::Options { context, batch: 1, kv, ..Default::default() };
        let plan = Plan::new(model, &Options { state, sampling: Params::default(), seed: 0, ..Options::default() });
        PlanRow {
            context,
            batch: state.batch,
            kv: kv_name,
            arena_bytes: plan.total(),
            kv_bytes: plan.model.kv,
            tokenizer_bytes: plan.tokenizer,
        }
    }
}

impl Report {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "GGUF version {}, {} bytes, alignment {}\n", self.version, self.file_bytes, self.alignment)?;
        writeln!(out, "Metadata")?;
        for (key, value) in &self.metadata {
            let value = match (value.get("array_of"), value.get("first")) {
                (Some(n), Some(first)) if first == &json!([]) => format!("{n} numbers"),
                (Some(n), Some(first)) => format!("{n} strings: {first}…"),
                _ => value.to_string(),
            };
            writeln!(out, "  {key:<40} {value}")?;
        }
        writeln!(out, "\nTensors\n  {:>12} {:>12}  {:<7} {:<20} name", "offset", "bytes", "type", "shape")?;
        for Tensor { name, kind, shape, offset, bytes } in &self.tensors {
            let shape = shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ");
            writeln!(out, "  {offset:>12} {bytes:>12}  {kind:<7} {shape:<20} {name}")?;
        }
        writeln!(out, "\nTypes")?;
        for (kind, Total { tensors, bytes }) in &self.types {
            writeln!(out, "  {kind:<7} {tensors:>4} tensors {bytes:>12} bytes")?;
        }
        let Some(run) = &self.run else {
            let why = self.error.as_deref().unwrap_or_default();
            return writeln!(out, "\nCannot be run: {why}");
        };
        writeln!(out, "\nRead per token: {} bytes", run.bytes_per_token)?;
        writeln!(out, "  {:>12} blocks and last norm", run.block_bytes)?;
        writeln!(out, "  {:>12} head{}", run.head_bytes, if run.tied { ", the token embedding" } else { "" })?;
        writeln!(out, "  {:>12} rows of both embeddings", run.embedding_bytes)?;
        writeln!(out, "Longest row: {} bytes, the least that --buffer may be", run.longest_row_bytes)?;
        writeln!(
            out,
            "\nMemory in bytes, batch 1\n  {:>7}  {:<5} {:>12} {:>12} {:>12}",
            "context", "kv", "arena", "kv cache", "tokenizer"
        )?;
        for PlanRow { context, kv, arena_bytes, kv_bytes, tokenizer_bytes, .. } in &run.plans {
            writeln!(out, "  {context:>7}  {kv:<5} {arena_bytes:>12} {kv_bytes:>12} {tokenizer_bytes:>12}")?;
        }
        Ok(())
    }
}
