//! The YAML as it is written: every documented field, and where each value stands. The one place that knows the YAML parser.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{MessageFormatter, Spanned, UserMessageFormatter};

use super::place::{self, Broken};
use super::schema::{self, Shape};
use super::snippet::meant;
use super::{MAX_BYTES, Place};

/// A value with its place.
pub(super) type At<T> = Spanned<T>;
/// A field that may be missing.
pub(super) type Maybe<T> = Option<Spanned<T>>;

/// Reads the document; what it says is not checked yet.
pub(super) fn parse(text: &str) -> Result<Document, Box<Broken>> {
    if text.len() > MAX_BYTES {
        let message = format!("{} bytes, more than the {MAX_BYTES} of the longest manifest", text.len());
        return Err(Box::new(Broken { place: Place { line: 1, column: 1 }, path: String::new(), message }));
    }
    // Strict booleans and zeros keep `yes` and `0644` what they look like.
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = error.location().map_or(Place { line: 1, column: 1 }, place::of);
        let (path, near) = place::path_at(text, place);
        let message = UserMessageFormatter.format_message(error.without_snippet()).into_owned();
        let message = match error.without_snippet() {
            serde_saphyr::Error::DuplicateMappingKey { key, .. } => {
                format!("`{}` is given twice: keep one", key.as_deref().unwrap_or("this key"))
            }
            serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => {
                let known = expected.iter().map(|known| &**known);
                format!("no such field `{field}`: known here are {}{}", expected.join(", "), meant(field, known))
            }
            serde_saphyr::Error::SerdeMissingField { field, .. } => format!("`{field}` is missing"),
            serde_saphyr::Error::InvalidScalar { ty, .. } => format!("`{near}` is not {}", plain_type(ty)),
            serde_saphyr::Error::InvalidBooleanStrict { .. } => format!("`{near}` is neither true nor false"),
            _ => message,
        };
        Box::new(Broken { place, path, message })
    })
}

fn plain_type(name: &str) -> &str {
    match name {
        _ if name.starts_with(['u', 'i']) || name.contains("integer") => "a whole number in range",
        _ => name,
    }
}

macro_rules! written {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$attribute])* pub(super) $field: $type,)*
        }

        impl Shape for $name {
            fn shape() -> serde_json::Value {
                schema::object(stringify!($name), &[
                    $((stringify!($field), <$type as Shape>::shape(), <$type as Shape>::OPTIONAL),)*
                ])
            }
        }
    )*};
}

