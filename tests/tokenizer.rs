//! The tokenizer against recorded ids, against an independent implementation with GPT-2's real vocabulary, and
//! against vocabularies that are damaged or made to hurt.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use gptrickle_core::arena::{Arena, TooSmall};
use gptrickle_core::gguf;
use gptrickle_core::source::{Cause, Counting, Source};
use gptrickle_core::tokenizer::{Control, Error, MAX_SPECIAL, MAX_TOKEN, TextCause, Token, Tokenizer};
use gptrickle_core::tokenizer::{Vocabulary, VocabularyBuilder};
use gptrickle_tests::gguf_writer::{Value, Writer};
use proptest::prelude::*;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

fn vocabulary(src: &mut impl Source) -> Result<Vocabulary, Error> {
    let mut builder = VocabularyBuilder::new();
    gguf::open(src, |key, value| builder.note(key, value))?;
    builder.finish(src)
}

/// Loads the tokenizer of `src` into as much memory as it says it takes, and hands both over.
fn with_tokenizer<S: Source, R>(mut src: S, run: impl FnOnce(&Tokenizer<'_>, &mut S) -> R) -> Result<R, Error> {
    let vocabulary = vocabulary(&mut src)?;
    let mut memory = vec![0; Tokenizer::bytes(&vocabulary) + 16];
    let mut arena = Arena::new(&mut memory);
    let tokenizer = Tokenizer::load(&vocabulary, &mut src, &mut arena)?;
    assert_eq!(arena.used(), Tokenizer::bytes(&vocabulary), "bytes planned and bytes used");
    Ok(run(&tokenizer, &mut src))
}

fn encode_as<S: Source>(t: &Tokenizer<'_>, src: &mut S, text: &[u8], control: Control) -> Result<Vec<u32>, Error> {
    let mut scratch = vec![0; Tokenizer::scratch_len(text.len())];
    let mut out = vec![Token(0); text.len()];
    let n = t.encode(src, text, control, &mut scratch, &mut out)?;
    Ok(out[..n].iter().map(|token| token.0).collect())
}

fn encode<S: Source>(t: &Tokenizer<'_>, src: &mut S, text: impl AsRef<[u8]>) -> Vec<u32> {
    encode_as(t, src, text.as_ref(), Control::Ignore).unwrap()
}

fn decode_as<S: Source>(t: &Tokenizer<'_>, src: &mut S, tokens: &[u32], control: Control) -> Vec<u8> {
    let mut out = vec![0; t.vocabulary().max_token_bytes()];
    let bytes = tokens.iter().flat_map(|&token| {
        let n = t.decode(src, Token(token), control, &mut out).unwrap();
        out[..n].to_vec()
    });
    bytes.collect()
}

fn decode<S: Source>(t: &Tokenizer<'_>, src: &mut S, tokens: &[u32]) -> Vec<u8> {
    decode_as(t, src, tokens, Control::Ignore)
}

/// 345 texts each, with the ids that transformers and llama.cpp agree on.
#[test]
fn recorded_texts_have_the_recorded_ids() {
    for (texts, model) in [
        (&include_bytes!("vectors/tokenizer/bpe264.json")[..], &include_bytes!("vectors/micro/micro-Q4_0.gguf")[..]),
        (include_bytes!("vectors/tokenizer/bpe512.json"), include_bytes!("vectors/tiny512/tiny512-Q4_0.gguf")),
    ] {
        let texts: serde_json::Value = serde_json::from_slice(texts).unwrap();
        let texts = texts.as_array().unwrap();
        assert_eq!(texts.len(), 345);
        with_tokenizer(model, |t, src| {
            for case in texts {
                let text = case["text"].as_str().unwrap();
                let ids: Vec<u32> =
                    case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
                assert_eq!(encode(t, src, text), ids, "{text:?}");
                assert_eq!(decode(t, src, &ids), text.as_bytes());
            }
            let end = t.vocabulary().len() - 1;
            assert_eq!((t.vocabulary().eos(), t.vocabulary().prefix()), (Some(Token(end)), None));
            assert!(
                t.vocabulary().ends().contains(&Some(Token(end))) && !t.vocabulary().ends().contains(&Some(Token(0)))
            );
            assert_eq!(encode_as(t, src, b"a<|endoftext|>", Control::Recognise).unwrap(), [64, end]);
            println!("{} tokens: {} bytes", t.vocabulary().len(), Tokenizer::bytes(t.vocabulary()));
        })
        .unwrap();
    }
}

/// The character that stands for a byte, by the definition in OpenAI's `encoder.py`: the printing bytes stand for
/// themselves, the others take the characters from U+0100 on.
fn alphabet() -> [char; 256] {
    let prints = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = (0x100..).filter_map(char::from_u32);
    std::array::from_fn(|b| if prints(b as u8) { b as u8 as char } else { others.next().unwrap() })
}

fn spell(bytes: &[u8]) -> String {
    let alphabet = alphabet();
    bytes.iter().map(|&b| alphabet[usize::from(b)]).collect()
}

/// The bytes in the order of GPT-2's first 256 tokens: those that print first.
fn bytes_in_order() -> Vec<u8> {
    let alphabet = alphabet();
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.sort_by_key(|&b| alphabet[usize::from(b)]);
    bytes
}

/// A vocabulary in plain sight: the bytes of each token, its type, and the merges in order.
#[derive(Debug, Clone)]
struct Plain {
    tokens: Vec<(Vec<u8>, i32)>,
    merges: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Plain {
    /// The bytes, the results of the merges in order, each once, and `<|endoftext|>`, as GPT-2 has them.
    fn of(merges: Vec<(Vec<u8>, Vec<u8>)>) -> Plain {
        let mut seen = HashSet::new();
        let bytes = bytes_in_order().into_iter().map(|b| vec![b]);
        let results = merges.iter().map(|(left, right)| [&left[..], right].concat());
        let texts = bytes.chain(results).filter(|text| seen.insert(text.clone()));
        let tokens = texts.map(|text| (text, NORMAL)).chain([(b"<|endoftext|>".to_vec(), CONTROL)]).collect();
        Plain { tokens, merges }
    }

    fn pairs(merges: &[(&str, &str)]) -> Plain {
        Plain::of(merges.iter().map(|(left, right)| (left.as_bytes().to_vec(), right.as_bytes().to_vec())).collect())
    }

    /// The token of a text, the first if there are two.
    fn id(&self, text: &[u8]) -> Option<u32> {
        self.tokens.iter().position(|(t, kind)| t == text && *kind == NORMAL).map(|i| i as u32)
    }

    fn writer(&self) -> Writer {
        let spelled = self.tokens.iter().map(|(t, kind)| if *kind == NORMAL { spell(t).into() } else { t.clone() });
        let merges: Vec<String> = self.merges.iter().map(|(l, r)| spell(l) + " " + &spell(r)).collect();
        let eos = self.tokens.iter().position(|t| t.1 == CONTROL).unwrap_or(0) as u32;
        Writer::new()
            .entry("general.architecture", "gpt2")
            .entry(MODEL, "gpt2")
            .entry(PRE, "gpt-2")
            .entry(TOKENS, Value::strings(&spelled.collect::<Vec<Vec<u8>>>()))
            .entry(TYPES, Value::i32s(&self.tokens.iter().map(|t| t.1).collect::<Vec<_>>()))
            .entry(MERGES, Value::strings(&merges))
            .entry(BOS, eos)
            .entry(EOS, eos)
    }

    /// The ids of a piece, by the definition: merge the pair of lowest rank, leftmost first, until there is none.
    fn encode_piece(&self, piece: &[u8]) -> Vec<u32> {
        let mut symbols: Vec<Vec<u8>> = piece.iter().map(|&b| vec![b]).collect();
        let rank = |p: &[Vec<u8>]| self.merges.iter().position(|(left, right)| p[0] == *left && p[1] == *right);
        while let Some((_, i)) = symbols.windows(2).enumerate().filter_map(|(i, p)| Some((rank(p)?, i))).min() {
            let right = symbols.remove(i + 1);
            symbols[i].extend(right);
        }
        symbols.iter().map(|s| self.id(s).unwrap()).collect()
    }
}

/// A small vocabulary with the merges of "the", " the" and runs of "a".
fn small() -> Plain {
    Plain::pairs(&[("h", "e"), (" ", "t"), (" t", "he"), ("t", "he"), ("a", "a"), ("aa", "aa"), ("aa", "a")])
}

/// GPT-2's vocabulary: the tokens from tiktoken, the merges recovered from their order.
///
/// Token `r` was made by the merge of rank `r - 256`, so merging its bytes with the earlier ranks alone leaves the
/// two sides of that merge.
fn gpt2() -> Plain {
    let bpe = tiktoken_rs::r50k_base_singleton();
    let tokens: Vec<Vec<u8>> = (0..50_256).map(|id| bpe.decode_bytes(&[id]).unwrap()).collect();
    let ranks: HashMap<&[u8], usize> = tokens.iter().enumerate().map(|(rank, t)| (&t[..], rank)).collect();
    let merges = tokens[256..].iter().zip(256..).map(|(token, rank)| {
        let mut ends: Vec<usize> = (0..=token.len()).collect();
        let lower = |w: &[usize]| ranks.get(&token[w[0]..w[2]]).copied().filter(|&r| r < rank);
        while let Some((_, i)) = ends.windows(3).enumerate().filter_map(|(i, w)| Some((lower(w)?, i))).min() {
            ends.remove(i + 1);
        }
        assert_eq!(ends.len(), 3, "token {rank} is not made of two");
        (token[..ends[1]].to_vec(), token[ends[1]..].to_vec())
    });
    let plain = Plain::of(merges.collect());
    assert!(plain.tokens.iter().zip(&tokens).all(|((a, _), b)| a == b));
    plain
}

/// Numbers that are the same everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Any character, those of no script included.
    fn character(&mut self) -> char {
        loop {
            if let Some(c) = char::from_u32(self.below(0x11_0000) as u32) {
                return c;
            }
        }
    }
}

/// Every character with the property White_Space.
const SPACES: [char; 25] = [
    '\t', '\n', '\u{b}', '\u{c}', '\r', ' ', '\u{85}', '\u{a0}', '\u{1680}', '\u{2000}', '\u{2001}', '\u{2002}',
    '\u{2003}', '\u{2004}', '\u{2005}', '\u{2006}', '\u{2007}', '\u{2008}', '\u{2009}', '\u{200a}', '\u{2028}',
    '\u{2029}', '\u{202f}', '\u{205f}', '\u{3000}',
];
const WORDS: &str = "the of and to in is was that for on with He his she they model language token memory Bank Night \
    unbelievable internationalization hello world naïve façade Zürich Ελλάδα Москва こんにちは 東京 한국어 مرحبا שלום \
    हिन्दी ไทย ქართული Ⅷ ½ ² ① ٣ ৪ 𝟘 𒐕 e\u{301} a\u{308}\u{304} ǅ ʰ ª º ⅷ Straße ﬁ İ ß 𐐀 𓀀 𝓐 SolidGoldMagikarp";
const CODE: &str = "fn main() {\n    let x = &mut vec![1, 2, 3];\r\n\tfor (i, v) in x.iter().enumerate() {\n        \
    println!(\"{i}: {v:>8.3}\");\n    }\n}\n#include <stdio.h>\nint main(void) { return 0x7fffffff; }\n\n\n\
    def f(x):\n    return x**2 if x != 'y' else None  # '''doc''' isn't\n";
const EMOJI: [&str; 8] = [
    "😀",
    "👨\u{200d}👩\u{200d}👧",
    "🏳\u{fe0f}\u{200d}🌈",
    "👍🏽",
    "🇩🇪",
    "1\u{fe0f}\u{20e3}",
    "☃",
    "🤦🏿\u{200d}♂\u{fe0f}",
];
const CONTRACTIONS: [&str; 18] = [
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'VE", "'M", "'LL", "'D", "'Re", "'lL", "''s", "'",
];

/// At least `len` bytes of everything that splits or merges in its own way.
fn mixed_text(len: usize) -> String {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let words: Vec<&str> = WORDS.split(' ').collect();
    let mut text = String::with_capacity(len + 5000);
    while text.len() < len {
        match random.below(16) {
            0..=4 => (0..1 + random.below(30)).for_each(|_| {
                text.push_str(random.pick(&words));
                text.push_str(random.pick(&[" ", " ", " ", " ", ", ", ". ", "  ", "\n", "-", ""]));
            }),
            5 => (0..1 + random.below(12)).for_each(|_| text.push(random.pick(&SPACES))),
            6 => (0..1 + random.below(12)).for_each(|_| text.push(random.pick(&[' ', ' ', '\n', '\t', '\r']))),
            7 => (0..1 + random.below(20)).for_each(|_| text.push(random.character())),
            // A few words of one block, so that its letters meet each other.
            8 | 9 => {
                let block = random.below(0x3_2000) as u32 & !0x7f;
                (0..1 + random.below(40)).for_each(|_| {
                    let c = char::from_u32(block + random.below(0x80) as u32);
                    text.push(c.unwrap_or(' '));
                    text.push_str(random.pick(&["", "", "", " "]));
                });
            }
            10 => {
                text.push_str(random.pick(&words));
                text.push_str(random.pick(&CONTRACTIONS));
                text.push_str(random.pick(&["", " ", "x", "1", "!"]));
            }
            11 => (0..1 + random.below(6)).for_each(|_| text.push_str(random.pick(&EMOJI))),
            12 => (0..1 + random.below(24))
                .for_each(|_| text.push(random.pick(&['0', '1', '9', '7', '²', 'Ⅳ', '½', '٣', '.', ',']))),
            13 => (0..1 + random.below(10)).for_each(|_| text.push(random.below(0x20) as u8 as char)),
            14 => (0..1 + random.below(20))
                .for_each(|_| text.push(random.pick(&['!', '?', '-', '=', '*', '_', '\'', '"', '/', '\\', '#']))),
            _ => match random.below(8) {
                0 => (0..1000 + random.below(1000)).for_each(|_| text.push((b'a' + random.below(26) as u8) as char)),
                1 => {
                    text.push_str(&random.pick(&["a", "ab", "é", "=", " ", "\n", "0"]).repeat(200 + random.below(1000)))
                }
                _ => text.push_str(CODE),
            },
        }
    }
    text
}

#[test]
fn gpt2s_vocabulary_as_tiktoken_has_it() {
    let file = gpt2().writer().finish();
    let theirs = tiktoken_rs::r50k_base_singleton();
    let text = mixed_text(2 << 20);
    let started = Instant::now();
    with_tokenizer(Counting::new(&file[..]), |t, src| {
        let loaded = started.elapsed();
        let (read, bytes) = (src.bytes(), Tokenizer::bytes(t.vocabulary()));
        println!("GPT-2's vocabulary: {bytes} bytes of memory, loaded in {loaded:.2?} from {read} bytes read");
        assert!(bytes <= 163_840, "{bytes} bytes for GPT-2's vocabulary");
        assert_eq!((t.vocabulary().len(), t.vocabulary().n_merges()), (50_257, 50_000));
        assert_eq!(t.vocabulary().max_token_bytes(), 128);

        let started = Instant::now();
        let ours = encode(t, src, &text);
        println!("{} bytes are {} tokens, encoded in {:.2?}", text.len(), ours.len(), started.elapsed());
        let expected = theirs.encode_ordinary(&text);
        let differ = ours.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(
            differ.map(|i| (i, decode(t, src, &ours[i..i + 8]))),
            None,
            "token and text of the first difference"
        );
        assert_eq!(ours.len(), expected.len());
        println!("{} bytes compared with tiktoken, 0 differences", text.len());
        let started = Instant::now();
        assert!(decode(t, src, &ours) == text.as_bytes(), "decoding gives the text back");
        println!("decoded in {:.2?}", started.elapsed());

        // Each token alone, and the mark, which is text unless it is asked for.
        for id in 0..50_257 {
            assert_eq!(decode_as(t, src, &[id], Control::Recognise), theirs.decode_bytes(&[id]).unwrap(), "{id}");
        }
        let marked = "<|endoftext|>Once<|endoftext|> upon <|endoftext|><|endoftext";
        let specials = encode_as(t, src, marked.as_bytes(), Control::Recognise).unwrap();
        assert_eq!(specials, theirs.encode_with_special_tokens(marked));
        assert_eq!(encode(t, src, marked), theirs.encode_ordinary(marked));
        assert_eq!(decode(t, src, &specials), b"Once upon <|endoftext");
        assert_eq!(decode_as(t, src, &specials, Control::Recognise), marked.as_bytes());
    })
    .unwrap();
}

/// One piece of a mebibyte, or very many; "ÃÂ" is what GPT-2's longest token of letters repeats, by the longest chain of
/// merges. Half as much text is half the look-ups, as what is read of the file for them tells.
#[test]
fn a_mebibyte_of_one_letter_is_no_trouble() {
    let file = gpt2().writer().finish();
    with_tokenizer(Counting::new(&file[..]), |t, src| {
        for letter in ["a", "=", " ", "0", "é", "日", "\n", "ab", "ÃÂ", " a", "'s", "a "] {
            let mut read = |bytes: usize| {
                let text = letter.repeat(bytes / letter.len());
                let (started, before) = (Instant::now(), src.bytes());
                let tokens = encode(t, src, &text);
                let (took, read) = (started.elapsed(), src.bytes() - before);
                println!("{bytes:7} bytes of {letter:?}: {:7} tokens in {took:8.2?}, {read} bytes read", tokens.len());
                assert!(decode(t, src, &tokens) == text.as_bytes());
                read
            };
            let (half, whole) = (read(1 << 19), read(1 << 20));
            assert!(whole <= half * 21 / 10, "{letter:?}: {half} bytes read, then {whole}");
        }
    })
    .unwrap();
}

/// As many special tokens as there may be, of all lengths, in a text that nearly spells each of them everywhere.
#[test]
fn special_tokens_made_to_slow_a_text_down_are_no_trouble() {
    let mut plain = small();
    plain.tokens.extend((1..MAX_SPECIAL).map(|n| ([&vec![b'a'; n - 1][..], b"b"].concat(), USER_DEFINED)));
    let file = plain.writer().finish();
    with_tokenizer(&file[..], |t, src| {
        for bytes in [1 << 16, 1 << 17] {
            let (text, started) = ("a".repeat(bytes), Instant::now());
            let tokens = encode(t, src, &text);
            println!("{bytes} bytes between special tokens: {} tokens in {:.2?}", tokens.len(), started.elapsed());
            assert!(decode(t, src, &tokens) == text.as_bytes());
        }
        // The longest one that fits, at the first place where any does.
        let text = "a".repeat(1500) + "b" + &"a".repeat(40) + "bb";
        let tokens = encode(t, src, &text);
        assert_eq!(decode(t, src, &tokens), text.as_bytes());
        let last = plain.tokens.len() as u32 - 1;
        assert_eq!(tokens[tokens.len() - 3..], [last, last - 1022 + 40, last - 1022]);
    })
    .unwrap();
}

/// A source with a buffer as a board has one: what is longer is refused.
struct Buffered<'f>(&'f [u8], usize);

