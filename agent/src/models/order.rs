//! Orders of operators about models, on `mw/v1/gateway/<gateway>/command`, published at QoS 1.
//!
//! Owns their form and whether one may be obeyed. An order names the version it acts on, so that it does nothing when it is repeated or
//! comes late. Where keys are trusted it must be signed like a manifest.
//!
//! ```json
//! {"command": "rollback", "model": "pump-a", "version": 5, "reason": "false alarms on pump 3"}
//! ```

use millwright_models::ModelName;
use millwright_models::signature::{self, PublicKey, SignatureError};
use serde::{Deserialize, Serialize};

/// Largest order, in bytes.
pub const ORDER_BYTES_MAX: usize = 4096;
/// Longest reason that is kept, in characters.
const REASON_CHARS_MAX: usize = 200;
/// Orders that may wait to be carried out.
pub const ORDERS_MAX: usize = 16;

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// Let it score now.
    Promote,
    /// Go back to the version before it.
    Rollback,
}

/// An order that has the right form; whether it is signed is checked when it is carried out.
#[derive(Debug, Clone)]
pub struct Order {
    /// What to do.
    pub wish: Wish,
    /// The model.
    pub model: ModelName,
    /// The version it acts on.
    pub version: u64,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    document: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OrderJson {
    command: Wish,
    model: ModelName,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Why an order is no order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Larger than allowed.
    #[error("it has {0} bytes, at most {ORDER_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Not of the form above.
    #[error("it is not of the form {{\"command\": \"promote\" or \"rollback\", \"model\": …, \"version\": …}}: {0}")]
    Form(String),
}

/// Reads an order.
///
/// # Errors
/// It is none.
pub fn parse(document: &[u8]) -> Result<Order, OrderError> {
    if document.len() > ORDER_BYTES_MAX {
        return Err(OrderError::TooLarge(document.len()));
    }
    let read: OrderJson = serde_json::from_slice(document).map_err(|error| OrderError::Form(error.to_string()))?;
    let clean = |text: String| text.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
    let OrderJson { command: wish, model, version, reason } = read;
    Ok(Order { wish, model, version, reason: reason.map(clean), document: document.to_vec() })
}

/// Writes an order.
pub fn write(wish: Wish, model: ModelName, version: u64, reason: Option<String>) -> Vec<u8> {
    // Names and numbers always serialise.
    serde_json::to_vec(&OrderJson { command: wish, model, version, reason }).unwrap_or_default()
}

impl Order {
    /// Checks the signature, where keys are trusted. Returns the name of the key.
    ///
    /// # Errors
    /// It is not signed by one of them.
    pub fn authorise(&self, trusted: &[PublicKey]) -> Result<Option<String>, SignatureError> {
        if trusted.is_empty() {
            return Ok(None);
        }
        signature::verify(&self.document, trusted).map(|key| Some(key.id()))
    }
}

#[cfg(test)]
mod tests {
    use millwright_models::signature::SecretKey;

    use super::*;

    // An order is read back as it was written, and obeyed with the right signature only where keys are trusted.
    #[test]
    fn orders_are_checked() {
        let model = ModelName::parse("pump").unwrap();
        let document = write(Wish::Rollback, model, 5, Some("noisy\u{7}".to_owned()));
        let order = parse(&document).unwrap();
        assert_eq!((order.wish, order.model.as_str(), order.version), (Wish::Rollback, "pump", 5));
        assert_eq!(order.reason.as_deref(), Some("noisy"));
        let key = SecretKey::from_seed(&[3; 32]);
        assert_eq!(order.authorise(&[]), Ok(None));
        assert_eq!(order.authorise(&[key.public()]), Err(SignatureError::Unsigned));
        let signed = parse(&key.sign(&document).unwrap()).unwrap();
        assert_eq!(signed.authorise(&[key.public()]), Ok(Some(key.public().id())));
        for wrong in
            [&b"{}"[..], b"[]", br#"{"command":"erase","model":"pump","version":1}"#, &[b' '; ORDER_BYTES_MAX + 1]]
        {
            assert!(parse(wrong).is_err());
        }
    }
}
