//! `cargo xtask size`: what each board's firmware takes, as the table in `firmware/SIZES.md`; with `--core`, what the
//! core takes by itself.

use anyhow::{Context, Result};
use object::elf::{self, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS};
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags, SectionKind};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::boards::{BOARDS, Board, Room};
use crate::firmware;
use crate::process::{self, root};
use crate::qemu;
use crate::toolchain::{Library, Places};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The core alone, built for size for a Cortex-M7, by modules: GPT-2, tokenizer and sampler, and nothing of a board
    #[arg(long)]
    core: bool,
    /// Quantisation formats that are built in: Q4_0 to Q8_0 (legacy), Q2_K to Q6_K (k), IQ4_NL and IQ4_XS (iq); all of
    /// them if left out. F32, F16 and BF16 always are
    #[arg(long, requires = "core", value_delimiter = ',', value_parser = FAMILIES)]
    family: Vec<String>,
    /// Without the kernels of the DSP extension
    #[arg(long, requires = "core")]
    no_dsp: bool,
    /// Only the firmware of this board, and the table is not written to a file; can be repeated
    #[arg(long, conflicts_with = "core")]
    board: Vec<String>,
    /// Lines of code that are a board's own, beside those that all boards share; builds nothing
    #[arg(long, conflicts_with_all = ["core", "board"])]
    lines: bool,
}

/// The core's features of that name.
const FAMILIES: [&str; 3] = ["legacy", "k", "iq"];

/// Prints a table; that of the boards goes to `firmware/SIZES.md`, too.
///
/// # Errors
/// Firmware does not build, or does not run.
pub(crate) fn size(options: &Options) -> Result<()> {
    match options {
        Options { core: true, .. } => core(options),
        Options { lines: true, .. } => lines(),
        _ => boards(&options.board),
    }
}

/// Cortex-M7, as mps2-an500 is built.
const TARGET: &str = "thumbv7em-none-eabihf";

/// Links `firmware/probe` and prints what the linker kept.
fn core(options: &Options) -> Result<()> {
    let mut features: Vec<&str> = options.family.iter().map(String::as_str).collect();
    if features.is_empty() {
        features.extend(FAMILIES);
    }
    if !options.no_dsp {
        features.push("dsp");
    }
    let features = features.join(",");
    let toolchain = Places::here().resolve(TARGET)?;
    let mut cargo = toolchain.cargo("build", TARGET, Library::Core, &[]);
    cargo.current_dir(root().join("firmware"));
    cargo.args(["--profile", "size", "--package", "gptrickle-probe", "--features", &features]);
    process::run(&mut cargo)?;

    let elf = root().join("firmware/target").join(TARGET).join("size/gptrickle-probe");
    let bytes = fs::read(&elf).with_context(|| elf.display().to_string())?;
    let file = object::File::parse(&*bytes).with_context(|| elf.display().to_string())?;
    let modules = by_module(&file);
    println!("{TARGET}, {}, profile size, features {features}", toolchain.version()?);
    println!("{:<32} {:>8} {:>10}", "module", "code", "constants");
    for (module, size) in &modules {
        println!("{module:<32} {:>8} {:>10}", size.code, size.constants);
    }
    let Size { code, constants, initial, .. } = Size::of(&elf)?;
    println!("{:<32} {code:>8} {:>10}", "in all", constants + initial);
    Ok(())
}

/// Code and constants by module, the largest first. What is inlined counts where it went; constants mostly have no name.
fn by_module(file: &object::File) -> Vec<(String, Size)> {
    let mut modules: BTreeMap<String, Size> = BTreeMap::new();
    let mut unnamed = 0;
    for section in file.sections().filter(|section| section.kind() == SectionKind::ReadOnlyData) {
        unnamed += section.size();
    }
    for symbol in file.symbols().filter(|symbol| symbol.size() > 0) {
        let section = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
        let Some(kind) = section.map(|section| section.kind()) else { continue };
        let name = format!("{:#}", rustc_demangle::demangle(symbol.name().unwrap_or_default()));
        let size = modules.entry(module(&name)).or_default();
        match kind {
            SectionKind::Text => size.code += symbol.size(),
            SectionKind::ReadOnlyData => {
                size.constants += symbol.size();
                unnamed -= symbol.size().min(unnamed);
            }
            _ => {}
        }
    }
    modules.entry("constants without a name".into()).or_default().constants += unnamed;
    let mut modules: Vec<_> = modules.into_iter().filter(|(_, size)| size.code + size.constants > 0).collect();
    modules.sort_by_key(|(_, size)| std::cmp::Reverse(size.code + size.constants));
    modules
}

/// Where a function belongs: of the core the module, of other crates the crate.
fn module(name: &str) -> String {
    let path = name.trim_start_matches(['<', '&', '[', '(']);
    let mut parts = path.split("::");
    let first = parts.next().unwrap_or_default();
    match (first, parts.next()) {
        ("gptrickle_core", Some(second)) => second.to_owned(),
        ("probe", None) => "generate, in the probe".to_owned(),
        (name, None) if name.starts_with("OUTLINED") => "shared between functions".to_owned(),
        (name, None) if name.starts_with("__aeabi") || name.starts_with("mem") => "compiler_builtins".to_owned(),
        _ => first.to_owned(),
    }
}