impl Source for Buffered<'_> {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn max_chunk(&self) -> usize {
        self.1
    }

    fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], gptrickle_core::source::Error> {
        if len > self.1 {
            return Err(gptrickle_core::source::Error { offset, len, cause: Cause::ChunkTooLong(self.1) });
        }
        self.0.chunk(offset, len)
    }
}

#[test]
fn a_buffer_of_a_sector_is_enough() {
    let file = gpt2().writer().finish();
    let text = mixed_text(1 << 14);
    let whole = with_tokenizer(&file[..], |t, src| encode(t, src, &text)).unwrap();
    let short = with_tokenizer(Buffered(&file, 512), |t, src| encode(t, src, &text)).unwrap();
    assert_eq!(whole, short);
}

/// What a board reads before the first token, with the source's chunks as they are asked for.
#[test]
fn loading_reads_the_vocabulary_a_few_times() {
    let file = gpt2().writer().finish();
    let mut src = Counting::new(&file[..]);
    let mut builder = VocabularyBuilder::new();
    gguf::open::<_, Error>(&mut src, |key, value| builder.note(key, value)).unwrap();
    let opened = src.bytes();
    let vocabulary = builder.finish(&mut src).unwrap();
    let finished = src.bytes();
    let mut memory = vec![0; Tokenizer::bytes(&vocabulary) + 16];
    let tokenizer = Tokenizer::load(&vocabulary, &mut src, &mut Arena::new(&mut memory)).unwrap();
    let loaded = src.bytes();
    println!("opening reads {opened} bytes, the survey {}, the index {}", finished - opened, loaded - finished);
    assert!(loaded < 4 * file.len() as u64);

    let text = "Once upon a time there was a little girl who lived in a village near the forest.";
    let tokens = encode(&tokenizer, &mut src, text);
    let encoded = src.bytes();
    decode(&tokenizer, &mut src, &tokens);
    println!(
        "{} bytes of text: {} tokens, {} bytes read to encode, {} to decode",
        text.len(),
        tokens.len(),
        encoded - loaded,
        src.bytes() - encoded
    );
}

