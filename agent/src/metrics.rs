//! `/metrics`: the figures of the gateway as OpenMetrics text.
//!
//! Owns the names, which dashboards depend on: `millwright_…`, base units, each with a sentence of help. Reads the same
//! source as the status, when it is asked. At most [`CURSORS_MAX`] cursors are told: those furthest behind.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::conditions::{Severity, Share};
use crate::status::StatusSource;
use crate::upstream::status::{Link, UpstreamStatus};

/// The content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Cursors told: more would be a time series for every client that ever came.
const CURSORS_MAX: usize = 100;

/// Codes of conditions: a series that is there before its first alarm can be asked for.
const CODES: [(&str, Severity); 12] = [
    ("certificate", Severity::Warning),
    ("disk-filling", Severity::Warning),
    ("disk-full", Severity::Critical),
    ("file-descriptors", Severity::Critical),
    ("file-descriptors", Severity::Warning),
    ("history", Severity::Warning),
    ("log-failed", Severity::Critical),
    ("log-filling", Severity::Warning),
    ("log-full", Severity::Critical),
    ("memory", Severity::Critical),
    ("memory", Severity::Warning),
    ("upstream", Severity::Warning),
];

/// The text now.
///
/// # Errors
/// Never by what is told; the encoder's interface has one.
pub fn text(source: &Arc<StatusSource>) -> Result<String, Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Figures(Arc::clone(source))));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

struct Figures(Arc<StatusSource>);

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Out(encoder);
        self.gateway(&mut out)?;
        self.broker(&mut out)?;
        self.log(&mut out)?;
        self.cursors(&mut out)?;
        self.pipeline(&mut out)?;
        self.models(&mut out)?;
        self.upstreams(&mut out)?;
        self.system(&mut out)?;
        self.conditions(&mut out)
    }
}

