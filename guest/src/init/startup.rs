//! Files of the manifest, and greetings: written once, before the machine's own init starts.
//!
//! What was written is remembered in the root, so that a restart changes nothing that somebody has changed since; a manifest that asks
//! for something else is carried out again.

use std::io;

use labyard_spec::guest::{MachineConfig, StartupFile, User};

use super::WHO;
use crate::below::Below;
use crate::console::{chain, say};
use crate::users;

/// What was written last.
const REMEMBERED: &str = "/var/lib/labyard/startup.json";
/// What is shown at a login (motd(5)).
const MOTD: &str = "/etc/motd";

#[derive(Debug, thiserror::Error)]
pub(super) enum StartupError {
    #[error("startup file {path}: {doing}")]
    File { path: String, doing: &'static str, source: io::Error },
    #[error("startup file {path}: its owner")]
    Owner { path: String, source: users::UserError },
}

/// Writes files and greetings, where that was not done before.
pub(super) fn write(root: &Below, config: &MachineConfig) -> Result<(), StartupError> {
    if config.startup_files.is_empty() && config.users.iter().all(|user| user.welcome.is_none()) {
        return Ok(());
    }
    let wanted = serde_json::to_vec(&(&config.startup_files, &config.users)).unwrap_or_default();
    // A memory that cannot be read is one of nothing.
    if root.read(REMEMBERED).ok().flatten().is_some_and(|known| known == wanted) {
        return Ok(());
    }
    for file in &config.startup_files {
        self::file(root, file)?;
    }
    // A greeting is no reason to stop.
    welcome(root, &config.users).unwrap_or_else(|error| say(WHO, format_args!("greeting users: {error}")));
    let remembered = root.put(REMEMBERED, &wanted, 0o600, (0, 0));
    remembered.unwrap_or_else(|error| {
        say(WHO, chain(&StartupError::File { path: REMEMBERED.to_owned(), doing: "writing", source: error }))
    });
    Ok(())
}

fn file(root: &Below, file: &StartupFile) -> Result<(), StartupError> {
    let fail = |doing| move |source| StartupError::File { path: file.path.clone(), doing, source };
    let owner = file.owner.as_deref().map(|owner| {
        find(root, owner)
            .map(|user| (user.uid, user.gid))
            .map_err(|source| StartupError::Owner { path: file.path.clone(), source })
    });
    let owner = owner.transpose()?;
    if file.append && root.append(&file.path, file.content.as_bytes()).map_err(fail("appending"))? {
        return match (file.mode, owner) {
            (None, None) => Ok(()),
            (mode, owner) => root.set(&file.path, mode, owner).map_err(fail("setting its mode and owner")),
        };
    }
    let mode = file.mode.unwrap_or(0o644);
    root.put(&file.path, file.content.as_bytes(), mode, owner.unwrap_or((0, 0))).map_err(fail("writing"))
}

fn find(root: &Below, wanted: &str) -> Result<users::User, users::UserError> {
    let text = |path: &str| {
        let bytes = root.read(path).ok().flatten().unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    users::find_in(&text("/etc/passwd"), &text("/etc/group"), wanted)
}

/// The first text greets everybody, and who is to have none has a `.hushlogin` (login(1), sshd(8)).
fn welcome(root: &Below, users: &[User]) -> io::Result<()> {
    let texts = || users.iter().filter_map(|user| Some((user, user.welcome.as_deref()?)));
    if let Some((_, text)) = texts().find(|(_, text)| *text != "-") {
        root.put_file(MOTD, &format!("{}\n", text.trim_end_matches('\n')))?;
    }
    for (user, _) in texts().filter(|(_, text)| *text == "-") {
        let found = find(root, &user.name).map_err(io::Error::other)?;
        if root.has_dir(&found.home) {
            root.put(&format!("{}/.hushlogin", found.home), b"", 0o644, (found.uid, found.gid))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn config(startup_files: Vec<StartupFile>, users: Vec<User>) -> MachineConfig {
        let text = r#"{"hostname":"web","hosts":[],"interfaces":[],"nameservers":[],"drives":[],"entrypoint":null,"early_modules":[],"late_modules":[],"boot_marker":false}"#;
        MachineConfig { startup_files, users, ..serde_json::from_str(text).expect("a machine") }
    }

    fn asked(path: &str, content: &str, append: bool) -> StartupFile {
        StartupFile { path: path.to_owned(), content: content.to_owned(), append, owner: None, mode: None }
    }

    fn image() -> (tempfile::TempDir, Below) {
        let image = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(image.path().join("etc")).expect("a folder");
        let root = Below::open(image.path()).expect("opening it");
        (image, root)
    }

    #[test]
    fn files_are_written_once_and_again_only_when_something_else_is_asked_for() {
        let (image, root) = image();
        let read = |path: &str| fs::read_to_string(image.path().join(path)).expect("a file");
        fs::write(image.path().join("etc/profile"), "before\n").expect("a file");
        let mut wanted = config(vec![asked("/srv/a/b", "new\n", false), asked("/etc/profile", "more\n", true)], vec![]);
        wanted.startup_files[0].mode = Some(0o4750);
        write(&root, &wanted).expect("writing");
        assert_eq!((read("srv/a/b").as_str(), read("etc/profile").as_str()), ("new\n", "before\nmore\n"));
        let mode = |path: &str| fs::metadata(image.path().join(path)).expect("a file").mode() & 0o7777;
        assert_eq!((mode("srv/a/b"), mode("etc/profile")), (0o4750, 0o644));
        fs::write(image.path().join("srv/a/b"), "changed since").expect("a file");
        write(&root, &wanted).expect("the next boot");
        assert_eq!((read("srv/a/b").as_str(), read("etc/profile").as_str()), ("changed since", "before\nmore\n"));
        wanted.startup_files.truncate(1);
        write(&root, &wanted).expect("another manifest");
        assert_eq!(read("srv/a/b"), "new\n");
    }

    #[test]
    fn owners_are_users_of_the_image_and_others_are_named() {
        let (image, root) = image();
        let own = rustix::process::geteuid().as_raw();
        fs::write(image.path().join("etc/passwd"), format!("me:x:{own}:{own}::/:/bin/sh\n")).expect("a file");
        let with = |owner: &str| StartupFile { owner: Some(owner.to_owned()), ..asked("/file", "x", false) };
        write(&root, &config(vec![with("me")], vec![])).expect("writing");
        assert_eq!(fs::metadata(image.path().join("file")).expect("a file").uid(), own);
        let error = write(&root, &config(vec![with("eve")], vec![])).expect_err("nobody of that name");
        assert!(chain(&error).contains("`eve`"), "{error}");
    }

    #[test]
    fn links_of_the_image_lead_nowhere_outside() {
        let (image, root) = image();
        let outside = tempfile::tempdir().expect("a folder");
        let victim = outside.path().join("victim");
        fs::write(&victim, "untouched").expect("a file");
        symlink(&victim, image.path().join("link")).expect("a link");
        symlink(outside.path(), image.path().join("folder")).expect("a link");
        let files = vec![asked("/link", "x", true), asked("/link", "x", false), asked("/etc/x", "x", false)];
        write(&root, &config(files, vec![])).expect("writing");
        let _ = write(&root, &config(vec![asked("/folder/victim", "x", true)], vec![]));
        assert_eq!(fs::read_to_string(&victim).expect("the victim"), "untouched");
    }

    #[test]
    fn users_are_greeted_as_the_manifest_says() {
        let (image, root) = image();
        let own = rustix::process::geteuid().as_raw();
        fs::write(image.path().join("etc/passwd"), format!("quiet:x:{own}:{own}::/home/quiet:/bin/sh\n"))
            .expect("a file");
        fs::create_dir_all(image.path().join("home/quiet")).expect("a folder");
        let user = |name: &str, welcome: Option<&str>| User { name: name.into(), welcome: welcome.map(str::to_owned) };
        let users = vec![user("root", Some("Data is in /srv.")), user("quiet", Some("-")), user("other", None)];
        write(&root, &config(vec![], users)).expect("writing");
        assert_eq!(fs::read_to_string(image.path().join("etc/motd")).expect("a file"), "Data is in /srv.\n");
        assert!(image.path().join("home/quiet/.hushlogin").exists());
    }
}
