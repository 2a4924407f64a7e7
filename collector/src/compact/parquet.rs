//! Parquet: rows are decoded and encoded anew, in row groups of the usual size.
//!
//! In memory at once: one row group of an input as it is stored, one batch of decoded rows, and the unfinished row group
//! of the output. Columns are only ever added behind the others: the output has those of the newest schema, and rows of
//! older files have nulls there.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, new_null_array};
use arrow_schema::{Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};

use super::Trouble;
use super::input::{Reader, Source, Tools};
use super::output::Output;
use crate::config::dataset::{DatasetConfig, Format};
use crate::format::parquet::{dataset_schema, writer_properties};
use crate::store::StoreError;

/// Rows decoded at once.
const BATCH_ROWS: usize = 8192;
/// Read at once from the end of a file: the footer of a file of ours is a fraction of it.
const TAIL_BYTES: u64 = 64 * 1024;
/// Longest footer and row group that are taken into memory: several times what is ever written here.
const MOST_FOOTER_BYTES: u64 = 64 << 20;
const MOST_GROUP_BYTES: u64 = 256 << 20;

fn refused(what: &str) -> impl Fn(ParquetError) -> Trouble {
    move |error| Trouble::Refused(format!("{what}: {error}"))
}

/// What a file's footer says.
pub(super) async fn footer(tools: Tools<'_>, source: &Source) -> Result<ArrowReaderMetadata, Trouble> {
    let length = source.entry.bytes;
    let tail = source.part(tools, length.saturating_sub(TAIL_BYTES), length.min(TAIL_BYTES) as usize).await?;
    let no_parquet = || Trouble::Refused("it does not end like a Parquet file".into());
    let (rest, end) = tail.split_last_chunk::<8>().ok_or_else(no_parquet)?;
    let [a, b, c, d, magic @ ..] = *end;
    let footer_bytes = u64::from(u32::from_le_bytes([a, b, c, d]));
    if &magic != b"PAR1" || footer_bytes + 8 > length || footer_bytes > MOST_FOOTER_BYTES {
        return Err(no_parquet());
    }
    let thrift = match rest.len().checked_sub(footer_bytes as usize) {
        Some(at) => Bytes::copy_from_slice(&rest[at..]),
        None => source.part(tools, length - 8 - footer_bytes, footer_bytes as usize).await?,
    };
    let metadata = ParquetMetaDataReader::decode_metadata(&thrift).map_err(refused("its footer cannot be read"))?;
    let rows = metadata.file_metadata().num_rows();
    if u64::try_from(rows) != Ok(source.entry.events) {
        return Err(Trouble::Refused(format!("it has {rows} rows, the log says {}", source.entry.events)));
    }
    ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new())
        .map_err(refused("its schema cannot be read"))
}

/// The schema of the output: the dataset's, or that of an input which has more columns behind it. In a dataset that is
/// no longer Parquet the inputs alone decide.
pub(super) fn newest<'a>(dataset: &DatasetConfig, inputs: impl Iterator<Item = &'a SchemaRef>) -> SchemaRef {
    let own = (dataset.format == Format::Parquet).then(|| dataset_schema(dataset).ok()).flatten();
    let mut newest = Arc::new(own.unwrap_or_else(Schema::empty));
    let mut inputs: Vec<&SchemaRef> = inputs.collect();
    inputs.sort_by_key(|schema| schema.fields().len());
    for schema in inputs {
        let longer = schema.fields().len() > newest.fields().len();
        if longer && newest.fields().iter().zip(schema.fields()).all(|(a, b)| same(a, b)) {
            newest = schema.clone();
        }
    }
    newest
}

/// Can rows of `schema` stand in a file of `target`?
pub(super) fn fits(schema: &Schema, target: &Schema) -> Result<(), String> {
    for field in schema.fields() {
        match target.field_with_name(field.name()) {
            Ok(of) if same(field, of) => {}
            Ok(_) => return Err(format!("its column {} has another type than the dataset's", field.name())),
            Err(_) => return Err(format!("its column {} is none of the dataset's", field.name())),
        }
    }
    let lacks = |field: &arrow_schema::Field| !field.is_nullable() && schema.field_with_name(field.name()).is_err();
    match target.fields().iter().find(|field| lacks(field)) {
        Some(field) => Err(format!("it has no column {}", field.name())),
        None => Ok(()),
    }
}

fn same(a: &arrow_schema::Field, b: &arrow_schema::Field) -> bool {
    a.name() == b.name() && a.data_type() == b.data_type()
}

/// The rows of an output on their way into its file.
pub(super) struct Join {
    schema: SchemaRef,
    /// Away while a thread works with it; gone for good once that panicked.
    writer: Option<ArrowWriter<Vec<u8>>>,
}

