//! Somebody who is not root: Linux guests do as they do for root. With a systemd of his own, as after a login, limits hold in a scope that
//! it gives.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{self, HUGE_PAGES, SHMEM_HUGE_PAGES, Said, Setting, Traces};
use crate::images;
use crate::tiny::Tiny;
use crate::uplink::World;

/// A user and a group that own nothing.
const ANYBODY: u32 = 65534;
const GROUPS: &str = "/sys/fs/cgroup";
/// How long his systemd may take to come, and to clean up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kinds of tests, by how their names begin. What every run tries as that user.
const NAMED: [&str; 2] = ["starting::", "killed::labs_outlive"];
/// The soak tries all, in so many shares, of which every host of the tests takes some.
const SHARES: usize = 4;
/// Those that see to it themselves who they are.
const OF_BOTH: [&str; 2] = ["rootless::", "apparmor::"];
/// Tests of limits, which somebody who is not root has by his systemd.
const OF_LOGIN: [&str; 1] = ["greedy::"];
/// Tests with a world outside, which root makes for them.
const OF_WORLD: [&str; 3] = ["uplink::", "members::a_network", "examples::router"];
/// Tests with images that buildah makes, as root.
const OF_MADE: [&str; 1] = ["images::"];
/// Tests that change the kernel's settings for memory.
const OF_SETTINGS: [&str; 3] = ["machines::", "quiet::", "sizes::"];
const PROGRAMS: [&str; 6] =
    ["labyard", "labyard-init", "labyard-jail", "labyard-uplink", "labyard-vmm", "rootfs-builder"];

/// A user's systemd, and the groups that the host's would have made for a login: one above that is root's, one that his systemd
/// may do with as it likes, and one for the session, where he may make none.
struct Login {
    place: tempfile::TempDir,
    groups: PathBuf,
    manager: Option<Child>,
}

fn copy_programs(folder: &Path) -> Result<()> {
    for name in PROGRAMS {
        fs::copy(host::given("LABYARD_LIBEXEC")?.join(name), folder.join(name)).context(name)?;
    }
    Ok(())
}

fn make(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    chown(path, Some(ANYBODY), Some(ANYBODY)).with_context(|| path.display().to_string())
}

impl Login {
    fn new() -> Result<Self> {
        let place = tempfile::tempdir()?;
        fs::set_permissions(place.path(), Permissions::from_mode(0o755))?;
        make(&place.path().join("run"), 0o700)?;
        make(&place.path().join("home"), 0o700)?;
        let libexec = place.path().join("libexec");
        make(&libexec, 0o755)?;
        copy_programs(&libexec)?;
        // What a user's systemd looks at, to know that the host has one (sd_booted(3)).
        fs::create_dir_all("/run/systemd/system")?;
        let groups = Path::new(GROUPS).join("labyard-test-login");
        let login = Self { place, groups, manager: None };
        for (folder, has) in [
            (Path::new(GROUPS), true),
            (&login.groups, true),
            (&login.groups.join("manager"), false),
            (&login.groups.join("session"), false),
        ] {
            fs::create_dir_all(folder)?;
            if has {
                fs::write(folder.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
            }
        }
        // As the host's systemd delegates it: the folder, and who is in it.
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(login.groups.join("manager").join(file), Some(ANYBODY), Some(ANYBODY))?;
        }
        // His systemd may move processes from one to the other; on a real host it asks root's to.
        chown(login.groups.join("cgroup.procs"), Some(ANYBODY), Some(ANYBODY))?;
        Ok(login)
    }

    /// A command of his, in one of his groups.
    fn command(&self, group: &str, argv: &[&str]) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo 0 > \"$0\" && exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\""]);
        command.arg(self.groups.join(group).join("cgroup.procs")).args(argv).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", self.place.path().join("home"));
        command
            .env("XDG_RUNTIME_DIR", self.place.path().join("run"))
            .env("USER", "nobody")
            .env("TMPDIR", self.place.path().join("home"));
        command
            .env("LABYARD_HOME", self.home())
            .env("LABYARD_LIBEXEC", self.place.path().join("libexec"))
            .stdin(Stdio::null());
        command
    }

    fn home(&self) -> PathBuf {
        self.place.path().join("home/labyard")
    }

    fn labyard(&self, arguments: &[&str]) -> Result<Said> {
        let program = self.place.path().join("libexec/labyard");
        let argv = [&[program.to_str().context("a path in UTF-8")?], arguments].concat();
        host::run_with(self.command("session", &argv), &[])
    }

    fn start_manager(&mut self) -> Result<()> {
        let mut command = self.command("manager", &["/lib/systemd/systemd", "--user"]);
        self.manager = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()?);
        let socket = self.place.path().join("run/systemd/private");
        host::wait_for("his systemd", PATIENCE, || Ok(socket.exists().then_some(())), || socket.display().to_string())
    }

    /// Names of groups below his systemd's that are labs'.
    fn scopes(&self) -> Vec<String> {
        let folder = fs::read_dir(self.groups.join("manager/app.slice"));
        let names =
            folder.into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("labyard-")).collect()
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        if let Some(mut manager) = self.manager.take() {
            // SIGRTMIN+24 is its order to leave (systemd(1)).
            let _ = host::signal(manager.id(), "TERM");
            let _ = host::reap(&mut manager);
        }
        // From the leaves on; what is left of them the trace at the end shows.
        let _ =
            Command::new("find").arg(&self.groups).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).status();
        let _ = fs::remove_dir("/run/systemd/system");
    }
}

