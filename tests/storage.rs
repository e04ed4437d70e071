//! Storage that fails while a text is made: whatever goes wrong at whichever read, the text is the right one, after another
//! try where that helps, or there is an error and no more text.

use gptrickle::checksums::crc32;
use gptrickle_core::arena::Arena;
use gptrickle_core::checked::{Checked, Table};
use gptrickle_core::generate::{Error, Model, Plan, Session};
use gptrickle_core::tokenizer::Control;
use gptrickle_tests::card::{Card, Trouble, with_checksums};
use gptrickle_tests::micro::{MICRO, PROMPT, memory, micro, options, said};

/// A board's buffer, shorter than a chunk.
const BUFFER: usize = 1024;
/// Bytes of a chunk with a checksum.
const CHUNK: u32 = 2048;
/// How often each step is tried.
const TRIES: usize = 3;
/// Tokens of the text.
const TOKENS: usize = 4;

/// What a user sees.
#[derive(Debug, Default)]
struct Told {
    text: Vec<u8>,
    /// What was shown as an error, those that another try made good included.
    errors: Vec<Error>,
    gave_up: bool,
}

impl Told {
    /// Tries a step again if it fails; `None` when it is given up.
    fn insist<T>(&mut self, mut step: impl FnMut() -> Result<T, Error>) -> Option<T> {
        for _ in 0..TRIES {
            match step() {
                Ok(value) => return Some(value),
                Err(error) => self.errors.push(error),
            }
        }
        self.gave_up = true;
        None
    }
}

/// Opens, loads, prompts, makes and decodes a short text; stops where a step has failed too often.
fn tell(card: &Card) -> Told {
    let mut told = Told::default();
    tell_to(&mut told, card);
    told
}

fn tell_to(told: &mut Told, card: &Card) -> Option<()> {
    let (mut src, model) = told.insist(|| {
        let mut card = card.clone();
        let table = Table::find(&mut card)?;
        let mut src = Checked::new(card, table, vec![0; table.map_or(0, |table| table.chunks())], crc32)?;
        let model = Model::open(&mut src)?;
        Ok((src, model))
    })?;
    let options = options(16);
    let mut memories = [(); TRIES].map(|()| memory(Plan::new(&model, &options).total()));
    let mut memories = memories.iter_mut();
    let mut session = told.insist(|| {
        let memory = memories.next().expect("one for each try");
        Session::new(&model, &options, &mut src, &mut Arena::new(memory))
    })?;
    told.insist(|| session.push_text(&mut src, PROMPT, Control::Ignore))?;
    session.limit(TOKENS);
    while let Some(token) = told.insist(|| session.next(&mut src))? {
        let mut bytes = [0; 64];
        let n = told.insist(|| Ok(session.tokenizer().decode(&mut src, token, Control::Recognise, &mut bytes)?))?;
        told.text.extend(&bytes[..n]);
    }
    Some(())
}

/// How often a kind of trouble ended how.
#[derive(Debug, Default)]
struct Outcomes {
    exact: usize,
    retried: usize,
    refused: usize,
    wrong: usize,
}

/// A text for each read that can go wrong, as it goes wrong in this way.
fn outcomes(file: &[u8], exact: &[u8], reads: usize, trouble: Trouble) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for n in 0..reads {
        let told = tell(&Card::new(file, BUFFER, Some((n, trouble))));
        for error in &told.errors {
            let text = said(error);
            if let Error::Source(error) = error {
                assert!(error.offset + error.len as u64 <= file.len() as u64, "{error:?}");
                assert!(text.contains(&error.offset.to_string()), "{text}");
            }
        }
        let place = match told {
            Told { gave_up: true, ref text, .. } if exact.starts_with(text) => &mut outcomes.refused,
            Told { gave_up: false, ref text, ref errors } if text == exact => match errors.is_empty() {
                true => &mut outcomes.exact,
                false => &mut outcomes.retried,
            },
            _ => &mut outcomes.wrong,
        };
        *place += 1;
    }
    outcomes
}

#[test]
fn whatever_goes_wrong_at_whichever_read_no_wrong_text_comes_of_it() {
    use Trouble::{Error, Flip, Short, Stale, Stuck};
    let checked = with_checksums(&micro(), CHUNK);
    println!(
        "| file | trouble | reads | no error | after a retry | refused | wrong text |\n|---|---|---:|---:|---:|---:|---:|"
    );
    for (name, file, silent_is_seen) in [("with checksums", &checked, true), ("without", &*MICRO, false)] {
        let card = Card::new(file, BUFFER, None);
        let exact = tell(&card);
        assert!(exact.errors.is_empty() && exact.text.len() >= TOKENS, "{exact:?}");
        assert_eq!(exact.text, tell(&Card::new(&MICRO, BUFFER, None)).text);
        for trouble in [Error, Short, Stuck, Flip, Stale] {
            let Outcomes { exact, retried, refused, wrong } = outcomes(file, &exact.text, card.reads(), trouble);
            println!("| {name} | {trouble:?} | {} | {exact} | {retried} | {refused} | {wrong} |", card.reads());
            if silent_is_seen || ![Flip, Stale].contains(&trouble) {
                assert_eq!(wrong, 0, "{name}, {trouble:?}");
            } else {
                assert!(wrong > 0, "nobody can see {trouble:?} of a file without checksums");
            }
        }
    }
}

/// A card that loses a bit for good: whatever a text is made of is refused, and the tensor named.
#[test]
fn a_lost_bit_is_refused_by_the_tensors_name() {
    let file = with_checksums(&micro(), CHUNK);
    let exact = tell(&Card::new(&file, BUFFER, None)).text;
    let parts = micro();
    let mut at = file.len() - parts.tensors.iter().map(|tensor| tensor.bytes.len()).sum::<usize>();
    let (mut named, mut unread) = (0, 0);
    for tensor in &parts.tensors {
        let middle = at + tensor.bytes.len() / 2;
        at += tensor.bytes.len();
        let mut damaged = file.clone();
        damaged[middle] ^= 4;
        let told = tell(&Card::new(&damaged, BUFFER, None));
        assert_eq!(told.text, if told.gave_up { &[][..] } else { &exact }, "{}", tensor.name);
        unread += usize::from(!told.gave_up);
        let Some(error) = told.errors.last() else { continue };
        // Of small ones, a neighbour may be the first in the chunk, or the header has a part of it.
        let text = said(error);
        assert!(text.contains("checksum"), "{}: {text}", tensor.name);
        named += usize::from(text.starts_with(&format!("tensor {},", tensor.name)));
    }
    println!("of {} tensors: {named} named themselves, {unread} in a part that no token needed", parts.tensors.len());
    assert!(named >= 5 && unread <= 1, "{named}, {unread}");
}
