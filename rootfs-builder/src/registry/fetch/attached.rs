//! What is attached to an image and says what it needs of a machine.

use oci_client::manifest::ImageIndexEntry;

use super::super::connection::{ATTEMPTS, PAUSE};
use super::super::{RegistryError, Trouble};
use super::Puller;
use crate::digest::Digest;
use crate::source::compatibility;
use crate::source::manifest::{Artifact, Descriptor};

/// Most artifacts of one image, and longest document of one.
const MAX_ATTACHED: usize = 16;
const MAX_SPECIFICATION: u64 = 1 << 20;

impl Puller<'_> {
    /// The artifacts that say what a manifest or index needs of a machine (distribution-spec, "Listing Referrers", and where a
    /// registry has no such list the tag that stands for one). Nothing where it answers with something else.
    pub(super) async fn attached(&self, subject: &str) -> Result<Vec<Descriptor>, RegistryError> {
        let reference = self.connection.reference.clone_with_digest(subject.to_owned());
        let mut pause = PAUSE;
        for attempt in 1.. {
            let asked = self.connection.client.pull_referrers(&reference, Some(compatibility::ARTIFACT)).await;
            let trouble = match asked {
                Ok(index) => {
                    let ours =
                        |entry: &&ImageIndexEntry| entry.artifact_type.as_deref() == Some(compatibility::ARTIFACT);
                    let named = |entry: &ImageIndexEntry| {
                        let digest: Digest =
                            entry.digest.parse().map_err(|problem: String| self.wrong("list of referrers", problem))?;
                        let size = u64::try_from(entry.size).unwrap_or_default();
                        Ok(Descriptor::new(entry.media_type.clone(), &digest, size))
                    };
                    return index.manifests.iter().filter(ours).take(MAX_ATTACHED).map(named).collect();
                }
                Err(error) => Trouble::from(error),
            };
            match trouble {
                Trouble::Passing(_) if attempt < ATTEMPTS / 2 => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                passing @ Trouble::Passing(_) => return Err(self.connection.failed(passing)),
                _ => return Ok(Vec::new()),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// The documents of an artifact, whose manifest is put into the store.
    pub(super) async fn artifact(&self, artifact: &Descriptor) -> Result<Vec<Descriptor>, RegistryError> {
        let text = self.document(&self.connection.reference.clone_with_digest(artifact.digest.clone())).await?;
        let (digest, what) = (Digest::of(&text), format!("artifact {}", artifact.digest));
        if digest.to_string() != artifact.digest || text.len() as u64 != artifact.size {
            return Err(self.wrong(&what, format!("its bytes are {} of {digest}", text.len())));
        }
        self.blobs.put(&digest, &text).map_err(self.unwritten(&digest))?;
        let parsed: Artifact = serde_json::from_slice(&text)
            .map_err(|error| self.wrong(&what, format!("not what it should be: {error}")))?;
        let documents: Vec<Descriptor> = parsed.documents().cloned().collect();
        if let Some(long) = documents.iter().find(|document| document.size > MAX_SPECIFICATION) {
            let problem = format!("{}: {} bytes, more than {MAX_SPECIFICATION}", long.digest, long.size);
            return Err(self.wrong(&what, problem));
        }
        Ok(documents)
    }
}
