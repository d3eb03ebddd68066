//! `millwright replay`: recordings through a real connection, the log, the pipeline and the alarms.
//!
//! Each file is one machine, named like the file. Rows keep their own times; they are sent as fast as they are acknowledged.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Failure, output, runtime};
use crate::alarm::message::{AlertEvent, EventKind};
use crate::clock;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::ids::{AssetId, GatewayId};
use crate::observe::{Observed, Observer};
use crate::table::Table;
use crate::temporary::TemporaryFolder;

/// Rows in one message.
const ROWS_PER_MESSAGE: usize = 50;
/// Messages sent and not yet acknowledged.
const IN_FLIGHT: u16 = 50;
/// A message of rows, at most.
const PACKET_BYTES_MAX: usize = 1 << 20;
/// Longest time for the pipeline to fold everything.
const SETTLE: Duration = Duration::from_secs(600);
/// A quiet time after which no more events are on their way.
const QUIET: Duration = Duration::from_millis(500);

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub(super) struct ReplayArguments {
    /// Rows to learn each machine's normal from
    #[arg(long, value_name = "ROWS", default_value_t = 400)]
    commission: usize,
    /// Keep the gateway's data in this folder instead of a temporary one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The files
    #[arg(required = true, value_name = "CSV")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Replay {
    files: Vec<FileReplay>,
}

#[derive(Debug, Serialize)]
struct FileReplay {
    path: String,
    asset: String,
    rows: usize,
    scored: u64,
    alerts: Vec<AlertReplay>,
    /// Labelled stretches of anomaly after the commissioning rows, where the file has labels.
    labelled: Option<usize>,
    /// Those during which an alert was up.
    labelled_alerted: Option<usize>,
}

#[derive(Debug, Serialize)]
struct AlertReplay {
    id: String,
    raised_us: i64,
    cleared_us: Option<i64>,
    severity: crate::alarm::Severity,
    message: String,
}

/// Replays all files.
///
/// # Errors
/// A file cannot be read, or the gateway cannot be started.
pub(super) fn run(arguments: &ReplayArguments) -> Result<ExitCode, Failure> {
    let tables = arguments.files.iter().map(|path| Table::read(path)).collect::<Result<Vec<_>, _>>()?;
    let names = asset_names(&arguments.files)?;
    let temporary = if arguments.data_dir.is_none() { Some(TemporaryFolder::create("replay")?) } else { None };
    let given = arguments.data_dir.as_deref();
    let data_dir = given.or(temporary.as_ref().map(TemporaryFolder::path)).map(Path::to_owned).unwrap_or_default();
    let replay = runtime()?.block_on(replay(&tables, &names, data_dir, arguments.commission))?;
    if arguments.json {
        output::print_json(&replay)?;
    } else {
        output::print(&replay.text());
    }
    Ok(ExitCode::SUCCESS)
}

/// Assets are called like their files; two files of one name would be one machine.
fn asset_names(files: &[PathBuf]) -> Result<Vec<AssetId>, Failure> {
    let mut names: Vec<AssetId> = Vec::new();
    for path in files {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name = AssetId::parse(&stem).map_err(Failure::wrong_use)?;
        if names.contains(&name) {
            let error =
                anyhow::anyhow!("two files are called `{name}`, and each is to be a machine of its own: rename one");
            return Err(Failure::wrong_use(error));
        }
        names.push(name);
    }
    Ok(names)
}

async fn replay(tables: &[Table], names: &[AssetId], data_dir: PathBuf, commission: usize) -> anyhow::Result<Replay> {
    let mut config = Config::with_defaults(GatewayId::parse("replay")?, data_dir);
    config.broker.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.http.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.commissioning.samples = commission;
    config.commissioning.extend = false;
    let gateway = Gateway::start(&config).await?;
    let result = replay_through(&gateway, tables, names, commission).await;
    gateway.stop().await;
    result
}

async fn replay_through(
    gateway: &Gateway,
    tables: &[Table],
    names: &[AssetId],
    commission: usize,
) -> anyhow::Result<Replay> {
    let mut observer = Observer::connect(gateway.mqtt_addr()).await?;
    let mut events: Vec<AlertEvent> = Vec::new();
    let collect = async {
        while let Some(observed) = observer.messages.recv().await {
            if let Observed::Event(event) = observed {
                events.push(*event);
            }
        }
    };
    let publish = async {
        for (table, name) in tables.iter().zip(names) {
            publish(gateway.mqtt_addr(), table, name).await?;
        }
        anyhow::ensure!(gateway.settle(SETTLE).await, "the pipeline has not caught up within {SETTLE:?}");
        tokio::time::sleep(QUIET).await;
        anyhow::Ok(())
    };
    tokio::select! {
        published = publish => published?,
        () = collect => bail!("the gateway closed the connection that watches it"),
    }
    let status = gateway.status();
    let files = tables.iter().zip(names).map(|(table, name)| {
        let asset = status.pipeline.assets.iter().find(|asset| asset.health.asset == name.as_str());
        FileReplay::new(table, name, asset.map_or(0, |asset| asset.counters.scored), &events, commission)
    });
    Ok(Replay { files: files.collect() })
}

