//! Cores that share the rows of a product: the one that runs the application, and helpers that wait for work.

#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::fmt;
use core::mem;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use gptrickle_core::ops::Team;

/// Work for another core.
type Work<'a> = &'a mut (dyn FnMut() + Send);

/// A team of the core that calls [`join`](Team::join), and of up to `HELPERS` others, those that have come to
/// [`serve`](Cores::serve).
pub struct Cores<const HELPERS: usize> {
    posts: [Post; HELPERS],
    helpers: AtomicUsize,
}

/// Where a helper finds work.
struct Post {
    state: AtomicU8,
    work: UnsafeCell<Option<Work<'static>>>,
}

/// Nobody serves here.
const AWAY: u8 = 0;
/// The helper waits.
const FREE: u8 = 1;
/// Somebody has work for it, and may touch `work`.
const TAKEN: u8 = 2;
/// The helper has it, and may touch `work`.
const AT_WORK: u8 = 3;
/// Whoever gave it takes notice.
const DONE: u8 = 4;

// SAFETY: `work` is touched only by whom `state` names.
unsafe impl Sync for Post {}

impl<const HELPERS: usize> Cores<HELPERS> {
    /// A team without helpers.
    pub const fn new() -> Self {
        let posts = [const { Post { state: AtomicU8::new(AWAY), work: UnsafeCell::new(None) } }; HELPERS];
        Cores { posts, helpers: AtomicUsize::new(0) }
    }

    /// Works for the team, as one of its helpers, numbered from 0, for good.
    ///
    /// # Panics
    /// Another core serves under this number, or there is none such.
    pub fn serve(&self, helper: usize) -> ! {
        self.serve_while(helper, || true);
        unreachable!("it serves for good")
    }

    fn serve_while(&self, helper: usize, more: impl Fn() -> bool) {
        let post = &self.posts[helper];
        let came = post.state.compare_exchange(AWAY, FREE, Ordering::Relaxed, Ordering::Relaxed);
        assert!(came.is_ok(), "two cores serve as helper {helper}");
        self.helpers.fetch_add(1, Ordering::Release);
        while more() {
            post.turn();
        }
    }

    /// How many helpers have come.
    pub fn helpers(&self) -> usize {
        self.helpers.load(Ordering::Acquire)
    }
}

impl<const HELPERS: usize> Default for Cores<HELPERS> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const HELPERS: usize> fmt::Debug for Cores<HELPERS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cores").field("helpers", &self.helpers()).finish()
    }
}

/// Until another core calls [`Post::pass_on`], or for a moment: what is waited for is looked at again in any case.
fn rest() {
    #[cfg(all(any(target_arch = "aarch64", target_arch = "arm"), target_os = "none"))]
    // SAFETY: it waits for an event, one since the last wait included.
    unsafe {
        core::arch::asm!("wfe", options(nostack))
    };
    #[cfg(not(all(any(target_arch = "aarch64", target_arch = "arm"), target_os = "none")))]
    core::hint::spin_loop();
}

impl Post {
    /// Says whose turn it is now.
    fn pass_on(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        #[cfg(all(any(target_arch = "aarch64", target_arch = "arm"), target_os = "none"))]
        // SAFETY: the first instruction waits until other cores can see the state, the second wakes those that rest.
        unsafe {
            core::arch::asm!("dsb sy", "sev", options(nostack))
        };
    }

    /// The helper's side: does the work, if there is some.
    fn turn(&self) {
        if self.state.load(Ordering::Acquire) != AT_WORK {
            return rest();
        }
        // SAFETY: the state says that it is the helper's.
        if let Some(work) = unsafe { &mut *self.work.get() } {
            work();
        }
        self.pass_on(DONE);
    }

    /// Gives the helper work, if it is free; it is done when what this returns is dropped.
    fn give<'w>(&self, work: Work<'w>) -> Result<Given<'_>, Work<'w>> {
        if self.state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Err(work);
        }
        // SAFETY: `join`, which alone calls this, has the work for longer than the `Given`, and when that is gone nobody
        // uses the work any more.
        let work = unsafe { mem::transmute::<Work<'w>, Work<'static>>(work) };
        // SAFETY: the state says that it is ours.
        unsafe { *self.work.get() = Some(work) };
        self.pass_on(AT_WORK);
        Ok(Given(self))
    }
}

/// Work under way.
struct Given<'a>(&'a Post);

impl Drop for Given<'_> {
    fn drop(&mut self) {
        while self.0.state.load(Ordering::Acquire) != DONE {
            rest();
        }
        self.0.state.store(FREE, Ordering::Release);
    }
}

impl<const HELPERS: usize> Team for Cores<HELPERS> {
    fn parts(&self) -> usize {
        1 + self.helpers()
    }

    fn join(&self, a: Work<'_>, mut b: Work<'_>) {
        for post in &self.posts {
            match post.give(b) {
                Ok(given) => {
                    a();
                    return drop(given);
                }
                Err(work) => b = work,
            }
        }
        // All have something to do: so has this one.
        a();
        b();
    }
}

#[cfg(test)]
mod tests {
    use std::hint;
    use std::sync::atomic::AtomicBool;
    use std::thread;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    /// Runs `f` with a team of 1 + `helpers` threads.
    fn with_helpers<const HELPERS: usize>(f: impl FnOnce(&Cores<HELPERS>)) {
        let (cores, over) = (Cores::<HELPERS>::new(), AtomicBool::new(false));
        thread::scope(|scope| {
            for helper in 0..HELPERS {
                let (cores, over) = (&cores, &over);
                scope.spawn(move || cores.serve_while(helper, || !over.load(Ordering::Relaxed)));
            }
            while cores.helpers() < HELPERS {
                hint::spin_loop();
            }
            f(&cores);
            over.store(true, Ordering::Relaxed);
        });
    }

    /// Doubles every number, halving the work until it is one number's.
    fn double(team: &dyn Team, numbers: &mut [u32]) {
        if let [number] = numbers {
            *number *= 2;
            return;
        }
        let (a, b) = numbers.split_at_mut(numbers.len() / 2);
        team.join(&mut || double(team, a), &mut || double(team, b));
    }

    #[test]
    fn all_work_is_done_once_when_join_returns() {
        fn check<const HELPERS: usize>() {
            with_helpers::<HELPERS>(|cores| {
                assert_eq!(cores.parts(), 1 + HELPERS);
                for round in 0..200 {
                    let mut numbers: Vec<u32> = (0..64).map(|i| i + round).collect();
                    double(cores, &mut numbers);
                    assert!(numbers.iter().zip(0..).all(|(&n, i)| n == 2 * (i + round)));
                }
            });
        }
        check::<0>();
        check::<1>();
        check::<3>();
    }

    #[test]
    fn a_helper_works_at_the_same_time() {
        with_helpers::<1>(|cores| {
            let (a, b) = (AtomicBool::new(false), AtomicBool::new(false));
            let meet = |mine: &AtomicBool, other: &AtomicBool| {
                mine.store(true, Ordering::Release);
                while !other.load(Ordering::Acquire) {
                    hint::spin_loop();
                }
            };
            // Neither returns before the other has begun.
            cores.join(&mut || meet(&a, &b), &mut || meet(&b, &a));
        });
    }

    #[test]
    fn without_helpers_the_caller_does_it_all() {
        let cores = Cores::<3>::new();
        let mut numbers = vec![1; 9];
        double(&cores, &mut numbers);
        assert_eq!((numbers, cores.parts()), (vec![2; 9], 1));
    }
}
