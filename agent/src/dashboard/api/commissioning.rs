//! Commissioning: the assets whose normal is being learned, how far each is and how good its data are.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::super::Site;
use super::super::error::ApiError;
use super::ask::Query;
use super::assets::Channel;
use super::page::{Page, PageQuery};
use crate::pipeline::view::AssetView;

/// An asset that is being learned.
#[derive(Serialize)]
pub(super) struct Commissioning {
    asset: String,
    rows: usize,
    of: usize,
    /// Seconds until all rows are there, at the pace that they come; null before two have.
    eta_s: Option<f64>,
    quality: Quality,
    channels: Vec<Channel>,
}

/// What is wrong with its data, since it was first seen.
#[derive(Serialize)]
struct Quality {
    missing_values: u64,
    duplicates: u64,
    late: u64,
    gaps: u64,
    interval_us: Option<i64>,
}

impl Commissioning {
    /// An asset that has so many rows of so many.
    pub(super) fn of(view: &AssetView, (rows, of): (usize, usize)) -> Commissioning {
        let interval_us = Some(view.interval_us).filter(|interval| *interval > 0);
        let left = of.saturating_sub(rows) as f64;
        Commissioning {
            asset: view.asset.to_string(),
            rows,
            of,
            eta_s: interval_us.map(|interval| left * interval as f64 / 1e6),
            quality: Quality {
                missing_values: view.counters.missing_values,
                duplicates: view.counters.duplicates,
                late: view.counters.late,
                gaps: view.counters.gaps,
                interval_us,
            },
            channels: view.channels().into_iter().map(Channel::from).collect(),
        }
    }
}

pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<Commissioning>>, ApiError> {
    let views = site.api.views.latest();
    let learning = views.assets.iter().filter_map(|view| Some(Commissioning::of(view, view.learning?)));
    Page::of(learning.collect(), |it| it.asset.clone(), asked.limit, asked.cursor.as_deref()).map(Json)
}
