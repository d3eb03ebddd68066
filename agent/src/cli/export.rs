//! `millwright export`: what a gateway has recorded, as a CSV or Parquet file for other programs.
//!
//! Owns the file. A file gets its name when it is whole: until then it is `FILE.part`, which is removed when the export
//! fails; one that is killed leaves it behind, and the next export to the same name begins it anew. Never touches what it reads.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgGroup, Args};
use serde::Serialize;

use super::bar::Bar;
use super::{Failure, output};
use crate::clock;
use crate::config::{Config, SourceConfig};
use crate::export::{
    Every, ExportError, Fault, Format, Place, Plan, Request, Told, What, parse_every, parse_format, parse_time,
    parse_what,
};
use crate::ids::{AssetId, ChannelName};

/// What is gathered before it goes to the file.
const BUFFER_BYTES: usize = 256 * 1024;

/// Arguments of `export`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("from-where").required(true).args(["config", "data_dir"])))]
pub(super) struct ExportArguments {
    /// The gateway's configuration: where its data are, and how topics are decoded
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The gateway's data directory, where there is no configuration; only the gateway's own topics are decoded then
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// readings, alerts (one row each), or feedback (one row for each verdict that was given)
    #[arg(long, value_name = "WHAT", default_value = "readings", value_parser = parse_what)]
    what: What,
    /// Only of this asset; may be given several times
    #[arg(long = "asset", value_name = "ASSET")]
    assets: Vec<AssetId>,
    /// Only this channel, in this order; may be given several times
    #[arg(long = "channel", value_name = "CHANNEL")]
    channels: Vec<ChannelName>,
    /// From when on, by the device's time: 2026-03-02T06:00:00Z, or a number since 1970
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_hyphen_values = true)]
    from: Option<i64>,
    /// Until when; not part of it
    #[arg(long, value_name = "TIME", value_parser = parse_time, allow_hyphen_values = true)]
    to: Option<i64>,
    /// raw: every sample that the log holds. 10s, 5m, 1h, …: mean, min and max of so long, and the score, as far as history goes
    #[arg(long, value_name = "STEP", default_value = "raw", value_parser = parse_every)]
    every: Every,
    /// csv or parquet; default: by the file's name, else csv
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    format: Option<Format>,
    /// The file to write, or - for stdout
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object with what was written
    #[arg(long)]
    json: bool,
}

/// What `--json` tells.
#[derive(Serialize)]
struct Summary<'s> {
    file: &'s Path,
    bytes: u64,
    #[serde(flatten)]
    told: &'s Told,
}

/// Exports.
///
/// # Errors
/// Wrong use: words that mean nothing, no such asset or channel, no such gateway. Else what is read or written fails.
pub(super) fn run(arguments: ExportArguments) -> Result<ExitCode, Failure> {
    let to_stdout = arguments.out.as_os_str() == "-";
    if to_stdout && arguments.json {
        return Err(Failure::wrong_use(anyhow::anyhow!("--json and --out - both write to stdout: choose one")));
    }
    let (data_dir, sources) = place(&arguments)?;
    let place = Place { data_dir: &data_dir, sources: &sources };
    let request = Request {
        what: arguments.what,
        assets: arguments.assets,
        channels: arguments.channels,
        from_us: arguments.from,
        to_us: arguments.to,
        every: arguments.every,
        format: arguments.format.unwrap_or_else(|| format_of(&arguments.out)),
    };
    let mut bar = Bar::new();
    let plan = Plan::make(place, request, &mut |done| bar.draw(done));
    let written = plan.and_then(|plan| write(plan, &arguments.out, &mut bar));
    let (bytes, told) = written.map_err(|error| failure(error, &arguments.out, &mut bar))?;
    bar.clear();
    if arguments.json {
        output::print_json(&Summary { file: &arguments.out, bytes, told: &told })?;
    } else if to_stdout {
        // What was written is on stdout.
        eprint!("{}", text(&told, None));
    } else {
        output::print(&text(&told, Some((&arguments.out, bytes))));
    }
    Ok(ExitCode::SUCCESS)
}

