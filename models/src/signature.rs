//! Signatures over JSON documents: who vouches for a model.
//!
//! Owns keys, the bytes that are signed, and the check. A signature is a field of the document it signs:
//!
//! ```json
//! {"name": "pump-a", …, "signature": {"key": "5f0c…", "ed25519": "…"}}
//! ```
//!
//! What is signed is [`DOMAIN`], then the document without `signature` in the canonical form of [RFC 8785] (no spaces, keys sorted). All
//! numbers of such documents are integers, so that there is one way to write each; others are refused. `ed25519` is the signature
//! of [RFC 8032] in hexadecimal digits, `key` the first 16 digits of the public key's SHA-256: it only says which key to try.
//!
//! Private keys are PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes them. Never reads a file and never draws random numbers.
//!
//! [RFC 8785]: https://www.rfc-editor.org/rfc/rfc8785
//! [RFC 8032]: https://www.rfc-editor.org/rfc/rfc8032

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde_json::{Map, Value};

use crate::digest::Digest;

/// Precedes what is signed, so that a signature made for something else is none here.
pub const DOMAIN: &[u8] = b"millwright document v1\n";

/// The field of a document that holds its signature.
const FIELD: &str = "signature";
/// How the text form of a public key begins.
const PREFIX: &str = "ed25519:";
/// Digits of a key's name.
const KEY_ID_DIGITS: usize = 16;

/// What is wrong with a key, a document or its signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not a public key in text form.
    #[error("a public key is written as `{PREFIX}` and 64 hexadecimal digits, as `millwright model keygen` prints it")]
    PublicKey,
    /// Not a private key in PEM.
    #[error("this is no private key for Ed25519 in PEM (PKCS#8), as `millwright model keygen` writes it")]
    SecretKey,
    /// Not an object of JSON with integers only.
    #[error("this cannot be signed: {reason}")]
    Document {
        /// Why.
        reason: String,
    },
    /// It carries no signature.
    #[error("it is not signed, and this gateway trusts only signed models: sign it with `millwright model sign`")]
    Unsigned,
    /// The signature is not of the form above.
    #[error("its signature is malformed: sign it again with `millwright model sign`")]
    Malformed,
    /// Made with a key that is not trusted.
    #[error("it is signed with the key {key}, which is not among `trusted_keys` in [models]")]
    Untrusted {
        /// The name of the key, as the document gives it.
        key: String,
    },
    /// The document was changed after it was signed, or the signature is of another.
    #[error("its signature by the key {key} does not fit its content: it was changed after it was signed")]
    Wrong {
        /// The name of the key.
        key: String,
    },
}

/// The public half of a key, in text `ed25519:` and 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Its name: the first digits of its SHA-256.
    pub fn id(&self) -> String {
        let mut digits = Digest::of(self.0.as_bytes()).to_string();
        digits.truncate(KEY_ID_DIGITS);
        digits
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", hex(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl FromStr for PublicKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<PublicKey, SignatureError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(SignatureError::PublicKey)?;
        let key = VerifyingKey::from_bytes(&bytes_of(digits).ok_or(SignatureError::PublicKey)?);
        // A weak key would accept signatures that nobody made.
        key.ok().filter(|key| !key.is_weak()).map(PublicKey).ok_or(SignatureError::PublicKey)
    }
}

/// The private half of a key. Its text is never shown: [`fmt::Debug`] names the public half.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key that belongs to 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> SecretKey {
        SecretKey(SigningKey::from_bytes(seed))
    }

    /// Reads PKCS#8 in PEM.
    ///
    /// # Errors
    /// It is none.
    pub fn from_pem(text: &str) -> Result<SecretKey, SignatureError> {
        SigningKey::from_pkcs8_pem(text).map(SecretKey).map_err(|_| SignatureError::SecretKey)
    }

    /// PKCS#8 in PEM.
    ///
    /// # Errors
    /// Encoding fails, which it does not for a key of this kind.
    pub fn to_pem(&self) -> Result<String, SignatureError> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF).map_err(|_| SignatureError::SecretKey)?;
        Ok(String::clone(&pem))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a document; a signature it has is replaced.
    ///
    /// # Errors
    /// [`SignatureError::Document`] when it is no JSON object, or holds a number that is no integer.
    pub fn sign(&self, document: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let mut fields = object(document)?;
        fields.remove(FIELD);
        let signature = self.0.sign(&signed_bytes(&fields)?);
        let value = serde_json::json!({"key": self.public().id(), "ed25519": hex(&signature.to_bytes())});
        fields.insert(FIELD.to_owned(), value);
        Ok(Value::Object(fields).to_string().into_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().id())
    }
}

