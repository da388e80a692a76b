//! One image, from a reference to complete blobs.
//!
//! The manifest is asked for first, of each endpoint in turn; who has it gives the blobs. Each blob is fetched in as many
//! pieces as connections hold, `CONNECTIONS` blobs at a time. Nobody's secrets go anywhere but to the registry that they are
//! for: `oci-client` sends them to it and to the token server that it names, and never along a redirection to another host.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde::Deserialize;

use super::blobs::{Blobs, Part};
use super::credentials::{self, Login};
use super::settings::{Endpoint, Settings};
use super::{RegistryError, Trouble};
use crate::digest::Digest;
use crate::source::manifest::{Descriptor, FOREIGN, INDEXES, Index, MANIFESTS, MAX_NESTED, Manifest, choose};
use crate::source::{ARCHITECTURE, MAX_DOCUMENT, MAX_LAYERS};
use crate::watch::Watch;

/// Blobs fetched at once.
const CONNECTIONS: usize = 4;
/// A connection that gives nothing for so long is broken.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a server may take to be reached.
const CONNECT: Duration = Duration::from_secs(15);
/// Times that a blob is asked for without having got a byte further.
const ATTEMPTS: u32 = 6;
/// Before the second attempt; doubled for each one more.
const PAUSE: Duration = Duration::from_millis(250);
/// Between two looks at whether the end was asked for.
const TICK: Duration = Duration::from_millis(100);
const USER_AGENT: &str = concat!("labyard-rootfs-builder/", env!("CARGO_PKG_VERSION"));

/// An image whose blobs are all there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its manifest, one for our machines.
    pub(crate) manifest: Descriptor,
}

/// Fetches what is missing of an image.
pub fn image(
    reference: &Reference,
    settings: &Settings,
    blobs: &Blobs,
    watch: &Watch,
) -> Result<Fetched, RegistryError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| RegistryError::Failed { image: reference.whole(), problem: error.to_string() })?;
    // The provider is a matter of the whole process; the second call finds it set.
    let _ = rustls::crypto::ring::default_provider().install_default();
    runtime.block_on(async {
        tokio::select! {
            fetched = from_endpoints(reference, settings, blobs, watch) => fetched,
            interrupted = interruption(watch) => Err(interrupted.into()),
        }
    })
}

