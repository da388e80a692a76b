//! One image, from a reference to complete blobs.
//!
//! The manifest is asked for first, of each endpoint in turn; who has it gives the blobs. Each blob is fetched in as many
//! pieces as connections hold, `CONNECTIONS` blobs at a time. Nobody's secrets go anywhere but to the registry that they are
//! for: `oci-client` sends them to it and to the token server that it names, and never along a redirection to another host.

mod attached;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::File;
use std::rc::Rc;

use futures_util::StreamExt;
use oci_client::client::BlobResponse;
use oci_client::{Reference, RegistryOperation};

use super::access::{Access, Grant, Granted, LASTS, Who};
use super::blobs::{Blobs, Part};
use super::connection::{ATTEMPTS, CONNECTIONS, Connection, PAUSE, TICK, interruption, runtime};
use super::credentials::{self, Login};
use super::origins::{Origins, Right};
use super::settings::{Endpoint, Settings};
use super::{RegistryError, Trouble};
use crate::digest::Digest;
use crate::section::Section;
use crate::source::manifest::{
    Artifact, Descriptor, FOREIGN, INDEXES, Index, Kind, MANIFESTS, MAX_NESTED, Manifest, choose,
};
use crate::source::{ARCHITECTURE, MAX_DOCUMENT, MAX_LAYERS};
use crate::watch::Watch;

/// Bytes of a blob that are asked for again from who has given it before.
const SAMPLE: u64 = 64 << 10;

/// An image whose blobs are all there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its manifest, one for our machines.
    pub(crate) manifest: Descriptor,
    /// What says what it needs of a machine, and the manifest or index that each is about.
    pub(crate) attached: Vec<Attached>,
}

/// An artifact, and the digest of what it is about.
pub(crate) type Attached = (Descriptor, String);

/// What a store has of registries.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// Bytes.
    pub blobs: &'a Blobs,
    /// Who has given them.
    pub origins: &'a Origins,
    /// Who has shown that they may have an image.
    pub access: &'a Access,
}

/// Who is asked for an image, and as whom.
#[derive(Debug)]
pub struct Asked {
    reference: Reference,
    /// The registry itself is the last.
    endpoints: Vec<Endpoint>,
    /// One of each.
    logins: Vec<Login>,
}

impl Asked {
    /// As the settings and the caller's logins say; helpers that keep them are run.
    pub fn of(reference: &Reference, settings: &Settings) -> Result<Self, RegistryError> {
        let endpoints = settings.endpoints(reference)?;
        let login =
            |endpoint: &Endpoint| credentials::find(endpoint.reference.registry(), endpoint.reference.repository());
        let logins = endpoints.iter().map(login).collect::<Result<_, _>>()?;
        Ok(Self { reference: reference.clone(), endpoints, logins })
    }
}

/// Fetches what is missing of an image. Where no registry can be reached, what is noted in `access` of the same places decides.
pub fn image(asked: &Asked, stored: Stored<'_>, watch: &Watch) -> Result<Fetched, RegistryError> {
    let Stored { blobs, access, .. } = stored;
    let Asked { reference, endpoints, logins } = asked;
    let who: Vec<Who> = endpoints.iter().zip(logins).map(|(endpoint, login)| Who::new(endpoint, &login.auth)).collect();
    let lately = |(endpoint, who)| access.granted_lately(endpoint, who).filter(|fetched| is_complete(blobs, fetched));
    if reference.digest().is_some()
        && let Some(fetched) = endpoints.iter().zip(&who).find_map(lately)
    {
        return Ok(fetched);
    }
    let fetched = runtime(reference)?.block_on(async {
        tokio::select! {
            fetched = from_endpoints(asked, &who, stored, watch) => fetched,
            interrupted = interruption(watch) => Err(interrupted.into()),
        }
    });
    let error = match fetched {
        Err(error @ RegistryError::Unreached { .. }) => error,
        other => return other,
    };
    let granted = endpoints.iter().zip(&who).filter_map(|(endpoint, who)| access.granted(endpoint, who));
    let granted = granted.filter(|granted| is_complete(blobs, &granted.fetched));
    // A tag may have moved: the last word counts, whoever of them spoke it.
    let Some(Granted { fetched, why, .. }) = granted.max_by_key(|granted| granted.at) else { return Err(error) };
    let why = match why {
        Grant::Public => "which anybody could have".to_owned(),
        Grant::Shown(ago) => {
            format!("your login was shown {} s ago, and counts for {} s", ago.as_secs(), LASTS.as_secs())
        }
    };
    watch.at(&format!("note: {error}; taking {} from the store, {why}", fetched.manifest.digest), 0, 0)?;
    Ok(fetched)
}

