//! Errors that mean that something of the system is used up: which limit it is, and how to raise it.
//!
//! The system's own message ("Too many open files") names neither. `error_chain` adds these hints.

use std::error::Error;
use std::io;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Most descriptors that a start needs: pipes of the launch, log, process, control connection,
/// monitor, output, and one that the API's answer may need meanwhile.
const DESCRIPTORS_PER_START: usize = 10;

/// What to do about `error`, if it means that something is used up.
pub(crate) fn hint(error: &io::Error) -> Option<&'static str> {
    Some(match Errno::from_io_error(error)? {
        Errno::MFILE => {
            "the supervisor has no file descriptor left; raise its limit (LimitNOFILE= of its \
             unit) or close connections"
        }
        Errno::NFILE => "the host has no file descriptor left; raise fs.file-max",
        Errno::NOSPC => "no space is left there; free some, for example by destroying machines",
        Errno::DQUOT => "the quota there is used up; raise it or destroy machines",
        Errno::ROFS => "the file system is read-only; see the kernel's log for why, and remount it",
        Errno::NOMEM => "the host has no memory left",
        _ => return None,
    })
}

/// Whether one of the causes of `error` is a limit of descriptors or memory, rather than of space on a
/// disk: it is over when others have ended, and says nothing about the files it was met on.
pub(crate) fn is_passing(error: &(dyn Error + 'static)) -> bool {
    let own = error.downcast_ref().and_then(Errno::from_io_error);
    own.is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM))
        || error.source().is_some_and(is_passing)
}

/// What to do about `error`, with which a process or thread could not be created.
pub(crate) fn spawn_hint(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => Some(
            "no further process can be created; raise the supervisor's limit (TasksMax= of its \
             unit, pids.max of its control group, or the process limit of its user)",
        ),
        _ => hint(error),
    }
}

/// Raises the limit of descriptors as far as a process may by itself. A machine takes about five
/// and a connection of a published port two; the usual 1,024 are for programs that call `select`.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of file descriptors stays low");
    }
}

/// How many descriptors this process may have.
pub(crate) fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// What to do about `error`, if it or one of its causes means that something is used up.
pub(crate) fn hint_in_causes(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let own = error.downcast_ref().and_then(hint);
    own.or_else(|| error.source().and_then(hint_in_causes))
}

/// Whether `error`, or one of its causes, means that something is used up.
pub(crate) fn is_exhaustion(error: &(dyn Error + 'static)) -> bool {
    hint_in_causes(error).is_some()
}

/// Fails if a start would run out of descriptors half-way: its image may be consumed by then, and
/// a guest that cannot be reached would have to be killed.
pub(crate) fn check_descriptors_for_start() -> io::Result<()> {
    let spare: Result<Vec<_>, Errno> = (0..DESCRIPTORS_PER_START)
        .map(|_| open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()))
        .collect();
    spare.map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_is_named_with_what_to_do() {
        let of = |errno: Errno| hint(&errno.into()).unwrap_or_default();
        assert!(of(Errno::MFILE).contains("LimitNOFILE"));
        assert!(of(Errno::NOSPC).contains("no space"));
        assert!(of(Errno::ROFS).contains("read-only"));
        assert_eq!(of(Errno::NOENT), "");
        assert!(is_passing(&io::Error::from(Errno::MFILE)));
        assert!(!is_passing(&io::Error::from(Errno::NOSPC)));
        let again = io::Error::from(Errno::AGAIN);
        assert!(hint(&again).is_none());
        assert!(spawn_hint(&again).unwrap().contains("pids.max"));
    }
}
