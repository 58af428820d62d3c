//! How large the database is.

use std::path::{Path, PathBuf};

use crate::disk_usage;
use crate::store::{Store, StoreError};

impl Store {
    /// Bytes of the database's pages, those that are only in the write-ahead log included, and of the
    /// blocks of that log. Those are reserved when the database is opened, so that the sum grows with
    /// what is stored, and not with each checkpoint.
    pub(crate) async fn bytes(&self) -> Result<u64, StoreError> {
        self.call("measure the database", |connection| {
            let number =
                |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            let pages = number("page_count")?.saturating_mul(number("page_size")?);
            let log = connection.path().map(|path| log_path(Path::new(path)));
            // A log that cannot be looked at is none that could be read.
            let log = log.and_then(|log| disk_usage::blocks_of_file(&log).ok());
            Ok(pages.cast_unsigned().saturating_add(log.unwrap_or(0)))
        })
        .await
    }
}

/// SQLite's name for the write-ahead log of the database at `path`.
pub(super) fn log_path(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    PathBuf::from(log)
}
