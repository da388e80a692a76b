//! The command line: what can be asked, and the answers.

mod images;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use labyard_rootfs_builder::build::{self, Destination, Format, Request};
use labyard_rootfs_builder::confine::Needs;
use labyard_rootfs_builder::kernel;
use labyard_rootfs_builder::store::{DEFAULT_SERIES, Store, StoreError};
use labyard_rootfs_builder::watch::Watch;
use labyard_spec::source::Source;
use serde_json::json;

use crate::Failure;

const EXAMPLES: &str = "Examples:
  rootfs-builder build oci://registry.example/team/app:1.2 --size 8GiB
  rootfs-builder build oci-layout:./debian:latest
  rootfs-builder build docker-archive:app.tar -o app.ext4
  rootfs-builder build rootfs-tar:bookworm.tar.zst --json
  rootfs-builder build dockerfile:./app
  rootfs-builder kernel add --image /boot/vmlinuz-6.12.0 --modules /lib/modules/6.12.0
  rootfs-builder kernel build
  rootfs-builder kernel ls
  rootfs-builder initramfs --kernel 6.12 --init ./labyard-init

A registry's image is fetched with the logins of docker, podman or skopeo, and from where registries.conf says.";

/// Makes disks for virtual machines from OCI images: without root, without mounting, the same bytes every time.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an image's disk, or find it in the store
    #[command(after_help = "Examples:
  rootfs-builder build oci://registry.example/team/app:1.2
  rootfs-builder build oci-layout:./debian:latest --size 8GiB
  rootfs-builder build rootfs-tar:root.tar.gz -o root.ext4
  rootfs-builder build oci-layout:./models:7b --format erofs")]
    Build(Build),
    /// Write an image of the store to a file, for another store
    #[command(after_help = "Example:\n  rootfs-builder export 3f2a9c… debian.labyard")]
    Export(images::Export),
    /// Put into the store what `export` wrote, or build a layout or an archive of `docker save`
    #[command(after_help = "Examples:
  rootfs-builder import debian.labyard
  rootfs-builder import app.tar --size 8GiB")]
    Import(images::Import),
    /// Give an image to a registry, all its platforms
    #[command(after_help = "Examples:
  rootfs-builder push oci-layout:./debian:latest oci://registry.example/team/debian:12
  rootfs-builder push oci-layout:app.tar oci://127.0.0.1:5000/app:1 --json

Blobs that the registry has are not sent, and what broke off is taken up again where the registry allows it. Logins are those of docker, podman and skopeo.")]
    Push(images::Push),
    /// Read images and blobs of the store again and hold them against their digests
    #[command(after_help = "Examples:
  rootfs-builder verify
  rootfs-builder verify --json | jq '.objects[] | select(.fault)'

Exit code 1 where something is damaged.")]
    Verify(images::Verify),
    /// Make an image of a root file system that comes as a tar on standard input
    #[command(after_help = "Example:
  rootfs-builder bake ./web --like oci-layout:./debian:latest < root.tar
  rootfs-builder push oci-layout:./web:baked oci://registry.example/team/web:1

The image is an OCI layout with one layer; what it starts, its environment and its labels are those of the other image.")]
    Bake(images::Bake),
    /// Guest kernels
    #[command(subcommand)]
    Kernel(Kernel),
    /// Make the initramfs of a kernel, or find it in the store
    Initramfs(Initramfs),
}

