//! What the gateway tells the service manager that started it: ready, reloading, stopping, alive, and how it is.
//!
//! Owns the judgement whether a part hangs, and the datagrams of `sd_notify`. A watchdog is fed only while every part that must
//! never stop (the log's writer, the pipeline, the broker's door) has made a step lately; idle parts make one too. One
//! that waits for the disk has [`DISK_MAX`] for it: cards stall for minutes, and a restart would not mend them. Never ends
//! the process itself: without a service manager a part that hangs is only told in the log.

use std::time::{Duration, Instant};

use millwright_broker::pulse::{Look, Pulse};
use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior};

/// The longest pause between two looks; under a watchdog a quarter of its time, if that is less.
const LOOK: Duration = Duration::from_secs(5);
/// How long a part may go without a step where no watchdog says: half of it where one does.
const STEP_MAX: Duration = Duration::from_secs(60);
/// How long one call may wait for the disk.
const DISK_MAX: Duration = Duration::from_secs(600);
/// From when on a wait for the disk is worth telling.
const DISK_TOLD: Duration = Duration::from_secs(3);
/// The longest status line.
const STATUS_BYTES_MAX: usize = 400;

/// A part that must never stop, and what was seen of it last.
#[derive(Debug)]
struct Watched {
    name: &'static str,
    pulse: Pulse,
    last: Look,
    /// When its count was first seen as it is.
    since: Instant,
}

/// Tells parts that hang from those that work, are idle or wait for the disk.
#[derive(Debug)]
struct Judge {
    parts: Vec<Watched>,
    step_max: Duration,
}

