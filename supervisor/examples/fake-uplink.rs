//! `labyard-uplink` for tests: the conversation, and an end with its taps or the vmm, without namespaces and rules. A tap is one end of a
//! pair of sockets. Tables go to the log. A network whose name begins with `broken` has no way out.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use labyard_spec::uplink::{Answer, MAX_TABLE_BYTES, Table, Taken, UplinkSpec, fd};
use labyard_sys::exec::inherited;
use labyard_sys::message;
use rustix::event::{PollFd, PollFlags, poll};

fn main() {
    let mut text = String::new();
    File::from(inherited(fd::SPEC).expect("a spec")).read_to_string(&mut text).expect("text");
    let spec: UplinkSpec = serde_json::from_str(&text).expect("a spec");
    let vmm = inherited(fd::VMM).expect("the vmm");
    let answer = UnixStream::from(inherited(fd::ANSWER).expect("where to answer"));
    let listener = UnixListener::from(inherited(fd::TABLES).expect("a socket"));
    eprintln!("spec: {text}");
    let (kernel, taps): (Vec<_>, Vec<_>) = spec.networks.iter().map(|_| UnixStream::pair().expect("a pair")).unzip();
    let broken = spec.networks.iter().any(|network| network.name.starts_with("broken"));
    let said = if broken { Answer::Failed("nobody lets it out".into()) } else { Answer::Up("a fake".into()) };
    let taps: Vec<OwnedFd> = if broken { Vec::new() } else { taps.into_iter().map(OwnedFd::from).collect() };
    let beside: Vec<BorrowedFd<'_>> = taps.iter().map(AsFd::as_fd).collect();
    message::send(&answer, &serde_json::to_vec(&said).expect("JSON"), &beside).expect("answering");
    drop(beside);
    drop(taps);
    if broken {
        return;
    }
    loop {
        let sources = [vmm.as_fd(), listener.as_fd()].into_iter().chain(kernel.iter().map(AsFd::as_fd));
        let mut fds: Vec<_> = sources.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        poll(&mut fds, None).expect("waiting");
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] || ready[2..].iter().all(|gone| *gone) {
            return;
        }
        if ready[1] {
            let (stream, _) = listener.accept().expect("a caller");
            let (body, _) = message::recv(&stream, MAX_TABLE_BYTES).expect("a table").expect("a table");
            let table: Table = serde_json::from_slice(&body).expect("a table");
            eprintln!("table: {}", serde_json::to_string(&table).expect("JSON"));
            let taken: Taken = Ok(());
            message::send(&stream, &serde_json::to_vec(&taken).expect("JSON"), &[]).expect("answering");
        }
    }
}
