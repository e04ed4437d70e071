//! Threads that share the rows of a product.

use gptrickle_core::ops::Team;

/// A team of the threads of the rayon pool in which the work itself runs.
#[derive(Debug)]
pub struct Threads(usize);

impl Threads {
    /// Runs `f` in a pool of `n` threads, with the team of all of them; in the caller's own thread if that is one.
    ///
    /// # Errors
    /// The operating system grants no threads.
    pub fn run<R: Send>(n: usize, f: impl FnOnce(&Threads) -> R + Send) -> Result<R, rayon::ThreadPoolBuildError> {
        let team = Threads(n);
        if n < 2 {
            return Ok(f(&team));
        }
        Ok(rayon::ThreadPoolBuilder::new().num_threads(n).build()?.install(|| f(&team)))
    }
}

impl Team for Threads {
    fn parts(&self) -> usize {
        self.0
    }

    fn join(&self, a: &mut (dyn FnMut() + Send), b: &mut (dyn FnMut() + Send)) {
        rayon::join(a, b);
    }
}
