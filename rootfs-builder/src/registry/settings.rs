//! Where a registry really is: `registries.conf`, version 2, as skopeo, buildah and podman read it (containers-registries.conf(5)).
//!
//! Read are the file and the drop-ins beside it, and of them `[[registry]]` with `prefix`, `location`, `insecure`, `blocked`, and its `[[registry.mirror]]`. The file is the
//! user's or the host's own. Plain HTTP is for loopback, and for what is called insecure there or on the command line.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use oci_client::Reference;
use serde::Deserialize;

use super::RegistryError;

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What `registries.conf` says.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Settings {
    #[serde(default)]
    registry: Vec<Registry>,
    /// Asked for by the caller: no TLS for any registry.
    #[serde(skip)]
    plain_http: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Registry {
    prefix: Option<String>,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Mirror {
    location: String,
    insecure: bool,
    /// `all`, `digest-only` or `tag-only`.
    pull_from_mirror: Option<String>,
}

/// One place that may have an image, and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What to ask it for.
    pub reference: Reference,
    /// Plain HTTP, and TLS that nobody vouches for.
    pub insecure: bool,
}

impl Settings {
    /// The file that `$CONTAINERS_REGISTRIES_CONF` names, else the user's, else the host's, else none.
    pub fn load(plain_http: bool) -> Result<Self, RegistryError> {
        let named = std::env::var_os("CONTAINERS_REGISTRIES_CONF").map(PathBuf::from);
        let own = std::env::var_os("HOME").map(|home| Path::new(&home).join(".config/containers/registries.conf"));
        let everybody = Some(PathBuf::from("/etc/containers/registries.conf"));
        let is_named = named.is_some();
        let Some(path) = [named, own, everybody].into_iter().flatten().find(|path| is_named || path.exists()) else {
            return Ok(Self { plain_http, ..Self::default() });
        };
        let mut settings = Self { plain_http, ..Self::read(&super::read_bounded(&path, MAX_BYTES)?, &path)? };
        // Later files come before earlier ones where both speak of the same prefix, as the longest one that is found last.
        for path in drop_ins(&path)? {
            settings.registry.extend(Self::read(&super::read_bounded(&path, MAX_BYTES)?, &path)?.registry);
        }
        Ok(settings)
    }

    fn read(text: &str, path: &Path) -> Result<Self, RegistryError> {
        toml::from_str(text)
            .map_err(|error| RegistryError::Settings { path: path.to_owned(), problem: error.message().to_owned() })
    }

    /// Where to look for an image, in order: mirrors, then the registry itself.
    pub fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistryError> {
        let name = format!("{}/{}", reference.registry(), reference.repository());
        let best = self
            .registry
            .iter()
            .filter_map(|registry| {
                let prefix = registry.prefix.as_deref().or(registry.location.as_deref())?;
                covers(prefix, &name).then_some((prefix, registry))
            })
            .max_by_key(|(prefix, _)| prefix.len());
        let Some((prefix, registry)) = best else {
            return Ok(vec![self.endpoint(reference.clone(), false)]);
        };
        if registry.blocked {
            return Err(RegistryError::Blocked { name, prefix: prefix.to_owned() });
        }
        let by_digest = reference.digest().is_some();
        let serves = |mirror: &&Mirror| match mirror.pull_from_mirror.as_deref() {
            Some("digest-only") => by_digest,
            Some("tag-only") => !by_digest,
            _ => true,
        };
        let mirrors = registry.mirror.iter().filter(serves).map(|mirror| (mirror.location.as_str(), mirror.insecure));
        // A wildcard names hosts, so it cannot be replaced by another place.
        let own = registry.location.as_deref().filter(|_| !prefix.starts_with("*.")).unwrap_or(prefix);
        let own = if prefix.starts_with("*.") { reference.registry() } else { own };
        mirrors
            .chain([(own, registry.insecure)])
            .map(|(location, insecure)| {
                let replaced = if prefix.starts_with("*.") { reference.registry() } else { prefix };
                let moved = moved(reference, &name, replaced, location).ok_or_else(|| RegistryError::Location {
                    prefix: prefix.to_owned(),
                    location: location.to_owned(),
                })?;
                Ok(self.endpoint(moved, insecure))
            })
            .collect()
    }

    fn endpoint(&self, reference: Reference, insecure: bool) -> Endpoint {
        let insecure = insecure || self.plain_http || is_loopback(reference.resolve_registry());
        Endpoint { reference, insecure }
    }
}

/// `*.conf` in the folder beside the file, in order of their names.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let failed =
        |error: io::Error| RegistryError::Settings { path: folder.clone(), problem: format!("reading: {error}") };
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "conf") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// `*.example.com`, or a prefix that ends where a part of the name does.
fn covers(prefix: &str, name: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split(['/', ':']).next().unwrap_or_default();
        return domain.len() > 1 && host.ends_with(domain);
    }
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The reference with the beginning of its name replaced.
fn moved(reference: &Reference, name: &str, prefix: &str, location: &str) -> Option<Reference> {
    let rest = name.strip_prefix(prefix)?;
    let whole = format!("{}{rest}", location.trim_end_matches('/'));
    let (registry, repository) = whole.split_once('/')?;
    let (registry, repository) = (registry.to_owned(), repository.to_owned());
    if registry.is_empty() || repository.is_empty() {
        return None;
    }
    Some(match (reference.tag(), reference.digest()) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag.to_owned(), digest.to_owned())
        }
        (_, Some(digest)) => Reference::with_digest(registry, repository, digest.to_owned()),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
    })
}

