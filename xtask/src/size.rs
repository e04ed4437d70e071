//! `cargo xtask size`: what each board's firmware takes, as the table in `firmware/SIZES.md`.

use anyhow::{Context, Result};
use object::elf::{self, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS};
use object::{Object, ObjectSection, SectionFlags};
use std::fs;
use std::path::Path;

use crate::boards::BOARDS;
use crate::firmware;
use crate::process::{self, root};
use crate::qemu;

/// Prints the table and writes it to `firmware/SIZES.md`.
///
/// # Errors
/// A board's firmware does not build, or does not run.
pub(crate) fn size() -> Result<()> {
    let mut table = String::from(
        "# What the firmware takes\n\n\
         Written by `cargo xtask size`, in bytes. Flash holds code, constants and the first values of variables. Static RAM \
         is what the image sets aside, an arena of fixed size included; RAM that a board finds at run time is not. Stack is \
         the most that was in use after a start and a text of 8 tokens.\n\n\
         | board | code | constants | flash | static RAM | stack | built by |\n|---|---:|---:|---:|---:|---:|---|\n",
    );
    for board in BOARDS.iter().filter(|board| board.folder().is_dir()) {
        let elf = firmware::build(board, &[])?;
        let size = Size::of(&elf)?;
        let stack = qemu::stack_used(board, &elf)?;
        let rustc = crate::toolchain::Places::here().resolve(board.target)?.version()?;
        let Size { code, constants, initial, .. } = size;
        table += &format!(
            "| {} | {code} | {constants} | {} | {} | {stack} | {rustc} |\n",
            board.name,
            code + constants + initial,
            size.ram,
        );
    }
    print!("{table}");
    process::write(&root().join("firmware/SIZES.md"), table)?;
    Ok(())
}

/// Bytes that an image takes, by where they go.
#[derive(Debug, Default, PartialEq)]
struct Size {
    code: u64,
    constants: u64,
    /// First values of variables: in flash and in RAM.
    initial: u64,
    /// All variables.
    ram: u64,
}

impl Size {
    fn of(elf: &Path) -> Result<Self> {
        let bytes = fs::read(elf).with_context(|| elf.display().to_string())?;
        let file = object::File::parse(&*bytes).with_context(|| elf.display().to_string())?;
        let sections = file.sections().filter_map(|section| {
            // A linker script may set the rest of RAM aside for these: that is no need of the program's.
            let reserve = matches!(section.name(), Ok(".stack" | ".heap"));
            let SectionFlags::Elf { sh_type, sh_flags } = section.flags() else { return None };
            (!reserve).then(|| (sh_flags, sh_type == SHT_NOBITS, section.size()))
        });
        Ok(Self::sum(sections))
    }

    /// Adds up sections: ELF flags, whether the file holds no bytes for it, size.
    fn sum(sections: impl Iterator<Item = (elf::SectionFlags, bool, u64)>) -> Self {
        let mut size = Self::default();
        for (flags, empty, bytes) in sections {
            let has = |flag| flags.contains(flag);
            match (has(SHF_ALLOC), has(SHF_WRITE), has(SHF_EXECINSTR)) {
                (false, ..) => {}
                (_, _, true) => size.code += bytes,
                (_, false, _) => size.constants += bytes,
                (_, true, _) => {
                    size.ram += bytes;
                    size.initial += if empty { 0 } else { bytes };
                }
            }
        }
        size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_counts_where_it_goes() {
        let (a, w, x) = (SHF_ALLOC, SHF_WRITE, SHF_EXECINSTR);
        let sections = [
            (a | x, false, 100),
            (a, false, 20),
            (a | w, false, 3),
            (a | w, true, 4000),
            (elf::SectionFlags(0), false, 50_000),
        ];
        let size = Size::sum(sections.into_iter());
        assert_eq!(size, Size { code: 100, constants: 20, initial: 3, ram: 4003 });
    }

    #[test]
    fn this_program_has_all_of_it() {
        let size = Size::of(&std::env::current_exe().unwrap()).unwrap();
        assert!(size.code > 0 && size.constants > 0 && size.initial > 0 && size.ram > size.initial, "{size:?}");
    }
}
