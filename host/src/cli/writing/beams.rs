//! The texts of a search, the best one first: shown when it has ended.

use std::convert::Infallible;
use std::time::Instant;

use anyhow::Context;
use gptrickle_core::generate::{Beams, Error, StopReason};
use gptrickle_core::source::Source;
use gptrickle_core::tokenizer::{Control, Flow, MAX_TOKEN, TextStream, Token, Tokenizer};

use super::{Output, Prefill, Run, certain, held_back, sequences};
use crate::cli::{advance, interrupt, progress};

/// Searches to the end, and shows the best texts, as many as are asked for.
pub(in crate::cli) fn write(
    run: &mut Run,
    mut beams: Beams,
    prefill: Prefill,
    texts: usize,
) -> anyhow::Result<super::Summary> {
    let stops: Vec<&str> = run.stops.iter().map(String::as_str).collect();
    let stream = TextStream::new(&stops)?;
    let (passes, begun, before) = (beams.passes(), Instant::now(), run.src.inner().bytes());
    let bar = progress(beams.most(), "searching");
    let mut failed = None;
    loop {
        if interrupt::pressed() {
            beams.stop(StopReason::Interrupted);
        } else if beams.made() > 0 && run.is_over(begun) {
            beams.stop(StopReason::MaxTime);
        }
        let ends = |tokenizer: &Tokenizer, src: &mut _, tokens: &[u32]| ends(tokenizer, src, tokens, &stops);
        match beams.step(run.src, ends) {
            Ok(true) => advance(&bar, beams.made()),
            Ok(false) => break,
            Err(error) => {
                failed = Some(error);
                beams.stop(StopReason::Interrupted);
            }
        }
    }
    bar.finish_and_clear();
    let (took, bytes_read) = (begun.elapsed(), run.src.inner().bytes() - before);

    let n = texts.min(beams.len());
    let mut summaries = Vec::new();
    for i in 0..n {
        let score = beams.score(i);
        let mut output = Output { sequence: (texts > 1).then_some(i), ..Output::new(run.json) };
        if texts > 1 && !run.json {
            super::print(&format!("--- {} of {n}, score {:.4} ---\n", i + 1, score.unwrap_or_default()))?;
        }
        output.prompt(run.full_text.as_deref())?;
        let mut stream = stream.clone();
        let tokens: Vec<Token> = beams.tokens(i).collect();
        for &token in &tokens {
            let (text, _) = certain(beams.tokenizer(), run.src, token, &mut stream)?;
            output.token(token, text, held_back(stream.clone()).is_empty())?;
        }
        output.finish(&held_back(stream))?;
        let stop = beams.stop_reason(i).map_or("", StopReason::name);
        summaries.push(sequences::Summary {
            sequence: i,
            seed: None,
            score,
            stop,
            new_tokens: tokens.len(),
            logits_hash: None,
        });
    }
    if let Some(error) = failed {
        return Err(error).with_context(|| run.name.to_owned());
    }
    Ok(super::Summary {
        interrupted: (0..n).any(|i| beams.stop_reason(i) == Some(StopReason::Interrupted)),
        new_tokens: summaries.iter().map(|text| text.new_tokens).sum(),
        sequences: summaries,
        ..run.summary(&prefill, beams.made().saturating_sub(1), bytes_read, took, beams.passes() - passes)
    })
}

/// Whether a stop string is in the text of these tokens.
fn ends(tokenizer: &Tokenizer, src: &mut impl Source, tokens: &[u32], stops: &[&str]) -> Result<bool, Error> {
    if stops.is_empty() {
        return Ok(false);
    }
    // The strings were tried before.
    let Ok(mut stream) = TextStream::new(stops) else { return Ok(false) };
    let mut bytes = [0; MAX_TOKEN];
    let mut stopped = false;
    for &token in tokens {
        let len = tokenizer.decode(src, Token(token), Control::Ignore, &mut bytes)?;
        let Ok(flow) = stream.push(&bytes[..len], |_| Ok::<(), Infallible>(()));
        stopped |= matches!(flow, Flow::Stopped { .. });
    }
    Ok(stopped)
}
