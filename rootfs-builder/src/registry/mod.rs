//! Images from registries and to them (OCI distribution-spec 1.1, "Pull" and "Push"), by the blobs of the store.
//!
//! - [`settings`]: which servers may have an image, from `registries.conf`.
//! - [`credentials`]: who the caller is to them, from the login files of docker, podman and skopeo.
//! - [`access`]: what they have said of the caller, for when they cannot be asked.
//! - [`blobs`]: where bytes lie, under their digest; [`origins`]: who has given them, and so who may have them.
//! - [`fetch`]: manifests and layers, several at once, taken up again after a broken connection.
//! - [`push`]: the other way.
//!
//! A server is trusted with nothing: sizes are what the manifest said, bytes are what the digest says, and a layer whose bytes
//! are elsewhere (a foreign layer) is refused. The protocol itself is `oci-client`'s.

pub mod access;
pub mod blobs;
mod connection;
pub mod credentials;
pub mod fetch;
pub mod origins;
pub mod push;
pub mod settings;

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_client::Reference;
use oci_client::errors::{OciDistributionError, OciErrorCode};

use crate::digest::Digest;
use crate::report::one_line;
use crate::watch::Interrupted;

/// Why an image did not come.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RegistryError {
    #[error("image `{text}`: {problem}; write REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:…")]
    Reference { text: String, problem: String },
    #[error("{path}: {problem}")]
    Settings { path: PathBuf, problem: String },
    #[error("{path}: {problem}")]
    Login { path: PathBuf, problem: String },
    #[error("image {name}: `{prefix}` is blocked in registries.conf")]
    Blocked { name: String, prefix: String },
    #[error("registries.conf: `{prefix}` cannot move to `{location}`; a location is HOST[:PORT][/NAMESPACE]")]
    Location { prefix: String, location: String },
    #[error("image {image}: no such image, or none that may be seen without more rights ({found})")]
    Missing { image: String, found: String },
    #[error("image {image}: the registry refuses ({found}): {problem}; log in with `skopeo login {registry}`")]
    Denied { image: String, registry: String, found: String, problem: String },
    #[error("image {image}: {problem}")]
    Failed { image: String, problem: String },
    #[error("image {image}: the registry cannot be asked: {problem}")]
    Unreached { image: String, problem: String },
    #[error("image {image}, {blob}: {problem}")]
    Blob { image: String, blob: String, problem: String },
    #[error("image {image}, {blob}: {problem}; what came is kept, the same command goes on from it")]
    Broken { image: String, blob: String, problem: String },
    #[error("image {image}, {document}: {problem}")]
    Document { image: String, document: String, problem: String },
    #[error("{path}: writing")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl RegistryError {
    /// What was asked for is at fault, not the machine or the way to the registry.
    pub fn is_input(&self) -> bool {
        !matches!(
            self,
            Self::Failed { .. }
                | Self::Unreached { .. }
                | Self::Broken { .. }
                | Self::Blob { .. }
                | Self::Write { .. }
                | Self::Interrupted(_)
        )
    }
}

/// Reads what `oci://` and `docker://` are followed by. A name without a registry is Docker's, as everywhere.
pub fn reference(text: &str) -> Result<Reference, RegistryError> {
    let wrong = |problem: String| RegistryError::Reference { text: text.to_owned(), problem };
    let reference: Reference = text.parse().map_err(|error: oci_client::ParseError| wrong(error.to_string()))?;
    // distribution-spec, "Pulling manifests": <name>. The crate is more generous, servers are not.
    if let Some(c) =
        reference.repository().chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(*c)))
    {
        return Err(wrong(format!("its repository `{}` has a `{c}`", reference.repository())));
    }
    if let Some(digest) = reference.digest() {
        digest.parse::<Digest>().map_err(wrong)?;
    }
    Ok(reference)
}

/// What went wrong between us and a server, sorted by what can be done about it.
#[derive(Debug)]
enum Trouble {
    /// Asking again may help.
    Passing(String),
    /// It does not know us, or not well enough.
    Denied(String),
    /// It has no such thing.
    Missing(String),
    /// Asking again gives the same.
    Lasting(String),
}

