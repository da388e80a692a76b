//! From a machine's stream to `rootfs-builder`: a tar in frames, passed on in pieces as they come.

use std::io::pipe;
use std::os::fd::OwnedFd;

use labyard_spec::agent::{Kind, Request};
use labyard_supervisor::builder::{Baked, Builder, BuilderError};
use labyard_supervisor::call;
use labyard_supervisor::client::Stream;
use labyard_supervisor::words::printable;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::unix::pipe::Sender;
use tokio::sync::Notify;

use super::super::Failure;
use super::super::up::{Cancel, Progress};

/// Lines that a machine may say about what it passes over.
const MAX_NOTES: usize = 1000;

/// Why the builder did not get all of it.
enum Cut {
    /// It reads no more, and says why itself.
    Builder,
    /// The machine, or the person.
    Other(Failure),
}

impl<E: Into<Failure>> From<E> for Cut {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Has the machine send a drive, and the builder make an image of it.
pub(super) async fn bake(
    stream: Stream,
    serial: &str,
    builder: &Builder,
    arguments: &[String],
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Baked, Failure> {
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let request = Request::Bake { serial: serial.to_owned() };
    call::send(&mut to_guest, Kind::Request, &serde_json::to_vec(&request)?).await?;
    let (reader, writer) = pipe()?;
    let mut writer = Sender::from_owned_fd(OwnedFd::from(writer))?;
    let (cut, over) = (Notify::new(), Notify::new());
    let feeding = async {
        let fed = tokio::select! {
            fed = feed(&mut from_guest, &mut writer, progress) => fed,
            () = cancel.wait() => Err(Cut::Other(Cancel::failure())),
            // Else it would wait for the machine's next word.
            () = over.notified() => Err(Cut::Builder),
        };
        // One that has stopped reading is about to say why.
        if matches!(fed, Err(Cut::Other(_))) {
            cut.notify_one();
        }
        // A builder that was told to end, and still waits for more, has read its last.
        drop(writer);
        fed
    };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let told = |line: &str| {
        // Its last words are repeated as ours.
        if !line.starts_with("error: ") {
            progress.say(&format!("  {}", printable(line)));
        }
    };
    let building = async {
        let built = builder.bake(&arguments, reader, told, cut.notified()).await;
        over.notify_one();
        built
    };
    let (fed, built) = tokio::join!(feeding, building);
    match (fed, built) {
        (Ok(()), Ok(baked)) => Ok(baked),
        (Err(Cut::Other(failure)), _) => Err(failure),
        (_, Err(BuilderError::Interrupted)) => Err(Cancel::failure()),
        (_, Err(error)) => Err(error.into()),
        (Err(Cut::Builder), Ok(_)) => {
            Err(anyhow::anyhow!("rootfs-builder took what the machine sent for all of it before it was").into())
        }
    }
}

/// Passes on what the machine sends, up to its last frame.
async fn feed(from: &mut (impl AsyncRead + Unpin), to: &mut Sender, progress: &Progress) -> Result<(), Cut> {
    let mut notes = 0;
    loop {
        match call::receive(from).await.map_err(anyhow::Error::from).map_err(Failure::from)? {
            Some((Kind::Stdout, piece)) => to.write_all(&piece).await.map_err(|_| Cut::Builder)?,
            Some((Kind::Stderr, text)) => {
                notes += 1;
                if notes > MAX_NOTES {
                    return Err(Failure::from(anyhow::anyhow!("it says more than {MAX_NOTES} lines")).into());
                }
                progress.say(&format!("  {}", printable(String::from_utf8_lossy(&text).trim_end())));
            }
            Some((Kind::Exit, _)) => return Ok(()),
            Some((Kind::Error, text)) => {
                let text = printable(&String::from_utf8_lossy(&text));
                return Err(Failure::from(anyhow::Error::msg(format!("in the machine: {text}"))).into());
            }
            Some((kind, _)) => {
                return Err(Failure::from(anyhow::anyhow!("the machine's init sent {kind:?}")).into());
            }
            None => {
                return Err(Failure::from(anyhow::anyhow!("the machine went away before all was read")).into());
            }
        }
    }
}