#[test]
fn limits_of_somebody_who_is_not_root_hold_in_a_scope_of_his_systemd() -> Result<()> {
    let _ = fs::set_permissions("/dev/kvm", Permissions::from_mode(0o666)); // as a member of its group has it
    let before = Traces::now()?;
    {
        let mut login = Login::new()?;
        login.start_manager()?;
        let tiny = Tiny::within(&login.home())?;
        let manifest = tiny.manifest("mine", &["one"])?;
        let owned =
            Command::new("chown").args(["-R", "65534:65534"]).args([login.home().as_path(), tiny.folder()]).status()?;
        ensure!(owned.success());
        let said = login.labyard(&["up", &manifest, "--detach", "--limit-cpus", "1.5"])?.expect(0)?;
        ensure!(said.stderr.contains("loginctl enable-linger"), "{}", said.stderr);
        login.labyard(&["wait", "mine", "--for", "kernel-started", "--timeout", "1m"])?.expect(0)?;
        let told: Value = serde_json::from_slice(&login.labyard(&["ps", "--json"])?.expect(0)?.stdout)?;
        let pid = told["labs"][0]["vmm_pid"].as_u64().with_context(|| told.to_string())?;
        let group = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        ensure!(group.contains("/manager/app.slice/labyard-mine-"), "{group}");
        let group = Path::new(GROUPS).join(group.trim().trim_start_matches("0::/"));
        ensure!(fs::read_to_string(group.join("cpu.max"))?.trim() == "150000 100000");
        ensure!(fs::read_to_string(group.join("memory.max"))?.trim().parse::<u64>().is_ok(), "no limit of memory");
        login.labyard(&["down", "mine"])?.expect(0)?;
        let gone = || Ok(login.scopes().is_empty().then_some(()));
        host::wait_for("its scope is gone", PATIENCE, gone, || format!("{:?}", login.scopes()))?;
    }
    {
        // Without one a limit that was asked for is refused, and one that nobody asked for is not.
        let login = Login::new()?;
        let tiny = Tiny::within(&login.home())?;
        let manifest = tiny.manifest("mine", &["one"])?;
        let owned =
            Command::new("chown").args(["-R", "65534:65534"]).args([login.home().as_path(), tiny.folder()]).status()?;
        ensure!(owned.success());
        let said = login.labyard(&["up", &manifest, "--limit-cpus", "1.5"])?.expect(1)?;
        ensure!(said.stderr.contains("--allow-unlimited"), "{}", said.stderr);
        login.labyard(&["up", &manifest, "--detach"])?.expect(0)?;
        login.labyard(&["down", "mine"])?.expect(0)?;
    }
    before.wait_until_back()
}

fn is_of(name: &str, kinds: &[&str]) -> bool {
    kinds.iter().any(|kind| name.starts_with(kind))
}

