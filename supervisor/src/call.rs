//! The caller's side of the agent in a guest: frames over a stream, whose far end is hostile.

use std::io;

use labyard_spec::agent::{HEADER_BYTES, Kind, MAX_FRAME_BYTES, header, parse_header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Sends a frame; a longer payload goes in several.
///
/// # Errors
/// What the stream says.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), kind: Kind, payload: &[u8]) -> io::Result<()> {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_FRAME_BYTES as usize));
        let mut frame = header(kind, u32::try_from(now.len()).unwrap_or(MAX_FRAME_BYTES)).to_vec();
        frame.extend_from_slice(now);
        to.write_all(&frame).await?;
        rest = later;
        if rest.is_empty() {
            return to.flush().await;
        }
    }
}

/// Receives a frame; `None` where the stream ends between two. Not to be cancelled half way.
///
/// # Errors
/// `InvalidData` for a header that makes no sense; else what the stream says.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut bytes = [0; HEADER_BYTES];
    match from.read_exact(&mut bytes).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let (kind, len) = parse_header(bytes).map_err(|text| io::Error::new(io::ErrorKind::InvalidData, text))?;
    let mut payload = vec![0; len as usize];
    from.read_exact(&mut payload).await?;
    Ok(Some((kind, payload)))
}
