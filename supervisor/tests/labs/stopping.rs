//! `stop`: guests are asked, by agent or button, and cut after a while; done twice, it finds nothing to do.

use super::host::Host;

fn state(host: &Host, machine: usize) -> String {
    host.ps()["machines"][machine]["state"].as_str().expect("a state").to_owned()
}

#[test]
fn one_machine_is_stopped_and_the_others_go_on() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    let (stdout, _) = host.expect(0, &["stop", "lab/web"]);
    assert_eq!(stdout, "web: powered off\n");
    assert_eq!(state(&host, 0), "powered off");
    host.expect(0, &["exec", "lab/db", "--", "true"]);
    let (stdout, _) = host.expect(0, &["stop", "lab/web"]);
    assert_eq!(stdout, "web: powered off\n", "again, and nothing is left to do");
    host.expect(2, &["exec", "lab/web", "--", "true"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_whole_lab_is_stopped_and_its_disks_stay() {
    let host = Host::new();
    host.up("lab", &["web", "stubborn"]);
    let (stdout, _) = host.expect(0, &["stop", "lab", "--grace", "1s"]);
    assert_eq!(stdout, "web: powered off\nstubborn: killed\n");
    assert_eq!(host.ps()["standing"], "stopped");
    assert!(host.lab("lab").join("machines/web/d00.overlay").exists());
    let (_, stderr) = host.expect(0, &["stop", "lab"]);
    assert!(stderr.contains("lab `lab` does not run: nothing to do"), "{stderr}");
    host.expect(0, &["stop", "lab/web"]);
    host.expect(0, &["logs", "lab/web"]);
    host.expect(0, &["down", "lab"]);
    host.expect(0, &["stop"]);
    host.assert_clean();
}

#[test]
fn a_machine_that_does_not_power_off_in_time_is_cut() {
    let host = Host::new();
    host.up("lab", &["stubborn", "web"]);
    let (stdout, _) = host.expect(0, &["stop", "lab/stubborn", "--grace", "1s"]);
    assert_eq!(stdout, "stubborn: killed\n");
    let (stdout, _) = host.expect(0, &["events", "lab"]);
    assert!(stdout.contains("stubborn: it did not power off within 1 s"), "{stdout}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn without_an_agent_the_power_button_is_pressed_and_before_init_nobody_is_asked() {
    let host = Host::new();
    host.expect(3, &["up", &host.manifest("lab", &["deaf", "mute"]), "--timeout", "1s"]);
    let (stdout, _) = host.expect(0, &["stop", "lab/deaf"]);
    assert_eq!(stdout, "deaf: powered off\n");
    let (stdout, _) = host.expect(0, &["events", "lab"]);
    assert!(stdout.contains("the power button is pressed"), "{stdout}");
    let (stdout, _) = host.expect(0, &["stop", "lab/mute", "--grace", "10m"]);
    assert_eq!(stdout, "mute: killed\n");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn what_is_not_there_cannot_be_stopped() {
    let host = Host::new();
    host.up("lab", &["web"]);
    for name in ["lan", "lab/db", "lan/web", "../lab", "lab/web/x"] {
        host.expect(2, &["stop", name]);
    }
    host.expect(0, &["down"]);
    host.assert_clean();
}
