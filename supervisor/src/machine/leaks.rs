//! Leaks one of each kind, as the supervisor could if what it does after a start were wrong.
//!
//! Only with the `leaks` feature, for the run that shows that each leak is caught (`mctl-e2e leaks`).

use std::fs::{self, File};
use std::future::pending;
use std::hint::black_box;
use std::io;
use std::mem::forget;
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use tokio::net::UnixStream;

use crate::guest::{GuestAddress, GuestStream};
use crate::ids;
use crate::logs::MachineLog;
use crate::model::record::MachineRecord;
use crate::paths::MachineDir;
use crate::store::{Change, Store};

/// Leaked bytes of memory, of a file, of the log and of the database, each.
const BYTES: usize = 64 << 10;

/// Leaks a descriptor, a thread, memory, an epoll entry, a timer, a task, a file in the machine's
/// folder, lines of its log and a row of the database; and connections to the guest, as many as the
/// machine has had generations, since none outlives its own.
pub(super) fn leak_one_of_each(
    record: &MachineRecord,
    dir: &MachineDir,
    log: &MachineLog,
    store: &Store,
    guest: GuestAddress,
) -> io::Result<()> {
    forget(File::open("/dev/null")?);
    thread::Builder::new().spawn(|| {
        loop {
            thread::park();
        }
    })?;
    // Without a look at it the compiler would leave it out.
    forget(black_box(vec![1_u8; BYTES]));
    forget(UnixStream::pair()?);
    forget(timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC,
    )?);
    tokio::spawn(pending::<()>());
    let file = dir.root().join(format!("leaked-{}", record.generation));
    fs::write(file, [1; BYTES])?;
    log.add_note(&"leaked ".repeat(BYTES / 7));
    let mut version = record.clone();
    version.instance_id = ids::new_ulid();
    let metadata = &mut version.config.metadata;
    metadata.insert("leaked".to_owned(), "x".repeat(BYTES));
    let change = Change::Version(Box::new(version));
    store.commit_later("leak a version", vec![change], drop);
    tokio::spawn(open_connections(guest));
    Ok(())
}

/// Connections that nobody uses or closes, until the next start.
static CONNECTIONS: Mutex<Vec<GuestStream>> = Mutex::new(Vec::new());

async fn open_connections(guest: GuestAddress) {
    let mut opened = Vec::new();
    for _ in 0..guest.generation {
        // A guest that refuses one shows one less.
        opened.extend(guest.connect().await.ok());
    }
    *CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner) = opened;
}
