//! Lines out of Parquet rows: the row's `line` where it has one, else the log format put together again from its columns.

use std::rc::Rc;

use anyhow::{Context, Result};
use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

pub use render::Renderer;

mod render;

/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 4_096;

/// The rows of one file.
pub struct Rows {
    reader: ParquetRecordBatchReader,
    renderer: Option<Rc<Renderer>>,
}

impl Rows {
    /// Opens a whole file.
    pub fn open(file: Bytes, renderer: Option<Rc<Renderer>>) -> Result<Self> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).context("it is no Parquet file")?;
        Ok(Self { reader: builder.with_batch_size(BATCH_ROWS).build()?, renderer })
    }

    /// Lines of the next rows, in order; `None` at the end.
    pub fn next_lines(&mut self) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(batch) = self.reader.next() else { return Ok(None) };
        let batch = batch?;
        let mut lines = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            lines.push(line_of(&batch, row, self.renderer.as_deref())?);
        }
        Ok(Some(lines))
    }
}

fn line_of(batch: &RecordBatch, row: usize, renderer: Option<&Renderer>) -> Result<Vec<u8>> {
    if let Some(column) = batch.column_by_name("line")
        && let Some(line) = bytes_at(column.as_ref(), row)
    {
        return Ok(line.to_vec());
    }
    renderer.context("its rows have no line, and no log format was given to put one together")?.render(batch, row)
}

/// The bytes of a text or binary value.
fn bytes_at(column: &dyn Array, row: usize) -> Option<&[u8]> {
    if column.is_null(row) {
        return None;
    }
    if let Some(text) = column.as_string_opt::<i32>() {
        return Some(text.value(row).as_bytes());
    }
    if let Some(binary) = column.as_binary_opt::<i32>() {
        return Some(binary.value(row));
    }
    None
}
