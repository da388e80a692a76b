//! Files, forwards, published ports and ssh, from the caller's side. The guests are fakes that do it all on this host.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::host::{Host, PATIENCE, Running, text, until};

fn host() -> Host {
    let host = Host::new();
    host.up("lab", &["web"]);
    host
}

/// A server that answers each connection with what it read, in capitals, once the asker has ended its direction.
fn shouting() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut asked = Vec::new();
                if stream.read_to_end(&mut asked).is_ok() {
                    let _ = stream.write_all(&asked.to_ascii_uppercase());
                }
            });
        }
    });
    port
}

/// A port that nobody has.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// Asks; the answer, once both directions have ended.
fn ask(port: u16, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(question)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

#[test]
fn files_go_into_a_machine_and_come_back_sparse_and_whole() {
    let host = host();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir_all(path("tree/inner")).expect("folders");
    fs::write(path("tree/inner/big"), vec![b'x'; 5 << 20]).expect("a file");
    fs::set_permissions(path("tree/inner/big"), fs::Permissions::from_mode(0o751)).expect("a mode");
    fs::File::create(path("tree/sparse")).and_then(|file| file.set_len(1 << 30)).expect("a file");
    symlink("inner/big", path("tree/link")).expect("a link");

    // In the fake, the machine's files are this host's.
    let (stdout, _) = host.expect(0, &["cp", "--json", &path("tree"), &format!("lab/web:{}", path("there"))]);
    let told: Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!((&told["entries"], &told["bytes"]), (&json!(5), &json!(5 << 20)));
    // Out of it comes nothing that the umask takes away.
    let out = |umask: &str, to: &str| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_labyard"), "cp"]);
        shell.args([format!("web:{}", path("there")), path(to)]);
        let plain = host.command(&[]);
        shell.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
        assert!(shell.status().expect("it starts").success());
    };
    out("077", "strict");
    for (name, mode) in [("strict", 0o700), ("strict/inner/big", 0o700), ("strict/sparse", 0o600)] {
        assert_eq!(fs::metadata(path(name)).expect("a file").mode() & 0o777, mode, "{name}");
    }
    out("022", "back");
    let back = fs::metadata(path("back/inner/big")).expect("a file");
    assert_eq!((back.len(), back.mode() & 0o777), (5 << 20, 0o751));
    let sparse = fs::metadata(path("back/sparse")).expect("a file");
    assert!(sparse.len() == 1 << 30 && sparse.blocks() < 100, "{}", sparse.blocks());
    assert_eq!(fs::read_link(path("back/link")).expect("a link").to_str(), Some("inner/big"));

    // A stream is a tar on standard output and input.
    let output = host.run(&["cp", &format!("web:{}", path("back/inner")), "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    fs::create_dir(path("from-stream")).expect("a folder");
    let mut child = host
        .command(&["cp", "-", &format!("web:{}", path("from-stream"))])
        .stdin(Stdio::piped())
        .spawn()
        .expect("labyard starts");
    child.stdin.take().expect("piped").write_all(&output.stdout).expect("writing");
    assert!(child.wait().expect("waiting").success());
    assert_eq!(fs::metadata(path("from-stream/inner/big")).expect("a file").len(), 5 << 20);
    host.expect(0, &["down"]);
}

#[test]
fn copies_that_cannot_be_made_say_which_side_and_why() {
    let host = host();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("file"), b"x").expect("a file");
    for (code, arguments, part) in [
        (2, ["cp", "a", "b"], "one side is a machine"),
        (2, ["cp", "lab/web:a", "lab/web:b"], "one side is a machine"),
        (2, ["cp", "lab/web:", "b"], "the path in the machine is missing"),
        (2, ["cp", "lab/none:/x", "b"], "no machine `none`"),
        (1, ["cp", &path("none"), "lab/web:/tmp"], "none"),
        (1, ["cp", &path("file"), &format!("lab/web:{}", path("no/such"))], "in the machine: "),
        (1, ["cp", &format!("lab/web:{}", path("none")), &path("new")], "in the machine: "),
        (1, ["cp", &format!("lab/web:{}", path("file")), &path("no/such")], "no/such"),
    ] {
        let (_, stderr) = host.expect(code, &arguments);
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
    // A machine that lies: a link, and a file through it.
    let mut hostile = Vec::new();
    {
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).expect("a folder");
        let tree = folder.path().join("make");
        fs::create_dir_all(tree.join("a")).expect("a folder");
        fs::write(tree.join("a/new"), b"x").expect("a file");
        let how = labyard_archive::Packing::default();
        let mut plain = Vec::new();
        labyard_archive::pack(&tree.join("a"), &how, &mut plain, &mut |_| {}).expect("packing");
        fs::remove_dir_all(tree.join("a")).expect("removing");
        symlink(&outside, tree.join("a")).expect("a link");
        labyard_archive::pack(&tree.join("a"), &how, &mut hostile, &mut |_| {}).expect("packing");
        // Without the two blocks of zeros that end the first, and without the folder that begins the second.
        hostile.truncate(hostile.len() - 1024);
        hostile.extend(&plain[512..]);
    }
    fs::write(path("hostile.tar"), &hostile).expect("a file");
    fs::create_dir(path("into")).expect("a folder");
    let (_, stderr) = host.expect(1, &["cp", &format!("lab/web:{}", path("hostile.tar")), &path("into")]);
    assert!(stderr.contains("through no link"), "{stderr}");
    assert_eq!(fs::read_dir(path("outside")).expect("listing").count(), 0);
    host.expect(0, &["down"]);
}

#[test]
fn a_forward_carries_both_directions_until_it_is_interrupted() {
    let host = host();
    let server = shouting();
    let local = free_port();
    let arguments = format!("{local}:localhost:{server}");
    let mut forward = Running::start(&mut host.command(&["port-forward", "lab/web", "-L", &arguments]));
    forward.wait_for(&format!("127.0.0.1:{local}/tcp -> web: localhost:{server}"));
    assert_eq!(ask(local, b"hello").expect("an answer"), b"HELLO");
    let askers: Vec<_> = (0..100_u32)
        .map(|number| std::thread::spawn(move || ask(local, format!("asker {number}").repeat(1000).as_bytes())))
        .collect();
    for (number, asker) in askers.into_iter().enumerate() {
        let answer = asker.join().expect("an asker").expect("an answer");
        assert!(answer == format!("ASKER {number}").repeat(1000).as_bytes(), "{number}: {} bytes", answer.len());
    }
    forward.signal(Signal::INT);
    assert_eq!(forward.end().0, Some(130));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, local)).is_err());
    host.expect(0, &["down"]);
}

