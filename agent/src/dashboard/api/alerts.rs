//! Alerts: the list, one with its evidence; acknowledge it, write about it, judge it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::super::Site;
use super::super::auth::Engineer;
use super::super::body::Sent;
use super::super::error::ApiError;
use super::ask::{Named, Query, conflict, failed, missing, wrong};
use super::assets::act;
use super::desk::busy;
use super::page::{Limit, Page, number};
use crate::casebook::action::Action;
use crate::casebook::{self, AlertQuery, AlertSummary, Case, CasebookError, Verdict};
use crate::pipeline::asset::CommissionRefused;

/// Which alerts to list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    asset: Option<String>,
    #[serde(default)]
    state: Which,
    #[serde(default)]
    limit: Limit,
    #[serde(default)]
    cursor: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Which {
    Open,
    Closed,
    #[default]
    All,
}

/// What may be said with an acknowledgement.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Acknowledge {
    #[serde(default)]
    comment: Option<String>,
}

/// What is said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Comment {
    text: String,
}

/// Whether the alert was right.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Feedback {
    verdict: Verdict,
    #[serde(default)]
    comment: Option<String>,
}

pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Query(asked): Query<ListQuery>,
) -> Result<Json<Page<AlertSummary>>, ApiError> {
    let before = number(asked.cursor.as_deref())?;
    let query = AlertQuery {
        asset: asked.asset,
        open: match asked.state {
            Which::Open => Some(true),
            Which::Closed => Some(false),
            Which::All => None,
        },
        before: before.map(|before| i64::try_from(before).unwrap_or(i64::MAX)),
        limit: asked.limit.get(),
        ..AlertQuery::default()
    };
    let casebook = site.api.casebook.clone();
    let page = site.api.desk.read(move || casebook.alerts(&query)).await?.map_err(refused)?;
    Ok(Json(Page::from(page)))
}

pub(super) async fn one(State(site): State<Arc<Site>>, Named(number): Named<u64>) -> Result<Json<Case>, ApiError> {
    case(&site, number).await.map(Json)
}

async fn case(site: &Site, number: u64) -> Result<Case, ApiError> {
    let casebook = site.api.casebook.clone();
    site.api.desk.read(move || casebook.case(number)).await?.map_err(refused)
}

pub(super) async fn acknowledge(
    State(site): State<Arc<Site>>,
    Engineer(user): Engineer,
    Named(alert): Named<u64>,
    Sent(Acknowledge { comment }): Sent<Acknowledge>,
) -> Result<Json<Case>, ApiError> {
    act(&site, &user.name, Action::Acknowledge { alert, comment }).await?;
    case(&site, alert).await.map(Json)
}

pub(super) async fn comment(
    State(site): State<Arc<Site>>,
    Engineer(user): Engineer,
    Named(alert): Named<u64>,
    Sent(Comment { text }): Sent<Comment>,
) -> Result<Json<Case>, ApiError> {
    if text.trim().is_empty() {
        return Err(wrong("bad-body", "the comment is empty".to_owned(), "write something into `text`"));
    }
    act(&site, &user.name, Action::Comment { alert, text }).await?;
    case(&site, alert).await.map(Json)
}

pub(super) async fn feedback(
    State(site): State<Arc<Site>>,
    Engineer(user): Engineer,
    Named(alert): Named<u64>,
    Sent(Feedback { verdict, comment }): Sent<Feedback>,
) -> Result<Json<Case>, ApiError> {
    act(&site, &user.name, Action::Feedback { alert, verdict, comment }).await?;
    case(&site, alert).await.map(Json)
}

/// Why the casebook does not do something.
pub(super) fn refused(error: CasebookError) -> ApiError {
    let text = error.to_string();
    match error {
        CasebookError::UnknownAlert(_) => missing("no-such-alert", text, "GET /api/v1/alerts lists what is kept"),
        CasebookError::UnknownAsset(_) | CasebookError::Commission(CommissionRefused::Unknown(_)) => {
            missing("no-such-asset", text, "GET /api/v1/assets lists what there is")
        }
        CasebookError::TooManyNotes(_) => conflict("too-many-notes", text, "write it down elsewhere"),
        CasebookError::SilenceEnd => wrong("bad-body", text, "give an `until_us` in the future, within a year"),
        CasebookError::Commission(_) => conflict("cannot-learn", text, "see what scores the asset, and roll it back"),
        CasebookError::Stopping => busy("the gateway is stopping"),
        CasebookError::State(error) => failed("the state file", &error),
    }
}

impl<T> From<casebook::Page<T>> for Page<T> {
    fn from(page: casebook::Page<T>) -> Page<T> {
        Page { items: page.items, next: page.next.map(|next| next.to_string()) }
    }
}
