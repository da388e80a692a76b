//! What the fake agent does with connections and files: the same as the real one, on this host.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use labyard_archive::{MAX_BYTES, Packing, Unpacking};
use labyard_spec::agent::{Dial, Exit, Kind, Pack, Protocol, Unpack};

use super::{receive, send};

fn end(stream: &UnixStream, outcome: Result<(), String>) -> Option<()> {
    match outcome {
        Ok(()) => send(stream, Kind::Exit, &serde_json::to_vec(&Exit::Code(0)).expect("plain data")),
        Err(why) => send(stream, Kind::Error, why.as_bytes()),
    }
    // The caller closes first.
    while receive(stream).is_some() {}
    Some(())
}

pub(crate) fn dial(stream: &UnixStream, dial: &Dial) -> Option<()> {
    if dial.protocol == Protocol::Udp {
        return datagrams(stream, dial);
    }
    let socket = match TcpStream::connect((dial.host.as_str(), dial.port)) {
        Ok(socket) => socket,
        Err(error) => return end(stream, Err(error.to_string())),
    };
    let (listen, to) = (stream.try_clone().expect("a copy"), socket.try_clone().expect("a copy"));
    let inwards = thread::spawn(move || {
        while let Some((Kind::Stdin, bytes)) = receive(&listen) {
            if bytes.is_empty() {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            let _ = (&to).write_all(&bytes);
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 16 << 10];
    let outcome = loop {
        match (&socket).read(&mut buffer) {
            Ok(n) => {
                send(stream, Kind::Stdout, &buffer[..n]);
                if n == 0 {
                    break Ok(());
                }
            }
            Err(error) => break Err(error.to_string()),
        }
    };
    if outcome.is_ok() {
        inwards.join().expect("the other direction");
    }
    end(stream, outcome)
}

fn datagrams(stream: &UnixStream, dial: &Dial) -> Option<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(("127.0.0.1", dial.port)).expect("an address");
    let (from, to) = (socket.try_clone().expect("a copy"), stream.try_clone().expect("a copy"));
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n) = from.recv(&mut buffer) {
            send(&to, Kind::Stdout, &buffer[..n]);
        }
    });
    while let Some((Kind::Stdin, bytes)) = receive(stream) {
        let _ = socket.send(&bytes);
    }
    Some(())
}

struct Frames<'a>(&'a UnixStream, Vec<u8>);

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = &bytes[..bytes.len().min(60_000)];
        if !now.is_empty() {
            send(self.0, Kind::Stdout, now);
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Frames<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.1.is_empty() {
            match receive(self.0) {
                Some((Kind::Stdin, bytes)) => self.1 = bytes,
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let n = self.1.as_slice().read(into)?;
        self.1.drain(..n);
        Ok(n)
    }
}

/// A path that ends in `hostile.tar` is sent as it is, so that a test can play a guest that lies.
pub(crate) fn pack(stream: &UnixStream, asked: &Pack) -> Option<()> {
    let path = std::path::Path::new(&asked.path);
    if asked.path.ends_with("hostile.tar") {
        let outcome = std::fs::read(path).and_then(|bytes| Frames(stream, Vec::new()).write_all(&bytes));
        return end(stream, outcome.map_err(|error| error.to_string()));
    }
    let how = Packing { follow: asked.follow, specials: asked.archive, ..Packing::default() };
    let packed = labyard_archive::pack(path, &how, Frames(stream, Vec::new()), &mut |_| {});
    end(stream, packed.map(|_| ()).map_err(|error| error.to_string()))
}

pub(crate) fn unpack(stream: &UnixStream, asked: &Unpack) -> Option<()> {
    let outcome = labyard_archive::place(asked.path.as_ref()).map_err(|error| format!("{}: {error}", asked.path));
    let outcome = outcome.and_then(|(folder, rename)| {
        let how = Unpacking { rename, owners: asked.archive, devices: false, umask: 0, max_bytes: MAX_BYTES };
        labyard_archive::unpack(Frames(stream, Vec::new()), folder.as_fd(), &how).map_err(|error| error.to_string())
    });
    end(stream, outcome.map(|_| ()))
}

/// Not an archive, but what would be one. Of a machine whose name begins with `endless` it never ends, of one with `cut` in the middle.
pub(crate) fn bake(stream: &UnixStream, machine: &str, serial: &str) -> Option<()> {
    let piece = format!("drive {serial} of {machine}\n");
    let mut frames = Frames(stream, Vec::new());
    while machine.starts_with("endless") {
        frames.write_all(piece.as_bytes()).ok()?;
    }
    frames.write_all(piece.as_bytes()).ok()?;
    match machine.starts_with("cut") {
        true => end(stream, Err("reading /baked/d00: it is broken".to_owned())),
        false => end(stream, Ok(())),
    }
}
