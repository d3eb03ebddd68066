//! The audit trail: what people did, the newest first.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::super::Site;
use super::super::error::ApiError;
use super::alerts::refused;
use super::ask::Query;
use super::page::{Page, PageQuery, number};
use crate::casebook::AuditEntry;
use crate::casebook::action::By;

pub(super) async fn list(
    State(site): State<Arc<Site>>,
    Query(asked): Query<PageQuery>,
) -> Result<Json<Page<AuditEntry>>, ApiError> {
    let before = number(asked.cursor.as_deref())?.map(|before| i64::try_from(before).unwrap_or(i64::MAX));
    let casebook = site.api.casebook.clone();
    let page = site.api.desk.read(move || casebook.audit(before, asked.limit.get())).await?;
    page.map(Page::from).map(Json).map_err(refused)
}

/// Notes what was carried out elsewhere. What is done is done: a trail that cannot be written is told in the log.
pub(super) async fn note(site: &Site, user: &str, action: &'static str, subject: String, text: Option<String>) {
    let (casebook, by) = (site.api.casebook.clone(), By::user(user));
    let noted =
        site.api.desk.read(move || casebook.note_action(&by, action, &subject, text.as_deref()).map_err(refused));
    if !matches!(noted.await, Ok(Ok(()))) {
        tracing::error!(user, action, "what was done could not be noted in the audit trail");
    }
}
