//! Assets: the list, one in full, its past as a chart, its newest rows; silence it, learn it anew.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::super::Site;
use super::super::auth::Engineer;
use super::super::body::Sent;
use super::super::error::ApiError;
use super::alerts::refused;
use super::ask::{Named, Query, failed, missing, wrong};
use super::commissioning::Commissioning;
use super::devices::DeviceTold;
use super::page::{Limit, Page};
use super::plant::AssetSummary;
use crate::alarm::Severity;
use crate::alarm::deviation::Expected;
use crate::alarm::message::{HealthState, ModelRef};
use crate::casebook::action::{Action, By};
use crate::casebook::{AlertQuery, PAGE_MAX};
use crate::clock::{self, SECOND_US};
use crate::historian::HistoryError;
use crate::historian::series::{Line, POINTS_MAX, Series, SeriesChannel, SeriesQuery, Source};
use crate::ids::{AssetId, shorten};
use crate::pipeline::asset::Counters;
use crate::pipeline::live::LiveBatch;
use crate::pipeline::runner::Command;
use crate::pipeline::view::{AssetView, ChannelView};

/// Points of a chart that does not say how many: more than a phone has, fewer than a wall.
const POINTS: usize = 600;
/// Fewer show nothing.
const POINTS_MIN: usize = 10;
/// Time that a chart shows which does not say from when.
const SPAN_US: i64 = 3_600 * SECOND_US;
/// Newest rows: three minutes at 1 Hz, what a live chart begins with.
const ROWS_MAX: usize = 180;
/// Channels that can be asked for.
const CHANNELS_MAX: usize = 64;

/// Which assets to list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    state: Option<HealthState>,
    #[serde(default)]
    q: Option<String>,
    #[serde(default)]
    limit: Limit,
    #[serde(default)]
    cursor: Option<String>,
}

/// One asset in full.
#[derive(Serialize)]
pub(super) struct AssetDetail {
    #[serde(flatten)]
    summary: AssetSummary,
    channels: Vec<Channel>,
    model: Option<ModelRef>,
    counters: Counters,
    interval_us: Option<i64>,
    devices: Vec<DeviceTold>,
}

/// A channel with what is expected of it.
#[derive(Serialize)]
pub(super) struct Channel {
    name: String,
    unit: Option<String>,
    last: Option<f32>,
    expected: Option<Expected>,
}

impl From<ChannelView> for Channel {
    fn from(view: ChannelView) -> Channel {
        let ChannelView { name, unit, last, expected } = view;
        Channel { name: name.to_string(), unit, last, expected }
    }
}

pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Query(asked): Query<ListQuery>,
) -> Result<Json<Page<AssetSummary>>, ApiError> {
    let wanted = asked.q.map(|text| text.to_lowercase());
    let views = site.api.views.latest();
    let matches = |view: &&Arc<AssetView>| {
        let named = wanted.as_ref().is_none_or(|text| view.asset.as_str().to_lowercase().contains(text));
        named && asked.state.is_none_or(|state| state == view.state)
    };
    let assets = views.assets.iter().filter(matches).map(|view| AssetSummary::of(view)).collect();
    let key = |asset: &AssetSummary| asset.asset.clone();
    Page::of(assets, key, asked.limit, asked.cursor.as_deref()).map(Json)
}

pub(super) async fn one(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
) -> Result<Json<AssetDetail>, ApiError> {
    let view = find(&site, &name)?;
    Ok(Json(AssetDetail {
        summary: AssetSummary::of(&view),
        channels: view.channels().into_iter().map(Channel::from).collect(),
        model: view.model.as_ref().map(|model| model.as_ref().into()),
        counters: view.counters,
        interval_us: Some(view.interval_us).filter(|interval| *interval > 0),
        devices: view.devices.iter().map(DeviceTold::from).collect(),
    }))
}

/// The view of an asset.
pub(super) fn find(site: &Site, name: &str) -> Result<Arc<AssetView>, ApiError> {
    let asset = AssetId::parse(name).ok();
    let views = site.api.views.latest();
    asset.and_then(|asset| views.asset(&asset).cloned()).ok_or_else(|| no_asset(name))
}