async fn interruption(watch: &Watch) -> crate::watch::Interrupted {
    loop {
        if let Err(interrupted) = watch.check() {
            return interrupted;
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn from_endpoints(
    reference: &Reference,
    settings: &Settings,
    blobs: &Blobs,
    watch: &Watch,
) -> Result<Fetched, RegistryError> {
    let endpoints = settings.endpoints(reference)?;
    let last = endpoints.len() - 1;
    for (at, endpoint) in endpoints.into_iter().enumerate() {
        let puller = Puller::new(endpoint, blobs, watch).await?;
        match puller.image().await {
            // What this machine cannot do, it cannot do for another registry either.
            Err(error)
                if at != last && !matches!(error, RegistryError::Interrupted(_) | RegistryError::Write { .. }) =>
            {
                watch.at(&format!("{error}; trying the next place"), 0, 0)?;
            }
            result => return result,
        }
    }
    unreachable!("a list of endpoints ends with the registry itself")
}

/// The parts of a document that tell what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

/// One endpoint and what is fetched from it.
struct Puller<'a> {
    client: Client,
    reference: Reference,
    login: Login,
    blobs: &'a Blobs,
    watch: &'a Watch,
    done: Cell<u64>,
    of: Cell<u64>,
    /// Unfinished blobs stay for who asks again.
    keep: Rc<Cell<bool>>,
    step: RefCell<String>,
}

impl<'a> Puller<'a> {
    async fn new(endpoint: Endpoint, blobs: &'a Blobs, watch: &'a Watch) -> Result<Self, RegistryError> {
        let Endpoint { reference, insecure } = endpoint;
        let login = credentials::find(reference.registry(), reference.repository())?;
        let failed = |problem: String| RegistryError::Failed { image: reference.whole(), problem };
        let build = |protocol| {
            let config = ClientConfig {
                protocol,
                accept_invalid_certificates: insecure,
                read_timeout: Some(SILENCE),
                connect_timeout: Some(CONNECT),
                user_agent: USER_AGENT,
                ..ClientConfig::default()
            };
            Client::try_from(config).map_err(|error| failed(error.to_string()))
        };
        let mut client = build(ClientProtocol::Https)?;
        if insecure {
            // TLS is still taken where it is offered; a refusal is an answer, too.
            let answer = client.auth(&reference, &RegistryAuth::Anonymous, RegistryOperation::Pull).await;
            let speaks_tls = !matches!(answer, Err(OciDistributionError::RequestError(_)));
            client = build(if speaks_tls { ClientProtocol::Https } else { ClientProtocol::Http })?;
        }
        Ok(Self {
            client,
            reference,
            login,
            blobs,
            watch,
            done: Cell::new(0),
            of: Cell::new(0),
            keep: Rc::default(),
            step: RefCell::default(),
        })
    }

    fn name(&self) -> String {
        self.reference.whole()
    }

    fn failed(&self, trouble: Trouble) -> RegistryError {
        let (image, found) = (self.name(), self.login.found.clone());
        match trouble {
            Trouble::Denied(problem) => {
                RegistryError::Denied { image, found, problem, registry: self.reference.registry().to_owned() }
            }
            Trouble::Missing(_) => RegistryError::Missing { image, found },
            Trouble::Passing(problem) | Trouble::Lasting(problem) => RegistryError::Failed { image, problem },
        }
    }

    fn wrong(&self, document: &str, problem: impl Into<String>) -> RegistryError {
        RegistryError::Document { image: self.name(), document: document.to_owned(), problem: problem.into() }
    }

    fn unwritten(&self, digest: &Digest) -> impl FnOnce(std::io::Error) -> RegistryError + use<> {
        let path = self.blobs.path(digest);
        move |source| RegistryError::Write { path, source }
    }

    async fn image(&self) -> Result<Fetched, RegistryError> {
        self.watch.at(&format!("asking {} for {}", self.reference.registry(), self.reference.repository()), 0, 0)?;
        let (descriptor, manifest) = self.manifest().await?;
        if manifest.layers.len() > MAX_LAYERS {
            let problem = format!("{} layers, more than {MAX_LAYERS}", manifest.layers.len());
            return Err(self.wrong(&format!("manifest {}", descriptor.digest), problem));
        }
        let count = manifest.layers.len();
        let mut wanted = vec![("configuration".to_owned(), &manifest.config)];
        for (at, layer) in manifest.layers.iter().enumerate() {
            let name = format!("layer {} of {count} ({})", at + 1, layer.digest);
            if FOREIGN.iter().any(|kind| layer.media_type.starts_with(kind)) {
                let problem = "a foreign layer: its bytes are not in the registry, and we fetch from nowhere else";
                return Err(self.wrong(&name, problem));
            }
            wanted.push((name, layer));
        }
        self.blobs(wanted).await?;
        Ok(Fetched { manifest: descriptor })
    }

    /// The manifest for our machines, through as many indexes as there are.
    async fn manifest(&self) -> Result<(Descriptor, Manifest), RegistryError> {
        let mut reference = self.reference.clone();
        for _ in 0..=MAX_NESTED {
            let text = self.document(&reference).await?;
            let digest = Digest::of(&text);
            let what = format!("manifest {digest}");
            if let Some(asked) = reference.digest()
                && asked != digest.to_string()
            {
                return Err(self.wrong(&what, format!("{asked} was asked for")));
            }
            self.blobs.put(&digest, &text).map_err(self.unwritten(&digest))?;
            let parsed = |error: serde_json::Error| self.wrong(&what, format!("not what it should be: {error}"));
            let kind: Kind = serde_json::from_slice(&text).map_err(parsed)?;
            // Manifests of before 2021 may leave it out (image-spec, manifest.md).
            let media_type = kind
                .media_type
                .unwrap_or_else(|| if kind.manifests.is_some() { INDEXES[0] } else { MANIFESTS[0] }.to_owned());
            if MANIFESTS.contains(&media_type.as_str()) {
                let manifest = serde_json::from_slice(&text).map_err(parsed)?;
                return Ok((Descriptor::new(media_type, &digest, text.len() as u64), manifest));
            }
            if !INDEXES.contains(&media_type.as_str()) {
                return Err(
                    self.wrong(&what, format!("its media type `{media_type}` is neither a manifest nor an index"))
                );
            }
            let index: Index = serde_json::from_slice(&text).map_err(parsed)?;
            let chosen = choose(&index).ok_or_else(|| {
                self.wrong(
                    &what,
                    format!("no image for linux/{ARCHITECTURE} among the {} of it", index.manifests.len()),
                )
            })?;
            let next: Digest = chosen.digest.parse().map_err(|problem: String| self.wrong(&what, problem))?;
            reference = reference.clone_with_digest(next.to_string());
        }
        Err(self.wrong("manifest", format!("more than {MAX_NESTED} indexes nested")))
    }

    async fn document(&self, reference: &Reference) -> Result<Vec<u8>, RegistryError> {
        let kinds = [INDEXES, MANIFESTS].concat();
        let mut pause = PAUSE;
        for attempt in 1.. {
            let trouble = match self.try_document(reference, &kinds).await {
                Ok(text) => return Ok(text),
                Err(Trouble::Passing(_)) if attempt < ATTEMPTS / 2 => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    continue;
                }
                Err(trouble) => trouble,
            };
            return Err(self.failed(trouble));
        }
        unreachable!("the last attempt returns")
    }

    async fn try_document(&self, reference: &Reference, kinds: &[&str]) -> Result<Vec<u8>, Trouble> {
        // Asked for by itself, because a refusal is told here and forgotten everywhere else.
        self.client.auth(reference, &self.login.auth, RegistryOperation::Pull).await?;
        let (text, _) = self.client.pull_manifest_raw(reference, &self.login.auth, kinds).await?;
        if text.len() as u64 > MAX_DOCUMENT {
            return Err(Trouble::Lasting(format!("its manifest is longer than {MAX_DOCUMENT} bytes")));
        }
        Ok(text.to_vec())
    }

    /// Everything that is not there yet; one blob once, however often it is named.
    async fn blobs(&self, wanted: Vec<(String, &Descriptor)>) -> Result<(), RegistryError> {
        let mut seen = BTreeSet::new();
        let mut missing = Vec::new();
        for (name, descriptor) in wanted {
            let digest: Digest = descriptor.digest.parse().map_err(|problem: String| self.wrong(&name, problem))?;
            if seen.insert(descriptor.digest.clone()) && !self.blobs.has(&digest) {
                missing.push((name, digest, descriptor.size));
            }
        }
        let of: u64 = missing.iter().fold(0, |sum, (_, _, size)| sum.saturating_add(*size));
        self.of.set(of);
        *self.step.borrow_mut() = format!("fetching {} of {} blobs", missing.len(), seen.len());
        let mut running = futures_util::stream::iter(missing)
            .map(|(name, digest, size)| async move { self.blob(&name, &digest, size).await })
            .buffer_unordered(CONNECTIONS);
        while let Some(result) = running.next().await {
            result?;
        }
        Ok(())
    }

    async fn blob(&self, name: &str, digest: &Digest, size: u64) -> Result<(), RegistryError> {
        let mut part = loop {
            if self.blobs.has(digest) {
                self.tell(size)?;
                return Ok(());
            }
            match self.blobs.begin(digest, &self.keep).map_err(self.unwritten(digest))? {
                // Who had it before may have finished between our two looks.
                Some(part) if self.blobs.has(digest) => drop(part),
                Some(part) => break part,
                None => {
                    self.watch.at("waiting for somebody else who fetches the same", 0, 0)?;
                    tokio::time::sleep(TICK).await;
                }
            }
        };
        if part.len() > size {
            part.restart().map_err(self.unwritten(digest))?;
        }
        self.tell(part.len())?;
        let (mut left, mut pause) = (ATTEMPTS, PAUSE);
        while part.len() < size {
            let before = part.len();
            let Err(trouble) = self.piece(&mut part, digest, size).await? else { break };
            let blob = name.to_owned();
            let image = self.name();
            if !matches!(trouble, Trouble::Passing(_)) {
                return Err(RegistryError::Blob { image, blob, problem: trouble.text().to_owned() });
            }
            (left, pause) = if part.len() > before { (ATTEMPTS, PAUSE) } else { (left - 1, pause * 2) };
            if left == 0 {
                // What came of the others is as good.
                self.keep.set(true);
                let problem = format!("broken off at {} of {size} bytes: {}", part.len(), trouble.text());
                return Err(RegistryError::Broken { image, blob, problem });
            }
            tokio::time::sleep(pause).await;
        }
        let finished = part.finish().map_err(self.unwritten(digest))?;
        finished.map_err(|found| RegistryError::Blob {
            image: self.name(),
            blob: name.to_owned(),
            problem: format!("its bytes are {found}; the registry's copy is damaged"),
        })
    }

    /// As much as one connection gives. The outer error is ours, the inner one the server's or the network's.
    async fn piece(&self, part: &mut Part, digest: &Digest, size: u64) -> Result<Result<(), Trouble>, RegistryError> {
        let name = digest.to_string();
        self.client.store_auth_if_needed(self.reference.resolve_registry(), &self.login.auth).await;
        let response = self.client.pull_blob_stream_partial(&self.reference, name.as_str(), part.len(), None).await;
        let mut stream = match response {
            Ok(BlobResponse::Partial(stream)) => stream.stream,
            Ok(BlobResponse::Full(stream)) => {
                if part.len() > 0 {
                    self.done.set(self.done.get() - part.len());
                    part.restart().map_err(self.unwritten(digest))?;
                }
                stream.stream
            }
            Err(error) => return Ok(Err(error.into())),
        };
        while let Some(piece) = stream.next().await {
            let bytes = match piece {
                Ok(bytes) => bytes,
                // The stream's own opinion of the digest; ours follows.
                Err(_) if part.len() == size => break,
                Err(error) => return Ok(Err(Trouble::Passing(crate::report::one_line(&error)))),
            };
            if part.len() + bytes.len() as u64 > size {
                return Ok(Err(Trouble::Lasting(format!("more than the {size} bytes that the manifest says"))));
            }
            part.append(&bytes).map_err(self.unwritten(digest))?;
            self.tell(bytes.len() as u64)?;
        }
        if part.len() < size {
            return Ok(Err(Trouble::Passing("the connection ended early".to_owned())));
        }
        Ok(Ok(()))
    }

    fn tell(&self, more: u64) -> Result<(), RegistryError> {
        self.done.set(self.done.get() + more);
        Ok(self.watch.at(&self.step.borrow(), self.done.get(), self.of.get())?)
    }
}
