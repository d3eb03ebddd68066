//! The description of the API, `docs/openapi.json`, as it is part of this program.

use axum::http::HeaderMap;
use axum::response::Response;

use crate::dashboard::packed::Packed;

const DOCUMENT: Packed = Packed(include_bytes!(concat!(env!("OUT_DIR"), "/openapi.json.gz")));

pub(super) async fn document(asked: HeaderMap) -> Response {
    DOCUMENT.respond("application/json", &asked)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::super::table;
    use super::*;

    /// Routes of the session, which everybody may ask for.
    const SESSION: [(&str, &str); 3] = [("/session", "get"), ("/session", "post"), ("/session", "delete")];

    // The document describes every route with its method and its role, and no other.
    #[test]
    fn the_document_describes_the_routes() {
        let document: Value = serde_json::from_slice(&DOCUMENT.unpack().unwrap()).unwrap();
        let mut described = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                described.insert((path.clone(), method.clone(), operation["x-role"].as_str().unwrap().to_owned()));
            }
        }
        let routes = table()
            .into_iter()
            .map(|route| (route.path.to_owned(), route.method.as_str().to_lowercase(), route.role.word().to_owned()));
        let session = SESSION.map(|(path, method)| (path.to_owned(), method.to_owned(), "none".to_owned()));
        let served: BTreeSet<_> = routes.chain(session).collect();
        let missing: Vec<_> = served.difference(&described).collect();
        let invented: Vec<_> = described.difference(&served).collect();
        assert!(missing.is_empty() && invented.is_empty(), "not described: {missing:?}; not served: {invented:?}");
    }

    // Every reference leads somewhere, and every variable of a path is described.
    #[test]
    fn the_document_is_whole() {
        let document: Value = serde_json::from_slice(&DOCUMENT.unpack().unwrap()).unwrap();
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(!references.is_empty());
        for reference in references {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
        }
        for (path, methods) in document["paths"].as_object().unwrap() {
            let variables = path.split('/').filter_map(|level| level.strip_prefix('{')?.strip_suffix('}'));
            for (variable, (method, operation)) in
                variables.flat_map(|variable| methods.as_object().unwrap().iter().map(move |it| (variable, it)))
            {
                let wanted = format!("#/components/parameters/{variable}");
                let named = operation["parameters"].as_array().unwrap().iter().any(|it| it["$ref"] == wanted.as_str());
                assert!(named, "{method} {path} does not describe {variable}");
            }
        }
    }

    fn collect(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| match value.as_str() {
                Some(reference) if key == "$ref" => references.push(reference.to_owned()),
                _ => collect(value, references),
            }),
            Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
            _ => {}
        }
    }
}
