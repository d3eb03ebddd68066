//! The devices that feed the assets: what was heard of each, and when.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::super::Site;
use super::super::error::ApiError;
use super::ask::Query;
use super::page::{Page, PageQuery};
use crate::pipeline::devices::DeviceFigures;

/// A device, as it is told.
#[derive(Serialize)]
pub(super) struct DeviceTold {
    /// Null where messages do not say from whom they are.
    device: Option<String>,
    boot: Option<u32>,
    seq: Option<u64>,
    last_us: i64,
    rate_hz: Option<f64>,
    gaps: u64,
    duplicates: u64,
    late: u64,
    skew_us: Option<i64>,
}

impl From<&DeviceFigures> for DeviceTold {
    fn from(figures: &DeviceFigures) -> DeviceTold {
        DeviceTold {
            device: figures.device.as_deref().map(str::to_owned),
            boot: figures.boot,
            seq: figures.seq,
            last_us: figures.last_us,
            rate_hz: figures.rate_hz,
            gaps: figures.gaps,
            duplicates: figures.duplicates,
            late: figures.late,
            skew_us: figures.skew_us,
        }
    }
}

/// A device of an asset.
#[derive(Serialize)]
pub(super) struct Device {
    asset: String,
    #[serde(flatten)]
    figures: DeviceTold,
}

pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<Device>>, ApiError> {
    let views = site.api.views.latest();
    let devices = views.assets.iter().flat_map(|view| {
        let device = |figures: &DeviceFigures| Device { asset: view.asset.to_string(), figures: figures.into() };
        view.devices.iter().map(device)
    });
    let key = |device: &Device| format!("{}/{}", device.asset, device.figures.device.as_deref().unwrap_or_default());
    Page::of(devices.collect(), key, asked.limit, asked.cursor.as_deref()).map(Json)
}
