//! `millwright model`: make, try, sign, publish and follow models.
//!
//! Owns the subcommands and what they share. A package is two files side by side, `<name>-<version>.onnx` and
//! `<name>-<version>.manifest.json`; the manifest names the other by its SHA-256 and carries the signature.

mod fleet;
mod inspect;
mod package;
mod push;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use millwright_models::signature::{PublicKey, SecretKey};

use super::Failure;
use crate::models::order::Wish;

/// Arguments of `model`.
#[derive(Debug, Args)]
pub(super) struct ModelArguments {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Make a key pair: the private key into a file, the public key as a line for `trusted_keys`
    Keygen(package::KeygenArguments),
    /// Check that the gateway's engine can run a model, and write it with its manifest
    Pack(package::PackArguments),
    /// Sign a manifest
    Sign(package::SignArguments),
    /// Check a package: the file against its manifest, the manifest against the keys
    Verify(package::VerifyArguments),
    /// Show what a model file says of itself and how the engine runs it
    Inspect(inspect::InspectArguments),
    /// Run a model over the telemetry that a gateway has stored: which alerts would it have raised?
    Test(test::TestArguments),
    /// Publish a model as retained messages and wait for the gateway's answer
    Push(push::PushArguments),
    /// Show the versions that a gateway has and where they stand
    List(fleet::ListArguments),
    /// Let a version in shadow score now, or one that was taken back score again
    Promote(fleet::OrderArguments),
    /// Take a version back: the one before it scores again
    Rollback(fleet::OrderArguments),
}

/// Does what is asked.
///
/// # Errors
/// Wrong files or keys, a model that cannot run, a broker that does not answer.
pub(super) fn run(arguments: &ModelArguments) -> Result<ExitCode, Failure> {
    match &arguments.command {
        ModelCommand::Keygen(arguments) => package::keygen(arguments),
        ModelCommand::Pack(arguments) => package::pack(arguments),
        ModelCommand::Sign(arguments) => package::sign(arguments),
        ModelCommand::Verify(arguments) => package::verify(arguments),
        ModelCommand::Inspect(arguments) => inspect::run(arguments),
        ModelCommand::Test(arguments) => test::run(arguments),
        ModelCommand::Push(arguments) => push::run(arguments),
        ModelCommand::List(arguments) => fleet::list(arguments),
        ModelCommand::Promote(arguments) => fleet::order(Wish::Promote, arguments),
        ModelCommand::Rollback(arguments) => fleet::order(Wish::Rollback, arguments),
    }
}

/// A file that the command line names.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display())).map_err(Failure::wrong_use)
}

/// A private key in PEM.
fn secret_key(path: &Path) -> Result<SecretKey, Failure> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    SecretKey::from_pem(&text).with_context(|| path.display().to_string()).map_err(Failure::wrong_use)
}

/// A public key: the text itself, or a file that holds it.
fn public_key(text: &str) -> Result<PublicKey, Failure> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let found = String::from_utf8_lossy(&read(Path::new(text))?).into_owned();
    found.parse().with_context(|| text.to_owned()).map_err(Failure::wrong_use)
}

/// The manifest beside a model file of a package.
fn manifest_of(model: &Path) -> PathBuf {
    model.with_extension("manifest.json")
}
