//! Several texts of one prompt: the first that has not ended is shown as it is made, those behind it wait for it.

use std::time::Instant;

use anyhow::Context;
use gptrickle_core::generate::{Sequences, Session, StopReason};
use gptrickle_core::tokenizer::{Flow, TextStream};
use serde::Serialize;

use super::{Output, Prefill, Run, certain, held_back};
use crate::cli::interrupt;

/// How a text ended, in the last line of `--json`.
#[derive(Serialize)]
pub(in crate::cli) struct Summary {
    pub(in crate::cli) sequence: usize,
    /// Alone it is made from this seed; none if one generator draws for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) seed: Option<u64>,
    /// Of a search: ln p of the whole, divided by its length to the power of the length penalty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) score: Option<f32>,
    pub(in crate::cli) stop: &'static str,
    pub(in crate::cli) new_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) logits_hash: Option<String>,
}

impl Summary {
    /// What tells the text from others, behind a comma: its seed or its score, if it has one.
    pub(in crate::cli) fn told_by(&self) -> String {
        self.score.map_or_else(|| behind_comma(self.seed), |score| format!(", score {score:.4}"))
    }
}

fn behind_comma(seed: Option<u64>) -> String {
    seed.map_or(String::new(), |seed| format!(", seed {seed}"))
}

/// A text in the making.
struct Text<'s> {
    stream: TextStream<'s>,
    output: Output,
    new_tokens: usize,
    finished: bool,
}

/// Shows the tokens of all sequences until they have ended.
pub(in crate::cli) fn write(run: &mut Run, session: &mut Session, prefill: Prefill) -> anyhow::Result<super::Summary> {
    let mut sequences = session.sequences().with_context(|| run.name.to_owned())?;
    let stops: Vec<&str> = run.stops.iter().map(String::as_str).collect();
    let stream = TextStream::new(&stops)?;
    let mut texts: Vec<Text> = (0..sequences.len())
        .map(|i| {
            let later = (!run.json).then(String::new);
            let output = Output { sequence: Some(i), later, ..Output::new(run.json) };
            Text { stream: stream.clone(), output, new_tokens: 0, finished: false }
        })
        .collect();
    texts.iter_mut().try_for_each(|text| text.output.prompt(run.full_text.as_deref()))?;
    let passes = sequences.passes();
    let (mut start, mut steps, mut bytes_read) = (Instant::now(), 0, 0);
    let begun = start;
    let mut front = 0;
    show_front(&mut texts, &sequences, &mut front)?;
    let result = loop {
        if interrupt::pressed() {
            (0..texts.len()).for_each(|i| sequences.stop(i, StopReason::Interrupted));
        }
        if texts.iter().all(|text| text.new_tokens > 0 || text.finished) && run.is_over(begun) {
            (0..texts.len()).for_each(|i| sequences.stop(i, StopReason::MaxTime));
        }
        let before = run.src.inner().bytes();
        let next = sequences.next(run.src);
        // The first token of each comes from the prompt's own pass: what a token costs is told by those after them.
        if sequences.passes() == passes {
            start = Instant::now();
        } else {
            bytes_read += run.src.inner().bytes() - before;
            steps += usize::from(matches!(next, Ok(Some(_))));
        }
        match next {
            Ok(Some((i, token))) => {
                let text = &mut texts[i];
                text.new_tokens += 1;
                let (part, flow) = certain(sequences.tokenizer(), run.src, token, &mut text.stream)?;
                text.output.token(token, part, held_back(text.stream.clone()).is_empty())?;
                if let Flow::Stopped { .. } = flow {
                    sequences.stop(i, StopReason::StopString);
                }
            }
            ended => break ended,
        }
        show_front(&mut texts, &sequences, &mut front)?;
    };
    let took = start.elapsed();
    if result.is_err() {
        // What was made is shown all the same.
        (0..texts.len()).for_each(|i| sequences.stop(i, StopReason::Interrupted));
    }
    show_front(&mut texts, &sequences, &mut front)?;
    result.with_context(|| run.name.to_owned())?;
    let summary = |(i, text): (usize, &Text)| Summary {
        sequence: i,
        seed: sequences.seed(i),
        score: None,
        stop: sequences.stop_reason(i).map_or("", StopReason::name),
        new_tokens: text.new_tokens,
        logits_hash: sequences.logits_hash(i).map(|hash| hash.to_string()),
    };
    Ok(super::Summary {
        sequences: texts.iter().enumerate().map(summary).collect(),
        interrupted: (0..texts.len()).any(|i| sequences.stop_reason(i) == Some(StopReason::Interrupted)),
        new_tokens: texts.iter().map(|text| text.new_tokens).sum(),
        ..run.summary(&prefill, steps, bytes_read, took, sequences.passes() - passes)
    })
}

/// Finishes texts that have ended, and shows the first one that goes on, with those before it.
fn show_front(texts: &mut [Text], sequences: &Sequences, front: &mut usize) -> anyhow::Result<()> {
    for (i, text) in texts.iter_mut().enumerate() {
        if !text.finished && sequences.stop_reason(i).is_some() {
            text.finished = true;
            text.output.finish(&held_back(text.stream.clone()))?;
        }
    }
    let n = texts.len();
    while let Some(text) = texts.get_mut(*front) {
        if let Some(later) = text.output.later.take() {
            let seed = behind_comma(sequences.seed(*front));
            super::print(&format!("--- {} of {n}{seed} ---\n{later}", *front + 1))?;
        }
        if !text.finished {
            break;
        }
        *front += 1;
    }
    Ok(())
}
