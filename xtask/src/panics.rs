//! `cargo xtask panics`: where a board's firmware could panic, read from the linked image.
//!
//! Every place that can panic passes a `core::panic::Location` to what does it: file, line and column, a constant of the
//! program. The linker drops those of code that nothing reaches, and the optimiser those of checks that cannot fail. What
//! is left in the image is the list of places, whole and by line.

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, SectionKind};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use crate::boards::Board;
use crate::firmware;
use crate::process::root;

/// Where to look.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The board whose firmware is looked at
    #[arg(long, default_value = "mps2-an500")]
    board: String,
}

/// Builds a board's firmware and prints where it could panic.
///
/// # Errors
/// The core could; or the firmware does not build.
pub(crate) fn panics(options: &Options) -> Result<()> {
    let board = Board::named(&options.board)?;
    let places = Places::of(&firmware::build(board, &[])?)?;
    print!("{places}");
    places.none_in_core()
}

/// What constants may lie in: a linker script may put them beside code.
const LOADED: [SectionKind; 5] = [
    SectionKind::Text,
    SectionKind::Data,
    SectionKind::ReadOnlyData,
    SectionKind::ReadOnlyDataWithRel,
    SectionKind::ReadOnlyString,
];

/// The places in a linked image that can panic.
#[derive(Debug)]
pub(crate) struct Places(BTreeSet<Place>);

/// A file, a line and a column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: String,
    line: u32,
    column: u32,
}

impl Places {
    /// Of an ELF file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn of(elf: &Path) -> Result<Self> {
        let bytes = fs::read(elf).with_context(|| elf.display().to_string())?;
        let file = object::File::parse(&*bytes).with_context(|| elf.display().to_string())?;
        let loaded = file.sections().filter(|section| LOADED.contains(&section.kind()));
        let sections = loaded.map(|section| Ok((section.address(), section.data()?))).collect::<Result<Vec<_>>>()?;
        let word = if file.is_64() { 8 } else { 4 };
        Ok(Places(sections.iter().flat_map(|(_, data)| locations(data, word, &sections)).collect()))
    }

    /// # Errors
    /// One is in the core; the message lists them.
    pub(crate) fn none_in_core(&self) -> Result<()> {
        let core = root().join("core");
        let found: Vec<_> = self.0.iter().filter(|place| Path::new(&place.file).starts_with(&core)).collect();
        let list: Vec<_> =
            found.iter().map(|place| format!("{}:{}:{}", place.file, place.line, place.column)).collect();
        ensure!(found.is_empty(), "the core can panic in {} places:\n{}", found.len(), list.join("\n"));
        // Without any, the image was not read as it is: a panic handler of its own prints where.
        ensure!(!self.0.is_empty(), "no place at all can panic: this image keeps no locations");
        Ok(())
    }

    fn from(&self, origin: Origin) -> impl Iterator<Item = &Place> {
        self.0.iter().filter(move |place| place.origin() == origin)
    }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (origin, why) in ORIGINS {
            writeln!(f, "{:3} in {why}", self.from(origin).count())?;
            for Place { file, line, column } in self.from(origin) {
                writeln!(f, "      {file}:{line}:{column}")?;
            }
        }
        Ok(())
    }
}

/// Whose code a place is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Core,
    Firmware,
    Library,
    Crate,
}

/// All of them, and what is known of their panics.
const ORIGINS: [(Origin, &str); 4] = [
    (Origin::Core, "gptrickle-core"),
    (Origin::Firmware, "the firmware: start-up, which has nothing to fall back on"),
    (Origin::Library, "Rust's library: how it prints and reads numbers with fractions, and what it asserts of itself"),
    (Origin::Crate, "other crates: start-up and, in the emulator, semihosting"),
];

impl Place {
    fn origin(&self) -> Origin {
        let file = Path::new(&self.file);
        if file.starts_with(root().join("core")) {
            Origin::Core
        } else if file.starts_with("/rustc") || self.file.contains("/lib/rustlib/src/") {
            Origin::Library
        } else if file.is_relative() || file.starts_with(root()) {
            Origin::Firmware
        } else {
            Origin::Crate
        }
    }
}

/// The locations in a section: pointer to the file's name and its length, both `word` bytes, then line and column.
fn locations(data: &[u8], word: usize, sections: &[(u64, &[u8])]) -> Vec<Place> {
    let number = |at: usize, n: usize| {
        let mut bytes = [0; 8];
        bytes[..n].copy_from_slice(data.get(at..at + n)?);
        Some(u64::from_le_bytes(bytes))
    };
    let at = |at: usize| {
        let file = text(number(at, word)?, number(at + word, word)?, sections)?;
        let (line, column) = (number(at + 2 * word, 4)? as u32, number(at + 2 * word + 4, 4)? as u32);
        (line > 0 && column > 0).then_some(Place { file, line, column })
    };
    (0..data.len()).step_by(word).filter_map(at).collect()
}

/// The name of a Rust file at this address, if that is what lies there.
fn text(address: u64, len: u64, sections: &[(u64, &[u8])]) -> Option<String> {
    let bytes = sections.iter().find_map(|(start, data)| {
        let at = usize::try_from(address.checked_sub(*start)?).ok()?;
        data.get(at..at.checked_add(usize::try_from(len).ok()?)?)
    })?;
    let name = std::str::from_utf8(bytes).ok()?;
    (name.ends_with(".rs") && name.contains('/')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_found_whatever_lies_between() {
        let mut data = b"src/a/b.rs......".to_vec();
        let mut push = |words: [u32; 4]| words.iter().for_each(|word| data.extend(word.to_le_bytes()));
        push([0x100, 10, 7, 9]);
        push([0x100, 9, 7, 9]); // "src/a/b.r"
        push([0x90, 10, 7, 9]); // before the section
        push([0x100, 10, 0, 9]); // no line
        push([0x100, u32::MAX, 7, 9]);
        let found = locations(&data, 4, &[(0x100, &data)]);
        assert_eq!(found, [Place { file: "src/a/b.rs".into(), line: 7, column: 9 }]);
    }

    #[test]
    fn a_program_that_can_panic_is_seen_to() {
        let places = Places(BTreeSet::from([Place {
            file: root().join("core/src/ops.rs").display().to_string(),
            line: 1,
            column: 2,
        }]));
        let error = places.none_in_core().unwrap_err().to_string();
        assert!(error.contains("1 places") && error.contains("ops.rs:1:2"), "{error}");
        assert!(Places(BTreeSet::new()).none_in_core().is_err());
    }
}