/// Prints how many lines of code each board has for itself.
fn lines() -> Result<()> {
    let shared = code_lines(&root().join("firmware/app/src"))? + code_lines(&root().join("core/src"))?;
    println!("core and firmware/app, the same on every board: {shared} lines of code");
    println!("| board | lines of its own | share |\n|---|---:|---:|");
    for board in BOARDS.iter().filter(|board| board.folder().is_dir()) {
        let own = code_lines(&board.folder().join("src"))?;
        let percent = own as f64 * 100.0 / (own + shared) as f64;
        println!("| {} | {own} | {percent:.1} % |", board.name);
    }
    Ok(())
}

/// Lines of Rust and assembly in a folder and those below, without blank ones, comments and tests.
fn code_lines(folder: &Path) -> Result<usize> {
    let mut lines = 0;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            lines += code_lines(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "s") {
            lines += code_lines_of(&fs::read_to_string(&path).with_context(|| path.display().to_string())?);
        }
    }
    Ok(lines)
}

fn code_lines_of(text: &str) -> usize {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

/// Builds the firmware of these boards, or all, and prints the table; that of all goes to `firmware/SIZES.md`, too.
fn boards(only: &[String]) -> Result<()> {
    let mut table = String::from(
        "# What the firmware takes\n\n\
         Written by `cargo xtask size`, in bytes. Flash holds code, constants and the first values of variables. Static RAM \
         is what the image sets aside, an arena of fixed size included; RAM that a board finds at run time is not. Beside \
         each is what the linker may fill: an image without flash lies in RAM as a whole. Stack is the most that was in use \
         in the emulator, after every control was set, the kernels checked, a prompt refused or read that is as long as a \
         line, and a text of 8 tokens made.\n\n\
         | board | code | constants | flash | of | static RAM | of | stack | built by |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---|\n",
    );
    let wanted =
        |board: &&Board| board.folder().is_dir() && (only.is_empty() || only.iter().any(|name| name == board.name));
    only.iter().try_for_each(|name| Board::named(name).map(drop))?;
    for board in BOARDS.iter().filter(wanted) {
        let elf = firmware::build(board, &[])?;
        let size = Size::of(&elf)?;
        let stack = if board.is_emulated() { qemu::stack_used(board, &elf)?.to_string() } else { String::new() };
        let rustc = crate::toolchain::Places::here().resolve(board.target)?.version()?;
        table += &row(board, &size, &stack, &rustc);
    }
    print!("{table}");
    if only.is_empty() {
        process::write(&root().join("firmware/SIZES.md"), table)?;
    }
    Ok(())
}

/// A board's row of that table.
fn row(board: &Board, size: &Size, stack: &str, rustc: &str) -> String {
    let Size { code, constants, initial, ram } = size;
    let image = code + constants + initial;
    let (flash, flash_room, ram, ram_room) = match board.room {
        Room::Apart { flash, ram: room } => (image.to_string(), flash.to_string(), *ram, room),
        Room::Together(room) => (String::new(), String::new(), code + constants + ram, room),
    };
    let name = board.name;
    format!("| {name} | {code} | {constants} | {flash} | {flash_room} | {ram} | {ram_room} | {stack} | {rustc} |\n")
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
    fn lines_of_code_are_neither_blank_nor_comments_nor_tests() {
        let text =
            "//! A file.\n\nfn f() {\n    // Why.\n    g() // here\n}\n\n#[cfg(test)]\nmod tests {\n    fn h() {}\n}\n";
        assert_eq!(code_lines_of(text), 3);
    }

    #[test]
    fn what_a_board_has_stands_beside_what_its_image_takes() {
        let size = Size { code: 100, constants: 20, initial: 3, ram: 40 };
        let row = |room| row(&Board { room, ..BOARDS[0].clone() }, &size, "7", "rustc");
        let apart = row(Room::Apart { flash: 1000, ram: 500 });
        assert_eq!(apart, "| mps3-an547 | 100 | 20 | 123 | 1000 | 40 | 500 | 7 | rustc |\n");
        assert_eq!(row(Room::Together(900)), "| mps3-an547 | 100 | 20 |  |  | 160 | 900 | 7 | rustc |\n");
    }

    #[test]
    fn functions_belong_to_modules() {
        for (name, expected) in [
            ("gptrickle_core::quant::arch::arm_dsp::q4_0", "quant"),
            ("<gptrickle_core::ops::Alone as gptrickle_core::ops::Team>::join", "ops"),
            ("OUTLINED_FUNCTION_7", "shared between functions"),
            ("core::str::converts::from_utf8", "core"),
            ("probe", "generate, in the probe"),
            ("__aeabi_memcpy", "compiler_builtins"),
        ] {
            assert_eq!(module(name), expected, "{name}");
        }
    }

    #[test]
    fn this_program_has_all_of_it() {
        let size = Size::of(&std::env::current_exe().unwrap()).unwrap();
        assert!(size.code > 0 && size.constants > 0 && size.initial > 0 && size.ram > size.initial, "{size:?}");
    }
}
