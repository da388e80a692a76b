//! Examples keep what they promise in their first lines.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::host::{self, Traces};
use crate::lab::Lab;

/// The manifest of an example as it is, but for the image, which is that of the tests.
fn example(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).join("lab.yaml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (theirs, ours) = ("oci-layout:../images/debian/layout:debian", host::given("LABYARD_TEST_LAYOUT")?);
    ensure!(text.contains(theirs), "{}: another image than the tests have", path.display());
    let path = folder.join(format!("{name}.yaml"));
    std::fs::write(&path, text.replace(theirs, &format!("oci-layout:{}:debian", ours.display())))?;
    Ok(path)
}

fn pings(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    Ok(lab.exec(from, &["ping", "-c", "2", "-W", "5", to])?.code == 0)
}

#[test]
fn chaos_is_what_links_are_told_and_heals() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = example(folder.path(), "chaos")?;
    {
        let mut lab = Lab::new("chaos");
        lab.up(&manifest)?;
        lab.check("a link that is delayed takes its time", |lab| {
            host::run(&["net", "delay", "chaos/b", "50ms", "--jitter", "10ms"])?.expect(0)?;
            let said = lab.exec("a", &["ping", "-c", "3", "-W", "10", "b"])?.expect(0)?.text();
            // rtt min/avg/max/mdev = 101.2/… ms
            let least = said.split(" = ").nth(1).and_then(|times| times.split('/').next());
            let least: f64 = least.and_then(|least| least.parse().ok()).with_context(|| said.clone())?;
            ensure!(least >= 80.0, "{said}");
            Ok(())
        });
        lab.check("who does not hear gets no answer", |lab| {
            host::run(&["net", "cut", "chaos/c", "--only", "received"])?.expect(0)?;
            ensure!(!pings(lab, "a", "c")?, "c answers");
            Ok(())
        });
        lab.check("healed links are as they were made", |lab| {
            host::run(&["net", "heal", "chaos:local"])?.expect(0)?;
            ensure!(pings(lab, "a", "c")? && pings(lab, "c", "b")?, "not healed");
            Ok(())
        });
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}
