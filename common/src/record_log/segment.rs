//! The bytes of a segment file. Pure: encodes and checks, never touches a disk.
//!
//! ```text
//! file    = file header, record*, [footer record, trailer]
//! header  = "CTSG" | version u32 | segment id u64 | crc32c u32                          20 bytes
//! record  = "CTRC" | kind u8, 0 0 0 | len(meta) u32 | len(body) u32 | synced u64
//!           | crc32c of meta and body u32 | crc32c of the fields before, id and offset u32, then meta, body
//! trailer = "CTFT" | footer offset u64 | file length u64 | crc32c u32                   24 bytes
//! ```
//!
//! All numbers are little endian. `synced` is how much of the file was known to be durable when the record was made:
//! it tells damage to durable bytes from writes that a power failure tore. Every CRC of a header also covers the
//! segment's id and the record's own offset, so a record that was copied elsewhere is no record.

use crate::record_log::RecordAt;

/// Newest version of the file format that is read and written.
pub(super) const VERSION: u32 = 1;
/// Length of the file header.
pub(super) const FILE_HEADER_BYTES: u64 = 20;
/// Length of the fixed part of a record.
pub(super) const RECORD_HEADER_BYTES: usize = 32;
/// Length of the trailer that ends a sealed file.
pub(super) const TRAILER_BYTES: usize = 24;
/// First bytes of every record; recovery looks for them behind damage.
pub(super) const RECORD_MAGIC: &[u8; 4] = b"CTRC";
const FILE_MAGIC: &[u8; 4] = b"CTSG";
const TRAILER_MAGIC: &[u8; 4] = b"CTFT";

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Appended by the owner.
    Record,
    /// The footer given at the seal.
    Footer,
}

/// The fixed part of a record, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub kind: Kind,
    pub meta_bytes: u32,
    pub body_bytes: u32,
    /// Exclusive end of what was durable in this file when the record was made.
    pub synced: u64,
    /// CRC32C of meta and body.
    pub crc: u32,
}

impl RecordHeader {
    /// Bytes of the whole record.
    pub(super) fn total(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.meta_bytes) + u64::from(self.body_bytes)
    }

    pub(super) fn encode(&self, at: RecordAt) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(RECORD_MAGIC);
        bytes[4] = match self.kind {
            Kind::Record => 0,
            Kind::Footer => 1,
        };
        bytes[8..12].copy_from_slice(&self.meta_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.synced.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.crc.to_le_bytes());
        let crc = placed_crc(&bytes[..28], at);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// None: these bytes are not a record header of this place.
    pub(super) fn decode(bytes: &[u8], at: RecordAt) -> Option<Self> {
        let bytes: &[u8; RECORD_HEADER_BYTES] = bytes.get(..RECORD_HEADER_BYTES)?.try_into().ok()?;
        if &bytes[0..4] != RECORD_MAGIC || u32_at(bytes, 28) != placed_crc(&bytes[..28], at) {
            return None;
        }
        let kind = match bytes[4..8] {
            [0, 0, 0, 0] => Kind::Record,
            [1, 0, 0, 0] => Kind::Footer,
            _ => return None,
        };
        Some(Self {
            kind,
            meta_bytes: u32_at(bytes, 8),
            body_bytes: u32_at(bytes, 12),
            synced: u64_at(bytes, 16),
            crc: u32_at(bytes, 24),
        })
    }
}

/// The first bytes of segment `id`.
pub(super) fn encode_file_header(id: u64) -> [u8; FILE_HEADER_BYTES as usize] {
    let mut bytes = [0; FILE_HEADER_BYTES as usize];
    bytes[0..4].copy_from_slice(FILE_MAGIC);
    bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..16]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What the first bytes of a file say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileHeader {
    /// Ours, readable.
    Good,
    /// Intact, written by a newer release.
    Newer(u32),
    /// Torn, damaged, or of another segment.
    Bad,
}

pub(super) fn decode_file_header(bytes: &[u8], id: u64) -> FileHeader {
    let Some(bytes) = bytes.get(..FILE_HEADER_BYTES as usize) else { return FileHeader::Bad };
    if &bytes[0..4] != FILE_MAGIC || u32_at(bytes, 16) != crc32c::crc32c(&bytes[..16]) || u64_at(bytes, 8) != id {
        return FileHeader::Bad;
    }
    match u32_at(bytes, 4) {
        VERSION => FileHeader::Good,
        newer if newer > VERSION => FileHeader::Newer(newer),
        _ => FileHeader::Bad,
    }
}

