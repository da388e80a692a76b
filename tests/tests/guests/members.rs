//! A machine that `up` has come to a lab that runs, and leave it.

use anyhow::{Context, Result, ensure};

use crate::host::{self, Traces};
use crate::lab::{self, Lab};

const TWO: &str = "    - name: web
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
    - name: db
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
";
const MAIL: &str = "    - name: mail
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
";

fn boot_ids(lab: &Lab) -> Result<[String; 2]> {
    let id = |machine| {
        Ok::<_, anyhow::Error>(lab.exec(machine, &["cat", "/proc/sys/kernel/random/boot_id"])?.expect(0)?.text())
    };
    Ok([id("web")?, id("db")?])
}

fn ping(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let said = lab.exec(from, &["ping", "-c", "3", "-W", "10", to])?.expect(0)?.text();
    ensure!(said.contains("3 received, 0% packet loss"), "{said}");
    Ok(())
}

#[test]
fn a_machine_comes_to_a_lab_that_runs_and_leaves_it() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let two = lab::manifest(folder.path(), "members", TWO)?;
    let more = tempfile::tempdir()?;
    let three = lab::manifest(more.path(), "members", &(TWO.to_owned() + MAIL))?;
    {
        let mut lab = Lab::new("members");
        lab.up(&two)?;
        let (ids, processes) = (boot_ids(&lab)?, lab.processes()?);
        let same = |lab: &Lab| -> Result<()> {
            ensure!(boot_ids(lab)? == ids, "a machine has booted again");
            ensure!(lab.processes()? == processes, "{processes:?}, now {:?}", lab.processes()?);
            Ok(())
        };
        lab.check("a third machine comes, and the others have not noticed", |lab| {
            lab.up(&three)?;
            same(lab)
        });
        lab.check("it is found by name, and finds the others", |lab| {
            ping(lab, "mail", "web")?;
            ping(lab, "web", "mail")?;
            ping(lab, "db", "mail")
        });
        lab.check("a machine that reboots still knows of it", |lab| {
            let db = boot_ids(lab)?[1].clone();
            // The program ends with its machine, in whatever way.
            lab.exec("db", &["systemctl", "reboot"])?;
            let rebooted = || {
                let now = lab.exec("db", &["cat", "/proc/sys/kernel/random/boot_id"])?;
                Ok((now.code == 0 && now.text() != db).then_some(()))
            };
            host::wait_for("db has rebooted", std::time::Duration::from_secs(120), rebooted, || lab.words())?;
            ping(lab, "db", "mail")
        });
        let ids = boot_ids(&lab)?;
        lab.check("it leaves, its name and its drives with it", |lab| {
            lab.up(&two)?;
            ensure!(boot_ids(lab)? == ids, "a machine has booted again");
            let shown = lab.ps()?.context("the lab")?;
            ensure!(shown["machines"].as_array().map(Vec::len) == Some(2), "{shown}");
            for machine in ["web", "db"] {
                let said = lab.exec(machine, &["cat", "/etc/hosts"])?.expect(0)?.text();
                ensure!(!said.contains("mail") && said.contains(" web\n"), "{said}");
            }
            let folder = host::given("LABYARD_HOME")?.join("playgrounds/members/machines/mail");
            ensure!(!folder.exists(), "{} is there", folder.display());
            ping(lab, "web", "db")
        });
        lab.verdict()?;
    }
    drop((folder, more));
    before.wait_until_back()
}
