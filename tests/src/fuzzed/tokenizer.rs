//! The tokenizer, with a vocabulary of the input's own: any bytes go in, the same bytes come out.

use std::sync::LazyLock;

use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::gguf;
use gptrickle_core::source::Source;
use gptrickle_core::tokenizer::{Control, Error, Flow, TextStream, Token, Tokenizer, Vocabulary, VocabularyBuilder};

use super::{Target, assert_sayable};
use crate::buffered::Buffered;
use crate::gguf_writer::{Value, Writer};

pub(super) const TARGET: Target = Target {
    name: "tokenizer",
    about: "encode and decode, there and back, with merges that the input names",
    check,
    seeds,
    words: &["'s", "'ll", "<|endoftext|>", "\u{3000}", "\u{a0}", "é", "東京", "👍🏽"],
};

const END: &str = "<|endoftext|>";
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

fn check(input: &[u8]) {
    let Some((&[n_merges, n_special], rest)) = input.split_first_chunk() else { return };
    let (pairs, text) = rest.split_at(rest.len().min(2 * usize::from(n_merges)));
    let (special, text) = text.split_at(text.len().min(usize::from(n_special)));
    let merges = Merges::new(pairs);
    let in_order = merges.file(special, false);
    let there = both_ways(&mut &in_order[..], text);
    if text.len().is_multiple_of(8) {
        let small = both_ways(&mut Buffered::new(&in_order, 1024), text);
        assert_eq!(small, there, "from a small buffer");
    }
    let reversed = merges.file(special, true);
    let other = both_ways(&mut &reversed[..], text);
    match (there, other) {
        (Ok(there), Ok(other)) => assert_eq!(there, other, "the order of the tokens changes no piece"),
        (Err(error), Err(_)) => assert_sayable(&error),
        (there, other) => panic!("{there:?}, in another order {other:?}"),
    }
}

/// The pieces of a text, without and with control tokens; they are the text again.
fn both_ways<S: Source>(src: &mut S, text: &[u8]) -> Result<[Vec<Vec<u8>>; 2], Error> {
    let vocabulary = vocabulary(src)?;
    let mut memory = vec![0xa5; Tokenizer::bytes(&vocabulary) + ALIGN];
    let tokenizer = Tokenizer::load(&vocabulary, src, &mut Arena::new(&mut memory))?;
    Ok([pieces(&tokenizer, src, text, Control::Ignore)?, pieces(&tokenizer, src, text, Control::Recognise)?])
}

fn vocabulary<S: Source>(src: &mut S) -> Result<Vocabulary, Error> {
    let mut builder = VocabularyBuilder::new();
    gguf::open(src, |key, value| builder.note(key, value))?;
    builder.finish(src)
}

fn pieces<S: Source>(t: &Tokenizer, src: &mut S, text: &[u8], control: Control) -> Result<Vec<Vec<u8>>, Error> {
    let mut scratch = vec![0; Tokenizer::scratch_len(text.len())];
    let mut tokens = vec![Token(0); text.len()];
    let n = t.encode(src, text, control, &mut scratch, &mut tokens)?;
    let mut bytes = vec![0; t.vocabulary().max_token_bytes()];
    let mut stream = TextStream::new(&[])?;
    let (mut pieces, mut shown) = (Vec::new(), String::new());
    for &token in &tokens[..n] {
        let len = t.decode(src, token, control, &mut bytes)?;
        assert!(len > 0, "{token} decodes to nothing");
        pieces.push(bytes[..len].to_vec());
        let flow = stream.push(&bytes[..len], |part| show(&mut shown, part));
        assert_eq!(flow, Ok(Flow::Continue));
    }
    assert_eq!(stream.finish(|part| show(&mut shown, part)), Ok(Flow::Continue));
    assert_eq!(pieces.concat(), text, "there and back");
    assert_eq!(shown, String::from_utf8_lossy(text));
    let too_few = t.encode(src, text, control, &mut scratch, &mut tokens[..n.saturating_sub(1)]);
    assert!(n == 0 || too_few == Err(Error::TooManyTokens { needed: n, have: n - 1 }), "{too_few:?}");
    Ok(pieces)
}

