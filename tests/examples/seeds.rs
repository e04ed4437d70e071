//! Writes what fuzzing starts from: `seeds FOLDER` makes `FOLDER/TARGET/…` and the dictionary `FOLDER/TARGET.dict`, and
//! `seeds` lists the targets.

use std::fs;
use std::io;
use std::path::Path;

use gptrickle_tests::fuzzed::TARGETS;

fn main() -> io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        TARGETS.iter().for_each(|target| println!("{:12} {}", target.name, target.about));
        return Ok(());
    };
    for target in TARGETS {
        let folder = Path::new(&folder);
        fs::create_dir_all(folder.join(target.name))?;
        for (i, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(target.name).join(format!("seed-{i}")), seed)?;
        }
        let words: String = target.words.iter().map(|word| format!("\"{}\"\n", escaped(word))).collect();
        fs::write(folder.join(target.name).with_extension("dict"), words)?;
    }
    Ok(())
}

/// Bytes as libFuzzer's dictionaries spell them.
fn escaped(word: &str) -> String {
    word.bytes().map(|byte| format!("\\x{byte:02x}")).collect()
}
