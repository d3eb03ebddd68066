//! The manifest of a model update, and putting its chunks together.
//!
//! Owns the JSON form, its limits and the check of every byte. Never touches the network or the disk: the caller fetches,
//! stores and resumes.
//!
//! ```json
//! {"name": "pump-a", "version": 3, "sha256": "…", "size": 641, "chunk_size": 65536,
//!  "chunks": ["…"], "created": "2025-01-31T12:00:00Z", "assets": ["pump-*"]}
//! ```
//!
//! The manifest is retained on `mw/v1/model/<model>/manifest`, chunk `n` (from 0) on
//! `mw/v1/model/<model>/chunk/<sha256>/<n>`. `chunks` holds the SHA-256 of each, so that a bad one is known at once; every chunk
//! but the last has `chunk_size` bytes.
//!
//! `"rollback_from": 5` makes it a **rollback**: of versions, only a rollback goes down, and only from the version it names, so that it
//! cannot be replayed once a newer one is active.
//!
//! `"signature"` vouches for all other fields ([`crate::signature`] makes and checks it). **Unknown fields are tolerated**: a newer fleet
//! may add some; they are signed with the rest, and what is checked here holds without them.

use serde::{Deserialize, Serialize};

use crate::contract::ModelName;
use crate::digest::Digest;

/// Largest chunk: what any broker carries.
pub const CHUNK_BYTES_MAX: usize = 65_536;
/// Most chunks: 32 MiB of the largest, and 512 digests of 67 bytes still fit a manifest of [`MANIFEST_BYTES_MAX`].
pub const CHUNKS_MAX: usize = 512;
/// Largest model: the most and largest chunks.
pub const MODEL_BYTES_MAX: usize = CHUNKS_MAX * CHUNK_BYTES_MAX;
/// Most patterns of assets.
pub const ASSET_PATTERNS_MAX: usize = 64;
/// Longest pattern, in bytes: an asset's name and a few wildcards.
pub const ASSET_PATTERN_BYTES_MAX: usize = 96;
/// Largest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 65_536;

/// What is wrong with a manifest. The one to act is whoever published it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than allowed.
    #[error("the manifest has {bytes} bytes, at most {MANIFEST_BYTES_MAX} are allowed: use larger chunks")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("the manifest is not valid: {reason}; publish the model again")]
    Json {
        /// Where and why.
        reason: String,
    },
    /// A number is out of its range.
    #[error("the manifest has `{field}` = {found}, but it must be {expected}")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// Its range.
        expected: String,
    },
}

/// A manifest that has passed its checks: [`Manifest::parse`] and [`Manifest::describe`] make them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    name: ModelName,
    version: u64,
    sha256: Digest,
    size: usize,
    chunk_size: usize,
    chunks: Vec<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    assets: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rollback_from: Option<u64>,
}