/// Merges whose sides are bytes or results of other merges; ranks in any order.
fn merges() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let index = any::<prop::sample::Index>;
    prop::collection::vec((index(), index()), 0..60).prop_flat_map(|picks| {
        let mut texts: Vec<Vec<u8>> = [&b"a"[..], b"b", b"c", b" ", b"\xc3", b"\xa9"].map(Vec::from).to_vec();
        let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (left, right) in picks {
            let pair = (left.get(&texts).clone(), right.get(&texts).clone());
            if pair.0.len() + pair.1.len() <= 6 && !pairs.contains(&pair) {
                texts.push([&pair.0[..], &pair.1].concat());
                pairs.push(pair);
            }
        }
        Just(pairs).prop_shuffle()
    })
}

fn letters() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(b"aabbc \xc3\xa9".to_vec()), 0..60)
}

/// Encodes as one piece where there is no white space in it, or else piece by piece.
fn by_definition(plain: &Plain, text: &[u8]) -> Vec<u32> {
    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    let text = std::str::from_utf8(text).unwrap();
    let pieces = fancy_regex::Regex::new(GPT2).unwrap();
    pieces.find_iter(text).flat_map(|piece| plain.encode_piece(piece.unwrap().as_str().as_bytes())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tokens_in_the_order_of_the_merges(merges in merges(), text in letters()) {
        // Two merges may make one text: then the order is broken and a list is kept.
        let plain = Plain::of(merges);
        let file = plain.writer().finish();
        let text = String::from_utf8_lossy(&text).replace('\u{fffd}', "é");
        let (ours, back) = with_tokenizer(&file[..], |t, src| {
            let ours = encode(t, src, &text);
            (ours.clone(), decode(t, src, &ours))
        }).unwrap();
        prop_assert_eq!(ours, by_definition(&plain, text.as_bytes()));
        prop_assert_eq!(back, text.as_bytes());
    }

    #[test]
    fn tokens_in_any_order(merges in merges(), text in letters(), seed in any::<u64>()) {
        let mut plain = Plain::of(merges);
        plain.tokens.extend([(b"<pad>".to_vec(), UNUSED), (b"never".to_vec(), NORMAL)]);
        let mut random = Random(seed | 1);
        for i in (1..plain.tokens.len()).rev() {
            plain.tokens.swap(i, random.below(i + 1));
        }
        let file = plain.writer().finish();
        let text = String::from_utf8_lossy(&text).replace('\u{fffd}', "é");
        let (ours, back) = with_tokenizer(&file[..], |t, src| {
            let ours = encode(t, src, &text);
            (ours.clone(), decode(t, src, &ours))
        }).unwrap();
        prop_assert_eq!(ours, by_definition(&plain, text.as_bytes()));
        prop_assert_eq!(back, text.as_bytes());
    }

    #[test]
    fn any_bytes_come_back(text in prop::collection::vec(any::<u8>(), 0..300)) {
        let file = small().writer().finish();
        for control in [Control::Ignore, Control::Recognise] {
            let back = with_tokenizer(&file[..], |t, src| {
                let tokens = encode_as(t, src, &text, control).unwrap();
                decode_as(t, src, &tokens, control)
            }).unwrap();
            prop_assert_eq!(&back, &text);
        }
    }
}

/// Every bit of a file flipped, and every length it may be cut to: an error or a tokenizer that works.
#[test]
fn damage_is_an_error_or_harmless() {
    let whole = small().writer().finish();
    let flipped = (0..whole.len() * 8).map(|bit| {
        let mut file = whole.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        file
    });
    let cut = (0..whole.len()).map(|len| whole[..len].to_vec());
    let (mut damaged, mut refused) = (0, 0);
    for file in flipped.chain(cut) {
        let loaded = with_tokenizer(&file[..], |t, src| {
            let text = b"the <|endoftext|> aaaa \xff";
            let mut scratch = [0; 4 * 32];
            let mut out = [Token(0); 32];
            let n = t.encode(src, text, Control::Recognise, &mut scratch, &mut out).unwrap_or(0);
            let mut bytes = [0; MAX_TOKEN];
            for token in &out[..n] {
                t.decode(src, *token, Control::Recognise, &mut bytes).unwrap();
            }
        });
        damaged += 1;
        refused += usize::from(loaded.is_err());
    }
    println!("{damaged} damaged files, {refused} refused");
}

/// Every byte of a whole read arrives, but not the same as before: entries may be lost, nothing panics.
#[test]
fn a_source_that_changes_its_mind_is_no_panic() {
    struct Fickle<'f>(&'f [u8], Vec<u8>, usize, Random);
    impl Source for Fickle<'_> {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn max_chunk(&self) -> usize {
            usize::MAX
        }
        fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], gptrickle_core::source::Error> {
            self.1 = self.0.chunk(offset, len)?.to_vec();
            self.2 = self.2.saturating_sub(1);
            if self.2 == 0 && len > 0 {
                let at = self.3.below(len);
                self.1[at] ^= 1 << self.3.below(8);
            }
            Ok(&self.1)
        }
    }
    let mut plain = small();
    let shuffled = plain.tokens.len() - 1;
    for seed in 1..2000 {
        plain.tokens.swap(300 % shuffled, seed % shuffled);
        let file = plain.writer().finish();
        let fickle = Fickle(&file, Vec::new(), seed % 700, Random(seed as u64));
        let _ = with_tokenizer(fickle, |t, src| {
            let _ = encode_as(t, src, b"the <|endoftext|> aaaa", Control::Recognise);
            let _ = t.decode(src, Token(258), Control::Ignore, &mut [0; 16]);
        });
    }
}

