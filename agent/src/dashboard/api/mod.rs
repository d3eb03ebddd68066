//! The HTTP API, below `/api/v1`; `docs/openapi.json` describes it, and a test holds the two together.
//!
//! Owns the table of routes: each says which role it serves, in one place. Reads what others publish in memory, or on threads that may
//! block and are few ([`desk`]); never touches the log or the pipeline while a client waits for a socket, so that a slow client slows
//! nobody.

mod alerts;
pub(super) mod ask;
mod assets;
mod audit;
mod commissioning;
mod desk;
mod devices;
mod etag;
mod export;
mod jobs;
mod models;
mod openapi;
mod page;
pub(super) mod plant;
mod upload;

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter};
use axum::{Json, Router};
use tokio::sync::{Semaphore, mpsc, watch};

use self::desk::Desk;
use self::export::Exports;
use self::jobs::Jobs;
use super::Site;
use super::auth::{Admin, Engineer, Role, Viewer};
use super::live::{self, Live};
use crate::casebook::Casebook;
use crate::historian::Historian;
use crate::models::order::Order;
use crate::pipeline::live::LiveFeed;
use crate::pipeline::runner::Command;
use crate::pipeline::view::Views;

pub use self::jobs::Workshop;

/// Uploads at a time: each holds a whole model in memory.
const UPLOADS_MAX: usize = 1;

/// What the API is built from.
pub struct ApiParts {
    /// To the steward of models.
    pub orders: mpsc::Sender<Order>,
    /// To the pipeline.
    pub commands: mpsc::Sender<Command>,
    /// What models are tested with.
    pub workshop: Arc<Workshop>,
    /// What people see of the plant.
    pub views: Views,
    /// New rows, and news of alerts.
    pub feed: Arc<LiveFeed>,
    /// Charts of the past.
    pub historian: Arc<Historian>,
    /// Alerts, and what people do about them.
    pub casebook: Casebook,
}

/// What requests are carried out with.
pub(crate) struct Api {
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) workshop: Arc<Workshop>,
    pub(crate) views: Views,
    pub(crate) feed: Arc<LiveFeed>,
    pub(crate) historian: Arc<Historian>,
    pub(crate) casebook: Casebook,
    pub(crate) desk: Desk,
    pub(crate) jobs: Jobs,
    pub(crate) exports: Exports,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) live: Live,
}

impl Api {
    /// Live streams and exports end at `stop`.
    pub(super) fn new(parts: ApiParts, stop: watch::Receiver<bool>) -> Api {
        let ApiParts { orders, commands, workshop, views, feed, historian, casebook } = parts;
        Api {
            orders,
            commands,
            workshop,
            views,
            exports: Exports::new(stop.clone()),
            live: Live::new(Arc::clone(&feed), stop),
            feed,
            historian,
            casebook,
            desk: Desk::default(),
            jobs: Jobs::default(),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
        }
    }
}

/// A line of the table.
struct Route {
    path: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "the handler knows it; the test of the description asks"))]
    method: Method,
    /// The least role that is served.
    role: Role,
    handler: MethodRouter<Arc<Site>>,
}

fn route<H, T>(path: &'static str, method: (Method, MethodFilter), role: Role, handler: H) -> Route
where
    H: Handler<T, Arc<Site>>,
    T: 'static,
{
    let (method, filter) = method;
    Route { path, method, role, handler: MethodRouter::new().on(filter, handler) }
}

/// Every route of the API but the session's, which [`super::auth`] owns.
fn table() -> Vec<Route> {
    let get = || (Method::GET, MethodFilter::GET);
    let post = || (Method::POST, MethodFilter::POST);
    let put = || (Method::PUT, MethodFilter::PUT);
    let delete = || (Method::DELETE, MethodFilter::DELETE);
    use Role::{Admin, Engineer, Viewer};
    vec![
        route("/openapi.json", get(), Viewer, openapi::document),
        route("/status", get(), Viewer, status),
        route("/plant", get(), Viewer, plant::plant),
        route("/live", get(), Viewer, live::listen),
        route("/assets", get(), Viewer, assets::list),
        route("/assets/{asset}", get(), Viewer, assets::one),
        route("/assets/{asset}/history", get(), Viewer, assets::history),
        route("/assets/{asset}/rows", get(), Viewer, assets::rows),
        route("/assets/{asset}/silence", put(), Engineer, assets::silence),
        route("/assets/{asset}/silence", delete(), Engineer, assets::unsilence),
        route("/assets/{asset}/commission", post(), Engineer, assets::commission),
        route("/alerts", get(), Viewer, alerts::list),
        route("/alerts/{number}", get(), Viewer, alerts::one),
        route("/alerts/{number}/acknowledge", post(), Engineer, alerts::acknowledge),
        route("/alerts/{number}/comment", post(), Engineer, alerts::comment),
        route("/alerts/{number}/feedback", post(), Engineer, alerts::feedback),
        route("/devices", get(), Viewer, devices::list),
        route("/commissioning", get(), Viewer, commissioning::list),
        route("/audit", get(), Viewer, audit::list),
        route("/export", get(), Viewer, export::export),
        route("/models", get(), Viewer, models::list),
        route("/models", post(), Admin, upload::upload),
        route("/models/{name}", get(), Viewer, models::one),
        route("/models/{name}/{version}/promote", post(), Engineer, models::promote),
        route("/models/{name}/{version}/rollback", post(), Engineer, models::roll_back),
        route("/models/{name}/{version}/test", post(), Engineer, models::test),
        route("/jobs/{id}", get(), Viewer, jobs::one),
    ]
}

/// The routes, without their common prefix.
pub(super) fn routes() -> Router<Arc<Site>> {
    let mut router = Router::new();
    for Route { path, role, handler, .. } in table() {
        let admitted = middleware::from_fn(move |request: Request, next: Next| admit(role, request, next));
        router = router.route(path, handler.layer(admitted));
    }
    router.layer(middleware::from_fn(etag::tag))
}

/// Lets through whoever has the role.
async fn admit(role: Role, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let admitted = match role {
        Role::Viewer => Viewer::from_request_parts(&mut parts, &()).await.map(|user| user.0),
        Role::Engineer => Engineer::from_request_parts(&mut parts, &()).await.map(|user| user.0),
        Role::Admin => Admin::from_request_parts(&mut parts, &()).await.map(|user| user.0),
    };
    match admitted {
        Ok(_) => next.run(Request::from_parts(parts, body)).await,
        Err(refused) => refused.into_response(),
    }
}

async fn status(State(site): State<Arc<Site>>) -> Response {
    Json(site.status.status()).into_response()
}
