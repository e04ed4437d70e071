//! A saved session, damaged and with its checksums made right again: it is refused and the session is whole, or it goes on.

use std::convert::Infallible;
use std::sync::LazyLock;

use crc::{CRC_64_XZ, Crc};
use gptrickle_core::arena::{ALIGN, Arena};
use gptrickle_core::generate::{Fingerprint, Model, Overflow, Plan, RestoreError, Saved, Session};
use gptrickle_core::gpt2::{self, KvFormat};
use gptrickle_core::quant::Format;
use gptrickle_core::sampler::{Generator, Params};
use gptrickle_core::tokenizer::Token;

use super::{Target, assert_sayable, tiny};

pub(super) const TARGET: Target = Target {
    name: "session",
    about: "saved sessions: restored, gone on with, saved again",
    check,
    seeds,
    words: &["gptrickl"],
};

/// Bytes of the head, of which the last ones are its checksum.
const HEAD: usize = 184;
const CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);
const CRC_BYTES: usize = 8;

/// The model that all sessions are of, and what tells it from others.
static MODEL: LazyLock<(Vec<u8>, Fingerprint)> = LazyLock::new(|| {
    let file = tiny::model(Format::Q8_0, true);
    let fingerprint = Model::open(&mut &file[..]).and_then(|model| model.fingerprint(&mut &file[..]));
    (file, fingerprint.expect("a sound file"))
});

type Options = gptrickle_core::generate::Options<'static>;

fn check(saved: &[u8]) {
    let mut sealed = saved.to_vec();
    seal(&mut sealed);
    for bytes in [saved, &sealed] {
        let restored = restore(bytes, 0xa5);
        assert_eq!(restored, restore(bytes, 0x5a), "memory that was not written to changes nothing");
        if let Some((again, _)) = &restored {
            assert_eq!(restored, restore(again, 0), "what is saved again is the same session");
        }
    }
}

/// Makes the checksums of head and body right.
fn seal(saved: &mut [u8]) {
    let Some((head, body)) = saved.split_at_mut_checked(HEAD) else { return };
    for part in [head, body] {
        if let Some((bytes, crc)) = part.split_last_chunk_mut::<CRC_BYTES>() {
            *crc = CRC.checksum(bytes).to_le_bytes();
        }
    }
}

/// Restores a session in memory full of one byte: what it saves, and the tokens that follow; or nothing, if it is refused.
fn restore(bytes: &[u8], fill: u8) -> Option<(Vec<u8>, String)> {
    let mut read = reader(bytes);
    let saved = match Saved::open(MODEL.1, &mut read) {
        Ok(saved) => saved,
        Err(error) => {
            assert_sayable(&error);
            return None;
        }
    };
    let wanted = saved.options(3);
    let fits = (1..=tiny::N_CTX).contains(&wanted.state.context);
    let options = if fits { wanted } else { options(tiny::N_CTX, KvFormat::F32, Generator::Pcg) };
    with_session(&options, fill, |session| {
        session.push(&[Token(1)]).expect("room for a token");
        match session.restore(&saved, &mut read) {
            Ok(()) => Some((save(session), go_on(session))),
            Err(error) => {
                is_usable(session, &error);
                None
            }
        }
    })
}

/// After a refusal the session is as it was, or empty, and goes on.
fn is_usable(session: &mut Session, error: &RestoreError<Infallible>) {
    assert_sayable(error);
    let untouched = matches!(
        error,
        RestoreError::Context { .. } | RestoreError::Kv { .. } | RestoreError::Draws { .. } | RestoreError::Memory(_)
    );
    assert_eq!(session.tokens().len(), usize::from(untouched), "{error:?}");
    session.push(&[Token(2)]).expect("room for a token");
    session.next(&mut &MODEL.0[..]).expect("the model is sound");
}

/// Some tokens, or why there are none.
fn go_on(session: &mut Session) -> String {
    let next: Vec<_> = (0..4).map(|_| session.next(&mut &MODEL.0[..])).collect();
    next.iter().filter_map(|next| next.as_ref().err()).for_each(assert_sayable);
    assert_eq!(save(session).len(), session.saved_bytes());
    format!("{next:?} {:?}", session.logits_hash())
}

fn save(session: &Session) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Ok(()) = session.save(MODEL.1, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok::<(), Infallible>(())
    });
    bytes
}

fn reader(mut bytes: &[u8]) -> impl FnMut(&mut [u8]) -> Result<usize, Infallible> {
    move |out| {
        let n = out.len().min(bytes.len());
        let (now, later) = bytes.split_at(n);
        out[..n].copy_from_slice(now);
        bytes = later;
        Ok(n)
    }
}

fn with_session<R>(options: &Options, fill: u8, run: impl FnOnce(&mut Session) -> R) -> R {
    let mut src = &MODEL.0[..];
    let model = Model::open(&mut src).expect("a sound file");
    let mut memory = vec![fill; Plan::new(&model, options).total() + ALIGN];
    let mut session = Session::new(&model, options, &mut src, &mut Arena::new(&mut memory)).expect("options in range");
    run(&mut session)
}

fn options(context: usize, kv: KvFormat, generator: Generator) -> Options {
    let sampling =
        Params { temperature: 1.0, repetition_penalty: 1.2, min_new_tokens: 100, generator, ..Params::default() };
    let state = gpt2::Options { context, batch: 3, kv, ..Default::default() };
    Options { state, sampling, seed: 8, ..Options::default() }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (kv, context, n, generator) in [
        (KvFormat::F32, 4, 0, Generator::Pcg),
        (KvFormat::F32, 12, 9, Generator::Torch),
        (KvFormat::F16, 8, 6, Generator::Pcg),
        (KvFormat::Q8_0, 12, 20, Generator::Pcg),
        (KvFormat::Q4_0, 6, 30, Generator::Torch),
    ] {
        with_session(&options(context, kv, generator), 0, |session| {
            session.set_overflow(Overflow::Slide { keep: 1 }).expect("room to slide");
            session.hash_logits(n % 2 == 0);
            session.limit(n);
            session.push(&[Token(0), Token(3), Token(1)]).expect("room for a prompt");
            while session.next(&mut &MODEL.0[..]).expect("the model is sound").is_some() {}
            seeds.push(save(session));
        });
    }
    seeds
}
