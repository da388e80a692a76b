//! What an artifact beside an image says of the kernel: the image compatibility specification of Node Feature Discovery, v1alpha1
//! (docs/usage/image-compatibility.md and customization-guide.md there), which is what the OCI's working group came to.
//!
//! Its rules are about the nodes of a cluster. Of these the features of the kernel are read, as far as they can be known of a kernel that does not
//! run yet: its version, its configuration, its modules. Any other word about the kernel is an error: a need that nobody looks at would
//! be found in the guest, too late. What is said of processors and devices is not looked at. The document is a stranger's; its length is bounded
//! by who reads it.

use std::collections::BTreeMap;

use labyard_spec::needs::{self, KernelNeeds};
use serde::Deserialize;

/// The artifact type of a manifest with such a document.
pub(crate) const ARTIFACT: &str = "application/vnd.nfd.image-compatibility.v1alpha1";
/// The media type of the document.
pub(crate) const DOCUMENT: &str = "application/vnd.nfd.image-compatibility.spec.v1alpha1+yaml";
/// Its version.
const VERSION: &str = "v1alpha1";
/// What features of the kernel begin with.
const KERNEL: &str = "kernel.";

#[derive(Debug, Deserialize)]
struct Specification {
    version: String,
    #[serde(default)]
    compatibilities: Vec<Set>,
}

/// Rules that hold together; several sets are alternatives.
#[derive(Debug, Deserialize)]
struct Set {
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    match_features: Vec<Term>,
    #[serde(default)]
    match_any: Vec<Terms>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Terms {
    #[serde(default)]
    match_features: Vec<Term>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Term {
    feature: String,
    #[serde(default)]
    match_expressions: BTreeMap<String, Expression>,
    #[serde(default)]
    match_name: Option<Expression>,
}

#[derive(Debug, Deserialize)]
struct Expression {
    op: String,
    #[serde(default)]
    value: Vec<String>,
}

/// Needs in the words of a label.
#[derive(Default)]
struct Words {
    version: Vec<String>,
    features: Vec<String>,
    modules: Vec<String>,
}

/// Reads a document; the error says what is wrong with it.
pub(crate) fn needs(text: &[u8]) -> Result<KernelNeeds, String> {
    let text = std::str::from_utf8(text).map_err(|_| "not text in UTF-8".to_owned())?;
    // As everywhere: `yes` and `012` stay what they look like.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        with_snippet: false,
    };
    let read: Specification = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| format!("not a compatibility specification: {}", error.without_snippet()))?;
    if read.version != VERSION {
        return Err(format!("its version is `{}`, this version reads {VERSION}", read.version.escape_default()));
    }
    let is_about = |set: &&Set| set.rules.iter().flat_map(Rule::terms).any(|term| term.feature.starts_with(KERNEL));
    let sets: Vec<&Set> = read.compatibilities.iter().filter(is_about).collect();
    if sets.len() > 1 {
        return Err(format!("{} sets of rules are about the kernel, any of which would do; give one", sets.len()));
    }
    let mut words = Words::default();
    for rule in sets.iter().flat_map(|set| &set.rules) {
        let about = |terms: &&Terms| terms.match_features.iter().any(|term| term.feature.starts_with(KERNEL));
        if rule.match_any.len() > 1 && rule.match_any.iter().any(|terms| about(&terms)) {
            return Err(wrong(rule, "matchAny", "alternatives of kernels are not read; give one with matchFeatures"));
        }
        for term in rule.terms().filter(|term| term.feature.starts_with(KERNEL)) {
            words.take(term).map_err(|(what, problem)| wrong(rule, &what, &problem))?;
        }
    }
    let labels = [
        (needs::VERSION, words.version.join(",")),
        (needs::FEATURES, words.features.join(" ")),
        (needs::MODULES, words.modules.join(" ")),
    ];
    KernelNeeds::from_labels(labels.iter().map(|(name, text)| (*name, &**text)))
}

fn wrong(rule: &Rule, what: &str, problem: &str) -> String {
    format!("rule `{}`, {}: {problem}", rule.name.escape_default(), what.escape_default())
}

