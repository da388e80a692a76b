//! What the threads of a supervisor have left of what they were started with.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::host::Host;

/// CAP_KILL and CAP_NET_BIND_SERVICE (linux/capability.h).
const KEPT: u64 = (1 << 5) | (1 << 10);
/// CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYS_TIME, CAP_MKNOD, CAP_SYSLOG, CAP_BPF.
const OF_THE_HOST: u64 = (1 << 16) | (1 << 17) | (1 << 22) | (1 << 25) | (1 << 27) | (1 << 34) | (1 << 39);

/// `/proc/PID/status` of a thread.
fn status(thread: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(thread.join("status")).expect("a thread");
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[test]
fn only_one_thread_of_a_supervisor_may_start_programs_and_even_that_may_not_change_the_host() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let state: serde_json::Value = serde_json::from_str(&host.expect(0, &["ps", "--json"]).0).expect("JSON");
    let pid = &state["labs"][0]["supervisor_pid"];
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let threads: Vec<_> = threads.map(|thread| status(&thread.expect("a thread").path())).collect();
    assert!(threads.len() > 2, "{threads:?}");
    let bits = |thread: &BTreeMap<String, String>, name| u64::from_str_radix(&thread[name], 16).expect("a number");
    let (starters, others): (Vec<_>, Vec<_>) = threads.iter().partition(|thread| thread["Name"] == "starter");
    assert_eq!(starters.len(), 1, "{threads:?}");
    for other in others {
        assert_eq!((&*other["NoNewPrivs"], &*other["Seccomp"]), ("1", "2"), "{other:?}");
        assert_eq!((bits(other, "CapPrm") | bits(other, "CapEff")) & !KEPT, 0, "{other:?}");
    }
    for starter in starters {
        assert_eq!((bits(starter, "CapPrm") | bits(starter, "CapEff")) & OF_THE_HOST, 0, "{starter:?}");
        if rustix::process::geteuid().is_root() {
            assert_eq!(bits(starter, "CapBnd") & OF_THE_HOST, 0, "by exec: {starter:?}");
        }
    }
    // No core file, and nobody of the same user looks into its memory (PR_SET_DUMPABLE).
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}/mem")).expect("it lives"));
    assert_eq!(owner, 0);
    host.expect(0, &["down"]);
    host.assert_clean();
}
