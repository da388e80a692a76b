//! One image, from a layout or the store to a registry (OCI distribution-spec 1.1, "Push").
//!
//! Blobs go first, `CONNECTIONS` at a time, and only those that are missing there: a blob that another repository of the registry has
//! is mounted. A blob is sent in one request; where that breaks off, the registry is asked how far it got, and the rest is
//! sent, or all of it where the registry does not say. Manifests go last, so that nobody finds an image that is half there.
//!
//! `oci-client` finds out who we are to the registry; uploads are our own, because it cannot take one up again. Secrets go to the registry's
//! own address only, wherever it wants a blob to be sent.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};

use super::connection::{ATTEMPTS, CONNECT, CONNECTIONS, Connection, PAUSE, SILENCE, TICK, USER_AGENT};
use super::connection::{interruption, runtime};
use super::credentials::{self, Login};
use super::settings::{Endpoint, Settings};
use super::{RegistryError, Trouble};
use crate::digest::Digest;
use crate::report::one_line;
use crate::section::Section;
use crate::source::parcel::{Blob, Document, Parcel};
use crate::watch::Watch;

/// Bytes handed to a connection at once.
const CHUNK: usize = 128 << 10;
/// How long a registry may take to put a blob of any length to its place.
const PATIENCE: Duration = Duration::from_secs(300);
/// Longest answer that is read for its reason.
const MAX_ANSWER: usize = 64 << 10;

/// An image that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of its manifest or index.
    pub digest: Digest,
    /// Blobs that were sent, and their bytes.
    pub sent: (usize, u64),
    /// Blobs that another repository had.
    pub mounted: usize,
    /// All blobs.
    pub blobs: usize,
}

/// Where a parcel goes, and who gives it: what is read of the caller's own for it has been read, and his helpers have run.
#[derive(Debug)]
pub struct Recipient {
    endpoint: Endpoint,
    login: Login,
}

impl Recipient {
    /// Reads it.
    pub fn of(reference: &Reference, settings: &Settings) -> Result<Self, RegistryError> {
        // Mirrors are for those who pull.
        let endpoint = settings.endpoints(reference)?.pop();
        let endpoint = endpoint.unwrap_or_else(|| unreachable!("a list of endpoints ends with the registry itself"));
        let login = credentials::find(endpoint.reference.registry(), endpoint.reference.repository())?;
        Ok(Self { endpoint, login })
    }
}

/// Gives a parcel to the registry of `reference`; blobs that its repository `from` has are mounted.
pub fn image(
    parcel: &Parcel,
    reference: &Reference,
    to: Recipient,
    from: Option<&str>,
    watch: &Watch,
) -> Result<Pushed, RegistryError> {
    check(parcel, reference, watch)?;
    let Recipient { endpoint, login } = to;
    runtime(reference)?.block_on(async {
        tokio::select! {
            pushed = async { Pusher::new(Connection::new(endpoint, login).await?, from, watch)?.image(parcel).await } => pushed,
            interrupted = interruption(watch) => Err(interrupted.into()),
        }
    })
}

/// Looks at every blob before anything is sent: a registry finds a damaged one only once it has all of it.
fn check(parcel: &Parcel, reference: &Reference, watch: &Watch) -> Result<(), RegistryError> {
    let of: u64 = parcel.blobs.iter().map(|blob| blob.section.len()).sum();
    let mut done = 0;
    for blob in &parcel.blobs {
        let wrong =
            |problem| RegistryError::Document { image: reference.whole(), document: blob.name.clone(), problem };
        let (mut reader, mut hash, mut chunk) = (blob.section.reader(), Sha256::new(), vec![0; CHUNK]);
        loop {
            let len = std::io::Read::read(&mut reader, &mut chunk).map_err(|error| wrong(one_line(&error)))?;
            if len == 0 {
                break;
            }
            hash.update(&chunk[..len]);
            done += len as u64;
            watch.at("checking blobs", done, of)?;
        }
        let found = Digest::from(hash);
        if found != blob.digest {
            return Err(wrong(format!("its bytes are {found}; nothing was sent")));
        }
    }
    Ok(())
}

struct Pusher<'a> {
    connection: Connection,
    http: Client,
    base: Url,
    token: RefCell<Option<String>>,
    from: Option<&'a str>,
    watch: &'a Watch,
    step: RefCell<String>,
    /// Bytes that connections have taken.
    done: Arc<AtomicU64>,
    of: Cell<u64>,
    sent: Cell<(usize, u64)>,
    mounted: Cell<usize>,
}

