//! Images of a real registry: passwords and tokens, connections that break, bytes that rot, tags that move.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod afar;
mod hostile;
#[path = "../images/layout.rs"]
#[expect(dead_code, reason = "the image tests use more of it")]
mod layout;
mod proxy;
mod push;
mod server;
mod shared;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use layout::{Layer, Layout, Packing};
use proxy::{Fault, Proxy};
use serde_json::Value;
use server::{Access, DEADLINE, PASSWORD, Registry, USER, login};

/// One person's account: a store, login files, settings.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn builder(&self, image: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rootfs-builder"));
        command
            .args(["build", &format!("oci://{image}"), "--size", "64MiB", "--json", "--store"])
            .arg(self.path("store"))
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.0.path().display()))
            .env("HOME", self.0.path())
            .env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"))
            .env("REGISTRY_AUTH_FILE", self.path("auth.json"))
            .stdin(Stdio::null());
        for (name, empty) in [("registries.conf", ""), ("auth.json", "{}")] {
            if !self.path(name).exists() {
                fs::write(self.path(name), empty).unwrap();
            }
        }
        command
    }

    fn run(&self, image: &str) -> Output {
        self.builder(image).output().unwrap()
    }

    #[track_caller]
    fn built(&self, image: &str) -> Value {
        let output = self.run(image);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(String::from_utf8(output.stdout).unwrap().lines().last().unwrap()).unwrap()
    }

    /// The one line of an error, and the exit code.
    #[track_caller]
    fn refused(&self, image: &str) -> (String, i32) {
        let output = self.run(image);
        assert!(!output.status.success(), "it worked");
        let text = String::from_utf8(output.stderr).unwrap();
        let line = text.lines().last().unwrap_or_default().to_owned();
        assert!(line.starts_with("error: "), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
        (line, output.status.code().unwrap())
    }

    /// Names of blobs, finished and not.
    fn blobs(&self) -> Vec<String> {
        let Ok(list) = fs::read_dir(self.path("store/blobs/sha256")) else { return vec![] };
        list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn parts(&self) -> usize {
        self.blobs().iter().filter(|name| name.starts_with('.')).count()
    }
}

/// Bytes that no compression makes smaller, the same for the same seed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// An image of two layers; `text` is in it.
fn image(path: &Path, text: &str) -> Layout {
    let mut layout = Layout::new(path);
    layout.layer(Layer::new().directory("etc/").file("etc/motd", text.as_bytes()), Packing::Gzip);
    layout.layer(Layer::new().file("noise", &noise(2 << 20, 7)), Packing::Zstd);
    layout.finish("it");
    layout
}

/// A registry that has an image `it:1`, and somebody who wants it.
struct Scene {
    home: Home,
    registry: Registry,
    layout: Layout,
    _folder: tempfile::TempDir,
}

fn scene(access: Access) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let (layout, registry) = (image(folder.path(), "hello"), Registry::start(access));
    registry.push(folder.path(), "it:1");
    Scene { home: Home::new(), registry, layout, _folder: folder }
}

#[test]
fn an_image_is_the_same_from_a_registry_and_from_a_layout() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    image(work.path(), "hello");
    let registry = Registry::start(Access::Everybody);
    registry.push(work.path(), "team/it:1");
    let answer = home.built(&registry.image("team/it:1"));
    assert_eq!(answer["cached"], false);
    let record: Value = serde_json::from_slice(
        &fs::read(home.path("store/images").join(answer["key"].as_str().unwrap()).join("image.json")).unwrap(),
    )
    .unwrap();
    let by_digest = registry.image(&format!("team/it@{}", record["digest"].as_str().unwrap()));
    assert_eq!(home.built(&by_digest)["cached"], true);
    let layout = format!("oci-layout:{}", work.path().display());
    let output = Command::new(env!("CARGO_BIN_EXE_rootfs-builder"))
        .args(["build", &layout, "--size", "64MiB", "--json", "--store"])
        .arg(home.path("store"))
        .output()
        .unwrap();
    let same: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&same["key"], &same["cached"]), (&answer["key"], &Value::Bool(true)));
    assert_eq!(home.parts(), 0);
}

