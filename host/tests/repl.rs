//! `gptrickle repl` at a terminal: what somebody types, and what they see.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rexpect::session::{PtySession, spawn_command};

/// Longer than any of it takes on a busy machine, in ms.
const PATIENCE: u64 = 60_000;
/// So slow that a text is being made for as long as it takes to interrupt it, some 20 tokens/s.
const SLOW: [&str; 2] = ["--source", "throttled:60MB/s"];

/// A folder for a user's data, empty, and removed with the test.
struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Home {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Home(path)
    }

    fn repl(&self, args: &[&str]) -> PtySession {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gptrickle"));
        command.arg("repl").args(args).current_dir(&self.0);
        command.env("HOME", &self.0).env("XDG_DATA_HOME", &self.0).env("TERM", "xterm").env_remove("NO_COLOR");
        let mut session = spawn_command(command, Some(PATIENCE)).unwrap();
        ready(&mut session);
        session
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The text that `generate` makes.
fn generated(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_gptrickle")).arg("generate").args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Sees that a line can be typed: before, the terminal would take Ctrl-C and Ctrl-D for itself.
fn ready(session: &mut PtySession) {
    session.exp_string("\x1b[?2004h").unwrap();
    session.exp_string("> ").unwrap();
}

/// Types a line, and sees the answer and that another can be typed.
fn line(session: &mut PtySession, typed: &str, answer: &str) {
    session.send_line(typed).unwrap();
    session.exp_string(answer).unwrap();
    ready(session);
}

/// Types a prompt, and sees it again with its continuation.
fn tell(session: &mut PtySession, prompt: &str, continuation: &str) {
    line(session, prompt, &format!("\x1b[1m{prompt}\x1b[0m{}", continuation.replace('\n', "\r\n")));
}

/// Sees it leave, in peace.
fn ends(session: &mut PtySession) {
    session.exp_eof().unwrap();
    // Which has a name only in another crate.
    let status = format!("{:?}", session.process().wait().unwrap());
    assert!(status.starts_with("Exited(") && status.ends_with(", 0)"), "{status}");
}

#[test]
fn a_prompt_streams_a_setting_counts_ctrl_c_ends_the_text_and_quit_leaves() {
    let home = Home::new("repl-session");
    let mut session = home.repl(&[&SLOW[..], &["-n", "16", "--temperature", "0"]].concat());
    let session = &mut session;
    let greedy = generated(&["Once upon a time", "-n", "16", "--temperature", "0"]);
    tell(session, "Once upon a time", &greedy);
    line(session, ":stats", "new             16 tokens");

    line(session, ":set temperature 1.3", "");
    line(session, ":seed 9", "");
    let warmer = generated(&["Once upon a time", "-n", "16", "--temperature", "1.3", "--seed", "9"]);
    assert_ne!(warmer, greedy);
    tell(session, "Once upon a time", &warmer);
    line(session, ":set temprature 1", "error: no setting temprature; there are temperature");

    line(session, ":set temperature 3", "");
    line(session, ":max 500", "");
    session.send_line("The cat").unwrap();
    session.exp_string("\x1b[1mThe cat\x1b[0m").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("interrupted").unwrap();
    ready(session);

    // A line that was begun is thrown away, and the next one is its own.
    session.send("half a prompt").unwrap();
    session.send_control('c').unwrap();
    line(session, ":stats", "stop            interrupted");
    // The text goes on from where it was stopped, once it has been kept.
    line(session, ":save cat.session", "");
    line(session, ":max 2", "");
    line(session, ":load cat.session", "GPT-2, ");
    line(session, ":stats", "new             2 tokens");
    session.send_line(":quit").unwrap();
    ends(session);
}

#[test]
fn lines_are_remembered_unless_not_wanted() {
    let home = Home::new("repl-history");
    let history = home.0.join("gptrickle/history");
    let mut session = home.repl(&["--no-history"]);
    line(&mut session, ":seed 1", "");
    session.send_control('d').unwrap();
    ends(&mut session);
    assert!(!history.exists());

    let mut session = home.repl(&[]);
    line(&mut session, ":seed 77", "");
    session.send_control('c').unwrap();
    ends(&mut session);
    if cfg!(target_os = "linux") {
        assert!(fs::read_to_string(&history).unwrap().contains(":seed 77"));
    }

    // Up, and an x behind what stands there.
    let mut session = home.repl(&[]);
    session.send("\x1b[A").unwrap();
    session.flush().unwrap();
    session.exp_string(":seed 77").unwrap();
    line(&mut session, "x", "error: :seed needs a whole number, not 77x");
    session.send_control('d').unwrap();
    ends(&mut session);
}