/// What became of asking for a blob.
enum Wanted {
    /// It is there.
    Nothing,
    /// It can be sent to this place.
    Upload(Url),
}

impl<'a> Pusher<'a> {
    fn new(connection: Connection, from: Option<&'a str>, watch: &'a Watch) -> Result<Self, RegistryError> {
        let failed = |problem: String| RegistryError::Failed { image: connection.name(), problem };
        let reference = &connection.reference;
        // No limit for an answer: it comes when all has been sent. What stands still is looked for where blobs are sent.
        let builder = Client::builder().connect_timeout(CONNECT).user_agent(USER_AGENT);
        let http = builder.danger_accept_invalid_certs(connection.insecure).build();
        let http = http.map_err(|error| failed(one_line(&error)))?;
        let base = format!("{}://{}/v2/{}/", connection.scheme, reference.resolve_registry(), reference.repository());
        let base = base.parse().map_err(|error| failed(format!("no address: {error}")))?;
        Ok(Self {
            connection,
            http,
            base,
            token: RefCell::default(),
            from,
            watch,
            step: RefCell::default(),
            done: Arc::default(),
            of: Cell::new(0),
            sent: Cell::default(),
            mounted: Cell::new(0),
        })
    }

    async fn image(&self, parcel: &Parcel) -> Result<Pushed, RegistryError> {
        let (reference, count) = (&self.connection.reference, parcel.blobs.len());
        self.watch.at(&format!("asking {} for {}", reference.registry(), reference.repository()), 0, 0)?;
        self.log_in().await.map_err(|trouble| self.failed(trouble))?;
        *self.step.borrow_mut() = format!("sending what is missing of {count} blobs");
        self.of.set(parcel.blobs.iter().map(|blob| blob.section.len()).sum());
        let mut running =
            futures_util::stream::iter(&parcel.blobs).map(|blob| self.blob(blob)).buffer_unordered(CONNECTIONS);
        loop {
            // Connections move bytes without our hearing of it.
            match tokio::time::timeout(TICK, running.next()).await {
                Ok(Some(result)) => result?,
                Ok(None) => break,
                Err(_) => {}
            }
            self.watch.at(&self.step.borrow(), self.done.load(Ordering::Relaxed), self.of.get())?;
        }
        let Some((last, inner)) = parcel.manifests.split_last() else {
            unreachable!("a parcel has the manifest that it was made from");
        };
        self.watch.at("sending the manifest", 0, 0)?;
        for document in inner {
            self.manifest(document, &document.digest.to_string()).await?;
        }
        let name = match (reference.tag(), reference.digest()) {
            (Some(tag), _) => tag.to_owned(),
            (None, Some(digest)) => digest.to_owned(),
            (None, None) => "latest".to_owned(),
        };
        self.manifest(last, &name).await?;
        Ok(Pushed { digest: last.digest, sent: self.sent.get(), mounted: self.mounted.get(), blobs: count })
    }

    fn failed(&self, trouble: Trouble) -> RegistryError {
        self.connection.failed(match trouble {
            // Who pushes makes what is not there; a registry that has no such place hides it.
            Trouble::Missing(_) => Trouble::Denied("it knows no such repository, or hides it".to_owned()),
            other => other,
        })
    }

    async fn log_in(&self) -> Result<(), Trouble> {
        let (reference, login) = (&self.connection.reference, &self.connection.login.auth);
        let token = self.connection.client.auth(reference, login, RegistryOperation::Push).await?;
        *self.token.borrow_mut() = token;
        Ok(())
    }

    /// A request to the registry, or to wherever it wants a blob to be sent; secrets go to the registry only.
    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let own = url.origin() == self.base.origin();
        let request = self.http.request(method, url);
        match (own, &*self.token.borrow(), &self.connection.login.auth) {
            (false, ..) => request,
            (true, Some(token), _) => request.bearer_auth(token),
            (true, None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (true, None, _) => request,
        }
    }

    /// Asks for something small; once more with a new token where the old one has run out.
    async fn ask(&self, build: impl Fn() -> RequestBuilder, patience: Duration) -> Result<Response, Trouble> {
        let send = async || build().timeout(patience).send().await.map_err(passing);
        let response = send().await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        self.log_in().await?;
        send().await
    }

    fn url(&self, path: &str) -> Result<Url, Trouble> {
        self.base.join(path).map_err(|error| Trouble::Lasting(format!("no address {path}: {error}")))
    }

