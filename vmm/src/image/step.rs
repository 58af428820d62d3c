//! The steps of a save, in order. Each action that may fail, be cancelled or be interrupted by a crash
//! has a name here, for error messages and for tests that go through all of them.

use std::fmt;

/// One step of a save; the larger ones are repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Renames the manifest of the image that is going to be overwritten.
    Retire,
    /// Makes that durable. Only now may anything else change.
    SyncRetirement,
    /// Opens the memory file, or creates it with its full length.
    OpenMemory,
    /// Writes the header page, with the new image id.
    WriteHeader,
    /// Writes a run of changed pages; repeated.
    WritePages,
    /// Makes holes of a run of pages that have become zero; repeated.
    PunchPages,
    /// Writes the sums.
    WriteSums,
    /// Writes the state of vCPUs and devices.
    WriteState,
    /// Gives a disk a new mark.
    MarkDisks,
    /// Makes that durable, and the guest's writes, which the guest may take for durable already.
    SyncDisks,
    /// Writes the supplement.
    WriteSupplement,
    /// Makes it durable.
    SyncSupplement,
    /// Makes memory durable.
    SyncMemory,
    /// Makes the sums durable.
    SyncSums,
    /// Makes the state durable.
    SyncState,
    /// Makes the names of new files durable.
    SyncNames,
    /// Writes the manifest under a temporary name.
    WriteManifest,
    /// Makes it durable.
    SyncManifest,
    /// Gives it its final name, from which on there is an image.
    Commit,
    /// Makes that durable.
    SyncCommit,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 20] = [
        Self::Retire,
        Self::SyncRetirement,
        Self::OpenMemory,
        Self::WriteHeader,
        Self::WritePages,
        Self::PunchPages,
        Self::WriteSums,
        Self::WriteState,
        Self::MarkDisks,
        Self::SyncDisks,
        Self::WriteSupplement,
        Self::SyncSupplement,
        Self::SyncMemory,
        Self::SyncSums,
        Self::SyncState,
        Self::SyncNames,
        Self::WriteManifest,
        Self::SyncManifest,
        Self::Commit,
        Self::SyncCommit,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Retire => "retire the old manifest in",
            Self::SyncRetirement => "sync the old manifest's retirement in",
            Self::OpenMemory => "open",
            Self::WriteHeader => "write the header of",
            Self::WritePages => "write guest memory to",
            Self::PunchPages => "punch zero pages out of",
            Self::WriteSums | Self::WriteState | Self::WriteSupplement | Self::WriteManifest => {
                "write"
            }
            Self::MarkDisks => "mark",
            Self::SyncMemory
            | Self::SyncSums
            | Self::SyncState
            | Self::SyncDisks
            | Self::SyncSupplement
            | Self::SyncManifest => "sync",
            Self::SyncNames => "sync the new files' names in",
            Self::Commit => "commit the manifest in",
            Self::SyncCommit => "sync the commit in",
        })
    }
}
