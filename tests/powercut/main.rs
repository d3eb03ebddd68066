//! Power cuts of the log, simulated: hundreds in a minute, each repeatable from its seed.
//!
//! A log works on a disk that records what is synced and what is not (`shim`, `disk`); its disk is cut at random steps of
//! its life, while it is created, written, checkpointed, closed, and while it is opened after a cut before (`life`); what the
//! cut leaves is opened and compared with what was promised (`judge`).
//!
//! `MILLWRIGHT_POWER_CUTS` sets the number of cuts, `MILLWRIGHT_POWER_SEED` the seed of the first life; a failure prints both
//! for its replay.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the test prints its table")]

mod disk;
mod judge;
mod life;
mod shim;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use disk::{Fates, Files, Ignores, Overwrite, Rng, Step};
use judge::{Verdict, batches_found, judge};
use life::{Birth, Cut, Ledger, Lived, SHAPES, Shape, live, scratch_dir};

/// Cuts of the ordinary run; `MILLWRIGHT_POWER_CUTS` asks for more.
const CUTS: usize = 300;

/// Cuts of each disk that must be found out.
const BROKEN_CUTS: usize = 60;

/// Ways in which one moment is cut, where a certain moment matters.
const WAYS: u64 = 8;

/// The first life's seed; each next life has the next number.
const SEED: u64 = 20_260_000;

/// The disk and how often it is cut.
#[derive(Clone, Copy)]
struct Campaign {
    disk: &'static str,
    cuts: usize,
    seed: u64,
    ignores: Ignores,
    overwrite: Overwrite,
    declares_powersafe: bool,
}

impl Campaign {
    /// The disk that SQLite assumes.
    fn sound(cuts: usize) -> Campaign {
        Campaign {
            disk: "obeys every sync",
            cuts,
            seed: SEED,
            ignores: Ignores::Nothing,
            overwrite: Overwrite::Powersafe,
            declares_powersafe: true,
        }
    }

