//! Files into machines and out of them, as a tar in frames of the agent. A machine's tar is hostile: `labyard_archive` unpacks it.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use labyard_archive::{Packing, Totals, Unpacking, pack, place, unpack};
use labyard_spec::agent::{Kind, Pack, Request, Unpack};
use labyard_spec::guest::AGENT_PORT;
use labyard_supervisor::call;
use labyard_supervisor::client::{self, Stream};
use labyard_supervisor::home::Home;
use labyard_supervisor::words::printable;
use tokio::sync::mpsc;

use super::super::naming::{self, Among};
use super::super::{Failure, Outcome, code, event_loop, output};
use super::args::{Copy, Side};

/// Pieces that wait between the stream and the disk.
const QUEUE: usize = 16;
/// Bytes of a piece.
const PIECE: usize = 64 << 10;

/// What comes out of a machine gets no permission that `umask` takes away.
pub(crate) fn copy(home: &Home, asked: &Copy, umask: u32) -> Outcome {
    let of = |text: &str| Side::of(text, asked.playground.as_ref());
    let (wanted, path, here, inwards) = match (of(&asked.from), of(&asked.to)) {
        (Side::Here(here), Side::There(machine, path)) => (machine, path, here, true),
        (Side::There(machine, path), Side::Here(here)) => (machine, path, here, false),
        _ => {
            return Err(Failure::input(
                "one side is a machine, LAB/MACHINE:PATH, and one is here; a path here with a colon begins with ./",
            ));
        }
    };
    if path.is_empty() {
        return Err(Failure::input("the path in the machine is missing: LAB/MACHINE:PATH"));
    }
    if asked.archive && !inwards && here != Path::new("-") && !rustix::process::geteuid().is_root() {
        return Err(Failure::input("only root can keep owners here: leave --archive out, or copy to `-`"));
    }
    let (folder, machine) = naming::machine(home, &wanted, Among::Running)?;
    let client = client::attach(&folder)?;
    let runtime = event_loop()?;
    let stream = runtime.block_on(client.connect(&machine, AGENT_PORT))?;
    let totals = runtime.block_on(async {
        let carried = async {
            match inwards {
                true => into_machine(stream, asked, path, &here).await,
                false => out_of_machine(stream, asked, path, &here, umask).await,
            }
        };
        tokio::select! {
            done = carried => done,
            _ = tokio::signal::ctrl_c() => Err(Failure { code: code::INTERRUPTED, error: anyhow::anyhow!("interrupted; what was copied so far stays") }),
        }
    });
    // A thread may still wait for standard input.
    runtime.shutdown_background();
    let totals = totals?;
    if asked.json {
        output::document(
            &serde_json::json!({ "lab": folder.name, "machine": machine, "entries": totals.entries, "bytes": totals.bytes }),
        )?;
    }
    Ok(0)
}

