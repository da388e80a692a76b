//! A program in a machine, as if it ran here: its streams, its signals, its exit code.

use std::io::IsTerminal;

use labyard_spec::agent::{Exec as Program, Exit, Kind, Request};
use labyard_spec::guest::AGENT_PORT;
use labyard_supervisor::client::{self, Stream};
use labyard_supervisor::home::Home;
use labyard_supervisor::{call, words};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::Exec;
use super::naming::{self, Among};
use super::terminal::{self, Raw};
use super::{Failure, Outcome, code, event_loop};

/// Interrupts after which labyard gives up on a machine that does not answer them.
const PATIENT_INTERRUPTS: u32 = 3;

pub(crate) fn exec(home: &Home, exec: Exec) -> Outcome {
    // What goes wrong here must not look like the program's own exit code.
    run(home, exec).map_err(|failure| Failure {
        code: if failure.code == code::FAILED { code::OWN } else { failure.code },
        ..failure
    })
}

fn run(home: &Home, exec: Exec) -> Outcome {
    let (folder, machine) = naming::machine(home, &exec.machine, Among::Running)?;
    let client = client::attach(&folder)?;
    let runtime = event_loop()?;
    let stream = runtime.block_on(client.connect(&machine, AGENT_PORT))?;
    let request = Request::Exec(Program {
        argv: exec.argv,
        env: exec.env,
        working_dir: exec.workdir,
        user: exec.user,
        tty: exec.tty.then(terminal::size),
    });
    let raw = if exec.tty && exec.interactive { Raw::enter()? } else { None };
    let outcome = runtime.block_on(converse(stream, &request, exec.interactive, exec.tty));
    drop(raw);
    // A thread may still wait for input that nobody wants any more.
    runtime.shutdown_background();
    outcome
}

async fn converse(stream: Stream, request: &Request, interactive: bool, tty: bool) -> Outcome {
    let (from_guest, mut to_guest) = tokio::io::split(stream);
    call::send(&mut to_guest, Kind::Request, &serde_json::to_vec(request)?).await?;
    if !interactive {
        call::send(&mut to_guest, Kind::Stdin, &[]).await?;
    }
    let signals = Signals::listen()?;
    tokio::select! {
        exit = listen(from_guest) => exit,
        failed = speak(to_guest, interactive, tty, signals) => failed,
    }
}

/// Prints what comes until the last frame.
async fn listen(mut from_guest: ReadHalf<Stream>) -> Outcome {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let lost = |why: &str| Failure { code: code::OWN, error: anyhow::anyhow!("the machine's agent {why}") };
    loop {
        let frame = call::receive(&mut from_guest).await.map_err(|error| lost(&format!("broke off: {error}")))?;
        match frame {
            Some((Kind::Stdout, bytes)) => {
                stdout.write_all(&bytes).await?;
                stdout.flush().await?;
            }
            Some((Kind::Stderr, bytes)) => {
                stderr.write_all(&bytes).await?;
                stderr.flush().await?;
            }
            Some((Kind::Exit, json)) => {
                let exit = serde_json::from_slice(&json).map_err(|_| lost("gave an exit that makes no sense"))?;
                return Ok(match exit {
                    Exit::Code(code) => code,
                    Exit::Signal(signal) => 128u8.saturating_add(signal),
                });
            }
            Some((Kind::Error, text)) => {
                let text = words::printable(&String::from_utf8_lossy(&text));
                return Err(Failure { code: code::OWN, error: anyhow::Error::msg(text) });
            }
            Some((kind, _)) => return Err(lost(&format!("sent {kind:?}, which is for it to receive"))),
            None => return Err(lost("went away before the program had ended")),
        }
    }
}

/// Signals that are passed on.
struct Signals {
    interrupt: Signal,
    others: [(u8, Signal); 5],
    resize: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let passed_on = |kind: SignalKind| {
            Ok::<_, std::io::Error>((u8::try_from(kind.as_raw_value()).unwrap_or_default(), signal(kind)?))
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            others: [
                passed_on(SignalKind::terminate())?,
                passed_on(SignalKind::hangup())?,
                passed_on(SignalKind::quit())?,
                passed_on(SignalKind::user_defined1())?,
                passed_on(SignalKind::user_defined2())?,
            ],
            resize: signal(SignalKind::window_change())?,
        })
    }

    /// The next one, as a frame.
    async fn next(&mut self) -> (Kind, Vec<u8>) {
        let [term, hangup, quit, first, second] = &mut self.others;
        let number = tokio::select! {
            _ = self.interrupt.recv() => u8::try_from(SignalKind::interrupt().as_raw_value()).unwrap_or_default(),
            _ = term.1.recv() => term.0,
            _ = hangup.1.recv() => hangup.0,
            _ = quit.1.recv() => quit.0,
            _ = first.1.recv() => first.0,
            _ = second.1.recv() => second.0,
            _ = self.resize.recv() => {
                let (columns, rows) = terminal::size();
                return (Kind::Resize, [columns.to_le_bytes(), rows.to_le_bytes()].concat());
            }
        };
        (Kind::Signal, vec![number])
    }
}

/// Passes on what is typed and signalled; returns only when that is no longer possible or wanted.
async fn speak(mut to_guest: WriteHalf<Stream>, interactive: bool, tty: bool, mut signals: Signals) -> Outcome {
    let mut stdin = tokio::io::stdin();
    let mut reading = interactive;
    let mut interrupts = 0;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let (kind, payload) = tokio::select! {
            read = stdin.read(&mut buffer), if reading => {
                let n = read?;
                reading = n > 0;
                (Kind::Stdin, buffer.get(..n).unwrap_or_default().to_vec())
            }
            frame = signals.next() => frame,
        };
        if kind == Kind::Resize && !(tty && std::io::stdout().is_terminal()) {
            continue;
        }
        if kind == Kind::Signal && payload == [2] {
            interrupts += 1;
            if interrupts > PATIENT_INTERRUPTS {
                let error = anyhow::anyhow!("interrupted; the program may still run in the machine");
                return Err(Failure { code: code::INTERRUPTED, error });
            }
        }
        // A stream that is gone is told about by the one who listens, who may have an exit code to read still.
        if call::send(&mut to_guest, kind, &payload).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
