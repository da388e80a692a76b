//! What the tests of the house rules read: the workspace as cargo sees it, and its files.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The target that everything is built for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The checkout.
pub fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the checkout").to_owned()
}

/// What a cargo command prints.
pub fn cargo(args: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO")).args(args).current_dir(top()).output().context("running cargo")?;
    ensure!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// `packages` of `cargo metadata`: ours and all that they need, with every feature.
pub fn packages() -> Result<Vec<Package>> {
    let text =
        cargo(&["metadata", "--locked", "--all-features", "--format-version", "1", "--filter-platform", TARGET])?;
    let metadata: Value = serde_json::from_str(&text)?;
    metadata["packages"].as_array().context("cargo metadata without packages")?.iter().map(Package::read).collect()
}

/// One package.
#[derive(Debug, Clone)]
pub struct Package {
    /// Name.
    pub name: String,
    /// SPDX expression.
    pub licence: Option<String>,
    /// Where it comes from; nothing for ours.
    pub source: Option<String>,
    /// What its manifest asks for.
    pub dependencies: Vec<Dependency>,
    /// Root files of its libraries, programs and tests, with their kind.
    pub targets: Vec<(String, PathBuf)>,
}

/// One line below `[dependencies]` or its like.
#[derive(Debug, Clone)]
pub struct Dependency {
    /// Name of the package.
    pub name: String,
    /// Of `[dev-dependencies]`.
    pub for_tests: bool,
    /// Features asked for.
    pub features: Vec<String>,
    /// With the default features.
    pub default_features: bool,
}

impl Package {
    fn read(value: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let name = text(&value["name"]).context("a package without a name")?;
        let dependencies = list(&value["dependencies"])
            .iter()
            .map(|dependency| {
                Ok(Dependency {
                    name: text(&dependency["name"]).context("a dependency without a name")?,
                    for_tests: dependency["kind"] == "dev",
                    features: list(&dependency["features"]).iter().filter_map(text).collect(),
                    default_features: dependency["uses_default_features"] == true,
                })
            })
            .collect::<Result<_>>()?;
        let targets = list(&value["targets"])
            .iter()
            .map(|target| {
                let kind = text(&target["kind"][0]).context("a target without a kind")?;
                Ok((kind, text(&target["src_path"]).context("a target without a path")?.into()))
            })
            .collect::<Result<_>>()?;
        Ok(Self { name, licence: text(&value["license"]), source: text(&value["source"]), dependencies, targets })
    }

    /// One of the workspace's.
    pub fn is_ours(&self) -> bool {
        self.source.is_none()
    }
}
