//! Whether a manifest may become a model.
//!
//! Owns the rules of signatures and versions: with trusted keys only what one of them signed; versions only go up, unless a
//! signed manifest says that it is a rollback from the version that is active. Decides by what is given, without a clock or a disk.

use millwright_models::Manifest;
use millwright_models::signature::{self, PublicKey};

use crate::state::versions::{VersionRow, VersionState};

/// What is to be done with a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is a new version: collect it, try it, show it the stream.
    New {
        /// The key that vouches for it.
        signed_by: Option<String>,
    },
    /// It goes back from the version that is active.
    Rollback {
        /// The key that vouches for it.
        signed_by: Option<String>,
    },
    /// It is known; nothing is to be done.
    Known(VersionRow),
    /// It is refused.
    Refused(String),
}

/// Decides about a manifest that was stored at `stored_us`. `versions` are those of its name.
pub(super) fn decide(
    json: &[u8],
    manifest: &Manifest,
    stored_us: i64,
    versions: &[VersionRow],
    trusted: &[PublicKey],
) -> Admission {
    let signed_by = match trusted {
        [] => None,
        trusted => match signature::verify(json, trusted) {
            Ok(key) => Some(key.id()),
            Err(error) => return Admission::Refused(error.to_string()),
        },
    };
    let sha256 = manifest.sha256().to_string();
    let version = manifest.version();
    let active = versions.iter().find(|row| row.state.scores());
    let same = versions.iter().find(|row| row.sha256 == sha256);
    if let Some(from) = manifest.rollback_from() {
        return match active {
            Some(active) if active.sha256 == sha256 => Admission::Known(active.clone()),
            // Without a key anybody could undo an update: the operator's order does it then.
            _ if signed_by.is_none() => Admission::Refused(
                "only a signed manifest rolls back: sign it, and list the key in `trusted_keys` in [models], or use `millwright model rollback`"
                    .to_owned(),
            ),
            Some(active) if active.version == from => Admission::Rollback { signed_by },
            Some(active) => Admission::Refused(format!(
                "it rolls back from version {from}, and version {} is active: sign one that goes back from that",
                active.version
            )),
            None => Admission::Refused(format!("it rolls back from version {from}, and no version is active")),
        };
    }
    // What was refused or taken back is tried again only when it is published again.
    if let Some(row) = same {
        let again = row.state == VersionState::Rejected && stored_us > row.since_us;
        if !again {
            return Admission::Known(row.clone());
        }
    }
    let highest = versions.iter().filter(|row| row.state != VersionState::Rejected).map(|row| row.version).max();
    match highest {
        Some(highest) if version <= highest => Admission::Refused(format!(
            "version {version} is not newer than version {highest}, which this gateway has had: give it a higher version"
        )),
        _ => Admission::New { signed_by },
    }
}

#[cfg(test)]
mod tests {
    use millwright_models::ModelName;
    use millwright_models::signature::SecretKey;

    use super::*;

    fn manifest(version: u64, file: &[u8]) -> Manifest {
        Manifest::describe(ModelName::parse("pump").unwrap(), version, file, 1000, None).unwrap()
    }

    fn row(version: u64, file: &[u8], state: VersionState) -> VersionRow {
        VersionRow {
            name: "pump".to_owned(),
            sha256: millwright_models::Digest::of(file).to_string(),
            version,
            assets: vec!["pump".to_owned()],
            state,
            reason: None,
            since_us: 100,
            signed_by: None,
        }
    }

    fn decided(manifest: &Manifest, stored_us: i64, versions: &[VersionRow]) -> Admission {
        decide(&manifest.to_json(), manifest, stored_us, versions, &[])
    }

    // Versions only go up, counted from the highest that was ever accepted; a refused number may be used again.
    #[test]
    fn versions_only_go_up() {
        let versions = [
            row(3, b"3", VersionState::Active),
            row(4, b"4", VersionState::RolledBack),
            row(9, b"9", VersionState::Rejected),
        ];
        assert_eq!(decided(&manifest(5, b"5"), 200, &versions), Admission::New { signed_by: None });
        for old in [1, 3, 4] {
            assert!(matches!(decided(&manifest(old, b"other"), 200, &versions), Admission::Refused(_)), "{old}");
        }
        assert_eq!(decided(&manifest(3, b"3"), 200, &versions), Admission::Known(versions[0].clone()));
        assert_eq!(decided(&manifest(4, b"4"), 200, &versions), Admission::Known(versions[1].clone()));
        // Refused before: again only when it was published again.
        assert_eq!(decided(&manifest(9, b"9"), 50, &versions), Admission::Known(versions[2].clone()));
        assert_eq!(decided(&manifest(9, b"9"), 200, &versions), Admission::New { signed_by: None });
        assert_eq!(decided(&manifest(1, b"1"), 1, &[]), Admission::New { signed_by: None });
    }

    // With trusted keys only their signatures count, and only a signed rollback goes back, from the active version alone.
    #[test]
    fn only_a_signed_rollback_goes_back() {
        let (key, other) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let trusted = [key.public()];
        let versions = [row(3, b"3", VersionState::Retired), row(5, b"5", VersionState::Active)];
        let back = manifest(3, b"3").rolling_back(5).unwrap();
        let decide_signed = |manifest: &Manifest, key: &SecretKey, versions: &[VersionRow]| {
            decide(&key.sign(&manifest.to_json()).unwrap(), manifest, 200, versions, &trusted)
        };
        assert_eq!(decide_signed(&back, &key, &versions), Admission::Rollback { signed_by: Some(key.public().id()) });
        assert!(matches!(decide_signed(&back, &other, &versions), Admission::Refused(_)));
        assert!(matches!(decided(&back, 200, &versions), Admission::Refused(_)));
        assert!(matches!(
            decide(&manifest(6, b"6").to_json(), &manifest(6, b"6"), 200, &versions, &trusted),
            Admission::Refused(_)
        ));
        // Replayed after version 6 came.
        let later = [row(3, b"3", VersionState::Retired), row(6, b"6", VersionState::Active)];
        assert!(matches!(decide_signed(&back, &key, &later), Admission::Refused(_)));
        // Done already.
        let done = [row(3, b"3", VersionState::Active), row(5, b"5", VersionState::RolledBack)];
        assert_eq!(decide_signed(&back, &key, &done), Admission::Known(done[0].clone()));
    }
}
