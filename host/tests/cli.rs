//! The command line from end to end: what goes where, which code it ends with, and what it says when it cannot.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use gptrickle_core::gpt2::KvFormat;
use gptrickle_tests::gguf_writer::Writer;
use gptrickle_tests::{logits, npy, token_ids, vectors};
use serde_json::Value;

const MICRO: &str = "micro/micro-Q8_0.gguf";
/// Vector models of one, two and three tensor types, tied and untied.
const MODELS: [&str; 4] =
    [MICRO, "micro/micro-f16.gguf", "tiny512/tiny512-Q4_K_M.gguf", "tiny512-untied/tiny512-untied-Q2_K.gguf"];

/// How a run ended, and what it said.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Run {
    /// Standard output of a run that was asked for something it can do.
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.err);
        String::from_utf8(self.out).unwrap()
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    fn lines(self) -> Vec<Value> {
        self.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// One line on standard error that has all of `words`, and nothing else anywhere.
    fn fails(self, words: &[&str]) {
        assert_eq!((self.code, &self.out[..]), (Some(1), &b""[..]), "{}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        let known = self.err.starts_with("error: ") && words.iter().all(|word| self.err.contains(word));
        assert!(known, "{words:?}: {}", self.err);
    }

    /// The command line's own complaint.
    fn misuse(self, words: &[&str]) {
        assert_eq!((self.code, &self.out[..]), (Some(2), &b""[..]), "{}", self.err);
        let known = self.err.starts_with("error: ") && words.iter().all(|word| self.err.contains(word));
        assert!(known, "{words:?}: {}", self.err);
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gptrickle"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Run {
    end(command(args).spawn().unwrap())
}

fn run_with_stdin(args: &[&str], stdin: &[u8]) -> Run {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    let (mut pipe, stdin) = (child.stdin.take().unwrap(), stdin.to_owned());
    let writer = std::thread::spawn(move || pipe.write_all(&stdin));
    let run = end(child);
    writer.join().unwrap().unwrap();
    run
}

fn end(child: Child) -> Run {
    let output = child.wait_with_output().unwrap();
    Run { code: output.status.code(), out: output.stdout, err: String::from_utf8(output.stderr).unwrap() }
}

/// A file of the reference vectors.
fn vector(name: &str) -> String {
    text(&vectors().join(name)).to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An empty folder for a test, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> String {
        text(&self.0.join(name)).to_owned()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The id of a tensor's type in the header of a GGUF file, where it lies.
fn type_at(file: &[u8], tensor: &str) -> usize {
    let at = file.windows(tensor.len()).position(|name| name == tensor.as_bytes()).unwrap() + tensor.len();
    let n_dims = u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    at + 4 + 8 * n_dims as usize
}

#[test]
fn text_goes_to_stdout_and_all_else_to_stderr() {
    let plain = run(&["generate", "Once upon a time", "-n", "12", "--stats", "--logits-hash"]);
    assert_eq!(plain.err.lines().count(), 10, "{}", plain.err);
    assert!(plain.err.starts_with("the built-in model: GPT-2, "));
    for figure in
        ["stop            max_tokens", "prompt          4 tokens, ", "new             12 tokens, ", "logits hash     "]
    {
        assert!(plain.err.contains(figure), "no {figure} in {}", plain.err);
    }
    let text = plain.ok();
    assert!(text.ends_with('\n') && text.split_whitespace().count() > 5, "{text}");
    assert!(!text.contains("Once upon a time") && !text.contains('\x1b'), "{text}");
}

#[test]
fn weights_in_memory_are_read_less_and_the_text_stays() {
    let bytes = |ram: &str| {
        let out = run(&["generate", "Once", "-n", "8", "--json", "--ram", ram]).ok();
        let (tokens, last) = out.trim_end().rsplit_once('\n').unwrap();
        let last: serde_json::Value = serde_json::from_str(last).unwrap();
        (tokens.to_owned(), last["bytes_per_token"].as_u64().unwrap(), last["resident_bytes"].as_u64())
    };
    let (text, whole, none) = bytes("0");
    let (same, less, kept) = bytes("1MiB");
    assert_eq!((&same, none), (&text, None));
    // The built-in model's head is its embedding: the row of a token may be in memory, too.
    assert!((0..=210).contains(&(whole - less - kept.unwrap())), "{whole} {less} {kept:?}");
    let (same, rest, kept) = bytes("1GiB");
    assert_eq!(same, text);
    assert!(rest < 1500 && kept.unwrap() > 2_900_000, "{rest} {kept:?}");
}

#[test]
fn help_and_version_are_results() {
    for args in [
        &["--help"][..],
        &["generate", "--help"],
        &["suggest", "--help"],
        &["repl", "--help"],
        &["tokenize", "-h"],
        &["logits", "-h"],
        &["features", "-h"],
        &["attention", "-h"],
        &["inspect", "-h"],
        &["plan", "-h"],
        &["head-agreement", "-h"],
    ] {
        assert!(run(args).ok().contains("Examples:\n  gptrickle "));
    }
    assert!(run(&["--version"]).ok().starts_with("gptrickle "));
}

#[test]
fn json_lines_are_tokens_and_a_summary() {
    let lines = run(&["generate", "Once upon a time", "-n", "12", "--json"]).lines();
    let (summary, tokens) = lines.split_last().unwrap();
    assert_eq!(tokens.len(), 12);
    for line in tokens {
        let line = line.as_object().unwrap();
        assert_eq!(line.keys().collect::<Vec<_>>(), ["text", "token"]);
        assert!(line["token"].is_u64() && line["text"].is_string());
    }
    let keys: Vec<&String> = summary.as_object().unwrap().keys().collect();
    let expected = [
        "arena_bytes",
        "bytes_per_token",
        "decode_tokens_per_s",
        "kernel",
        "new_tokens",
        "passes",
        "prefill_tokens_per_s",
        "prompt_tokens",
        "source_bytes_per_s",
        "stop",
        "threads",
    ];
    assert_eq!(keys, expected);
    assert_eq!((&summary["prompt_tokens"], &summary["new_tokens"]), (&4.into(), &12.into()));
    assert!(summary["decode_tokens_per_s"].as_f64().unwrap() > 0.0);

    let lines = run(&["generate", "Once upon a time", "-n", "12", "--json", "--logits-hash"]).lines();
    assert_eq!(lines.last().unwrap()["logits_hash"].as_str().map(str::len), Some(16));
    let ids: Vec<String> = lines[..12].iter().map(|line| line["token"].to_string()).collect();
    let texts: String = lines[..12].iter().map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(run(&["tokenize", "--decode", &ids.join(",")]).ok(), texts);
}

#[test]
fn json_texts_are_the_plain_text() {
    let model = vector(MICRO);
    let (mut split, mut cut) = (0, 0);
    for seed in 0..24 {
        let (seed, stop) = (seed.to_string(), ["--stop", "ab", "--stop", "#!"]);
        let args = ["generate", "-m", &model, "ab", "-n", "28", "--temperature", "9", "--top-k", "0", "--seed", &seed];
        // A model of raw bytes at random: never half a character, whatever it says.
        let plain = run(&[&args[..], &stop].concat()).ok();
        let lines = run(&[&args[..], &stop, &["--json"]].concat()).lines();
        let texts: Vec<&str> = lines.iter().filter_map(|line| line["text"].as_str()).collect();
        assert_eq!(texts.concat(), plain.strip_suffix('\n').unwrap(), "seed {seed}");
        assert_eq!(texts.len(), lines.len() - 1);
        split += plain.chars().filter(|&c| !c.is_ascii() && c != '\u{fffd}').count();
        cut += usize::from(lines.last().unwrap()["stop"] == "max_tokens" && plain.ends_with("\u{fffd}\n"));
    }
    assert!(split > 0 && cut > 0, "no character of two tokens, or none cut off: {split}, {cut}");
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let args = ["generate", "Once upon a time", "-n", "60"];
    let whole = run(&args).ok();
    let lines = run(&[&args[..], &["--stop", " little", "--stop", "never to be met", "--json"]].concat()).lines();
    let stopped = run(&[&args[..], &["--stop", " little"]].concat()).ok();
    assert_eq!(stopped, whole.split_once(" little").unwrap().0.to_owned() + "\n");
    assert_eq!(lines.last().unwrap()["stop"], "stop_string");
    let texts: String = lines.iter().filter_map(|line| line["text"].as_str()).collect();
    assert_eq!(texts + "\n", stopped);
}

#[test]
fn a_text_ends_where_it_must() {
    let model = vector(MICRO);
    let end = |args: &[&str]| {
        let mut lines = run(&[&["generate", "-m", &model, "--json"], args].concat()).lines();
        let summary = lines.pop().unwrap();
        (summary["stop"].as_str().unwrap().to_owned(), summary["new_tokens"].as_u64().unwrap(), lines)
    };
    let (stop, n, _) = end(&["abcdef", "--temperature", "9"]);
    assert_eq!((&stop[..], n), ("context", 26));
    let (stop, n, lines) = end(&["abcdef", "--context", "6"]);
    assert_eq!((&stop[..], n, lines.len()), ("context", 0, 0));
    let (stop, n, lines) = end(&["abcdef", "-n", "0"]);
    assert_eq!((&stop[..], n, lines.len()), ("max_tokens", 0, 0));
    // Past the end of the context.
    let (stop, n, lines) = end(&["abcdef", "--temperature", "3", "--seed", "1", "--overflow", "slide:4", "-n", "70"]);
    assert_eq!((&stop[..], n, lines.len()), ("max_tokens", 70, 70));
    run(&["generate", "-m", &model, "a", "--overflow", "slide:31"]).fails(&[
        "31 tokens",
        "context of 32",
        "at most 30",
    ]);
    // Without a prompt it starts from the token that begins a text.
    assert_eq!(end(&["-n", "3"]), end(&["", "-n", "3"]));
}

#[test]
fn a_saved_text_goes_on_in_another_process() {
    let folder = Folder::new("saved");
    let path = folder.path("a.session");
    for kv in ["f32", "f16", "q8_0"] {
        let options =
            ["--kv", kv, "--context", "160", "--temperature", "1.1", "--seed", "6", "--repetition-penalty", "1.1"];
        let json = |args: &[&str]| run(&[&["generate", "--json", "--logits-hash"], args].concat()).lines();
        let whole = json(&[&["Once upon a time", "-n", "100"], &options[..]].concat());
        let first = json(&[&["Once upon a time", "-n", "50", "--save", &path], &options[..]].concat());
        let then = json(&["-n", "50", "--resume", &path, "--batch", "3"]);
        assert_eq!((whole.len(), first.len(), then.len()), (101, 51, 51));
        assert!(whole[..50] == first[..50] && whole[50..100] == then[..50], "{kv}");
        assert_eq!(whole[100]["logits_hash"], then[50]["logits_hash"], "{kv}");
        // With more to say, and once more in place of itself.
        let more = json(&["and the", "-n", "1", "--resume", &path, "--save", &path]);
        assert_eq!(more.last().unwrap()["prompt_tokens"], 4 + 50 + 2);
        let more = json(&["--resume", &path, "-n", "1"]);
        assert_eq!(more.last().unwrap()["prompt_tokens"], 4 + 50 + 3);
    }
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "a part of a file is left");

    let resume = |args: &[&str]| run(&[&["generate", "--resume", &path], args].concat());
    resume(&["--kv", "f32"]).misuse(&["--resume", "--kv"]);
    resume(&["--seed", "1"]).misuse(&["--resume", "--seed"]);
    resume(&["-m", &vector(MICRO)]).fails(&["a.session", "another model", "fingerprint"]);
    resume(&["-n", "1", "--save", text(&folder.0)]).fails(&["no regular file"]);
    run(&["generate", "--resume", &folder.path("none")]).fails(&["cannot read", "none", "No such file"]);
    let mut bytes = fs::read(&path).unwrap();
    for (name, bytes, words) in [
        ("short", &bytes[..bytes.len() - 1], "ends early"),
        ("empty", &[], "ends early"),
        ("page", b"<!DOCTYPE html>", "no saved session"),
        ("long", &[&bytes[..], b"x"].concat(), "more in it"),
    ] {
        run(&["generate", "--resume", &folder.file(name, bytes)]).fails(&[name, words]);
    }
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    run(&["generate", "--resume", &folder.file("bit", &bytes)]).fails(&["bit", "damaged"]);
}

#[test]
fn guesses_save_passes_and_change_nothing() {
    let prompt = "one two three ".repeat(4);
    let lines = |lookup: &str, seed: &str| {
        let args = ["generate", &prompt, "-n", "60", "--json", "--logits-hash", "--lookup", lookup, "--seed", seed];
        run(&[&args[..], &["--temperature", "0.2"]].concat()).lines()
    };
    let (mut plain, mut guessed) = (0, 0);
    for seed in ["1", "2", "3"] {
        let (mut without, mut with) = (lines("0", seed), lines("6", seed));
        let ends = [without.pop().unwrap(), with.pop().unwrap()];
        assert_eq!(without, with);
        assert_eq!(ends[0]["logits_hash"], ends[1]["logits_hash"]);
        assert_eq!(ends[0]["stop"], ends[1]["stop"]);
        plain += ends[0]["passes"].as_u64().unwrap();
        guessed += ends[1]["passes"].as_u64().unwrap();
        assert!(ends[1]["arena_bytes"].as_u64() >= ends[0]["arena_bytes"].as_u64());
    }
    assert!(guessed < plain, "{guessed} passes, without guesses {plain}");
}

/// The text, in plain and token by token, and the last line's figures of one of several.
#[test]
fn several_texts_are_those_of_their_seeds() {
    let args = ["generate", "Once upon a time", "-n", "40", "--temperature", "1.3", "--stop", " She"];
    let several = [&args[..], &["--num-return-sequences", "4", "--seed", "9"]].concat();
    let plain = run(&several).ok();
    let mut lines = run(&[&several[..], &["--json", "--logits-hash"]].concat()).lines();
    let summary = lines.pop().unwrap();
    let (mut expected, mut new_tokens, mut longest) = (String::new(), 0, 0);
    for i in 0..4u64 {
        let seed = (9 + i).to_string();
        let mut alone = run(&[&args[..], &["--json", "--logits-hash", "--seed", &seed]].concat()).lines();
        let end = alone.pop().unwrap();
        expected += &format!("--- {} of 4, seed {seed} ---\n", i + 1);
        expected += &run(&[&args[..], &["--seed", &seed]].concat()).ok();
        let ours = lines.iter().filter(|line| line["sequence"] == i);
        let ours: Vec<_> = ours.map(|line| (&line["token"], &line["text"])).collect();
        assert_eq!(ours, alone.iter().map(|line| (&line["token"], &line["text"])).collect::<Vec<_>>());
        let text = &summary["sequences"][i as usize];
        assert_eq!((&text["sequence"], &text["seed"]), (&i.into(), &(9 + i).into()));
        for key in ["stop", "new_tokens", "logits_hash"] {
            assert_eq!(text[key], end[key], "{key} of {i}");
        }
        new_tokens += end["new_tokens"].as_u64().unwrap();
        longest = longest.max(end["passes"].as_u64().unwrap());
    }
    assert_eq!(plain, expected);
    assert_eq!((&summary["new_tokens"], &summary["passes"]), (&new_tokens.into(), &longest.into()));
    assert!(summary.get("stop").is_none() && summary.get("logits_hash").is_none());

    // As planned.
    let memory = ["--num-return-sequences", "3", "-n", "7", "--context", "60", "--kv", "q8_0", "--batch", "1"];
    let last = run(&[&["generate", "Once", "--json"], &memory[..]].concat()).lines().pop().unwrap();
    let plan = run(&[&["plan", "--json"], &memory[..]].concat()).json();
    assert_eq!((&plan["arena_bytes"], &plan["batch"]), (&last["arena_bytes"], &3.into()));
    assert_eq!(plan["sequences"]["kv_positions"], 60 + 2 * 7);
    let per_pass = plan["sequences"]["bytes_per_pass"].as_u64().unwrap();
    let row = 210; // the token's, which may be in the part of the head that was read last
    let read = last["bytes_per_token"].as_u64().unwrap() * 3;
    assert!((per_pass - row - 3..=per_pass).contains(&read), "{read} of {per_pass}");

    for other in [&["--lookup", "2"][..], &["--save", "x"], &["--resume", "x"], &["--overflow", "slide:4"]] {
        run(&[&several[..], other].concat()).misuse(&["--num-return-sequences", other[0]]);
    }
}

/// With PyTorch's generator no seed makes one of several texts alone, so none is told.
#[test]
fn texts_of_one_generator_have_no_seed() {
    let torch = ["Once upon a time", "-n", "8", "--num-return-sequences", "3", "--rng", "torch", "--seed", "9"];
    let text = run(&[&["generate"], &torch[..]].concat()).ok();
    assert!(text.starts_with("--- 1 of 3 ---\n") && text.contains("\n--- 3 of 3 ---\n"), "{text}");
    let stats = run(&[&["generate", "--stats"], &torch[..]].concat()).err;
    assert!(stats.contains("text 1 ") && !stats.contains("seed"), "{stats}");
    let summary = run(&[&["generate", "--json"], &torch[..]].concat()).lines().pop().unwrap();
    let report = run(&[&["suggest", "--json"], &torch[..]].concat()).json();
    for texts in [&summary["sequences"], &report["suggestions"]] {
        let texts = texts.as_array().unwrap();
        assert!(texts.len() == 3 && texts.iter().all(|text| text.get("seed").is_none()), "{texts:?}");
    }
}

#[test]
fn suggestions_are_the_texts_that_generate_makes() {
    let controls = ["--num-return-sequences", "3", "--temperature", "1", "--top-p", "0.9", "--top-k", "256"];
    let texts = |args: &[&str], prompt: &str| -> Vec<(String, Value)> {
        let mut lines = run(&[&["generate", prompt, "--json"], args].concat()).lines();
        let summary = lines.pop().unwrap();
        let text = |i: usize| -> String {
            lines.iter().filter(|line| line["sequence"] == i).filter_map(|line| line["text"].as_str()).collect()
        };
        (0..3).map(|i| (text(i), summary["sequences"][i]["stop"].clone())).collect()
    };
    // The demo model ends its stories; so that a text which ends before the others is among them.
    let long = ["-n", "120", "--seed", "5"];
    for (prompt, other) in
        [("Once upon a time", &[][..]), ("The cat", &["--seed", "7", "-n", "6"]), ("The end.", &long)]
    {
        let patient = [&["suggest", prompt, "--max-time", "0"], other].concat();
        let report = run(&[&patient[..], &["--json"]].concat()).json();
        let found = report["suggestions"].as_array().unwrap();
        let found: Vec<(String, Value)> =
            found.iter().map(|text| (text["text"].as_str().unwrap().to_owned(), text["stop"].clone())).collect();
        let length: &[&str] = if other.contains(&"-n") { &[] } else { &["-n", "20"] };
        assert_eq!(found, texts(&[&controls[..], length, other].concat(), prompt));
        assert_eq!(report["prompt"], prompt);

        let plain = run(&patient).ok();
        let lines: Vec<&str> = plain.lines().collect();
        assert_eq!(lines.len(), 3, "{plain}");
        for (i, (line, (text, _))) in lines.iter().zip(&found).enumerate() {
            assert_eq!(*line, format!("{}. {}", i + 1, text.replace('\n', "\\n")));
        }
    }
    let hurried = run(&["suggest", "Once", "--max-time", "0.000001", "--json"]).json();
    for text in hurried["suggestions"].as_array().unwrap() {
        assert_eq!((&text["stop"], &text["new_tokens"]), (&"max_time".into(), &1.into()));
    }
    assert_eq!(run_with_stdin(&["suggest", "-"], b"Once").ok(), run(&["suggest", "Once"]).ok());
    run(&["suggest", "Once", "--max-time", "-1"]).misuse(&["--max-time", "seconds from 0 on"]);
    run(&["suggest"]).misuse(&["<TEXT>"]);
}

#[test]
fn controls_come_from_flags_then_a_file_then_transformers() {
    let folder = Folder::new("config");
    let config = |text: &str| folder.file("generation_config.json", text.as_bytes());
    let generate = |args: &[&str]| run(&[&["generate", "Once upon a time", "--json"], args].concat());
    let tokens = |run: Run| -> Vec<Value> { run.lines().into_iter().map(|mut line| line["token"].take()).collect() };
    let greedy = tokens(generate(&["--temperature", "0", "-n", "20"]));

    // What the file does not say is as in transformers: greedy; a flag is stronger than the file.
    let path = config(r#"{"max_new_tokens": 20, "repetition_penalty": null, "transformers_version": "5.24.0"}"#);
    assert_eq!(tokens(generate(&["--config", &path])), greedy);
    assert_eq!(tokens(generate(&["--config", &path, "-n", "7"]))[..7], greedy[..7]);
    let drawn = tokens(generate(&["-n", "20", "--temperature", "0.9", "--rng", "torch"]));
    assert_eq!(tokens(generate(&["--config", &path, "--temperature", "0.9", "--rng", "torch"])), drawn);
    let path = config(r#"{"do_sample": true, "temperature": 0.9, "max_length": 24, "eos_token_id": 4095}"#);
    assert_eq!(tokens(generate(&["--config", &path, "--rng", "torch"])), drawn);

    // Lists: what is barred is not there, and what ends a text is not shown.
    let barred = greedy[8].as_u64().unwrap();
    let text = format!(r#"{{"max_new_tokens": 20, "bad_words_ids": [[{barred}]], "unheard_of": 1}}"#);
    let run_barred = generate(&["--config", &config(&text)]);
    assert!(run_barred.err.contains("unheard_of is not known here"), "{}", run_barred.err);
    let found = tokens(run_barred);
    assert_eq!(found[..8], greedy[..8]);
    assert!(!found.contains(&barred.into()));
    assert_eq!(tokens(generate(&["--temperature", "0", "--eos-token-id", &barred.to_string()]))[..8], greedy[..8]);
    let plain = run(&["generate", "Once upon a time", "--temperature", "0", "--bad-words", "little", "-n", "40"]).ok();
    assert!(!plain.contains("little"), "{plain}");
    let with_prompt =
        run(&["generate", "Once upon a time", "--temperature", "0", "-n", "3", "--return-full-text"]).ok();
    assert_eq!(with_prompt, "Once upon a time, there was\n");
    let hurried = generate(&["--max-time", "0.000001"]).lines().pop().unwrap();
    assert_eq!((&hurried["stop"], &hurried["new_tokens"]), (&"max_time".into(), &1.into()));

    for (text, words) in [
        (r#"{"top_p": "high"}"#, &["generation_config.json", "top_p", "\"high\""][..]),
        (r#"{"top_p": 2}"#, &["top_p is 2", "at most 1"]),
        (r#"{"early_stopping": "soon"}"#, &["early_stopping", "true, false or never"]),
        (r#"{"num_beams": 2, "num_return_sequences": 3}"#, &["num_return_sequences is 3", "num_beams 2"]),
        (r#"{"num_beams": 2, "do_sample": true}"#, &["do_sample is true", "num_beams 2"]),
        (r#"{"max_length": 9, "min_length": 10}"#, &["min_length is 10", "max_length 9"]),
        (r#"{"max_length": 4}"#, &["max_length is 4", "prompt has 4 tokens"]),
        (r#"{"bad_words_ids": [[5000]]}"#, &["token 5000", "4096"]),
        ("[]", &["no generation_config.json"]),
    ] {
        generate(&["--config", &config(text)]).fails(words);
    }
    generate(&["--config", &config(r#"{"num_beams": 2}"#), "--lookup", "4"]).fails(&["--lookup", "num_beams"]);
    generate(&["--config", &folder.path("none")]).fails(&["cannot read", "none"]);
    generate(&["-n", "4", "--max-length", "8"]).misuse(&["--max-length"]);
}

#[test]
fn a_search_shows_the_best_texts_first() {
    let args = ["generate", "Once upon a time", "-n", "24", "--num-beams", "4"];
    let best = run(&args).ok();
    let several = run(&[&args[..], &["--num-return-sequences", "3"]].concat()).ok();
    assert!(several.starts_with("--- 1 of 3, score -0.") && several.contains(&best), "{several}");
    let mut lines = run(&[&args[..], &["--num-return-sequences", "3", "--json"]].concat()).lines();
    let summary = lines.pop().unwrap();
    let scores: Vec<f64> = (0..3).map(|i| summary["sequences"][i]["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    let text: String =
        lines.iter().filter(|line| line["sequence"] == 0).map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(text + "\n", best);
    // A search of 24 tokens takes as many passes as a text of 24 tokens.
    assert_eq!(summary["passes"], 23);
    run(&[&args[..], &["--logits-hash"]].concat()).misuse(&["--logits-hash"]);
}

#[test]
fn a_script_of_lines_is_what_somebody_types() {
    let repl = |args: &[&str], script: &str| run_with_stdin(&[&["repl"], args].concat(), script.as_bytes());
    let generate = |args: &[&str]| run(&[&["generate"], args].concat()).ok();
    let first = generate(&["Once upon a time", "-n", "20"]);
    let second =
        generate(&["::) she said", "-n", "9", "--seed", "7", "--top-k", "5", "--kv", "q8_0", "--context", "64"]);
    let second_prompt =
        generate(&[":) she said", "-n", "9", "--seed", "7", "--top-k", "5", "--kv", "q8_0", "--context", "64"]);
    assert_ne!(second, second_prompt);
    let script =
        "Once upon a time\r\n\n:seed 7\n:max 9\n:set top_k 5\n:set kv q8_0\n:set context 64\n::) she said\n:quit\nno";
    let run = repl(&["-n", "20"], script);
    assert!(!run.err.contains("error"), "{}", run.err);
    assert_eq!(run.ok(), first + &second_prompt);

    // Every command, and a last line without its end.
    let run = repl(&["-n", "3"], ":echo on\n:hash on\nOnce\n:stats\n:plan\n:check\n:open\n:help\n:echo off\nTwice");
    for answer in
        ["> :hash on\n", "logits hash     ", "new             3 tokens", "  keys and values\n", ":load FILE  "]
    {
        assert!(run.err.contains(answer), "no {answer} in {}", run.err);
    }
    assert!(!run.err.contains("Twice"), "{}", run.err);
    assert_eq!(run.ok(), generate(&["Once", "-n", "3"]) + &generate(&["Twice", "-n", "3"]));

    // Each of these fails, and the next line is answered all the same.
    for (line, words) in [
        (":sed 1", "line 1: no command :sed; there are :set, "),
        (":set context 513", "line 1: a context of 513 cannot be had: use :set context with 1 to 512"),
        (":stats", "there is no text yet: type a prompt"),
        (":save x", "there is no text to save: type a prompt"),
        (":load no-such-file", "cannot read no-such-file: "),
        (&"word ".repeat(600), "512 positions are left"),
    ] {
        let run = repl(&["-n", "3"], &format!("{line}\nOnce"));
        assert_eq!((run.code, String::from_utf8(run.out).unwrap()), (Some(1), generate(&["Once", "-n", "3"])));
        assert!(run.err.contains(&format!("error: {words}")) || run.err.contains(words), "{words}: {}", run.err);
    }
    let run = run_with_stdin(&["repl", "-n", "3"], b"\xff\nOnce");
    assert!(run.code == Some(1) && run.err.contains("error: line 1: it is not UTF-8"), "{}", run.err);
    self::run(&["repl", "-m", "no-such.gguf"]).fails(&["no-such.gguf"]);
}

#[test]
fn the_repl_saves_and_loads_texts_of_generate() {
    let folder = Folder::new("repl-saved");
    let (ours, theirs) = (folder.path("ours.session"), folder.path("theirs.session"));
    let options = ["--kv", "q8_0", "--context", "160", "--temperature", "1.1", "--seed", "6"];
    let whole = run(&[&["generate", "Once upon a time", "-n", "60"], &options[..]].concat()).ok();
    let script = format!("Once upon a time\n:save {ours}\n");
    let first = run_with_stdin(&[&["repl", "-n", "30"], &options[..]].concat(), script.as_bytes()).ok();
    let rest = run(&["generate", "--resume", &ours, "-n", "30"]).ok();
    assert_eq!(first.strip_suffix('\n').unwrap().to_owned() + &rest, whole);

    run(&[&["generate", "Once upon a time", "-n", "30", "--save", &theirs], &options[..]].concat()).ok();
    // The settings come along, and stay.
    let loaded = run_with_stdin(&["repl", "-n", "30"], format!(":load {theirs}\nOnce upon a time\n").as_bytes()).ok();
    assert_eq!(loaded, rest + &first);

    let bytes = fs::read(&theirs).unwrap();
    let short = folder.file("short", &bytes[..bytes.len() - 1]);
    let run = run_with_stdin(&["repl", "-n", "3"], format!(":load {short}\nOnce").as_bytes());
    assert!(run.code == Some(1) && run.err.contains("ends early"), "{}", run.err);
    assert_eq!(String::from_utf8(run.out).unwrap().lines().count(), 1);
}

#[test]
fn a_head_in_two_stages_reads_what_is_planned() {
    let folder = Folder::new("two-stage");
    for (name, head, row) in [("Q2_K", "two-stage:100", 210), ("Q4_0", "two-stage", 210), ("Q4_0", "two-stage:16", 210)]
    {
        let model = vector(&format!("tiny512-untied/tiny512-untied-{name}.gguf"));
        let both = ["-m", &model, "--context", "64", "--head", head];
        let generate =
            [&["generate", "the tea", "-n", "20", "--json", "--top-k", "0", "--logits-hash"], &both[..]].concat();
        let plan = run(&[&["plan", "--json"], &both[..]].concat()).json();
        let last = run(&generate).lines().pop().unwrap();
        assert_eq!(
            (&plan["bytes_per_token"], &plan["head"].as_str().unwrap().starts_with(head)),
            (&last["bytes_per_token"], &true)
        );
        let exact = run(&["plan", "--json", "-m", &model, "--context", "64"]).json();
        let bytes = |plan: &Value, key: &str| plan[key].as_u64().unwrap();
        assert!(bytes(&plan, "bytes_per_token") < bytes(&exact, "bytes_per_token"));
        let candidates: u64 = plan["head"].as_str().unwrap().strip_prefix("two-stage:").unwrap().parse().unwrap();
        let draft = if name == "Q2_K" { 43_008 } else { 73_728 };
        assert_eq!(bytes(&plan, "head_bytes"), draft + candidates * row);
        // From a card, with guesses, and with the draft in memory: the same text and bits.
        for other in [&["--source", "file", "--buffer", "4KiB"][..], &["--lookup", "4"], &["--ram", "64KiB"]] {
            let mut lines = run(&[&generate[..], other].concat()).lines();
            assert_eq!(lines.pop().unwrap()["logits_hash"], last["logits_hash"], "{other:?}");
        }
        // Default controls fit default candidates.
        let memory = |verb: &[&str]| run(&[verb, &both[..], &["--json"]].concat());
        if head == "two-stage" {
            let last = memory(&["generate", "a", "-n", "2"]).lines().pop().unwrap();
            assert_eq!(last["arena_bytes"], memory(&["plan"]).json()["arena_bytes"]);
        } else if head == "two-stage:16" {
            memory(&["generate", "a", "-n", "2"]).fails(&["top_k is 50", "16 candidates", "at most 16"]);
        }

        let text = folder.file("text", "the tea and the cat in the hat, and ".repeat(9).as_bytes());
        let agreement = memory(&["head-agreement", "-f", &text]).json();
        for key in ["bytes_per_token", "head"] {
            assert_eq!(agreement[key], plan[key]);
        }
        assert_eq!(agreement["bytes_per_token_exact"], exact["bytes_per_token"]);
        let [tokens, likeliest, drawn] = ["tokens", "same_likeliest", "same_drawn"].map(|key| bytes(&agreement, key));
        assert!(tokens > 100 && likeliest <= tokens && drawn <= tokens, "{agreement}");
        assert!(likeliest * 10 > tokens * 9 && drawn * 10 > tokens * 4, "{agreement}");
        let shown = run(&["head-agreement", "-m", &model, "-f", &text, "--head", head]).ok();
        assert!(shown.contains("likeliest token the same") && shown.contains("times fewer"), "{shown}");
    }
    let text = folder.file("empty", b"");
    let untied = vector("tiny512-untied/tiny512-untied-Q2_K.gguf");
    for verb in [&["generate", "a"][..], &["plan"], &["head-agreement", "-f", &text]] {
        run(&[verb, &["--head", "two-stage"]].concat()).fails(&["the built-in model", "this file has one head"]);
        run(&[verb, &["--head", "two-stage:0"]].concat()).misuse(&["two-stage:K"]);
        run(&[verb, &["--head", "two-stage:400", "-m", &untied]].concat()).fails(&["127008 bytes", "107520"]);
    }
    run(&["head-agreement", "-m", &untied, "-f", &text]).fails(&["the text is empty"]);
    run(&["head-agreement", "-m", &untied, "-f", &text, "--head", "exact"]).fails(&["--head exact"]);
    run(&["head-agreement", "-m", &untied, "-f", &folder.path("none")]).fails(&["cannot read", "none"]);
}

#[test]
fn the_seed_makes_the_text() {
    let story = |seed: &str| run(&["generate", "Once upon a time", "-n", "40", "--seed", seed]).ok();
    assert_eq!(story("7"), story("7"));
    assert_ne!(story("7"), story("8"));
}

#[test]
fn a_prompt_comes_from_an_argument_a_file_or_stdin() {
    let folder = Folder::new("prompts");
    let argument = run(&["generate", "Once upon a time", "-n", "9"]).ok();
    let file = folder.file("prompt", b"Once upon a time");
    assert_eq!(run(&["generate", "--prompt-file", &file, "-n", "9"]).ok(), argument);
    assert_eq!(run_with_stdin(&["generate", "-", "-n", "9"], b"Once upon a time").ok(), argument);
    // Bytes that are no text are tokens all the same.
    let bytes = folder.file("bytes", b"caf\xe9 \xff\xc3");
    let lines = run(&["generate", "--prompt-file", &bytes, "-n", "2", "--json"]).lines();
    let ids = run_with_stdin(&["tokenize", "--json", "-"], b"caf\xe9 \xff\xc3").json();
    assert_eq!(lines.last().unwrap()["prompt_tokens"], ids.as_array().unwrap().len());
    run(&["generate", "x", "--prompt-file", &file]).misuse(&["cannot be used with"]);
    run(&["generate", "--prompt-file", &folder.path("none")]).fails(&["cannot read", "none", "No such file"]);
    run(&["generate", "--prompt-file", text(&folder.0)]).fails(&["cannot read", "directory"]);
}

#[test]
fn a_word_may_be_longer_than_a_board_could_split() {
    // One piece of 400 letters: a session of batch 1 has scratch for 256.
    let word = "na".repeat(200);
    assert!(run(&["generate", &word, "--batch", "1", "-n", "1"]).ok().ends_with('\n'));
}

#[test]
fn special_tokens_are_text_unless_asked_for() {
    let prompt_tokens = |args: &[&str]| {
        let args = [&["generate", "a<|endoftext|>b", "-n", "1", "--json"], args].concat();
        run(&args).lines().last().unwrap()["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(prompt_tokens(&["--special"]), 3);
    assert!(prompt_tokens(&[]) > 3);
    let ids = run(&["tokenize", "--special", "--json", "<|endoftext|>"]).ok();
    assert_eq!(run(&["tokenize", "--special", "--decode", &ids]).ok(), "<|endoftext|>");
    assert_eq!(run(&["tokenize", "--decode", &ids]).ok(), "");
}

#[test]
fn every_source_gives_the_same_text_for_the_bytes_that_inspect_tells() {
    for model in MODELS.map(vector) {
        let told = run(&["inspect", "-m", &model, "--json"]).json()["run"]["bytes_per_token"].as_u64().unwrap();
        let args = ["generate", "-m", &model, "the and", "-n", "12", "--stats", "--temperature", "2", "--logits-hash"];
        let mapped = run(&args);
        let from = |source| run(&[&args[..], &["--source", source, "--buffer", "32KiB"]].concat());
        let [read, alone] = [from("file"), from("file,no-prefetch")];
        let slow = from("throttled:900MB/s,latency=1us,chunk=16KiB");
        for run in [&mapped, &read, &alone, &slow] {
            assert!(run.err.contains(&format!("\nread per token  {told} bytes\n")), "{told} in {model}? {}", run.err);
        }
        let hash = |run: &Run| run.err.lines().last().unwrap().to_owned();
        assert!(slow.err.contains(" % of its bandwidth\n") && !read.err.contains("bandwidth"), "{}", slow.err);
        let (expected, text) = (hash(&mapped), mapped.ok());
        for run in [read, alone, slow] {
            assert_eq!(hash(&run), expected, "{model}");
            assert_eq!(run.ok(), text, "{model}");
        }
    }
}

#[test]
fn a_throttled_source_tells_its_share() {
    for model in [&["-m", &vector(MICRO)][..], &[]] {
        let throttled = ["generate", "a", "-n", "3", "--json", "--source", "throttled:2GB/s,no-prefetch"];
        let lines = run(&[&throttled[..], model].concat()).lines();
        let figure = |name: &str| lines.last().unwrap()[name].as_f64().unwrap();
        let share = figure("source_bytes_per_s") / 2e9;
        assert!(share > 0.0 && (figure("source_share") - share).abs() < 1e-9, "{share}");
    }
}

#[test]
fn the_batch_changes_no_bit() {
    let folder = Folder::new("batch");
    for model in MODELS.map(vector) {
        let text = |batch| run(&["generate", "-m", &model, "a cat and the dog", "-n", "8", "--batch", batch]).ok();
        assert_eq!(text("1"), text("32"), "{model}");
        let array = |batch| {
            let path = folder.path(batch);
            assert_eq!(run(&["logits", "-m", &model, "a cat and the dog", "--batch", batch, "-o", &path]).ok(), "");
            fs::read(path).unwrap()
        };
        assert!(array("1") == array("32"), "{model}");
    }
}

#[test]
fn logits_are_the_cores_in_a_numpy_file() {
    let folder = Folder::new("logits");
    for model in ["micro/micro-Q8_0.gguf", "tiny512/tiny512-Q4_K_M.gguf"] {
        let ids = token_ids(&vectors().join(model).with_file_name("ref/tokens.txt"));
        let list = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let path = folder.path("out.npy");
        for kv in ["f32", "q8_0"] {
            assert_eq!(run(&["logits", "-m", &vector(model), "--tokens", &list, "--kv", kv, "-o", &path]).ok(), "");
            let format = if kv == "f32" { KvFormat::F32 } else { KvFormat::Q8_0 };
            let file = fs::read(vector(model)).unwrap();
            let array = npy::read(Path::new(&path));
            assert_eq!(array.shape[0], ids.len());
            assert!(array.data == logits(&mut &file[..], &ids, 32, format).unwrap(), "{model} {kv}");
        }
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "the part of a file is left");
    }
}

#[test]
fn logits_show_the_ten_likeliest_tokens() {
    let rows = run(&["logits", "Once upon a", "--json"]).json();
    let rows = rows.as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["text"]), (10, &" time".into()));
    assert!(rows.is_sorted_by(|a, b| a["logit"].as_f64() >= b["logit"].as_f64()));
    let table = run(&["logits", "Once upon a"]).ok();
    assert_eq!((table.lines().count(), table.lines().nth(1).unwrap().contains("\" time\"")), (11, true));
    assert_eq!(run_with_stdin(&["logits", "-"], b"Once upon a").ok(), table);
    let ids = run(&["tokenize", "Once upon a", "--json"]).ok();
    assert_eq!(run(&["logits", "--tokens", &ids]).ok(), table);
}

#[test]
fn logits_say_what_they_cannot_do() {
    let folder = Folder::new("no-logits");
    run(&["logits"]).misuse(&["TEXT"]);
    run(&["logits", "a", "--tokens", "1"]).misuse(&["cannot be used with"]);
    run(&["logits", "a", "--json", "-o", "x"]).misuse(&["cannot be used with"]);
    run(&["logits", ""]).fails(&["the text is empty"]);
    run(&["logits", "--tokens", "1,x"]).fails(&["\"x\" is no token id"]);
    run(&["logits", "--tokens", ","]).fails(&["no token ids"]);
    run(&["logits", "--tokens", "1,4096"]).fails(&["token 4096", "vocabulary of 4096"]);
    run(&["logits", "--tokens", "1,2,3", "--context", "2"]).fails(&["3 tokens", "2 positions"]);
    run(&["logits", "a", "--context", "0"]).fails(&["--context 0", "1 to 512"]);
    run(&["logits", "a", "-o", &folder.path("none/x.npy")]).fails(&["cannot write", "none/x.npy", "No such file"]);
    run(&["logits", "a", "-o", text(&folder.0)]).fails(&["cannot write", "directory"]);
    // A run that fails leaves a file of that name as it was.
    let old = folder.file("old.npy", b"old");
    run(&["logits", "--tokens", "1,4096", "-o", &old]).fails(&["token 4096"]);
    assert_eq!(fs::read(&old).unwrap(), b"old");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
}

/// A model of the reference vectors with recorded hidden states and attention, and its tokens.
fn watched(name: &str) -> (String, String) {
    let file = if name == "micro" { "micro/micro-f32.gguf" } else { "hidden/synth-f32.gguf" };
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let tokens = fs::read_to_string(vectors.join(format!("hidden/{name}.tokens.txt"))).unwrap();
    (text(&vectors.join(file)).to_owned(), tokens)
}

fn recorded(name: &str) -> npy::Array {
    npy::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/hidden").join(name))
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The numbers in an array of arrays of any depth.
fn numbers(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        value => vec![value.as_f64().unwrap() as f32],
    }
}

#[test]
fn features_are_the_hidden_states_of_transformers() {
    let folder = Folder::new("features");
    let out = folder.path("out.npy");
    for name in ["micro", "synth"] {
        let (model, tokens) = watched(name);
        let args = ["features", "-m", &model, "--tokens", &tokens];
        let features = |more: &[&str]| {
            assert_eq!(run(&[&args[..], more, &["-o", &out]].concat()).ok(), "");
            npy::read(Path::new(&out))
        };
        let expected = recorded(&format!("{name}.hidden.npy"));
        let all = features(&["--layer", "all"]);
        assert_eq!(all.shape, expected.shape);
        assert!(largest_difference(&all.data, &expected.data) < 1e-3);

        let [layers, n, n_embd] = expected.shape[..] else { panic!("{:?}", expected.shape) };
        let layer = |i: usize| &all.data[i * n * n_embd..][..n * n_embd];
        for (asked, i) in [("0", 0), ("1", 1), ("-1", layers - 1), ("-2", layers - 2)] {
            let one = features(&["--layer", asked, "--batch", "3"]);
            assert_eq!((&one.shape[..], &one.data[..]), (&[n, n_embd][..], layer(i)), "{asked}");
        }
        assert!(features(&[]).data == layer(layers - 1), "the last one is the default");

        let last = features(&["--pool", "last"]);
        assert_eq!((&last.shape[..], &last.data[..]), (&[n_embd][..], &layer(layers - 1)[(n - 1) * n_embd..]));
        let mean = features(&["--pool", "mean", "--layer", "all"]);
        assert_eq!(mean.shape, [layers, n_embd]);
        for (i, found) in mean.data.iter().enumerate() {
            let column = layer(i / n_embd).iter().skip(i % n_embd).step_by(n_embd);
            assert!((found - column.sum::<f32>() / n as f32).abs() < 1e-4, "{i}");
        }

        // The same numbers, for scripts.
        for (more, array, depth) in [
            (&["--layer", "all"][..], &all, 3),
            (&["--pool", "last"], &last, 1),
            (&["--pool", "mean", "--layer", "all"], &mean, 2),
        ] {
            let json = run(&[&args[..], more, &["--json"]].concat()).json();
            assert!(numbers(&json["hidden"]) == array.data, "{more:?}");
            assert_eq!(json["tokens"].as_array().unwrap().len(), n);
            let inside = std::iter::successors(Some(&json["hidden"]), |value| value.get(0));
            assert_eq!(inside.count(), depth + 1);
        }
    }
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "the part of a file is left");
}

#[test]
fn features_show_a_line_a_token() {
    let table = run(&["features", "Once upon a"]).ok();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].ends_with("first of 256 values") && lines[2].contains("\" upon\""), "{table}");
    let folder = Folder::new("features-text");
    let file = folder.file("text", b"Once upon a");
    assert_eq!(run(&["features", "-f", &file]).ok(), table);
    assert_eq!(run_with_stdin(&["features", "-"], b"Once upon a").ok(), table);
    assert_eq!(run(&["features", "Once upon a", "--layer", "all", "--pool", "mean"]).ok().lines().count(), 1 + 5);
    let json = run(&["features", "\u{1f600}", "--json"]).json();
    assert_eq!(
        (&json["layers"], &json["pool"], &json["tokens"][0]["bytes"]),
        (&[4].as_slice().into(), &Value::Null, &true.into())
    );
}

#[test]
fn attention_is_that_of_transformers() {
    let folder = Folder::new("attention");
    let out = folder.path("out.npy");
    for name in ["micro", "synth"] {
        let (model, tokens) = watched(name);
        let args = ["attention", "-m", &model, "--tokens", &tokens];
        assert_eq!(run(&[&args[..], &["-o", &out]].concat()).ok(), "");
        let (found, expected) = (npy::read(Path::new(&out)), recorded(&format!("{name}.attention.npy")));
        assert_eq!(found.shape, expected.shape);
        assert!(largest_difference(&found.data, &expected.data) < 1e-4);
        let n = found.shape[3];
        for (i, row) in found.data.chunks_exact(n).enumerate() {
            let (seen, later) = row.split_at(i % n + 1);
            assert!((seen.iter().sum::<f32>() - 1.0).abs() < 1e-5 && later.iter().all(|&weight| weight == 0.0), "{i}");
        }
        let json = run(&[&args[..], &["--json"]].concat()).json();
        assert!(numbers(&json["attention"]) == found.data);
    }
}

#[test]
fn an_attention_page_has_it_all_inside() {
    let folder = Folder::new("attention-page");
    let out = folder.file("page.html", b"old");
    // A text that would end the page's script, in tokens of which some are no characters.
    let run = run(&["attention", "Once </script><!-- \u{1f600}", "-o", &out]);
    assert_eq!((run.code, &run.err[..]), (Some(0), &*format!("{out}: open it in a browser\n")));
    let page = fs::read_to_string(&out).unwrap();
    assert_eq!(page.matches("</script>").count(), 2, "the data's and the page's own");
    assert!(!page.contains("http://") && !page.contains("https://") && page.contains("default-src 'none'"));
    let (_, data) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    let data: Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    assert_eq!((&data["layers"], &data["heads"]), (&4.into(), &4.into()));
    let tokens = data["tokens"].as_array().unwrap();
    assert_eq!((&tokens[0]["text"], &tokens[0]["token"]), (&"Once".into(), &550.into()));
    assert!(tokens.last().unwrap()["text"].as_str().unwrap().starts_with("\\x"));
    let bytes = tokens.len() * (tokens.len() + 1);
    let weights = data["weights"].as_array().unwrap();
    assert_eq!(weights.len(), 16);
    assert!(weights.iter().all(|head| head.as_str().unwrap().len() == bytes.div_ceil(3) * 4));
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
}

#[test]
fn features_and_attention_say_what_they_cannot_do() {
    let folder = Folder::new("no-features");
    let page = folder.path("a.html");
    run(&["features"]).misuse(&["TEXT"]);
    run(&["features", "a", "-f", "b"]).misuse(&["cannot be used with"]);
    run(&["features", "a", "--json", "-o", "x"]).misuse(&["cannot be used with"]);
    run(&["features", "a", "--layer", "top"]).misuse(&["--layer", "a number, or all"]);
    run(&["features", "a", "--pool", "sum"]).misuse(&["--pool", "mean, last"]);
    run(&["features", "a", "--layer", "5"]).fails(&["--layer 5", "0 to 4"]);
    run(&["features", "a", "--layer", "-6"]).fails(&["--layer -6", "0 to 4"]);
    run(&["features", "a", "-f", "none"]).misuse(&["cannot be used with"]);
    run(&["features", "-f", &folder.path("none")]).fails(&["cannot read", "No such file"]);
    run(&["attention", "a"]).misuse(&["--output"]);
    run(&["attention", "a", "-o", "a.png"]).misuse(&["--output", ".html", ".npy"]);
    for args in [&["features"][..], &["attention", "-o", &page]] {
        let fails = |more: &[&str], words: &[&str]| run(&[args, more].concat()).fails(words);
        fails(&[""], &["the text is empty"]);
        fails(&["--tokens", "1,4096"], &["token 4096"]);
        fails(&["--tokens", "1,2,3", "--context", "2"], &["3 tokens", "2 positions"]);
        fails(&[&"cat ".repeat(513)], &["512 positions", "shorter text"]);
    }
    run(&["attention", "a", "-o", &folder.path("none/x.html")]).fails(&["cannot write", "none/x.html", "No such file"]);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    // A page that no browser would open is refused before the model runs.
    let wide = folder.path("wide.gguf");
    run(&["synth", "--shape", "24,32,64,1024,300", "--type", "Q4_0", "--tied", "-o", &wide]).ok();
    let tokens = "1 ".repeat(1000);
    run(&["attention", "-m", &wide, "--tokens", &tokens, "-o", &page]).fails(&[
        "1000 tokens",
        "MiB",
        "are the most",
        ".npy",
    ]);
    let run = run(&["attention", "a", "-o", text(&folder.0)]);
    run.misuse(&["--output"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_page_for_a_full_disk_is_an_error() {
    let folder = Folder::new("full-page");
    let full = folder.0.join("full.html");
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    run(&["attention", "a", "-o", text(&full)]).fails(&["cannot write", "full.html", "No space left"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_is_written_to_and_not_replaced() {
    // Through links: should this ever fail, no device is lost.
    let folder = Folder::new("devices");
    let link = |device: &str| {
        let path = folder.0.join(device);
        std::os::unix::fs::symlink(Path::new("/dev").join(device), &path).unwrap();
        path
    };
    let (full, null) = (link("full"), link("null"));
    for verb in ["logits", "features"] {
        run(&[verb, "a", "-o", text(&full)]).fails(&["cannot write", "No space left"]);
        assert_eq!(run(&[verb, "a", "-o", text(&null)]).ok(), "");
    }
    assert!(full.is_symlink() && null.is_symlink());
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);

    let full = |args: &[&str]| end(command(args).stdout(fs::File::create("/dev/full").unwrap()).spawn().unwrap());
    for args in [
        &["tokenize", "a"][..],
        &["inspect"],
        &["logits", "a"],
        &["features", "a"],
        &["features", "a", "--json"],
        &["attention", "a", "--json"],
    ] {
        full(args).fails(&["No space left"]);
    }
    let story = full(&["generate", "a", "-n", "2"]);
    let last = story.err.lines().last().unwrap();
    assert!(last.starts_with("error: cannot write to standard output: No space left"), "{last}");
    assert_eq!((story.code, story.err.lines().count()), (Some(1), 2));
}

#[test]
fn tokens_and_bytes_are_inverses() {
    let text: Vec<u8> = (0..=255).chain("  Grüße, 世界! 😀\r\n\t\0".bytes()).chain([0xff, 0xe2, 0x82]).collect();
    let vectors = [vector(MICRO), vector("tiny512/tiny512-Q8_0.gguf")];
    for model in [&[][..], &["-m", &vectors[0]], &["-m", &vectors[1]]] {
        let ids = run_with_stdin(&[&["tokenize", "--json", "-"], model].concat(), &text).ok();
        let back = run_with_stdin(&[&["tokenize", "--decode", "-"], model].concat(), ids.as_bytes());
        assert_eq!((back.code, &back.out), (Some(0), &text), "{}", back.err);
        let table = run_with_stdin(&[&["tokenize", "-"], model].concat(), &text).ok();
        assert_eq!(table.lines().count(), serde_json::from_str::<Vec<u32>>(&ids).unwrap().len());
    }
    assert_eq!(
        run(&["tokenize", "Once upon", "a time", "--json"]).ok(),
        run(&["tokenize", "Once upon a time", "--json"]).ok()
    );
    assert_eq!(run(&["tokenize", "--json", ""]).ok(), "[]\n");
    assert_eq!(run(&["tokenize", "--decode", "550", "503", "258"]).ok(), "Once upon a");
    assert_eq!(run(&["tokenize", "é"]).ok(), "127\tb\"\\xc3\"\n102\tb\"\\xa9\"\n");
    run(&["tokenize"]).misuse(&["<TEXT>"]);
    run(&["tokenize", "--decode", "4096"]).fails(&["no token 4096", "4096"]);
    run(&["tokenize", "--decode", "1 -"]).fails(&["\"-\" is no token id"]);
    run_with_stdin(&["tokenize", "--decode", "-"], b"1 \xff").fails(&["no text"]);
}

#[test]
fn inspect_adds_up() {
    for model in MODELS.map(vector) {
        let report = run(&["inspect", "-m", &model, "--json"]).json();
        let (tensors, number) = (report["tensors"].as_array().unwrap(), |value: &Value| value.as_u64().unwrap());
        let mut end = number(&tensors[0]["offset"]);
        for tensor in tensors {
            assert_eq!(end.next_multiple_of(number(&report["alignment"])), number(&tensor["offset"]), "{tensor}");
            end = number(&tensor["offset"]) + number(&tensor["bytes"]);
        }
        assert!(end <= number(&report["file_bytes"]));
        assert_eq!(number(&report["file_bytes"]), fs::metadata(&model).unwrap().len());
        let sum = |names: &dyn Fn(&str) -> bool| {
            let of_these = tensors.iter().filter(|tensor| names(tensor["name"].as_str().unwrap()));
            of_these.map(|tensor| number(&tensor["bytes"])).sum::<u64>()
        };
        let types = report["types"].as_object().unwrap().values();
        assert_eq!(types.map(|total| number(&total["bytes"])).sum::<u64>(), sum(&|_| true));

        let run = &report["run"];
        assert_eq!(
            number(&run["block_bytes"]),
            sum(&|name| name.starts_with("blk.") || name.starts_with("output_norm."))
        );
        let head = if run["tied"] == true { "token_embd.weight" } else { "output.weight" };
        assert_eq!(number(&run["head_bytes"]), sum(&|name| name == head));
        let parts = ["block_bytes", "head_bytes", "embedding_bytes"].map(|part| number(&run[part]));
        assert_eq!(number(&run["bytes_per_token"]), parts.iter().sum::<u64>());
    }
}

#[test]
fn inspect_plans_what_generate_takes() {
    let model = vector("tiny512/tiny512-Q8_0.gguf");
    let report = run(&["inspect", "-m", &model, "--json"]).json();
    for plan in report["run"]["plans"].as_array().unwrap() {
        let (context, kv) = (plan["context"].to_string(), plan["kv"].as_str().unwrap());
        let args =
            ["generate", "-m", &model, "a", "-n", "1", "--json", "--batch", "1", "--context", &context, "--kv", kv];
        assert_eq!(run(&args).lines().last().unwrap()["arena_bytes"], plan["arena_bytes"]);
    }
}

#[test]
fn planned_bytes_are_used_bytes() {
    for model in MODELS.map(vector) {
        for (context, batch, kv) in [("1", "1", "f32"), ("17", "4", "f16"), ("32", "32", "q8_0")] {
            let memory = ["-m", &model, "--context", context, "--batch", batch, "--kv", kv, "--json"];
            let plan = run(&[&["plan", "--buffer", "2KiB"], &memory[..]].concat()).json();
            let lines = run(&[&["generate", "a", "-n", "1", "--source", "file"], &memory[..]].concat()).lines();
            let summary = lines.last().unwrap();
            assert_eq!(summary["arena_bytes"], plan["arena_bytes"], "{model}, {context}, {batch}, {kv}");
            let number = |value: &Value| value.as_u64().unwrap();
            let regions = plan["regions"].as_object().unwrap().values();
            assert_eq!(regions.map(number).sum::<u64>(), number(&plan["arena_bytes"]));
            assert_eq!(number(&plan["total_bytes"]), number(&plan["arena_bytes"]) + 2 * 2048);
        }
    }
}

#[test]
fn planned_beams_are_used_beams() {
    for model in MODELS.map(vector) {
        for (beams, new, context, kv) in [("2", "3", "17", "f32"), ("5", "9", "32", "q8_0")] {
            let both = ["-m", &model, "--num-beams", beams, "-n", new, "--context", context, "--kv", kv, "--json"];
            let plan = run(&[&["plan", "--buffer", "0"], &both[..]].concat()).json();
            let summary = run(&[&["generate", "a"], &both[..]].concat()).lines().pop().unwrap();
            assert_eq!(summary["arena_bytes"], plan["arena_bytes"], "{model}, {beams} beams");
            let regions = plan["regions"].as_object().unwrap().values();
            assert_eq!(regions.map(|bytes| bytes.as_u64().unwrap()).sum::<u64>(), plan["arena_bytes"]);
        }
    }
    let search = ["plan", "--num-beams", "4", "-n", "8", "--batch", "1", "--buffer", "4KiB", "--ram", "600KiB"];
    let largest = run(&[&search[..], &["--json"]].concat()).json();
    let context = largest["context"].as_u64().unwrap();
    assert!(largest["total_bytes"].as_u64().unwrap() <= 600 << 10, "{largest}");
    assert!(context < largest["n_ctx"].as_u64().unwrap(), "{largest}");
    let more = run(&[&search[..], &["--context", &(context + 1).to_string()]].concat());
    assert!(more.code == Some(1) && more.err.ends_with(&format!("--context {context} fits\n")), "{more:?}");
    run(&[&search[..], &["--num-return-sequences", "2"]].concat()).misuse(&["--num-beams"]);
}

#[test]
fn a_plan_finds_the_largest_context() {
    let model = vector("tiny512/tiny512-Q8_0.gguf");
    let plan = |args: &[&str]| run(&[&["plan", "-m", &model, "--ram", "200KiB", "--buffer", "4KiB"], args].concat());
    let largest = plan(&["--batch", "1", "--json"]).json();
    let context = largest["context"].as_u64().unwrap();
    assert!(context > 1 && context < largest["n_ctx"].as_u64().unwrap(), "{largest}");
    assert_eq!(largest["limit"]["largest_context"], context);
    assert!(largest["total_bytes"].as_u64().unwrap() <= 200 << 10);
    assert_eq!(plan(&["--batch", "1", "--context", &context.to_string(), "--json"]).json(), largest);

    let more = plan(&["--batch", "1", "--context", &(context + 1).to_string()]);
    assert_eq!(more.code, Some(1), "{more:?}");
    assert!(
        more.err.ends_with(&format!(" bytes are needed, 204800 are there: --context {context} fits\n")),
        "{more:?}"
    );
    assert!(String::from_utf8(more.out).unwrap().contains("it does not fit"), "the plan is shown");
    let small = |args: &[&str]| run(&[&["plan", "-m", &model, "--ram", "28KiB", "--buffer", "4KiB"], args].concat());
    assert_eq!(small(&["--json"]).json()["batch"], 1, "a batch of 32 fits with no context");
    let none = small(&["--context", "32"]);
    assert!(none.code == Some(1) && none.err.contains("no context fits: try --batch 1"), "{}", none.err);
    let none = run(&["plan", "-m", &model, "--ram", "20KiB", "--buffer", "4KiB"]);
    assert!(none.code == Some(1) && none.err.contains("no context fits: try --kv q4_0"), "{}", none.err);
}

/// What a plan says that memory left over keeps is what `generate --ram` keeps in it, and what a token reads then.
#[test]
fn planned_weights_are_kept_weights() {
    let number = |value: &Value| value.as_u64().unwrap();
    for model in MODELS.map(vector) {
        let untied = model.contains("untied");
        let memory = ["-m", &model, "--context", "16", "--batch", "4", "--buffer", "4KiB", "--json"];
        let planned = |ram: u64| {
            let ram = ["--ram", &ram.to_string(), "--bandwidth", "1MB/s"].map(str::to_owned);
            run(&[&["plan"], &memory[..], &ram.each_ref().map(|word| &word[..])].concat()).json()
        };
        let total = number(&planned(1 << 30)["total_bytes"]);
        let weights = number(&planned(1 << 30)["resident"]["resident_bytes"]);
        assert!(planned(total)["resident"].is_null(), "nothing is left over");
        for percent in [1, 10, 33, 50, 90, 99, 100, 500] {
            let plan = planned(total + weights * percent / 100);
            let resident = &plan["resident"];
            assert_eq!(number(&resident["ram_bytes"]), weights * percent / 100);
            let ram = resident["ram_bytes"].to_string();
            let args = ["generate", "a", "-n", "6", "--temperature", "0", "--source", "file", "--ram", &ram];
            let lines = run(&[&args[..], &memory].concat()).lines();
            let used = lines.last().unwrap();
            let kept = used["resident_bytes"].as_u64().unwrap_or(0);
            assert_eq!(number(&resident["resident_bytes"]), kept, "{model}, {percent} %");
            // A row of a tied embedding may lie in the part of the head that is kept.
            let (most, read) = (number(&resident["bytes_per_token"]), number(&used["bytes_per_token"]));
            let row = if untied { 0 } else { number(&plan["embedding_bytes"]) };
            assert!((most - row..=most).contains(&read), "{model}, {percent} %: {read} of {most}");
            let per_s = resident["tokens_per_s"].as_f64().unwrap();
            assert!((per_s - 1e6 / most as f64).abs() < 1e-6, "{per_s}");
            let rows = resident["tensors"].as_array().unwrap();
            assert!(rows.iter().all(|kept| number(&kept["rows"]) <= number(&kept["of"])), "{rows:?}");
            assert!(rows.is_empty() || rows[0]["tensor"] == if untied { "output.weight" } else { "token_embd.weight" });
        }
    }
    let table = run(&["plan", "--context", "64", "--ram", "3MiB", "--bandwidth", "2MB/s"]).ok();
    for part in [
        "left over, for `generate --ram`",
        "token_embd.weight and ",
        " of 1024 rows of ",
        "a token, with the weights that are kept",
    ] {
        assert!(table.contains(part), "no {part} in {table}");
    }
}

#[test]
fn a_plan_tells_what_storage_allows() {
    let model = vector(MICRO);
    let plan = run(&["plan", "-m", &model, "--batch", "8", "--bandwidth", "1MB/s", "--json"]).json();
    let told = run(&["inspect", "-m", &model, "--json"]).json()["run"]["bytes_per_token"].as_f64().unwrap();
    assert_eq!(plan["bytes_per_token"].as_f64(), Some(told));
    assert!((plan["storage"]["tokens_per_s"].as_f64().unwrap() - 1e6 / told).abs() < 1e-9);
    let prompt = &plan["prompt"];
    assert_eq!(
        (&prompt["tokens"], &prompt["block_passes"], &prompt["head_passes"]),
        (&32.into(), &4.into(), &1.into())
    );
    let table = run(&["plan"]).ok();
    for part in
        ["the built-in model: context 512 of 512, batch 32, kv f32\n", "keys and values", "a prompt of 32 tokens"]
    {
        assert!(table.contains(part), "no {part} in {table}");
    }
    assert!(!table.contains("Storage"), "{table}");
}

#[test]
fn a_plan_knows_boards() {
    let model = vector(MICRO);
    for board in gptrickle::board::BOARDS {
        let small = ["plan", "-m", &model, "--board", board.name];
        let table = run(&small).ok();
        assert!(table.contains("it fits") && table.contains("\nStorage"), "{table}");
        let json = run(&[&small[..], &["--json"]].concat()).json();
        assert!(json["board"].is_string() && json["limit"]["fits"] == true, "{json}");
        if let (Some(bandwidth), u64::MAX) = (board.bandwidth, board.largest_file) {
            let found = gptrickle::board::Board::find(board.name, board.largest_file).unwrap();
            assert_eq!((found.name, found.bandwidth), (board.name, Some(bandwidth)));
        }
    }
    let replaced = run(&[
        "plan",
        "-m",
        &model,
        "--board",
        "esp32-p4-function-ev",
        "--bandwidth",
        "2MB/s",
        "--ram",
        "1MiB",
        "--json",
    ])
    .json();
    assert_eq!(
        (&replaced["storage"]["bytes_per_s"], &replaced["storage"]["basis"]),
        (&2_000_000.into(), &"as told".into())
    );
    assert_eq!(replaced["limit"]["ram_bytes"], 1 << 20);
    let too_long = gptrickle::board::Board::find("stm32n6570-dk", 200 << 20).unwrap_err();
    assert!(too_long.contains("holds files of up to 134217720 bytes, this one has 209715200"), "{too_long}");

    for (args, words) in [
        (&["--board", "toaster"][..], &["toaster", "esp32-p4-function-ev"][..]),
        (&["--bandwidth", "23"], &["bandwidth such as 23MB/s"]),
        (&["--ram", "lots"], &["--ram", "64KiB"]),
        (&["--buffer", "5"], &["--buffer", "at least 64"]),
        (&["--batch", "0"], &["--batch"]),
    ] {
        run(&[&["plan"], args].concat()).misuse(words);
    }
    run(&["plan", "--prompt-tokens", "0"]).fails(&["--prompt-tokens 0", "1 to 512"]);
    run(&["plan", "--context", "8", "--prompt-tokens", "9"]).fails(&["--prompt-tokens 9", "1 to 8"]);
    run(&["plan", "--context", "0"]).fails(&["--context 0"]);
    let model = vector("tiny512/tiny512-Q8_0.gguf");
    run(&["plan", "-m", &model, "--buffer", "64"]).fails(&["longest row", "use --buffer"]);

    // What is read in whole blocks is lent in less.
    let row = run(&["inspect", "-m", &model, "--json"]).json()["run"]["longest_row_bytes"].as_u64().unwrap();
    let board = |board, buffer: u64| run(&["plan", "-m", &model, "--board", board, "--buffer", &buffer.to_string()]);
    let needed = (row + 511).next_multiple_of(512);
    for buffer in [row, row + 510, needed - 1] {
        board("esp32-p4-function-ev", buffer).fails(&["longest row", &format!("use --buffer {needed} or more")]);
    }
    board("esp32-p4-function-ev", needed).ok();
    board("mps2-an500", row).ok();
}

#[test]
fn inspect_shows_any_gguf_file_to_people() {
    let folder = Folder::new("inspect");
    let table = run(&["inspect"]).ok();
    for part in ["general.architecture", "\"gpt2\"", "token_embd.weight", "Read per token: ", "Longest row: "] {
        assert!(table.contains(part), "no {part} in {table}");
    }
    let llama = Writer::new().entry("general.architecture", "llama").tensor("w", &[2], 0, [0; 8]).finish();
    let llama = folder.file("llama.gguf", &llama);
    let table = run(&["inspect", "-m", &llama]).ok();
    assert!(table.contains("\"llama\"") && table.contains("\nCannot be run: "), "{table}");
    let report = run(&["inspect", "-m", &llama, "--json"]).json();
    assert!(report["error"].is_string() && report.get("run").is_none());
}

#[test]
fn a_file_that_is_no_model_is_named() {
    let folder = Folder::new("models");
    let good = fs::read(vector(MICRO)).unwrap();
    let patched = |name: &str, tensor: &str, kind: u32| {
        let (mut file, at) = (good.clone(), type_at(&good, tensor));
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        folder.file(name, &file)
    };
    let llama = Writer::new().entry("general.architecture", "llama").tensor("w", &[2], 0, [0; 8]).finish();
    let mut version = good.clone();
    version[4] = 1;
    let cases: &[(String, &[&str])] = &[
        (folder.path("none"), &["cannot open", "none", "No such file"]),
        (text(&folder.0).to_owned(), &["is a directory", "name a .gguf file"]),
        (folder.file("empty", b""), &["is empty", "again"]),
        (folder.file("header", &good[..1000]), &["header", "truncated", "copy it again"]),
        (folder.file("tensors", &good[..60000]), &["tensors", "truncated", "copy it again"]),
        (folder.file("but-one", &good[..good.len() - 1]), &["but-one", "truncated", "copy it again"]),
        (folder.file("page", b"<!DOCTYPE html>"), &["page", "not a GGUF file", "\"<!DO\""]),
        (folder.file("two", b"GG"), &["two", "truncated"]),
        (folder.file("version", &version), &["GGUF version 1", "convert"]),
        (folder.file("llama", &llama), &["llama", "architecture \"llama\"", "pick a GPT-2 model"]),
        (patched("unknown", "token_embd.weight", 99), &["token_embd.weight", "type id 99", "quantise"]),
        (patched("matrix", "position_embd.weight", 26), &["position_embd.weight", "type I32"]),
        (patched("vector", "blk.0.attn_norm.bias", 26), &["blk.0.attn_norm.bias", "type I32", "F32, F16 or BF16"]),
    ];
    for (path, words) in cases {
        for verb in [&["generate", "x"][..], &["tokenize", "x"], &["logits", "x"]] {
            for source in ["mmap", "file"] {
                run(&[verb, &["-m", path, "--source", source]].concat()).fails(words);
            }
        }
    }
    #[cfg(unix)]
    run(&["generate", "x", "-m", "/dev/zero"]).fails(&["/dev/zero is no file", "copy"]);
    for path in ["empty", "header", "tensors", "page", "unknown"].map(|name| folder.path(name)) {
        run(&["inspect", "--json", "-m", &path]).fails(&[&path]);
    }
}

#[test]
fn bench_tells_figures_of_both_phases_and_of_memory() {
    let model = vector("tiny512/tiny512-Q4_K_M.gguf");
    let bench = ["bench", "-m", &model, "--prompt", "9", "--decode", "4", "--repeat", "2"];
    let report = run(&[&bench[..], &["--batch", "8", "--probe", "1MiB", "--json"]].concat()).json();
    let positive = |value: &Value| assert!(value.as_f64().unwrap() > 0.0, "{report}");
    for (phase, tokens) in [("prefill", 9), ("decode", 4)] {
        let phase = &report[phase];
        assert_eq!(phase["tokens"], tokens);
        for figure in ["tokens_per_s", "bytes", "bytes_per_s", "macs", "macs_per_s"] {
            positive(&phase[figure]);
        }
        let [min, median, max] = ["min", "median", "max"].map(|name| phase["seconds"][name].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{report}");
    }
    // Two batches for the prompt, one pass a token: the same bytes that inspect tells.
    let inspected = run(&["inspect", "-m", &model, "--json"]).json();
    let [blocks, head, token] =
        ["block_bytes", "head_bytes", "bytes_per_token"].map(|name| inspected["run"][name].as_u64().unwrap());
    let [prefill, decode] = ["prefill", "decode"].map(|phase| report[phase]["bytes"].as_u64().unwrap());
    assert!(decode > 4 * (blocks + head) && decode <= 4 * token, "{report}");
    assert!(prefill > 2 * blocks + head && prefill < 2 * token, "{report}");
    for figure in ["first_token_s", "arena_bytes"] {
        positive(&report[figure]);
    }
    if cfg!(target_os = "linux") {
        positive(&report["peak_rss_bytes"]);
    }
    assert_eq!(report["memory"]["probe_bytes"], 1 << 20);
    positive(&report["memory"]["decode_share"]);

    let table = run(&[&bench[..], &["--probe", "0"]].concat()).ok();
    assert!(table.contains("prefill") && table.contains("decode") && !table.contains("memory gives"), "{table}");
    run(&["bench", "-m", &model]).fails(&["do not fit into a context of", "use a smaller --prompt"]);
    run(&["bench", "--repeat", "0"]).misuse(&["--repeat"]);
}

#[test]
fn a_buffer_must_hold_a_row() {
    let model = vector("tiny512/tiny512-Q8_0.gguf");
    let needed = run(&["inspect", "-m", &model, "--json"]).json()["run"]["longest_row_bytes"].as_u64().unwrap();
    let with = |size: &str| run(&["generate", "-m", &model, "a", "-n", "4", "--source", "file", "--buffer", size]);
    with(&(needed - 1).to_string()).fails(&[&format!("use --buffer {needed}")]);
    assert_eq!(with(&needed.to_string()).ok(), with("1GiB").ok());
    // No more than the file is ever held.
    assert_eq!(with("8EiB").ok(), with("1GiB").ok());
    with("63").misuse(&["--buffer", "at least 64"]);
    with("many").misuse(&["--buffer", "64KiB"]);
    run(&["generate", "a", "--source", "file"]).misuse(&["--model <FILE>"]);
}

#[test]
fn what_is_asked_must_be_possible() {
    let generate = |args: &[&str]| run(&[&["generate", "Once upon a time"], args].concat());
    generate(&["--context", "0"]).fails(&["--context 0", "1 to 512"]);
    generate(&["--context", "513"]).fails(&["--context 513", "1 to 512"]);
    generate(&["--context", "18446744073709551615"]).fails(&["1 to 512"]);
    generate(&["--context", "3"]).fails(&["4 tokens", "3 positions", "larger context or a shorter text"]);
    run_with_stdin(&["generate", "-"], "many words ".repeat(600).as_bytes()).fails(&["512 positions", "shorter"]);

    let long = "x".repeat(65);
    for (args, words) in [
        (&["--kv", "q4"][..], &["--kv", "f32, f16, q8_0"][..]),
        (&["--source", "card"], &["--source", "mmap, file, or such as throttled:23MB/s"]),
        (&["--source", "mmap,no-prefetch"], &["--source", "mmap, file, or such as throttled:23MB/s"]),
        (&["--source", "file,no-prefetch"], &["--model <FILE>"]),
        (&["--source", "throttled:"], &["--source", "bandwidth such as 23MB/s"]),
        (&["--source", "throttled:fast"], &["\"fast\" must be a bandwidth such as 23MB/s"]),
        (&["--source", "throttled:0B/s"], &["bandwidth such as 23MB/s"]),
        (&["--source", "throttled:23MB/s,latency=5"], &["latency=5 must be a time such as 200us"]),
        (&["--source", "throttled:23MB/s,chunk=0"], &["chunk=0 must be a size such as 32KiB"]),
        (&["--source", "throttled:23MB/s,size=4"], &["\"size=4\" is not latency=TIME or chunk=SIZE"]),
        (&["--top-p", "2"], &["--top-p", "above 0 and at most 1"]),
        (&["--top-p", "0"], &["--top-p", "above 0 and at most 1"]),
        (&["--min-p", "1.5"], &["--min-p", "0 to 1"]),
        (&["--temperature", "-1"], &["--temperature", "it must be 0 to"]),
        (&["--temperature", "nan"], &["--temperature", "it must be 0 to"]),
        (&["--temperature", "hot"], &["--temperature", "must be a number"]),
        (&["--repetition-penalty", "0"], &["--repetition-penalty", "above 0"]),
        (&["--stop", ""], &["--stop", "1 to 64"]),
        (&["--stop", &long], &["--stop", "1 to 64"]),
        (&["--batch", "0"], &["--batch", "1..="]),
        (&["--lookup", "256"], &["--lookup", "0..=255"]),
        (&["--overflow", "slide"], &["--overflow", "stop, or slide:KEEP"]),
        (&["--overflow", "slide:-1"], &["--overflow", "stop, or slide:KEEP"]),
        (&["-n", "-1"], &["-1"]),
        (&["--seed", "x"], &["--seed"]),
        (&["--no-such-flag"], &["--no-such-flag"]),
        (&["another prompt"], &["another prompt"]),
    ] {
        generate(args).misuse(words);
    }
    run(&["sing"]).misuse(&["sing"]);
    assert_eq!(run(&[]).code, Some(2));
}

#[cfg(unix)]
#[test]
fn an_argument_that_is_no_text_misuse() {
    use std::os::unix::ffi::OsStrExt;
    let mut command = command(&["generate"]);
    end(command.arg(std::ffi::OsStr::from_bytes(b"\xff")).spawn().unwrap()).misuse(&["UTF-8"]);
}

/// Ctrl-C.
#[cfg(unix)]
fn interrupt(child: &Child) {
    let status = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn text_streams_and_ctrl_c_ends_it() {
    // Seed and controls of a text that goes on until the context is full.
    let folder = Folder::new("interrupted");
    let saved = folder.path("a.session");
    let args = ["generate", "Once upon a time", "--top-k", "0", "--temperature", "3", "-n", "500", "--stats"];
    let args = [&args[..], &["--save", &saved]].concat();
    let mut child = command(&args).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0];
    stdout.read_exact(&mut first).unwrap();
    interrupt(&child);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let run = end(child);
    assert_eq!(run.code, Some(130), "{}", run.err);
    assert!(rest.ends_with('\n'), "{rest}");
    assert!(run.err.contains("stop            interrupted\n") && run.err.contains("read per token  "), "{}", run.err);
    let next = self::run(&["generate", "--resume", &saved, "-n", "3", "--json"]).lines();
    assert_eq!((next.len(), &next[3]["stop"]), (4, &"max_tokens".into()));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_long_prompt() {
    let folder = Folder::new("long-prompt");
    let prompt = folder.file("prompt", "Once upon a time there was a cat. ".repeat(50).as_bytes());
    let args = ["generate", "--prompt-file", &prompt, "--batch", "1", "-n", "500", "--stats"];
    let mut child = command(&args).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut rest = String::new();
    stderr.read_line(&mut rest).unwrap();
    interrupt(&child);
    stderr.read_to_string(&mut rest).unwrap();
    let run = end(child);
    assert_eq!((run.code, &run.out[..]), (Some(130), &b"\n"[..]), "{rest}");
    assert!(rest.contains("stop            interrupted\n") && rest.contains("new             0 tokens"), "{rest}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_half_written_array() {
    let folder = Folder::new("interrupted-array");
    let path = folder.file("a.npy", b"old");
    let words = "Once upon a time there was a cat. ".repeat(50);
    // As slow as it takes for the signal to come before the end.
    let slow = ["--batch", "1", "--source", "throttled:20MB/s"];
    for verb in ["logits", "features", "attention"] {
        let child = command(&[&[verb, &words, "-o", &path], &slow[..]].concat()).spawn().unwrap();
        let part = format!("{path}.part");
        while !Path::new(&part).exists() {
            std::thread::yield_now();
        }
        interrupt(&child);
        let run = end(child);
        assert_eq!((run.code, &run.out[..]), (Some(130), &b""[..]), "{}", run.err);
        assert_eq!(run.err, format!("interrupted: {path} was not written\n"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert!(!Path::new(&part).exists());
    }
}

#[test]
fn who_has_seen_enough_hears_of_no_error() {
    let mut child = command(&["generate", "Once upon a time", "--top-k", "0", "--temperature", "3"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let run = end(child);
    assert_eq!((run.code, run.err.lines().count()), (Some(0), 1), "{}", run.err);

    // Nor does the text suffer when nobody takes the rest.
    let mut child = command(&["generate", "Once upon a time", "-n", "9", "--stats"]).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(end(child).ok(), self::run(&["generate", "Once upon a time", "-n", "9"]).ok());
}
