//! From the bytes of an ONNX file to a model that can score.

use millwright_models::contract::Contract;
use millwright_models::runtime::{LoadError, LoadLimits, Model};

use super::fleet::{Installed, Origin, Tally};
use super::history::WINDOW_ROWS_MAX;
use crate::ids::AssetId;

/// Loads the model that was learned for one asset.
///
/// # Errors
/// The bytes are not a model by the contract.
pub fn commissioned(asset: &AssetId, onnx: &[u8]) -> Result<Installed, LoadError> {
    load(onnx, Origin::Commissioned, vec![asset.to_string()], &LoadLimits::default())
}

/// Checks what this gateway asks of a model beyond the contract.
///
/// # Errors
/// Its window is longer than what is kept of a machine.
pub fn check_window(contract: &Contract) -> Result<(), String> {
    if contract.samples > WINDOW_ROWS_MAX {
        return Err(format!(
            "its window has {} samples, and a gateway keeps {WINDOW_ROWS_MAX} of a machine: train it on shorter windows or averaged samples",
            contract.samples
        ));
    }
    Ok(())
}

/// Loads a model for the assets that match `assets`.
///
/// # Errors
/// The bytes are not a model by the contract.
pub fn load(onnx: &[u8], origin: Origin, assets: Vec<String>, limits: &LoadLimits) -> Result<Installed, LoadError> {
    let model = Model::load(onnx, limits)?;
    let contract = model.contract();
    let name = contract.name.clone();
    let version = contract.version;
    let sha256 = model.sha256().to_string();
    Ok(Installed { name, version, sha256, origin, assets, model, tally: Tally::default() })
}
