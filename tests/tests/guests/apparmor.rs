//! The AppArmor profiles that are shipped: labs come up in them, as root and as anybody, and nothing that they need is refused. What the
//! vmm's forbids is refused by AppArmor alone, without the jail.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{self, Said, Setting, Traces};
use crate::tiny::Tiny;

/// A user and a group that own nothing.
const ANYBODY: u32 = 65534;
/// Who a vmm is to AppArmor, as `/proc/PID/attr/current` says it.
const VMM: &str = "labyard-jail//&labyard-vmm (enforce)";
const PATIENCE: Duration = Duration::from_secs(60);
/// For how many seconds ten lines of the log are enough; 0: no limit (Documentation/admin-guide/sysctl/kernel.rst).
const LOG_LIMIT: &str = "/proc/sys/kernel/printk_ratelimit";
/// The kernel's list of loaded profiles.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

fn installer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../apparmor/install")
}

fn loaded() -> Result<String> {
    let lines = fs::read_to_string(LOADED).with_context(|| format!("{LOADED}: is AppArmor enabled here?"))?;
    Ok(lines.lines().filter(|line| line.starts_with("labyard-")).collect::<Vec<_>>().join("\n"))
}

/// What the kernel has said of refusals by our profiles.
fn denials() -> Result<BTreeSet<String>> {
    let said = host::run_with(Command::new("dmesg"), &[])?.expect(0)?;
    let text = said.text();
    Ok(text
        .lines()
        .filter(|line| line.contains("apparmor=\"DENIED\"") && line.contains("labyard-"))
        .map(str::to_owned)
        .collect())
}

/// The programs in a folder of their own, with the profiles loaded for it; unloaded when dropped.
struct Profiled {
    place: tempfile::TempDir,
}

