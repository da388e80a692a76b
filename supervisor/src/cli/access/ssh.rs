//! OpenSSH into a machine: its own client here, its own server there, vsock in between.
//!
//! ```text
//!   labyard ssh ──exec──> ssh -F LAB/ssh/config web.lab ──ProxyCommand──> labyard ssh-proxy LAB web USER
//!                                                                          │ puts the lab's key into USER's authorized_keys
//!                                                                          │ writes the machine's host keys to LAB/ssh/known_hosts
//!                                                                          └ port 22 of the guest, else `sshd -i` there
//! ```
//!
//! ssh reads known_hosts when it has heard the server's first line, which comes through the proxy: by then the keys are there.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use labyard_spec::agent::{Exec, Exit, Kind, Protocol, Request};
use labyard_spec::guest::AGENT_PORT;
use labyard_spec::manifest::Manifest;
use labyard_supervisor::client::{self, Client, Stream};
use labyard_supervisor::home::{Folder, Home, make_folder, names};
use labyard_supervisor::words::printable;
use labyard_supervisor::{call, forward};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::naming::{self, Among};
use super::super::{Failure, Outcome, code, event_loop, output};
use super::args::{Ssh, SshConfig, SshProxy};

/// In a lab's folder.
const FOLDER: &str = "ssh";
const KEY: &str = "id_ed25519";
const KNOWN_HOSTS: &str = "known_hosts";
const CONFIG: &str = "config";
/// Another command may be making the same keys.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a machine's host keys.
const MAX_KEYS_BYTES: usize = 64 << 10;

/// Run as root in the machine: prints its host keys. Where the image has none it gets one, of the kind that takes no time to make.
const HOST_KEYS: &str = "command -v ssh-keygen >/dev/null || exit 72
cd /etc/ssh || exit 72
ls ssh_host_*_key >/dev/null 2>&1 || ssh-keygen -q -t ed25519 -N '' -f ssh_host_ed25519_key </dev/null >/dev/null
cat ssh_host_*_key.pub";
/// Run as the user: lets the lab's key in, once.
const LET_IN: &str = "umask 077
mkdir -p \"$HOME/.ssh\" && cd \"$HOME/.ssh\" && touch authorized_keys || exit 1
grep -qxF \"$LAB_KEY\" authorized_keys || printf '%s\\n' \"$LAB_KEY\" >> authorized_keys";
/// Run as root: one connection on its standard descriptors.
const SERVE: &str = "PATH=$PATH:/usr/sbin:/sbin
sshd=$(command -v sshd) || exit 72
mkdir -p /run/sshd && chmod 755 /run/sshd
exec \"$sshd\" -i";
/// What the scripts end with where the image has no OpenSSH.
const NO_SSH: u8 = 72;

pub(crate) fn ssh(home: &Home, asked: Ssh) -> Outcome {
    let (folder, machine) = naming::machine(home, &asked.machine, Among::Running)?;
    let logins = prepare(&folder)?;
    let login = logins.iter().find(|login| login.machine == machine).context("the machine is not in the manifest")?;
    if login.closed {
        return Err(Failure::input(format!(
            "machine `{machine}` has noSSH in the manifest; `labyard exec` runs programs in it"
        )));
    }
    let mut command = Command::new("ssh");
    command.arg("-F").arg(folder.file(FOLDER).join(CONFIG));
    if let Some(user) = asked.user {
        command.arg("-l").arg(user);
    }
    command.args(asked.options).arg(alias(&machine, &folder.name));
    if !asked.command.is_empty() {
        command.arg("--").args(asked.command);
    }
    let error = command.exec();
    Err(Failure { code: code::OWN, error: anyhow::Error::new(error).context("ssh (Debian: openssh-client)") })
}

pub(crate) fn config(home: &Home, asked: &SshConfig) -> Outcome {
    let folder = naming::lab_or_only(home, asked.name.as_deref())?.ok_or_else(|| Failure::input("no lab is there"))?;
    prepare(&folder)?;
    let path = folder.file(FOLDER).join(CONFIG);
    match asked.path {
        true => output::line(&path.display().to_string()),
        false => output::bytes(&std::fs::read(path)?),
    }
    Ok(0)
}

/// The folder with all of this.
fn inner(folder: &Folder) -> Folder {
    Folder { name: folder.name.clone(), path: folder.file(FOLDER) }
}

