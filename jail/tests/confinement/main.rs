//! The jail from outside: a probe in place of the monitor reports what it can see and do.

mod room;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::time::Duration;

use labyard_sys::attempts;
use labyard_sys::split::FIRST_USER;
use labyard_sys::uring::Ring;
use room::{Jailed, Started, spec};

/// Somebody who is not root.
const ORDINARY: u32 = 65534;

/// Root and, where the tests are root's, an ordinary user.
fn users() -> Vec<Option<u32>> {
    if rustix::process::geteuid().is_root() { vec![None, Some(ORDINARY)] } else { vec![None] }
}

/// The facts that the probe reported, by name.
fn facts(user: Option<u32>) -> BTreeMap<String, String> {
    let mut jailed = Jailed::start("probe", user);
    let facts = jailed.facts_until("ring");
    assert!(jailed.end().success());
    facts
}

/// A field of `/proc/PID/status`.
fn status(pid: i32, field: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim_start_matches(':').split_ascii_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_room_is_empty_and_nothing_can_be_put_into_it() {
    for user in users() {
        let facts = facts(user);
        assert_eq!(facts["root entries"], "0");
        assert_eq!(facts["working directory"], "Ok(\"/\")");
        assert_eq!(facts["create"], "ReadOnlyFilesystem");
        assert_eq!(facts["environment"], "0");
        assert_eq!(facts["arguments"], "probe one");
        assert_eq!(facts["host"], "labyard");
    }
}

#[test]
fn only_the_descriptors_of_the_table_are_open() {
    assert_eq!(facts(None)["open"], "0,1,2,7,12");
}

#[test]
fn every_privilege_is_gone_for_good() {
    for user in users() {
        let facts = facts(user);
        assert_eq!(facts["no_new_privs"], "Ok(true)");
        assert_eq!(facts["capabilities"], "0");
        assert_eq!(facts["bounding set"], "0");
        assert_eq!((facts["limit"].as_str(), facts["threads"].as_str()), ("Some(512)", "Some(64)"));
        assert_eq!(facts["core"], "Some(0)");
        assert_eq!((facts["user"].as_str(), facts["group"].as_str()), ("1", "1"));
    }
}

#[test]
fn it_is_alone_in_namespaces_of_its_own_and_leads_its_session() {
    for user in users() {
        let mut jailed = Jailed::start("probe", user);
        let facts = jailed.facts_until("ring");
        assert_eq!((facts["pid"].as_str(), facts["session"].as_str()), ("1", "1"));
        for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).expect("a namespace");
            assert_ne!(of("self"), of(&jailed.pid.to_string()), "{namespace}");
        }
        assert_eq!(status(jailed.pid, "NSpid"), [jailed.pid.to_string(), "1".to_owned()]);
        jailed.end();
    }
}

#[test]
fn what_root_starts_is_another_user_each_time_and_what_a_user_starts_is_that_user() {
    let root = rustix::process::geteuid().is_root();
    let start = |user| {
        let mut jailed = Jailed::start("probe", user);
        let facts = jailed.facts_until("ring");
        (jailed, facts)
    };
    let of = |jailed: &Jailed| (status(jailed.pid, "Uid"), status(jailed.pid, "Gid"), status(jailed.pid, "Groups"));
    let ((one, facts), (two, _)) = (start(None), start(None));
    for jailed in [&one, &two] {
        let own = match root {
            true => FIRST_USER + jailed.pid.unsigned_abs(),
            false => rustix::process::geteuid().as_raw(),
        };
        let (uid, gid, groups) = of(jailed);
        assert_eq!(uid, vec![own.to_string(); 4]);
        if root {
            assert_eq!((gid, groups), (vec![own.to_string(); 4], Vec::new()));
            assert_eq!(facts["groups"], "Ok(0)");
        }
    }
    one.end();
    two.end();
    if root {
        let (ordinary, _) = start(Some(ORDINARY));
        assert_eq!(of(&ordinary).0, vec![ORDINARY.to_string(); 4]);
        ordinary.end();
    }
}