/// A read that fails surfaces with its offset, whichever it is.
#[test]
fn a_failing_read_is_an_error() {
    struct Failing<'f>(&'f [u8], usize);
    impl Source for Failing<'_> {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn max_chunk(&self) -> usize {
            512
        }
        fn chunk(&mut self, offset: u64, len: usize) -> Result<&[u8], gptrickle_core::source::Error> {
            self.1 = self.1.wrapping_sub(1);
            if self.1 == 0 {
                return Err(gptrickle_core::source::Error { offset, len, cause: Cause::Device(-5) });
            }
            self.0.chunk(offset, len)
        }
    }
    let file = small().writer().finish();
    let run = |fail_at| -> Result<(), Error> {
        with_tokenizer(Failing(&file, fail_at), |t, src| {
            let tokens = encode_as(t, src, b"the <|endoftext|> aaaa", Control::Recognise)?;
            for token in tokens {
                t.decode(src, Token(token), Control::Recognise, &mut [0; 32])?;
            }
            Ok(())
        })?
    };
    let mut reads = 0;
    while let Err(error) = run(reads + 1) {
        let Error::Gguf(gguf::Error::Source(error)) = error else { panic!("{error}") };
        assert_eq!(error.cause, Cause::Device(-5));
        reads += 1;
    }
    assert!(reads > 1000, "{reads} reads");
}

