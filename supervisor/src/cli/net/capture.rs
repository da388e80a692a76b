//! What is sent on a network, into a file.

use std::path::Path;

use labyard_spec::link::LinkStatus;
use labyard_supervisor::client::{self, Stream};
use labyard_supervisor::home::Home;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::super::{Failure, Outcome, event_loop, output};
use super::args::Pcap;
use super::{Meant, links_of, meant};

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 64 << 10;

pub(super) fn pcap(home: &Home, pcap: &Pcap) -> Outcome {
    let (folder, meant) = meant(home, &pcap.target)?;
    let client = client::attach(&folder)?;
    let to_stdout = pcap.write == Path::new("-");
    let written = event_loop()?.block_on(async {
        let (network, machine) = match meant {
            Meant::Network(network) => {
                let links = client.links().await?;
                if !links.iter().any(|link| link.network == network) {
                    return Err(Failure::input(format!("no machine of `{}` is plugged into `{network}`", folder.name)));
                }
                (network, None)
            }
            Meant::Machine(machine, network) => {
                let links = links_of(&client, &machine, network.as_deref()).await?;
                let [LinkStatus { network, .. }] = links.as_slice() else {
                    let there: Vec<_> = links.iter().map(|link| format!("{machine}:{}", link.network)).collect();
                    return Err(Failure::input(format!("which NIC of `{machine}`? There is {}", there.join(", "))));
                };
                (network.clone(), Some(machine))
            }
        };
        let mut ends = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
        let stream = client.capture(&network, machine.as_deref()).await?;
        if to_stdout {
            return Ok(carry(stream, tokio::io::stdout(), &mut ends).await?);
        }
        let failed = |error| anyhow::Error::new(error).context(pcap.write.display().to_string());
        let file = tokio::fs::File::create(&pcap.write).await.map_err(failed)?;
        output::complain(&format!("{}: writing {}; Ctrl-C ends", pcap.target.target, pcap.write.display()));
        Ok(carry(stream, file, &mut ends).await?)
    })?;
    if !to_stdout {
        output::complain(&format!("{}: {written} bytes", pcap.write.display()));
    }
    Ok(0)
}

/// Carries bytes until a signal ends it, or the lab does; how many they were. What has come is written whatever ends it.
async fn carry(mut from: Stream, mut to: impl AsyncWrite + Unpin, ends: &mut [Signal; 2]) -> std::io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut written = 0;
    let [interrupt, terminate] = ends;
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            _ = interrupt.recv() => 0,
            _ = terminate.recv() => 0,
        };
        let part = buffer.get(..read).unwrap_or_default();
        match to.write_all(part).await {
            // Whoever read it has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(written),
            other => other?,
        }
        // What was seen is in the file, so that somebody may look while it grows.
        to.flush().await?;
        written += read as u64;
        if read == 0 {
            return Ok(written);
        }
    }
}
