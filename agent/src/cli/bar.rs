//! The bar of progress of commands that take long: on stderr, where a person watches it.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// How often the bar is drawn.
const DRAWN_EVERY: Duration = Duration::from_millis(100);
/// Characters of the bar.
const BAR_WIDTH: usize = 30;

/// The bar.
pub(super) struct Bar {
    shown: bool,
    began: Instant,
    drawn: Option<Instant>,
}

impl Bar {
    pub(super) fn new() -> Bar {
        Bar { shown: io::stderr().is_terminal(), began: Instant::now(), drawn: None }
    }

    /// Shows how much is done, from 0 to 1; true, as nobody stops it here.
    pub(super) fn draw(&mut self, done: f64) -> bool {
        if self.shown && self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAWN_EVERY) {
            self.drawn = Some(Instant::now());
            eprint!("\r{}", line(done, self.began.elapsed()));
        }
        true
    }

    /// Takes it away.
    pub(super) fn clear(&mut self) {
        if self.drawn.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

/// The bar as it is drawn.
fn line(done: f64, took: Duration) -> String {
    let done = done.clamp(0.0, 1.0);
    let full = (done * BAR_WIDTH as f64) as usize;
    let left = match done > 0.02 {
        true => format!("{} s left", (took.as_secs_f64() * (1.0 - done) / done).ceil()),
        false => String::new(),
    };
    format!("{}{} {:3.0} %  {left}\x1b[K", "█".repeat(full), "░".repeat(BAR_WIDTH - full), done * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The bar is always as wide, says how much is done, and how long it takes once that can be known.
    #[test]
    fn the_bar_tells_how_much_is_done() {
        let begun = line(0.0, Duration::from_secs(3));
        assert!(
            begun.starts_with(&"░".repeat(BAR_WIDTH)) && begun.contains("  0 %") && !begun.contains("left"),
            "{begun}"
        );
        let half = line(0.5, Duration::from_secs(10));
        assert!(half.starts_with(&"█".repeat(BAR_WIDTH / 2)) && half.contains(" 50 %  10 s left"), "{half}");
        let more = line(1.5, Duration::from_secs(10));
        assert!(more.starts_with(&"█".repeat(BAR_WIDTH)) && more.contains("100 %"), "{more}");
    }
}
