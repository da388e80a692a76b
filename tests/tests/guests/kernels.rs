//! Each kernel that a lab can have, in one lab: ready, `exec`, modules, and all that containers take for granted.

use anyhow::{Context, Result, ensure};

use crate::host::{self, Traces};
use crate::lab::{self, Lab};

/// The machines by their kernels; the tuned 6.1 is for long runs only.
const KERNELS: &[(&str, &str)] = &[("tuned", "6.12-tuned"), ("stock", "6.12-stock"), ("old", "6.1-stock")];
const SOAK_ONLY: (&str, &str) = ("old-tuned", "6.1-tuned");

/// Least memory of a machine with the tuned kernel.
const LEAST_MIB: u64 = 64;

fn machine(name: &str, kernel: &str, memory_mib: u64) -> String {
    format!(
        "    - name: {name}\n      kernel: {{source: '{kernel}'}}\n      drives: [{{source: 'IMAGE', mount: /, size: 4GiB}}]
      network: {{interfaces: [{{network: local}}]}}\n      resources: {{ramSize: {memory_mib}MiB}}\n"
    )
}

#[test]
fn every_kernel_comes_up_and_has_what_a_lab_needs() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let mut kernels = KERNELS.to_vec();
    if crate::is_soak() {
        kernels.push(SOAK_ONLY);
    }
    let mut machines: String = kernels.iter().map(|(name, kernel)| machine(name, kernel, 256)).collect();
    machines += &machine("least", "6.12-tuned", LEAST_MIB);
    let manifest = lab::manifest(folder.path(), "kernels", &machines)?;
    {
        let mut lab = Lab::new("kernels");
        lab.up(&manifest)?;
        for (machine, kernel) in &kernels {
            lab.check(&format!("{machine}: it is the kernel that was asked for"), |lab| {
                is_the_kernel(lab, machine, kernel)
            });
            lab.check(&format!("{machine}: every feature"), |lab| has_features(lab, machine));
        }
        lab.check("64 MiB are enough for the tuned kernel", |lab| is_the_kernel(lab, "least", "6.12-tuned"));
        lab.check("a kernel in use cannot be removed", |_| is_in_use());
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

#[test]
fn less_memory_than_the_tuned_kernel_needs_is_one_clear_error() -> Result<()> {
    let list = kernels_in_store()?;
    let mut kernels = list["kernels"].as_array().context("kernels")?.iter();
    let tuned =
        kernels.find(|kernel| kernel["series"] == "6.12" && kernel["stock"] == false).context("a tuned 6.12")?;
    let least = tuned["min_memory_mib"].as_u64().context("a number")?;
    ensure!(least > 0 && least <= LEAST_MIB, "{least} MiB");
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), "tiny-tuned", &machine("tiny", "6.12-tuned", least - 1))?;
    let _lab = Lab::new("tiny-tuned");
    let said = host::run(&["up", manifest.to_str().context("a path")?])?.expect(2)?;
    let errors: Vec<_> = said.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    ensure!(errors.len() == 1, "{}", said.stderr);
    ensure!(errors[0].contains(&format!("{} MiB are too few for kernel 6.12", least - 1)), "{}", errors[0]);
    ensure!(errors[0].contains(&format!("{least} MiB or more")), "{}", errors[0]);
    Ok(())
}

fn kernels_in_store() -> Result<serde_json::Value> {
    Ok(serde_json::from_slice(&host::run(&["kernel", "ls", "--json"])?.expect(0)?.stdout)?)
}

fn is_the_kernel(lab: &Lab, machine: &str, kernel: &str) -> Result<()> {
    let release = lab.exec(machine, &["uname", "-r"])?.expect(0)?.text();
    let (series, origin) = kernel.split_once('-').context("a series and an origin")?;
    ensure!(release.starts_with(&format!("{series}.")), "{release}");
    ensure!(release.contains("labyard") == (origin == "tuned"), "{release}");
    Ok(())
}

fn has_features(lab: &Lab, machine: &str) -> Result<()> {
    let said = lab.exec_with(machine, &["sh", "-s"], include_bytes!("features.sh"))?;
    let text = said.text();
    let missing: Vec<_> = text.lines().filter(|line| line.starts_with("MISSING")).collect();
    ensure!(missing.is_empty() && said.code == 0, "{}\n{}", missing.join("\n"), said.stderr);
    let tried = text.lines().filter(|line| line.starts_with("ok ")).count();
    ensure!(tried > 60, "only {tried} were tried\n{text}");
    Ok(())
}

fn is_in_use() -> Result<()> {
    let document = kernels_in_store()?;
    let id = document["default"].as_str().context("a default")?;
    ensure!(id.contains("labyard"), "the default is not the tuned kernel but {id}");
    let said = host::run(&["kernel", "rm", id])?.expect(2)?;
    ensure!(said.stderr.contains("lab `kernels` uses it"), "{}", said.stderr);
    Ok(())
}