/// What a machine is called in the config.
fn alias(machine: &str, lab: &str) -> String {
    format!("{machine}.{lab}")
}

/// Who may come into a machine.
struct Login {
    machine: String,
    user: String,
    closed: bool,
}

fn logins(folder: &Folder) -> Result<Vec<Login>, Failure> {
    let text = folder.read(names::MANIFEST)?.context("the lab has no manifest")?;
    let manifest = Manifest::read(&String::from_utf8_lossy(&text), names::MANIFEST)?;
    let login = |machine: labyard_spec::manifest::lab::Machine| {
        let user = machine.users.first().map_or("root", |user| user.name.as_str()).to_owned();
        Login { machine: machine.name, user, closed: machine.no_ssh }
    };
    Ok(manifest.lab.machines.into_iter().map(login).collect())
}

/// The lab's key and its config.
fn prepare(folder: &Folder) -> Result<Vec<Login>, Failure> {
    let logins = logins(folder)?;
    let own = folder.file(FOLDER);
    let _lock = folder.lock(false, LOCK_PATIENCE)?.context("the lab is gone")?;
    make_folder(&own)?;
    if !own.join(KEY).exists() {
        make_key(&own, &folder.name)?;
    }
    let program = std::env::current_exe().context("the path of this program")?;
    let home = folder.path.ancestors().nth(2).unwrap_or(&folder.path);
    let text = config_text(&logins, &folder.name, &own, &program, home)?;
    inner(folder).write(CONFIG, text.as_bytes())?;
    Ok(logins)
}

fn make_key(own: &Path, lab: &str) -> Result<(), Failure> {
    // Half a key from one that was killed would be asked about.
    for name in [KEY.to_owned(), format!("{KEY}.pub")] {
        let _ = std::fs::remove_file(own.join(name));
    }
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", &format!("labyard-{lab}"), "-f"])
        .arg(own.join(KEY))
        .stdin(Stdio::null())
        .output()
        .context("ssh-keygen (Debian: openssh-client)")?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        return Err(anyhow::anyhow!("ssh-keygen ended with {}: {said}", made.status).into());
    }
    Ok(())
}

/// A word of ssh_config(5); one with a quote or a new line cannot be written.
fn quoted(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().filter(|text| !text.contains(['"', '\n', '%', '$']));
    Ok(format!(
        "\"{}\"",
        text.ok_or_else(|| Failure::input(format!("{}: ssh's config cannot name this path", path.display())))?
    ))
}

fn config_text(logins: &[Login], lab: &str, own: &Path, program: &Path, home: &Path) -> Result<String, Failure> {
    let (key, known) = (quoted(&own.join(KEY))?, quoted(&own.join(KNOWN_HOSTS))?);
    // The proxy's command goes through a shell.
    let shell = |path: &Path| -> Result<String, Failure> {
        let text = quoted(path)?;
        match text.contains(['`', '\\', '!']) {
            true => Err(Failure::input(format!("{text}: ssh's config cannot name this path"))),
            false => Ok(text),
        }
    };
    let mut text = format!("# The lab `{lab}`, written by labyard; made anew by `labyard ssh-config {lab}`.\n");
    for login in logins.iter().filter(|login| !login.closed) {
        let machine = &login.machine;
        text.push_str(&format!(
            "\nHost {alias}\n  User {user}\n  HostKeyAlias {alias}\n  IdentityFile {key}\n  IdentitiesOnly yes\n  \
             UserKnownHostsFile {known}\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  \
             ProxyCommand env LABYARD_HOME={home} {program} ssh-proxy {lab} {machine} %r\n",
            alias = alias(machine, lab),
            user = login.user,
            home = shell(home)?,
            program = shell(program)?,
        ));
    }
    Ok(text)
}

/// What ssh starts: one connection on standard input and output.
pub(crate) fn proxy(home: &Home, asked: &SshProxy) -> Outcome {
    let folder = naming::machine_of(home, &asked.lab, &asked.machine)?;
    let client = client::attach(&folder)?;
    let runtime = event_loop()?;
    let outcome = runtime.block_on(async {
        let machine = Guest { client, name: asked.machine.clone() };
        let own = folder.file(FOLDER);
        let key = std::fs::read_to_string(own.join(format!("{KEY}.pub")))
            .context("the lab's key: make it with `labyard ssh-config`")?;
        let host_keys = machine.script("root", HOST_KEYS, &[]).await?;
        learn(&folder, &asked.machine, &host_keys)?;
        machine.script(&asked.user, LET_IN, &[format!("LAB_KEY={}", key.trim())]).await?;
        connect(&machine).await
    });
    runtime.shutdown_background();
    outcome
}