type Labels<'a, const N: usize> = [(&'a str, &'a str); N];

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, None, counter.metric_type())?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> Result<(), Error> {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, None, gauge.metric_type())?)
    }

    /// Nothing if there is no value.
    fn maybe(&mut self, name: &str, help: &str, value: Option<f64>) -> Result<(), Error> {
        value.map_or(Ok(()), |value| self.gauge(name, help, value))
    }

    fn family<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'a, N>, f64)>,
    ) -> Result<(), Error> {
        let kind = ConstGauge::new(0.0_f64).metric_type();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            let gauge = ConstGauge::new(value);
            gauge.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Figures {
    fn gateway(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let up_s = self.0.started.elapsed().as_secs_f64();
        out.gauge("millwright_uptime_seconds", "Seconds since the gateway started", up_s)?;
        let build = [([("version", env!("CARGO_PKG_VERSION"))], 1.0)];
        out.family("millwright_build_info", "The program's version", build)
    }

    fn broker(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let broker = self.0.publisher.stats();
        let gauges = [
            ("clients", "Clients that are served now", broker.clients),
            ("connections", "Connections now, those without CONNECT included", broker.connections),
            ("buffered_bytes", "Bytes held in memory for clients", broker.buffered_bytes),
            ("buffered_max_bytes", "The budget of the bytes held in memory for clients", broker.buffered_bytes_max),
            ("held_back_connections", "Connections held back because of the memory budget", broker.held_back),
        ];
        for (name, help, value) in gauges {
            out.gauge(&format!("millwright_broker_{name}"), help, value as f64)?;
        }
        let skipped = broker.skipped.saturating_add(broker.fan_out_dropped);
        let counters = [
            ("accepted_connections", "Connections accepted from the network", broker.accepted),
            ("turned_away_connections", "Connections closed because of a limit", broker.turned_away),
            ("failed_accepts", "Times that no connection could be accepted", broker.accepts_failed),
            ("failed_handshakes", "TLS or WebSocket handshakes that failed", broker.handshakes_failed),
            ("wrong_logins", "Logins with a wrong user name or password", broker.logins_wrong),
            ("denied_requests", "Publishes and subscriptions that access rules do not allow", broker.denied),
            ("refused_connects", "CONNECTs refused", broker.refused),
            ("protocol_errors", "Connections ended because the client broke the protocol", broker.protocol_errors),
            ("keep_alive_timeouts", "Connections ended because nothing came", broker.keep_alive_timeouts),
            ("takeovers", "Clients replaced by another with their identifier", broker.takeovers),
            ("received_volatile_messages", "Publishes received at QoS 0", broker.received_volatile),
            ("received_durable_messages", "Publishes committed", broker.received_durable),
            ("delivered_messages", "Publishes sent", broker.delivered),
            ("skipped_messages", "QoS 0 deliveries skipped because a subscriber was too slow", skipped),
            ("expired_messages", "Deliveries not made because the message had expired", broker.expired),
            ("lost_messages", "Messages dropped before a subscriber had read them", broker.lost),
            ("unlogged_messages", "Telemetry at QoS 0 that the log could not take", broker.telemetry_not_logged),
            ("wills", "Wills published", broker.wills),
            ("expired_sessions", "Stored sessions whose client stayed away too long", broker.sessions_expired),
        ];
        counters
            .into_iter()
            .try_for_each(|(name, help, value)| out.counter(&format!("millwright_broker_{name}"), help, value))
    }

    fn log(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let log = self.0.log.stats();
        let gauges = [
            ("head_offset", "The offset that the next message gets", log.head.0 as f64),
            ("oldest_offset", "The oldest message on disk", log.oldest.0 as f64),
            ("used_bytes", "Bytes of the log in use", log.bytes as f64),
            ("max_bytes", "Bytes that messages may use", log.bytes_max as f64),
            ("wal_bytes", "Bytes of the write-ahead log", log.wal_bytes as f64),
            ("quota_bytes", "The configured quota", log.quota_bytes as f64),
            ("queue_messages", "Messages waiting for the writer", log.queue_rows as f64),
            ("queue_bytes", "Bytes waiting for the writer", log.queue_bytes as f64),
            ("topics", "Topics known", log.topics as f64),
            ("retained_messages", "Retained messages", log.retained as f64),
            ("sessions", "Stored sessions", log.sessions as f64),
            ("sessions_away", "Stored sessions without a connection", log.sessions_away as f64),
            ("holding", "1 while the log holds publishers back", f64::from(u8::from(log.full.is_some()))),
            ("healthy", "1 while the log can be written", f64::from(u8::from(log.healthy))),
            ("write_amplification_ratio", "Bytes sent to the device for a payload byte", log.write_amplification()),
        ];
        for (name, help, value) in gauges {
            out.gauge(&format!("millwright_log_{name}"), help, value)?;
        }
        let latencies = [
            ("ack_latency_seconds", "From append to acknowledgement", log.ack_latency_p50_us, log.ack_latency_p99_us),
            ("commit_latency_seconds", "One commit", log.commit_latency_p50_us, log.commit_latency_p99_us),
        ];
        for (name, help, p50_us, p99_us) in latencies {
            let values = [("0.5", p50_us), ("0.99", p99_us)].map(|(q, us)| ([("quantile", q)], us as f64 / 1e6));
            out.family(&format!("millwright_log_{name}"), help, values)?;
        }
        let counters = [
            ("messages", "Messages committed", log.rows),
            ("payload_bytes", "Payload and property bytes committed", log.payload_bytes),
            ("commits", "Commits", log.commits),
            ("device_bytes", "Bytes sent to the device, estimated: the wear", log.device_bytes),
            ("dropped_partitions", "Partitions that retention dropped", log.partitions_dropped),
            ("lost_messages", "Messages dropped before a cursor had passed them, ever", log.lost_rows),
        ];
        counters
            .into_iter()
            .try_for_each(|(name, help, value)| out.counter(&format!("millwright_log_{name}"), help, value))
    }

    fn cursors(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let mut cursors = self.0.log.stats().cursors;
        cursors.sort_by(|a, b| b.backlog_rows.cmp(&a.backlog_rows).then(a.name.cmp(&b.name)));
        let told = cursors.iter().take(CURSORS_MAX);
        let values = told.map(|cursor| ([("cursor", cursor.name.as_str())], cursor.backlog_rows as f64));
        out.family("millwright_cursor_backlog_messages", "Messages that a cursor has still to pass", values)?;
        let queue = self.0.pipeline.borrow().queue;
        let inference = [("cursor", "inference")];
        let known = |value: Option<f64>| value.map(|value| (inference, value));
        let arrivals = "Messages arriving per second (lambda), averaged over 10 s";
        out.family("millwright_cursor_arrivals_per_second", arrivals, [(inference, queue.arrivals_per_s)])?;
        let service = "Messages a cursor can serve per second (mu)";
        out.family("millwright_cursor_service_per_second", service, known(queue.service_per_s))?;
        let drain = "Seconds until the backlog is gone at these rates; absent if it grows or there is none";
        out.family("millwright_cursor_drain_seconds", drain, known(queue.drain_s))
    }

    fn pipeline(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let pipeline = Arc::clone(&self.0.pipeline.borrow());
        let sum = |of: fn(&crate::pipeline::asset::Counters) -> u64| {
            pipeline.assets.iter().map(|asset| of(&asset.counters)).fold(0, u64::saturating_add)
        };
        let alerts = pipeline.assets.iter().filter(|asset| asset.alert.is_some()).count();
        out.gauge("millwright_pipeline_assets", "Assets known", pipeline.assets.len() as f64)?;
        out.gauge("millwright_pipeline_alerts", "Assets with an alert that is up", alerts as f64)?;
        let counters = [
            ("samples", "Samples taken in", sum(|counters| counters.samples)),
            ("scored_samples", "Samples scored", sum(|counters| counters.scored)),
            ("score_errors", "Samples that a model could not score", sum(|counters| counters.score_errors)),
            ("duplicate_readings", "Readings recognised as sent before", sum(|counters| counters.duplicates)),
            ("decode_errors", "Messages that were no valid telemetry", pipeline.decode_errors),
            ("refused_readings", "Readings of assets beyond the limit", pipeline.refused_readings),
            ("lost_messages", "Messages dropped before they were folded", pipeline.lost_messages),
        ];
        counters
            .into_iter()
            .try_for_each(|(name, help, value)| out.counter(&format!("millwright_pipeline_{name}"), help, value))
    }

    fn models(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let models = Arc::clone(&self.0.models.borrow());
        let mut states = std::collections::BTreeMap::new();
        for view in &models.models {
            *states.entry(view.version.state.as_str()).or_insert(0.0) += 1.0;
        }
        let values = states.iter().map(|(state, count)| ([("state", *state)], *count));
        out.family("millwright_model_versions", "Versions of pushed models by state", values)
    }

    fn upstreams(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let all = self.0.upstreams.status();
        let mut tell = |name: &str, help: &str, value: &dyn Fn(&UpstreamStatus) -> f64| {
            let values = all.iter().map(|it| ([("upstream", it.name.as_str())], value(it)));
            out.family(&format!("millwright_upstream_{name}"), help, values)
        };
        tell("connected", "1 while there is a connection", &|it| f64::from(u8::from(it.link == Link::Connected)))?;
        tell("backlog_messages", "Messages of the log not confirmed or passed yet", &|it| it.queue.backlog as f64)?;
        tell("confirmed_messages", "Messages confirmed since the start", &|it| it.confirmed as f64)?;
        tell("confirmed_bytes", "Their payload bytes, as sent", &|it| it.confirmed_bytes as f64)?;
        tell("failures", "Connections that failed or ended since the start", &|it| it.failures as f64)?;
        tell("refused_messages", "Messages left out because the peer refuses them", &|it| it.refused as f64)?;
        tell("lost_messages", "Messages dropped before they could be sent", &|it| it.lost as f64)
    }

    fn system(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let now = Arc::clone(&self.0.condition.borrow());
        let used = |share: Option<Share>| share.map(|share| share.used as f64);
        let max = |share: Option<Share>| share.map(|share| share.max as f64);
        let free = now.disk.map(|disk| disk.max.saturating_sub(disk.used) as f64);
        out.maybe("millwright_disk_free_bytes", "Free bytes of the data directory's file system", free)?;
        out.maybe("millwright_disk_max_bytes", "Size of the data directory's file system", max(now.disk))?;
        out.maybe("millwright_open_file_descriptors", "File descriptors in use", used(now.files))?;
        out.maybe("millwright_max_file_descriptors", "The limit of file descriptors", max(now.files))?;
        out.maybe("millwright_resident_memory_bytes", "Memory of the gateway in RAM", used(now.memory))?;
        out.maybe("millwright_max_memory_bytes", "Memory that the gateway may have", max(now.memory))?;
        let until_s = now.certificate_until_s.map(|until_s| until_s as f64);
        let help = "When the TLS certificate ends, seconds since 1970 UTC";
        out.maybe("millwright_certificate_end_timestamp_seconds", help, until_s)
    }

    fn conditions(&self, out: &mut Out<'_>) -> Result<(), Error> {
        let now = Arc::clone(&self.0.condition.borrow());
        let values = CODES.map(|(code, severity)| {
            let is_up = now.conditions.iter().any(|up| up.code == code && up.severity == severity);
            ([("code", code), ("severity", severity.word())], f64::from(u8::from(is_up)))
        });
        out.family("millwright_condition", "1 while the gateway is in this condition", values)
    }
}