#[test]
fn a_tag_that_moves_is_followed() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    let registry = Registry::start(Access::Everybody);
    let mut keys = vec![];
    for text in ["first", "second"] {
        let folder = work.path().join(text);
        image(&folder, text);
        registry.push(&folder, "it:latest");
        keys.push(home.built(&registry.image("it"))["key"].clone());
    }
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn a_registry_with_passwords_or_tokens_wants_the_right_one() {
    for access in [Access::Password, Access::Token] {
        let Scene { home, registry, .. } = &scene(access);
        let image = registry.image("it:1");
        let host = image.split('/').next().unwrap();

        let (error, code) = home.refused(&image);
        assert!(error.contains("refuses") && error.contains(&format!("skopeo login {host}")), "{error}");
        assert_eq!(code, 2, "{error}");
        login(&home.path("auth.json"), host, USER, "wrong horse");
        let (error, code) = home.refused(&image);
        assert!(error.contains(USER) && error.contains("auth.json") && !error.contains("horse"), "{error}");
        assert_eq!(code, 2, "{error}");
        assert_eq!(home.blobs().len(), 0);
        login(&home.path("auth.json"), host, USER, PASSWORD);
        home.built(&image);

        // The next person with the same store has to prove it anew, and so has the first one without the login.
        fs::write(home.path("auth.json"), "{}").unwrap();
        let (error, _) = home.refused(&image);
        assert!(error.contains("refuses"), "{error}");
    }
}