#[test]
fn user_defined_tokens_are_always_tokens_control_tokens_when_asked() {
    let mut plain = small();
    let first = plain.tokens.len() as u32;
    let more = [
        ("<|sep|>", CONTROL),
        ("   ", USER_DEFINED),
        ("été the", USER_DEFINED),
        ("<|", USER_DEFINED),
        ("[pad]", UNUSED),
    ];
    plain.tokens.extend(more.map(|(text, kind)| (text.as_bytes().to_vec(), kind)));
    let [sep, spaces, summer, open, pad] = std::array::from_fn(|i| first + i as u32);
    let end = first - 1;
    let [lt, bar, a, space] = [b"<", b"|", b"a", b" "].map(|byte| plain.id(byte).unwrap());
    let file = plain.writer().finish();
    with_tokenizer(&file[..], |t, src| {
        let mut both =
            |text: &str| [Control::Ignore, Control::Recognise].map(|c| encode_as(t, src, text.as_bytes(), c).unwrap());
        assert_eq!(both("a    a"), [[a, spaces, space, a], [a, spaces, space, a]].map(Vec::from));
        assert_eq!(both("aété thea"), [[a, summer, a], [a, summer, a]].map(Vec::from));
        // The longest at each place, from the left.
        assert_eq!(both("<<|sep|>")[1], [lt, sep]);
        assert_eq!(both("<|endoftext|>")[1], [end]);
        assert_eq!(both("<|sep|>")[0][0], open);
        assert_eq!(both("<||"), [[open, bar], [open, bar]].map(Vec::from));

        assert_eq!(decode(t, src, &[summer, sep, end, pad, open]), "été the<|".as_bytes());
        let shown = decode_as(t, src, &[summer, sep, end, pad, open], Control::Recognise);
        assert_eq!(shown, "été the<|sep|><|endoftext|><|".as_bytes());
    })
    .unwrap();
}

