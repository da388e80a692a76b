//! What a program sees in the jail: run in place of the monitor, it prints one fact a line.
//!
//! The tests of the jail use it. To be of use in an empty root it is static, like every program of the workspace.

use std::fs;
use std::os::fd::AsFd;

use labyard_sys::exec;
use labyard_sys::uring::Ring;
use rustix::process::{Resource, getrlimit};

fn main() {
    let say = |name: &str, value: String| println!("{name}={value}");
    // Landlock lets nobody list even an empty root; looking is free.
    let there = ["/proc", "/dev", "/etc", "/usr", "/sys", "/tmp", "/run", "/home"];
    let there = there.iter().filter(|path| fs::symlink_metadata(path).is_ok()).count();
    say("root entries", there.to_string());
    say("working directory", format!("{:?}", std::env::current_dir().map(|path| path.display().to_string())));
    say("create", fs::write("/file", b"x").map_or_else(|error| format!("{:?}", error.kind()), |()| "done".into()));
    // Without /proc the only way to learn what is open is to try every number.
    let open = (0..1 << 16).filter(|number| exec::is_open(*number)).map(|number| number.to_string());
    say("open", open.collect::<Vec<_>>().join(","));
    say("no_new_privs", format!("{:?}", rustix::thread::no_new_privs()));
    let sets = rustix::thread::capabilities(None).expect("capget of this thread");
    say("capabilities", format!("{:x}", (sets.permitted | sets.effective | sets.inheritable).bits()));
    let bounding = (0..64).filter(|bit| {
        let one = rustix::thread::CapabilitySet::from_bits_retain(1 << bit);
        rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false)
    });
    say("bounding set", bounding.count().to_string());
    let maximum = |resource| format!("{:?}", getrlimit(resource).maximum);
    say("limit", maximum(Resource::Nofile));
    say("threads", maximum(Resource::Nproc));
    say("core", maximum(Resource::Core));
    say("environment", std::env::vars_os().count().to_string());
    say("arguments", std::env::args().collect::<Vec<_>>().join(" "));
    say("pid", std::process::id().to_string());
    say("session", rustix::process::getsid(None).map_or(-1, |session| session.as_raw_pid()).to_string());
    say("user", rustix::process::getuid().to_string());
    say("group", rustix::process::getgid().to_string());
    say("groups", format!("{:?}", rustix::process::getgroups().map(|groups| groups.len())));
    let names = rustix::system::uname();
    say("host", names.nodename().to_string_lossy().into_owned());
    say("ring", Ring::new(&[std::io::stderr().as_fd()], 4).is_ok().to_string());
    // The test looks from outside, until it closes this.
    let _ = std::io::stdin().read_line(&mut String::new());
}