impl Rule {
    fn terms(&self) -> impl Iterator<Item = &Term> {
        self.match_features.iter().chain(self.match_any.iter().flat_map(|any| &any.match_features))
    }
}

impl Words {
    /// Adds a term; what is not understood is named, with the reason.
    fn take(&mut self, term: &Term) -> Result<(), (String, String)> {
        let feature = term.feature.as_str();
        let cannot = |what: String, op: &str| {
            let problem =
                format!("`{}` is not something that a kernel can be asked before it runs", op.escape_default());
            Err((what, problem))
        };
        if let Some(name) = &term.match_name {
            let ([one], "In") = (&*name.value, &*name.op) else {
                return cannot(format!("{feature}, matchName"), &name.op);
            };
            match feature {
                "kernel.loadedmodule" | "kernel.enabledmodule" => self.modules.push(one.clone()),
                "kernel.config" => self.features.push(format!("CONFIG_{one}")),
                _ => return cannot(feature.to_owned(), "matchName"),
            }
        }
        for (key, expression) in &term.match_expressions {
            let (op, values) = (expression.op.as_str(), &*expression.value);
            // They become words of a list.
            if values.iter().chain([key]).any(|word| word.contains(|c: char| c == ',' || c.is_whitespace())) {
                return cannot(format!("{feature}, {key}"), op);
            }
            let done = match feature {
                // For a kernel that does not run yet, a module that can be loaded is as good.
                "kernel.loadedmodule" | "kernel.enabledmodule" if op == "Exists" => {
                    self.modules.push(key.clone());
                    true
                }
                "kernel.config" => self.option(key, op, values),
                "kernel.version" => {
                    let major = term.match_expressions.get("major").filter(|major| major.op == "In");
                    let major =
                        major.and_then(|major| if let [one] = &*major.value { Some(one.as_str()) } else { None });
                    self.bound(key, op, values, major)
                }
                _ => false,
            };
            if !done {
                return cannot(format!("{feature}, {key}"), op);
            }
        }
        Ok(())
    }

    fn option(&mut self, key: &str, op: &str, values: &[String]) -> bool {
        let text = match (op, values) {
            ("Exists", _) => format!("CONFIG_{key}"),
            ("In", [one]) => format!("CONFIG_{key}={one}"),
            // Built in or as a module.
            ("In", [one, other]) if matches!((&**one, &**other), ("y", "m") | ("m", "y")) => format!("CONFIG_{key}"),
            _ => return false,
        };
        self.features.push(text);
        true
    }