pub(super) fn no_asset(name: &str) -> ApiError {
    let text = format!("no asset `{}` has sent anything yet", shorten(name));
    missing("no-such-asset", text, "GET /api/v1/assets lists what there is")
}

/// Which part of the past.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    #[serde(default)]
    from_us: Option<i64>,
    #[serde(default)]
    to_us: Option<i64>,
    #[serde(default)]
    points: Option<usize>,
    #[serde(default)]
    channels: Option<String>,
}

/// A chart of the past, with the alerts in it.
#[derive(Serialize)]
pub(super) struct Chart {
    asset: String,
    from_us: i64,
    to_us: i64,
    step_us: i64,
    source: Source,
    times_us: Vec<i64>,
    channels: Vec<ChartChannel>,
    score: Line,
    alerts: Vec<Mark>,
}

/// One channel of a chart.
#[derive(Serialize)]
struct ChartChannel {
    name: String,
    unit: Option<String>,
    #[serde(flatten)]
    line: Line,
}

/// An alert on a chart.
#[derive(Serialize)]
struct Mark {
    number: u64,
    severity: Severity,
    raised_us: i64,
    cleared_us: Option<i64>,
    message: String,
}

pub(super) async fn history(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    Query(asked): Query<HistoryQuery>,
) -> Result<Json<Chart>, ApiError> {
    let view = find(&site, &name)?;
    let query = series_query(&view.asset, &asked)?;
    let (historian, casebook) = (Arc::clone(&site.api.historian), site.api.casebook.clone());
    let read = site.api.desk.read(move || {
        let series = historian.series(&query).map_err(history_refused)?;
        // Alerts that were up in the span were raised at most so long before it.
        let marks = AlertQuery {
            asset: Some(query.asset.to_string()),
            raised_from_us: Some(query.from_us.saturating_sub(query.to_us.saturating_sub(query.from_us))),
            raised_before_us: Some(query.to_us),
            limit: PAGE_MAX,
            ..AlertQuery::default()
        };
        let alerts = casebook.alerts(&marks).map_err(refused)?.items.into_iter();
        let up = alerts.filter(|alert| alert.cleared_us.is_none_or(|cleared| cleared >= query.from_us));
        let mark = up.map(|alert| Mark {
            number: alert.number,
            severity: alert.severity,
            raised_us: alert.raised_us,
            cleared_us: alert.cleared_us,
            message: alert.message,
        });
        Ok((series, mark.collect()))
    });
    let (series, alerts) = read.await??;
    let Series { asset, from_us, to_us, step_us, source, times_us, channels, score } = series;
    let mut units: HashMap<String, String> =
        view.channels().into_iter().filter_map(|channel| Some((channel.name.to_string(), channel.unit?))).collect();
    let channels = channels.into_iter().map(|channel| {
        let SeriesChannel { name, line } = channel;
        ChartChannel { unit: units.remove(&name), name, line }
    });
    let channels = channels.collect();
    Ok(Json(Chart { asset, from_us, to_us, step_us, source, times_us, channels, score, alerts }))
}

fn series_query(asset: &AssetId, asked: &HistoryQuery) -> Result<SeriesQuery, ApiError> {
    let points = asked.points.unwrap_or(POINTS);
    if !(POINTS_MIN..=POINTS_MAX).contains(&points) {
        let text = format!("`points` is {points}");
        return Err(wrong("bad-query", text, "give a number of points from 10 to 2000"));
    }
    let to_us = asked.to_us.unwrap_or_else(clock::utc_us);
    let from_us = asked.from_us.unwrap_or_else(|| to_us.saturating_sub(SPAN_US));
    if to_us <= from_us {
        let text = format!("the span from {from_us} to {to_us} is empty");
        return Err(wrong("bad-query", text, "give a `to_us` that is after `from_us`"));
    }
    let channels = asked.channels.as_deref().filter(|text| !text.is_empty());
    let channels: Option<Vec<String>> = channels.map(|text| text.split(',').map(str::to_owned).collect());
    if channels.as_ref().is_some_and(|channels| channels.len() > CHANNELS_MAX) {
        return Err(wrong("bad-query", format!("more than {CHANNELS_MAX} channels are asked for"), "ask for fewer"));
    }
    Ok(SeriesQuery { asset: asset.clone(), from_us, to_us, points, channels })
}