    /// One life on this disk.
    fn live(&self, shape: Shape, files: Files, ledger: Ledger, seed: u64) -> Result<Lived, String> {
        let Campaign { ignores, declares_powersafe, .. } = *self;
        let birth = Birth { shape, seed, ignores, declares_powersafe, files, ledger };
        live(birth, |log, ledger| batches_found(&shape, log, ledger))
    }
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{value}`")))
}

/// A cut, how its life began, and the seed of what it does to the disk.
#[derive(Clone)]
struct Case {
    cut: Cut,
    shape: Shape,
    seed: u64,
}

/// What a campaign found.
#[derive(Default)]
struct Tally {
    cuts: usize,
    fates: Fates,
    in_checkpoint: usize,
    while_opening: usize,
    acknowledged: u64,
    lost: u64,
    /// Cuts that lost acknowledged rows, and cuts after which the log did not open as it was.
    losing: usize,
    unopened: usize,
    failures: Vec<String>,
}

impl Tally {
    /// Judges the cuts that began with the life of this seed.
    fn judge(&mut self, campaign: &Campaign, seed: u64, cases: &[Case]) {
        for (index, (case, verdict)) in cases.iter().zip(judge_all(campaign, cases)).enumerate() {
            self.add(case, &verdict);
            if !verdict.is_good() {
                self.failures.push(describe(campaign, seed, index, case, &verdict));
            }
        }
    }

    fn add(&mut self, case: &Case, verdict: &Verdict) {
        self.cuts += 1;
        self.fates.kept += verdict.fates.kept;
        self.fates.dropped += verdict.fates.dropped;
        self.fates.torn += verdict.fates.torn;
        self.in_checkpoint += usize::from(verdict.in_checkpoint);
        self.while_opening += usize::from(case.cut.head.is_none());
        self.acknowledged += verdict.acknowledged;
        self.lost += verdict.lost;
        self.losing += usize::from(verdict.lost > 0);
        self.unopened += usize::from(!verdict.is_open);
    }
}

const HEADER: &str = "disk                          cuts  writes: kept  dropped    torn  in checkpoint  opening  rows acknowledged   \
                      rows lost  cuts losing  not opened";

impl Tally {
    fn print(&self, disk: &str) {
        println!("{HEADER}\n{disk:<28}  {self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fates { kept, dropped, torn } = self.fates;
        write!(f, "{:>4}  {kept:>12}  {dropped:>7}  {torn:>6}  ", self.cuts)?;
        write!(f, "{:>13}  {:>7}  {:>17}  ", self.in_checkpoint, self.while_opening, self.acknowledged)?;
        write!(f, "{:>10}  {:>11}  {:>10}", self.lost, self.losing, self.unopened)
    }
}

/// All cuts of one first life, and of second lives that go on from two of its cuts: once after the power was cut, once after
/// the process alone died, so that what was not synced then still is not.
fn lives(campaign: &Campaign, seed: u64) -> (Vec<Case>, Vec<String>) {
    let shape = SHAPES[(seed % SHAPES.len() as u64) as usize];
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut failures = Vec::new();
    let mut live = |files, ledger, seed| match campaign.live(shape, files, ledger, seed) {
        Ok(lived) => lived.cuts,
        Err(error) => {
            failures.push(error);
            Vec::new()
        }
    };
    let mut cuts = live(Files::default(), Ledger::default(), rng.next());
    if !cuts.is_empty() {
        let cut = &cuts[rng.below(cuts.len() as u64) as usize];
        let dir = scratch_dir().unwrap();
        cut.files.build_after_cut(dir.path(), campaign.overwrite, &mut rng).unwrap();
        let powered_again = live(Files::at_rest(dir.path()).unwrap(), cut.ledger.clone(), rng.next());
        // Most often with a commit that was written and not synced.
        let unsynced: Vec<&Cut> = cuts.iter().filter(|cut| cut.step == Step::SyncWal).collect();
        let cut = match unsynced.len() as u64 {
            0 => &cuts[rng.below(cuts.len() as u64) as usize],
            count => unsynced[rng.below(count) as usize],
        };
        let restarted = live(cut.files.clone(), cut.ledger.clone(), rng.next());
        cuts.extend(powered_again);
        cuts.extend(restarted);
    }
    (cuts.into_iter().map(|cut| Case { cut, shape, seed: rng.next() }).collect(), failures)
}

/// Lives until there are enough cuts, and judges them all.
fn run(campaign: &Campaign) -> Tally {
    let mut tally = Tally::default();
    for seed in campaign.seed.. {
        let (mut cases, failures) = lives(campaign, seed);
        cases.truncate(campaign.cuts - tally.cuts);
        tally.failures.extend(failures.into_iter().map(|failure| format!("life {seed}: {failure}")));
        tally.judge(campaign, seed, &cases);
        if tally.cuts == campaign.cuts {
            break;
        }
    }
    tally
}

fn judge_all(campaign: &Campaign, cases: &[Case]) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut verdicts = Vec::new();
        while let Some((index, case)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, cases.get(i)?)))
        {
            let dir = scratch_dir().unwrap();
            verdicts.push((index, judge(&case.cut, &case.shape, campaign.overwrite, case.seed, dir.path())));
        }
        verdicts
    };
    let mut verdicts: Vec<(usize, Verdict)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    verdicts.sort_by_key(|(index, _)| *index);
    verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

fn describe(campaign: &Campaign, seed: u64, index: usize, case: &Case, verdict: &Verdict) -> String {
    let (shape, step, number) = (case.shape.name, case.cut.step, index + 1);
    let opening = if case.cut.head.is_none() { ", while opening" } else { "" };
    let mut text = format!("cut {number} of life {seed} ({shape}, before {step:?}{opening}): ");
    text += &format!(
        "{} of {} acknowledged rows lost; {}",
        verdict.lost,
        verdict.acknowledged,
        verdict.complaints.join("; ")
    );
    if campaign.ignores == Ignores::Nothing && campaign.overwrite == Overwrite::Powersafe {
        let kept = tempfile::Builder::new().prefix("powercut-").tempdir().unwrap().keep();
        case.cut.files.build_after_cut(&kept, campaign.overwrite, &mut Rng::new(case.seed)).unwrap();
        text += &format!("\n  its files: {}", kept.display());
        text += &format!("\n  replay: MILLWRIGHT_POWER_SEED={seed} MILLWRIGHT_POWER_CUTS={number}");
    }
    text
}

// 300 power cuts, at any step of a log's life, with every unsynced write kept, dropped or torn: the database opens, nothing
// acknowledged is lost, offsets have no holes, and retained messages and cursors are as old as they may be.
#[test]
fn power_cuts_lose_nothing_acknowledged() {
    let cuts = setting("MILLWRIGHT_POWER_CUTS").map_or(CUTS, |cuts| cuts as usize);
    let seed = setting("MILLWRIGHT_POWER_SEED").unwrap_or(SEED);
    let campaign = Campaign { seed, ..Campaign::sound(cuts) };
    let tally = run(&campaign);
    tally.print(campaign.disk);
    assert!(tally.failures.is_empty(), "{} failures:\n{}", tally.failures.len(), tally.failures.join("\n"));
    assert_eq!((tally.lost, tally.unopened), (0, 0));
}

// The process is killed between a commit's write and its sync, and the power is cut after the restart: what the log showed when
// it was opened again, a consumer may have acted on, so it must be on disk by then.
#[test]
fn what_a_killed_process_left_is_synced_before_it_is_shown() {
    let campaign = Campaign::sound(0);
    let (mut unsynced, mut tally) = (0, Tally::default());
    for seed in SEED..SEED + SHAPES.len() as u64 {
        let shape = SHAPES[(seed % SHAPES.len() as u64) as usize];
        let killed = campaign.live(shape, Files::default(), Ledger::default(), seed).unwrap();
        for cut in killed.cuts.iter().filter(|cut| cut.step == Step::SyncWal) {
            let restarted = campaign.live(shape, cut.files.clone(), cut.ledger.clone(), seed).unwrap();
            let opened = restarted.cuts.into_iter().find(|cut| cut.step == Step::Quiet).unwrap();
            unsynced += u64::from(opened.head > cut.head);
            let cases: Vec<_> = (0..3).map(|seed| Case { cut: opened.clone(), shape, seed }).collect();
            tally.judge(&campaign, seed, &cases);
        }
    }
    assert!(unsynced > 0, "no restart found a commit that was not synced");
    tally.print("the process was killed before");
    assert!(tally.failures.is_empty(), "{} failures:\n{}", tally.failures.len(), tally.failures.join("\n"));
}

// The simulation bites: on a disk that ignores any one kind of sync, some cuts lose acknowledged rows.
#[test]
fn every_kind_of_sync_is_needed() {
    for (disk, ignores) in [
        ("ignores syncs of the WAL", Ignores::WalSyncs),
        ("ignores syncs of the database", Ignores::DatabaseSyncs),
        ("ignores syncs of the directory", Ignores::DirectorySyncs),
    ] {
        let tally = run(&Campaign { disk, ignores, ..Campaign::sound(BROKEN_CUTS) });
        tally.print(disk);
        assert!(tally.losing > 0, "{disk}: no cut of {} lost anything", tally.cuts);
    }
}

// What the log asks of a disk: that a write that is cut leaves the bytes beside it alone (powersafe overwrite, as SQLite's unix
// VFS assumes). Without that the last acknowledged rows can be lost; with padding to whole sectors, which SQLite does for a
// disk that does not declare it, they are not.
#[test]
fn powersafe_overwrite_is_needed() {
    let garbling = Campaign { overwrite: Overwrite::Garbles, ..Campaign::sound(0) };
    let tally = cut_commits(&garbling);
    tally.print("garbles neighbouring bytes");
    assert!(tally.losing > 0, "no cut of {} lost anything", tally.cuts);
    let tally = cut_commits(&Campaign { declares_powersafe: false, ..garbling });
    tally.print("the same, and says so");
    assert_eq!(tally.failures, Vec::<String>::new());
}

/// Cuts commits of small rows before their sync, each in many ways: there, new bytes are beside acknowledged ones.
fn cut_commits(campaign: &Campaign) -> Tally {
    let mut tally = Tally::default();
    for seed in SEED..SEED + 3 {
        let lived = campaign.live(SHAPES[0], Files::default(), Ledger::default(), seed).unwrap();
        let commits = lived.cuts.into_iter().filter(|cut| cut.step == Step::SyncWal);
        let cases: Vec<_> = commits
            .flat_map(|cut| (0..WAYS).map(move |seed| Case { cut: cut.clone(), shape: SHAPES[0], seed }))
            .collect();
        tally.judge(campaign, seed, &cases);
    }
    tally
}

// A life follows from its seed: the same steps towards the disk, so that a failing cut can be repeated.
#[test]
fn a_life_is_repeated_from_its_seed() {
    for (shape, seed) in SHAPES.into_iter().filter(|shape| shape.flushes).zip(SEED..) {
        let again = |_| {
            let lived = Campaign::sound(0).live(shape, Files::default(), Ledger::default(), seed).unwrap();
            (lived.fingerprint, lived.cuts.len(), lived.cuts.iter().map(|cut| cut.step).collect::<Vec<_>>())
        };
        let lives: Vec<_> = (0..2).map(again).collect();
        assert_eq!(lives[0], lives[1], "{}", shape.name);
    }
}
