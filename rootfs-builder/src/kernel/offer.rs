//! What is noted of a kernel for images that need something of it: its configuration and the names of its modules.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::modules::Index;

/// Longest configuration; Debian's have 270 KB.
const MAX_CONFIG: u64 = 4 << 20;
/// What is around a configuration that a kernel has in itself, packed with gzip (Linux, kernel/configs.c).
const BEGIN: &[u8] = b"IKCFG_ST";
const END: &[u8] = b"IKCFG_ED";

/// The text of its configuration: beside the image as a distribution or kernel/build has it, else from the image itself.
pub(super) fn config(image: &Path, version: &str, elf: &[u8]) -> io::Result<Option<String>> {
    let real = fs::canonicalize(image)?;
    let beside = [
        (image, "config"),
        (&real, "config"),
        (image, &*format!("config-{version}")),
        (&real, &format!("config-{version}")),
    ]
    .map(|(image, name)| image.with_file_name(name));
    for path in beside {
        match File::open(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            other => {
                let file = other?;
                // A folder `config` is somebody else's.
                if file.metadata()?.is_file()
                    && let Some(text) = text(file)?
                {
                    return Ok(Some(text));
                }
            }
        }
    }
    Ok(own(elf))
}

/// Only what looks like one.
fn text(reader: impl Read) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    reader.take(MAX_CONFIG + 1).read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).ok().filter(|text| text.len() as u64 <= MAX_CONFIG);
    Ok(text.filter(|text| text.lines().any(|line| line.starts_with("CONFIG_"))))
}

fn own(elf: &[u8]) -> Option<String> {
    let begin = elf.windows(BEGIN.len()).position(|window| window == BEGIN)? + BEGIN.len();
    let packed = elf.get(begin..)?;
    let end = packed.windows(END.len()).position(|window| window == END)?;
    text(flate2::read::GzDecoder::new(packed.get(..end)?)).ok().flatten()
}

/// Names of modules and of what is built in, one a line.
pub(super) fn modules(index: &Index) -> String {
    let mut text = String::new();
    for name in index.names() {
        text.push_str(name);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &str = "# CONFIG_NUMA is not set\nCONFIG_HZ=250\n";

    #[test]
    fn a_configuration_lies_beside_the_image_or_in_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("vmlinuz");
        fs::write(&image, b"").expect("writing");
        let mut packed = flate2::write::GzEncoder::new(b"head IKCFG_ST".to_vec(), flate2::Compression::fast());
        packed.write_all(TEXT.as_bytes()).expect("packing");
        let mut elf = packed.finish().expect("packing");
        assert_eq!(config(&image, "6.1", b"no kernel").expect("looking"), None);
        // Cut short.
        assert_eq!(config(&image, "6.1", &elf).expect("looking"), None);
        elf.extend(b"IKCFG_ED tail");
        assert_eq!(config(&image, "6.1", &elf).expect("looking").as_deref(), Some(TEXT));
        fs::write(folder.path().join("config-6.1"), "CONFIG_HZ=100\n").expect("writing");
        assert_eq!(config(&image, "6.1", &elf).expect("looking").as_deref(), Some("CONFIG_HZ=100\n"));
        // A file of the name that is none, and a folder, are passed over.
        fs::write(folder.path().join("config"), [0xff, 0]).expect("writing");
        assert_eq!(config(&image, "6.1", &elf).expect("looking").as_deref(), Some("CONFIG_HZ=100\n"));
    }
}
