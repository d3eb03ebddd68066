//! The HTTP API, below `/api/v1`.
//!
//! Owns what programs and the pages may ask. Reads what others publish in memory; never touches the log or the pipeline
//! while a client waits for a socket, so that a slow client slows nobody.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use super::Site;
use super::auth::Viewer;

/// The routes, without their common prefix.
pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new().route("/status", get(status)).route("/models", get(models))
}

async fn models(_: Viewer, State(site): State<Arc<Site>>) -> Response {
    Json(site.status.models.borrow().as_ref()).into_response()
}

async fn status(_: Viewer, State(site): State<Arc<Site>>) -> Response {
    Json(site.status.status()).into_response()
}
