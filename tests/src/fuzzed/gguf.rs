//! The reader of GGUF headers: any bytes are a typed error, or a file whose parts lie inside it.

use gptrickle_core::gguf::{self, ElementType, Error, File, Name, Strings, Value};
use gptrickle_core::quant::Format;
use gptrickle_core::source::Source;

use super::{Target, assert_sayable, tiny};
use crate::buffered::Buffered;
use crate::gguf_writer::{self, Writer};

pub(super) const TARGET: Target = Target {
    name: "gguf",
    about: "gguf::open, and all that is read again of a file that it let in",
    check,
    seeds,
    words: &["GGUF", "general.alignment", "general.architecture", "tokenizer.ggml.tokens"],
};

/// Bytes that the small buffer lends at a time.
const SMALL: usize = 512;

fn check(file: &[u8]) {
    let whole = open(&mut &*file);
    let small = open(&mut Buffered::new(file, SMALL));
    assert_eq!(format!("{whole:?}"), format!("{small:?}"), "the size of a buffer changes nothing");
    match whole {
        Ok((opened, entries)) => read_again(file, &opened, &entries),
        Err(error) => assert_sayable(&error),
    }
}

/// Opens a file, and notes its entries.
fn open<S: Source>(src: &mut S) -> Result<(File, Vec<(Name, Value)>), Error> {
    let mut entries = Vec::new();
    let file = gguf::open(src, |key, value| {
        entries.push((*key, *value));
        Ok::<(), Error>(())
    })?;
    Ok((file, entries))
}

/// What was let in is inside the file, in order, and the same as before.
fn read_again(file: &[u8], opened: &File, entries: &[(Name, Value)]) {
    let len = file.len() as u64;
    let mut again = opened.entries(&mut &*file).all();
    assert_eq!(format!("{again:?}"), format!("{entries:?}"));
    for (_, value) in again.drain(..) {
        let span = match value {
            Value::String(span) => span,
            Value::Array(array) => array.span,
            _ => continue,
        };
        assert!(span.at.checked_add(span.len).is_some_and(|end| end <= len), "{value:?} of {len} bytes");
        if let Value::Array(array) = value {
            let mut src = file;
            let mut strings = Strings::new(&mut src, &array);
            let mut n = 0;
            while strings.next().expect("a slice lends all").is_some() {
                n += 1;
            }
            assert_eq!(n, if array.element.id == ElementType::STRING { array.n } else { 0 });
        }
    }
    let (mut src, mut free) = (file, opened.data_at);
    let mut tensors = opened.tensors(&mut src);
    while let Some(tensor) = tensors.next().expect("a slice lends all") {
        assert!(tensor.span.at >= free && (tensor.span.at - opened.data_at).is_multiple_of(opened.alignment));
        free = tensor.span.at.checked_add(tensor.span.len).expect("inside the file");
        assert!(free <= len && free <= opened.end, "{tensor:?} of {len} bytes");
    }
}

/// All that a fallible reader has.
trait All {
    fn all(self) -> Vec<(Name, Value)>;
}

impl<S: Source> All for gguf::Entries<'_, S> {
    fn all(mut self) -> Vec<(Name, Value)> {
        std::iter::from_fn(|| self.next().expect("a slice lends all")).collect()
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let every_value = Writer::new()
        .entry("u8", 1u8)
        .entry("i8", -1i8)
        .entry("u16", 2u16)
        .entry("i16", -2i16)
        .entry("u32", 3u32)
        .entry("i32", -3i32)
        .entry("f32", 0.5f32)
        .entry("bool", true)
        .entry("string", "text")
        .entry("strings", gguf_writer::Value::strings(&["a", "", "text"]))
        .entry("i32s", gguf_writer::Value::i32s(&[1, -1]))
        .entry("u64", 4u64)
        .entry("i64", -4i64)
        .entry("f64", 0.25f64);
    let aligned = Writer::new()
        .alignment(64)
        .tensor("vector", &[4], 0, [0; 16])
        .tensor("cube", &[32, 2, 2], 2, [0; 72])
        .tensor("counts", &[3], 26, [0; 12]);
    vec![Writer::new().finish(), every_value.finish(), aligned.finish(), tiny::model(Format::Q4_0, false)]
}