/// Sends a table and waits until every message is acknowledged: on disk.
async fn publish(broker: SocketAddr, table: &Table, asset: &AssetId) -> anyhow::Result<()> {
    let mut options = MqttOptions::new(format!("replay-{asset}"), broker.ip().to_string(), broker.port());
    options.set_inflight(IN_FLIGHT).set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    let (client, mut connection) = AsyncClient::new(options, usize::from(IN_FLIGHT));
    let topic = format!("mw/v1/telemetry/{asset}/json");
    let messages = messages(table);
    let total = messages.len();
    let send = async {
        for message in messages {
            client.publish(&topic, QoS::AtLeastOnce, false, message).await?;
        }
        anyhow::Ok(())
    };
    let acknowledged = async {
        let mut acknowledged = 0;
        while acknowledged < total {
            if let Event::Incoming(Packet::PubAck(_)) = connection.poll().await.context("the connection broke")? {
                acknowledged += 1;
            }
        }
        anyhow::Ok(())
    };
    let (sent, acknowledged) = tokio::join!(send, acknowledged);
    sent.and(acknowledged)
}

/// The rows as JSON telemetry, some in each message.
fn messages(table: &Table) -> Vec<String> {
    let width = table.channels.len().max(1);
    let rows: Vec<Value> = table
        .times_us
        .iter()
        .zip(table.values.chunks(width))
        .enumerate()
        .map(|(row, (time_us, values))| {
            let values: Map<String, Value> = table
                .channels
                .iter()
                .zip(values)
                .filter(|(_, value)| value.is_finite())
                .map(|(channel, value)| (channel.to_string(), json!(value)))
                .collect();
            json!({ "ts": time_us, "seq": row, "values": values })
        })
        .collect();
    rows.chunks(ROWS_PER_MESSAGE).map(|rows| Value::from(rows.to_vec()).to_string()).collect()
}

impl FileReplay {
    fn new(table: &Table, asset: &AssetId, scored: u64, events: &[AlertEvent], commission: usize) -> FileReplay {
        let own: Vec<&AlertEvent> = events.iter().filter(|event| event.asset == asset.as_str()).collect();
        let alerts: Vec<AlertReplay> = own
            .iter()
            .filter(|event| event.event == EventKind::Raise)
            .map(|raise| {
                let last = own.iter().rev().find(|event| event.alert == raise.id);
                let cleared = last.filter(|event| event.event == EventKind::Clear);
                AlertReplay {
                    id: raise.id.clone(),
                    raised_us: raise.time_us,
                    cleared_us: cleared.map(|event| event.time_us),
                    severity: last.map_or(raise.severity, |event| event.severity),
                    message: raise.message.clone(),
                }
            })
            .collect();
        let stretches = table.labels.as_deref().map(|labels| labelled_stretches(labels, commission));
        let alerted = stretches.as_ref().map(|stretches| {
            let during = |(from, to): &&(usize, usize)| {
                let time = |row: usize| table.times_us.get(row).copied().unwrap_or(i64::MAX);
                let up = |alert: &AlertReplay| {
                    alert.raised_us <= time(*to) && alert.cleared_us.is_none_or(|cleared| cleared >= time(*from))
                };
                alerts.iter().any(up)
            };
            stretches.iter().filter(during).count()
        });
        FileReplay {
            path: table.path.display().to_string(),
            asset: asset.to_string(),
            rows: table.times_us.len(),
            scored,
            labelled: stretches.map(|stretches| stretches.len()),
            labelled_alerted: alerted,
            alerts,
        }
    }
}

/// First and last row of each labelled anomaly after the commissioning rows.
fn labelled_stretches(labels: &[bool], commission: usize) -> Vec<(usize, usize)> {
    let mut stretches: Vec<(usize, usize)> = Vec::new();
    for (row, _) in labels.iter().enumerate().skip(commission).filter(|(_, anomaly)| **anomaly) {
        match stretches.last_mut() {
            Some((_, to)) if *to + 1 == row => *to = row,
            _ => stretches.push((row, row)),
        }
    }
    stretches
}

impl Replay {
    fn text(&self) -> String {
        let mut text = String::new();
        for file in &self.files {
            text.push_str(&format!("{}: {} rows, {} scored", file.path, file.rows, file.scored));
            if let (Some(labelled), Some(alerted)) = (file.labelled, file.labelled_alerted) {
                text.push_str(&format!(", {alerted} of {labelled} labelled anomalies had an alert"));
            }
            text.push('\n');
            for alert in &file.alerts {
                let cleared =
                    alert.cleared_us.map_or("still up".to_owned(), |at| format!("cleared {}", clock::rfc3339(at)));
                let raised = clock::rfc3339(alert.raised_us);
                text.push_str(&format!(
                    "  {} {raised}, {cleared}, {:?}: {}\n",
                    alert.id, alert.severity, alert.message
                ));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Stretches are counted after the commissioning rows only, and neighbours belong together.
    #[test]
    fn labelled_stretches_are_found() {
        let labels = [true, false, true, true, false, true];
        assert_eq!(labelled_stretches(&labels, 1), [(2, 3), (5, 5)]);
        assert_eq!(labelled_stretches(&labels, 3), [(3, 3), (5, 5)]);
    }

    // Two files of one name are refused before anything is sent.
    #[test]
    fn files_of_one_name_are_refused() {
        assert!(asset_names(&[Path::new("a/0.csv").to_owned(), Path::new("b/0.csv").to_owned()]).is_err());
    }
}
