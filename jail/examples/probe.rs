//! What a program sees in the jail: run in place of the monitor, it prints one fact a line.
//!
//! The tests of the jail use it. To be of use in an empty root it is static, like every program of the workspace.

use std::fs;

use labyard_sys::exec;

fn main() {
    let say = |name: &str, value: String| println!("{name}={value}");
    let entries = fs::read_dir("/").map(|entries| entries.count());
    say("root entries", format!("{entries:?}"));
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
    say("limit", format!("{:?}", rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum));
    say("environment", std::env::vars_os().count().to_string());
    say("arguments", std::env::args().collect::<Vec<_>>().join(" "));
}
