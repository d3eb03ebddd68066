//! The C library's heap, held small.
//!
//! It makes a heap for each thread that allocates, and what is free in one serves no other: two are enough for what threads
//! here allocate. And it keeps what was freed between allocations that are still in use; after a plant is learned that is most
//! of the rows that it was learned from.

use std::time::{Duration, Instant};

/// How long it is waited at least between two times: the whole heap is walked, some milliseconds.
const PAUSE: Duration = Duration::from_secs(10);

/// Heaps, at most. With one for each thread a plant of 200 assets takes 2.4 MB more (the benchmark `limits`, scenario `whole`).
#[cfg(target_env = "gnu")]
const HEAPS_MAX: std::ffi::c_int = 2;

/// Bounds how many heaps there are. Heaps that are there stay, so this comes before any thread is started.
#[cfg(target_env = "gnu")]
#[allow(
    unsafe_code,
    reason = "the C library's own function has no safe form; it takes two numbers, and changes a limit"
)]
pub fn bound_heaps() {
    // It can only refuse a number that makes no sense to it.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX) };
}

/// Bounds how many heaps there are; this C library has one.
#[cfg(not(target_env = "gnu"))]
pub fn bound_heaps() {}

/// Gives memory back, now and then, while there is reason to think that much is free.
#[derive(Debug, Default)]
pub struct Spare {
    expected: bool,
    given: Option<Instant>,
}

impl Spare {
    /// Much was freed just now.
    pub fn expect(&mut self) {
        self.expected = true;
    }

    /// Gives back what is free, if much is expected to be and the last time is a while ago.
    pub fn give_back_if_due(&mut self) {
        if self.expected && self.given.is_none_or(|given| given.elapsed() >= PAUSE) {
            give_back();
            *self = Spare { expected: false, given: Some(Instant::now()) };
        }
    }
}

#[cfg(target_env = "gnu")]
#[allow(
    unsafe_code,
    reason = "the C library's own function has no safe form; it takes a number, and frees nothing that is in use"
)]
fn give_back() {
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn resident_bytes() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size() as u64
    }

    // However many threads allocate at a time, they share the heaps. Asked of a process of its own, in which no thread was before.
    // A heap begins at a multiple of 64 MiB, so what is allocated tells which one it is in.
    #[cfg(target_pointer_width = "64")]
    #[test]
    fn threads_share_the_heaps() {
        const ALONE: &str = "MILLWRIGHT_TEST_HEAPS";
        const HEAP_BYTES: usize = 64 << 20;
        if std::env::var_os(ALONE).is_none() {
            let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
            alone.args(["--exact", "memory::tests::threads_share_the_heaps", "--test-threads=1"]).env(ALONE, "1");
            let told = alone.output().unwrap();
            assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stdout));
            return;
        }
        bound_heaps();
        let together = std::sync::Barrier::new(16);
        let heaps: std::collections::BTreeSet<usize> = std::thread::scope(|scope| {
            let allocate = || {
                let block = std::hint::black_box(vec![1_u8; 4_096]);
                together.wait();
                block.as_ptr().addr() / HEAP_BYTES
            };
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(allocate)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // The first heap is the program's own, which may lie across two multiples.
        assert!(heaps.len() <= HEAPS_MAX as usize + 1, "{heaps:?}");
    }

    // What was freed between blocks that stay is given back when it is due, and not before something is expected to be free.
    #[test]
    fn what_was_freed_between_blocks_that_stay_goes_back() {
        const BLOCK_BYTES: usize = 8 * 1024;
        // Far more than what other tests of this process allocate at the same time.
        const BLOCKS: usize = 32 * 1024;
        let mut blocks: Vec<Option<Vec<u8>>> = (0..BLOCKS).map(|_| Some(vec![1; BLOCK_BYTES])).collect();
        for (n, block) in blocks.iter_mut().enumerate() {
            if n % 64 != 0 {
                *block = None;
            }
        }
        let half = (BLOCKS * BLOCK_BYTES / 2) as u64;
        let mut spare = Spare::default();
        let freed = resident_bytes();
        spare.give_back_if_due();
        assert!(resident_bytes() + half > freed, "nothing was expected, nothing is walked");
        spare.expect();
        spare.give_back_if_due();
        assert!(resident_bytes() + half < freed, "{} of {freed} bytes stay", resident_bytes());
        // The next time waits for its pause.
        spare.expect();
        spare.give_back_if_due();
        assert!(spare.expected);
        assert!(blocks.iter().flatten().all(|block| block[0] == 1));
    }
}
