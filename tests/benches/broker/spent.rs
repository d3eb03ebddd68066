//! What a message cost, as a table.

use crate::table::{markdown, number};

/// What a broker spent in a scenario, for each message.
#[derive(Debug)]
pub(crate) struct Spent {
    pub(crate) scenario: String,
    pub(crate) broker: String,
    /// Lowest, middle and highest of the runs.
    pub(crate) rates: Vec<f64>,
    pub(crate) cpu_us: Option<f64>,
    pub(crate) switches: Option<f64>,
    pub(crate) generator_us: Option<f64>,
    pub(crate) messages_per_commit: Option<f64>,
    pub(crate) commits_per_s: Option<f64>,
    pub(crate) written_per_byte: Option<f64>,
    pub(crate) rss_mib: Option<f64>,
    pub(crate) missing_percent: Option<f64>,
}

impl Spent {
    fn cells(&self) -> [String; 11] {
        let spread = match (self.rates.iter().copied().reduce(f64::min), self.rates.iter().copied().reduce(f64::max)) {
            (Some(least), Some(most)) => format!("{} – {}", number(Some(least)), number(Some(most))),
            _ => String::new(),
        };
        [
            self.scenario.clone(),
            self.broker.clone(),
            spread,
            number(self.cpu_us),
            number(self.switches),
            number(self.generator_us),
            number(self.commits_per_s),
            number(self.messages_per_commit),
            number(self.written_per_byte),
            number(self.rss_mib),
            number(self.missing_percent),
        ]
    }
}

/// What it cost, as a Markdown table.
pub(crate) fn table(spent: &[Spent]) -> String {
    let head = [
        "scenario",
        "who",
        "messages/s",
        "CPU µs",
        "switches",
        "generator µs",
        "commits/s",
        "messages/commit",
        "disk bytes/byte",
        "RSS MiB",
        "missing %",
    ];
    markdown(&head, &spent.iter().map(Spent::cells).collect::<Vec<_>>())
}
