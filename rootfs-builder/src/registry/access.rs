//! Who has shown that they may have an image, for the time in which its registry cannot be asked: `access/<hash of the place>.json`.
//!
//! A place is where an image was really asked for: registry and name after the caller's own `registries.conf` has led there, and whether anybody
//! vouches for the connection. So who has another name led elsewhere changes nothing for those who have not.
//!
//! A registry that answers has the last word. One that cannot be reached is replaced by what it said before: an image that anybody could
//! have there, anybody can have still; any other only who showed the same login less than [`LASTS`] ago. By digest, where the
//! bytes cannot have changed, the same notes save asking for as long.
//!
//! A note holds no login, only a salted sum of it that takes a while to compute.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oci_client::secrets::RegistryAuth;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::fetch::{Attached, Fetched};
use super::settings::Endpoint;
use crate::digest::Digest;
use crate::source::manifest::Descriptor;

/// How long a login that was shown counts without being shown again.
pub const LASTS: Duration = Duration::from_secs(15 * 60);
/// Sums over sums: a millisecond for who knows the login, and as much for each guess.
const ROUNDS: u32 = 5_000;
/// Longest note, and most logins of one image.
const MAX_BYTES: u64 = 1 << 20;
const MAX_PROOFS: usize = 64;

/// Notes of one store.
#[derive(Debug, Clone)]
pub struct Access {
    folder: PathBuf,
}

/// What is noted of an image at one place.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    place: String,
    manifest: Option<Descriptor>,
    attached: Vec<Attached>,
    /// When it was last given to somebody without a login; seconds since 1970.
    public: Option<u64>,
    proofs: Vec<Proof>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Proof {
    salt: String,
    sum: String,
    at: u64,
}

/// Where somebody asked, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    registry: String,
    auth: RegistryAuth,
}

/// An image that may be had without asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) fetched: Fetched,
    pub(super) why: Grant,
    /// When it was last given; seconds since 1970.
    pub(super) at: u64,
}

/// Why it may be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    /// Anybody can have it.
    Public,
    /// This login was shown so long ago.
    Shown(Duration),
}

impl Who {
    pub(super) fn new(endpoint: &Endpoint, auth: &RegistryAuth) -> Self {
        Self { registry: endpoint.reference.registry().to_owned(), auth: auth.clone() }
    }

    pub(super) fn registry(&self) -> &str {
        &self.registry
    }

    pub(super) fn is_anonymous(&self) -> bool {
        self.auth == RegistryAuth::Anonymous
    }

    fn sum(&self, salt: &str) -> String {
        let secret = match &self.auth {
            RegistryAuth::Anonymous => String::new(),
            RegistryAuth::Basic(user, password) => format!("basic\0{user}\0{password}"),
            RegistryAuth::Bearer(token) => format!("bearer\0{token}"),
        };
        let mut sum = Sha256::digest(format!("{salt}\0{}\0{secret}", self.registry));
        for _ in 0..ROUNDS {
            sum = Sha256::digest(sum);
        }
        Digest::from_sum(sum.into()).hex()
    }
}

impl Access {
    /// Below a state directory.
    pub fn open(home: &Path) -> io::Result<Self> {
        let folder = home.join("access");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    pub(super) fn path(&self, at: &Endpoint) -> PathBuf {
        self.folder.join(format!("{}.json", Digest::of(place(at).as_bytes()).hex()))
    }

    /// What is not readable is as good as nothing: it is asked again.
    fn read(&self, at: &Endpoint) -> Option<Note> {
        let mut text = Vec::new();
        File::open(self.path(at)).ok()?.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok().filter(|note: &Note| note.place == place(at))
    }

    fn write(&self, at: &Endpoint, note: &Note) -> io::Result<()> {
        let path = self.path(at);
        let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file = crate::build::private(&unfinished)?;
        file.write_all(&serde_json::to_vec(note)?)?;
        fs::rename(&unfinished, &path)
    }

    /// `who` has been given the image there.
    pub(super) fn note(&self, at: &Endpoint, who: &Who, fetched: &Fetched) -> io::Result<()> {
        let mut note = self.read(at).unwrap_or_default();
        note.place = place(at);
        // Who has shown a login for other bytes has shown it for the name; the bytes are these now.
        (note.manifest, note.attached) = (Some(fetched.manifest.clone()), fetched.attached.clone());
        if who.is_anonymous() {
            note.public = Some(now());
        }
        note.proofs.retain(|proof| is_fresh(proof.at) && proof.sum != who.sum(&proof.salt));
        note.proofs.truncate(MAX_PROOFS - 1);
        let mut salt = [0; 16];
        rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty())?;
        let salt: String = salt.iter().map(|byte| format!("{byte:02x}")).collect();
        note.proofs.push(Proof { sum: who.sum(&salt), salt, at: now() });
        self.write(at, &note)
    }

    /// `who` was refused the image there.
    pub(super) fn forget(&self, at: &Endpoint, who: &Who) -> io::Result<()> {
        let Some(mut note) = self.read(at) else { return Ok(()) };
        if who.is_anonymous() {
            note.public = None;
        }
        note.proofs.retain(|proof| proof.sum != who.sum(&proof.salt));
        self.write(at, &note)
    }

