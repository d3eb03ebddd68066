//! The figures of a benchmark as a table: what was promised and whether it is met.
//!
//! Every cell is the median of the runs. A target that is missed is printed, never an error.

/// What a figure is measured against.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// At least so many times the peer's.
    TimesPeerMin(f64),
    /// At most so many times the peer's.
    TimesPeerMax(f64),
    Max(f64),
}

/// One figure.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) scenario: String,
    pub(crate) name: &'static str,
    pub(crate) ours: Option<f64>,
    pub(crate) peer: Option<f64>,
    pub(crate) target: Option<Target>,
}

/// Runs where a figure is missing do not count; none if it always is.
pub(crate) fn median(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().flatten().collect();
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get((values.len() - 1) / 2)?;
    Some((upper + lower) / 2.0)
}

impl Figure {
    fn cells(&self) -> [String; 7] {
        let ratio = self.ours.zip(self.peer.filter(|peer| *peer > 0.0)).map(|(ours, peer)| ours / peer);
        let (target, met) = match self.target {
            None => (String::new(), None),
            Some(Target::TimesPeerMin(times)) => (format!("≥ {times} × peer"), ratio.map(|ratio| ratio >= times)),
            Some(Target::TimesPeerMax(times)) => (format!("≤ {times} × peer"), ratio.map(|ratio| ratio <= times)),
            Some(Target::Max(most)) => (format!("≤ {most}"), self.ours.map(|ours| ours <= most)),
        };
        let met = match (self.target, met) {
            (None, _) => "",
            (_, None) => "not measured",
            (_, Some(true)) => "yes",
            (_, Some(false)) => "**no**",
        };
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        [
            self.scenario.clone(),
            self.name.to_owned(),
            number(self.ours),
            number(self.peer),
            ratio,
            target,
            met.to_owned(),
        ]
    }
}

/// The figures and their targets, as a Markdown table.
pub(crate) fn figures(figures: &[Figure]) -> String {
    let head = ["scenario", "figure", "gateway", "peer", "ratio", "target", "met"];
    markdown(&head, &figures.iter().map(Figure::cells).collect::<Vec<_>>())
}

/// Three digits are enough.
pub(crate) fn number(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value >= 1_000.0 => thousands(value.round() as u64),
        Some(value) if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn thousands(value: u64) -> String {
    if value < 1_000 { value.to_string() } else { format!("{},{:03}", thousands(value / 1_000), value % 1_000) }
}

/// A table whose columns line up.
pub(crate) fn markdown<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let cells: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!(" {cell:width$} ")).collect();
        format!("|{}|\n", cells.join("|"))
    };
    let rule = widths.map(|width| "-".repeat(width));
    let mut text = line(*head);
    text.push_str(&line(std::array::from_fn(|column| rule[column].as_str())));
    for row in rows {
        text.push_str(&line(std::array::from_fn(|column| row[column].as_str())));
    }
    text
}
