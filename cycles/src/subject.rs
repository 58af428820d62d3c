//! What can be put through cycles: the trait that the Machines API and Firecracker adapters
//! implement, and what they hand back.

use std::error::Error;
use std::future::Future;

use crate::phases::Phases;
use crate::record::{Attempt, SubjectDescription};

/// Something that can be suspended and resumed again and again.
///
/// Every call returns within a deadline of its own; the loop adds none, since only the subject
/// knows what it waits for. After an error the loop calls nothing more.
pub trait Subject: Send {
    /// What a call can fail with; the chain of sources is put into the report.
    type Error: Error + Send + Sync + 'static;

    /// What this is, for the report.
    fn describe(&self) -> SubjectDescription;

    /// Looks at the running guest. Called once, before the first suspend.
    fn observe(&mut self) -> impl Future<Output = Result<GuestObservation, Self::Error>> + Send;

    /// Suspends; called on a running subject.
    fn suspend(&mut self) -> impl Future<Output = Result<SuspendOutcome, Self::Error>> + Send;

    /// Resumes; called on a suspended subject. Returns when the guest is ready *and* its
    /// long-lived connections are open again, so that counting its sockets is fair; the
    /// latter does not count into the total.
    fn resume(&mut self) -> impl Future<Output = Result<ResumeOutcome, Self::Error>> + Send;
}

/// What the guest says about itself, as far as the subject can ask.
///
/// What was there before the first cycle must be there after each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestObservation {
    /// The guest kernel's boot id.
    pub boot_id: Option<String>,
    /// A number that a process in the guest keeps counting up.
    pub counter: Option<u64>,
    /// Open vsock sockets.
    pub open_vsocks: Option<u32>,
}

/// A completed suspend.
#[derive(Debug, Clone, PartialEq)]
pub struct SuspendOutcome {
    /// From the request to the image durable and the VMM gone.
    pub total_ms: f64,
    /// Use [`Phases::with_remainder`].
    pub phases: Phases,
    /// Bytes written.
    pub image_bytes_written: Option<u64>,
}

/// A completed resume.
#[derive(Debug, Clone, PartialEq)]
pub struct ResumeOutcome {
    /// From the request to the machine counting as started.
    pub total_ms: f64,
    /// Use [`Phases::with_remainder`].
    pub phases: Phases,
    /// Each attempt of the readiness check.
    pub readiness: Vec<Attempt>,
    /// The guest after the resume.
    pub guest: GuestObservation,
}
