//! Checks that run beside each other: an emulator keeps one processor busy, and there are at least two.

use anyhow::Result;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::boards::Board;

/// Something to find out about a board.
pub(crate) struct Check {
    pub(crate) board: &'static Board,
    pub(crate) name: String,
    pub(crate) run: Box<dyn Fn() -> Result<()> + Send + Sync>,
}

/// How a check went.
pub(crate) struct Outcome {
    pub(crate) board: &'static str,
    pub(crate) took: Duration,
    pub(crate) passed: bool,
}

/// Runs all checks, as many at once as there are processors, the first ones first. Says how each went when it has.
pub(crate) fn run(checks: Vec<Check>) -> Vec<Outcome> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (queue, outcomes) = (Mutex::new(checks.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(check) = next(&queue) {
                    let start = Instant::now();
                    let result = (check.run)();
                    let took = start.elapsed();
                    let how = result.as_ref().map_or_else(|error| format!("FAILED: {error:#}"), |()| "ok".to_owned());
                    eprintln!("{:12} {} ({:.1} s): {how}", check.board.name, check.name, took.as_secs_f64());
                    let outcome = Outcome { board: check.board.name, took, passed: result.is_ok() };
                    outcomes.lock().expect("no thread panics while it holds this").push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().expect("no thread panics while it holds this")
}

fn next(queue: &Mutex<std::vec::IntoIter<Check>>) -> Option<Check> {
    queue.lock().expect("no thread panics while it holds this").next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boards::BOARDS;

    #[test]
    fn every_check_runs_once_and_failures_show() {
        let check = |i: usize| Check {
            board: &BOARDS[i % 2],
            name: i.to_string(),
            run: Box::new(move || if i == 3 { anyhow::bail!("three") } else { Ok(()) }),
        };
        let outcomes = run((0..20).map(check).collect());
        assert_eq!(outcomes.len(), 20);
        assert_eq!(outcomes.iter().filter(|outcome| !outcome.passed).count(), 1);
        assert_eq!(outcomes.iter().filter(|outcome| outcome.board == BOARDS[0].name).count(), 10);
    }
}