#[test]
fn a_forward_to_nobody_is_reset_and_said() {
    let host = host();
    let (local, nobody) = (free_port(), free_port());
    let arguments = format!("{local}:127.0.0.1:{nobody}");
    let mut forward = Running::start(&mut host.command(&["port-forward", "-p", "lab", "web", "-L", &arguments]));
    forward.wait_for("127.0.0.1");
    let error = ask(local, b"hello").expect_err("nobody is there");
    assert!(matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "{error}");
    forward.signal(Signal::INT);
    let (_, stderr) = forward.end();
    assert!(stderr.contains("refused"), "{stderr}");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken = format!("{}:localhost:1", taken.local_addr().expect("an address").port());
    let (_, stderr) = host.expect(2, &["port-forward", "lab/web", "-L", &taken]);
    assert!(stderr.contains("in use") || stderr.is_empty(), "{stderr}");
    host.expect(2, &["port-forward", "lab"]);
    host.expect(0, &["down"]);
}

#[test]
fn forwards_that_the_manifest_saves_are_carried_without_a_word() {
    let host = Host::new();
    let (server, local) = (shouting(), free_port());
    let path = host.manifest("lab", &["web"]);
    let mut manifest: Value = serde_json::from_str(&fs::read_to_string(&path).expect("the manifest")).expect("JSON");
    manifest["playground"]["portForwards"] = json!([{ "kind": "local", "machine": "web", "localPort": local, "remoteHost": "localhost", "remotePort": server }]);
    host.expect(0, &["up", &host.write_manifest("lab", &manifest)]);
    let mut forward = Running::start(&mut host.command(&["port-forward", "lab"]));
    forward.wait_for(&format!("127.0.0.1:{local}"));
    assert_eq!(ask(local, b"saved").expect("an answer"), b"SAVED");
    forward.signal(Signal::TERM);
    assert_eq!(forward.end().0, Some(130));
    host.expect(0, &["down"]);
}