/// Whether everything that an image's manifests name is there.
fn is_complete(blobs: &Blobs, fetched: &Fetched) -> bool {
    let has = |descriptor: &Descriptor| descriptor.digest.parse().is_ok_and(|digest| blobs.has(&digest));
    let text = |manifest: &Descriptor| {
        let digest: Digest = manifest.digest.parse().ok()?;
        Section::whole(File::open(blobs.path(&digest)).ok()?).ok()?.bytes(MAX_DOCUMENT).ok()?
    };
    let image = text(&fetched.manifest).and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
    let artifact = |(manifest, _): &Attached| {
        let read = text(manifest).and_then(|text| serde_json::from_slice::<Artifact>(&text).ok());
        read.is_some_and(|read| read.documents().all(has))
    };
    image.is_some_and(|read| has(&read.config) && read.layers.iter().all(has)) && fetched.attached.iter().all(artifact)
}

async fn from_endpoints(
    asked: &Asked,
    who: &[Who],
    stored: Stored<'_>,
    watch: &Watch,
) -> Result<Fetched, RegistryError> {
    let access = stored.access;
    let Asked { endpoints, logins, .. } = asked;
    let last = endpoints.len() - 1;
    for (at, ((endpoint, login), who)) in endpoints.iter().zip(logins).zip(who).enumerate() {
        let unwritten = |source| RegistryError::Write { path: access.path(endpoint), source };
        let lately = access.granted(endpoint, who).map(|granted| granted.fetched.manifest.digest);
        let puller = Puller::new(Connection::new(endpoint.clone(), login.clone()).await?, stored, who, lately, watch);
        let result = puller.image().await;
        match &result {
            Ok(fetched) => access.note(endpoint, who, fetched).map_err(unwritten)?,
            Err(RegistryError::Denied { .. } | RegistryError::Missing { .. }) => {
                access.forget(endpoint, who).map_err(unwritten)?;
            }
            Err(_) => {}
        }
        match result {
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

/// One endpoint and what is fetched from it.
struct Puller<'a> {
    connection: Connection,
    blobs: &'a Blobs,
    origins: &'a Origins,
    who: &'a Who,
    /// The manifest of which this login has shown everything before.
    lately: Option<String>,
    watch: &'a Watch,
    done: Cell<u64>,
    of: Cell<u64>,
    /// Unfinished blobs stay for who asks again.
    keep: Rc<Cell<bool>>,
    step: RefCell<String>,
}

impl<'a> Puller<'a> {
    fn new(connection: Connection, stored: Stored<'a>, who: &'a Who, lately: Option<String>, watch: &'a Watch) -> Self {
        let (done, of) = (Cell::new(0), Cell::new(0));
        let Stored { blobs, origins, .. } = stored;
        Self { connection, blobs, origins, who, lately, watch, done, of, keep: Rc::default(), step: RefCell::default() }
    }

    fn name(&self) -> String {
        self.connection.name()
    }

    fn wrong(&self, document: &str, problem: impl Into<String>) -> RegistryError {
        RegistryError::Document { image: self.name(), document: document.to_owned(), problem: problem.into() }
    }

    fn unwritten(&self, digest: &Digest) -> impl FnOnce(std::io::Error) -> RegistryError + use<> {
        let path = self.blobs.path(digest);
        move |source| RegistryError::Write { path, source }
    }

    async fn image(&self) -> Result<Fetched, RegistryError> {
        self.watch.at(
            &format!("asking {} for {}", self.connection.reference.registry(), self.connection.reference.repository()),
            0,
            0,
        )?;
        let (descriptor, manifest, outer) = self.manifest().await?;
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
        let mut attached = Vec::new();
        // To the image for our machines, or to all of them.
        for subject in [Some(descriptor.digest.clone()), outer].into_iter().flatten() {
            attached.extend(self.attached(&subject).await?.into_iter().map(|one| (one, subject.clone())));
        }
        let mut said = Vec::new();
        for (one, _) in &attached {
            said.extend(self.artifact(one).await?);
        }
        wanted.extend(said.iter().map(|layer| (format!("compatibility specification {}", layer.digest), layer)));
        let shown = self.lately.as_ref() == Some(&descriptor.digest);
        self.blobs(wanted, shown).await?;
        Ok(Fetched { manifest: descriptor, attached })
    }

    /// The manifest for our machines, through as many indexes as there are; and the digest of the outermost, where there is one.
    async fn manifest(&self) -> Result<(Descriptor, Manifest, Option<String>), RegistryError> {
        let mut outer = None;
        let mut reference = self.connection.reference.clone();
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
            let media_type = kind.media_type("");
            if MANIFESTS.contains(&media_type.as_str()) {
                let manifest = serde_json::from_slice(&text).map_err(parsed)?;
                return Ok((Descriptor::new(media_type, &digest, text.len() as u64), manifest, outer));
            }
            if !INDEXES.contains(&media_type.as_str()) {
                return Err(
                    self.wrong(&what, format!("its media type `{media_type}` is neither a manifest nor an index"))
                );
            }
            outer.get_or_insert_with(|| digest.to_string());
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
            return Err(self.connection.failed(trouble));
        }
        unreachable!("the last attempt returns")
    }

    async fn try_document(&self, reference: &Reference, kinds: &[&str]) -> Result<Vec<u8>, Trouble> {
        // Asked for by itself, because a refusal is told here and forgotten everywhere else.
        self.connection.client.auth(reference, &self.connection.login.auth, RegistryOperation::Pull).await?;
        let (text, _) = self.connection.client.pull_manifest_raw(reference, &self.connection.login.auth, kinds).await?;
        if text.len() as u64 > MAX_DOCUMENT {
            return Err(Trouble::Lasting(format!("its manifest is longer than {MAX_DOCUMENT} bytes")));
        }
        Ok(text.to_vec())
    }

    /// Everything that is not there yet, or not for everybody; one blob once, however often it is named. With `shown`, what is there may be had.
    async fn blobs(&self, wanted: Vec<(String, &Descriptor)>, shown: bool) -> Result<(), RegistryError> {
        let mut seen = BTreeSet::new();
        let mut missing = Vec::new();
        for (name, descriptor) in wanted {
            let digest: Digest = descriptor.digest.parse().map_err(|problem: String| self.wrong(&name, problem))?;
            let open = || shown || self.origins.right(&digest, self.who) == Right::Everybody;
            if seen.insert(descriptor.digest.clone()) && !(self.blobs.has(&digest) && open()) {
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
        let giver = Some(self.who.registry()).filter(|_| !self.who.is_anonymous());
        let mut part = loop {
            let there = self.blobs.has(digest);
            if there && self.may_have(digest, size).await {
                self.origins.note(digest, self.who).map_err(self.unwritten(digest))?;
                self.tell(size)?;
                return Ok(());
            }
            match self.blobs.begin(digest, giver, &self.keep).map_err(self.unwritten(digest))? {
                // Who had it before may have finished between our two looks.
                Some(part) if !there && self.blobs.has(digest) => drop(part),
                Some(part) => break part,
                None => {
                    self.watch.at("waiting for somebody else who fetches the same", 0, 0)?;
                    tokio::time::sleep(TICK).await;
                }
            }
        };
        // A private one that was complete is given anew: otherwise nobody would be asked.
        if part.len() > size || part.len() == size && giver.is_some() {
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
        let note = || self.origins.note(digest, self.who);
        let finished = part.finish(note).map_err(self.unwritten(digest))?;
        finished.map_err(|found| RegistryError::Blob {
            image: self.name(),
            blob: name.to_owned(),
            problem: format!("its bytes are {found}; the registry's copy is damaged"),
        })
    }

    /// Whether a blob that is there is for us, too: it is for everybody, or a registry that has given it before gives us what it has at a
    /// place that nobody can foresee.
    async fn may_have(&self, digest: &Digest, size: u64) -> bool {
        match self.origins.right(digest, self.who) {
            Right::Everybody => true,
            Right::Sample => self.sample(digest, size).await.unwrap_or(false),
            Right::Whole => false,
        }
    }

    async fn sample(&self, digest: &Digest, size: u64) -> Option<bool> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).ok()?;
        let at = u64::from_le_bytes(random) % (size.saturating_sub(SAMPLE) + 1);
        let section = Section::whole(File::open(self.blobs.path(digest)).ok()?).ok().filter(|all| all.len() == size)?;
        let own = section.part(at, SAMPLE).bytes(SAMPLE).ok()??;
        let Connection { client, reference, login, .. } = &self.connection;
        client.store_auth_if_needed(reference.resolve_registry(), &login.auth).await;
        let name = digest.to_string();
        let given = client.pull_blob_stream_partial(reference, name.as_str(), at, Some(own.len() as u64)).await.ok()?;
        let (mut stream, mut skip) = match given {
            BlobResponse::Partial(stream) => (stream.stream, 0),
            BlobResponse::Full(stream) => (stream.stream, at),
        };
        let mut left = own.as_slice();
        while let Some(bytes) = stream.next().await
            && !left.is_empty()
        {
            let bytes = bytes.ok()?;
            let behind = bytes.get(usize::try_from(skip).unwrap_or(usize::MAX)..).unwrap_or_default();
            skip = skip.saturating_sub(bytes.len() as u64);
            let len = behind.len().min(left.len());
            let (now, later) = left.split_at(len);
            if behind[..len] != *now {
                return Some(false);
            }
            left = later;
        }
        Some(left.is_empty())
    }

    /// As much as one connection gives. The outer error is ours, the inner one the server's or the network's.
    async fn piece(&self, part: &mut Part, digest: &Digest, size: u64) -> Result<Result<(), Trouble>, RegistryError> {
        let name = digest.to_string();
        self.connection
            .client
            .store_auth_if_needed(self.connection.reference.resolve_registry(), &self.connection.login.auth)
            .await;
        let response = self
            .connection
            .client
            .pull_blob_stream_partial(&self.connection.reference, name.as_str(), part.len(), None)
            .await;
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
