//! File descriptors: as many as the system allows, and no more connections than there are descriptors for.
//!
//! Owns the division: so many for MQTT clients, up to [`HTTP_CONNECTIONS_MAX`] for HTTP, the rest for files. Never opens any.

use millwright_broker::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// HTTP connections at a time: 100 dashboards hold one each, and one more while they load. More take the places of
/// silent ones, or wait to be accepted.
pub const HTTP_CONNECTIONS_MAX: usize = 256;

/// HTTP connections that wait for a place.
pub const HTTP_WAITING_MAX: usize = 32;

/// HTTP has this part of the descriptors where there are few.
const HTTP_PART: usize = 4;

/// For the databases and their readers, model files and their trial, listeners and the runtime: 64, and who waits for HTTP.
const RESERVE: usize = 64 + HTTP_WAITING_MAX;

/// Raises the soft limit to the hard one.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of file descriptors stays at {:?}", limit.current);
    }
}

/// The limits with as many connections as there are descriptors for; says so if those are fewer.
pub fn fit(limits: Limits) -> Limits {
    // `None` is no limit.
    let Some(files) = getrlimit(Resource::Nofile).current else { return limits };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let room = connections(files);
    if limits.connections_max <= room {
        return limits;
    }
    tracing::warn!(
        files,
        "{room} clients at a time instead of {}: the limit of file descriptors allows no more; raise it (`ulimit -n`, \
         LimitNOFILE= in the systemd unit) to {}, or lower max_connections in [broker]",
        limits.connections_max,
        needed(limits.connections_max)
    );
    Limits { connections_max: room, ..limits }
}

/// Descriptors that so many MQTT connections need, with HTTP and files.
pub fn needed(connections_max: usize) -> usize {
    connections_max.saturating_add(HTTP_CONNECTIONS_MAX + RESERVE)
}

/// HTTP connections that the descriptors are enough for.
pub fn http_connections_max() -> usize {
    let files =
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    http_connections(files)
}

fn http_connections(files: usize) -> usize {
    (files / HTTP_PART).clamp(1, HTTP_CONNECTIONS_MAX)
}

/// MQTT connections that so many descriptors are enough for.
fn connections(files: usize) -> usize {
    files.saturating_sub(http_connections(files) + RESERVE).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The reserve is kept for files; with hardly any descriptors one client is served all the same.
    #[test]
    fn a_reserve_is_kept() {
        assert_eq!(connections(1_024), 672);
        assert_eq!((connections(256), http_connections(256)), (96, 64));
        assert_eq!(connections(20), 1);
    }
}
