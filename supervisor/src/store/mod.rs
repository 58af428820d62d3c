//! The database: SQLite, and the only place with SQL.
//!
//! One thread owns the connection. Jobs that arrive while it works go into one transaction, so that
//! a hundred machines that change at the same time share one sync of the disk. A job is answered
//! after the commit. The files of machines are not kept here.

mod machines;
mod open;
mod size;
mod tokens;

use std::path::Path;
use std::sync::{Arc, mpsc};

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::error_chain::error_chain;

pub(crate) use machines::{Change, MOST_LATE};
pub(crate) use open::OpenError;

/// Most jobs in one transaction.
const BATCH: usize = 64;

/// A job runs inside the transaction and returns its outcome.
type Job = Box<dyn FnOnce(&Connection) -> Outcome + Send>;
type Finish = Box<dyn FnOnce(Result<(), Arc<rusqlite::Error>>) + Send>;

/// The outcome of a job, before anything is durable.
struct Outcome {
    /// Its error, if it failed.
    failed: Option<Arc<rusqlite::Error>>,
    /// Answers it, once the transaction is committed or not.
    finish: Finish,
}

/// A database operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// No space is left, or the disk cannot be written.
    #[error("cannot {what}: {why}")]
    Unwritable {
        /// What was attempted.
        what: &'static str,
        /// What is used up or wrong, and what to do.
        why: &'static str,
        /// SQLite's error.
        source: Arc<rusqlite::Error>,
    },
    /// A row with that name or id exists already.
    #[error("cannot {what}: it exists already")]
    Exists {
        /// What was attempted.
        what: &'static str,
        /// SQLite's error.
        source: Arc<rusqlite::Error>,
    },
    /// Any other error of SQLite.
    #[error("cannot {what}")]
    Sqlite {
        /// What was attempted.
        what: &'static str,
        /// SQLite's error.
        source: Arc<rusqlite::Error>,
    },
    /// The database's thread has ended: the supervisor is shutting down.
    #[error("cannot {what}: the database is closed")]
    Closed {
        /// What was attempted.
        what: &'static str,
    },
}

impl StoreError {
    fn from_sqlite(what: &'static str, source: Arc<rusqlite::Error>) -> Self {
        use rusqlite::ErrorCode as Code;
        let why = match source.sqlite_error_code() {
            Some(Code::DiskFull) => {
                "no space is left on the disk of the state directory (free some, for example by \
                 destroying machines)"
            }
            Some(Code::ReadOnly) => {
                "the state directory is read-only (see the kernel's log for why, and remount it)"
            }
            Some(Code::SystemIoFailure | Code::CannotOpen) => {
                "the disk of the state directory cannot be written (see the kernel's log)"
            }
            Some(Code::ConstraintViolation) => return Self::Exists { what, source },
            _ => return Self::Sqlite { what, source },
        };
        Self::Unwritable { what, why, source }
    }
}

/// The database; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    /// Bounded by those who call: each waits for its answer, and a driver has few changes here that it does not
    /// wait for (`machine/unsaved.rs`).
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Opens, checks and migrates the database at `path`, and starts its thread.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let connection = open::open(path)?;
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || serve(&connection, &queue))
            .map_err(OpenError::Thread)?;
        Ok(Self { jobs })
    }

    /// Runs `work` on the database and returns its result once that is durable.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let result = in_savepoint(connection, work).map_err(Arc::new);
            Outcome {
                failed: result.as_ref().err().cloned(),
                finish: Box::new(move |committed| {
                    // Fails if the caller was cancelled, and then nobody waits.
                    let _ = sender.send(result.and_then(|value| committed.map(|()| value)));
                }),
            }
        });
        self.jobs
            .send(job)
            .map_err(|_| StoreError::Closed { what })?;
        let result = receiver.await.map_err(|_| StoreError::Closed { what })?;
        result.map_err(|source| StoreError::from_sqlite(what, source))
    }

    /// Stores `changes`, all or none; returns when they are durable.
    pub(crate) async fn commit(
        &self,
        what: &'static str,
        changes: Vec<Change>,
    ) -> Result<(), StoreError> {
        self.call(what, move |connection| {
            machines::write(connection, &changes)
        })
        .await
    }

    /// Stores `changes` without waiting, in order with all other jobs. For what a new supervisor
    /// finds out by itself after a crash. `failed` gets them back if the disk cannot be written.
    pub(crate) fn commit_later(
        &self,
        what: &'static str,
        changes: Vec<Change>,
        failed: impl FnOnce(Vec<Change>) + Send + 'static,
    ) {
        let job: Job = Box::new(move |connection| {
            let result = in_savepoint(connection, |c| machines::write(c, &changes));
            let error = result.err().map(Arc::new);
            Outcome {
                failed: error.clone(),
                finish: Box::new(move |committed| {
                    if let Some(source) = error.or_else(|| committed.err()) {
                        let error = StoreError::from_sqlite(what, source);
                        tracing::error!(error = error_chain(&error), "database");
                        if matches!(error, StoreError::Unwritable { .. }) {
                            failed(changes);
                        }
                    }
                }),
            }
        });
        if self.jobs.send(job).is_err() {
            tracing::error!("cannot {what}: the database is closed");
        }
    }
}

fn serve(connection: &Connection, queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        // If this fails the commit below fails, too.
        let begun = connection.execute_batch("BEGIN").map_err(Arc::new);
        let mut finishes = Vec::new();
        let mut rolled_back = None;
        let mut next = Some(first);
        while let Some(job) = next.take() {
            let Outcome { failed, finish } = job(connection);
            finishes.push(finish);
            if connection.is_autocommit() {
                // A full disk has rolled back the whole transaction, with the jobs before this one.
                // Further jobs would run outside of a transaction.
                rolled_back = failed;
                break;
            }
            if finishes.len() < BATCH {
                next = queue.try_recv().ok();
            }
        }
        let committed = match (begun, rolled_back) {
            (Err(error), _) | (Ok(()), Some(error)) => Err(error),
            (Ok(()), None) => connection.execute_batch("COMMIT").map_err(Arc::new),
        };
        if committed.is_err() && !connection.is_autocommit() {
            // A commit that failed when out of space leaves the transaction open.
            if let Err(error) = connection.execute_batch("ROLLBACK") {
                tracing::error!(%error, "cannot roll back");
            }
        }
        for finish in finishes {
            finish(committed.clone());
        }
    }
}

/// Runs one job of a batch so that its failure rolls back its own writes only.
fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    connection.execute_batch("SAVEPOINT job")?;
    let result = work(connection);
    let end = if result.is_ok() {
        "RELEASE job"
    } else {
        "ROLLBACK TO job; RELEASE job"
    };
    // Some failures, such as a full disk, have rolled everything back already.
    if !connection.is_autocommit() {
        connection.execute_batch(end)?;
    }
    result
}

#[cfg(test)]
mod tests;
