//! The upload of a model: what `model push` publishes, from a browser.
//!
//! The body is the manifest that `model pack` wrote (`?manifest_bytes=` of it) and right behind it the ONNX file. Without a manifest the
//! gateway describes the file itself, as `model push` does without a key, for the assets of `?assets=` (patterns, separated by commas).
//! What is uploaded takes the way of every pushed model: chunks and manifest are published, retained, on the gateway's own broker, and all
//! checks of the steward follow. One upload at a time, so that one file is in memory; it must have arrived within [`ARRIVE`].

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use futures_util::{StreamExt, stream};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use millwright_models::Digest;
use millwright_models::contract::Contract;
use millwright_models::manifest::{CHUNK_BYTES_MAX, MANIFEST_BYTES_MAX, Manifest};
use millwright_models::signature;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::Site;
use super::super::auth::Admin;
use super::super::error::ApiError;
use super::ask::{Query, failed, wrong};
use super::audit;
use super::desk::busy;

/// Longest time for a body to arrive: 32 MiB over 3G.
const ARRIVE: Duration = Duration::from_secs(120);
/// Longest time for the log to take it: 32 MiB on a slow card.
const PUBLISH: Duration = Duration::from_secs(60);
/// Messages under way: the log commits them together, and 2 MiB of chunks are in its queue.
const IN_FLIGHT: usize = 32;
/// Longest time that the answer waits for what becomes of it; a connection on which nothing is sent for 10 s is cut off.
const OUTCOME: Duration = Duration::from_secs(6);

/// How the body is divided.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parts {
    #[serde(default)]
    manifest_bytes: usize,
    #[serde(default)]
    assets: Option<String>,
}

/// What was published.
#[derive(Serialize)]
pub(super) struct Uploaded {
    name: String,
    version: u64,
    sha256: String,
    /// What is retained on the model's state topic, if the steward has come to it: `shadow`, `rejected` with its reason, …
    outcome: Option<Value>,
}

pub(super) async fn upload(
    State(site): State<Arc<Site>>,
    Admin(user): Admin,
    Query(parts): Query<Parts>,
    body: axum::body::Body,
) -> Result<(StatusCode, Json<Uploaded>), ApiError> {
    let uploads = Arc::clone(&site.api.uploads);
    let place = uploads.try_acquire_owned().map_err(|_| busy("another upload is under way"))?;
    let body = arrive(body, &parts, site.api.workshop.limits.file_bytes_max).await?;
    let package = Package::read(&body, &parts)?;
    if !site.api.workshop.config.models.trusted_keys.is_empty() {
        // The steward would refuse it too; whoever uploads is told at once.
        signature::verify(&package.json, &site.api.workshop.config.models.trusted_keys).map_err(|error| {
            unprocessable("not-signed", error.to_string(), "sign it: `millwright model pack --key`")
        })?;
    }
    let manifest = &package.manifest;
    tracing::info!(model = %manifest.name(), version = manifest.version(), by = user.name, "a model was uploaded");
    audit::note(&site, &user.name, "upload", format!("{} v{}", manifest.name(), manifest.version()), None).await;
    let mut uploaded = Uploaded {
        name: manifest.name().to_string(),
        version: manifest.version(),
        sha256: manifest.sha256().to_string(),
        outcome: None,
    };
    // It goes on when the client no longer waits: half a model is of no use. It ends by its deadline, and with the gateway.
    let publishing = tokio::spawn(async move {
        let published = tokio::time::timeout(PUBLISH, publish(&site, &package)).await;
        drop(place);
        published.map_err(|_| busy("the log does not take the model now"))??;
        // Another manifest of the name may have come meanwhile: then nothing more is told of this one.
        Ok(tokio::time::timeout(OUTCOME, outcome(&site, &package.manifest)).await.ok())
    });
    match tokio::time::timeout(OUTCOME, publishing).await {
        Ok(published) => uploaded.outcome = published.map_err(|error| failed("the upload", &error))??,
        Err(_) => tracing::debug!("an upload is answered before it is known what becomes of it"),
    }
    Ok((StatusCode::ACCEPTED, Json(uploaded)))
}

/// The whole body, if it is not too large and comes in time.
async fn arrive(body: axum::body::Body, parts: &Parts, file_bytes_max: usize) -> Result<Bytes, ApiError> {
    if parts.manifest_bytes > MANIFEST_BYTES_MAX {
        let text = format!("`manifest_bytes` is {}, at most {MANIFEST_BYTES_MAX} are allowed", parts.manifest_bytes);
        return Err(wrong("bad-query", text, "give the size of the manifest in bytes"));
    }
    let limit = file_bytes_max.saturating_add(parts.manifest_bytes);
    match tokio::time::timeout(ARRIVE, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(body)) => Ok(body),
        _ => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            format!("the model has more than {file_bytes_max} bytes (`max_mb` in [models]), or did not arrive in time"),
            "send a smaller model, or raise `max_mb`",
        )),
    }
}