written! {
    /// The whole document.
    Document {
        kind: At<String>,
        name: At<String>,
        base: Maybe<String>,
        title: Maybe<String>,
        description: Maybe<String>,
        categories: Option<Vec<At<String>>>,
        cover: Maybe<String>,
        markdown: Maybe<String>,
        playground: At<Playground>,
    }
    Playground {
        networks: Maybe<Vec<At<Network>>>,
        machines: At<Vec<At<Machine>>>,
        tabs: Maybe<Vec<At<Tab>>>,
        init_tasks: Option<BTreeMap<String, At<Task>>>,
        init_conditions: Option<InitConditions>,
        registry_auth: Maybe<String>,
        port_forwards: Option<Vec<At<PortForward>>>,
        access_control: Option<AccessControl>,
        access: Maybe<Access>,
    }
    Network {
        name: At<String>,
        subnet: At<String>,
        gateway: Maybe<String>,
        private: Option<bool>,
        labyard: Option<OwnNetwork>,
    }
    Machine {
        name: At<String>,
        backend: Maybe<String>,
        kernel: Maybe<Kernel>,
        users: Maybe<Vec<At<User>>>,
        drives: At<Vec<At<Drive>>>,
        network: At<MachineNetwork>,
        resources: Option<Resources>,
        startup_files: Maybe<Vec<At<StartupFile>>>,
        #[serde(rename = "noSSH")]
        no_ssh: Option<bool>,
        labyard: Option<Own>,
    }
    /// What no other reader of such manifests knows: fields of Labyard's own, kept apart (`docs/adr/0005`).
    Own {
        entry: Maybe<String>,
        cpu_template: Maybe<String>,
        nested_virtualization: Option<bool>,
        huge_pages: Maybe<bool>,
    }
    /// The same of a network: its IPv6 (`docs/adr/0008`).
    OwnNetwork {
        subnet6: Maybe<String>,
        gateway6: Maybe<String>,
    }
    /// And of an interface.
    OwnInterface {
        address6: Maybe<String>,
    }
    /// The same of a drive.
    OwnDrive {
        engine: Maybe<String>,
    }
    KernelFields {
        source: Maybe<String>,
        snapshot: Maybe<Snapshot>,
    }
    Snapshot {
        id: Option<String>,
        #[expect(dead_code, reason = "known, and refused together with the id")]
        lease_id: Option<String>,
    }
    User {
        name: At<String>,
        default: Option<bool>,
        welcome: Option<String>,
    }
    Drive {
        source: Maybe<String>,
        mount: Maybe<String>,
        size: Maybe<String>,
        filesystem: Maybe<String>,
        read_only: Option<bool>,
        persistent: Option<bool>,
        snapshot: Maybe<Snapshot>,
        labyard: Option<OwnDrive>,
    }
    MachineNetwork {
        interfaces: At<Vec<At<Interface>>>,
    }
    Interface {
        network: Maybe<String>,
        address: Maybe<String>,
        labyard: Option<OwnInterface>,
    }
    Resources {
        cpu_count: Maybe<u32>,
        ram_size: Maybe<String>,
    }
    StartupFile {
        path: At<String>,
        content: At<String>,
        append: Option<bool>,
        owner: Maybe<String>,
        mode: Maybe<String>,
    }
    Tab {
        id: Option<String>,
        kind: Maybe<String>,
        name: Maybe<String>,
        machine: Maybe<String>,
        number: Maybe<u32>,
        access: Maybe<String>,
        tls: Option<bool>,
        host_rewrite: Option<String>,
        path_rewrite: Option<String>,
        url: Maybe<String>,
        pane: Maybe<String>,
    }
    Task {
        init: Maybe<bool>,
        machine: Maybe<String>,
        user: Maybe<String>,
        run: At<String>,
        needs: Option<Vec<At<String>>>,
        #[serde(rename = "timeout_seconds")]
        timeout_seconds: Maybe<u32>,
        conditions: Option<Vec<At<Condition>>>,
        env: Maybe<Anything>,
        hintcheck: Maybe<Anything>,
        failcheck: Maybe<Anything>,
        helper: Maybe<Anything>,
    }
    Condition {
        key: At<String>,
        value: At<String>,
    }
    InitConditions {
        values: Option<Vec<At<InitCondition>>>,
    }
    InitCondition {
        key: At<String>,
        default: Maybe<String>,
        options: Option<Vec<At<String>>>,
        nullable: Option<bool>,
        placeholder: Option<String>,
        validation_regex: Option<String>,
    }
    PortForward {
        kind: At<String>,
        machine: At<String>,
        local_host: Option<String>,
        local_port: Maybe<u32>,
        remote_host: Option<String>,
        remote_port: Maybe<u32>,
    }
    AccessControl {
        can_list: Option<Vec<At<String>>>,
        can_read: Option<Vec<At<String>>>,
        can_start: Option<Vec<At<String>>>,
    }
    Access {
        mode: Maybe<String>,
        #[expect(dead_code, reason = "known, and without effect")]
        users: Option<Vec<String>>,
    }
}

/// Something whose shape does not matter: it is only noted that it is there.
#[derive(Debug)]
pub(super) struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// A kernel: `{source: …}` or, in the old form, the series itself.
#[derive(Debug)]
pub(super) enum Kernel {
    /// The old form, quoted.
    Series(String),
    /// The old form, unquoted: YAML takes it for a number, and 6.10 for 6.1. The text has what was written.
    Number,
    /// The form of today.
    Fields(KernelFields),
}

impl<'de> Deserialize<'de> for Kernel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Kernel;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a kernel such as \"6.12\" or {source: \"6.12\"}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Kernel, E> {
                Ok(Kernel::Series(text.to_owned()))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Kernel, E> {
                Ok(Kernel::Number)
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Kernel, E> {
                Ok(Kernel::Number)
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Kernel, E> {
                Ok(Kernel::Number)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Kernel, A::Error> {
                KernelFields::deserialize(de::value::MapAccessDeserializer::new(map)).map(Kernel::Fields)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
