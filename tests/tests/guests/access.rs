//! The ways into a machine that has no network at all: programs on terminals, files, connections, ssh. And what init has prepared.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::{self, Traces};
use crate::lab::{self, Lab};

const NAME: &str = "access";
const MACHINES: &str = "    - name: web
      users: [{name: root, welcome: 'Data lies on /data.'}]
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}, {mount: /data, size: 64MiB, filesystem: ext4}]
      network: {interfaces: [{network: local}]}
      resources: {cpuCount: 1, ramSize: 512MiB}
      startupFiles:
        - {path: /etc/app/secret, content: \"hush\\n\", owner: 'nobody:nogroup', mode: '640'}
        - {path: /etc/hosts.allow, content: \"# one more\\n\", append: true}
        - {path: /data/seed, content: \"on the drive\\n\"}
";
/// Emulation is slow.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_machine_is_reached_without_a_network() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), NAME, MACHINES)?;
    {
        let mut lab = Lab::new(NAME);
        lab.up(&manifest)?;
        lab.check("init has written files, greeting and fstab", prepared);
        lab.check("a program on a terminal, in a control group of its own", on_a_terminal);
        lab.check("two at a console type and see", |lab| consoles(lab, folder.path()));
        lab.check("files go in and come out, links and holes as they were", |lab| copies(lab, folder.path()));
        lab.check("a forward carries both directions to their ends", forward);
        lab.check("a port of the machine leads to the host", remote_forward);
        lab.check("published ports answer, datagrams too", published);
        lab.check("OpenSSH comes in, and scp", |lab| ssh(lab, folder.path()));
        lab.check("the journal is read", journal);
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

fn shell(lab: &Lab, script: &str) -> Result<String> {
    Ok(lab.exec("web", &["sh", "-c", script])?.expect(0)?.text())
}

fn prepared(lab: &Lab) -> Result<()> {
    let script = "stat -c '%a %U:%G' /etc/app/secret; cat /etc/app/secret; tail -n 1 /etc/hosts.allow; cat /data/seed /etc/motd; \
        grep ' /data ' /etc/fstab; umount /data && mount /data && cat /data/seed";
    let said = shell(lab, script)?;
    let wanted = "640 nobody:nogroup\nhush\n# one more\non the drive\nData lies on /data.\n/dev/vdb /data ext4 defaults,nofail 0 0\non the drive\n";
    ensure!(said == wanted, "{said}");
    Ok(())
}

fn on_a_terminal(lab: &Lab) -> Result<()> {
    // A machine is ready before its init has mounted anything; and when systemd sets up its groups, it removes those that are empty.
    let started =
        || Ok((lab.exec("web", &["systemctl", "is-active", "--quiet", "sysinit.target"])?.code == 0).then_some(()));
    host::wait_for("control groups of the guest's init", PATIENCE, started, || lab.words())?;
    let script = "stty size; tty; cat /proc/self/cgroup; read -r word; echo got $word; exit 7";
    let mut command =
        host::labyard(&["exec", "-it", "access/web", "-e", "A=b", "-w", "/tmp", "--", "sh", "-c", script])?;
    command.env("TERM", "xterm");
    let said = host::run_with(command, b"word\n")?.expect(7)?.text();
    for part in ["24 80", "/dev/pts/", "0::/labyard/call-", "got word"] {
        ensure!(said.contains(part), "no `{part}` in {said}");
    }
    Ok(())
}

/// Two at one console: what one types is read in the machine, and both see what is printed there.
fn consoles(lab: &Lab, folder: &Path) -> Result<()> {
    let script = "systemctl mask --runtime --now serial-getty@hvc0.service; exec 3<>/dev/hvc0; touch /run/listens; \
                  read -r word <&3; echo heard $word >&3";
    let (_reads, _) = Running::start(&["exec", "access/web", "--", "sh", "-c", script])?;
    let listens = || Ok((lab.exec("web", &["test", "-e", "/run/listens"])?.code == 0).then_some(()));
    host::wait_for("somebody who reads", PATIENCE, listens, || lab.words())?;
    let seen = [folder.join("one"), folder.join("two")];
    let mut watchers = Vec::new();
    for path in &seen {
        let mut command = host::labyard(&["console", "access/web"])?;
        let child = command.stdin(Stdio::piped()).stdout(fs::File::create(path)?).stderr(Stdio::null()).spawn()?;
        watchers.push(Running(child));
    }
    let keys = watchers.first_mut().and_then(|one| one.0.stdin.as_mut()).context("its standard input")?;
    keys.write_all(b"a word\n")?;
    for path in &seen {
        let text = || Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned());
        let heard = || Ok(text()?.contains("heard a word").then_some(()));
        host::wait_for("the answer", PATIENCE, heard, || {
            text().unwrap_or_else(|error: anyhow::Error| error.to_string())
        })?;
    }
    Ok(())
}

fn copies(lab: &Lab, folder: &Path) -> Result<()> {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("inner"))?;
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(tree.join("inner/big"), &content)?;
    let mut owner = (1234, 4321);
    let big = tree.join("inner/big");
    if std::os::unix::fs::chown(&big, Some(owner.0), Some(owner.1)).is_err() {
        // Who is not root gives nothing away; what is his stays his.
        let own = fs::metadata(&big)?;
        owner = (own.uid(), own.gid());
    }
    fs::File::create(tree.join("sparse"))?.set_len(1 << 30)?;
    let path = |path: &Path| path.to_str().map(str::to_owned).context("a path in UTF-8");
    host::run(&["cp", "-a", &path(&tree)?, "access/web:/srv"])?.expect(0)?;
    let said = shell(
        lab,
        "cd /srv/tree && stat -c '%u:%g %s' inner/big && stat -c '%s' sparse && du -k sparse && ln -s /etc/passwd inner/link",
    )?;
    ensure!(said.starts_with(&format!("{}:{} 3000000\n1073741824\n", owner.0, owner.1)), "{said}");
    let kib: u64 = said.split_whitespace().nth(3).and_then(|kib| kib.parse().ok()).context("du")?;
    ensure!(kib < 64, "the machine holds {kib} KiB of a hole");
    let back = folder.join("back");
    host::run(&["cp", "access/web:/srv/tree", &path(&back)?])?.expect(0)?;
    ensure!(fs::read(back.join("inner/big"))? == content, "other bytes came back");
    ensure!(fs::read_link(back.join("inner/link"))? == Path::new("/etc/passwd"));
    let sparse = fs::metadata(back.join("sparse"))?;
    ensure!(sparse.len() == 1 << 30 && sparse.blocks() < 200, "{} blocks", sparse.blocks());
    let tar = host::run(&["cp", "access/web:/srv/tree", "-"])?.expect(0)?;
    let mut list = Command::new("tar");
    list.args(["-t", "-f", "-"]);
    let list = host::run_with(list, &tar.stdout)?.expect(0)?.text();
    ensure!(list.contains("tree/inner/big\n"), "{list}");
    Ok(())
}

/// A command of ours that runs; ended by its id when dropped.
struct Running(Child);

impl Running {
    fn start(arguments: &[&str]) -> Result<(Self, BufReader<std::process::ChildStdout>)> {
        let mut child = host::labyard(arguments)?.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("its standard output")?);
        Ok((Self(child), lines))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = host::signal(self.0.id(), "INT");
        let _ = host::reap(&mut self.0);
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A server in the machine that says `answer` and tells what it was asked, once; started and seen to listen.
fn server(lab: &Lab, port: u16, options: &str) -> Result<(Running, BufReader<std::process::ChildStdout>)> {
    let script = format!("echo answer | nc {options} -l 127.0.0.1 {port}");
    let server = Running::start(&["exec", "access/web", "--", "sh", "-c", &script])?;
    let look = || Ok(shell(lab, "ss -Hlntu")?.contains(&format!(":{port} ")).then_some(()));
    host::wait_for(&format!("port {port}"), PATIENCE, look, || lab.words())?;
    Ok(server)
}

fn ask(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"a question\n")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn asked_and_answered(lab: &Lab, inner: u16, outer: u16) -> Result<()> {
    let (_server, mut heard) = server(lab, inner, "-N")?;
    let answer = ask(outer)?;
    let mut question = String::new();
    heard.read_line(&mut question)?;
    ensure!((answer.as_str(), question.as_str()) == ("answer\n", "a question\n"), "{answer:?} {question:?}");
    Ok(())
}

fn forward(lab: &Lab) -> Result<()> {
    let port = free_port()?;
    let (_forward, mut lines) = Running::start(&["port-forward", "access/web", "-L", &format!("{port}:web:7000")])?;
    let mut line = String::new();
    lines.read_line(&mut line)?;
    ensure!(line.contains("web:7000"), "{line}");
    // The machine's name is its address on its network, where nobody listens.
    ensure!(ask(port).is_err(), "somebody answers");
    drop(_forward);
    let (_forward, mut lines) =
        Running::start(&["port-forward", "access/web", "-L", &format!("{port}:localhost:7001")])?;
    lines.read_line(&mut line)?;
    asked_and_answered(lab, 7001, port)
}

fn remote_forward(lab: &Lab) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let local = listener.local_addr()?.port();
    let (_forward, mut lines) =
        Running::start(&["port-forward", "access/web", "-R", &format!("7002:localhost:{local}")])?;
    let mut line = String::new();
    lines.read_line(&mut line)?;
    ensure!(line.contains("7002"), "{line}");
    let answering = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut asked = String::new();
        stream.read_to_string(&mut asked)?;
        stream.write_all(asked.to_uppercase().as_bytes())?;
        Ok(())
    });
    let said = shell(lab, "echo from the guest | nc -N 127.0.0.1 7002")?;
    ensure!(said == "FROM THE GUEST\n", "{said}");
    answering.join().map_err(|_| anyhow::anyhow!("the host's side panicked"))?
}