impl Join {
    pub fn new(schema: SchemaRef) -> Result<Self, ParquetError> {
        let writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(writer_properties()?))?;
        Ok(Self { schema, writer: Some(writer) })
    }

    /// Adds the rows of a file. On trouble some of them may have been added: `dirty` says so.
    pub async fn append(
        &mut self,
        tools: Tools<'_>,
        source: &Source,
        output: &mut Output<'_>,
        dirty: &mut bool,
    ) -> Result<(), Trouble> {
        let footer = footer(tools, source).await?;
        fits(footer.schema(), &self.schema).map_err(Trouble::Refused)?;
        let mut reader = Reader::new(tools, source);
        let mut rows = 0;
        for group in 0..footer.metadata().num_row_groups() {
            let (begin, end) = extent(footer.metadata().row_group(group));
            if begin > end
                || begin < reader.offset()
                || end > source.entry.bytes
                || end.saturating_sub(begin) > MOST_GROUP_BYTES
            {
                return Err(Trouble::Refused(format!("its row group {group} does not lie where it can be read")));
            }
            reader.skip(begin).await?;
            let window = Window { begin, bytes: reader.until(end).await? };
            let decoder = ParquetRecordBatchReaderBuilder::new_with_metadata(window, footer.clone());
            let decoder = decoder.with_row_groups(vec![group]).with_batch_size(BATCH_ROWS).build();
            let decoder = decoder.map_err(refused("its rows cannot be read"))?;
            *dirty = true;
            rows += self.rows(tools, decoder, output).await?;
        }
        if rows != source.entry.events {
            return Err(Trouble::Refused(format!("it gives {rows} rows, the log says {}", source.entry.events)));
        }
        reader.finish().await?;
        *dirty = false;
        Ok(())
    }

    /// Encodes all rows of a row group, batch by batch on a thread; their number.
    async fn rows(
        &mut self,
        tools: Tools<'_>,
        mut decoder: ParquetRecordBatchReader,
        output: &mut Output<'_>,
    ) -> Result<u64, Trouble> {
        let mut rows = 0;
        loop {
            let panicked = || Trouble::Refused("the decoder panicked over its rows".into());
            let mut writer = self.writer.take().ok_or_else(panicked)?;
            let schema = self.schema.clone();
            let work = move || {
                let step = step(&mut decoder, &schema, &mut writer);
                (step, decoder, writer)
            };
            let (step, back, mut writer) = tools.budget.work(work).await.ok_or_else(panicked)?;
            decoder = back;
            let encoded = std::mem::take(writer.inner_mut());
            self.writer = Some(writer);
            match step.map_err(Trouble::Refused)? {
                Some(more) => rows += more,
                None => return Ok(rows),
            }
            output.append(encoded.into()).await.map_err(Trouble::Store)?;
        }
    }

    /// Ends the file.
    pub async fn finish(self, tools: Tools<'_>, output: &mut Output<'_>) -> Result<(), StoreError> {
        let broken = |detail: String| StoreError::Other { op: "encode", path: "compacted file".into(), detail };
        let Some(mut writer) = self.writer else { return Err(broken("its encoder is gone".into())) };
        let work = move || writer.finish().map(|_| std::mem::take(writer.inner_mut()));
        let rest = tools.budget.work(work).await.ok_or_else(|| broken("its encoder panicked".into()))?;
        output.append(rest.map_err(|e| broken(e.to_string()))?.into()).await
    }
}

/// Decodes and encodes one batch of rows; their number, none behind the last.
fn step(
    decoder: &mut ParquetRecordBatchReader,
    schema: &SchemaRef,
    writer: &mut ArrowWriter<Vec<u8>>,
) -> Result<Option<u64>, String> {
    let Some(rows) = decoder.next() else { return Ok(None) };
    let rows = rows.map_err(|e| format!("its rows cannot be decoded: {e}"))?;
    let columns: Vec<ArrayRef> = schema.fields().iter().map(|field| column(&rows, field)).collect();
    let rows = RecordBatch::try_new(schema.clone(), columns).map_err(|e| format!("its rows do not fit: {e}"))?;
    let encoded = writer.write(&rows).and_then(|()| Ok(writer.sync()?));
    encoded.map_err(|e| format!("its rows cannot be encoded: {e}"))?;
    Ok(Some(rows.num_rows() as u64))
}

fn column(rows: &RecordBatch, field: &arrow_schema::Field) -> ArrayRef {
    match rows.column_by_name(field.name()) {
        Some(column) => column.clone(),
        None => new_null_array(field.data_type(), rows.num_rows()),
    }
}

/// From the first to behind the last byte of a row group.
fn extent(group: &RowGroupMetaData) -> (u64, u64) {
    let ranges = group.columns().iter().map(|column| column.byte_range());
    ranges.fold((u64::MAX, 0), |(begin, end), (at, len)| (begin.min(at), end.max(at.saturating_add(len))))
}

/// A row group of a file, at its place.
struct Window {
    begin: u64,
    bytes: Bytes,
}

impl Window {
    fn at(&self, start: u64) -> Result<Bytes, ParquetError> {
        let at = start.checked_sub(self.begin).and_then(|at| usize::try_from(at).ok());
        let at = at.filter(|at| *at <= self.bytes.len());
        at.map(|at| self.bytes.slice(at..))
            .ok_or_else(|| ParquetError::EOF(format!("{start} is outside its row group")))
    }
}

impl Length for Window {
    fn len(&self) -> u64 {
        self.begin + self.bytes.len() as u64
    }
}

impl ChunkReader for Window {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(bytes::Buf::reader(self.at(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let rest = self.at(start)?;
        if length > rest.len() {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are outside its row group")));
        }
        Ok(rest.slice(..length))
    }
}