#[test]
fn whoever_started_it_kills_and_reaps_it() {
    let mut jailed = Jailed::start("probe", None);
    jailed.facts_until("ring");
    jailed.process.kill().expect("killing");
    assert!(jailed.process.wait(Duration::from_secs(60)).expect("waiting"));
    let status = jailed.process.reap().expect("our child");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}

#[test]
fn rings_work_in_there_as_they_do_outside() {
    let file = fs::File::open("/dev/null").expect("/dev/null");
    let outside = Ring::new(&[std::os::fd::AsFd::as_fd(&file)], 4).is_ok();
    for user in users() {
        assert_eq!(facts(user)["ring"], outside.to_string(), "as user {user:?}");
    }
}

#[test]
fn every_way_out_is_refused_as_the_threat_model_says() {
    // On a thread of its own, for its keyring.
    let left = std::thread::spawn(|| {
        attempts::leave_traces().expect("traces");
        assert!(
            attempts::ATTEMPTS.iter().filter(|attempt| attempt.group == "keyrings").all(|found| (found.run)().is_ok())
        );
        for user in users() {
            let mut jailed = Jailed::start("attempts", user);
            let mut said = jailed.facts_until("forked");
            // Its first process is one of them.
            assert_eq!(said.remove("forked").as_deref(), Some("63"));
            jailed.end();
            let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/threat-model.md"));
            let table = attempts::table(&page.expect("the threat model"), "<!-- attempts -->");
            let unknown = |what: &String| vec![format!("{what} is not in the table")];
            let wrong: Vec<_> = said
                .iter()
                .filter(|(what, said)| {
                    !table.get(*what).map_or_else(|| unknown(what), |cells| cells[0].clone()).contains(said)
                })
                .collect();
            assert!(wrong.is_empty(), "as user {user:?}, not as in docs/threat-model.md: {wrong:#?}");
            let missing: Vec<_> = table.keys().filter(|what| !said.contains_key(*what)).collect();
            assert!(missing.is_empty(), "in docs/threat-model.md and not tried: {missing:?}");
        }
        attempts::remove_traces().expect("no traces");
    });
    left.join().expect("every way is refused");
}

/// What the jail says when it refuses a line.
fn refusal(line: &[u8]) -> String {
    let mut started = Started::new("probe", None);
    started.talk.write_all(line).expect("the jail hears its spec");
    let (code, text) = started.refused();
    assert_eq!(code, Some(125), "{text}");
    text
}

#[test]
fn a_jail_that_nobody_lets_go_on_starts_nothing() {
    assert!(refusal(b"").contains("cut off"));
    let mut started = Started::new("probe", None);
    let process = started.tell(&spec()).open().expect("a pidfd");
    let (code, text) = started.refused();
    assert_eq!(code, Some(0));
    assert!(text.contains("whoever started the jail has gone"), "{text}");
    assert_eq!(process.reap().expect("our child").code(), Some(125));
}

/// What a copy says that cannot become the program.
fn failure(spec: &labyard_spec::jail::JailSpec) -> String {
    let mut started = Started::new("probe", None);
    let process = started.tell(spec).open().expect("a pidfd");
    started.talk.write_all(labyard_spec::jail::GO).expect("go");
    let (_, text) = started.refused();
    assert_eq!(process.reap().expect("our child").code(), Some(125));
    text
}

#[test]
fn a_table_that_names_what_is_not_open_is_refused_with_the_number() {
    let text = failure(&labyard_spec::jail::JailSpec { descriptors: vec![(99, 4)], ..spec() });
    assert!(text.starts_with("error: jail: arranging descriptors") && text.contains("99"), "{text}");
}

#[test]
fn a_table_that_gives_one_number_twice_is_refused() {
    let text = failure(&labyard_spec::jail::JailSpec { descriptors: vec![(11, 4), (12, 4)], ..spec() });
    assert!(text.contains("distinct"), "{text}");
}

#[test]
fn a_spec_with_an_unknown_field_is_refused() {
    let text =
        refusal(b"{\"program\":10,\"argv\":[],\"descriptors\":[],\"max_descriptors\":9,\"confine\":true,\"more\":1}\n");
    assert!(text.contains("more"), "{text}");
}
