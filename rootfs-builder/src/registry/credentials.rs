//! Who the caller is to a registry: the files that `docker login`, `podman login` and `skopeo login` write
//! (containers-auth.json(5)), and the helpers that they name (docker-credential-helpers, protocol `get`).
//!
//! The files are the caller's own. What a helper prints is bounded; a secret is never part of a message.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use super::RegistryError;

/// Longest file, and longest answer of a helper.
const MAX_BYTES: u64 = 1 << 20;
/// Docker's own registry, as its files have called it from the beginning.
const DOCKER_HUB: (&str, &str) = ("docker.io", "https://index.docker.io/v1/");

/// What to show to a registry, and where it was found.
#[derive(Debug, Clone)]
pub struct Login {
    /// For the registry.
    pub auth: RegistryAuth,
    /// For messages: a user and a file, or that there is none.
    pub found: String,
}

/// One file of logins.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

/// The answer of a helper.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The files, most telling first; only those that are there.
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
    let runtime = match variable("REGISTRY_AUTH_FILE") {
        // What is named is the only place.
        Some(named) => return vec![named],
        None => variable("XDG_RUNTIME_DIR"),
    };
    [
        runtime.map(|folder| folder.join("containers/auth.json")),
        config.map(|folder| folder.join("containers/auth.json")),
        docker.map(|folder| folder.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .filter(|path| path.exists())
    .collect()
}

/// The caller's login for an image of `registry`, or that there is none.
pub fn find(registry: &str, repository: &str) -> Result<Login, RegistryError> {
    let files = files();
    for path in &files {
        if let Some(login) = look_up(path, registry, repository)? {
            return Ok(login);
        }
    }
    let looked = files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let found = if looked.is_empty() { "no login".to_owned() } else { format!("no login for it in {looked}") };
    Ok(Login { auth: RegistryAuth::Anonymous, found })
}

fn look_up(path: &Path, registry: &str, repository: &str) -> Result<Option<Login>, RegistryError> {
    let text = super::read_bounded(path, MAX_BYTES)?;
    let failed = |problem: String| RegistryError::Login { path: path.to_owned(), problem };
    let file: File = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    let hub = (registry == DOCKER_HUB.0).then_some(DOCKER_HUB.1);
    if let Some(helper) = [Some(registry), hub].into_iter().flatten().find_map(|key| file.cred_helpers.get(key)) {
        return ask(helper, hub.unwrap_or(registry)).map_err(failed);
    }
    for key in keys(registry, repository).iter().map(String::as_str).chain(hub) {
        let Some(entry) = file.auths.get(key).or_else(|| file.auths.get(&format!("https://{key}"))) else { continue };
        if let Some(auth) = entry.auth().map_err(|problem| failed(format!("entry `{key}`: {problem}")))? {
            let user = if let RegistryAuth::Basic(user, _) = &auth { user.as_str() } else { "a token" };
            let found = format!("{user} of {}", path.display());
            return Ok(Some(Login { auth, found }));
        }
    }
    match &file.creds_store {
        Some(helper) => ask(helper, hub.unwrap_or(registry)).map_err(failed),
        None => Ok(None),
    }
}

/// `host/a/b`, `host/a`, `host`.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut key = format!("{registry}/{repository}");
    let mut keys = Vec::new();
    while let Some((shorter, _)) = key.rsplit_once('/') {
        let shorter = shorter.to_owned();
        keys.push(std::mem::replace(&mut key, shorter));
    }
    keys.push(key);
    keys
}

impl Entry {
    /// `None` where the entry only says that a helper has it.
    fn auth(&self) -> Result<Option<RegistryAuth>, &'static str> {
        if !self.identitytoken.is_empty() {
            return Err(
                "it holds an identity token, which is not supported; log in with a password or an access token",
            );
        }
        if !self.auth.is_empty() {
            let text = self.auth.trim_end_matches('=');
            let bytes = STANDARD_NO_PAD.decode(text).map_err(|_| "its `auth` is not base64")?;
            let text = String::from_utf8(bytes).map_err(|_| "its `auth` is not text")?;
            let (user, password) = text.split_once(':').ok_or("its `auth` is not USER:PASSWORD in base64")?;
            return Ok(Some(RegistryAuth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned())));
        }
        let has = !self.username.is_empty();
        Ok(has.then(|| RegistryAuth::Basic(self.username.clone(), self.password.clone())))
    }
}