    /// A bound of the version; `minor` says something beside a `major` alone.
    fn bound(&mut self, key: &str, op: &str, values: &[String], major: Option<&str>) -> bool {
        let name = |value: &String| match (key, major) {
            ("major", _) => Some(value.clone()),
            ("minor", Some(major)) => Some(format!("{major}.{value}")),
            // Three numbers, as they are compared there.
            ("full", _) if op != "In" && op != "NotIn" && value.split('.').count() <= 3 => {
                Some(format!("{value}{}", ".0".repeat(3 - value.split('.').count())))
            }
            _ => None,
        };
        let signs: &[&str] = match (op, values.len()) {
            ("In", 1) => &["="],
            ("NotIn", 1..) => &["!="],
            ("Gt", 1) => &[">"],
            ("Ge", 1) => &[">="],
            ("Lt", 1) => &["<"],
            ("Le", 1) => &["<="],
            ("GtLt", 2) => &[">", "<"],
            ("GeLe", 2) => &[">=", "<="],
            _ => return false,
        };
        for (value, sign) in values.iter().zip(signs.iter().cycle()) {
            let Some(version) = name(value) else { return false };
            self.version.push(format!("{sign}{version}"));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(terms: &str) -> String {
        format!(
            "version: v1alpha1\ncompatibilities:\n- description: needs\n  rules:\n  - name: it\n    matchFeatures:\n{terms}"
        )
    }

    fn read(terms: &str) -> Result<KernelNeeds, String> {
        needs(document(terms).as_bytes())
    }

    #[test]
    fn version_options_and_modules_are_read_and_other_features_are_not() {
        let found = read(
            "    - feature: kernel.version
      matchExpressions:
        major: {op: In, value: ['6']}
        minor: {op: Ge, value: ['1']}
        full: {op: GtLt, value: ['6.1', '7'], type: version}
    - feature: kernel.config
      matchExpressions:
        OVERLAY_FS: {op: In, value: [y, m]}
        NUMA: {op: Exists}
        HZ: {op: In, value: ['250']}
    - feature: kernel.loadedmodule
      matchExpressions:
        vfio-pci: {op: Exists}
    - feature: kernel.enabledmodule
      matchName: {op: In, value: [overlay]}
    - feature: cpu.model
      matchExpressions:
        vendor_id: {op: InRegexp, value: ['Intel|AMD']}
",
        )
        .expect("needs");
        let version: Vec<String> = found.version.iter().map(ToString::to_string).collect();
        assert_eq!(version, [">6.1.0", "<7.0.0", "=6", ">=6.1"]);
        assert_eq!(found.features, ["CONFIG_HZ=250", "CONFIG_NUMA", "CONFIG_OVERLAY_FS"]);
        assert_eq!(found.modules, ["vfio_pci", "overlay"]);
        assert!(needs(b"version: v1alpha1\ncompatibilities: []").expect("nothing").is_empty());
    }

    #[test]
    fn what_cannot_be_known_of_a_kernel_is_named() {
        for (terms, part) in [
            (
                "    - {feature: kernel.selinux, matchExpressions: {enabled: {op: IsTrue}}}",
                "kernel.selinux, enabled: `IsTrue`",
            ),
            (
                "    - {feature: kernel.version, matchExpressions: {minor: {op: Ge, value: ['1']}}}",
                "kernel.version, minor: `Ge`",
            ),
            (
                "    - {feature: kernel.version, matchExpressions: {full: {op: In, value: ['6.1']}}}",
                "kernel.version, full: `In`",
            ),
            (
                "    - {feature: kernel.version, matchExpressions: {major: {op: Gt, value: []}}}",
                "kernel.version, major: `Gt`",
            ),
            (
                "    - {feature: kernel.version, matchExpressions: {major: {op: Gt, value: [six]}}}",
                "`>six` is not a bound",
            ),
            (
                "    - {feature: kernel.loadedmodule, matchExpressions: {a: {op: DoesNotExist}}}",
                "kernel.loadedmodule, a",
            ),
            (
                "    - {feature: kernel.loadedmodule, matchExpressions: {a/b: {op: Exists}}}",
                "`a/b` is not the name of a module",
            ),
            (
                "    - {feature: kernel.config, matchName: {op: InRegexp, value: [X]}}",
                "kernel.config, matchName: `InRegexp`",
            ),
        ] {
            let error = read(terms).expect_err(terms);
            assert!(error.contains(part), "{error}");
        }
        let any = "version: v1alpha1\ncompatibilities:\n- rules:\n  - name: any\n    matchAny:\n    - matchFeatures: [{feature: cpu.cpuid}]\n    - matchFeatures: [{feature: kernel.config, matchExpressions: {A: {op: Exists}}}]";
        let set = "- rules: [{matchFeatures: [{feature: kernel.config, matchExpressions: {A: {op: Exists}}}]}]\n";
        for (text, part) in [
            (any.to_owned(), "rule `any`, matchAny: alternatives"),
            (format!("version: v1alpha1\ncompatibilities:\n{set}{set}"), "2 sets of rules are about the kernel"),
            ("version: v2\ncompatibilities: []".to_owned(), "its version is `v2`"),
            ("compatibilities: 3".to_owned(), "not a compatibility specification"),
            ("\u{0}".to_owned(), "not a compatibility specification"),
        ] {
            let error = needs(text.as_bytes()).expect_err(&text);
            assert!(error.contains(part), "{error}");
        }
    }
}
