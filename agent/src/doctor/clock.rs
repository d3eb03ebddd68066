//! The clock: whether it can be right, whether somebody sets it, and whether it goes on without power.

use std::path::Path;

use super::{Finding, Patient};
use crate::clock;
use crate::conditions::measure;

const CHECK: &str = "clock";

/// Services that set the clock and do not say in a file whether they have: their name, and what is there while they run.
const SERVICES: [(&str, &str); 3] =
    [("chrony", "/run/chrony/chronyd.pid"), ("ntpd", "/run/ntpd.pid"), ("OpenNTPD", "/run/openntpd.sock")];
/// Real-time clocks.
const RTC: &str = "/sys/class/rtc/rtc0";

pub(super) fn check(_: &Patient<'_>, show: &mut dyn FnMut(Finding)) {
    let now_us = clock::utc_us();
    let service = SERVICES.iter().find(|(_, path)| Path::new(path).exists()).map(|(name, _)| *name);
    show(judge(now_us, measure::clock_trusted(now_us), service, Path::new(RTC).exists()));
}

fn judge(now_us: i64, trusted: Option<bool>, service: Option<&str>, has_rtc: bool) -> Finding {
    let now = clock::rfc3339(now_us);
    let rtc = if has_rtc { "a real-time clock keeps it without power" } else { "no real-time clock" };
    match (trusted, service) {
        (Some(false), _) => {
            let remedy = "set it (`timedatectl set-ntp true`): records, certificates and retention go by it";
            Finding::fail(CHECK, format!("{now} cannot be"), remedy)
        }
        (Some(true), _) => Finding::ok(CHECK, format!("{now}, set by a server; {rtc}")),
        (None, Some(service)) => Finding::ok(CHECK, format!("{now}, kept by {service}; {rtc}")),
        (None, None) => {
            let remedy = "let a time service run (`timedatectl set-ntp true`), in the plant's own network if need be";
            Finding::warn(CHECK, format!("{now}; nobody tells that it is set by a server; {rtc}"), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    // A time before this program fails, one that nobody vouches for warns.
    #[test]
    fn a_clock_is_judged() {
        let now = 1_790_000_000_000_000;
        assert_eq!(judge(0, Some(false), None, true).verdict, Verdict::Fail);
        assert_eq!(judge(now, None, None, false).verdict, Verdict::Warn);
        assert_eq!(judge(now, None, Some("chrony"), false).verdict, Verdict::Ok);
        assert_eq!(judge(now, Some(true), None, false).verdict, Verdict::Ok);
    }
}