/// Whether HOST[:PORT] never leaves this machine.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
unqualified-search-registries = ["docker.io"]
[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "mirror.example:5000/hub"
insecure = true
[[registry.mirror]]
location = "digests.example"
pull-from-mirror = "digest-only"
[[registry]]
prefix = "docker.io/library/secret"
blocked = true
[[registry]]
prefix = "*.dev.example"
insecure = true
[[registry]]
prefix = "old.example/team"
location = "new.example/group/team"
"#;

    fn asked(reference: &str) -> Vec<String> {
        let settings = Settings::read(FILE, Path::new("registries.conf")).expect("settings");
        let endpoints = settings.endpoints(&reference.parse().expect("a reference")).expect("endpoints");
        let show = |one: &Endpoint| format!("{}{}", one.reference.whole(), if one.insecure { " insecure" } else { "" });
        endpoints.iter().map(show).collect()
    }

    #[test]
    fn mirrors_come_first_and_the_longest_prefix_decides() {
        assert_eq!(
            asked("docker.io/library/debian:12"),
            ["mirror.example:5000/hub/library/debian:12 insecure", "docker.io/library/debian:12"]
        );
        assert_eq!(asked("old.example/team/a:1"), ["new.example/group/team/a:1"]);
        assert_eq!(asked("old.example/teamwork/a:1"), ["old.example/teamwork/a:1"]);
        assert_eq!(asked("ci.dev.example/a/b:1"), ["ci.dev.example/a/b:1 insecure"]);
        assert_eq!(asked("other.example/a:1"), ["other.example/a:1"]);
    }

    #[test]
    fn a_mirror_for_digests_is_asked_for_digests_only() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let places = asked(&format!("docker.io/library/debian@{digest}"));
        assert_eq!(places.len(), 3, "{places:?}");
        assert_eq!(places[1], format!("digests.example/library/debian@{digest}"));
    }

    #[test]
    fn what_is_blocked_or_misspelt_is_named() {
        let settings = Settings::read(FILE, Path::new("registries.conf")).expect("settings");
        let error =
            settings.endpoints(&"docker.io/library/secret:1".parse().expect("a reference")).expect_err("blocked");
        assert!(error.to_string().contains("docker.io/library/secret"), "{error}");
        let error = Settings::read("[[registry]]\ninsecure = 3", Path::new("registries.conf")).expect_err("misspelt");
        assert!(error.to_string().contains("registries.conf"), "{error}");
    }

    #[test]
    fn plain_http_is_for_this_machine() {
        for (registry, expected) in [
            ("localhost:5000", true),
            ("127.0.0.2", true),
            ("[::1]:5000", true),
            ("localhost.example", false),
            ("10.0.0.1:5000", false),
            ("[2001:db8::1]:5000", false),
        ] {
            assert_eq!(is_loopback(registry), expected, "{registry}");
        }
    }
}