    /// Where a registry says that an upload goes on.
    fn location(&self, response: &Response) -> Result<Url, Trouble> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        location
            .and_then(|text| response.url().join(text).ok())
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| Trouble::Lasting("it does not say where a blob is to be sent".to_owned()))
    }

    async fn blob(&self, blob: &Blob) -> Result<(), RegistryError> {
        let (mut left, mut pause, mut upload) = (ATTEMPTS, PAUSE, None);
        let len = blob.section.len();
        loop {
            let counted = Arc::new(AtomicU64::new(0));
            let trouble = match self.try_blob(blob, &mut upload, &counted).await {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            // Told once more, or not at all.
            self.done.fetch_sub(counted.load(Ordering::Relaxed), Ordering::Relaxed);
            let (image, name) = (self.connection.name(), blob.name.clone());
            match trouble {
                Trouble::Passing(problem) => {
                    left -= 1;
                    if left == 0 {
                        let problem = format!("{problem}; {len} bytes were to be sent, in {ATTEMPTS} attempts");
                        return Err(RegistryError::Blob { image, blob: name, problem });
                    }
                }
                denied @ Trouble::Denied(_) => return Err(self.failed(denied)),
                other => {
                    let problem = other.text().to_owned();
                    return Err(RegistryError::Blob { image, blob: name, problem });
                }
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// One attempt. What was begun before is in `upload`, with what is to be sent still.
    async fn try_blob(&self, blob: &Blob, upload: &mut Option<Url>, counted: &Arc<AtomicU64>) -> Result<(), Trouble> {
        let (mut at, len) = (0, blob.section.len());
        let mut place = match upload.take() {
            Some(place) => match self.progress(&place, len).await? {
                Some((place, there)) => {
                    at = there;
                    place
                }
                None => self.begin(blob, true).await?,
            },
            None => match self.wanted(blob).await? {
                Wanted::Nothing => {
                    self.done.fetch_add(len, Ordering::Relaxed);
                    return Ok(());
                }
                Wanted::Upload(place) => place,
            },
        };
        *upload = Some(place.clone());
        if at < len {
            counted.store(at, Ordering::Relaxed);
            self.done.fetch_add(at, Ordering::Relaxed);
            let response = self.send(blob.section.part(at, len - at), (at, len), place, counted).await?;
            place = match response.status() {
                StatusCode::ACCEPTED => self.location(&response)?,
                _ => return Err(refusal(response).await),
            };
            *upload = Some(place.clone());
        }
        place.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let put = || self.request(Method::PUT, place.clone()).header(CONTENT_LENGTH, 0);
        let response = self.ask(put, PATIENCE).await?;
        if response.status() != StatusCode::CREATED {
            return Err(refusal(response).await);
        }
        let (blobs, bytes) = self.sent.get();
        self.sent.set((blobs + 1, bytes + len));
        Ok(())
    }

    /// Whether a blob has to be sent, and where to.
    async fn wanted(&self, blob: &Blob) -> Result<Wanted, Trouble> {
        let url = self.url(&format!("blobs/{}", blob.digest))?;
        let response = self.ask(|| self.request(Method::HEAD, url.clone()), SILENCE).await?;
        match response.status() {
            StatusCode::OK => return Ok(Wanted::Nothing),
            StatusCode::NOT_FOUND => {}
            _ => return Err(refusal(response).await),
        }
        if let Some(from) = self.from {
            let mut url = self.url("blobs/uploads/")?;
            url.query_pairs_mut().append_pair("mount", &blob.digest.to_string()).append_pair("from", from);
            let response =
                self.ask(|| self.request(Method::POST, url.clone()).header(CONTENT_LENGTH, 0), SILENCE).await?;
            match response.status() {
                StatusCode::CREATED => {
                    self.mounted.set(self.mounted.get() + 1);
                    return Ok(Wanted::Nothing);
                }
                StatusCode::ACCEPTED => return Ok(Wanted::Upload(self.location(&response)?)),
                // The other repository is not for us.
                _ => {}
            }
        }
        Ok(Wanted::Upload(self.begin(blob, false).await?))
    }

    async fn begin(&self, blob: &Blob, again: bool) -> Result<Url, Trouble> {
        if again {
            self.watch
                .at(&format!("{}: from the beginning, the registry does not go on with it", blob.name), 0, 0)
                .map_err(|interrupted| Trouble::Lasting(interrupted.to_string()))?;
        }
        let url = self.url("blobs/uploads/")?;
        let response = self.ask(|| self.request(Method::POST, url.clone()).header(CONTENT_LENGTH, 0), SILENCE).await?;
        match response.status() {
            StatusCode::ACCEPTED => self.location(&response),
            _ => Err(refusal(response).await),
        }
    }

    /// How many bytes of an upload are there; `None` where the registry does not go on with it ("Pushing a blob in chunks").
    async fn progress(&self, place: &Url, len: u64) -> Result<Option<(Url, u64)>, Trouble> {
        let response = self.ask(|| self.request(Method::GET, place.clone()), SILENCE).await?;
        if response.status() != StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let range = response.headers().get(RANGE).and_then(|value| value.to_str().ok());
        let end = range.and_then(|text| text.trim_start_matches("bytes=").strip_prefix("0-")?.parse::<u64>().ok());
        // `0-0` is what many say of nothing, and one byte is soon sent: from the start, then.
        let there = end.filter(|end| *end > 0 && *end < len).map(|end| end + 1);
        Ok(there.map(|there| (self.location(&response).unwrap_or_else(|_| place.clone()), there)))
    }

    /// Sends bytes `at..len` of a blob, and breaks off where nothing moves.
    async fn send(
        &self,
        section: Section,
        (at, len): (u64, u64),
        place: Url,
        counted: &Arc<AtomicU64>,
    ) -> Result<Response, Trouble> {
        let mut request = self
            .request(Method::PATCH, place)
            .header(CONTENT_LENGTH, section.len())
            .header(CONTENT_TYPE, "application/octet-stream");
        if at > 0 {
            request = request.header(CONTENT_RANGE, format!("{at}-{}", len - 1));
        }
        let sent = request.body(self.body(&section, counted)).send();
        tokio::pin!(sent);
        let mut last = (0, Instant::now());
        loop {
            match tokio::time::timeout(TICK, &mut sent).await {
                Ok(answer) => return answer.map_err(passing),
                Err(_) => {
                    let now = counted.load(Ordering::Relaxed);
                    if now != last.0 {
                        last = (now, Instant::now());
                    }
                    let patience = if now < len { SILENCE } else { PATIENCE };
                    if last.1.elapsed() > patience {
                        return Err(Trouble::Passing(format!("nothing moves since {} s", patience.as_secs())));
                    }
                }
            }
        }
    }

    fn body(&self, section: &Section, counted: &Arc<AtomicU64>) -> Body {
        let (done, counted) = (Arc::clone(&self.done), Arc::clone(counted));
        let chunks = futures_util::stream::try_unfold(section.reader(), move |mut reader| {
            let (done, counted) = (Arc::clone(&done), Arc::clone(&counted));
            async move {
                let mut chunk = vec![0; CHUNK];
                let len = std::io::Read::read(&mut reader, &mut chunk)?;
                chunk.truncate(len);
                done.fetch_add(len as u64, Ordering::Relaxed);
                counted.fetch_add(len as u64, Ordering::Relaxed);
                Ok::<_, std::io::Error>((len > 0).then_some((chunk, reader)))
            }
        });
        Body::wrap_stream(chunks)
    }

    async fn manifest(&self, document: &Document, name: &str) -> Result<(), RegistryError> {
        let (mut left, mut pause) = (ATTEMPTS / 2, PAUSE);
        loop {
            let trouble = match self.try_manifest(document, name).await {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            left -= 1;
            match trouble {
                Trouble::Passing(_) if left > 0 => {}
                Trouble::Lasting(problem) => {
                    let document = format!("manifest {}", document.digest);
                    return Err(RegistryError::Document { image: self.connection.name(), document, problem });
                }
                other => return Err(self.failed(other)),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn try_manifest(&self, document: &Document, name: &str) -> Result<(), Trouble> {
        let url = self.url(&format!("manifests/{name}"))?;
        let put = || {
            let request = self.request(Method::PUT, url.clone()).header(CONTENT_TYPE, &document.media_type);
            request.body(document.text.clone())
        };
        let response = self.ask(put, PATIENCE).await?;
        if response.status() == StatusCode::CREATED { Ok(()) } else { Err(refusal(response).await) }
    }
}

fn passing(error: reqwest::Error) -> Trouble {
    Trouble::Passing(one_line(&error.without_url()))
}

/// What an answer that is none of the expected ones means.
async fn refusal(response: Response) -> Trouble {
    let code = response.status().as_u16();
    let mut text = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(Ok(bytes)) = stream.next().await
        && text.len() < MAX_ANSWER
    {
        text.extend_from_slice(&bytes);
    }
    let message = String::from_utf8_lossy(&text);
    if code == 401 || code == 403 {
        return Trouble::Denied(super::reason(&message).unwrap_or_else(|| format!("it answers {code}")));
    }
    let message = super::reason(&message).unwrap_or_else(|| message.into_owned());
    OciDistributionError::ServerError { code, url: String::new(), message }.into()
}