/// Asks `docker-credential-<helper>`; `None` where it knows nothing of the registry.
fn ask(helper: &str, registry: &str) -> Result<Option<Login>, String> {
    let program = format!("docker-credential-{helper}");
    if helper.is_empty() || helper.contains('/') {
        return Err(format!("`{helper}` is not the name of a credential helper"));
    }
    let failed = |error: io::Error| format!("{program}: {error}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // One that needs no input may be gone already; its answer tells.
        let _ = input.write_all(registry.as_bytes());
    }
    let mut answer = Vec::new();
    let read = child.stdout.take().map_or(Ok(0), |output| output.take(MAX_BYTES).read_to_end(&mut answer));
    let status = child.wait().map_err(failed)?;
    read.map_err(failed)?;
    if !status.success() {
        // The protocol's only way to say that there is nothing (docker-credential-helpers, credentials/error.go).
        let text = String::from_utf8_lossy(&answer);
        return if text.contains("credentials not found") {
            Ok(None)
        } else {
            Err(format!("{program}: it ended with {status}"))
        };
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| format!("{program}: its answer is not what it should be"))?;
    if answer.username == "<token>" {
        return Err(format!("{program}: it holds an identity token, which is not supported"));
    }
    let found = format!("{} of {program}", answer.username);
    Ok(Some(Login { auth: RegistryAuth::Basic(answer.username, answer.secret), found }))
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn packed(user: &str, password: &str) -> String {
        STANDARD.encode(format!("{user}:{password}"))
    }

    fn login(text: &str, registry: &str, repository: &str) -> Result<Option<(String, String)>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("auth.json");
        std::fs::write(&path, text).expect("writing");
        let login = look_up(&path, registry, repository).map_err(|error| error.to_string())?;
        Ok(login.and_then(|login| match login.auth {
            RegistryAuth::Basic(user, password) => Some((user, password)),
            _ => None,
        }))
    }

    #[test]
    fn the_longest_name_decides() {
        let text = format!(
            r#"{{"auths": {{"h:5000/a/b": {{"auth": "{}"}}, "h:5000": {{"auth": "{}"}}, "https://index.docker.io/v1/": {{"auth": "{}"}}}}}}"#,
            packed("deep", "p:w"),
            packed("any", "x"),
            packed("hub", "y")
        );
        let of = |registry, repository| login(&text, registry, repository).expect("readable").map(|(user, _)| user);
        assert_eq!(login(&text, "h:5000", "a/b"), Ok(Some(("deep".to_owned(), "p:w".to_owned()))));
        assert_eq!(of("h:5000", "a/c"), Some("any".to_owned()));
        assert_eq!(of("docker.io", "library/debian"), Some("hub".to_owned()));
        assert_eq!(of("h", "a"), None);
    }

    #[test]
    fn a_broken_file_is_named_without_its_secrets() {
        for text in ["{", r#"{"auths": {"h": {"auth": "sekret!"}}}"#, r#"{"auths": {"h": {"auth": "c2VrcmV0"}}}"#] {
            let error = login(text, "h", "a").expect_err(text);
            assert!(error.contains("auth.json") && !error.contains("sekret"), "{error}");
        }
    }

    #[test]
    fn a_helper_that_is_missing_is_named() {
        let error = login(r#"{"credHelpers": {"h": "no-such-helper"}}"#, "h", "a").expect_err("no helper");
        assert!(error.contains("docker-credential-no-such-helper"), "{error}");
        let error = login(r#"{"credHelpers": {"h": "../x"}}"#, "h", "a").expect_err("a path");
        assert!(error.contains("../x"), "{error}");
    }
}
