//! What is wrong with a channel, where, and what that means. Pure; never holds contents of events.

use std::fmt;

use proto::ids::BatchId;
use serde::Serialize;

/// What kind of damage. The names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The first bytes of a segment file.
    FileHeader,
    /// Bytes where a record should begin.
    RecordHeader,
    /// A record whose contents do not match their CRC.
    RecordContents,
    /// A record that is intact and is not a batch of ours.
    BatchHeader,
    /// A payload that is not what its header says.
    Payload,
    /// The footer of a segment.
    Footer,
    /// The last bytes of a sealed segment.
    Trailer,
    /// A segment without footer although a newer one exists.
    CutShort,
    /// Bytes behind the last record of the newest segment.
    TornTail,
    /// A file that a start set aside.
    SetAside,
    /// A file of a newer release.
    NewerFormat,
    /// A file, or bytes of one, that the system does not let us read.
    Unreadable,
    /// There is no ledger.
    LedgerMissing,
    /// The ledger cannot be opened.
    LedgerUnreadable,
    /// A row of it that cannot be read or fits no segment.
    LedgerRow,
    /// The ledger says that a segment holds batches, and its file is missing.
    MissingSegment,
    /// The ledger counts held bytes of an agent that lie in no segment.
    MissingBytes,
}

/// What became of a damaged batch, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// No batch is concerned, or all of it can be read all the same.
    NothingLost,
    /// A collector has answered it for good.
    Delivered,
    /// Another copy of it is held here, undamaged.
    CopyHeld,
    /// It was not delivered: this copy is lost.
    Lost,
    /// It cannot be told whether it was delivered, or which batch it is.
    Unknown,
}

impl Fate {
    /// Is anything lost here, or may be?
    pub fn is_loss(self) -> bool {
        matches!(self, Self::Lost | Self::Unknown)
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::NothingLost => "no batch is lost by it",
            Self::Delivered => "nothing is lost: a collector has answered this batch for good",
            Self::CopyHeld => "nothing is lost: an undamaged copy of this batch is held in another segment",
            Self::Lost => {
                "this copy of the batch is lost; with ack = \"committed\" its agent still has it and appends it again, \
                 with ack = \"durable\" its agent may have let it go"
            }
            Self::Unknown => {
                "it cannot be told whether this was delivered; what was not is still with its agent if that has \
                 ack = \"committed\", and comes again by itself"
            }
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// The file, from the data directory.
    pub file: String,
    /// Where the damage begins in it.
    pub offset: Option<u64>,
    /// How many bytes it takes.
    pub bytes: Option<u64>,
    /// Agent of the batch.
    pub agent: Option<String>,
    /// Its origin.
    pub origin: Option<String>,
    /// Its seq.
    pub seq: Option<u64>,
    /// What became of it.
    pub fate: Fate,
    /// What is wrong.
    pub what: String,
    /// What that means.
    pub meaning: String,
    /// For matching against other copies.
    #[serde(skip)]
    pub id: Option<BatchId>,
}

impl Finding {
    /// One that concerns no batch in particular.
    pub fn new(kind: Kind, file: String, what: impl Into<String>) -> Self {
        let fate = Fate::NothingLost;
        Self {
            kind,
            file,
            offset: None,
            bytes: None,
            agent: None,
            origin: None,
            seq: None,
            fate,
            what: what.into(),
            meaning: fate.meaning().to_owned(),
            id: None,
        }
    }

    /// Where it is.
    pub fn at(mut self, offset: u64, bytes: u64) -> Self {
        (self.offset, self.bytes) = (Some(offset), Some(bytes));
        self
    }

    /// Which batch it hits.
    pub fn of(mut self, id: BatchId) -> Self {
        self.agent = Some(id.agent.to_string());
        self.origin = Some(id.origin.to_string());
        self.seq = Some(id.seq);
        self.id = Some(id);
        self
    }

    /// What became of the batch, with the usual words.
    pub fn fate(mut self, fate: Fate) -> Self {
        self.fate = fate;
        self.meaning = fate.meaning().to_owned();
        self
    }

    /// What it means, in words of its own.
    pub fn means(mut self, fate: Fate, meaning: impl Into<String>) -> Self {
        (self.fate, self.meaning) = (fate, meaning.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(offset) = self.offset {
            write!(f, " at {offset}")?;
        }
        if let Some(bytes) = self.bytes {
            write!(f, ", {bytes} bytes")?;
        }
        write!(f, ": {}", self.what)?;
        if let (Some(agent), Some(origin), Some(seq)) = (&self.agent, &self.origin, self.seq) {
            write!(f, "\n    batch {agent}/{origin}/{seq}")?;
        }
        write!(f, "\n    {}", self.meaning)
    }
}