#[test]
fn without_types_the_named_tokens_are_control_tokens() {
    let plain = small();
    let end = plain.tokens.len() as u32 - 1;
    let file = plain.writer().remove(TYPES).finish();
    with_tokenizer(&file[..], |t, src| {
        assert_eq!(encode_as(t, src, b"<|endoftext|>", Control::Recognise).unwrap(), [end]);
        assert!(encode(t, src, "<|endoftext|>").len() > 1);
        assert_eq!(decode(t, src, &[end]), b"");
    })
    .unwrap();
}

#[test]
fn a_file_may_ask_for_a_token_in_front() {
    let plain = small();
    let end = Token(plain.tokens.len() as u32 - 1);
    let prefix = |writer: Writer| vocabulary(&mut &writer.finish()[..]).map(|v| v.prefix());
    assert_eq!(prefix(plain.writer()), Ok(None));
    assert_eq!(prefix(plain.writer().entry(ADD_BOS, true)), Ok(Some(end)));
    assert_eq!(prefix(plain.writer().entry(ADD_BOS, false)), Ok(None));
    assert_eq!(prefix(plain.writer().entry(ADD_BOS, true).remove(BOS)), Err(Error::Missing { key: BOS }));
}

fn load(writer: Writer) -> Result<(), Error> {
    let file = writer.finish();
    with_tokenizer(&file[..], |_, _| ())
}

#[test]
fn entries_that_are_missing_or_of_another_type() {
    for key in [MODEL, TOKENS, MERGES] {
        assert_eq!(load(small().writer().remove(key)), Err(Error::Missing { key }));
    }
    for key in [PRE, BOS, EOS] {
        assert_eq!(load(small().writer().remove(key)), Ok(()), "{key}");
    }
    for (key, value) in [
        (MODEL, Value::from(1u32)),
        (PRE, Value::from(true)),
        (TOKENS, Value::from("the")),
        (TOKENS, Value::i32s(&[1, 2])),
        (MERGES, Value::i32s(&[1, 2])),
        (TYPES, Value::strings(&["1"; 264])),
        (TYPES, Value::array(0, 264, [1; 264])),
        (BOS, Value::from("1")),
        (EOS, Value::from(-1i32)),
        (EOS, Value::from(1f32)),
        (ADD_BOS, Value::from(1u32)),
    ] {
        let found = load(small().writer().replace(key, value));
        assert!(matches!(found, Err(Error::WrongType { key: k, .. }) if k == key), "{key}: {found:?}");
    }
    for key in [MODEL, PRE, TOKENS, TYPES, MERGES, BOS, EOS] {
        let found = load(small().writer().entry(key, 1u32));
        assert!(matches!(found, Err(Error::Gguf(gguf::Error::DuplicateKey { .. }))), "{key}: {found:?}");
    }
}

