//! Threads that share the rows of a product.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gptrickle_core::ops::Team;

/// How long a thread without work stays awake: longer than what a pass does in one thread between two products.
const AWAKE: Duration = Duration::from_millis(1);

/// A team of the threads of the rayon pool in which the work itself runs.
#[derive(Debug)]
pub struct Threads {
    n: usize,
    /// The thread of the pool in which the work runs.
    first: Option<usize>,
    /// How many of the others are kept awake.
    awake: Arc<AtomicUsize>,
}

impl Threads {
    /// Runs `f` in a pool of `n` threads, with the team of all of them; in the caller's own thread if that is one.
    ///
    /// # Errors
    /// The operating system grants no threads.
    pub fn run<R: Send>(n: usize, f: impl FnOnce(&Threads) -> R + Send) -> Result<R, rayon::ThreadPoolBuildError> {
        let team = |first| Threads { n, first, awake: Arc::default() };
        if n < 2 {
            return Ok(f(&team(None)));
        }
        Ok(rayon::ThreadPoolBuilder::new().num_threads(n).build()?.install(|| f(&team(rayon::current_thread_index()))))
    }

    /// Lets the other threads look for work until there was none for a while: those of rayon go to sleep much sooner.
    fn keep_awake(&self) {
        let others = self.n - 1;
        if self.awake.compare_exchange(0, others, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let (first, awake) = (self.first, Arc::clone(&self.awake));
        rayon::spawn_broadcast(move |thread| {
            if Some(thread.index()) != first {
                work();
                awake.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
}

/// Does what other threads want done, until nothing comes for a while.
fn work() {
    let mut last = Instant::now();
    while last.elapsed() < AWAKE {
        match rayon::yield_now() {
            Some(rayon::Yield::Executed) => last = Instant::now(),
            _ => thread::yield_now(),
        }
    }
}

impl Team for Threads {
    fn parts(&self) -> usize {
        self.n
    }

    fn join(&self, a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
        if self.n > 1 {
            self.keep_awake();
        }
        rayon::join(a, b);
    }
}