/// Names of all guest tests of this program.
fn all() -> Result<Vec<String>> {
    let listed = Command::new(std::env::current_exe()?).args(["--list", "--format", "terse"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let names: Vec<_> = listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    // A kind that has got another name would be run as if it were none.
    for kind in [NAMED.as_slice(), &OF_BOTH, &OF_LOGIN, &OF_WORLD, &OF_MADE, &OF_SETTINGS].concat() {
        ensure!(names.iter().any(|name| name.starts_with(kind)), "no test is called like {kind}: {listed}");
    }
    Ok(names)
}

fn all_of(kinds: &[&str]) -> Result<Vec<String>> {
    Ok(all()?.into_iter().filter(|name| is_of(name, kinds)).collect())
}

/// Runs these tests as that user.
fn run_as_anybody(names: &[String]) -> Result<()> {
    // A program that is given no name runs all, and with them this one.
    ensure!(!names.is_empty(), "no test has such a name");
    ensure!(!names.iter().any(|name| is_of(name, &OF_BOTH)), "they see to it themselves who they are: {OF_BOTH:?}");
    let any = |kinds: &[&str]| names.iter().any(|name| is_of(name, kinds));
    // First: the first namespace with a name on a host leaves a mount behind.
    let world = any(&OF_WORLD).then(World::new).transpose()?;
    let before = Traces::now()?;
    // A host may lack one of them.
    let settings = any(&OF_SETTINGS).then(|| [HUGE_PAGES, SHMEM_HUGE_PAGES].map(|path| Setting::open(path).ok()));
    // A place where he finds the programs, the tests and a store that is his.
    let place = tempfile::tempdir_in(host::given("LABYARD_SCRATCH")?)?;
    let at = |name: &str| place.path().join(name);
    for folder in ["", "libexec", "home", "home/labyard", "tmp"] {
        make(&at(folder), 0o755)?;
    }
    copy_programs(&at("libexec"))?;
    fs::copy(std::env::current_exe()?, at("guests"))?;
    fs::copy(host::given("LABYARD_TEST_REFERENCE")?, at("reference"))?;
    let store = host::given("LABYARD_HOME")?;
    let parts = ["images", "kernels", "blobs"].map(|name| (store.join(name), at("home/labyard")));
    let layouts = host::given("LABYARD_TEST_LAYOUT")?;
    let layouts = layouts.ancestors().nth(2).context("a folder of layouts")?.to_owned();
    for (from, to) in parts.iter().chain([&(layouts, at("layouts"))]).filter(|(from, _)| from.exists()) {
        let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status()?;
        ensure!(copied.success(), "{}: {copied}", from.display());
    }
    let made = any(&OF_MADE);
    if made {
        fs::create_dir(at("made"))?;
        images::make(&at("made"))?;
    }
    let owned = Command::new("chown").args(["-R", "65534:65534"]).arg(place.path()).status()?;
    ensure!(owned.success(), "{owned}");
    let login = any(&OF_LOGIN).then(Login::new).transpose()?;
    let (mut tests, login) = match login {
        Some(mut login) => {
            login.start_manager()?;
            let mut tests = login.command("session", &[]);
            let kvm = ["LABYARD_KVM", "LABYARD_KVM_DEVICE"].map(|name| (name, std::env::var_os(name)));
            tests.envs(kvm.into_iter().filter_map(|(name, value)| Some((name, value?))));
            (tests, Some(login))
        }
        None => {
            let mut tests = Command::new("setpriv");
            tests.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
            (tests, None)
        }
    };
    tests.arg(at("guests")).args(["--test-threads=1", "--nocapture", "--exact"]).args(names);
    if made {
        tests.env(images::MADE, at("made"));
    }
    tests.env("HOME", at("home")).env("LABYARD_HOME", at("home/labyard")).env("LABYARD_LIBEXEC", at("libexec"));
    tests.env("TMPDIR", at("tmp")).env("LABYARD_SCRATCH", at("tmp")).env("LABYARD_TEST_REFERENCE", at("reference"));
    // Every kind of test, with the counts of every run: those of the soak are root's.
    tests.env("LABYARD_TEST_LAYOUT", at("layouts/debian/layout")).env_remove("LABYARD_SOAK");
    eprintln!("  as user and group {ANYBODY}:");
    let status = tests.current_dir("/").stdin(Stdio::null()).status()?;
    ensure!(status.success(), "his tests: {status}");
    if let Some(login) = login {
        let gone = || Ok(login.scopes().is_empty().then_some(()));
        host::wait_for("his labs' scopes are gone", PATIENCE, gone, || format!("{:?}", login.scopes()))?;
        drop(login);
    }
    drop(place);
    drop(settings);
    before.wait_until_back()?;
    drop(world);
    Ok(())
}

#[test]
fn linux_guests_of_somebody_who_is_not_root_do_as_those_of_root() -> Result<()> {
    // A person may name others; see CONTRIBUTING.md.
    let chosen = std::env::var("LABYARD_ANYBODY").ok();
    let kinds = chosen.as_deref().map_or(NAMED.to_vec(), |chosen| chosen.split_whitespace().collect());
    run_as_anybody(&all_of(&kinds)?)
}

/// All other tests, dealt by the order of the list, so that none is forgotten.
fn share(number: usize) -> Result<()> {
    let others = [OF_BOTH.as_slice(), &OF_LOGIN].concat();
    let his = all()?.into_iter().filter(|name| !is_of(name, &others));
    run_as_anybody(&his.skip(number).step_by(SHARES).collect::<Vec<_>>())
}

mod share {
    use anyhow::Result;

    #[test]
    fn limits_of_linux_guests_of_somebody_who_is_not_root() -> Result<()> {
        super::run_as_anybody(&super::all_of(&super::OF_LOGIN)?)
    }

    #[test]
    fn one_of_all_linux_guests_of_somebody_who_is_not_root() -> Result<()> {
        super::share(0)
    }

    #[test]
    fn two_of_all_linux_guests_of_somebody_who_is_not_root() -> Result<()> {
        super::share(1)
    }

    #[test]
    fn three_of_all_linux_guests_of_somebody_who_is_not_root() -> Result<()> {
        super::share(2)
    }

    #[test]
    fn four_of_all_linux_guests_of_somebody_who_is_not_root() -> Result<()> {
        super::share(3)
    }
}