/// Puts the host keys of a machine in place of those that were known.
fn learn(folder: &Folder, machine: &str, keys: &str) -> Result<(), Failure> {
    let alias = alias(machine, &folder.name);
    let _lock = Held::take(&folder.file(FOLDER))?;
    let known = inner(folder).read(KNOWN_HOSTS)?.unwrap_or_default();
    let known = String::from_utf8_lossy(&known).into_owned();
    let others = known.lines().filter(|line| line.split(' ').next() != Some(alias.as_str())).map(str::to_owned);
    let text: Vec<String> = others.chain(key_lines(&alias, keys)).map(|line| format!("{line}\n")).collect();
    if text.iter().all(|line| !line.starts_with(&format!("{alias} "))) {
        return Err(anyhow::anyhow!("machine `{machine}` has no host key").into());
    }
    inner(folder).write(KNOWN_HOSTS, text.concat().as_bytes())?;
    Ok(())
}

/// Lines of known_hosts (sshd(8)). The machine wrote the keys: only type and base64 pass, each of known characters.
fn key_lines(alias: &str, keys: &str) -> Vec<String> {
    let known = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-@.+/=".contains(&byte));
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (kind, key) = (words.next()?, words.next()?);
        let is_key = kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-");
        (is_key && known(kind) && known(key)).then(|| format!("{alias} {kind} {key}"))
    };
    keys.lines().filter_map(line).take(16).collect()
}

/// Several connections at once write one file in turns.
struct Held(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] std::fs::File);

impl Held {
    fn take(own: &PathBuf) -> std::io::Result<Self> {
        let folder = std::fs::File::open(own)?;
        rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(Self(folder))
    }
}

struct Guest {
    client: Client,
    name: String,
}

impl Guest {
    async fn call(&self, request: &Request) -> Result<Stream, Failure> {
        let mut stream = self.client.connect(&self.name, AGENT_PORT).await?;
        call::send(&mut stream, Kind::Request, &serde_json::to_vec(request)?).await?;
        Ok(stream)
    }

    fn shell(user: &str, script: &str, env: &[String]) -> Request {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        Request::Exec(Exec { argv, env: env.to_vec(), working_dir: None, user: Some(user.to_owned()), tty: None })
    }

    /// What a script prints; it has to succeed.
    async fn script(&self, user: &str, script: &str, env: &[String]) -> Result<String, Failure> {
        let mut stream = self.call(&Self::shell(user, script, env)).await?;
        call::send(&mut stream, Kind::Stdin, &[]).await?;
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        loop {
            match call::receive(&mut stream).await? {
                Some((Kind::Stdout, bytes)) if said.len() + bytes.len() <= MAX_KEYS_BYTES => said.extend(bytes),
                Some((Kind::Stderr, bytes)) if complained.len() + bytes.len() <= MAX_KEYS_BYTES => {
                    complained.extend(bytes)
                }
                Some((Kind::Stdout | Kind::Stderr, _)) => {}
                Some((Kind::Exit, json)) => match serde_json::from_slice(&json)? {
                    Exit::Code(0) => return Ok(String::from_utf8_lossy(&said).into_owned()),
                    Exit::Code(NO_SSH) => return Err(self.without_ssh()),
                    _ => {
                        let why = printable(String::from_utf8_lossy(&complained).trim());
                        return Err(anyhow::anyhow!("machine `{}`, user {user}: {why}", self.name).into());
                    }
                },
                Some((Kind::Error, text)) => {
                    return Err(anyhow::Error::msg(printable(&String::from_utf8_lossy(&text))).into());
                }
                _ => return Err(anyhow::anyhow!("machine `{}`: its agent went away", self.name).into()),
            }
        }
    }

    fn without_ssh(&self) -> Failure {
        Failure::input(format!(
            "the image of machine `{}` has no OpenSSH server (Debian: openssh-server); `labyard exec` runs programs in it",
            self.name
        ))
    }
}

