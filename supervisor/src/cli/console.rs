//! A machine's console, as if a cable led there.

use std::io::IsTerminal;

use labyard_supervisor::client::{self, Client, Stream};
use labyard_supervisor::home::Home;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use super::args::Machine;
use super::naming::{self, Among};
use super::terminal::{self, Raw};
use super::{Outcome, event_loop, output};

/// Ctrl-], as telnet has it.
const DETACH: u8 = 0x1d;

pub(crate) fn console(home: &Home, wanted: &Machine) -> Outcome {
    let (folder, machine) = naming::machine(home, wanted, Among::Running)?;
    let client = client::attach(&folder)?;
    let runtime = event_loop()?;
    let stream = runtime.block_on(client.console(&machine))?;
    output::complain(&format!("{}/{machine}: Ctrl-] detaches", folder.name));
    let raw = Raw::enter()?;
    let carried = runtime.block_on(async {
        tokio::select! {
            carried = carry(stream) => carried,
            failed = tell_sizes(&client, &machine) => failed,
        }
    });
    drop(raw);
    // A thread still waits for the next key.
    runtime.shutdown_background();
    let detached = carried?;
    output::complain(if detached { "\ndetached" } else { "\nthe console is closed" });
    Ok(0)
}

/// Tells the guest the size of the terminal, now and whenever it changes. Ends only where that cannot be heard of.
async fn tell_sizes(client: &Client, machine: &str) -> std::io::Result<bool> {
    if !std::io::stdout().is_terminal() {
        return std::future::pending().await;
    }
    let mut changed = signal(SignalKind::window_change())?;
    loop {
        let (cols, rows) = terminal::size();
        // A console of the wrong size is a console still.
        let _ = client.console_size(machine, cols, rows).await;
        changed.recv().await;
    }
}

/// Carries bytes until the person detaches (`true`) or the console closes.
async fn carry(stream: Stream) -> std::io::Result<bool> {
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let typed = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 4096];
        loop {
            let n = stdin.read(&mut buffer).await?;
            let keys = buffer.get(..n).unwrap_or_default();
            let end = keys.iter().position(|key| *key == DETACH);
            to_guest.write_all(keys.get(..end.unwrap_or(n)).unwrap_or_default()).await?;
            to_guest.flush().await?;
            if n == 0 || end.is_some() {
                return Ok(true);
            }
        }
    };
    let printed = async {
        let mut stdout = tokio::io::stdout();
        let mut buffer = [0; 4096];
        loop {
            let n = from_guest.read(&mut buffer).await?;
            if n == 0 {
                return Ok(false);
            }
            stdout.write_all(buffer.get(..n).unwrap_or_default()).await?;
            stdout.flush().await?;
        }
    };
    tokio::select! {
        ended = typed => ended,
        ended = printed => ended,
    }
}
