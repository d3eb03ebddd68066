//! Pushed models: what became of them, promote and roll back, and a test over what the log holds.
//!
//! Orders go to the steward, which alone moves models along, on the word of the user who is signed in: no key has to sign them. What they
//! change is answered when it is done.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use millwright_models::ModelName;
use serde::{Deserialize, Serialize};

use super::super::Site;
use super::super::auth::Engineer;
use super::super::body::Sent;
use super::super::error::ApiError;
use super::ask::{Named, Query, conflict, failed, missing};
use super::audit;
use super::desk::busy;
use super::jobs::Started;
use super::page::{Page, PageQuery};
use crate::models::order::{Order, OrderRefusal, Wish};
use crate::models::steward::VersionView;
use crate::state::versions::AuditRow;

/// Longest wait for the steward, which may be trying another model; a connection on which nothing is sent for 10 s is cut off.
const ORDER_WAIT: Duration = Duration::from_secs(8);
/// Days of a test that does not say how many.
const DAYS: u32 = 30;
/// Most days of a test; the log goes back less far anyway.
const DAYS_MAX: u32 = 36_500;

/// All versions and the newest steps of all.
#[derive(Serialize)]
pub(super) struct Models {
    #[serde(flatten)]
    page: Page<VersionView>,
    audit: Vec<AuditRow>,
}

/// One model's versions, newest first, and its newest steps.
#[derive(Serialize)]
pub(super) struct ModelVersions {
    name: String,
    versions: Vec<VersionView>,
    audit: Vec<AuditRow>,
}

/// A version in a path.
#[derive(Deserialize)]
pub(super) struct VersionPath {
    name: String,
    version: u64,
}

/// Why an order is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    #[serde(default)]
    reason: Option<String>,
}

/// How far back a test goes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Test {
    #[serde(default)]
    days: Option<u32>,
}

pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Models>, ApiError> {
    let view = Arc::clone(&site.status.models.borrow());
    let key = |it: &VersionView| format!("{}/{:020}/{}", it.version.name, it.version.version, it.version.sha256);
    let page = Page::of(view.models.clone(), key, asked.limit, asked.cursor.as_deref())?;
    Ok(Json(Models { page, audit: view.audit.clone() }))
}

pub(super) async fn one(
    State(site): State<Arc<Site>>,
    Named(name): Named<String>,
) -> Result<Json<ModelVersions>, ApiError> {
    let view = Arc::clone(&site.status.models.borrow());
    let mut versions: Vec<VersionView> = view.models.iter().filter(|it| it.version.name == name).cloned().collect();
    if versions.is_empty() {
        return Err(no_model(format!("no model `{}` was pushed to this gateway", crate::ids::shorten(&name))));
    }
    versions.sort_by_key(|it| std::cmp::Reverse(it.version.version));
    let audit = view.audit.iter().filter(|row| row.model == name).cloned().collect();
    Ok(Json(ModelVersions { name, versions, audit }))
}

pub(super) async fn promote(
    State(site): State<Arc<Site>>,
    Engineer(user): Engineer,
    Named(path): Named<VersionPath>,
    Sent(body): Sent<Reason>,
) -> Result<Json<VersionView>, ApiError> {
    order(&site, &user.name, Wish::Promote, &path, body.reason).await.map(Json)
}

pub(super) async fn roll_back(
    State(site): State<Arc<Site>>,
    Engineer(user): Engineer,
    Named(path): Named<VersionPath>,
    Sent(body): Sent<Reason>,
) -> Result<Json<VersionView>, ApiError> {
    order(&site, &user.name, Wish::Rollback, &path, body.reason).await.map(Json)
}

/// Gives an order and waits until it is carried out; it goes on when the client no longer waits.
async fn order(
    site: &Site,
    user: &str,
    wish: Wish,
    path: &VersionPath,
    reason: Option<String>,
) -> Result<VersionView, ApiError> {
    let name = ModelName::parse(&path.name).map_err(|error| no_model(error.to_string()))?;
    let (order, answered) = Order::of_user(user, wish, name, path.version, reason.clone());
    site.api.orders.try_send(order).map_err(|_| busy("more orders wait than the gateway lets wait"))?;
    let outcome = tokio::time::timeout(ORDER_WAIT, answered)
        .await
        .map_err(|_| busy("the order is given and not yet carried out: look at the model's state"))?
        .map_err(|error| failed("the order", &error))?;
    outcome.map_err(refused)?;
    let action = match wish {
        Wish::Promote => "promote",
        Wish::Rollback => "rollback",
    };
    audit::note(site, user, action, subject(path), reason).await;
    find(site, path)
}

fn subject(path: &VersionPath) -> String {
    format!("{} v{}", path.name, path.version)
}

fn refused(refusal: OrderRefusal) -> ApiError {
    let text = refusal.to_string();
    match refusal {
        OrderRefusal::Unknown { .. } => no_model(text),
        OrderRefusal::State { .. } => {
            conflict("wrong-state", text, "look at its state, it may have moved on meanwhile")
        }
        OrderRefusal::NothingBefore { .. } => {
            conflict("nothing-before", text, "push another version, or commission the machines anew")
        }
        OrderRefusal::Signature(_) => conflict("not-signed", text, "sign the order"),
    }
}

/// The version that is meant: of those with one number, the one that was not refused.
fn find(site: &Site, path: &VersionPath) -> Result<VersionView, ApiError> {
    use crate::state::versions::VersionState::Rejected;
    let view = Arc::clone(&site.status.models.borrow());
    let same = view.models.iter().filter(|it| it.version.name == path.name && it.version.version == path.version);
    same.max_by_key(|it| it.version.state != Rejected).cloned().ok_or_else(|| {
        let name = crate::ids::shorten(&path.name);
        no_model(format!("there is no version {} of `{name}` here", path.version))
    })
}

fn no_model(message: String) -> ApiError {
    missing("no-such-model", message, "GET /api/v1/models lists what there is")
}

pub(super) async fn test(
    State(site): State<Arc<Site>>,
    Engineer(user): Engineer,
    Named(path): Named<VersionPath>,
    Sent(body): Sent<Test>,
) -> Result<(StatusCode, Json<Started>), ApiError> {
    let days = body.days.unwrap_or(DAYS);
    if !(1..=DAYS_MAX).contains(&days) {
        let text = format!("`days` is {days}");
        return Err(super::ask::wrong("bad-body", text, "give a number of days from 1 to 36500"));
    }
    let version = find(&site, &path)?.version;
    let started = site.api.jobs.start(&site.api.workshop, version, days, user.name.clone())?;
    audit::note(&site, &user.name, "test", subject(&path), Some(format!("{days} days"))).await;
    Ok((StatusCode::ACCEPTED, Json(started)))
}
