//! Telemetry that a test can repeat byte for byte: a simulated machine's samples as wire frames.
//!
//! Owns what a device would decide: asset, boot, sequence numbers and device time. Time is one sample a second from
//! [`FIRST_US`] on, whatever the clock says, so that hours of a machine can be sent as fast as they are acknowledged.

use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::{Machine, MachineKind};
use millwright_wire::{Header, encode};

/// Device time of the first sample: 2023-11-14T22:13:20Z.
pub const FIRST_US: i64 = 1_700_000_000_000_000;
/// One sample a second.
pub const INTERVAL_US: u32 = 1_000_000;
/// A row of ten channels with their names takes about 300 bytes.
const FRAME_BYTES: usize = 4_096;

/// A stretch of a machine's life, and how its device reports it.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The asset.
    pub asset: String,
    /// The device's boot.
    pub boot_id: u32,
    /// Names of the channels.
    pub channels: Vec<&'static str>,
    /// One row a second.
    pub rows: Vec<Vec<f32>>,
}

impl Recording {
    /// Lets a machine run for `rows` seconds. A fault begins at its row and develops within the given seconds.
    ///
    /// # Panics
    /// The fault does not apply to the kind of machine: the test is wrong.
    pub fn of(asset: &str, kind: MachineKind, seed: u64, rows: usize, fault: Option<(Fault, usize, f64)>) -> Recording {
        let mut machine = Machine::new(kind, seed);
        if let Some((fault, row, ramp_s)) = fault {
            machine.inject(fault, row as f64, ramp_s).expect("the test injects a fault that the machine can have");
        }
        let channels = machine.channels().iter().map(|channel| channel.name).collect();
        let rows = (0..rows).map(|row| machine.sample(row as f64).to_vec()).collect();
        Recording { asset: asset.to_owned(), boot_id: 1, channels, rows }
    }

    /// The topic its frames go to.
    pub fn topic(&self) -> String {
        format!("mw/v1/telemetry/{}", self.asset)
    }

    /// Device time of a row.
    pub fn time_us(&self, row: usize) -> i64 {
        FIRST_US + row as i64 * i64::from(INTERVAL_US)
    }

    /// The frame of one row; its sequence number is the row.
    ///
    /// # Panics
    /// There is no such row.
    pub fn frame(&self, row: usize) -> Vec<u8> {
        let header = Header {
            asset: &self.asset,
            device: "plc-1",
            boot_id: self.boot_id,
            sequence: row as u64,
            first_sample_us: self.time_us(row),
            interval_us: INTERVAL_US,
            channels: &self.channels,
        };
        let mut buffer = [0; FRAME_BYTES];
        encode(&header, &self.rows[row], &mut buffer).expect("a row of a machine is a valid frame").to_vec()
    }

    /// The frames of all rows, in order.
    pub fn frames(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        (0..self.rows.len()).map(|row| self.frame(row))
    }

    /// The first rows as one row-major matrix, for commissioning.
    pub fn matrix(&self, rows: usize) -> Vec<f32> {
        self.rows.iter().take(rows).flatten().copied().collect()
    }

    /// The names of the channels as commissioning wants them.
    pub fn channel_names(&self) -> Vec<String> {
        self.channels.iter().map(|&name| name.to_owned()).collect()
    }
}
