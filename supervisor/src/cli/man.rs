//! Manual pages, one for each command, from what `--help` says.

use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};

use super::Outcome;
use super::args;

/// Writes `labyard.1`, `labyard-up.1`, … into a folder.
pub(crate) fn man(folder: &Path) -> Outcome {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut command = args::Command::command();
    command.build();
    write(folder, &command, "labyard")?;
    Ok(0)
}

fn write(folder: &Path, command: &Command, name: &str) -> Result<(), anyhow::Error> {
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    // By the name under which man(1) finds it; what is typed has spaces.
    let titled = command.clone().display_name(name.to_owned());
    clap_mangen::Man::new(titled).render(&mut page)?;
    std::fs::write(&path, page).with_context(|| path.display().to_string())?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write(folder, verb, &format!("{name}-{}", verb.get_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(command: &Command, name: &str, found: &mut Vec<(String, String)>) {
        let help = command.clone().render_long_help().to_string();
        found.push((name.to_owned(), help));
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            all(verb, &format!("{name} {}", verb.get_name()), found);
        }
    }

    #[test]
    fn every_command_has_help_with_an_example_and_a_page() {
        let mut command = args::Command::command();
        command.build();
        let mut found = Vec::new();
        all(&command, "labyard", &mut found);
        assert!(found.len() > 40, "{}", found.len());
        let without: Vec<_> = found
            .iter()
            .filter(|(name, help)| {
                let shown = help.split("Example").nth(1).unwrap_or_default();
                !shown.lines().any(|line| line.contains(name.as_str()))
            })
            .map(|(name, _)| name)
            .collect();
        assert!(without.is_empty(), "no example that begins like this: {without:#?}");

        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(man(folder.path()).expect("written"), 0);
        for (name, _) in found {
            let name = name.replace(' ', "-");
            let page = std::fs::read_to_string(folder.path().join(format!("{name}.1"))).expect("a page");
            assert!(page.contains(&format!(".TH {name} 1")), "{name}: {}", page.lines().take(6).collect::<String>());
            assert!(page.contains("Example"), "{name}");
        }
    }
}