    /// What `who` may have without the registry being asked.
    pub(super) fn granted(&self, at: &Endpoint, who: &Who) -> Option<Granted> {
        let note = self.read(at)?;
        let fetched = Fetched { manifest: note.manifest?, attached: note.attached };
        if let Some(at) = note.public {
            return Some(Granted { fetched, why: Grant::Public, at });
        }
        let fresh = note.proofs.iter().filter(|proof| is_fresh(proof.at));
        let at = fresh.filter(|proof| who.sum(&proof.salt) == proof.sum).map(|proof| proof.at).max()?;
        let why = Grant::Shown(Duration::from_secs(now().saturating_sub(at)));
        Some(Granted { fetched, why, at })
    }

    /// The same for a digest, so that nobody has to be asked: what is public was found to be so no longer ago than a login counts.
    pub(super) fn granted_lately(&self, at: &Endpoint, who: &Who) -> Option<Fetched> {
        self.granted(at, who).filter(|granted| is_fresh(granted.at)).map(|granted| granted.fetched)
    }
}

/// Where an image was asked for.
fn place(at: &Endpoint) -> String {
    format!("{}{}", if at.insecure { "insecure " } else { "" }, at.reference.whole())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A clock that was set back makes nothing fresh.
fn is_fresh(at: u64) -> bool {
    let now = now();
    at <= now && now - at < LASTS.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(reference: &str) -> Endpoint {
        Endpoint { reference: reference.parse().expect("a reference"), insecure: false }
    }

    fn scene() -> (tempfile::TempDir, Access, Endpoint, Fetched) {
        let home = tempfile::tempdir().expect("a folder");
        let access = Access::open(home.path()).expect("opening");
        let descriptor = |of: &[u8]| Descriptor::new("kind".to_owned(), &Digest::of(of), 2);
        let attached = vec![(descriptor(b"needs"), Digest::of(b"it").to_string())];
        (home, access, at("images.example/it:1"), Fetched { manifest: descriptor(b"it"), attached })
    }

    fn who(registry: &str, password: &str) -> Who {
        Who { registry: registry.to_owned(), auth: RegistryAuth::Basic("lovelace".to_owned(), password.to_owned()) }
    }

    fn nobody(registry: &str) -> Who {
        Who { registry: registry.to_owned(), auth: RegistryAuth::Anonymous }
    }

    #[test]
    fn a_private_image_is_for_the_login_that_was_shown_and_for_a_while() {
        let (home, access, image, fetched) = scene();
        let ada = who("images.example", "correct horse");
        access.note(&image, &ada, &fetched).expect("noting");
        let granted = access.granted(&image, &ada).expect("granted");
        assert_eq!(granted.fetched, fetched);
        assert!(matches!(granted.why, Grant::Shown(_)));
        for other in [who("images.example", "wrong"), who("other.example", "correct horse"), nobody("images.example")] {
            assert_eq!(access.granted(&image, &other), None);
        }
        assert_eq!(access.granted(&at("images.example/it:2"), &ada), None);
        let text = fs::read_to_string(access.path(&image)).expect("a note");
        assert!(!text.contains("horse") && !text.contains("lovelace"), "{text}");

        // A quarter of an hour later, or before it was shown.
        for at in [now() - LASTS.as_secs(), now() + 100] {
            let mut note = access.read(&image).expect("a note");
            note.proofs[0].at = at;
            access.write(&image, &note).expect("writing");
            assert_eq!(access.granted(&image, &ada), None);
        }
        access.note(&image, &ada, &fetched).expect("noting");
        access.forget(&image, &ada).expect("forgetting");
        assert_eq!(access.granted(&image, &ada), None);
        assert_eq!(fs::read_dir(home.path().join("access")).expect("listing").count(), 1);
    }

    #[test]
    fn a_public_image_is_for_everybody_until_it_is_refused() {
        let (_home, access, image, fetched) = scene();
        access.note(&image, &nobody("images.example"), &fetched).expect("noting");
        let ada = who("images.example", "any");
        let granted = access.granted(&image, &ada).expect("granted");
        assert_eq!((granted.fetched, granted.why), (fetched.clone(), Grant::Public));
        assert_eq!(access.granted_lately(&image, &ada), Some(fetched));
        let mut note = access.read(&image).expect("a note");
        note.public = Some(0);
        access.write(&image, &note).expect("writing");
        assert_eq!(access.granted_lately(&image, &ada), None);
        assert!(access.granted(&image, &ada).is_some());
        access.forget(&image, &nobody("images.example")).expect("forgetting");
        assert_eq!(access.granted(&image, &ada), None);
    }

    #[test]
    fn what_one_place_gave_says_nothing_of_another() {
        let (_home, access, image, fetched) = scene();
        access.note(&image, &nobody("images.example"), &fetched).expect("noting");
        let insecure = Endpoint { insecure: true, ..image.clone() };
        for other in [at("mirror.example/it:1"), at("images.example/team/it:1"), insecure] {
            assert_eq!(access.granted(&other, &nobody(other.reference.registry())), None, "{other:?}");
        }
        assert!(access.granted(&image, &nobody("images.example")).is_some());
    }

    #[test]
    fn a_note_that_is_broken_is_none() {
        let (_home, access, image, fetched) = scene();
        for text in ["", "{}", "[1", r#"{"place":"images.example/it:1"}"#] {
            fs::write(access.path(&image), text).expect("writing");
            assert_eq!(access.granted(&image, &nobody("images.example")), None, "{text}");
        }
        access.note(&image, &nobody("images.example"), &fetched).expect("noting");
        assert!(access.granted(&image, &who("images.example", "any")).is_some());
    }
}
