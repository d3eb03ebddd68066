//! Orders of operators about models: on `mw/v1/gateway/<gateway>/command`, published at QoS 1, and from the dashboard.
//!
//! Owns their form and whether one may be obeyed. An order names the version it acts on, so that it does nothing when it is repeated or
//! comes late. Where keys are trusted a published one must be signed like a manifest, because whoever may publish can write it; one from the
//! dashboard has the authority of the user who signed in there, and names them in the audit trail.
//!
//! ```json
//! {"command": "rollback", "model": "pump-a", "version": 5, "reason": "false alarms on pump 3"}
//! ```

use millwright_models::ModelName;
use millwright_models::signature::{self, PublicKey, SignatureError};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::state::versions::VersionState;

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
#[derive(Debug)]
pub struct Order {
    /// What to do.
    pub wish: Wish,
    /// The model.
    pub model: ModelName,
    /// The version it acts on.
    pub version: u64,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    authority: Authority,
    answer: Option<oneshot::Sender<Result<(), OrderRefusal>>>,
}

/// On whose word it is obeyed.
#[derive(Debug)]
enum Authority {
    /// The document as it was published, with its signature.
    Document(Vec<u8>),
    /// Somebody that the dashboard let in as an engineer.
    User(String),
}

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderRefusal {
    /// No trusted key vouches for it.
    #[error("{0}")]
    Signature(SignatureError),
    /// There is no such version.
    #[error("there is no version {version} of `{model}` here")]
    Unknown {
        /// The model.
        model: String,
        /// The version.
        version: u64,
    },
    /// Where the version stands, the wish means nothing.
    #[error("version {version} of `{model}` is {}, and {}", state.as_str(), match wish {
        Wish::Promote => "only one in shadow or taken back can be promoted",
        Wish::Rollback => "only one that scores or is in shadow can be taken back",
    })]
    State {
        /// What was wanted.
        wish: Wish,
        /// The model.
        model: String,
        /// The version.
        version: u64,
        /// Where it stands.
        state: VersionState,
    },
    /// No model was there before it.
    #[error("there is no model to go back to from version {version} of `{model}`")]
    NothingBefore {
        /// The model.
        model: String,
        /// The version.
        version: u64,
    },
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
    let OrderJson { command: wish, model, version, reason } = read;
    let authority = Authority::Document(document.to_vec());
    Ok(Order { wish, model, version, reason: reason.map(clean), authority, answer: None })
}

fn clean(text: String) -> String {
    text.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}

/// Writes an order.
pub fn write(wish: Wish, model: ModelName, version: u64, reason: Option<String>) -> Vec<u8> {
    // Names and numbers always serialise.
    serde_json::to_vec(&OrderJson { command: wish, model, version, reason }).unwrap_or_default()
}

impl Order {
    /// An order of a user of the dashboard, and where it is told what became of it.
    pub fn of_user(
        user: &str,
        wish: Wish,
        model: ModelName,
        version: u64,
        reason: Option<String>,
    ) -> (Order, oneshot::Receiver<Result<(), OrderRefusal>>) {
        let (answer, answered) = oneshot::channel();
        let authority = Authority::User(user.to_owned());
        (Order { wish, model, version, reason: reason.map(clean), authority, answer: Some(answer) }, answered)
    }

    /// Checks the signature of a published order, where keys are trusted. Returns on whose word it is obeyed, for the audit trail.
    ///
    /// # Errors
    /// It is not signed by one of them.
    pub fn authorise(&self, trusted: &[PublicKey]) -> Result<String, OrderRefusal> {
        match &self.authority {
            Authority::User(name) => Ok(format!(" of {name}")),
            Authority::Document(_) if trusted.is_empty() => Ok(String::new()),
            Authority::Document(document) => match signature::verify(document, trusted) {
                Ok(key) => Ok(format!(" with the key {}", key.id())),
                Err(error) => Err(OrderRefusal::Signature(error)),
            },
        }
    }

    /// Tells who waits for it what became of it.
    pub fn answer(&mut self, outcome: Result<(), OrderRefusal>) {
        if let Some(answer) = self.answer.take() {
            // Nobody waits any longer when the connection has ended.
            let _ = answer.send(outcome);
        }
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
        assert_eq!(order.authorise(&[]), Ok(String::new()));
        assert_eq!(order.authorise(&[key.public()]), Err(OrderRefusal::Signature(SignatureError::Unsigned)));
        let signed = parse(&key.sign(&document).unwrap()).unwrap();
        assert_eq!(signed.authorise(&[key.public()]), Ok(format!(" with the key {}", key.public().id())));
        for wrong in
            [&b"{}"[..], b"[]", br#"{"command":"erase","model":"pump","version":1}"#, &[b' '; ORDER_BYTES_MAX + 1]]
        {
            assert!(parse(wrong).is_err());
        }
    }

    // A user of the dashboard needs no key, is named, and is told what became of the order.
    #[test]
    fn users_give_orders_in_their_name() {
        let model = ModelName::parse("pump").unwrap();
        let (mut order, mut answered) = Order::of_user("ada", Wish::Promote, model, 5, None);
        let key = SecretKey::from_seed(&[3; 32]);
        assert_eq!(order.authorise(&[key.public()]), Ok(" of ada".to_owned()));
        let refusal = OrderRefusal::Unknown { model: "pump".to_owned(), version: 5 };
        order.answer(Err(refusal.clone()));
        assert_eq!(answered.try_recv(), Ok(Err(refusal)));
    }
}