/// The last bytes of a sealed file whose footer record begins at `footer_offset`.
pub(super) fn encode_trailer(id: u64, footer_offset: u64, file_bytes: u64) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[0..4].copy_from_slice(TRAILER_MAGIC);
    bytes[4..12].copy_from_slice(&footer_offset.to_le_bytes());
    bytes[12..20].copy_from_slice(&file_bytes.to_le_bytes());
    let crc = placed_crc(&bytes[..20], RecordAt { segment: id, offset: file_bytes });
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Offset of the footer record, if `bytes` are the trailer of a file of exactly this id and length.
pub(super) fn decode_trailer(bytes: &[u8], id: u64, file_bytes: u64) -> Option<u64> {
    let bytes = bytes.get(..TRAILER_BYTES)?;
    let ours = &bytes[0..4] == TRAILER_MAGIC
        && u64_at(bytes, 12) == file_bytes
        && u32_at(bytes, 20) == placed_crc(&bytes[..20], RecordAt { segment: id, offset: file_bytes });
    ours.then(|| u64_at(bytes, 4)).filter(|&footer| {
        footer >= FILE_HEADER_BYTES && footer + (RECORD_HEADER_BYTES + TRAILER_BYTES) as u64 <= file_bytes
    })
}

fn placed_crc(fields: &[u8], at: RecordAt) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(fields), &at.segment.to_le_bytes());
    crc32c::crc32c_append(crc, &at.offset.to_le_bytes())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// `00000000000000a1.seg`.
pub(super) fn file_name(id: u64) -> String {
    format!("{id:016x}.seg")
}

/// The id in a file name of ours.
pub(super) fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let id = u64::from_str_radix(digits, 16).ok()?;
    (file_name(id) == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        let at = RecordAt { segment: 3, offset: 20 };
        let header = RecordHeader { kind: Kind::Record, meta_bytes: 4, body_bytes: 5, synced: 20, crc: 0x0102_0304 };
        assert_eq!(hex(&encode_file_header(3)), GOLDEN_FILE_HEADER);
        assert_eq!(hex(&header.encode(at)), GOLDEN_RECORD_HEADER);
        assert_eq!(hex(&encode_trailer(3, 61, 125)), GOLDEN_TRAILER);
        assert_eq!(RecordHeader::decode(&header.encode(at), at), Some(header));
        assert_eq!(decode_trailer(&encode_trailer(3, 61, 125), 3, 125), Some(61));
    }

    const GOLDEN_FILE_HEADER: &str = "435453470100000003000000000000005bc88ff6";
    const GOLDEN_RECORD_HEADER: &str = "43545243000000000400000005000000140000000000000004030201b3a0ac46";
    const GOLDEN_TRAILER: &str = "435446543d000000000000007d000000000000006f7f8e93";

    #[test]
    fn a_record_moved_elsewhere_is_none() {
        let at = RecordAt { segment: 3, offset: 20 };
        let header = RecordHeader { kind: Kind::Footer, meta_bytes: 4, body_bytes: 0, synced: 0, crc: 1 };
        let bytes = header.encode(at);
        assert_eq!(RecordHeader::decode(&bytes, RecordAt { segment: 4, offset: 20 }), None);
        assert_eq!(RecordHeader::decode(&bytes, RecordAt { segment: 3, offset: 21 }), None);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&flipped, at), None, "bit {bit}");
        }
    }

    #[test]
    fn names() {
        assert_eq!(parse_file_name(&file_name(0xa1)), Some(0xa1));
        for bad in ["a1.seg", "00000000000000A1.seg", "00000000000000a1.tmp", "+0000000000000a1.seg"] {
            assert_eq!(parse_file_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn newer_files_are_told_from_damaged_ones() {
        let mut bytes = encode_file_header(1);
        assert_eq!(decode_file_header(&bytes, 1), FileHeader::Good);
        assert_eq!(decode_file_header(&bytes, 2), FileHeader::Bad);
        bytes[4] = 9;
        assert_eq!(decode_file_header(&bytes, 1), FileHeader::Bad);
        let crc = crc32c::crc32c(&bytes[..16]).to_le_bytes();
        bytes[16..20].copy_from_slice(&crc);
        assert_eq!(decode_file_header(&bytes, 1), FileHeader::Newer(9));
    }
}