/// Checks the signature of a document against the trusted keys, and returns the one that made it.
///
/// # Errors
/// [`SignatureError`]: not signed, not by a trusted key, or changed since.
pub fn verify<'k>(document: &[u8], trusted: &'k [PublicKey]) -> Result<&'k PublicKey, SignatureError> {
    let mut fields = object(document)?;
    let signature = fields.remove(FIELD).ok_or(SignatureError::Unsigned)?;
    let text = |field: &str| signature.get(field).and_then(Value::as_str).ok_or(SignatureError::Malformed);
    let (name, value) = (text("key")?, text("ed25519")?);
    let value = Signature::from_bytes(&bytes_of(value).ok_or(SignatureError::Malformed)?);
    // The name is chosen by whoever wrote the document: it is shown only in the form of a name.
    let well_formed = name.len() == KEY_ID_DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit());
    let key = name.to_owned();
    if !well_formed {
        return Err(SignatureError::Malformed);
    }
    let trusted = trusted.iter().find(|trusted| trusted.id() == key);
    let Some(trusted) = trusted else { return Err(SignatureError::Untrusted { key }) };
    match trusted.0.verify_strict(&signed_bytes(&fields)?, &value) {
        Ok(()) => Ok(trusted),
        Err(_) => Err(SignatureError::Wrong { key }),
    }
}

fn object(document: &[u8]) -> Result<Map<String, Value>, SignatureError> {
    serde_json::from_slice(document).map_err(|error| SignatureError::Document { reason: error.to_string() })
}

/// [`DOMAIN`] and the canonical form of `fields`.
fn signed_bytes(fields: &Map<String, Value>) -> Result<Vec<u8>, SignatureError> {
    let mut bytes = DOMAIN.to_vec();
    write_object(fields, &mut bytes)?;
    Ok(bytes)
}

/// The depth is bounded by the JSON reader's own limit.
fn write_canonical(value: &Value, out: &mut Vec<u8>) -> Result<(), SignatureError> {
    match value {
        Value::Number(number) if number.is_f64() => {
            Err(SignatureError::Document { reason: format!("the number {number} is no integer of 64 bits") })
        }
        Value::Array(items) => {
            out.push(b'[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                write_canonical(item, out)?;
            }
            out.push(b']');
            Ok(())
        }
        Value::Object(fields) => write_object(fields, out),
        // Without spaces, and strings with the fewest escapes, as the canonical form asks.
        plain => {
            out.extend_from_slice(plain.to_string().as_bytes());
            Ok(())
        }
    }
}

