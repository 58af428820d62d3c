//! Opening the database: its settings, its check, its migrations.
//!
//! A file that is damaged, of another program or of a newer version is not changed.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::store::size::log_path;

/// `application_id` of our databases: "mctl".
const APPLICATION_ID: i32 = 0x6d63_746c;

/// Space reserved for the write-ahead log. A checkpoint moves it into the database whenever it holds
/// 4 MiB; the second half is for changes while the database cannot grow.
const LOG_BYTES: u64 = 8 << 20;

/// The steps from one version of the database to the next; `user_version` counts them.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_machines.sql"),
    include_str!("migrations/0002_tokens.sql"),
];

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The file cannot be opened or written.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// It is not a database, or is damaged.
    #[error(
        "the database {} is damaged: {finding} (nothing was changed; restore it from a backup, or \
         move it away: `mctl adopt` then takes the machines back from their folders)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the check found.
        finding: String,
    },
    /// Another program's database.
    #[error("{} is a database of another program (application id {id:#x})", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its `application_id`.
        id: i32,
    },
    /// A newer supervisor has written it.
    #[error(
        "the database {} has version {found}, this supervisor knows up to {known} (use the newer \
         supervisor)",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// The newest version that this supervisor knows.
        known: usize,
    },
    /// A migration failed; the database is as before.
    #[error("cannot bring the database {} to version {version}", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// The version that was attempted.
        version: usize,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// Its thread cannot be created.
    #[error("cannot start the database's thread")]
    Thread(#[source] io::Error),
}

/// Opens the database at `path`; creates it if it does not exist.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    let fail = |source| open_error(path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(fail)?;
    check(&connection, path)?;
    connection
        .pragma_update(None, "journal_mode", "wal")
        .map_err(fail)?;
    connection
        .pragma_update(None, "synchronous", "full")
        .map_err(fail)?;
    connection
        .pragma_update(None, "foreign_keys", true)
        .map_err(fail)?;
    migrate(&mut connection, path)?;
    reserve(path);
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Reserves blocks of the disk for changes, so that on a full disk machines can still be stopped and
/// destroyed, which frees space.
///
/// Changes go to the write-ahead log, which is written from its beginning again after each
/// checkpoint: once it has its blocks, a commit needs no further ones. The database's own file is not
/// opened here: closing a second descriptor of it would drop SQLite's locks.
fn reserve(path: &Path) {
    use rustix::fs::{FallocateFlags, fallocate};
    let reserved = OpenOptions::new()
        .write(true)
        .open(log_path(path))
        .and_then(|file| {
            fallocate(&file, FallocateFlags::KEEP_SIZE, 0, LOG_BYTES)?;
            Ok(())
        });
    if let Err(error) = reserved {
        // Changes on a full disk are refused then.
        tracing::warn!(%error, "cannot reserve space for changes on a full disk");
    }
}

/// Checks, without a write, that it is our file, of a known version, and not damaged.
fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let fail = |source| open_error(path, source);
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = usize::try_from(number("user_version").map_err(fail)?).unwrap_or(usize::MAX);
    let id = i32::try_from(number("application_id").map_err(fail)?).unwrap_or(0);
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(fail)?;
    let is_new = version == 0 && id == 0 && tables == 0;
    if !is_new && id != APPLICATION_ID {
        return Err(OpenError::Foreign {
            path: path.to_owned(),
            id,
        });
    }
    if version > MIGRATIONS.len() {
        let (found, known) = (version, MIGRATIONS.len());
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    let finding: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(fail)?;
    if finding != "ok" {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            finding,
        });
    }
    Ok(())
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let done: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|source| open_error(path, source))?;
    let done = usize::try_from(done).unwrap_or(0);
    for (index, script) in MIGRATIONS.iter().enumerate().skip(done) {
        let version = index + 1;
        apply(connection, script, version).map_err(|source| OpenError::Migrate {
            path: path.to_owned(),
            version,
            source,
        })?;
    }
    Ok(())
}

fn apply(connection: &mut Connection, script: &str, version: usize) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(script)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(
        None,
        "user_version",
        i64::try_from(version).unwrap_or(i64::MAX),
    )?;
    transaction.commit()
}

/// Distinguishes a damaged file from one that cannot be opened.
fn open_error(path: &Path, source: rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode as Code;
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(Code::NotADatabase | Code::DatabaseCorrupt) => OpenError::Damaged {
            path,
            finding: source.to_string(),
        },
        _ => OpenError::Open { path, source },
    }
}
