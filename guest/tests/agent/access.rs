//! Connections, files and control groups, from the caller's side.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use labyard_archive::{MAX_BYTES, Packing, Unpacking, pack, unpack};
use labyard_guest::agent::Agent;
use labyard_spec::agent::{Arrival, Dial, Exit, Kind, Listen, Pack, Protocol, Request, Unpack};

use super::{Caller, End, PATIENCE, agent, program, shell, text};

fn dial(agent: &Arc<Agent>, protocol: Protocol, host: &str, port: u16) -> Caller {
    Caller::ask(agent, &Request::Dial(Dial { protocol, host: host.to_owned(), port }))
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

fn taken(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    stream.set_write_timeout(Some(PATIENCE)).expect("a deadline");
    stream
}

fn reset(stream: &TcpStream) {
    let at_once = Some(std::time::Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(stream, at_once).expect("an option");
}

#[test]
fn each_direction_of_a_connection_ends_by_itself() {
    let (listener, port) = listener();
    let agent = Arc::new(agent(None));
    for caller_first in [true, false] {
        let caller = dial(&agent, Protocol::Tcp, "localhost", port);
        let mut other = taken(&listener);
        if !caller_first {
            other.write_all(b"all there is").expect("sending");
            other.shutdown(std::net::Shutdown::Write).expect("half a close");
            assert_eq!(caller.frame(), Some((Kind::Stdout, b"all there is".to_vec())));
            assert_eq!(caller.frame(), Some((Kind::Stdout, Vec::new())));
        }
        caller.send(Kind::Stdin, b"a question");
        caller.send(Kind::Stdin, b"");
        let mut heard = Vec::new();
        other.read_to_end(&mut heard).expect("reading");
        assert_eq!(text(&heard), "a question");
        if caller_first {
            other.write_all(&vec![b'x'; 300_000]).expect("sending");
            drop(other);
            let outcome = caller.finish();
            assert_eq!((outcome.stdout.len(), outcome.end), (300_000, End::Exit(Exit::Code(0))));
        } else {
            assert_eq!(caller.finish().end, End::Exit(Exit::Code(0)));
        }
    }
}

#[test]
fn a_reset_is_a_reset_on_the_other_side() {
    let (listener, port) = listener();
    let agent = Arc::new(agent(None));
    let caller = dial(&agent, Protocol::Tcp, "127.0.0.1", port);
    let other = taken(&listener);
    reset(&other);
    drop(other);
    assert!(matches!(caller.finish().end, End::Error(why) if why.contains("reset")));

    // Many times, because a caller may also hang up before the agent has seen that it is connected.
    for _ in 0..50 {
        let caller = dial(&agent, Protocol::Tcp, "127.0.0.1", port);
        let mut other = taken(&listener);
        let Caller { stream, agent: thread } = caller;
        drop(stream);
        thread.join().expect("the agent's thread");
        let error = other.read(&mut [0]).expect_err("no orderly end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn who_cannot_be_reached_is_named() {
    let (listener, port) = listener();
    drop(listener);
    let agent = Arc::new(agent(None));
    for (host, part) in [("127.0.0.1", "refused"), ("nobody.invalid", "nobody.invalid"), ("a b", "no host name")] {
        match dial(&agent, Protocol::Tcp, host, port).finish().end {
            End::Error(why) => assert!(why.contains(part), "{host}: {why}"),
            other => panic!("{host}: {other:?}"),
        }
    }
}

#[test]
fn a_reader_that_stands_still_holds_up_only_its_own_connection() {
    let (listener, port) = listener();
    let agent = Arc::new(agent(None));
    let slow = dial(&agent, Protocol::Tcp, "127.0.0.1", port);
    let mut slow_other = taken(&listener);
    let writer = std::thread::spawn(move || {
        slow_other.write_all(&vec![b'x'; 8 << 20]).expect("sending");
    });
    let quick = dial(&agent, Protocol::Tcp, "127.0.0.1", port);
    let mut quick_other = taken(&listener);
    quick.send(Kind::Stdin, b"ping");
    let mut heard = [0; 4];
    quick_other.read_exact(&mut heard).expect("reading");
    assert_eq!(&heard, b"ping");
    slow.send(Kind::Stdin, b"");
    let outcome = slow.finish();
    writer.join().expect("the writer");
    assert_eq!((outcome.stdout.len(), outcome.end), (8 << 20, End::Exit(Exit::Code(0))));
}

#[test]
fn datagrams_keep_their_bounds() {
    let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    other.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    let agent = Arc::new(agent(None));
    let caller = dial(&agent, Protocol::Udp, "127.0.0.1", other.local_addr().expect("an address").port());
    let mut datagram = vec![0; 65_536];
    for size in [5, 0, 30_000] {
        caller.send(Kind::Stdin, &vec![b'q'; size]);
        let (len, from) = other.recv_from(&mut datagram).expect("a datagram");
        assert_eq!(len, size);
        other.send_to(&vec![b'a'; size + 1], from).expect("sending");
        assert_eq!(caller.frame(), Some((Kind::Stdout, vec![b'a'; size + 1])));
    }
    let Caller { stream, agent: thread } = caller;
    drop(stream);
    thread.join().expect("it ends with its caller");
}

fn arrival(caller: &Caller) -> Arrival {
    match caller.frame() {
        Some((Kind::Stdout, json)) => serde_json::from_slice(&json).expect("an arrival"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn connections_to_a_port_of_the_guest_are_told_of_and_carried() {
    let agent = Arc::new(agent(None));
    let listening =
        Caller::ask(&agent, &Request::Listen(Listen { protocol: Protocol::Tcp, host: String::new(), port: 0 }));
    let Arrival::Listening(port) = arrival(&listening) else { panic!("it listens first") };
    let mut first = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connecting");
    first.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    let Arrival::Connection(id) = arrival(&listening) else { panic!("somebody has come") };
    let carried = Caller::ask(&agent, &Request::Accept { id });
    first.write_all(b"knock").expect("sending");
    assert_eq!(carried.frame(), Some((Kind::Stdout, b"knock".to_vec())));
    carried.send(Kind::Stdin, b"enter");
    let mut heard = [0; 5];
    first.read_exact(&mut heard).expect("reading");
    assert_eq!(&heard, b"enter");
    assert!(
        matches!(Caller::ask(&agent, &Request::Accept { id }).finish().end, End::Error(why) if why.contains("waits"))
    );

    // Nobody takes the second one, and it goes with its listener.
    let mut second = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connecting");
    let Arrival::Connection(id) = arrival(&listening) else { panic!("somebody has come") };
    let Caller { stream, agent: thread } = listening;
    drop(stream);
    thread.join().expect("the agent's thread");
    assert!(matches!(Caller::ask(&agent, &Request::Accept { id }).finish().end, End::Error(_)));
    assert!(second.read(&mut [0]).map_or(true, |n| n == 0));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    drop(carried.stream);
    carried.agent.join().expect("the agent's thread");
}

#[test]
fn each_sender_of_datagrams_to_a_port_of_the_guest_is_a_connection() {
    let agent = Arc::new(agent(None));
    let listening =
        Caller::ask(&agent, &Request::Listen(Listen { protocol: Protocol::Udp, host: String::new(), port: 0 }));
    let Arrival::Listening(port) = arrival(&listening) else { panic!("it listens first") };
    let sender = || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        socket.connect((Ipv4Addr::LOCALHOST, port)).expect("connecting");
        socket.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        socket
    };
    // A burst before anybody has asked for it is one connection, and none of it is lost.
    let first = sender();
    for word in ["one", "two", "three"] {
        first.send(word.as_bytes()).expect("sending");
    }
    let Arrival::Connection(id) = arrival(&listening) else { panic!("somebody has come") };
    let carried = Caller::ask(&agent, &Request::Accept { id });
    for word in ["one", "two", "three"] {
        assert_eq!(carried.frame(), Some((Kind::Stdout, word.into())));
    }
    let other = sender();
    other.send(b"four").expect("sending");
    let Arrival::Connection(id) = arrival(&listening) else { panic!("another has come") };
    let others = Caller::ask(&agent, &Request::Accept { id });
    assert_eq!(others.frame(), Some((Kind::Stdout, b"four".to_vec())));
    for (caller, socket, word) in [(&carried, &first, "answer"), (&others, &other, "another")] {
        caller.send(Kind::Stdin, word.as_bytes());
        let mut heard = [0; 16];
        let len = socket.recv(&mut heard).expect("an answer");
        assert_eq!(&heard[..len], word.as_bytes());
        // What comes later comes the same way, empty ones too.
        socket.send(b"").expect("sending");
        assert_eq!(caller.frame(), Some((Kind::Stdout, Vec::new())));
    }
    // Hung up on, a sender that goes on is a new connection.
    drop(carried.stream);
    carried.agent.join().expect("the agent's thread");
    first.send(b"again").expect("sending");
    let Arrival::Connection(id) = arrival(&listening) else { panic!("it has come again") };
    let again = Caller::ask(&agent, &Request::Accept { id });
    assert_eq!(again.frame(), Some((Kind::Stdout, b"again".to_vec())));
    for caller in [again, others, listening] {
        drop(caller.stream);
        caller.agent.join().expect("the agent's thread");
    }
}

#[test]
fn three_hundred_connections_at_once_are_carried_apart() {
    let (listener, port) = listener();
    let agent = Arc::new(agent(None));
    let mut open = Vec::new();
    for number in 0..300_u32 {
        let caller = dial(&agent, Protocol::Tcp, "127.0.0.1", port);
        open.push((number, caller, taken(&listener)));
    }
    for (number, caller, _) in &open {
        caller.send(Kind::Stdin, &number.to_le_bytes());
    }
    for (number, caller, mut other) in open {
        let mut heard = [0; 4];
        other.read_exact(&mut heard).expect("reading");
        assert_eq!(u32::from_le_bytes(heard), number);
        other.write_all(&heard).expect("sending");
        drop(other);
        caller.send(Kind::Stdin, b"");
        let outcome = caller.finish();
        assert_eq!((outcome.stdout, outcome.end), (heard.to_vec(), End::Exit(Exit::Code(0))));
    }
}

#[test]
fn files_go_in_and_come_out_as_they_were() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("tree/inner")).expect("folders");
    std::fs::write(path("tree/inner/big"), vec![b'x'; 3 << 20]).expect("a file");
    let sparse = std::fs::File::create(path("tree/sparse")).expect("a file");
    sparse.set_len(1 << 30).expect("a length");
    let agent = Arc::new(agent(None));
    let from = path("tree").display().to_string();
    let caller = Caller::ask(&agent, &Request::Pack(Pack { path: from, follow: false, archive: false }));
    let sent = caller.finish();
    assert_eq!(sent.end, End::Exit(Exit::Code(0)));
    assert!(sent.stdout.len() < 4 << 20, "{}", sent.stdout.len());

    let to = path("copy").display().to_string();
    let caller = Caller::ask(&agent, &Request::Unpack(Unpack { path: to, archive: false }));
    for part in sent.stdout.chunks(60_000) {
        caller.send(Kind::Stdin, part);
    }
    caller.send(Kind::Stdin, b"");
    assert_eq!(caller.finish().end, End::Exit(Exit::Code(0)));
    assert_eq!(std::fs::read(path("copy/inner/big")).expect("a file").len(), 3 << 20);
    let sparse = std::fs::metadata(path("copy/sparse")).expect("a file");
    assert!(sparse.len() == 1 << 30 && sparse.blocks() < 100, "{} blocks", sparse.blocks());
}

#[test]
fn copies_that_cannot_be_made_say_why_and_one_that_is_cut_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = folder.path().join("no/such").display().to_string();
    let agent = Arc::new(agent(None));
    let pack_it = Request::Pack(Pack { path: nowhere.clone(), follow: false, archive: false });
    let unpack_it = Request::Unpack(Unpack { path: nowhere.clone(), archive: false });
    for request in [pack_it, unpack_it] {
        match Caller::ask(&agent, &request).finish().end {
            End::Error(why) => assert!(why.contains("no/such"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    std::fs::write(folder.path().join("file"), vec![b'x'; 1 << 20]).expect("a file");
    let mut archive = Vec::new();
    pack(&folder.path().join("file"), &Packing::default(), &mut archive, &mut |_| {}).expect("packing");
    std::fs::create_dir(folder.path().join("to")).expect("a folder");
    let to = folder.path().join("to").display().to_string();
    let caller = Caller::ask(&agent, &Request::Unpack(Unpack { path: to, archive: false }));
    caller.send(Kind::Stdin, &archive[..50_000]);
    let Caller { stream, agent: thread } = caller;
    drop(stream);
    thread.join().expect("the agent's thread");
    assert_eq!(std::fs::read_dir(folder.path().join("to")).expect("listing").count(), 0);
    // The same is whole where the caller stays.
    let how = Unpacking { rename: None, owners: false, devices: false, umask: 0, max_bytes: MAX_BYTES };
    let to = std::fs::File::open(folder.path().join("to")).expect("a folder");
    unpack(archive.as_slice(), to.as_fd(), &how).expect("unpacking");
}

#[test]
fn a_program_has_a_control_group_of_its_own_which_goes_with_it() {
    // Control groups as the kernel shows them, so far as a program meets them: a folder with `cgroup.procs`.
    let cgroup = tempfile::tempdir().expect("a folder");
    std::fs::write(cgroup.path().join("cgroup.procs"), "").expect("a file");
    let with_groups = Agent { groups: Some(cgroup.path().join("labyard")), ..agent(None) };
    let with_groups = Arc::new(with_groups);
    let script = format!(
        "ls {}; cat {}/*/cgroup.procs",
        cgroup.path().join("labyard").display(),
        cgroup.path().join("labyard").display()
    );
    let caller = Caller::ask(&with_groups, &Request::Exec(shell(&script)));
    let outcome = caller.finish();
    // In a real control group the file reads back as process ids.
    assert_eq!(text(&outcome.stdout), "call-0\n0", "{}", text(&outcome.stderr));
    let nowhere = Arc::new(Agent { groups: Some("/no/such/cgroup/labyard".into()), ..agent(None) });
    assert_eq!(Caller::ask(&nowhere, &Request::Exec(program(&["true"]))).finish().end, End::Exit(Exit::Code(0)));
}