async fn into_machine(stream: Stream, asked: &Copy, path: String, here: &Path) -> Result<Totals, Failure> {
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let request = Request::Unpack(Unpack { path, archive: asked.archive });
    call::send(&mut to_guest, Kind::Request, &serde_json::to_vec(&request)?).await?;
    let (pieces, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
    let (here, how) =
        (here.to_owned(), Packing { follow: asked.follow_link, specials: asked.archive, ..Packing::default() });
    let packing = tokio::task::spawn_blocking(move || -> Result<Totals, Failure> {
        let mut out = io::BufWriter::with_capacity(PIECE, Pieces(pieces));
        if here == Path::new("-") {
            let bytes = io::copy(&mut io::stdin().lock(), &mut out).context("standard input")?;
            out.flush()?;
            return Ok(Totals { entries: 0, bytes });
        }
        Ok(pack(&here, &how, out, &mut |note| output::complain(&note))?)
    });
    let sending = async {
        while let Some(piece) = queue.recv().await {
            if call::send(&mut to_guest, Kind::Stdin, &piece).await.is_err() {
                // The machine has said why, or is about to.
                return std::future::pending().await;
            }
        }
        // Whether all is packed decides whether the archive ends here: one that is cut must not look whole.
        let totals = packing.await??;
        if call::send(&mut to_guest, Kind::Stdin, &[]).await.is_err() {
            return std::future::pending().await;
        }
        Ok::<_, Failure>(totals)
    };
    let answer = answer(&mut from_guest);
    tokio::pin!(sending, answer);
    let totals = tokio::select! {
        totals = &mut sending => totals?,
        // It ends early only where it fails.
        answered = &mut answer => {
            answered?;
            return Err(anyhow::anyhow!("the machine took the files before they had all been sent").into());
        }
    };
    answer.await?;
    Ok(totals)
}

/// Waits for the last frame of a call that is not asked for output.
async fn answer(from_guest: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<(), Failure> {
    loop {
        match call::receive(from_guest).await? {
            Some((Kind::Exit, _)) => return Ok(()),
            Some((Kind::Stderr, text)) => note(&text),
            Some((Kind::Error, text)) => return Err(refused(&text)),
            Some((kind, _)) => return Err(anyhow::anyhow!("the machine's agent sent {kind:?}").into()),
            None => return Err(anyhow::anyhow!("the machine's agent went away before all was copied").into()),
        }
    }
}

fn refused(text: &[u8]) -> Failure {
    anyhow::Error::msg(format!("in the machine: {}", printable(&String::from_utf8_lossy(text)))).into()
}

fn note(text: &[u8]) {
    output::complain(printable(&String::from_utf8_lossy(text)).trim_end());
}

async fn out_of_machine(
    stream: Stream,
    asked: &Copy,
    path: String,
    here: &Path,
    umask: u32,
) -> Result<Totals, Failure> {
    let here = here.to_owned();
    // What is wrong here is said before the machine reads a byte.
    let to_stream = here == Path::new("-");
    let place = if to_stream { None } else { Some(place(&here).with_context(|| here.display().to_string())?) };
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let request = Request::Pack(Pack { path, follow: asked.follow_link, archive: asked.archive || to_stream });
    call::send(&mut to_guest, Kind::Request, &serde_json::to_vec(&request)?).await?;
    let (pieces, queue) = mpsc::channel::<Vec<u8>>(QUEUE);
    let why = Arc::new(Mutex::new(None));
    let (told, owners, max_bytes) = (Arc::clone(&why), asked.archive, asked.max);
    let unpacking = tokio::task::spawn_blocking(move || -> Result<Totals, Failure> {
        let mut from = Queue { queue, piece: Vec::new(), taken: 0, why: told };
        match place {
            None => {
                let bytes = io::copy(&mut (&mut from).take(max_bytes), &mut io::stdout().lock())?;
                // Whether that was all.
                let rest = from.read(&mut [0])?;
                if rest > 0 {
                    return Err(anyhow::anyhow!("more than {max_bytes} bytes: allow them with --max").into());
                }
                Ok(Totals { entries: 0, bytes })
            }
            Some((folder, rename)) => {
                let how = Unpacking { rename, owners, devices: false, umask, max_bytes };
                Ok(unpack(from, folder.as_fd(), &how)?)
            }
        }
    });
    let receiving = async {
        loop {
            let ended = match call::receive(&mut from_guest).await {
                // Who unpacks has stopped, and says why.
                Ok(Some((Kind::Stdout, piece))) => match pieces.send(piece).await {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                Ok(Some((Kind::Stderr, text))) => {
                    note(&text);
                    continue;
                }
                Ok(Some((Kind::Exit, _))) => return,
                Ok(Some((Kind::Error, text))) => {
                    format!("in the machine: {}", printable(&String::from_utf8_lossy(&text)))
                }
                Ok(Some((kind, _))) => format!("the machine's agent sent {kind:?}"),
                Ok(None) => "the machine's agent went away before all was copied".to_owned(),
                Err(error) => error.to_string(),
            };
            *why.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
            return;
        }
    };
    receiving.await;
    drop(pieces);
    let unpacked = unpacking.await?;
    match why.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // An archive that is cut is another error than the one that cut it.
        Some(why) => Err(anyhow::Error::msg(why).into()),
        None => unpacked,
    }
}

/// Where a tar is written to.
struct Pieces(mpsc::Sender<Vec<u8>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !bytes.is_empty() {
            self.0.blocking_send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a tar is read from.
struct Queue {
    queue: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    taken: usize,
    /// Why the stream ended, where it ended badly.
    why: Arc<Mutex<Option<String>>>,
}

impl Read for Queue {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.taken >= self.piece.len() {
            match self.queue.blocking_recv() {
                Some(piece) => (self.piece, self.taken) = (piece, 0),
                None if self.why.lock().unwrap_or_else(PoisonError::into_inner).is_some() => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                None => return Ok(0),
            }
        }
        let n = self.piece.get(self.taken..).unwrap_or_default().read(into)?;
        self.taken += n;
        Ok(n)
    }
}