/// The fields as they are written.
#[derive(Deserialize)]
struct ManifestJson {
    name: ModelName,
    version: u64,
    sha256: Digest,
    size: u64,
    chunk_size: u64,
    chunks: Vec<Digest>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    assets: Vec<String>,
    #[serde(default)]
    rollback_from: Option<u64>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] naming the field, what was found and what it must be.
    pub fn parse(json: &[u8]) -> Result<Manifest, ManifestError> {
        if json.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes: json.len() });
        }
        let read: ManifestJson =
            serde_json::from_slice(json).map_err(|e| ManifestError::Json { reason: e.to_string() })?;
        let range = |field, found: u64, most: usize| {
            let fits = usize::try_from(found).ok().filter(|n| (1..=most).contains(n));
            fits.ok_or_else(|| ManifestError::Range { field, found, expected: format!("1 to {most}") })
        };
        if read.version == 0 {
            return Err(ManifestError::Range { field: "version", found: 0, expected: "at least 1".to_owned() });
        }
        let size = range("size", read.size, MODEL_BYTES_MAX)?;
        let chunk_size = range("chunk_size", read.chunk_size, CHUNK_BYTES_MAX)?;
        let count = size.div_ceil(chunk_size);
        if read.chunks.len() != count || count > CHUNKS_MAX {
            let expected = format!("{count} digests for this size and chunk_size, and at most {CHUNKS_MAX}");
            return Err(ManifestError::Range { field: "chunks", found: read.chunks.len() as u64, expected });
        }
        if let Some(from) = read.rollback_from.filter(|from| *from <= read.version) {
            let expected = format!("higher than the version {} that it goes back to", read.version);
            return Err(ManifestError::Range { field: "rollback_from", found: from, expected });
        }
        let ManifestJson { name, version, sha256, chunks, created, assets, rollback_from, .. } = read;
        let assets = check_assets(assets, &name)?;
        Ok(Manifest { name, version, sha256, size, chunk_size, chunks, created, assets, rollback_from })
    }

    /// Describes a model file that is to be published in chunks of `chunk_size` bytes.
    ///
    /// # Errors
    /// [`ManifestError::Range`] when the file or the chunks are too large or too many.
    pub fn describe(
        name: ModelName,
        version: u64,
        model: &[u8],
        chunk_size: usize,
        created: Option<String>,
    ) -> Result<Manifest, ManifestError> {
        let chunks: Vec<Digest> = model.chunks(chunk_size.max(1)).map(Digest::of).collect();
        let manifest = Manifest {
            name,
            version,
            sha256: Digest::of(model),
            size: model.len(),
            chunk_size,
            chunks,
            created,
            assets: Vec::new(),
            rollback_from: None,
        };
        Manifest::parse(&manifest.to_json())
    }

    /// Makes it a rollback from version `from`, which is active now.
    ///
    /// # Errors
    /// [`ManifestError::Range`] when `from` is not higher than this version.
    pub fn rolling_back(mut self, from: u64) -> Result<Manifest, ManifestError> {
        self.rollback_from = Some(from);
        Manifest::parse(&self.to_json())
    }

    /// Says which assets the model is for; none means the asset called like the model.
    ///
    /// # Errors
    /// [`ManifestError::Range`] when there are too many patterns or one is too long.
    pub fn for_assets(mut self, patterns: Vec<String>) -> Result<Manifest, ManifestError> {
        self.assets = patterns;
        Manifest::parse(&self.to_json())
    }

    /// The manifest as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and integers always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The model's name.
    pub fn name(&self) -> &ModelName {
        &self.name
    }

    /// The model's version, from 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// SHA-256 of the whole file.
    pub fn sha256(&self) -> &Digest {
        &self.sha256
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of chunks.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Patterns of the assets it is for, at least one: `*` stands for any text, everything else for itself.
    pub fn assets(&self) -> &[String] {
        &self.assets
    }

    /// The version that it goes back from, if it is a rollback.
    pub fn rollback_from(&self) -> Option<u64> {
        self.rollback_from
    }

    /// When it was made, as the publisher wrote it.
    pub fn created(&self) -> Option<&str> {
        self.created.as_deref()
    }

    /// Where the manifest is retained.
    pub fn topic(&self) -> String {
        format!("mw/v1/model/{}/manifest", self.name)
    }

    /// Where chunk `n` is retained.
    pub fn chunk_topic(&self, n: usize) -> String {
        format!("mw/v1/model/{}/chunk/{}/{n}", self.name, self.sha256)
    }

    /// Which chunk of this manifest a topic carries, if any.
    pub fn chunk_of_topic(&self, topic: &str) -> Option<usize> {
        let n = topic.rsplit('/').next()?.parse().ok().filter(|n| *n < self.chunks.len())?;
        (self.chunk_topic(n) == topic).then_some(n)
    }

    /// The chunks of `model`, in order; the model is the one this manifest describes.
    pub fn split<'a>(&self, model: &'a [u8]) -> impl ExactSizeIterator<Item = &'a [u8]> {
        model.chunks(self.chunk_size)
    }

    /// Bytes of chunk `n`.
    fn chunk_len(&self, n: usize) -> usize {
        self.size.saturating_sub(n.saturating_mul(self.chunk_size)).min(self.chunk_size)
    }
}