fn show(shown: &mut String, part: &str) -> Result<(), Error> {
    shown.push_str(part);
    Ok(())
}

/// Texts that merges make, and the merges.
struct Merges {
    tokens: Vec<Vec<u8>>,
    pairs: Vec<[usize; 2]>,
}

impl Merges {
    /// Each pair of bytes names two tokens: those of a byte, or what an earlier merge made.
    fn new(pairs: &[u8]) -> Merges {
        let mut merges = Merges { tokens: (0..=u8::MAX).map(|byte| vec![byte]).collect(), pairs: Vec::new() };
        for pair in pairs.as_chunks::<2>().0 {
            // Bytes that are no ASCII count back from the newest token.
            let side = |byte: u8| match byte.checked_sub(128) {
                None => usize::from(byte),
                Some(back) => merges.tokens.len() - 1 - usize::from(back).min(merges.tokens.len() - 1),
            };
            let [left, right] = pair.map(side);
            let made = [&merges.tokens[left][..], &merges.tokens[right]].concat();
            if made.len() <= 64 && !merges.tokens.contains(&made) {
                merges.pairs.push([left, right]);
                merges.tokens.push(made);
            }
        }
        merges
    }

    /// A file with this vocabulary and a user-defined token, if it has a text, in the order of the merges or backwards.
    fn file(&self, special: &[u8], reversed: bool) -> Vec<u8> {
        let normal = self.tokens.iter().map(|text| (spell(text), NORMAL));
        let special = std::str::from_utf8(special).ok().filter(|text| !text.is_empty());
        let marks = special.map(|text| (text.to_owned(), USER_DEFINED)).into_iter().chain([(END.into(), CONTROL)]);
        let mut tokens: Vec<(String, i32)> = normal.chain(marks).collect();
        if reversed {
            tokens.reverse();
        }
        let (texts, kinds): (Vec<String>, Vec<i32>) = tokens.into_iter().unzip();
        let side = |token: usize| spell(&self.tokens[token]);
        let merges: Vec<String> = self.pairs.iter().map(|&[left, right]| side(left) + " " + &side(right)).collect();
        Writer::new()
            .entry("tokenizer.ggml.model", "gpt2")
            .entry("tokenizer.ggml.pre", "gpt-2")
            .entry("tokenizer.ggml.tokens", Value::strings(&texts))
            .entry("tokenizer.ggml.token_type", Value::i32s(&kinds))
            .entry("tokenizer.ggml.merges", Value::strings(&merges))
            .finish()
    }
}

/// GPT-2's alphabet, by the definition in OpenAI's `encoder.py`: the bytes that print stand for themselves, the others for
/// the characters from U+0100 on.
static ALPHABET: LazyLock<[char; 256]> = LazyLock::new(|| {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = (0x100..).filter_map(char::from_u32);
    std::array::from_fn(|i| match u8::try_from(i) {
        Ok(byte) if prints(byte) => char::from(byte),
        _ => others.next().unwrap_or_default(),
    })
});

fn spell(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| ALPHABET[usize::from(byte)]).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let seed = |pairs: &[[u8; 2]], special: &str, text: &str| {
        [&[pairs.len() as u8, special.len() as u8], pairs.as_flattened(), special.as_bytes(), text.as_bytes()].concat()
    };
    const LAST: u8 = 128;
    vec![
        seed(&[], "", "Hello  world's end\n\n"),
        seed(&[*b"th", [LAST, b'e'], [b' ', LAST], *b"ll", *b"he"], "", "then the others' hello, they'll then"),
        seed(&[*b"aa", [LAST; 2], [LAST; 2], [LAST; 2]], "aa", &"a".repeat(200)),
        seed(&[*b"<|"], "<|x", "<|x|> <|endoftext|> naïve 東京 👍🏽 \u{3000}\u{a0} 12½ …"),
    ]
}
