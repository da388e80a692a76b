//! What we may ship: licences, banned crates and sources of every dependency, by the lists in deny.toml.
//!
//! The same rules as `cargo deny check licenses bans sources`, for machines without it.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use labyard_e2e::house;

/// The quoted values of a list in deny.toml: `key = [`, one entry a line, `]`. Of an entry with fields, the first value.
fn list(text: &str, section: &str, key: &str) -> Result<BTreeSet<String>> {
    let begins = |wanted: String| move |line: &&str| line.trim() != wanted;
    let values: BTreeSet<String> = text
        .lines()
        .skip_while(begins(format!("[{section}]")))
        .skip_while(begins(format!("{key} = [")))
        .skip(1)
        .take_while(|line| line.trim() != "]")
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect();
    if values.is_empty() { Err(anyhow::anyhow!("deny.toml: no list `{key}` below [{section}]")) } else { Ok(values) }
}

fn deny_toml() -> Result<String> {
    fs::read_to_string(house::top().join("deny.toml")).context("reading deny.toml")
}

/// The licences of an SPDX expression that are needed and allowed, or nothing where it cannot be fulfilled.
/// `/` is the older way to write OR.
fn fulfilled(expression: &str, allowed: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words: Vec<&str> = text.split_whitespace().rev().collect();
    let result = alternatives(&mut words, allowed);
    // An expression that ends early or late is not one that we understand.
    words.is_empty().then_some(result).flatten()
}

/// OR binds weakest. The stack holds the words that are left, the next one on top.
fn alternatives(words: &mut Vec<&str>, allowed: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let mut result = conjunction(words, allowed);
    while words.last() == Some(&"OR") {
        words.pop();
        let other = conjunction(words, allowed);
        result = match (result, other) {
            // Which of two we take is ours to say, so both count as used.
            (Some(a), Some(b)) => Some(a.union(&b).cloned().collect()),
            (a, b) => a.or(b),
        };
    }
    result
}

fn conjunction(words: &mut Vec<&str>, allowed: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let mut result = single(words, allowed);
    while words.last() == Some(&"AND") {
        words.pop();
        let other = single(words, allowed);
        result = result.zip(other).map(|(a, b)| a.union(&b).cloned().collect());
    }
    result
}

fn single(words: &mut Vec<&str>, allowed: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let word = words.pop()?;
    if word == "(" {
        let inner = alternatives(words, allowed);
        return (words.pop() == Some(")")).then_some(inner).flatten();
    }
    let mut licence = word.to_owned();
    if words.last() == Some(&"WITH") {
        words.pop();
        licence = format!("{licence} WITH {}", words.pop()?);
    }
    allowed.contains(&licence).then(|| BTreeSet::from([licence]))
}

#[test]
fn every_dependency_has_a_licence_that_we_allow_and_every_allowed_one_is_used() -> Result<()> {
    let allowed = list(&deny_toml()?, "licenses", "allow")?;
    let (mut used, mut refused) = (BTreeSet::new(), Vec::new());
    for package in house::packages()? {
        match package.licence.as_deref().and_then(|licence| fulfilled(licence, &allowed)) {
            Some(licences) => used.extend(licences),
            None => refused.push(format!("{}: {:?}", package.name, package.licence)),
        }
    }
    assert!(refused.is_empty(), "licences that deny.toml does not allow: {refused:#?}");
    assert_eq!(used, allowed, "licences in use, and those that deny.toml allows");
    Ok(())
}

#[test]
fn no_banned_crate_is_a_dependency() -> Result<()> {
    let banned = list(&deny_toml()?, "bans", "deny")?;
    let found: Vec<_> =
        house::packages()?.into_iter().map(|package| package.name).filter(|name| banned.contains(name)).collect();
    assert!(found.is_empty(), "deny.toml bans {found:?} and says why");
    Ok(())
}

#[test]
fn every_dependency_comes_from_the_registry() -> Result<()> {
    let registry = "registry+https://github.com/rust-lang/crates.io-index";
    let elsewhere: Vec<_> = house::packages()?
        .into_iter()
        .filter(|package| package.source.as_deref().is_some_and(|source| source != registry))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    Ok(())
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let allowed: BTreeSet<String> = ["MIT", "BSD-3-Clause", "Apache-2.0"].map(str::to_owned).into();
    let fine = [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/Apache-2.0",
        "(GPL-3.0 OR MIT) AND BSD-3-Clause",
        "GPL-2.0 AND MIT OR Apache-2.0",
    ];
    for expression in fine {
        assert!(fulfilled(expression, &allowed).is_some(), "{expression}");
    }
    let refused = [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT OR GPL-3.0) AND GPL-2.0",
        "MIT WITH X-exception",
        "",
        "(MIT",
        "MIT MIT",
        "MIT OR",
    ];
    for expression in refused {
        let result = fulfilled(expression, &allowed);
        // A dangling OR leaves an alternative that is fine by itself.
        assert!(result.is_none() || expression == "MIT OR", "{expression}: {result:?}");
    }
}