/// What a look at all parts shows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    /// Parts without a step for too long, and for how long.
    hang: Vec<(&'static str, Duration)>,
    /// Parts that wait for the disk for long.
    on_disk: Vec<(&'static str, Duration)>,
}

impl Judge {
    fn new(parts: Vec<(&'static str, Pulse)>, step_max: Duration, now: Instant) -> Judge {
        let watched = |(name, pulse): (_, Pulse)| Watched { name, last: pulse.look(), pulse, since: now };
        Judge { parts: parts.into_iter().map(watched).collect(), step_max }
    }

    fn look(&mut self, now: Instant) -> Findings {
        let mut findings = Findings::default();
        for part in &mut self.parts {
            let look = part.pulse.look();
            if look.beats != part.last.beats {
                part.since = now;
            }
            part.last = look;
            let still = now.saturating_duration_since(part.since);
            let longest = if look.on_disk { self.step_max.max(DISK_MAX) } else { self.step_max };
            if still >= longest {
                findings.hang.push((part.name, still));
            } else if look.on_disk && still >= DISK_TOLD {
                findings.on_disk.push((part.name, still));
            }
        }
        findings
    }
}

/// Speaks with the service manager, if one listens.
#[derive(Debug)]
pub struct Supervisor {
    judge: Judge,
    watched_over: bool,
    looks: Interval,
    status: String,
    hangs: bool,
    unheard: bool,
}

impl Supervisor {
    /// For these parts, with the watchdog that the environment names.
    pub fn new(parts: Vec<(&'static str, Pulse)>) -> Supervisor {
        let watchdog = sd_notify::watchdog_enabled().filter(|time| !time.is_zero());
        let step_max = watchdog.map_or(STEP_MAX, |time| time / 2);
        let every = watchdog.map_or(LOOK, |time| (time / 4).min(LOOK)).max(Duration::from_millis(1));
        let mut looks = tokio::time::interval(every);
        // After a pause of the whole process there is one look, not one for each that was missed.
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Supervisor {
            judge: Judge::new(parts, step_max, Instant::now()),
            watched_over: watchdog.is_some(),
            looks,
            status: String::new(),
            hangs: false,
            unheard: false,
        }
    }

    /// Clients are served.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// Something is read again; [`Supervisor::ready`] is to follow.
    pub fn reloading(&mut self) {
        // The manager matches this time with that of its own signal.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// The gateway is going down.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// Waits until [`Supervisor::look`] is due. Nothing is lost when the future is dropped.
    pub async fn due(&mut self) {
        self.looks.tick().await;
    }

    /// Looks at all parts, feeds the watchdog if none hangs, and tells how the gateway is if that has changed. `degraded` says
    /// what is wrong with it, if the gateway knows.
    pub fn look(&mut self, degraded: Option<String>) {
        let findings = self.judge.look(Instant::now());
        self.note(&findings);
        let status = status_line(&findings, degraded);
        let mut news = Vec::new();
        if self.watched_over && findings.hang.is_empty() {
            news.push(NotifyState::Watchdog);
        }
        if status != self.status {
            news.push(NotifyState::Status(&status));
        }
        if !news.is_empty() {
            self.tell(&news);
        }
        self.status = status;
    }

    fn note(&mut self, findings: &Findings) {
        let hangs = !findings.hang.is_empty();
        if hangs && !self.hangs {
            let next = if self.watched_over { "; the watchdog is not fed any more" } else { ": restart the gateway" };
            tracing::error!("{}{next}", told(&findings.hang, "has made no step"));
        } else if self.hangs && !hangs {
            tracing::warn!("all parts work again");
        }
        self.hangs = hangs;
    }

    fn tell(&mut self, news: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(news)
            && !std::mem::replace(&mut self.unheard, true)
        {
            tracing::warn!(%error, "the service manager cannot be told how the gateway is: check NOTIFY_SOCKET");
        }
    }
}

/// One line for `systemctl status`.
fn status_line(findings: &Findings, degraded: Option<String>) -> String {
    let hang = (!findings.hang.is_empty()).then(|| told(&findings.hang, "has made no step"));
    let disk = (!findings.on_disk.is_empty()).then(|| told(&findings.on_disk, "waits for the disk"));
    let troubles: Vec<String> = [hang, disk, degraded].into_iter().flatten().collect();
    let mut line = if troubles.is_empty() { "serving".to_owned() } else { format!("serving; {}", troubles.join("; ")) };
    // A datagram's entries end at a line's end.
    line = line.replace(['\n', '\r'], " ");
    line.truncate(line.floor_char_boundary(STATUS_BYTES_MAX));
    line
}

/// Without the time for how long, which would make every look news.
fn told(parts: &[(&'static str, Duration)], what: &str) -> String {
    let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
    format!("{} {what} for long", names.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(30);

    fn judge_of(pulse: &Pulse, now: Instant) -> Judge {
        Judge::new(vec![("the pipeline", pulse.clone())], STEP, now)
    }

    // A part without a step hangs from exactly the allowed time on, and no more after its next step.
    #[test]
    fn a_part_without_a_step_hangs() {
        let (pulse, start) = (Pulse::default(), Instant::now());
        let mut judge = judge_of(&pulse, start);
        assert!(judge.look(start + STEP - Duration::from_millis(1)).hang.is_empty());
        assert_eq!(judge.look(start + STEP).hang, [("the pipeline", STEP)]);
        pulse.beat();
        assert_eq!(judge.look(start + 2 * STEP), Findings::default());
        assert_eq!(judge.look(start + 3 * STEP).hang, [("the pipeline", STEP)]);
    }

    // A slow disk is told of, and is no hang before its own, longer time; a step on the way begins that anew.
    #[test]
    fn a_slow_disk_is_no_hang() {
        let (pulse, start) = (Pulse::default(), Instant::now());
        let mut judge = judge_of(&pulse, start);
        let disk = pulse.on_disk();
        assert_eq!(judge.look(start), Findings::default());
        let long = DISK_MAX - Duration::from_millis(1);
        assert_eq!(judge.look(start + long), Findings { on_disk: vec![("the pipeline", long)], ..Findings::default() });
        assert_eq!(judge.look(start + DISK_MAX).hang.len(), 1);
        pulse.beat();
        assert_eq!(judge.look(start + DISK_MAX), Findings::default());
        drop(disk);
        assert_eq!(judge.look(start + DISK_MAX), Findings::default());
        assert_eq!(judge.look(start + DISK_MAX + STEP).hang.len(), 1);
    }

    // One part that hangs is enough, however busy the others are.
    #[test]
    fn one_that_hangs_is_enough() {
        let (busy, stuck, start) = (Pulse::default(), Pulse::default(), Instant::now());
        let mut judge = Judge::new(vec![("the log", busy.clone()), ("the pipeline", stuck)], STEP, start);
        for step in 1..=4 {
            busy.beat();
            let hang = judge.look(start + step * STEP / 4).hang;
            assert_eq!(hang.len(), usize::from(step == 4), "{step}");
        }
    }

    // The status is one bounded line, cut between two characters.
    #[test]
    fn the_status_is_one_line() {
        assert_eq!(status_line(&Findings::default(), None), "serving");
        let findings = Findings { on_disk: vec![("the log", STEP)], ..Findings::default() };
        assert_eq!(
            status_line(&findings, Some("the log is full\nREADY=1".to_owned())),
            "serving; the log waits for the disk for long; the log is full READY=1"
        );
        let line = status_line(&Findings::default(), Some("µ".repeat(STATUS_BYTES_MAX)));
        assert!(line.len() <= STATUS_BYTES_MAX && line.ends_with('µ'));
    }
}