struct Package {
    manifest: Manifest,
    json: Vec<u8>,
    file: Bytes,
}

impl Package {
    fn read(body: &Bytes, parts: &Parts) -> Result<Package, ApiError> {
        if body.len() <= parts.manifest_bytes {
            let text = format!("the body has {} bytes, {} of them the manifest", body.len(), parts.manifest_bytes);
            return Err(wrong("bad-body", text, "send the manifest and right behind it the ONNX file"));
        }
        let (head, file) = (body.slice(..parts.manifest_bytes), body.slice(parts.manifest_bytes..));
        let bad_manifest = |error: &dyn std::fmt::Display| {
            unprocessable("bad-manifest", error.to_string(), "send the manifest that `millwright model pack` wrote")
        };
        if head.is_empty() {
            let contract = Contract::read(&file).map_err(|error| {
                unprocessable("bad-model", error.to_string(), "see docs/MODELS.md for what a model is")
            })?;
            let assets = parts.assets.as_deref().unwrap_or_default();
            let assets = assets.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect();
            let manifest = Manifest::describe(contract.name.clone(), contract.version, &file, CHUNK_BYTES_MAX, None)
                .and_then(|manifest| manifest.for_assets(assets))
                .map_err(|error| bad_manifest(&error))?;
            let json = manifest.to_json();
            return Ok(Package { manifest, json, file });
        }
        if parts.assets.is_some() {
            let text = "`assets` is given, and the manifest names the assets already".to_owned();
            return Err(wrong("bad-query", text, "leave one of them out"));
        }
        let manifest = Manifest::parse(&head).map_err(|error| bad_manifest(&error))?;
        if *manifest.sha256() != Digest::of(&file) {
            return Err(bad_manifest(&"it is the manifest of another file: its sha256 is not that of what follows it"));
        }
        Ok(Package { manifest, json: head.to_vec(), file })
    }
}

/// Chunks first, then the manifest that asks for them.
async fn publish(site: &Site, package: &Package) -> Result<(), ApiError> {
    let Package { manifest, json, file } = package;
    let chunks: Vec<(String, Bytes)> = manifest
        .split(file)
        .enumerate()
        .map(|(n, chunk)| (manifest.chunk_topic(n), Bytes::copy_from_slice(chunk)))
        .collect();
    let mut published = stream::iter(chunks).map(|(topic, chunk)| retain(site, topic, chunk)).buffered(IN_FLIGHT);
    while let Some(one) = published.next().await {
        one?;
    }
    retain(site, manifest.topic(), Bytes::from(json.clone())).await
}

async fn retain(site: &Site, topic: String, payload: Bytes) -> Result<(), ApiError> {
    let topic = TopicName::parse(&topic)
        .map_err(|error| unprocessable("bad-manifest", error.to_string(), "give the model another name"))?;
    let message = Message { topic, payload, properties: Bytes::new(), qos: QoS::AtLeastOnce, retain: true, origin: 0 };
    site.status.publisher.publish(message).await.map(drop).map_err(|error| {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        ApiError::new(status, "not-stored", format!("the log does not take the model: {error}"), "try again later")
    })
}

/// Waits for what the steward tells of this file.
async fn outcome(site: &Site, manifest: &Manifest) -> Value {
    let state = format!("mw/v1/model/{}/state/{}", manifest.name(), site.status.gateway);
    let sha256 = manifest.sha256().to_string();
    let mut changed = site.status.log.retained().watch();
    let told = || {
        let retained = site.status.log.retained().get(&TopicName::parse(&state).ok()?)?;
        let manifest_at = TopicName::parse(&manifest.topic()).ok()?;
        let pushed_us = site.status.log.retained().get(&manifest_at)?.stored_us;
        let told: Value = serde_json::from_slice(&retained.message.payload).ok()?;
        (retained.stored_us >= pushed_us && told.get("sha256").and_then(Value::as_str) == Some(&sha256)).then_some(told)
    };
    loop {
        changed.mark_unchanged();
        if let Some(told) = told() {
            return told;
        }
        if changed.changed().await.is_err() {
            return Value::Null;
        }
    }
}

fn unprocessable(code: &'static str, message: String, remedy: &str) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, code, message, remedy)
}