fn place(arguments: &ExportArguments) -> Result<(PathBuf, Vec<SourceConfig>), Failure> {
    match (&arguments.config, &arguments.data_dir) {
        (Some(path), _) => {
            let config = Config::load(path).map_err(Failure::wrong_use)?.config;
            Ok((config.gateway.data_dir, config.sources))
        }
        (None, Some(dir)) if dir.is_dir() => Ok((dir.clone(), Vec::new())),
        (None, dir) => {
            let dir = dir.as_deref().unwrap_or(Path::new("")).display();
            Err(Failure::wrong_use(anyhow::anyhow!(
                "{dir} is no folder: name the gateway's data directory, or its --config"
            )))
        }
    }
}

fn format_of(out: &Path) -> Format {
    let is_parquet =
        out.extension().is_some_and(|end| end.eq_ignore_ascii_case("parquet") || end.eq_ignore_ascii_case("pq"));
    if is_parquet { Format::Parquet } else { Format::Csv }
}

/// Writes the export to its file; returns the bytes.
fn write(plan: Plan, out: &Path, bar: &mut Bar) -> Result<(u64, Told), ExportError> {
    let tell = &mut |done| bar.draw(done);
    if out.as_os_str() == "-" {
        let mut stdout = Counted { out: BufWriter::with_capacity(BUFFER_BYTES, io::stdout()), bytes: 0 };
        let told = plan.write(&mut stdout, tell)?;
        stdout.flush()?;
        return Ok((stdout.bytes, told));
    }
    // A device or a pipe takes what it is given, and cannot be renamed.
    if std::fs::metadata(out).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let file = File::options().write(true).open(out)?;
        return fill(plan, &file, tell);
    }
    let mut name = out.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let file = File::create(&part)?;
    let written = fill(plan, &file, tell).and_then(|written| {
        file.sync_all()?;
        std::fs::rename(&part, out)?;
        Ok(written)
    });
    if written.is_err() {
        // It may be gone, and then that is what was wanted.
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn fill(plan: Plan, file: &File, tell: &mut dyn FnMut(f64) -> bool) -> Result<(u64, Told), ExportError> {
    let mut counted = Counted { out: BufWriter::with_capacity(BUFFER_BYTES, file), bytes: 0 };
    let told = plan.write(&mut counted, tell)?;
    counted.flush()?;
    Ok((counted.bytes, told))
}

/// Counts what goes through.
struct Counted<W: Write> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn failure(error: ExportError, out: &Path, bar: &mut Bar) -> Failure {
    bar.clear();
    match error.fault() {
        Fault::Words | Fault::Missing => Failure::wrong_use(error),
        Fault::Files => match error {
            ExportError::Write(error) => Failure::from(cannot_write(error, out)),
            error => Failure::from(error),
        },
    }
}

fn cannot_write(error: io::Error, out: &Path) -> anyhow::Error {
    let where_to = if out.as_os_str() == "-" { "stdout".to_owned() } else { out.display().to_string() };
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": there is no room; nothing of it was kept. Make room, write to another disk, or ask for less (--from, --every, Parquet)"
        }
        io::ErrorKind::NotFound => ": make its folder first",
        _ => "",
    };
    Err::<(), _>(error)
        .with_context(|| format!("cannot write to {where_to}{remedy}"))
        .err()
        .unwrap_or_else(|| anyhow::anyhow!("cannot write"))
}

fn text(told: &Told, file: Option<(&PathBuf, u64)>) -> String {
    let what = match told.what {
        What::Readings => "rows",
        What::Alerts => "alerts",
        What::Feedback => "verdicts",
    };
    let assets = if told.assets == 1 { "asset" } else { "assets" };
    let mut text = format!("{} {what} of {} {assets} in {} columns", told.rows, told.assets, told.columns);
    if let Some((first_us, last_us)) = told.span_us {
        text.push_str(&format!(" from {} to {}", clock::rfc3339(first_us), clock::rfc3339(last_us)));
    }
    if let Some((file, bytes)) = file {
        text.push_str(&format!(": {} ({bytes} bytes)", file.display()));
    }
    text.push('\n');
    for note in &told.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    // A file's name decides the format where none is named.
    #[test]
    fn names_decide_the_format() {
        assert_eq!(format_of(Path::new("a/pump.Parquet")), Format::Parquet);
        assert_eq!(format_of(Path::new("pump.csv")), Format::Csv);
        assert_eq!(format_of(Path::new("-")), Format::Csv);
    }
}
