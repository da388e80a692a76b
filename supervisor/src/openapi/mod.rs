//! The API in OpenAPI 3.1: what each supervisor serves of its lab, and what `labyard serve` serves of all.

use serde_json::{Value, json};

/// A supervisor's: paths below `/v1`.
const LAB: &str = include_str!("lab.json");

/// The document that each supervisor serves.
pub fn lab() -> Value {
    serde_json::from_str(LAB).unwrap_or_default()
}

/// The document of `labyard serve`: the list of labs, metrics, and what is above below the name of each lab.
pub fn all() -> Value {
    let mut document = lab();
    let lab_name = json!({"name": "lab", "in": "path", "required": true, "schema": {"type": "string"}, "description": "Name of a lab."});
    let mut paths = json!({
        "/v1/openapi.json": {"get": {"operationId": "describe", "summary": "This document", "tags": ["labs"],
            "responses": {"200": {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}}}},
        "/v1/labs": {"get": {"operationId": "labs", "summary": "All labs and their machines, as `labyard ps --json`", "tags": ["labs"],
            "responses": {"200": {"description": "The truth, whatever died.", "content": {"application/json": {"schema": {"type": "object",
                "required": ["labs"], "properties": {"labs": {"type": "array", "items": {"type": "object"}}}}}}}}}},
        "/metrics": {"get": {"operationId": "metrics", "summary": "Labs, machines and counters of devices in OpenMetrics", "tags": ["labs"],
            "responses": {"200": {"description": "OpenMetrics 1.0.",
                "content": {"application/openmetrics-text; version=1.0.0; charset=utf-8": {"schema": {"type": "string"}}}}}}},
    });
    if let (Some(below), Some(paths)) = (document["paths"].as_object(), paths.as_object_mut()) {
        for (path, item) in below.iter().filter(|(path, _)| *path != "/v1/openapi.json") {
            let Some(rest) = path.strip_prefix("/v1") else { continue };
            let mut item = item.clone();
            item["parameters"] = json!([lab_name]);
            paths.insert(format!("/v1/labs/{{lab}}{rest}"), item);
        }
    }
    document["paths"] = paths;
    document["info"]["title"] = json!("Labyard: all labs of a user");
    document["info"]["description"] =
        json!("HTTP/1.1 on `serve.sock` in the state directory, for its owner. Errors are plain text.");
    document
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Path and method of each `.route("PATH", get(…).post(…))` in a source text.
    fn routes(source: &str) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        for route in source.split(".route(\"").skip(1) {
            let (path, rest) = route.split_once('"').expect("the end of a path");
            // Up to the next route, or the end of the statement.
            let methods = rest.split(".route(").next().and_then(|rest| rest.split(';').next()).unwrap_or_default();
            for method in ["get", "post", "put", "delete"] {
                if methods.contains(&format!(" {method}(")) || methods.contains(&format!(".{method}(")) {
                    found.insert((path.to_owned(), method.to_owned()));
                }
            }
        }
        found
    }

    fn described(document: &Value) -> BTreeSet<(String, String)> {
        let paths = document["paths"].as_object().expect("paths");
        let methods = |item: &Value| {
            let keys = item.as_object().expect("a path").keys().filter(|key| *key != "parameters").cloned();
            keys.collect::<Vec<_>>()
        };
        paths.iter().flat_map(|(path, item)| methods(item).into_iter().map(|method| (path.clone(), method))).collect()
    }

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let sources =
            [include_str!("../run/api.rs"), include_str!("../run/links.rs"), include_str!("../run/publish.rs")];
        let served: BTreeSet<_> = sources.into_iter().flat_map(routes).collect();
        assert!(served.len() > 20, "{served:?}");
        assert_eq!(described(&lab()), served);
    }

    #[test]
    fn references_lead_somewhere_and_names_are_used_once() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        for document in [lab(), all()] {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(found.len() > 40, "{found:?}");
            for reference in found {
                let pointer = reference.strip_prefix('#').expect("in this document");
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
            let mut names: Vec<_> = described(&document)
                .into_iter()
                .map(|(path, method)| document["paths"][path][method]["operationId"].clone().to_string())
                .collect();
            let all = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }

    #[test]
    fn what_one_lab_has_is_below_its_name_for_all_labs() {
        let paths = all();
        assert!(paths["paths"]["/v1/labs/{lab}/machines/{machine}/stop"]["post"].is_object());
        assert_eq!(described(&all()).len(), described(&lab()).len() + 2);
    }
}