#[test]
fn other_kinds_of_vocabulary() {
    let Err(Error::Model { found }) = load(small().writer().replace(MODEL, "llama")) else { panic!() };
    assert_eq!(found.as_str(), Some("llama"));
    // llama.cpp splits "default" with another expression than "gpt-2".
    for pre in ["default", "llama-bpe", "", &"x".repeat(1000)] {
        let error = load(small().writer().replace(PRE, pre)).unwrap_err();
        assert!(matches!(error, Error::Pre { .. }), "{error}");
    }
}

#[test]
fn types_and_ids_that_do_not_fit() {
    let n = small().tokens.len();
    for len in [0, n - 1, n + 1] {
        let found = load(small().writer().replace(TYPES, Value::i32s(&vec![1; len])));
        assert_eq!(found, Err(Error::TypesLength { types: len as u64, tokens: n as u64 }));
    }
    let mut plain = small();
    for found in [0, 7, -1] {
        plain.tokens[261].1 = found;
        let error = Error::TokenType { token: Token(261), found: found as u32 };
        assert_eq!(load(plain.writer()), Err(error));
    }
    for key in [BOS, EOS, "tokenizer.ggml.eot_token_id"] {
        for id in [n as u64, u32::MAX.into(), u64::MAX] {
            let found = load(small().writer().replace(key, id));
            assert_eq!(found, Err(Error::SpecialId { key, id, n_tokens: n as u32 }));
        }
    }
}

/// The writer's tokens, one of them replaced by a text as it stands in the file.
fn with_token(plain: &Plain, id: usize, text: impl AsRef<[u8]>) -> Writer {
    let mut texts: Vec<Vec<u8>> =
        plain.tokens.iter().map(|(t, k)| if *k == NORMAL { spell(t).into() } else { t.clone() }).collect();
    texts[id] = text.as_ref().to_vec();
    plain.writer().replace(TOKENS, Value::strings(&texts))
}

#[test]
fn tokens_that_cannot_be_read() {
    let plain = small();
    for text in [&b"a b"[..], "日本".as_bytes(), b"\xff", b"\xc4", b"a\0"] {
        let error = Error::TokenText { token: Token(258), cause: TextCause::Outside };
        assert_eq!(load(with_token(&plain, 258, text)), Err(error), "{text:x?}");
    }
    for (id, longest) in [(0, "Ġ"), (263, "<")] {
        let error = Error::TokenText { token: Token(id), cause: TextCause::TooLong };
        assert_eq!(load(with_token(&plain, id as usize, longest.repeat(MAX_TOKEN + 1))), Err(error));
        assert_eq!(load(with_token(&plain, id as usize, longest.repeat(MAX_TOKEN))), Ok(()));
    }
    // A source that cannot lend the string whole.
    let file = with_token(&plain, 263, "x".repeat(600)).finish();
    let found = with_tokenizer(Buffered(&file, 512), |_, _| ());
    assert!(matches!(found, Err(Error::Gguf(gguf::Error::LongString { len: 600, .. }))), "{found:?}");

    let mut plain = small();
    plain.tokens.extend(vec![(b"<x>".to_vec(), CONTROL); MAX_SPECIAL]);
    assert_eq!(load(plain.writer()), Err(Error::TooManySpecial { found: MAX_SPECIAL as u32 + 1 }));
    plain.tokens.pop();
    assert_eq!(load(plain.writer()), Ok(()));
}

#[test]
fn merges_that_cannot_be_read() {
    let with_merge = |rank: usize, text: &[u8]| {
        let mut merges: Vec<Vec<u8>> =
            small().merges.iter().map(|(l, r)| (spell(l) + " " + &spell(r)).into()).collect();
        merges[rank] = text.to_vec();
        load(small().writer().replace(MERGES, Value::strings(&merges)))
    };
    for text in [&b""[..], b"h", b" ", b"h ", b" e", b"h e ", b"h  e", b" h e", b"h e x"] {
        for rank in [0, 3] {
            let error = Error::MergeText { rank: rank as u32, cause: TextCause::NotAPair };
            assert_eq!(with_merge(rank, text), Err(error), "{text:?}");
        }
    }
    for text in [&b"h\0 e"[..], "h 日".as_bytes(), b"\xff e", b"h \xc4"] {
        assert_eq!(with_merge(2, text), Err(Error::MergeText { rank: 2, cause: TextCause::Outside }), "{text:?}");
    }
    let long = [&[b'h'; MAX_TOKEN][..], b" e"].concat();
    assert_eq!(with_merge(6, &long), Err(Error::MergeText { rank: 6, cause: TextCause::TooLong }));
    assert_eq!(with_merge(4, b"x y"), Err(Error::NoResult { rank: 4 }));
    // The result must be a normal token.
    let mut plain = small();
    plain.tokens[258].1 = USER_DEFINED;
    assert_eq!(load(plain.writer()), Err(Error::NoResult { rank: 2 }));
}

