//! The crate as a library: the same texts as on the command line.

use std::process::Command;
use std::sync::mpsc;

use gptrickle::{Model, Params, StopReason};

/// What the command line makes of these arguments.
fn typed(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_gptrickle")).arg("generate").args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_text_is_that_of_the_command_line() {
    let mut model = Model::demo().unwrap();
    // It ends by itself, and its line feed is the command line's own.
    let all_defaults = model.generate("Once upon a time").text().unwrap();
    assert_eq!(all_defaults.trim_end(), typed(&["Once upon a time"]).trim_end());

    let params = Params { temperature: 0.7, top_k: 0, top_p: 0.9, ..Params::default() };
    let short = model.generate("The cat").sampling(params).seed(7).max_new_tokens(20).context(64).text().unwrap();
    let args = ["The cat", "--temperature", "0.7", "--top-k", "0", "--top-p", "0.9", "--seed", "7", "-n", "20"];
    assert_eq!(short.trim_end(), typed(&args).trim_end());
}

#[test]
fn a_text_streams_and_says_why_it_ends() {
    let mut model = Model::demo().unwrap();
    let whole = model.generate("Once upon a time").max_new_tokens(30).text().unwrap();
    let mut parts = Vec::new();
    let reason =
        model.generate("Once upon a time").max_new_tokens(30).stream(|part| parts.push(part.to_owned())).unwrap();
    assert_eq!((reason, parts.concat()), (StopReason::MaxTokens, whole.clone()));
    assert!(parts.len() > 20, "{parts:?}");

    let (to, from) = mpsc::channel();
    let word = whole.split_whitespace().nth(4).unwrap();
    let reason =
        model.generate("Once upon a time").stop(word).stream(move |part| to.send(part.to_owned()).unwrap()).unwrap();
    assert_eq!(reason, StopReason::StopString);
    assert_eq!(from.iter().collect::<String>(), whole.split_once(word).unwrap().0);

    let context = model.generate("Once upon a time").context(10).stream(|_| ()).unwrap();
    assert_eq!(context, StopReason::Context);
}

#[test]
fn what_cannot_be_is_said() {
    let said = |error: anyhow::Error| format!("{error:#}");
    assert!(said(Model::open("none.gguf").unwrap_err()).contains("cannot open none.gguf"));
    let folder = env!("CARGO_MANIFEST_DIR");
    assert!(said(Model::open(folder).unwrap_err()).contains("is a directory"));
    let no_model = format!("{folder}/Cargo.toml");
    assert!(said(Model::open(&no_model).unwrap_err()).starts_with(&no_model));
    let mut model = Model::demo().unwrap();
    assert!(said(model.generate("a").context(513).text().unwrap_err()).contains("512"));
    assert!(said(model.generate("Once upon a time").context(3).text().unwrap_err()).contains("3 positions"));
    assert!(said(model.generate("a").stop("").text().unwrap_err()).contains("stop"));
    let wild = Params { temperature: -1.0, ..Params::default() };
    assert!(said(model.generate("a").sampling(wild).text().unwrap_err()).contains("temperature is -1"));
    assert!(!model.generate("").max_new_tokens(5).text().unwrap().is_empty(), "the model begins");
}
