//! Prints what scoring costs: microseconds per window of the commissioned detector.
//!
//! `cargo run --release -p millwright-models --example speed`

use std::io::Write as _;
use std::time::Instant;

use millwright_models::{LoadLimits, Model, Params, commission};

const CHANNELS: usize = 8;
/// Measured spans per batch; the median is printed.
const SPANS: usize = 31;
/// Windows scored in each span.
const WINDOWS_PER_SPAN: usize = 8_192;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    let channels: Vec<String> = (0..CHANNELS).map(|c| format!("channel {c}")).collect();
    let value = |i: usize| (c_of(i) as f32).exp() + (i as f32 * 0.37).sin() + (i as f32 * 1.91).cos();
    let rows: Vec<f32> = (0..400 * CHANNELS).map(value).collect();

    let started = Instant::now();
    let learned = commission("speed", 1, &channels, &rows, &Params::default())?;
    let commissioned = started.elapsed();
    let started = Instant::now();
    let model = Model::load(&learned.onnx, &LoadLimits::default())?;
    let loaded = started.elapsed();
    let graph_bytes =
        learned.onnx.len() - learned.contract.to_metadata().iter().map(|(k, v)| k.len() + v.len() + 8).sum::<usize>();
    writeln!(out, "commissioned {} rows of {CHANNELS} channels in {commissioned:.2?}", rows.len() / CHANNELS)?;
    writeln!(out, "file {} bytes, of which the graph about {graph_bytes}; loaded in {loaded:.2?}", learned.onnx.len())?;
    writeln!(out, "{:>6}  {:>14}", "batch", "µs per window")?;
    for batch in [1, 8, 64, 256] {
        let windows: Vec<f32> = (0..batch * model.contract().window_len()).map(value).collect();
        let mut spans: Vec<f64> = (0..SPANS)
            .map(|_| {
                let started = Instant::now();
                for _ in 0..WINDOWS_PER_SPAN / batch {
                    let _ = std::hint::black_box(model.score(std::hint::black_box(&windows), batch));
                }
                started.elapsed().as_secs_f64() * 1e6 / WINDOWS_PER_SPAN as f64
            })
            .collect();
        spans.sort_by(f64::total_cmp);
        writeln!(out, "{batch:>6}  {:>14.3}", spans[SPANS / 2])?;
    }
    Ok(())
}

fn c_of(i: usize) -> usize {
    i % CHANNELS
}
