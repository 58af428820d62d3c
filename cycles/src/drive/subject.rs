//! What can be put through cycles: the trait that adapters to VMMs implement, and what its calls
//! return. A further observation of the guest is a field of [`GuestObservation`].

use std::error::Error;
use std::future::Future;

use crate::record::{Attempt, Phases, Resources, SubjectDescription};

/// Something that can be suspended and resumed again and again.
///
/// Every call returns within a deadline of its own. The loop adds none, since only the subject
/// knows what it waits for. After an error the loop makes no further call.
pub trait Subject: Send {
    /// Why a call failed. The report contains it with its chain of sources.
    type Error: Error + Send + Sync + 'static;

    /// Describes this subject for the report.
    fn describe(&self) -> SubjectDescription;

    /// Observes the running guest. Called once, before the first suspend.
    fn observe(&mut self) -> impl Future<Output = Result<GuestObservation, Self::Error>> + Send;

    /// Suspends; called on a running subject.
    fn suspend(&mut self) -> impl Future<Output = Result<SuspendOutcome, Self::Error>> + Send;

    /// Resumes; called on a suspended subject. Returns when the guest is ready *and* its
    /// long-lived connections are open again, because its sockets are counted then. The total
    /// only includes the former.
    fn resume(&mut self) -> impl Future<Output = Result<ResumeOutcome, Self::Error>> + Send;

    /// What is in use, whatever could grow with each cycle. Called once after each resume, when
    /// nothing is being measured. Empty for a subject that cannot say.
    fn resources(&mut self) -> impl Future<Output = Result<Resources, Self::Error>> + Send {
        async { Ok(Resources::default()) }
    }
}

/// What the guest reports about itself, as far as the subject can ask.
///
/// A value that is reported before the first cycle must be reported after each.
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
    /// From the request until the image is durable and the VMM gone.
    pub total_ms: f64,
    /// They sum to the total; [`Phases::with_remainder`] ensures that.
    pub phases: Phases,
    /// Bytes written.
    pub image_bytes_written: Option<u64>,
}

/// A completed resume.
#[derive(Debug, Clone, PartialEq)]
pub struct ResumeOutcome {
    /// From the request until the machine counts as started.
    pub total_ms: f64,
    /// They sum to the total; [`Phases::with_remainder`] ensures that.
    pub phases: Phases,
    /// Each attempt of the readiness check.
    pub readiness: Vec<Attempt>,
    /// The guest after the resume.
    pub guest: GuestObservation,
}