#[test]
fn a_credential_helper_is_asked() {
    use std::os::unix::fs::PermissionsExt;
    let Scene { home, registry, .. } = &scene(Access::Password);
    let image = registry.image("it:1");
    let host = image.split('/').next().unwrap();
    let helper = home.path("docker-credential-test");
    let script = format!(
        "#!/bin/sh\n[ \"$1 $(cat)\" = 'get {host}' ] || exit 1\necho '{{\"ServerURL\":\"x\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n"
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(home.path("auth.json"), format!(r#"{{"credHelpers": {{"{host}": "test"}}}}"#)).unwrap();
    home.built(&image);
}

#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    let Scene { home, registry, .. } = &scene(Access::Everybody);
    let proxy = Proxy::new(registry.port, Fault::Cut(300 << 10));
    home.built(&format!("127.0.0.1:{}/it:1", proxy.port));
    let (connections, bytes) = (proxy.connections(), proxy.bytes());
    assert!(connections > 6, "2 MiB in {connections} connections of 300 KiB");
    assert!(bytes < 3 << 20, "{bytes} bytes for 2 MiB: it began from the start again");
}

#[test]
fn what_came_before_a_registry_went_away_is_kept() {
    let Scene { home, registry, layout, .. } = &scene(Access::Everybody);
    // Documents, one layer, half of the other.
    let dying = Proxy::new(registry.port, Fault::Dies(1 << 20));
    let settings = format!("[[registry]]\nprefix = \"images.example\"\nlocation = \"127.0.0.1:{}\"\n", dying.port);
    fs::write(home.path("registries.conf"), settings).unwrap();
    let (error, code) = home.refused("images.example/it:1");
    assert!(error.contains("broken off at") && error.contains("goes on from it"), "{error}");
    assert_eq!(code, 1, "{error}");
    let digest = layout.layer_digests()[1].clone();
    let whole = fs::metadata(registry.blob(&digest)).unwrap().len();
    let part = format!(".part-{}", digest.strip_prefix("sha256:").unwrap());
    assert!(home.blobs().contains(&part), "of both layers, whichever broke first: {:?}", home.blobs());
    let counting = Proxy::new(registry.port, Fault::None);
    home.built(&format!("127.0.0.1:{}/it:1", counting.port));
    let bytes = counting.bytes();
    assert!(bytes < 3 * whole / 4, "{bytes} of {whole} bytes fetched, half were there");

    // What lies there is not trusted: a rotten beginning is found by the digest, and gone.
    let other = Home::new();
    fs::create_dir_all(other.path("store/blobs/sha256")).unwrap();
    fs::write(other.path("store/blobs/sha256").join(part), vec![1; 1000]).unwrap();
    let (error, _) = other.refused(&registry.image("it:1"));
    assert!(error.contains(&digest), "{error}");
    assert_eq!(other.parts(), 0);
    other.built(&registry.image("it:1"));
}

#[test]
fn a_blob_that_rots_on_the_server_is_named() {
    let Scene { home, registry, layout, .. } = &scene(Access::Everybody);
    let digest = layout.layer_digests()[1].clone();
    let path = registry.blob(&digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (error, code) = home.refused(&registry.image("it:1"));
    assert!(error.contains(&format!("layer 2 of 2 ({digest})")) && error.contains("damaged"), "{error}");
    assert_eq!(code, 1);
    assert_eq!(home.parts(), 0);
}

#[test]
fn an_interrupted_pull_leaves_no_half_blob() {
    let Scene { home, registry, .. } = &scene(Access::Everybody);
    let proxy = Proxy::new(registry.port, Fault::Silence(400 << 10));
    let mut child = home
        .builder(&format!("127.0.0.1:{}/it:1", proxy.port))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let begun = lines.by_ref().map(|line| line.unwrap()).find(|line| line.starts_with("fetching"));
    assert!(begun.is_some());
    let end = Instant::now() + DEADLINE;
    while home.parts() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        assert!(Instant::now() < end, "no blob is begun: {:?}", home.blobs());
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let last = lines.map(|line| line.unwrap()).last().unwrap();
    assert_eq!(last, "error: interrupted; nothing was left behind");
    assert_eq!(home.parts(), 0);
}

#[test]
fn on_a_terminal_a_bar_moves_and_ctrl_c_leaves_no_half_blob() {
    let Scene { home, registry, .. } = &scene(Access::Everybody);
    let proxy = Proxy::new(registry.port, Fault::Silence(1 << 20));
    let builder = home.builder(&format!("127.0.0.1:{}/it:1", proxy.port));
    // script(1) makes the terminal; what comes on its standard input was typed there.
    let words: Vec<_> = std::iter::once(builder.get_program()).chain(builder.get_args()).collect();
    let line = words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let mut terminal = Command::new("script");
    terminal.args(["-qefc", &line, "/dev/null"]).env_clear().env("TERM", "xterm").env("SHELL", "/bin/sh");
    terminal.envs(builder.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script, of bsdutils");
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut seen, mut chunk) = (String::new(), [0; 4096]);
    while !(seen.contains("blobs [") && seen.contains("MiB/")) {
        let len = screen.read(&mut chunk).unwrap();
        assert!(len > 0, "it ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..len]));
    }
    keys.write_all(b"\x03").unwrap();
    let mut rest = vec![];
    screen.read_to_end(&mut rest).unwrap();
    seen.push_str(&String::from_utf8_lossy(&rest));
    assert!(seen.trim_end().ends_with("error: interrupted; nothing was left behind"), "{seen}");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(home.parts(), 0);
}

#[test]
fn layers_come_several_at_once_over_a_bounded_number_of_connections() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    let mut layout = Layout::new(work.path());
    for number in 0..16 {
        layout.layer(Layer::new().file(&format!("f{number}"), &noise(500_000, number)), Packing::Plain);
    }
    layout.finish("it");
    let registry = Registry::start(Access::Everybody);
    registry.push(work.path(), "it:1");
    let proxy = Proxy::new(registry.port, Fault::None);
    home.built(&format!("127.0.0.1:{}/it:1", proxy.port));
    // Four that move blobs, and the one that asked whether TLS is spoken.
    assert!((2..=5).contains(&proxy.most()), "{} connections at once", proxy.most());
}

#[test]
fn two_pulls_of_one_image_share_the_work() {
    let Scene { home, registry, layout, .. } = &scene(Access::Everybody);
    let size: u64 =
        layout.layer_digests().iter().map(|digest| fs::metadata(registry.blob(digest)).unwrap().len()).sum();
    let proxy = Proxy::new(registry.port, Fault::None);
    let image = format!("127.0.0.1:{}/it:1", proxy.port);
    let pulls: Vec<_> =
        (0..4).map(|_| home.builder(&image).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).collect();
    for pull in pulls {
        let output = pull.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(proxy.bytes() < size + size / 2, "{} bytes went over the wire for {size}", proxy.bytes());
    assert_eq!(home.parts(), 0);
}

#[test]
fn a_mirror_that_is_down_is_passed_over() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    image(work.path(), "hello");
    let registry = Registry::start(Access::Everybody);
    registry.push(work.path(), "cache/library/it:1");
    let settings = format!(
        "[[registry]]\nlocation = \"images.example\"\nblocked = false\n\
         [[registry.mirror]]\nlocation = \"127.0.0.1:1\"\n\
         [[registry.mirror]]\nlocation = \"127.0.0.1:{}/cache\"\n",
        registry.port
    );
    fs::write(home.path("registries.conf"), settings).unwrap();
    let output = home.run("images.example/library/it:1");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("127.0.0.1:1/library/it:1") && said.contains("trying the next place"), "{said}");

    // A file beside it has the last word.
    fs::create_dir(home.path("registries.conf.d")).unwrap();
    let blocked = "[[registry]]\nlocation = \"images.example\"\nblocked = true\n";
    fs::write(home.path("registries.conf.d/90-closed.conf"), blocked).unwrap();
    let (error, code) = home.refused("images.example/library/it:1");
    assert!(error.contains("`images.example` is blocked"), "{error}");
    assert_eq!(code, 2);
}

#[test]
fn what_is_not_there_is_named() {
    let home = Home::new();
    let registry = Registry::start(Access::Everybody);
    let (error, code) = home.refused(&registry.image("nobody/has:1"));
    assert!(error.contains("nobody/has:1: no such image"), "{error}");
    assert_eq!(code, 2);
    let (error, code) = home.refused("127.0.0.1:1/it:1");
    assert!(error.contains("127.0.0.1:1/it:1"), "{error}");
    assert_eq!(code, 1);
    let (error, code) = home.refused("127.0.0.1:1/IT:1");
    assert!(error.contains("REGISTRY/REPOSITORY:TAG"), "{error}");
    assert_eq!(code, 2);
}

/// The registry stops, and somebody with these logins asks for its image.
fn without_it(scene: &mut Scene, image: &str, logins: &str) -> (bool, String, i32) {
    scene.registry.stop();
    fs::write(scene.home.path("auth.json"), logins).unwrap();
    let output = scene.home.run(image);
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.success(), text, output.status.code().unwrap())
}

#[test]
fn a_public_image_is_there_for_everybody_while_its_registry_is_not() {
    let mut scene = scene(Access::Everybody);
    let image = scene.registry.image("it:1");
    let key = scene.home.built(&image)["key"].clone();
    let (works, text, _) = without_it(&mut scene, &image, "{}");
    assert!(works && text.contains("note: ") && text.contains("cannot be asked"), "{text}");
    assert!(text.contains("from the store, which anybody could have"), "{text}");
    let host = image.split('/').next().unwrap().to_owned();
    login(&scene.home.path("auth.json"), &host, "somebody", "else");
    assert_eq!(scene.home.built(&image)["key"], key);
    // Another tag, and another store, have nothing of it.
    let (error, code) = scene.home.refused(&scene.registry.image("it:2"));
    assert!(error.contains("cannot be asked") && code == 1, "{error}");
    assert_eq!(Home::new().refused(&image).1, 1);
    // What is not whole any more is not taken.
    fs::remove_file(scene.home.path("store/blobs/sha256").join(&scene.layout.layer_digests()[0][7..])).unwrap();
    let (error, code) = scene.home.refused(&image);
    assert!(error.contains("cannot be asked") && code == 1, "{error}");
}

#[test]
fn who_leads_a_name_elsewhere_decides_nothing_for_others() {
    let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
    let mut registries = [Registry::start(Access::Everybody), Registry::start(Access::Everybody)];
    for (registry, text) in registries.iter().zip(["hello", "something else"]) {
        image(&work.path().join(text), text);
        registry.push(&work.path().join(text), "it:1");
    }
    let lead_to = |registry: Option<&Registry>| {
        let settings = registry.map(|registry| {
            format!("[[registry]]\nprefix = \"images.example\"\nlocation = \"127.0.0.1:{}\"\n", registry.port)
        });
        fs::write(home.path("registries.conf"), settings.unwrap_or_default()).unwrap();
    };
    // Ada asks first, then eve, who has the same store and another idea of where the name leads.
    let keys = registries.each_ref().map(|registry| {
        lead_to(Some(registry));
        home.built("images.example/it:1")["key"].clone()
    });
    assert_ne!(keys[0], keys[1]);
    registries.iter_mut().for_each(Registry::stop);
    for (registry, key) in registries.iter().zip(&keys) {
        lead_to(Some(registry));
        assert_eq!(home.built("images.example/it:1")["key"], *key);
    }
    // Who leads it nowhere gets neither.
    lead_to(None);
    let (error, code) = home.refused("images.example/it:1");
    assert!(error.contains("images.example/it:1") && code == 1, "{error}");
}

#[test]
fn a_private_image_is_there_only_for_the_login_that_was_shown() {
    for access in [Access::Password, Access::Token] {
        let mut scene = scene(access);
        let image = scene.registry.image("it:1");
        let host = image.split('/').next().unwrap().to_owned();
        login(&scene.home.path("auth.json"), &host, USER, PASSWORD);
        let logins = fs::read_to_string(scene.home.path("auth.json")).unwrap();
        scene.home.built(&image);
        let (works, text, _) = without_it(&mut scene, &image, &logins);
        assert!(works && text.contains("your login was shown") && text.contains("counts for 900 s"), "{text}");
        // The second person of the store: without a login, with a wrong password, with another name.
        let (works, text, code) = without_it(&mut scene, &image, "{}");
        assert!(!works && text.contains("cannot be asked") && code == 1, "{text}");
        for (user, password) in [(USER, "wrong horse"), ("eve", PASSWORD)] {
            login(&scene.home.path("auth.json"), &host, user, password);
            assert_eq!(scene.home.refused(&image).1, 1);
        }
        // Too long ago.
        login(&scene.home.path("auth.json"), &host, USER, PASSWORD);
        scene.home.built(&image);
        let notes: Vec<_> =
            fs::read_dir(scene.home.path("store/access")).unwrap().map(|note| note.unwrap().path()).collect();
        let mut note: Value = serde_json::from_slice(&fs::read(&notes[0]).unwrap()).unwrap();
        note["proofs"][0]["at"] = (note["proofs"][0]["at"].as_u64().unwrap() - 900).into();
        fs::write(&notes[0], note.to_string()).unwrap();
        assert_eq!(scene.home.refused(&image).1, 1);
    }
}

#[test]
fn a_login_that_is_refused_ends_what_was_shown_before() {
    let mut scene = scene(Access::Password);
    let image = scene.registry.image("it:1");
    let host = image.split('/').next().unwrap().to_owned();
    login(&scene.home.path("auth.json"), &host, USER, PASSWORD);
    scene.home.built(&image);
    // The password is somebody else's now.
    fs::write(scene.registry.users(), "").unwrap();
    let (error, _) = scene.home.refused(&image);
    assert!(error.contains("refuses"), "{error}");
    let logins = fs::read_to_string(scene.home.path("auth.json")).unwrap();
    let (works, text, _) = without_it(&mut scene, &image, &logins);
    assert!(!works && text.contains("cannot be asked"), "{text}");
}

#[test]
fn an_image_by_digest_is_asked_for_once_in_a_while() {
    let Scene { home, registry, .. } = &scene(Access::Everybody);
    home.built(&registry.image("it:1"));
    let record = fs::read_dir(home.path("store/images")).unwrap().next().unwrap().unwrap().path().join("image.json");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    let proxy = Proxy::new(registry.port, Fault::None);
    let by_digest = format!("127.0.0.1:{}/it@{}", proxy.port, record["digest"].as_str().unwrap());
    home.built(&by_digest);
    let before = proxy.connections();
    assert!(before > 0);
    home.built(&by_digest);
    assert_eq!(proxy.connections(), before);
}

#[test]
fn a_blob_that_rots_in_the_store_is_fetched_again_by_the_next_pull() {
    let Scene { home, registry, layout, .. } = &scene(Access::Everybody);
    let key = home.built(&registry.image("it:1"))["key"].clone();
    let digest = &layout.layer_digests()[0];
    let path = home.path("store/blobs/sha256").join(&digest[7..]);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::remove_dir_all(home.path("store/images")).unwrap();
    let (error, _) = home.refused(&registry.image("it:1"));
    assert!(error.contains(digest) && error.contains("fetch the image again"), "{error}");
    assert_eq!(home.built(&registry.image("it:1"))["key"], key);
}