#[test]
fn repeated_rules_and_repeated_tokens() {
    // The first of two equal rules counts.
    let mut plain = Plain::pairs(&[("a", "b"), ("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]);
    let text = |text: &str| (text.as_bytes().to_vec(), NORMAL);
    plain.tokens.splice(256..259, ["ab", "bc", "ab", "abc", "abc"].map(text));
    // Of two equal tokens it is the one in the place of the rule,
    with_tokenizer(&plain.writer().finish()[..], |t, src| {
        assert_eq!(encode(t, src, "abc"), [260]);
        assert_eq!(encode(t, src, "bc"), [257]);
        assert_eq!(decode(t, src, &[258, 259, 260]), b"ababcabc");
    })
    .unwrap();
    // or the first, where tokens have other places than rules.
    plain.tokens.insert(257, text("never"));
    with_tokenizer(&plain.writer().finish()[..], |t, src| {
        assert_eq!(encode(t, src, "abc"), [260]);
        assert_eq!(decode(t, src, &[259, 260, 261]), b"ababcabc");
    })
    .unwrap();
    let crowd = Plain::of(vec![(b"a".to_vec(), b"b".to_vec()); 20_000]);
    assert!(matches!(load(crowd.writer()), Err(Error::Crowded { .. })));
}

/// What loading a vocabulary reads, however it ends.
fn work(plain: &Plain) -> (Result<(), Error>, u64, u64, usize) {
    let file = plain.writer().finish();
    let mut src = Counting::new(&file[..]);
    let loaded = with_tokenizer(&mut src, |_, _| ());
    (loaded, src.bytes(), src.chunks(), file.len())
}

/// Up to 50,000 tokens and merges in which everything collides as far as it may: what is read grows as they do.
#[test]
fn no_vocabulary_takes_long() {
    // The file over and over, and a chunk for so many tokens and merges: measured, 6.9 times and 4.7 at the worst.
    const PASSES: u64 = 8;
    const PER_CHUNK: u64 = 4;
    let whole = gpt2();
    println!("{:18} {:>6} {:>10} {:>10} {:>8}", "vocabulary", "texts", "file", "bytes", "chunks");
    let check = |name: &str, plain: &Plain, fails: bool| {
        let (loaded, bytes, chunks, len) = work(plain);
        let n = (plain.tokens.len() + plain.merges.len()) as u64;
        println!("{name:18} {n:6} {len:10} {bytes:10} {chunks:8}");
        assert_eq!(loaded.is_err(), fails, "{name}: {loaded:?}");
        assert!(bytes <= PASSES * len as u64, "{name} of {n}: {bytes} bytes read of {len}");
        assert!(chunks <= n / PER_CHUNK, "{name} of {n}: {chunks} chunks");
    };
    for n in [5_000, 20_000, 50_000] {
        let mut plain = Plain::of(whole.merges[..n].to_vec());
        check("tokens in order", &plain, false);
        plain.tokens.reverse();
        check("tokens in reverse", &plain, false);

        let merges: Vec<_> = (0..n).map(|i| (b"a".to_vec(), vec![b'a'; i % 1000 + 1])).collect();
        check("tokens all alike", &Plain { tokens: vec![(b"aa".to_vec(), NORMAL); n], merges }, true);
        check("merges all alike", &Plain::of(vec![(b"a".to_vec(), b"b".to_vec()); n]), true);
    }
}

#[test]
fn buffers_that_are_too_small() {
    let file = small().writer().finish();
    let mut src = &file[..];
    let vocabulary = vocabulary(&mut src).unwrap();
    let needed = Tokenizer::bytes(&vocabulary);
    let mut memory = vec![0; needed - 1];
    let mut arena = Arena::new(&mut memory);
    let have = arena.len();
    let found = Tokenizer::load(&vocabulary, &mut src, &mut arena).err();
    assert_eq!(found, Some(Error::Memory(TooSmall { needed, have })));

    with_tokenizer(src, |t, src| {
        let text = b"a <|endoftext|> the";
        let (mut scratch, mut out) = (vec![0; Tokenizer::scratch_len(8)], [Token(0); 16]);
        let found = t.encode(src, text, Control::Ignore, &mut scratch, &mut out);
        assert_eq!(found, Err(Error::Scratch { needed: Tokenizer::scratch_len(9), have: 32 }));
        let found = t.encode(src, text, Control::Recognise, &mut scratch, &mut out[..3]);
        assert_eq!(found, Err(Error::TooManyTokens { needed: 4, have: 3 }));
        assert_eq!(t.encode(src, text, Control::Recognise, &mut scratch, &mut out[..4]), Ok(4));
        assert_eq!(t.encode(src, b"", Control::Ignore, &mut [], &mut []), Ok(0));

        let n_tokens = t.vocabulary().len();
        for token in [Token(n_tokens), Token(u32::MAX)] {
            let found = t.decode(src, token, Control::Ignore, &mut [0; 16]);
            assert_eq!(found, Err(Error::UnknownToken { token, n_tokens }));
        }
        let the = Token(258);
        assert_eq!(t.decode(src, the, Control::Ignore, &mut [0; 3]), Err(Error::OutTooSmall { have: 3 }));
        assert_eq!(t.decode(src, the, Control::Ignore, &mut [0; 4]), Ok(4));
        let end = Token(n_tokens - 1);
        assert_eq!(t.decode(src, end, Control::Recognise, &mut [0; 12]), Err(Error::OutTooSmall { have: 12 }));
        assert_eq!(t.decode(src, end, Control::Ignore, &mut []), Ok(0));
    })
    .unwrap();
}

#[test]
fn a_byte_without_token() {
    let mut plain = small();
    plain.tokens[10].0 = b"+?".to_vec(); // it was "+"
    let file = plain.writer().finish();
    with_tokenizer(&file[..], |t, src| {
        assert_eq!(encode_as(t, src, b"1 + 1", Control::Ignore), Err(Error::NoToken { byte: b'+' }));
        let tokens = encode(t, src, "the 1 - 1");
        assert_eq!(decode(t, src, &tokens), b"the 1 - 1");
    })
    .unwrap();
}
