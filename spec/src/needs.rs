//! What an image needs of the kernel that boots it, and whether a kernel has it.
//!
//! An image says so by labels of its configuration or annotations of its manifest; they are a stranger's, so their length is
//! bounded here. There is no such label in the OCI's own list (image-spec, annotations.md), so the names are ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// A range of versions: `>=6.1, <7`, or a series: `6.12`.
pub const VERSION: &str = "io.labyard.kernel.version";
/// Options of the kernel's configuration, built in or as modules: `CONFIG_OVERLAY_FS CONFIG_HZ=250`.
pub const FEATURES: &str = "io.labyard.kernel.features";
/// Modules, which may also be built in: `overlay br_netfilter`.
pub const MODULES: &str = "io.labyard.kernel.modules";
/// What the names above begin with; another name that does is a mistake.
pub const PREFIX: &str = "io.labyard.kernel.";

/// Longest label in bytes.
const MAX_BYTES: usize = 16 << 10;

/// What an image needs; nothing by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelNeeds {
    /// Comparisons, all of which hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub version: Vec<Comparison>,
    /// `CONFIG_NAME`, or `CONFIG_NAME=VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Names of modules, with `_` for `-`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
}

/// A bound of the version, by as many numbers as are given: 6.1.50 is `<=6.1`, and is not `>6.1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Comparison {
    operator: Operator,
    numbers: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    AtLeast,
    AtMost,
    NotEqual,
    Above,
    Below,
    Equal,
}

/// Longer ones first, so that `>=` is not read as `>`.
const OPERATORS: [(&str, Operator); 6] = [
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    ("!=", Operator::NotEqual),
    (">", Operator::Above),
    ("<", Operator::Below),
    ("=", Operator::Equal),
];

/// What a kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelOffer {
    /// `uname -r`.
    pub version: String,
    /// Names of its modules and of what is built in; `None` where nobody noted them.
    pub modules: Option<BTreeSet<String>>,
    /// Its configuration without what is not set; `None` where nobody has it.
    pub config: Option<BTreeMap<String, String>>,
}

impl KernelNeeds {
    /// Reads the labels that are ours; others say nothing about the kernel. Later ones replace earlier ones of the same name.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut needs = Self::default();
        for (name, text) in labels {
            if !name.starts_with(PREFIX) {
                continue;
            }
            if text.len() > MAX_BYTES {
                return Err(format!("label {name}: {} bytes, more than {MAX_BYTES}", text.len()));
            }
            let words = || text.split([',', ' ', '\t', '\n']).filter(|word| !word.is_empty());
            let wrong = |word: &str, form: &str| format!("label {name}: `{}` is not {form}", word.escape_default());
            match name {
                VERSION => {
                    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                    let read = |part: &str| {
                        part.parse().map_err(|()| wrong(part, "a bound such as >=6.1, nor a series such as 6.12"))
                    };
                    needs.version = parts.map(read).collect::<Result<_, _>>()?;
                }
                FEATURES => {
                    needs.features.clear();
                    for word in words() {
                        if !is_feature(word) {
                            return Err(wrong(word, "CONFIG_NAME or CONFIG_NAME=VALUE"));
                        }
                        needs.features.push(word.to_owned());
                    }
                }
                MODULES => {
                    needs.modules.clear();
                    for word in words() {
                        if !word.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
                            return Err(wrong(word, "the name of a module"));
                        }
                        needs.modules.push(word.replace('-', "_"));
                    }
                }
                _ => return Err(format!("label {name}: there is {VERSION}, {FEATURES} and {MODULES}")),
            }
        }
        Ok(needs)
    }

    /// These and others together.
    pub fn and(mut self, other: Self) -> Self {
        fn add<T: PartialEq>(to: &mut Vec<T>, more: Vec<T>) {
            for one in more {
                if !to.contains(&one) {
                    to.push(one);
                }
            }
        }
        add(&mut self.version, other.version);
        add(&mut self.features, other.features);
        add(&mut self.modules, other.modules);
        self
    }

    /// It needs nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What `kernel` lacks of it, each in words; nothing where it will do.
    pub fn missing(&self, kernel: &KernelOffer) -> Vec<String> {
        let mut missing = Vec::new();
        let numbers = numbers(&kernel.version);
        if !self.version.iter().all(|bound| bound.holds(&numbers)) {
            let bounds: Vec<_> = self.version.iter().map(Comparison::to_string).collect();
            missing.push(format!("version {}", bounds.join(", ")));
        }
        for feature in &self.features {
            let has = kernel.config.as_ref().map(|config| {
                let (name, wanted) =
                    feature.split_once('=').map_or((&**feature, None), |(name, value)| (name, Some(value)));
                config.get(name).is_some_and(|value| wanted.is_none_or(|wanted| value.trim_matches('"') == wanted))
            });
            match has {
                Some(true) => {}
                Some(false) => missing.push(feature.clone()),
                None => missing.push(format!("{feature} (its configuration is not known)")),
            }
        }
        for module in &self.modules {
            match kernel.modules.as_ref().map(|modules| modules.contains(module)) {
                Some(true) => {}
                Some(false) => missing.push(format!("module {module}")),
                None => missing.push(format!("module {module} (its modules are not known)")),
            }
        }
        missing
    }
}

fn is_feature(word: &str) -> bool {
    let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.strip_prefix("CONFIG_").is_some_and(|rest| !rest.is_empty() && rest.chars().all(is_name))
        && value.is_none_or(|value| !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic()))
}

/// The configuration of a kernel from its text, `CONFIG_NAME=VALUE` a line.
pub fn config(text: &str) -> BTreeMap<String, String> {
    let set = text.lines().filter_map(|line| line.trim().split_once('='));
    set.filter(|(name, _)| name.starts_with("CONFIG_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The numbers that a version begins with: 6.12.9-labyard is 6, 12, 9.
fn numbers(version: &str) -> Vec<u64> {
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    version[..end].split('.').map_while(|part| part.parse().ok()).collect()
}

impl Comparison {
    fn holds(&self, version: &[u64]) -> bool {
        let mut version: Vec<u64> = version.iter().copied().take(self.numbers.len()).collect();
        version.resize(self.numbers.len(), 0);
        match self.operator {
            Operator::AtLeast => version >= self.numbers,
            Operator::AtMost => version <= self.numbers,
            Operator::NotEqual => version != self.numbers,
            Operator::Above => version > self.numbers,
            Operator::Below => version < self.numbers,
            Operator::Equal => version == self.numbers,
        }
    }
}

impl std::str::FromStr for Comparison {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let found = OPERATORS.iter().find_map(|(sign, operator)| Some((*operator, text.strip_prefix(sign)?)));
        let (operator, version) = found.unwrap_or((Operator::Equal, text));
        let numbers = version.trim().split('.').map(|part| {
            // `+1` is a number for Rust, and none of a version.
            if part.bytes().all(|byte| byte.is_ascii_digit()) { part.parse().map_err(drop) } else { Err(()) }
        });
        let numbers: Vec<u64> = numbers.collect::<Result<_, _>>()?;
        if numbers.len() > 4 { Err(()) } else { Ok(Self { operator, numbers }) }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = OPERATORS.iter().find(|(_, operator)| *operator == self.operator).map_or("", |(sign, _)| sign);
        let numbers: Vec<_> = self.numbers.iter().map(u64::to_string).collect();
        write!(f, "{sign}{}", numbers.join("."))
    }
}

impl From<Comparison> for String {
    fn from(comparison: Comparison) -> Self {
        comparison.to_string()
    }
}

impl TryFrom<String> for Comparison {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|()| format!("`{text}` is not a bound of a version"))
    }
}
