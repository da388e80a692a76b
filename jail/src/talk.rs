//! What the jail and whoever starts it say to each other (`labyard_spec::jail`).

use std::fs::File;
use std::io::{self, Read, Write};

use labyard_spec::jail::{GO, JailSpec};

use crate::JailError;

/// Bytes of a [`JailSpec`]; a table of thousands of descriptors fits.
pub const MAX_SPEC_BYTES: usize = 1 << 20;

/// The jail's side.
#[derive(Debug)]
pub struct Talk {
    stream: File,
    descriptor: i32,
}

impl Talk {
    /// Over this stream, which has the number `descriptor` for whoever reads an error.
    pub fn over(stream: File, descriptor: i32) -> Self {
        Self { stream, descriptor }
    }

    fn failed(&self) -> impl Fn(io::Error) -> JailError + use<> {
        let descriptor = self.descriptor;
        move |source| JailError::Talk { descriptor, source }
    }

    /// Hears the spec. Nothing at all means that whoever started the jail died first.
    pub(crate) fn spec(&mut self) -> Result<JailSpec, JailError> {
        let cut = JailError::Cut { descriptor: self.descriptor };
        let mut line = Vec::new();
        let mut part = [0; 4096];
        // Nothing follows the line until it was answered.
        while line.last() != Some(&b'\n') {
            let read = self.read(&mut part)?;
            line.extend_from_slice(part.get(..read).unwrap_or_default());
            if read == 0 || line.len() > MAX_SPEC_BYTES {
                return Err(cut);
            }
        }
        Ok(serde_json::from_slice(&line)?)
    }

    /// Says who becomes the program.
    pub(crate) fn tell(&mut self, pid: i32) -> Result<(), JailError> {
        self.stream.write_all(format!("{pid}\n").as_bytes()).map_err(self.failed())
    }

    pub(crate) fn wait_for_go(&mut self) -> Result<(), JailError> {
        let mut heard = Vec::new();
        let mut part = [0; GO.len()];
        while heard.len() < GO.len() {
            let read = self.read(&mut part)?;
            if read == 0 {
                return Err(JailError::Alone);
            }
            heard.extend_from_slice(part.get(..read).unwrap_or_default());
        }
        if heard == GO { Ok(()) } else { Err(JailError::Alone) }
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, JailError> {
        loop {
            match self.stream.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The other end closed with our answer unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
                other => return other.map_err(self.failed()),
            }
        }
    }
}
