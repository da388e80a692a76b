//! Templates: what a machine's CPUID is cut by, as data (`../templates/*.json`).
//!
//! A row replaces the bits of a mask in one register of a leaf. `base` is cut from every machine; the others are chosen by name,
//! so that a machine sees the same processor on hosts of several generations.

use std::sync::OnceLock;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Deserializer};

/// No such template.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("CPU template {0}: there is none of this name, only {names}", names = Template::names().join(", "))]
pub struct TemplateError(pub String);

/// A template.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// By which it is chosen.
    pub name: String,
    /// What it is for.
    pub purpose: String,
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(deserialize_with = "hexadecimal")]
    leaf: u32,
    /// Any where missing.
    subleaf: Option<u32>,
    /// All four where missing.
    register: Option<Register>,
    #[serde(deserialize_with = "hexadecimal")]
    mask: u32,
    #[serde(deserialize_with = "hexadecimal")]
    value: u32,
    #[expect(dead_code, reason = "for the reader of the file")]
    what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

fn hexadecimal<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let text = String::deserialize(from)?;
    let digits = text.strip_prefix("0x").ok_or_else(|| serde::de::Error::custom("a number begins with 0x"))?;
    u32::from_str_radix(digits, 16).map_err(serde::de::Error::custom)
}

/// The one that is cut from every machine, and those that can be chosen, the first where nothing is.
fn all() -> &'static [Template] {
    static ALL: OnceLock<Vec<Template>> = OnceLock::new();
    ALL.get_or_init(|| {
        let texts = [
            include_str!("../templates/base.json"),
            include_str!("../templates/host.json"),
            include_str!("../templates/x86-64-v2.json"),
            include_str!("../templates/x86-64-v3.json"),
        ];
        texts.into_iter().map(|text| serde_json::from_str(text).expect("templates are tested")).collect()
    })
}

pub(super) fn base() -> &'static Template {
    &all()[0]
}

impl Template {
    /// Names that can be chosen.
    pub fn names() -> Vec<&'static str> {
        all().iter().skip(1).map(|template| template.name.as_str()).collect()
    }

    /// The template of this name; `host`, which cuts nothing more, where there is no name.
    pub fn find(name: Option<&str>) -> Result<&'static Self, TemplateError> {
        let name = name.unwrap_or("host");
        let found = all().iter().skip(1).find(|template| template.name == name);
        found.ok_or_else(|| TemplateError(name.to_owned()))
    }

    /// Cuts.
    pub(super) fn apply(&self, entries: &mut [kvm_cpuid_entry2]) {
        for row in &self.rows {
            let meant = |entry: &&mut kvm_cpuid_entry2| {
                entry.function == row.leaf && row.subleaf.is_none_or(|subleaf| entry.index == subleaf)
            };
            for entry in entries.iter_mut().filter(meant) {
                for (register, value) in [
                    (Register::Eax, &mut entry.eax),
                    (Register::Ebx, &mut entry.ebx),
                    (Register::Ecx, &mut entry.ecx),
                    (Register::Edx, &mut entry.edx),
                ] {
                    if row.register.is_none_or(|wanted| wanted == register) {
                        *value = *value & !row.mask | row.value & row.mask;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_found_by_its_name_and_none_by_another() {
        assert_eq!(Template::names(), ["host", "x86-64-v2", "x86-64-v3"]);
        for name in Template::names() {
            assert_eq!(Template::find(Some(name)).expect(name).name, name);
        }
        assert_eq!(Template::find(None).expect("host").name, "host");
        let error = Template::find(Some("base")).expect_err("not to be chosen").to_string();
        assert_eq!(error, "CPU template base: there is none of this name, only host, x86-64-v2, x86-64-v3");
    }

    #[test]
    fn a_template_adds_nothing_that_the_host_may_not_have() {
        for row in all().iter().flat_map(|template| &template.rows) {
            assert_eq!(row.value, 0, "{row:?}");
            assert_ne!(row.leaf, 0xd, "the state of what is cut goes by itself: {row:?}");
        }
    }
}
