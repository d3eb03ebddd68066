//! How much the gateway writes, and how worn its disk says it is.
//!
//! Only eMMC tells in a way that needs no rights: two estimates, for its two kinds of cells, in steps of ten percent.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Finding, Patient, size};
use crate::clock;
use crate::state::copy as state;

const CHECK: &str = "wear";
const DAY_US: i64 = 24 * 3_600 * clock::SECOND_US;
/// An estimate of so many tenths used: order another one.
const TENTHS_WARN: u32 = 8;
/// The maker's estimate is used up.
const TENTHS_FAIL: u32 = 10;

pub(super) fn check(patient: &Patient<'_>, show: &mut dyn FnMut(Finding)) {
    let written = written(patient.data_dir());
    let life = fs::metadata(patient.data_place()).ok().and_then(|found| life_of(found.dev()));
    show(judge(&written, life));
}

fn judge(written: &str, life: Option<Life>) -> Finding {
    let Some(Life { tenths, text }) = life else {
        return Finding::ok(CHECK, format!("{written}; its life time is not told by this disk"));
    };
    let text = format!("{written}; {text}");
    let remedy = "replace the disk: `millwright backup` first, `restore` on the new one";
    match tenths {
        tenths if tenths >= TENTHS_FAIL => Finding::fail(CHECK, text, remedy),
        tenths if tenths >= TENTHS_WARN => Finding::warn(CHECK, text, remedy),
        _ => Finding::ok(CHECK, text),
    }
}

/// What the gateway stored of the last day that it ran; it is stored once a minute.
fn written(dir: &Path) -> String {
    let known = state::path_in(dir).is_file().then(|| state::facts(dir).ok()).flatten().and_then(|facts| facts.written);
    let Some(known) = known else { return "the gateway has not told what it writes yet".to_owned() };
    let now_us = clock::utc_us();
    let into_day_us = now_us.rem_euclid(DAY_US);
    let bytes = size(known.bytes);
    // The first hour says little about a day.
    if known.day == now_us.div_euclid(DAY_US) && into_day_us >= DAY_US / 24 {
        let a_day = (known.bytes as f64 * DAY_US as f64 / into_day_us as f64) as u64;
        return format!("{bytes} written today, {} a day if it goes on like this", size(a_day));
    }
    format!(
        "{bytes} written on {}",
        clock::rfc3339(known.day.saturating_mul(DAY_US)).get(..10).unwrap_or("its last day")
    )
}

/// What a disk says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Life {
    /// Tenths that are used at least, of the worse estimate.
    tenths: u32,
    text: String,
}

/// Of the disk that holds a device number.
fn life_of(device: u64) -> Option<Life> {
    let link = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let mut place: PathBuf = fs::canonicalize(link).ok()?;
    // A partition lies in its disk.
    if place.join("partition").exists() {
        place.pop();
    }
    parse_life(&fs::read_to_string(place.join("device/life_time")).ok()?)
}

/// `0x01 0x0a`: up to 10 % of the one kind used, 90 to 100 % of the other; `0x0b` is beyond, `0x00` says nothing.
fn parse_life(text: &str) -> Option<Life> {
    let steps = text.split_whitespace().map(|word| u32::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let worst = steps.collect::<Option<Vec<u32>>>()?.into_iter().filter(|step| (1..=11).contains(step)).max()?;
    let tenths = worst - 1;
    let text = match worst {
        11 => "the disk says that its life time is used up".to_owned(),
        worst => format!("the disk says that {} to {} % of its life time are used", tenths * 10, worst * 10),
    };
    Some(Life { tenths, text })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    // The worse of two estimates counts, at its limits; what says nothing is not judged.
    #[test]
    fn the_worse_estimate_counts() {
        let verdict = |text: &str| judge("", parse_life(text)).verdict;
        assert_eq!(verdict("0x01 0x08\n"), Verdict::Ok);
        assert_eq!(verdict("0x09 0x01\n"), Verdict::Warn);
        assert_eq!(verdict("0x01 0x0a\n"), Verdict::Warn);
        assert_eq!(verdict("0x01 0x0b\n"), Verdict::Fail);
        for nothing in ["0x00 0x00", "", "what?", "0xff 0x00"] {
            assert_eq!(parse_life(nothing), None, "{nothing}");
        }
    }
}