fn write_object(fields: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), SignatureError> {
    // Sorted by UTF-16 code units; the order in which they were read is not known to be kept or not.
    let sorted: BTreeMap<Vec<u16>, (&String, &Value)> =
        fields.iter().map(|(key, value)| (key.encode_utf16().collect(), (key, value))).collect();
    out.push(b'{');
    for (n, (key, value)) in sorted.into_values().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        out.extend_from_slice(Value::String(key.clone()).to_string().as_bytes());
        out.push(b':');
        write_canonical(value, out)?;
    }
    out.push(b'}');
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0_u8; N];
    if digits.len() != 2 * N || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    const DOCUMENT: &[u8] = br#"{"b": [1, "two", null], "a": {"y": true, "x": -3}}"#;

    // What is signed is checked whatever its spaces and the order of its keys, also by a gateway that trusts several keys.
    #[test]
    fn a_signed_document_is_recognised() {
        let trusted = [key(1).public(), key(2).public()];
        let signed = key(2).sign(DOCUMENT).unwrap();
        assert_eq!(verify(&signed, &trusted).unwrap(), &trusted[1]);
        let fields: Value = serde_json::from_slice(&signed).unwrap();
        let signature = fields["signature"].to_string();
        let rewritten =
            format!("{{ \"signature\": {signature},\n \"a\": {{\"x\":-3,\"y\":true}}, \"b\":[1,\"two\",null]}}");
        assert!(verify(rewritten.as_bytes(), &trusted).is_ok());
        // Signing again replaces the signature instead of signing it.
        assert_eq!(key(2).sign(&signed).unwrap(), signed);
    }

    // Unsigned, by an unknown key, changed, moved to another document, under the name of a trusted key: each is refused by its own error.
    #[test]
    fn everything_else_is_refused() {
        let trusted = [key(1).public()];
        assert_eq!(verify(DOCUMENT, &trusted), Err(SignatureError::Unsigned));
        let foreign = key(2).sign(DOCUMENT).unwrap();
        assert_eq!(verify(&foreign, &trusted), Err(SignatureError::Untrusted { key: key(2).public().id() }));
        let signed = String::from_utf8(key(1).sign(DOCUMENT).unwrap()).unwrap();
        let wrong = Err(SignatureError::Wrong { key: key(1).public().id() });
        assert_eq!(verify(signed.replace("two", "too").as_bytes(), &trusted), wrong);
        assert_eq!(verify(signed.replace("\"b\"", "\"c\"").as_bytes(), &trusted), wrong);
        assert_eq!(verify(signed.replacen('{', "{\"more\":1,", 1).as_bytes(), &trusted), wrong);
        let renamed = String::from_utf8(foreign).unwrap().replace(&key(2).public().id(), &trusted[0].id());
        assert_eq!(verify(renamed.as_bytes(), &trusted), wrong);
        let cut = signed.replace(&key(1).public().id(), "name");
        assert_eq!(verify(cut.as_bytes(), &trusted), Err(SignatureError::Malformed));
        assert!(matches!(verify(b"[1]", &trusted), Err(SignatureError::Document { .. })));
        assert!(matches!(key(1).sign(br#"{"a": 0.5}"#), Err(SignatureError::Document { .. })));
    }

    // Keys survive their text forms; what is no key says so, and a private key never shows itself.
    #[test]
    fn keys_have_text_forms() {
        let secret = key(7);
        let again = SecretKey::from_pem(&secret.to_pem().unwrap()).unwrap();
        assert_eq!(again.public(), secret.public());
        assert_eq!(secret.public().to_string().parse::<PublicKey>().unwrap(), secret.public());
        assert!(!format!("{secret:?}").contains(&hex(&[7; 32])));
        // The key of RFC 8032, 7.1, test 1.
        let seed: [u8; 32] = bytes_of("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let public = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(SecretKey::from_seed(&seed).public().to_string(), public);
        for wrong in
            ["", "ed25519:", "d75a", &public[..70], &public.replace('d', "g"), &format!("ed25519:{}", "0".repeat(64))]
        {
            assert_eq!(wrong.parse::<PublicKey>(), Err(SignatureError::PublicKey), "{wrong}");
        }
        assert!(matches!(SecretKey::from_pem("-----BEGIN PRIVATE KEY-----\n"), Err(SignatureError::SecretKey)));
    }

    proptest! {
        // Whatever the bytes, the answer is a key or an error.
        #[test]
        fn checking_never_panics(document in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(verify(&document, &[key(1).public()]).is_err());
        }

        // With any byte of a signed document replaced, the signature no longer fits, unless the byte was a space or stands for the same.
        #[test]
        fn a_changed_document_is_noticed(at in 0_usize..400, byte in any::<u8>()) {
            let signed = key(1).sign(br#"{"name":"pump-a","version":3,"sha256":"00ff"}"#).unwrap();
            let at = at % signed.len();
            let mut changed = signed.clone();
            changed[at] = byte;
            let same = serde_json::from_slice::<Value>(&changed).is_ok_and(|value| value == serde_json::from_slice::<Value>(&signed).unwrap());
            // The digits of a signature may be written in either case.
            let case = signed[at].eq_ignore_ascii_case(&byte);
            prop_assert!(same || case || verify(&changed, &[key(1).public()]).is_err());
        }
    }
}