#[test]
fn what_a_manifest_saves_beyond_this_host_is_opened_by_saved_alone() {
    let host = Host::new();
    let (server, local, wide, far) = (shouting(), free_port(), free_port(), free_port());
    let path = host.manifest("lab", &["web", "db"]);
    let mut manifest: Value = serde_json::from_str(&fs::read_to_string(&path).expect("the manifest")).expect("JSON");
    let to = |machine: &str, host: &str, port: u16| json!({ "kind": "local", "machine": machine, "localHost": host, "localPort": port, "remoteHost": "localhost", "remotePort": server });
    manifest["playground"]["portForwards"] = json!([
        to("web", "127.0.0.1", local),
        to("web", "*", wide),
        { "kind": "remote", "machine": "db", "localHost": "localhost", "localPort": server, "remoteHost": "127.0.0.1", "remotePort": far },
    ]);
    host.expect(0, &["up", &host.write_manifest("lab", &manifest)]);
    let mut forward = Running::start(&mut host.command(&["port-forward", "lab"]));
    forward.wait_for(&format!("127.0.0.1:{local}"));
    assert_eq!(ask(local, b"saved").expect("an answer"), b"SAVED");
    assert!(ask(wide, b"x").is_err() && ask(far, b"x").is_err());
    forward.signal(Signal::TERM);
    let (_, stderr) = forward.end();
    let lets_in =
        format!("not opened: *:{wide} -> web: localhost:{server}, for other hosts can connect to it; --saved");
    let lets_out = format!(
        "not opened: db: 127.0.0.1:{far} -> localhost:{server}, for it lets the machine connect from here; --saved"
    );
    assert!(stderr.contains(&lets_in) && stderr.contains(&lets_out), "{stderr}");
    let (_, stderr) = host.expect(2, &["port-forward", "lab/db"]);
    assert!(stderr.contains("nothing to forward without --saved"), "{stderr}");
    host.expect(2, &["port-forward", "lab/db", "--saved", "-L", "1:localhost:1"]);

    // The fake's agent does not listen, but it is asked to.
    let (_, stderr) = host.expect(1, &["port-forward", "lab/db", "--saved"]);
    assert!(!stderr.contains("not opened") && !stderr.contains("nothing to forward"), "{stderr}");
    let mut forward = Running::start(&mut host.command(&["port-forward", "lab/web", "--saved"]));
    forward.wait_for(&format!("0.0.0.0:{wide}"));
    for port in [local, wide] {
        assert_eq!(ask(port, b"all").expect("an answer"), b"ALL");
    }
    forward.signal(Signal::TERM);
    forward.end();
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_published_port_answers_also_under_the_next_supervisor() {
    let host = Host::new();
    let (server, first, second) = (shouting(), free_port(), free_port());
    let manifest = host.manifest("lab", &["web"]);
    host.expect(0, &["up", &manifest, "--publish", &format!("{first}:web:{server}")]);
    assert_eq!(ask(first, b"up").expect("an answer"), b"UP");
    host.expect(0, &["publish", "lab/web", &format!("{second}:{server}")]);
    host.expect(0, &["publish", "lab/web", &format!("{second}:{server}")]);
    assert_eq!(ask(second, b"later").expect("an answer"), b"LATER");

    let supervisor = host.ps()["supervisor_pid"].as_i64().expect("a pid") as i32;
    super::host::kill(supervisor, Signal::KILL);
    until("the next command's supervisor has them", || host.ps()["standing"] == "running" && ask(first, b"x").is_ok());
    assert_eq!(ask(second, b"again").expect("an answer"), b"AGAIN");

    let (stdout, _) = host.expect(0, &["publish", "lab", "--json"]);
    let told: Value = serde_json::from_str(&stdout).expect("one document");
    let ports: Vec<_> =
        told["ports"].as_array().expect("ports").iter().map(|port| port["host_port"].as_u64()).collect();
    assert_eq!(ports.len(), 2);
    assert!(ports.contains(&Some(first.into())) && ports.contains(&Some(second.into())), "{stdout}");
    host.expect(0, &["publish", "lab/web", &format!("{first}:{server}"), "--off"]);
    assert!(ask(first, b"x").is_err());
    host.expect(2, &["publish", "lab/web", &format!("{first}:{server}"), "--off"]);
    host.expect(0, &["down"]);
    assert!(ask(second, b"x").is_err());
    host.assert_clean();
}

#[test]
fn ports_that_cannot_be_published_are_refused_before_anything_is_made() {
    let host = Host::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken = taken.local_addr().map(|at| (at.port(), taken)).expect("an address");
    let manifest = host.manifest("lab", &["web"]);
    for (wanted, part) in [
        (format!("{}:web:80", taken.0), "in use"),
        ("8080:none:80".to_owned(), "no machine `none`"),
        ("8080:web".to_owned(), "8080:web:80"),
    ] {
        let (_, stderr) = host.expect(2, &["up", &manifest, "--publish", &wanted]);
        assert!(stderr.contains(part), "{stderr}");
        assert!(!host.lab("lab").exists());
    }
    host.up("lab", &["web"]);
    let (_, stderr) = host.expect(2, &["publish", "lab/web", &format!("{}:80", taken.0)]);
    assert!(stderr.contains("in use"), "{stderr}");
    host.expect(0, &["down"]);
}

#[test]
fn datagrams_are_published_too() {
    let host = host();
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let port = server.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = server.recv_from(&mut buffer) {
            let _ = server.send_to(&buffer[..n].to_ascii_uppercase(), from);
        }
    });
    let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port").port();
    host.expect(0, &["publish", "web", &format!("{own}:{port}/udp")]);
    // Two senders, each with its own answers.
    for word in ["one", "two"] {
        let asker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        asker.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        asker.send_to(word.as_bytes(), (Ipv4Addr::LOCALHOST, own)).expect("sending");
        let mut answer = [0; 16];
        let n = asker.recv(&mut answer).expect("an answer");
        assert_eq!(text(&answer[..n]), word.to_uppercase());
    }
    host.expect(0, &["down"]);
}

