//! The page: `page.html`, with a text's tokens and weights put in.

use std::io::{self, Write};

use anyhow::ensure;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytesize::ByteSize;
use gptrickle_core::gpt2::Config;
use serde::Serialize;

use super::super::text::Word;
use super::Attention;

const PAGE: &str = include_str!("page.html");
/// Where the data goes in the page, in a script of type application/json.
const PLACE: &str = "@DATA@";
/// More than a browser opens with ease.
const MOST_BYTES: u64 = 128 << 20;

/// All but the weights, which follow as base64.
#[derive(Serialize)]
struct Data<'a> {
    model: &'a str,
    layers: usize,
    heads: usize,
    tokens: &'a [Word],
}

/// Bytes of the weights in the page: the rows of every head as u16, in base64.
fn bytes(config: &Config, tokens: usize) -> u64 {
    let [layers, heads, n] = [config.n_layer, config.n_head, tokens].map(|n| n as u64);
    layers * heads * (n * (n + 1) / 2 * 2).div_ceil(3) * 4
}

/// Checks that a page of so many tokens can be looked at.
pub(super) fn check_size(config: &Config, tokens: usize) -> anyhow::Result<()> {
    let most = (1..=tokens).take_while(|&n| bytes(config, n) <= MOST_BYTES).last().unwrap_or(0);
    ensure!(
        most == tokens,
        "a page of {tokens} tokens would have {}, too much for a browser: {most} tokens are the most for this model, and \
         a .npy file takes them all",
        ByteSize::b(bytes(config, tokens))
    );
    Ok(())
}

/// Writes the page.
pub(super) fn write(out: &mut dyn Write, model: &str, tokens: &[Word], attention: &Attention) -> io::Result<()> {
    let Attention { n_layer, n_head, .. } = *attention;
    let data = serde_json::to_string(&Data { model, layers: n_layer, heads: n_head, tokens })?;
    // Nothing in it can end the script, or begin a comment.
    let data = data.replace('<', "\\u003c");
    let (before, after) = PAGE.split_once(PLACE).unwrap_or((PAGE, ""));
    let data = data.strip_suffix('}').unwrap_or(&data);
    write!(out, "{before}{data},\"weights\":[")?;
    let mut rows = attention.rows();
    for head in 0..n_layer * n_head {
        // The weights of a head, in steps of 1/65535.
        let mut bytes = Vec::with_capacity(tokens.len() * (tokens.len() + 1));
        for row in rows.by_ref().take(tokens.len()) {
            bytes.extend(row.iter().flat_map(|&weight| ((weight * 65535.0).round() as u16).to_le_bytes()));
        }
        let comma = if head > 0 { "," } else { "" };
        write!(out, "{comma}\"{}\"", BASE64_STANDARD.encode(&bytes))?;
    }
    write!(out, "]}}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_place_and_needs_nothing_else() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }

    #[test]
    fn no_token_ends_the_script() {
        let word = |text: &str| Word { token: 1, text: text.to_owned(), bytes: false };
        let words = [word("</script>"), word("<!--"), word("\"\\\u{2028}")];
        let weights = vec![1.0, 0.0, 0.0, 0.25, 0.75, 0.0, 0.5, 0.5, 0.0];
        let attention = Attention { n_layer: 1, n_head: 1, tokens: 3, weights };
        let mut out = Vec::new();
        write(&mut out, "a <b> model", &words, &attention).unwrap();
        let page = String::from_utf8(out).unwrap();
        let (before, after) = PAGE.split_once(PLACE).unwrap();
        let data = page.strip_prefix(before).unwrap().strip_suffix(after).unwrap();
        assert!(!data.contains('<'), "{data}");
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["model"], &data["tokens"][0]["text"]), (&"a <b> model".into(), &"</script>".into()));
        let weights = BASE64_STANDARD.decode(data["weights"][0].as_str().unwrap()).unwrap();
        let weights: Vec<u16> = weights.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b)).collect();
        assert_eq!(weights, [65535, 16384, 49151, 32768, 32768, 0]);
    }
}
