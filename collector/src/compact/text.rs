//! Text: gzip members, zstd frames and plain lines are put one behind the other as they are. A file is a run of complete
//! frames of whole lines, and so is the sum of several.

use super::Trouble;
use super::input::{Reader, Source, Tools};
use super::output::Output;

/// Appends a file to the output. On trouble something of it may have been appended: `dirty` says so.
pub(super) async fn append(
    tools: Tools<'_>,
    source: &Source,
    output: &mut Output<'_>,
    dirty: &mut bool,
) -> Result<(), Trouble> {
    let mut reader = Reader::new(tools, source);
    while let Some(piece) = reader.next(u64::MAX).await? {
        *dirty = true;
        output.append(piece).await.map_err(Trouble::Store)?;
    }
    reader.finish().await?;
    *dirty = false;
    Ok(())
}