#[test]
fn ssh_is_given_a_key_a_config_and_nothing_to_ask() {
    let host = host();
    let bin = tempfile::tempdir().expect("a folder");
    let script = "#!/bin/sh\nprintf '%s\\n' \"$@\"\n";
    fs::write(bin.path().join("ssh"), script).expect("a program");
    fs::set_permissions(bin.path().join("ssh"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").unwrap_or_default());
    let ssh = |arguments: &[&str]| {
        let output = host.command(arguments).env("PATH", &path).output().expect("labyard starts");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, said, stderr) = ssh(&["ssh", "lab/web", "-l", "ann", "--", "uptime", "-p"]);
    assert_eq!(code, Some(0), "{stderr}");
    let config = host.lab("lab").join("ssh/config");
    let wanted = format!("-F\n{}\n-l\nann\nweb.lab\n--\nuptime\n-p\n", config.display());
    assert_eq!(said, wanted);
    let key = fs::metadata(host.lab("lab").join("ssh/id_ed25519")).expect("a key");
    assert_eq!(key.mode() & 0o777, 0o600);
    let (stdout, _) = host.expect(0, &["ssh-config", "lab"]);
    assert!(stdout.contains("Host web.lab\n  User root\n") && stdout.contains("StrictHostKeyChecking yes"), "{stdout}");
    // A real client understands it.
    let shown = std::process::Command::new("ssh").arg("-G").arg("-F").arg(&config).arg("web.lab").output();
    let shown = text(&shown.expect("openssh-client").stdout);
    assert!(shown.contains("hostkeyalias web.lab\n") && shown.contains("ssh-proxy lab web %r\n"), "{shown}");
    host.expect(0, &["down"]);
    host.assert_clean();
}
