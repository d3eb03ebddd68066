//! The house rules that a compiler does not check.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace").to_owned()
}

/// All Rust sources below `folder`, relative to the root, with the text before their test module.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} holds no sources");
    found.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source that was just listed can be read");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
        let name = path.strip_prefix(root()).expect("below the root").display().to_string();
        (name, code)
    };
    found.into_iter().map(read).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("an entry of a folder").path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

const PRODUCT: [&str; 5] = ["firmware-sim/wire/src", "firmware-sim/src", "broker/src", "models/src", "agent/src"];

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// `word` appears in code only in files that begin with one of `allowed`.
fn only_in(word: &str, allowed: &[&str]) {
    for (name, text) in PRODUCT.iter().flat_map(|folder| sources(folder)) {
        let may = allowed.iter().any(|prefix| name.starts_with(prefix));
        if !may && let Some(line) = code_lines(&text).find(|line| line.contains(word)) {
            panic!("{name} names `{word}`, which only {allowed:?} may: {line}");
        }
    }
}

// Each outside library that matters is named in one place.
#[test]
fn libraries_are_named_in_one_place() {
    only_in("rusqlite", &["broker/src/log", "agent/src/state", "agent/src/historian"]);
    only_in("tract_", &["models/src/runtime"]);
    only_in("axum", &["agent/src/dashboard"]);
    only_in("rumqttd", &[]);
}

// Clocks are read in one place of a crate; everything else is told the time.
#[test]
fn clocks_are_read_in_one_place() {
    only_in("SystemTime::now", &["agent/src/clock.rs", "broker/src/clock.rs", "firmware-sim/src/client"]);
}

// No channel grows without bound.
#[test]
fn every_channel_is_bounded() {
    only_in("unbounded", &[]);
}

// Models never touch the network or the disk.
#[test]
fn models_touch_neither_network_nor_disk() {
    for (name, text) in sources("models/src") {
        for word in ["std::fs", "std::net", "tokio", "File::"] {
            assert!(!code_lines(&text).any(|line| line.contains(word)), "{name} names `{word}`");
        }
    }
}

// Dependencies point one way: wire ← firmware-sim, broker, models ← agent.
#[test]
fn crates_depend_in_one_direction() {
    let allowed: [(&str, &[&str]); 5] = [
        ("firmware-sim/wire", &[]),
        ("firmware-sim", &["millwright-wire"]),
        ("broker", &[]),
        ("models", &[]),
        ("agent", &["millwright-wire", "millwright-firmware-sim", "millwright-broker", "millwright-models"]),
    ];
    for (folder, allowed) in allowed {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a crate has a manifest");
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        for line in dependencies.lines().filter(|line| line.starts_with("millwright")) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(allowed.contains(&name), "{folder} depends on {name}");
        }
    }
    let broker = fs::read_to_string(root().join("broker/Cargo.toml")).expect("a crate has a manifest");
    for payload_format in ["serde_json", "postcard", "prost"] {
        let named = broker.lines().any(|line| line.starts_with(payload_format));
        assert!(!named, "the broker depends on {payload_format}: it must not interpret payloads");
    }
}

// Every file says what it owns, and has one subject.
#[test]
fn files_say_what_they_own_and_stay_small() {
    for (name, text) in PRODUCT.iter().flat_map(|folder| sources(folder)) {
        assert!(text.starts_with("//!"), "{name} does not begin with `//!`");
        assert!(text.lines().count() <= 700, "{name} has {} lines: it has more than one subject", text.lines().count());
    }
}

// At most one TLS stack, and no crypto provider that needs a toolchain of its own to cross-compile.
#[test]
fn no_second_tls_stack_comes_in() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("the workspace has a lock file");
    for banned in ["openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys"] {
        assert!(!lock.contains(&format!("name = \"{banned}\"\n")), "{banned} is in the tree");
    }
    assert!(lock.matches("name = \"rustls\"\n").count() <= 1, "two versions of rustls are in the tree");
}

// Every dependency of the root manifest has its reason above it.
#[test]
fn dependencies_have_reasons() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let section = manifest.split("[workspace.dependencies]").nth(1).expect("the manifest lists dependencies");
    let section = section.split("\n[").next().unwrap_or_default();
    let mut reasoned = false;
    for line in section.lines() {
        match line.trim() {
            "" => reasoned = false,
            comment if comment.starts_with('#') => reasoned = true,
            own if own.starts_with("millwright") => {}
            dependency => assert!(reasoned, "no reason above: {dependency}"),
        }
    }
}
