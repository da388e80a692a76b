//! IPv6 on the lab of `uplink.rs`: machine `a` on both networks, `b` on the private one.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::host;
use crate::lab::Lab;
use crate::uplink::{SERVER6, fetch};

/// The networks' fields of our own, and the machines' of `a`.
pub(crate) const LOCAL: &str = "labyard: {subnet6: 'fd00:16::/64'}";
pub(crate) const EDGE: &str = "labyard: {subnet6: 'fd00:10::/64'}";
pub(crate) const HOST6: &str = "2001:db8:113::2";

/// What holds as soon as the lab is up.
pub(crate) fn check(lab: &mut Lab) {
    lab.check("no address waits to be found unique", |lab| {
        for machine in ["a", "b"] {
            let said = lab.exec(machine, &["ip", "-6", "-o", "addr", "show"])?.expect(0)?.text();
            ensure!(said.contains("fd00:16::") && !said.contains("tentative"), "{machine}: {said}");
        }
        Ok(())
    });
    lab.check("machines reach each other by name over IPv6", |lab| {
        for (machine, other, address) in [("b", "a", "fd00:16::10"), ("a", "b", "fd00:16::2")] {
            let said = lab.exec(machine, &["ping", "-6", "-n", "-c", "2", "-W", "10", other])?.expect(0)?.text();
            ensure!(said.contains(address), "{said}");
        }
        Ok(())
    });
    lab.check("a server outside is reached over IPv6, and sees the host", |lab| {
        let said = fetch(lab, "a", SERVER6)?;
        ensure!(said.text() == format!("hello {HOST6}\n"), "{said:?}");
        Ok(())
    });
    lab.check("the host itself is not, nor what is beside it", |lab| {
        for address in [HOST6, "fd00:10::1", "2001:db8:113::", "::ffff:203.0.113.2"] {
            let said = fetch(lab, "a", address)?;
            ensure!(said.code != 0 && said.stdout.is_empty(), "{address}: {said:?}");
        }
        Ok(())
    });
    lab.check("the gateway answers, and only a network with a way out has the default route", |lab| {
        lab.exec("a", &["ping", "-6", "-n", "-c", "1", "-W", "10", "fd00:10::1"])?.expect(0)?;
        let routes = |machine| -> Result<String> {
            Ok(lab.exec(machine, &["ip", "-6", "route", "show", "default"])?.expect(0)?.text())
        };
        let (a, b) = (routes("a")?, routes("b")?);
        ensure!(a.lines().count() == 1 && a.contains("via fd00:10::1 dev eth1") && b.is_empty(), "{a}{b}");
        let said = fetch(lab, "b", SERVER6)?;
        ensure!(said.code != 0, "{said:?}");
        Ok(())
    });
    lab.check("the gateway's resolver knows addresses of IPv6", |lab| {
        let ask = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20); \
            s.sendto(b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\0\\0\\x1c\\0\\1', ('10.10.0.1', 53)); \
            print(socket.inet_ntop(socket.AF_INET6, s.recv(512)[-16:]))";
        let said = lab.exec("a", &["python3", "-c", ask])?.expect(0)?.text();
        ensure!(said.trim() == "fd00:10::2", "{said}");
        Ok(())
    });
    lab.check("what is told of the lab tells of IPv6", |_| told());
}

fn told() -> Result<()> {
    let read = |arguments: &[&str]| -> Result<Value> {
        serde_json::from_slice(&host::run(arguments)?.expect(0)?.stdout).context("JSON")
    };
    let status = read(&["status", "open", "--json"])?;
    let networks: Vec<_> =
        status["networks"].as_array().context("networks")?.iter().map(|one| &one["subnet6"]).collect();
    ensure!(networks == [&json!("fd00:16::/64"), &json!("fd00:10::/64")], "{status}");
    let nics: Vec<_> = status["nics"].as_array().context("nics")?.iter().map(|nic| &nic["address6"]).collect();
    ensure!(nics == [&json!("fd00:16::10"), &json!("fd00:10::2"), &json!("fd00:16::2")], "{status}");
    let addresses = json!([{"network": "local", "address": "fd00:16::2"}]);
    ensure!(read(&["ps", "--json"])?["labs"][0]["machines"][1]["addresses6"] == addresses, "ps");
    let shown = host::run(&["ps"])?.expect(0)?.text();
    ensure!(shown.contains("local=172.16.0.11 local=fd00:16::2"), "{shown}");
    let shown = host::run(&["status", "open"])?.expect(0)?.text();
    ensure!(shown.contains("10.10.0.10 and fd00:10::2 on edge"), "{shown}");
    ensure!(shown.contains("fd00:10::/64, gateway fd00:10::1"), "{shown}");
    Ok(())
}