impl Profiled {
    fn new() -> Result<Self> {
        let there = loaded()?;
        ensure!(
            there.is_empty(),
            "profiles of this name are loaded, unload them (apparmor/install --remove):\n{there}"
        );
        let profiled = Self { place: tempfile::tempdir()? };
        fs::set_permissions(profiled.path(""), Permissions::from_mode(0o755))?;
        fs::create_dir(profiled.path("programs"))?;
        for name in ["labyard", "labyard-init", "labyard-jail", "labyard-uplink", "labyard-vmm", "rootfs-builder"] {
            fs::copy(host::given("LABYARD_LIBEXEC")?.join(name), profiled.path("programs").join(name)).context(name)?;
        }
        let mut install = Command::new(installer());
        install.arg("--to").arg(profiled.path("etc")).args(["programs", "other"].map(|folder| profiled.path(folder)));
        host::run_with(install, &[])?.expect(0)?;
        Ok(profiled)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// `labyard` as root, or as a user that owns nothing, with a state directory of its own.
    fn labyard(&self, home: &Path, user: u32, arguments: &[&str]) -> Result<Said> {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
        command.arg(self.path("programs/labyard")).args(arguments).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
        command.env("LABYARD_HOME", home.join("labyard")).env("LABYARD_LIBEXEC", self.path("programs"));
        if let Some(forced) = std::env::var_os("LABYARD_KVM") {
            command.env("LABYARD_KVM", forced);
        }
        host::run_with(command, &[])
    }

    /// A lab of two machines comes up, is saved and restored, and goes, and its vmm has the profile all the time.
    fn lab(&self, name: &str, user: u32) -> Result<()> {
        let home = self.path(name);
        fs::create_dir(&home)?;
        let tiny = Tiny::within(&home.join("labyard"))?;
        let manifest = tiny.manifest(name, &["one", "two"])?;
        let who = format!("{user}:{user}");
        ensure!(Command::new("chown").args(["-R", &who]).args([&home, tiny.folder()]).status()?.success());
        let labyard = |arguments: &[&str]| self.labyard(&home, user, arguments)?.expect(0);
        let life = || {
            labyard(&["up", &manifest, "--detach"])?;
            labyard(&["wait", name, "--for", "kernel-started", "--timeout", "2m"])?;
            let first = self.look(&labyard(&["ps", "--json"])?)?;
            eprintln!("  {name}: up");
            labyard(&["save", name])?;
            labyard(&["restore", name])?;
            let second = self.look(&labyard(&["ps", "--json"])?)?;
            ensure!(first != second, "the vmm is the one from before: {first}");
            Ok(())
        };
        let lived = life();
        let gone = labyard(&["down", name]);
        lived.and(gone.map(|_| ()))
    }

    /// Which process the vmm is, whose profile is enforced.
    fn look(&self, said: &Said) -> Result<u64> {
        let told: Value = serde_json::from_slice(&said.stdout)?;
        let pid = told["labs"][0]["vmm_pid"].as_u64().with_context(|| told.to_string())?;
        let label = fs::read_to_string(format!("/proc/{pid}/attr/current"))?;
        ensure!(label.trim_end() == VMM, "{label}");
        Ok(pid)
    }

    /// Has busybox, in the vmm's place and with its profile or with none, do this; not jailed.
    fn attempt(&self, profile: Option<&str>, arguments: &[String]) -> Result<Said> {
        // A mount namespace, for what is mounted without the profile.
        let mut command = Command::new("unshare");
        let script = "[ -z \"$1\" ] || echo \"exec $1\" >/proc/self/attr/exec; shift; exec -a busybox \"$0\" \"$@\"";
        command.args(["--mount", "bash", "-c", script]).arg(self.path("other/labyard-vmm"));
        command.arg(profile.unwrap_or_default()).args(arguments);
        host::run_with(command, &[])
    }
}

impl Drop for Profiled {
    fn drop(&mut self) {
        let _ = Command::new(installer()).arg("--remove").arg("--to").arg(self.path("etc")).status();
    }
}

#[test]
fn labs_run_in_the_profiles_that_are_shipped_and_need_nothing_that_these_refuse() -> Result<()> {
    let _ = fs::set_permissions("/dev/kvm", Permissions::from_mode(0o666)); // as a member of its group has it
    let before = (Traces::now()?, denials()?);
    let _all = Setting::set(LOG_LIMIT, "0")?;
    {
        let profiled = Profiled::new()?;
        eprintln!("  loaded:\n{}", loaded()?);
        let lived = profiled.lab("roots", 0).and_then(|()| profiled.lab("anybodys", ANYBODY));
        let refused: Vec<_> = denials()?.difference(&before.1).cloned().collect();
        // Told first: it may be why a lab did not live.
        ensure!(refused.is_empty(), "{lived:?}; refused by AppArmor:\n{}", refused.join("\n"));
        lived?;
    }
    let left = loaded()?;
    ensure!(left.is_empty(), "still loaded:\n{left}");
    before.0.wait_until_back()
}

#[test]
fn what_the_vmms_profile_forbids_is_refused_without_the_jail() -> Result<()> {
    let _all = Setting::set(LOG_LIMIT, "0")?;
    let profiled = Profiled::new()?;
    // The profile lets a program of this name and place be mapped; busybox is static and takes its orders from the command line.
    fs::create_dir(profiled.path("other"))?;
    let busybox = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join("busybox"))
        .find(|program| program.is_file())
        .context("no busybox: run tools/setup")?;
    fs::copy(busybox, profiled.path("other/labyard-vmm"))?;
    let place = profiled.path("other").to_str().context("a path in UTF-8")?.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    // Whoever comes is heard to the end of what he says, which is nothing.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let me = std::process::id();
    // What is tried, and how the kernel names what it refuses.
    let attempts = [
        ("cat /etc/passwd".to_owned(), "operation=\"open\""),
        (format!("touch {place}/new"), "operation=\"mknod\""),
        (format!("rm {place}/old"), "operation=\"unlink\""),
        ("env /bin/true".to_owned(), "operation=\"exec\""),
        (format!("nc 127.0.0.1 {port}"), "family=\"inet\""),
        ("ip link".to_owned(), "family=\"netlink\""),
        (format!("kill -0 {me}"), "operation=\"signal\""),
        (format!("readlink /proc/{me}/exe"), "operation=\"ptrace\""),
        (format!("mount -t tmpfs none {place}"), "operation=\"mount\""),
        ("chroot / /bin/true".to_owned(), "capname=\"sys_chroot\""),
        (format!("chown 1:1 {place}/old"), "operation=\"chown\""),
    ];
    for (what, named) in attempts {
        let arguments: Vec<_> = what.split(' ').map(str::to_owned).collect();
        let old = || fs::write(profiled.path("other/old"), "");
        old()?;
        profiled.attempt(None, &arguments)?.expect(0).with_context(|| format!("{what}, without a profile"))?;
        old()?;
        let _ = fs::remove_file(profiled.path("other/new"));
        let before = denials()?;
        let said = profiled.attempt(Some("labyard-vmm"), &arguments)?;
        ensure!(said.code != 0, "{what}: not refused\n{}", said.text());
        let refused = || Ok(denials()?.difference(&before).any(|line| line.contains(named)).then_some(()));
        host::wait_for("a refusal", PATIENCE, refused, || {
            format!(
                "{what}: {}\n{:?}",
                said.stderr,
                denials().map(|all| all.difference(&before).cloned().collect::<Vec<_>>())
            )
        })?;
        eprintln!("  refused: {what}");
    }
    Ok(())
}
