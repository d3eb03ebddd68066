//! The pages of the dashboard and what they load, from the program itself.

use std::sync::Arc;

use axum::Router;

use super::Site;

/// Everything outside `/api`.
pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
}
