//! `millwright demo`: the arguments of the demonstration.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{FAILED, Failure, output, runtime};
use crate::demo::plant::Pace;
use crate::demo::view::View;
use crate::demo::{self, DemoOptions};

/// Without `--for` and without a terminal.
const DURATION: Duration = Duration::from_secs(60);

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArguments {
    /// How long to run, such as 60s, 5m or 1500ms; without it until Ctrl-C on a terminal, 60 s otherwise
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Accelerate the simulated machines; 1 is 50 s of machine time a second
    #[arg(long, value_name = "N", value_parser = parse_speed)]
    speed: Option<f64>,
    /// Repeat a run
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print the summary as one JSON object; what happens on the way goes to stderr
    #[arg(long)]
    json: bool,
}

/// Runs the demonstration. Exit status 0 only if every injected fault was flagged and no healthy machine raised an alert.
///
/// # Errors
/// The gateway does not start, or the time is too short for the script.
pub(super) fn run(arguments: &DemoArguments) -> Result<ExitCode, Failure> {
    let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal() && !arguments.json;
    let duration = arguments.duration.or((!terminal).then_some(DURATION));
    let pace = Pace::for_run(duration, arguments.speed).map_err(Failure::wrong_use)?;
    let options = DemoOptions { duration, pace, seed: arguments.seed };
    let view = match (terminal, arguments.json) {
        (true, _) => View::terminal()?,
        (false, false) => View::Lines,
        (false, true) => View::ErrorLines,
    };
    let summary = runtime()?.block_on(demo::run(options, view))?;
    if arguments.json {
        output::print_json(&summary)?;
    } else {
        output::print(&summary.table());
    }
    Ok(if summary.ok { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// A number with `ms`, `s`, `m` or `h`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("`{unit}` is no unit of time: write for example 60s, 5m or 1500ms")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no time: write for example 60s"))?;
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("`{text}` is no time that can pass: write for example 60s"))
}

fn parse_speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if (0.01..=1_000.0).contains(&speed) { Ok(speed) } else { Err(format!("{text} is not between 0.01 and 1000")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Times are read with their usual units, and nonsense is refused.
    #[test]
    fn times_are_read() {
        assert_eq!(parse_duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "s", "-1s", "0s", "1y", "1e400s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
