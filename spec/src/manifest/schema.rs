//! The JSON schema of a manifest (draft 2020-12), from the very structs that read it; what a type does not say stands in `limit`.
//!
//! It is for editors. Whatever keeps it may still break a rule that needs more than one field: [`super::Manifest::read`] decides.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use serde_saphyr::Spanned;

use super::document::{Anything, Document, Kernel, KernelFields};
use super::{MAX_DRIVES, MAX_INTERFACES, MAX_MACHINES, MAX_NETWORKS, MAX_TASKS};
use crate::playground::{CPU_TEMPLATES, Entry};

/// Its name.
const ID: &str = "urn:labyard:playground";
const NAME: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
const SIZE: &str = "^[0-9]+ *[KMGT](i|iB)?$";
const ADDRESS: &str = "^[0-9]+(\\.[0-9]+){3}$";
/// What IPv6 addresses are written with; their rules are no matter of a pattern.
const ADDRESS6: &str = "^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*$";

/// The schema.
pub fn schema() -> Value {
    let mut schema = Document::shape();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
        fields.insert("$id".into(), json!(ID));
        fields.insert("title".into(), json!("Labyard playground"));
    }
    schema
}

/// What values of a type look like.
pub(super) trait Shape {
    /// The field may be left out.
    const OPTIONAL: bool = false;
    /// As a schema.
    fn shape() -> Value;
}

impl Shape for String {
    fn shape() -> Value {
        json!({ "type": "string" })
    }
}

impl Shape for bool {
    fn shape() -> Value {
        json!({ "type": "boolean" })
    }
}

impl Shape for u32 {
    fn shape() -> Value {
        json!({ "type": "integer", "minimum": 0 })
    }
}

impl Shape for Anything {
    fn shape() -> Value {
        json!({})
    }
}

impl<T: Shape> Shape for Spanned<T> {
    const OPTIONAL: bool = T::OPTIONAL;
    fn shape() -> Value {
        T::shape()
    }
}

impl<T: Shape> Shape for Option<T> {
    const OPTIONAL: bool = true;
    fn shape() -> Value {
        T::shape()
    }
}

impl<T: Shape> Shape for Vec<T> {
    fn shape() -> Value {
        json!({ "type": "array", "items": T::shape() })
    }
}

impl<T: Shape> Shape for BTreeMap<String, T> {
    fn shape() -> Value {
        json!({ "type": "object", "additionalProperties": T::shape() })
    }
}

impl Shape for Kernel {
    fn shape() -> Value {
        json!({ "anyOf": [{ "type": ["string", "number"] }, KernelFields::shape()] })
    }
}