/// Carries the connection: to the sshd that listens, else to one of its own.
async fn connect(guest: &Guest) -> Outcome {
    let stream = guest.call(&forward::dial(Protocol::Tcp, "127.0.0.1", 22)).await?;
    // A server speaks first (RFC 4253, 4.2), so an answer tells whether there is one.
    let (mut from_guest, to_guest) = tokio::io::split(stream);
    match call::receive(&mut from_guest).await? {
        Some((Kind::Stdout, first)) if !first.is_empty() => return carry(from_guest, to_guest, &first, guest).await,
        Some((Kind::Error | Kind::Stdout, _)) => {}
        other => {
            return Err(
                anyhow::anyhow!("machine `{}`: its agent sent {:?}", guest.name, other.map(|(kind, _)| kind)).into()
            );
        }
    }
    let (from_guest, to_guest) = tokio::io::split(guest.call(&Guest::shell("root", SERVE, &[])).await?);
    carry(from_guest, to_guest, &[], guest).await
}

async fn carry(
    mut from_guest: tokio::io::ReadHalf<Stream>,
    mut to_guest: tokio::io::WriteHalf<Stream>,
    first: &[u8],
    guest: &Guest,
) -> Outcome {
    let mut stdout = tokio::io::stdout();
    stdout.write_all(first).await?;
    stdout.flush().await?;
    let typed = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 32 << 10];
        loop {
            let n = stdin.read(&mut buffer).await?;
            if call::send(&mut to_guest, Kind::Stdin, buffer.get(..n).unwrap_or_default()).await.is_err() || n == 0 {
                return std::future::pending::<Outcome>().await;
            }
        }
    };
    let heard = async {
        loop {
            match call::receive(&mut from_guest).await? {
                Some((Kind::Stdout, bytes)) => {
                    stdout.write_all(&bytes).await?;
                    stdout.flush().await?;
                    if bytes.is_empty() {
                        return Ok(0);
                    }
                }
                Some((Kind::Stderr, bytes)) => output::complain(printable(&String::from_utf8_lossy(&bytes)).trim_end()),
                Some((Kind::Exit, json)) => match serde_json::from_slice(&json)? {
                    Exit::Code(NO_SSH) => return Err(guest.without_ssh()),
                    Exit::Code(code) => return Ok(code),
                    Exit::Signal(signal) => return Ok(128u8.saturating_add(signal)),
                },
                Some((Kind::Error, text)) => {
                    return Err(anyhow::Error::msg(printable(&String::from_utf8_lossy(&text))).into());
                }
                _ => return Err(anyhow::anyhow!("machine `{}`: its agent went away", guest.name).into()),
            }
        }
    };
    tokio::select! {
        ended = heard => ended,
        ended = typed => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_of_a_machine_become_lines_of_known_hosts() {
        let hostile = "ssh-ed25519 AAAAC3Nz root@web\n* ssh-rsa AAAA\nssh-rsa AA\u{1b}[31mAA\n@cert-authority * ssh-rsa AAAA\nssh-rsa\n\
            ecdsa-sha2-nistp256 AAAAE2Vj+/= x y z\n";
        let lines = key_lines("web.lab", hostile);
        assert_eq!(lines, ["web.lab ssh-ed25519 AAAAC3Nz", "web.lab ecdsa-sha2-nistp256 AAAAE2Vj+/="]);
    }

    #[test]
    fn a_config_names_each_machine_that_may_be_entered() {
        let login = |machine: &str, closed| Login { machine: machine.into(), user: "ann".into(), closed };
        let of = |program: &str| {
            config_text(
                &[login("web", false), login("db", true)],
                "lab",
                Path::new("/s/ssh"),
                Path::new(program),
                Path::new("/s"),
            )
        };
        let text = of("/usr/bin/labyard").expect("a config");
        assert!(text.contains("Host web.lab\n  User ann\n") && !text.contains("Host db.lab"), "{text}");
        assert!(
            text.contains("ProxyCommand env LABYARD_HOME=\"/s\" \"/usr/bin/labyard\" ssh-proxy lab web %r\n"),
            "{text}"
        );
        for bad in ["/a\"b", "/a$b", "/a`b", "/a\nb", "/a%b"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