/// Without a pattern a model is for the asset that is called like it.
fn check_assets(mut assets: Vec<String>, name: &ModelName) -> Result<Vec<String>, ManifestError> {
    let range = |found: usize, expected| ManifestError::Range { field: "assets", found: found as u64, expected };
    if assets.is_empty() {
        assets.push(name.to_string());
    }
    if assets.len() > ASSET_PATTERNS_MAX {
        return Err(range(assets.len(), format!("at most {ASSET_PATTERNS_MAX} patterns")));
    }
    match assets.iter().find(|pattern| pattern.len() > ASSET_PATTERN_BYTES_MAX) {
        Some(long) => Err(range(long.len(), format!("patterns of at most {ASSET_PATTERN_BYTES_MAX} bytes"))),
        None => Ok(assets),
    }
}

/// Why a chunk was refused. What was accepted before stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// No such chunk.
    #[error("there is no chunk {n}: the manifest lists {count}, counted from 0")]
    Number {
        /// The number given.
        n: usize,
        /// Chunks of the manifest.
        count: usize,
    },
    /// Of another length.
    #[error("chunk {n} has {found} bytes, and the manifest says {expected}: publish it again")]
    Length {
        /// Which chunk.
        n: usize,
        /// Its length.
        found: usize,
        /// By the manifest.
        expected: usize,
    },
    /// Of another content.
    #[error("chunk {n} does not match its SHA-256: publish it again")]
    Digest {
        /// Which chunk.
        n: usize,
    },
}

/// Why there is no file yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// Chunks are missing.
    #[error("{missing} of {count} chunks are missing")]
    Incomplete {
        /// How many.
        missing: usize,
        /// Of how many.
        count: usize,
    },
    /// Every chunk is right and the whole is not: the manifest contradicts itself.
    #[error(
        "the file has SHA-256 {found}, and the manifest says {expected}: the manifest is wrong, publish the model again"
    )]
    Digest {
        /// Of what came.
        found: Digest,
        /// By the manifest.
        expected: Digest,
    },
}

/// Collects chunks in any order. Holds at most the file's size, which the manifest bounds; memory grows with what arrived, not with
/// what was announced.
#[derive(Debug, Clone)]
pub struct Assembler {
    manifest: Manifest,
    chunks: Vec<Option<Box<[u8]>>>,
    missing: usize,
}

impl Assembler {
    /// Begins with nothing.
    pub fn new(manifest: Manifest) -> Assembler {
        let missing = manifest.chunks.len();
        Assembler { chunks: vec![None; missing], missing, manifest }
    }

    /// What is being assembled.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Takes chunk `n`; one that is already there is accepted again and changes nothing. Returns whether all are there now.
    ///
    /// # Errors
    /// [`ChunkError`] when the chunk is not the manifest's.
    pub fn accept(&mut self, n: usize, bytes: &[u8]) -> Result<bool, ChunkError> {
        let count = self.chunks.len();
        let expected = self.manifest.chunk_len(n);
        let (Some(place), Some(digest)) = (self.chunks.get_mut(n), self.manifest.chunks.get(n)) else {
            return Err(ChunkError::Number { n, count });
        };
        if bytes.len() != expected {
            return Err(ChunkError::Length { n, found: bytes.len(), expected });
        }
        if Digest::of(bytes) != *digest {
            return Err(ChunkError::Digest { n });
        }
        if place.replace(bytes.into()).is_none() {
            self.missing -= 1;
        }
        Ok(self.missing == 0)
    }

    /// Numbers of the chunks that are not there yet, in order.
    pub fn missing(&self) -> impl Iterator<Item = usize> {
        self.chunks.iter().enumerate().filter(|(_, chunk)| chunk.is_none()).map(|(n, _)| n)
    }