impl From<OciDistributionError> for Trouble {
    fn from(error: OciDistributionError) -> Self {
        match error {
            OciDistributionError::AuthenticationFailure(text) => Self::Denied(short(&text, "authentication failed")),
            OciDistributionError::UnauthorizedError { .. } => Self::Denied("authentication required".to_owned()),
            OciDistributionError::RegistryError { envelope, .. } => {
                let Some(first) = envelope.errors.into_iter().next() else {
                    return Self::Lasting("it answers with an error that it does not name".to_owned());
                };
                let text = short(&first.message, "it gives no reason");
                match first.code {
                    OciErrorCode::Unauthorized | OciErrorCode::Denied => Self::Denied(text),
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
                    | OciErrorCode::BlobUnknown => Self::Missing(text),
                    OciErrorCode::Toomanyrequests => Self::Passing(text),
                    _ => Self::Lasting(text),
                }
            }
            OciDistributionError::ServerError { code: 404, .. } => Self::Missing("404".to_owned()),
            OciDistributionError::ServerError { code: 403, message, .. } => Self::Denied(short(&message, "403")),
            OciDistributionError::ServerError { code, message, .. } => {
                let text = format!("it answers {code}{}", short(&format!(": {message}"), ""));
                if code >= 500 || code == 408 || code == 429 { Self::Passing(text) } else { Self::Lasting(text) }
            }
            OciDistributionError::IoError(error) => Self::Passing(one_line(&error)),
            OciDistributionError::RequestError(error) if error.is_connect() && is_tls(&error) => {
                Self::Passing(format!(
                    "{}; if it speaks plain HTTP, or has a certificate that nobody vouches for, say `insecure = true` of it in \
                 registries.conf (`rootfs-builder build --plain-http` for once)",
                    one_line(&error)
                ))
            }
            OciDistributionError::RequestError(error) => Self::Passing(one_line(&error)),
            other => Self::Lasting(one_line(&other)),
        }
    }
}

impl Trouble {
    fn text(&self) -> &str {
        match self {
            Self::Passing(text) | Self::Denied(text) | Self::Missing(text) | Self::Lasting(text) => text,
        }
    }
}

/// Whether TLS found no agreement, or a certificate that it does not believe.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    // An io::Error is the one that it wraps: its source is already that one's.
    let next = match error.downcast_ref::<io::Error>() {
        Some(wrapper) => wrapper.get_ref().map(|inner| inner as &(dyn Error + 'static)),
        None => error.source(),
    };
    error.is::<rustls::Error>() || next.is_some_and(is_tls)
}

/// The first reason that a registry's answer gives (distribution-spec, "Error Codes").
fn reason(text: &str) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_str(text).ok()?;
    let first = answer.get("errors")?.get(0)?;
    let message = first.get("message").or_else(|| first.get("code"))?.as_str()?;
    Some(short(message, "it gives no reason"))
}

/// A stranger's text for a message: its first line, not too long, without what a terminal would obey.
fn short(text: &str, otherwise: &str) -> String {
    let line: String = text.trim().chars().take_while(|c| *c != '\n').filter(|c| !c.is_control()).take(200).collect();
    if line.trim_matches([':', ' ']).is_empty() { otherwise.to_owned() } else { line }
}

/// A text file of bounded length.
fn read_bounded(path: &Path, limit: u64) -> Result<String, RegistryError> {
    let failed = |problem: String| RegistryError::Settings { path: path.to_owned(), problem };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| failed(format!("reading: {error}")))?;
    file.take(limit + 1).read_to_string(&mut text).map_err(|error| failed(format!("reading: {error}")))?;
    if text.len() as u64 > limit {
        return Err(failed(format!("longer than {limit} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_everywhere() {
        for (text, whole) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
        ] {
            assert_eq!(reference(text).expect(text).whole(), whole);
        }
    }

    #[test]
    fn what_is_no_reference_is_named_with_the_form() {
        for text in ["", "UPPER/case:1", "h/a@md5:00", "h/a@sha256:00", "h/a:..", "a b"] {
            let error = reference(text).expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("REGISTRY/REPOSITORY"), "{error}");
        }
    }

    #[test]
    fn what_a_server_says_cannot_move_the_cursor() {
        assert_eq!(short("\x1b[2Jno\nsecond", "-"), "[2Jno");
        assert_eq!(short(" \n", "-"), "-");
        assert_eq!(short(&"x".repeat(1000), "-").len(), 200);
    }
}
