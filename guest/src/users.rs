//! Users of the image: `/etc/passwd` and `/etc/group`, read as text (passwd(5), group(5)).
//!
//! The files belong to the guest, so lines that are not well formed are passed over, never believed.

use std::path::Path;

/// Who a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The groups beside the first.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// A user that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("no user `{0}` in /etc/passwd: name one that is there, or a uid")]
    NoUser(String),
    #[error("no group `{0}` in /etc/group: name one that is there, or a gid")]
    NoGroup(String),
}

/// Finds `wanted` (`user`, `uid`, either with `:group` or `:gid`) in the files below `root`. Empty is root; a uid that
/// nobody has is taken as it is, with group 0 (what container runtimes do).
pub(crate) fn find(root: &Path, wanted: &str) -> Result<User, UserError> {
    // A missing file is an image without users; uid 0 exists all the same.
    let read = |name: &str| std::fs::read(root.join(name)).map(|text| String::from_utf8_lossy(&text).into_owned());
    find_in(&read("etc/passwd").unwrap_or_default(), &read("etc/group").unwrap_or_default(), wanted)
}

/// The same in the text of both files.
pub(crate) fn find_in(passwd: &str, group: &str, wanted: &str) -> Result<User, UserError> {
    let (wanted, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let wanted = if wanted.is_empty() { "root" } else { wanted };
    let mut user = passwd
        .lines()
        .filter_map(user_of)
        .find(|user| user.name == wanted)
        .or_else(|| {
            let uid = if wanted == "root" { 0 } else { wanted.parse().ok()? };
            Some(passwd.lines().filter_map(user_of).find(|user| user.uid == uid).unwrap_or_else(|| nameless(uid)))
        })
        .ok_or_else(|| UserError::NoUser(wanted.to_owned()))?;
    user.groups = group
        .lines()
        .filter_map(group_of)
        .filter(|(_, gid, members)| *gid != user.gid && members.split(',').any(|name| name == user.name))
        .map(|(_, gid, _)| gid)
        .collect();
    if let Some(wanted) = wanted_group {
        user.gid = group
            .lines()
            .filter_map(group_of)
            .find(|(name, ..)| *name == wanted)
            .map(|(_, gid, _)| gid)
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))?;
        // An explicit group stands alone, as in the OCI image configuration.
        user.groups.clear();
    }
    Ok(user)
}

fn user_of(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    let (home, shell) = (fields.nth(1)?, fields.next()?);
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    Some(User { name: name.to_owned(), uid, gid, groups: Vec::new(), home: or(home, "/"), shell: or(shell, "/bin/sh") })
}

fn group_of(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
    Some((name, gid, fields.next()?))
}

fn nameless(uid: u32) -> User {
    let (name, home) = if uid == 0 { ("root".to_owned(), "/root") } else { (uid.to_string(), "/") };
    User { name, uid, gid: 0, groups: Vec::new(), home: home.to_owned(), shell: "/bin/sh".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\nbroken\nodd:x:-1:0::/:\n\
        ann:x:1000:1000:Ann,,,:/home/ann:/bin/zsh\nbare:x:1001:100:::\n";
    const GROUP: &str =
        "root:x:0:\nwheel:x:10:root,ann\nann:x:1000:ann\nanna:x:5:anna\nbroken:x\nvideo:x:44:bare,ann\n";

    #[test]
    fn a_user_is_found_by_name_and_by_uid_with_all_groups() {
        let ann = find_in(PASSWD, GROUP, "ann").expect("ann");
        assert_eq!((ann.uid, ann.gid, ann.groups.as_slice()), (1000, 1000, &[10, 44][..]));
        assert_eq!((ann.home.as_str(), ann.shell.as_str()), ("/home/ann", "/bin/zsh"));
        assert_eq!(find_in(PASSWD, GROUP, "1000").expect("by uid"), ann);
    }

    #[test]
    fn empty_fields_have_defaults_and_an_empty_user_is_root() {
        let bare = find_in(PASSWD, GROUP, "bare").expect("bare");
        assert_eq!((bare.home.as_str(), bare.shell.as_str()), ("/", "/bin/sh"));
        assert_eq!(find_in(PASSWD, GROUP, "").expect("root").uid, 0);
        assert_eq!(find_in("", "", "root").expect("root").home, "/root");
    }

    #[test]
    fn an_explicit_group_replaces_all_others() {
        for wanted in ["ann:video", "1000:44"] {
            let ann = find_in(PASSWD, GROUP, wanted).expect(wanted);
            assert_eq!((ann.uid, ann.gid, ann.groups.len()), (1000, 44, 0), "{wanted}");
        }
        let stranger = find_in(PASSWD, GROUP, "4242").expect("a uid that nobody has");
        assert_eq!((stranger.uid, stranger.gid), (4242, 0));
    }

    #[test]
    fn who_is_not_there_is_refused_by_name() {
        for (wanted, part) in [("eve", "`eve`"), ("odd", "`odd`"), ("ann:none", "`none`"), ("-1", "`-1`")] {
            let error = find_in(PASSWD, GROUP, wanted).expect_err(wanted).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