    /// Whether all chunks are there.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// The file, checked against the manifest's SHA-256.
    ///
    /// # Errors
    /// [`AssembleError`] when chunks are missing or the whole is not what the manifest says.
    pub fn finish(&self) -> Result<Vec<u8>, AssembleError> {
        if self.missing > 0 {
            return Err(AssembleError::Incomplete { missing: self.missing, count: self.chunks.len() });
        }
        let file: Vec<u8> = self.chunks.iter().flatten().flat_map(|chunk| chunk.iter().copied()).collect();
        let (found, expected) = (Digest::of(&file), self.manifest.sha256);
        if found == expected { Ok(file) } else { Err(AssembleError::Digest { found, expected }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model_bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    fn manifest(model: &[u8], chunk_size: usize) -> Manifest {
        Manifest::describe(ModelName::parse("pump-a").unwrap(), 3, model, chunk_size, None).unwrap()
    }

    /// The JSON of a good manifest with one field replaced.
    fn with(field: &str, value: serde_json::Value) -> Vec<u8> {
        let mut json: serde_json::Value =
            serde_json::from_slice(&manifest(&model_bytes(1_000), 300).to_json()).unwrap();
        json[field] = value;
        json.to_string().into_bytes()
    }

    #[test]
    fn chunks_in_any_order_make_the_file_again() {
        // A file split by its manifest is whole again after its chunks came last first, one of them twice.
        let model = model_bytes(1_000);
        let manifest = manifest(&model, 300);
        let chunks: Vec<&[u8]> = manifest.split(&model).collect();
        assert_eq!(chunks.iter().map(|c| c.len()).collect::<Vec<_>>(), [300, 300, 300, 100]);
        let mut assembler = Assembler::new(Manifest::parse(&manifest.to_json()).unwrap());
        for n in [3, 1, 1, 0] {
            assert_eq!(assembler.accept(n, chunks[n]), Ok(false));
        }
        assert_eq!(assembler.missing().collect::<Vec<_>>(), [2]);
        assert_eq!(assembler.finish(), Err(AssembleError::Incomplete { missing: 1, count: 4 }));
        assert_eq!(assembler.accept(2, chunks[2]), Ok(true));
        assert_eq!(assembler.finish().unwrap(), model);
    }

    #[test]
    fn a_wrong_chunk_is_refused_and_changes_nothing() {
        // One byte flipped, one byte short, the neighbour's content, a number past the end: each is refused by its own error.
        let model = model_bytes(1_000);
        let manifest = manifest(&model, 300);
        let mut assembler = Assembler::new(manifest.clone());
        let mut flipped = model[..300].to_vec();
        flipped[7] ^= 1;
        assert_eq!(assembler.accept(0, &flipped), Err(ChunkError::Digest { n: 0 }));
        assert_eq!(assembler.accept(0, &model[300..600]), Err(ChunkError::Digest { n: 0 }));
        assert_eq!(assembler.accept(0, &model[..299]), Err(ChunkError::Length { n: 0, found: 299, expected: 300 }));
        assert_eq!(assembler.accept(4, &[]), Err(ChunkError::Number { n: 4, count: 4 }));
        assert_eq!(assembler.accept(usize::MAX, &[]), Err(ChunkError::Number { n: usize::MAX, count: 4 }));
        assert_eq!(assembler.missing().count(), 4);
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_found_out() {
        // Right chunks under a wrong total digest do not become a file.
        let model = model_bytes(1_000);
        let json = with("sha256", Digest::of(b"another").to_string().into());
        let mut assembler = Assembler::new(Manifest::parse(&json).unwrap());
        for (n, chunk) in manifest(&model, 300).split(&model).enumerate() {
            assembler.accept(n, chunk).unwrap();
        }
        let found = Digest::of(&model);
        assert_eq!(assembler.finish(), Err(AssembleError::Digest { found, expected: Digest::of(b"another") }));
    }

    #[test]
    fn limits_are_checked_at_both_ends() {
        // Zero and one past the limit are refused, with the field named; the limits themselves pass.
        for (field, value) in [
            ("size", 0_u64),
            ("size", MODEL_BYTES_MAX as u64 + 1),
            ("size", u64::MAX),
            ("chunk_size", 0),
            ("chunk_size", CHUNK_BYTES_MAX as u64 + 1),
            ("version", 0),
        ] {
            let error = Manifest::parse(&with(field, value.into())).unwrap_err();
            assert!(
                matches!(&error, ManifestError::Range { field: f, found, .. } if *f == field && *found == value),
                "{error}"
            );
        }
        assert!(matches!(
            Manifest::parse(&with("chunks", serde_json::json!([]))),
            Err(ManifestError::Range { field: "chunks", .. })
        ));
        assert!(matches!(Manifest::parse(&with("name", "a/b".into())), Err(ManifestError::Json { .. })));
        assert!(matches!(Manifest::parse(&vec![b' '; MANIFEST_BYTES_MAX + 1]), Err(ManifestError::TooLarge { .. })));
        // The largest model in the largest chunks still has a manifest that fits.
        let largest = manifest(&vec![7; MODEL_BYTES_MAX], CHUNK_BYTES_MAX);
        assert_eq!(largest.chunk_count(), CHUNKS_MAX);
        assert!(largest.to_json().len() <= MANIFEST_BYTES_MAX);
        // One more chunk than allowed.
        assert!(Manifest::describe(ModelName::parse("a").unwrap(), 1, &[0; CHUNKS_MAX + 1], 1, None).is_err());
    }

    #[test]
    fn unknown_fields_are_tolerated_and_duplicates_are_not() {
        // A field that a newer fleet adds is passed over; the same field twice is refused, for it could hide another value.
        assert!(Manifest::parse(&with("signature", "abc".into())).is_ok());
        let good = String::from_utf8(with("version", 4.into())).unwrap();
        let twice = good.replacen('{', r#"{"version": 9, "#, 1);
        assert!(matches!(Manifest::parse(twice.as_bytes()), Err(ManifestError::Json { .. })));
    }

    #[test]
    fn topics_lead_to_their_chunk() {
        // The topic of a chunk is recognised; another model's, a number past the end and a padded number are not.
        let manifest = manifest(&model_bytes(1_000), 300);
        assert_eq!(manifest.topic(), "mw/v1/model/pump-a/manifest");
        assert_eq!(manifest.chunk_of_topic(&manifest.chunk_topic(3)), Some(3));
        assert_eq!(manifest.chunk_of_topic(&manifest.chunk_topic(4)), None);
        assert_eq!(manifest.chunk_of_topic(&manifest.chunk_topic(3).replace("/3", "/03")), None);
        assert_eq!(manifest.chunk_of_topic(&manifest.chunk_topic(3).replace("pump-a", "pump-b")), None);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(json in proptest::collection::vec(any::<u8>(), 0..300)) {
            // Whatever the bytes, the answer is a manifest or an error.
            let _ = Manifest::parse(&json);
        }

        #[test]
        fn a_damaged_manifest_is_refused_or_sound(at in 0_usize..400, byte in any::<u8>()) {
            // With any byte of a manifest replaced, what still parses holds every limit, so that an assembler can be built on it.
            let mut json = manifest(&model_bytes(1_000), 300).to_json();
            let at = at % json.len();
            json[at] = byte;
            if let Ok(manifest) = Manifest::parse(&json) {
                prop_assert!(manifest.size() <= MODEL_BYTES_MAX && manifest.chunk_count() <= CHUNKS_MAX);
                let lengths: usize = (0..manifest.chunk_count()).map(|n| manifest.chunk_len(n)).sum();
                prop_assert_eq!(lengths, manifest.size());
            }
        }

        #[test]
        fn any_file_survives_any_chunk_size(model in proptest::collection::vec(any::<u8>(), 1..2_000), chunk_size in 5_usize..3_000, seed in any::<u64>()) {
            // Split, shuffled and put together, a file is itself.
            let manifest = manifest(&model, chunk_size);
            let mut order: Vec<(usize, &[u8])> = manifest.split(&model).enumerate().collect();
            order.sort_by_key(|(n, _)| (*n as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut assembler = Assembler::new(manifest.clone());
            for (n, chunk) in order {
                prop_assert!(!assembler.is_complete());
                assembler.accept(n, chunk).unwrap();
            }
            prop_assert_eq!(assembler.finish().unwrap(), model);
        }
    }
}