/// An object of a struct's fields: its name, then name, shape and whether it is optional of each.
pub(super) fn object(of: &str, fields: &[(&str, Value, bool)]) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (field, shape, optional) in fields {
        let name = spelled(field);
        let mut shape = shape.clone();
        if let (Some(shape), Value::Object(more)) = (shape.as_object_mut(), limit(of, &name)) {
            shape.extend(more);
        }
        if !optional {
            required.push(json!(name));
        }
        properties.insert(name, shape);
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// As the field is written in a manifest.
fn spelled(field: &str) -> String {
    match field {
        "no_ssh" => "noSSH".to_owned(),
        "timeout_seconds" => field.to_owned(),
        _ => {
            let mut words = field.split('_');
            let first = words.next().unwrap_or_default().to_owned();
            words.fold(first, |name, word| {
                let mut letters = word.chars();
                let capital = letters.next().map(|letter| letter.to_ascii_uppercase());
                name + &capital.into_iter().chain(letters).collect::<String>()
            })
        }
    }
}

/// What the rules say of a field beyond its type.
fn limit(of: &str, field: &str) -> Value {
    match (of, field) {
        ("Document", "kind") => json!({ "const": "playground" }),
        ("Document" | "Network" | "Machine", "name") => json!({ "pattern": NAME }),
        ("Document", "title") => json!({ "minLength": 5, "maxLength": 120 }),
        ("Document", "description") => json!({ "maxLength": 500 }),
        ("Document", "markdown") => json!({ "maxLength": 100_000 }),
        ("Playground", "networks") => json!({ "minItems": 1, "maxItems": MAX_NETWORKS }),
        ("Playground", "machines") => json!({ "minItems": 1, "maxItems": MAX_MACHINES }),
        ("Playground", "tabs") => json!({ "minItems": 1, "maxItems": 10 }),
        ("Network", "subnet") => json!({ "pattern": "^[0-9]+(\\.[0-9]+){3}/[0-9]+$" }),
        ("Network", "gateway") => json!({ "pattern": ADDRESS }),
        ("Interface", "address") => json!({ "pattern": "^[0-9]+(\\.[0-9]+){3}(/[0-9]+)?$" }),
        ("OwnNetwork", "subnet6") => json!({ "pattern": "^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*/[0-9]+$" }),
        ("OwnNetwork", "gateway6") => json!({ "pattern": ADDRESS6 }),
        ("OwnInterface", "address6") => json!({ "pattern": "^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/[0-9]+)?$" }),
        ("Machine", "backend") => json!({ "enum": ["firecracker", "cloud-hypervisor"] }),
        ("Machine", "users") => json!({ "minItems": 1 }),
        ("Machine", "drives") => json!({ "minItems": 1, "maxItems": MAX_DRIVES }),
        ("Playground", "initTasks") => json!({ "maxProperties": MAX_TASKS }),
        ("MachineNetwork", "interfaces") => json!({ "minItems": 1, "maxItems": MAX_INTERFACES }),
        ("Machine", "startupFiles") => json!({ "maxItems": 10 }),
        ("KernelFields", "source") => json!({ "type": ["string", "number"] }),
        ("Own", "entry") => json!({ "enum": Entry::ALL.map(Entry::name) }),
        ("Own", "cpuTemplate") => json!({ "enum": CPU_TEMPLATES }),
        ("OwnDrive", "engine") => json!({ "enum": ["auto", "sync", "uring"] }),
        ("Drive", "filesystem") => json!({ "enum": super::lab::Filesystem::ALL.map(super::lab::Filesystem::name) }),
        ("Drive", "size") | ("Resources", "ramSize") => json!({ "pattern": SIZE }),
        ("Drive", "mount") | ("StartupFile", "path") => json!({ "pattern": "^/" }),
        ("StartupFile", "mode") => json!({ "type": ["string", "integer"], "pattern": "^[0-7]+$" }),
        ("Resources", "cpuCount") | ("Task", "timeout_seconds") => json!({ "minimum": 1 }),
        ("Task", "init") => json!({ "const": true }),
        ("Tab", "kind") => json!({ "enum": ["terminal", "ide", "http-port", "web-page", "kexp"] }),
        ("Tab", "access") => json!({ "enum": ["private", "public"] }),
        ("Tab", "pane") => json!({ "enum": ["left", "right"] }),
        ("Tab", "number") | ("PortForward", "localPort" | "remotePort") => json!({ "minimum": 1, "maximum": 65_535 }),
        ("PortForward", "kind") => json!({ "enum": ["local", "remote"] }),
        ("Access", "mode") => json!({ "enum": ["private", "public"] }),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a value is of a schema, as far as ours go: the first place where it is not.
    fn check(value: &Value, schema: &Value, path: &str) -> Result<(), String> {
        let fails = |why: &str| Err(format!("{path}: {why}: {value}"));
        if let Some(any) = schema["anyOf"].as_array() {
            return match any.iter().any(|one| check(value, one, path).is_ok()) {
                true => Ok(()),
                false => fails("none of several"),
            };
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::String(kind) => vec![kind],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        };
        let is = |kind: &&str| match *kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            other => panic!("{other}"),
        };
        if !kinds.is_empty() && !kinds.iter().any(is) {
            return fails(&format!("not {kinds:?}"));
        }
        if schema.get("const").is_some_and(|only| only != value) {
            return fails("another value");
        }
        if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
            return fails("none of the words");
        }
        let count = value.as_u64().or(value.as_array().map(|items| items.len() as u64));
        for (least, most) in [("minimum", "maximum"), ("minItems", "maxItems")] {
            if let Some(count) = count
                && (schema[least].as_u64().is_some_and(|least| count < least)
                    || schema[most].as_u64().is_some_and(|most| count > most))
            {
                return fails("out of range");
            }
        }
        for (number, item) in value.as_array().into_iter().flatten().enumerate() {
            check(item, &schema["items"], &format!("{path}[{number}]"))?;
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if value.get(name).is_none() {
                return fails(&format!("`{name}` is missing"));
            }
        }
        for (name, field) in value.as_object().into_iter().flatten() {
            let shape = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
            if *shape == json!(false) {
                return fails(&format!("`{name}` is unknown"));
            }
            check(field, shape, &format!("{path}.{name}"))?;
        }
        Ok(())
    }

    fn checked(text: &str) -> Result<(), String> {
        let value: Value = serde_saphyr::from_str(text).expect("YAML");
        check(&value, &schema(), "")
    }

    #[test]
    fn every_example_keeps_the_schema_and_the_rules() {
        for text in [
            include_str!("../../testdata/storage.yaml"),
            include_str!("../../testdata/segments.yaml"),
            include_str!("../../testdata/cluster.yaml"),
            include_str!("../../testdata/six.yaml"),
            include_str!("../../../examples/two-machines/lab.yaml"),
        ] {
            checked(text).unwrap_or_else(|why| panic!("{why}"));
            let lab = super::super::Manifest::read(text, "lab.yaml").expect("it keeps every rule").lab;
            let effective = super::super::effective::effective(&lab);
            check(&effective, &schema(), "effective").unwrap_or_else(|why| panic!("{why}"));
        }
    }

    #[test]
    fn what_breaks_the_schema_is_found_where_it_is() {
        let whole = include_str!("../../testdata/storage.yaml");
        for (text, by, why) in [
            ("kind: playground", "kind: course", ".kind: another value"),
            ("cpuCount: 2", "cpus: 2", ".playground.machines[0].resources: `cpus` is unknown"),
            ("filesystem: xfs", "filesystem: zfs", "drives[1].filesystem: none of the words"),
            ("cpuCount: 2", "cpuCount: 0", "cpuCount: out of range"),
            ("name: pg-bench\n", "", "`name` is missing"),
        ] {
            assert!(whole.contains(text), "{text}");
            let error = checked(&whole.replacen(text, by, 1)).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }
}