fn published(lab: &Lab) -> Result<()> {
    let port = free_port()?;
    host::run(&["publish", "access/web", &format!("{port}:7003")])?.expect(0)?;
    asked_and_answered(lab, 7003, port)?;
    let (_server, mut heard) = server(lab, 7004, "-u -W 1")?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    host::run(&["publish", "access/web", &format!("{port}:7004/udp")])?.expect(0)?;
    socket.send_to(b"a datagram\n", (Ipv4Addr::LOCALHOST, port))?;
    let mut line = String::new();
    heard.read_line(&mut line)?;
    ensure!(line == "a datagram\n", "{line:?}");
    Ok(())
}

fn ssh(lab: &Lab, folder: &Path) -> Result<()> {
    let said = host::run(&["ssh", "access/web", "--", "echo $SSH_CONNECTION; hostname; exit 9"])?.expect(9)?;
    ensure!(said.text().ends_with("web\n"), "{said:?}");
    let config = host::run(&["ssh-config", NAME, "--path"])?.expect(0)?.text();
    let file = folder.join("by scp");
    fs::write(&file, b"copied")?;
    let mut scp = Command::new("scp");
    scp.args(["-q", "-F", config.trim()]).arg(&file).arg("web.access:/tmp/by-scp");
    host::run_with(scp, &[])?.expect(0)?;
    ensure!(shell(lab, "cat /tmp/by-scp; grep -c labyard /root/.ssh/authorized_keys")? == "copied1\n");
    let known = host::given("LABYARD_HOME")?.join("playgrounds").join(NAME).join("ssh/known_hosts");
    ensure!(fs::read_to_string(known)?.lines().all(|line| line.starts_with("web.access ")));
    Ok(())
}

fn journal(_: &Lab) -> Result<()> {
    let said = host::run(&["journal", "access/web", "-n", "5", "--", "--output=cat"])?.expect(0)?;
    ensure!(said.text().lines().count() >= 5, "{said:?}");
    Ok(())
}