fn history_refused(error: HistoryError) -> ApiError {
    match error {
        HistoryError::Off => missing("no-history", error.to_string(), "set `quota_mb` in [history]"),
        HistoryError::Span { .. } => wrong("bad-query", error.to_string(), "give a `to_us` that is after `from_us`"),
        error => failed("reading the history", &error),
    }
}

/// How many rows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RowsQuery {
    #[serde(default)]
    rows: Option<usize>,
}

pub(super) async fn rows(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
    Query(asked): Query<RowsQuery>,
) -> Result<Json<LiveBatch>, ApiError> {
    let rows = asked.rows.unwrap_or(ROWS_MAX);
    if !(1..=ROWS_MAX).contains(&rows) {
        return Err(wrong("bad-query", format!("`rows` is {rows}"), "give a number of rows from 1 to 180"));
    }
    let asset = AssetId::parse(&name).map_err(|_| no_asset(&name))?;
    let (reply, answer) = oneshot::channel();
    let command = Command::Rows { asset, rows, reply };
    site.api.commands.try_send(command).map_err(|_| super::desk::busy("the pipeline has much to do"))?;
    let batch = answer.await.map_err(|error| failed("asking the pipeline", &error))?;
    batch.map(Json).ok_or_else(|| no_asset(&name))
}

/// Until when, and why.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SilenceOrder {
    until_us: i64,
    #[serde(default)]
    reason: Option<String>,
}

/// The silence of an asset.
#[derive(Serialize)]
pub(super) struct Silenced {
    asset: String,
    /// Null once it is taken back.
    until_us: Option<i64>,
}

pub(super) async fn silence(
    State(site): State<Arc<Site>>,
    Engineer(user): Engineer,
    Named(name): Named<String>,
    Sent(order): Sent<SilenceOrder>,
) -> Result<Json<Silenced>, ApiError> {
    let asset = AssetId::parse(&name).map_err(|_| no_asset(&name))?;
    let SilenceOrder { until_us, reason } = order;
    act(&site, &user.name, Action::Silence { asset, until_us, reason }).await?;
    Ok(Json(Silenced { asset: name, until_us: Some(until_us) }))
}

pub(super) async fn unsilence(
    State(site): State<Arc<Site>>,
    Engineer(user): Engineer,
    Named(name): Named<String>,
) -> Result<Json<Silenced>, ApiError> {
    let asset = AssetId::parse(&name).map_err(|_| no_asset(&name))?;
    act(&site, &user.name, Action::Unsilence { asset }).await?;
    Ok(Json(Silenced { asset: name, until_us: None }))
}

/// Nothing more is said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

pub(super) async fn commission(
    State(site): State<Arc<Site>>,
    Engineer(user): Engineer,
    Named(name): Named<String>,
    Sent(Nothing {}): Sent<Nothing>,
) -> Result<(StatusCode, Json<Commissioning>), ApiError> {
    let view = find(&site, &name)?;
    act(&site, &user.name, Action::Commission { asset: view.asset.clone() }).await?;
    let began = (0, site.api.workshop.config.commissioning.samples);
    Ok((StatusCode::ACCEPTED, Json(Commissioning::of(&view, began))))
}

/// Has the pipeline do it; when it is answered it is on disk.
pub(super) async fn act(site: &Site, user: &str, action: Action) -> Result<(), ApiError> {
    let (casebook, by) = (site.api.casebook.clone(), By::user(user));
    let done = site.api.desk.read(move || casebook.act(by, action.cleaned())).await?;
    done.map_err(refused)
}