#[derive(Debug, Args)]
struct Build {
    /// Where the image is
    #[arg(
        help = "oci://REGISTRY/REPO:TAG[@DIGEST], oci-layout:PATH[:TAG], docker-archive:PATH, rootfs-tar:PATH, dockerfile:PATH or a name of the catalogue"
    )]
    source: Source,
    /// Length of the disk; the file is sparse
    #[arg(long, default_value = "4GiB", value_parser = size)]
    size: u64,
    /// Write the disk to FILE instead of the store
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Its file system: ext4, or erofs for data that is only ever read, as small as its content
    #[arg(long, value_name = "FORMAT", default_value = "ext4", value_parser = [Format::Ext4.name(), Format::Erofs.name()])]
    format: String,
    /// Speak to registries without TLS; those on this machine need no asking
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Kernel {
    /// Put a kernel and its modules into the store
    #[command(after_help = "Examples:
  rootfs-builder kernel add \"$(kernel/build)\"
  rootfs-builder kernel add --image /boot/vmlinuz-6.12.0 --modules /lib/modules/6.12.0")]
    Add {
        /// A folder as kernel/build and kernel/fetch print it: vmlinux or vmlinuz, and modules
        #[arg(conflicts_with_all = ["image", "modules"], required_unless_present_all = ["image", "modules"])]
        folder: Option<PathBuf>,
        /// The kernel: a bzImage (vmlinuz) or an ELF image (vmlinux)
        #[arg(long, value_name = "FILE", requires = "modules")]
        image: Option<PathBuf>,
        /// Its /lib/modules/VERSION, with modules.dep
        #[arg(long, value_name = "FOLDER", requires = "image")]
        modules: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Build a tuned kernel from Debian's kernel source and put it into the store; takes minutes, the second time none
    #[command(after_help = "Examples:
  rootfs-builder kernel build
  rootfs-builder kernel build --series 6.1 --json")]
    Build {
        /// Which of Debian's kernels it is built from
        #[arg(long, default_value = DEFAULT_SERIES, value_parser = kernel::recipe::SERIES)]
        series: String,
        #[command(flatten)]
        common: Common,
    },
    /// List the kernels in the store, best first
    Ls(Common),
}

#[derive(Debug, Args)]
struct Initramfs {
    /// A kernel's id, version or series
    #[arg(long)]
    kernel: String,
    /// The static labyard-init
    #[arg(long, value_name = "FILE")]
    init: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// The state directory; $LABYARD_HOME, else /var/lib/labyard for root, else $XDG_DATA_HOME/labyard
    #[arg(long, value_name = "HOME")]
    store: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl Common {
    fn home(&self) -> Result<PathBuf, Failure> {
        self.store.clone().or_else(default_home).ok_or_else(|| Failure {
            text: "no state directory: neither --store nor $LABYARD_HOME, $XDG_DATA_HOME or $HOME is set".to_owned(),
            is_input: true,
        })
    }

    fn open(&self) -> Result<Store, Failure> {
        Store::open(self.home()?).map_err(store_failed)
    }
}

pub(crate) fn run(arguments: Arguments, watch: &Watch) -> Result<(), Failure> {
    match arguments.command {
        Command::Build(build) => self::build(build, watch),
        Command::Export(export) => images::export(export, watch),
        Command::Import(import) => images::import(import, watch),
        Command::Push(push) => images::push(push, watch),
        Command::Verify(verify) => images::verify(verify, watch),
        Command::Bake(bake) => images::bake(bake, watch),
        Command::Kernel(Kernel::Add { folder, image, modules, common }) => {
            let store = common.open()?;
            let (image, modules) = match (folder, image, modules) {
                (Some(folder), ..) => kernel::in_folder(&folder).map_err(kernel_failed)?,
                (None, Some(image), Some(modules)) => (image, modules),
                (None, ..) => {
                    return Err(Failure { text: "give FOLDER, or --image and --modules".into(), is_input: true });
                }
            };
            add_kernel(&store, &image, &modules, common.json, watch)
        }
        Command::Kernel(Kernel::Build { series, common }) => {
            let store = common.open()?;
            let folder = kernel::recipe::build(&store, &series, watch)
                .map_err(|error| Failure::new(&error, error.is_input()))?;
            let (image, modules) = kernel::in_folder(&folder).map_err(kernel_failed)?;
            add_kernel(&store, &image, &modules, common.json, watch)
        }
        Command::Kernel(Kernel::Ls(common)) => list_kernels(&common),
        Command::Initramfs(Initramfs { kernel, init, common }) => {
            let store = common.open()?;
            let kernel = store.kernel(&kernel).map_err(store_failed)?;
            // It is ours, and lies where the programs do, which may be on a file system whose files Landlock cannot name.
            let init = kernel::initramfs::Init::read(&init);
            let init = init.map_err(|error| Failure::new(&error, error.is_input()))?;
            let needs = Needs { writes: vec![store.home.join("kernels")], ..Needs::default() };
            images::confined(&needs)?;
            let path = kernel::initramfs::ensure(&store, &kernel, &init)
                .map_err(|error| Failure::new(&error, error.is_input()))?;
            if common.json {
                println!("{}", json!({ "path": path }));
            } else {
                println!("{}", path.display());
            }
            Ok(())
        }
    }
}

fn kernel_failed(error: kernel::KernelError) -> Failure {
    Failure::new(&error, error.is_input())
}

fn add_kernel(store: &Store, image: &Path, modules: &Path, json: bool, watch: &Watch) -> Result<(), Failure> {
    // Its configuration lies beside it, or beside what it is a link to.
    let real = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    let reads = vec![images::beside(image), images::beside(&real), modules.to_owned()];
    let needs = Needs { reads, writes: vec![store.home.join("kernels")], ..Needs::default() };
    images::confined(&needs)?;
    let (record, cached) = kernel::add(store, image, modules, watch).map_err(kernel_failed)?;
    let path = store.kernel_dir(&record);
    if json {
        println!("{}", json!({ "id": record.id, "path": path, "cached": cached }));
    } else {
        println!("{} {}", record.id, if cached { "was there" } else { "added" });
    }
    Ok(())
}

fn build(arguments: Build, watch: &Watch) -> Result<(), Failure> {
    let Build { source, size, output, format, plain_http, common } = arguments;
    let format = Format::named(&format).expect("only names are let in");
    let home = common.home()?;
    let destination = match output {
        Some(path) => Destination::File(path),
        None => Destination::Store(common.open()?),
    };
    let request = Request { source, size_bytes: size, format, destination, home, plain_http, confined: true };
    let built = build::build(&request, watch).map_err(|error| Failure::new(&error, error.is_input()))?;
    let record = &built.record;
    if common.json {
        let answer = json!({
            "key": record.key,
            "path": built.path,
            "cached": built.cached,
            "entries": record.entries,
            "bytes": record.size_bytes,
            "confined": built.confined,
        });
        println!("{answer}");
    } else {
        let how = if built.cached { "was there" } else { "built" };
        println!("{} {how}: {} entries, {} bytes", built.path.display(), record.entries, record.size_bytes);
    }
    Ok(())
}

fn list_kernels(common: &Common) -> Result<(), Failure> {
    let store = common.open()?;
    let kernels = store.kernels().map_err(store_failed)?;
    let default = store.default_kernel().ok().map(|kernel| kernel.id);
    if common.json {
        let list: Vec<_> = kernels
            .iter()
            .map(|kernel| {
                let mut value = json!(kernel);
                value["path"] = json!(store.kernel_dir(kernel));
                value["default"] = json!(default.as_ref() == Some(&kernel.id));
                value
            })
            .collect();
        println!("{}", json!(list));
        return Ok(());
    }
    if kernels.is_empty() {
        println!("no kernels in {}; add one with `rootfs-builder kernel add`", store.home.display());
    }
    for kernel in &kernels {
        let mark = if default.as_ref() == Some(&kernel.id) { "  (default)" } else { "" };
        println!("{:8} {}{mark}", kernel.series, kernel.id);
    }
    Ok(())
}

fn store_failed(error: StoreError) -> Failure {
    Failure::new(&error, matches!(error, StoreError::NoKernel { .. } | StoreError::OtherFormat { .. }))
}

fn default_home() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(home) = folder("LABYARD_HOME") {
        return Some(home);
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/labyard"));
    }
    let data = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")))?;
    Some(data.join("labyard"))
}

/// `512MiB`, `4GiB`, also `4G` and `4Gi`; plain numbers are bytes. Powers of 1,024 throughout.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size such as 512MiB or 4GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim_start();
    if matches!(unit, "" | "bytes") {
        return Ok(number);
    }
    let shift = [("K", 10), ("M", 20), ("G", 30), ("T", 40)].into_iter().find_map(|(letter, shift)| {
        let rest = unit.strip_prefix(letter)?;
        matches!(rest, "" | "i" | "iB").then_some(shift)
    });
    number.checked_mul(1 << shift.ok_or_else(wrong)?).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_with_every_unit_and_nothing_else_is() {
        for (text, bytes) in
            [("4096", 4096), ("512MiB", 512 << 20), ("4G", 4 << 30), ("1Ti", 1 << 40), ("4100 bytes", 4100)]
        {
            assert_eq!(size(text), Ok(bytes));
        }
        for text in ["", "GiB", "4GB", "-1G", "4 parsecs", "99999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
