//! What a driver does first about a machine that an earlier supervisor has left, and when it retries a
//! transition that could not go on: both continue from what is stored and what is found.

use machine_api::{EventType, Operation};

use crate::machine::driver::Driver;
use crate::machine::found_vmm::FoundVmm;
use crate::machine::request::Request;
use crate::model::event::EventDetails;
use crate::model::recovery::{LeftImage, Recovery, recovery};
use crate::model::timing::Trace;
use crate::vmm_process::{VmmExit, read_exit_report, remove_sockets};

/// Why a machine that was started is suspended.
const IMAGE_IS_BACK: &str = "the host failed before it was durable that the image had been used: nothing \
                             had left the guest, which goes on from its image";

impl Driver {
    /// Continues from what was found.
    pub(in crate::machine) async fn take_over(&mut self, found: FoundVmm) -> Option<Request> {
        let (vmm, image, powered_off) = match found {
            FoundVmm::Alive(vmm) => (Some(vmm), LeftImage::None, false),
            FoundVmm::Ended { image, powered_off } => {
                remove_sockets(&self.dir);
                (None, image, powered_off)
            }
        };
        let recovery = recovery(self.record.state, vmm.is_some(), image, powered_off);
        self.record.vmm = vmm.as_ref().map(|vmm| vmm.identity().clone());
        self.vmm = vmm;
        let stop = self.planned_stop();
        match recovery {
            Recovery::Nothing => {
                self.continue_restart();
                self.destroy_if_due("rest.destroy_due").await;
                None
            }
            Recovery::Kill => {
                self.kill_stray_vmm().await;
                None
            }
            Recovery::Adopt => self.adopt().await,
            Recovery::Start => self.start(Trace::begin(), None).await,
            Recovery::RecordEnd => {
                let exit = self.unseen_end();
                self.respond_to_vmm_end(exit).await
            }
            Recovery::RecordShortRun => {
                let resumed = self.record.image_generation.is_some();
                self.record_short_run(self.unseen_end(), resumed).await
            }
            Recovery::Suspend => self.adopt_suspending().await,
            Recovery::Suspended => {
                self.record_unseen_suspend();
                None
            }
            Recovery::SuspendedAgain { generation, resume } => {
                if resume {
                    return self.resume_again(generation).await;
                }
                self.return_to_image(generation, IMAGE_IS_BACK);
                None
            }
            Recovery::Stop => self.carry_out_stop(stop, Trace::begin()).await,
            Recovery::Restart => self.carry_out_restart(stop, &mut Trace::begin()).await,
            Recovery::Update => self.carry_out_update(&mut Trace::begin()).await,
            Recovery::Destroy => {
                self.destroy(None).await;
                None
            }
        }
    }

    /// Kills a VMM that there should not be.
    async fn kill_stray_vmm(&mut self) {
        let message = "a VMM that should have ended was killed".to_owned();
        self.add_event(EventType::Warning, message);
        self.kill_vmm().await;
        self.record.vmm = None;
        self.store_record_later();
    }

    /// The end of a VMM while no supervisor was there.
    fn unseen_end(&self) -> VmmExit {
        let path = self.dir.exit_report();
        VmmExit {
            report: read_exit_report(&path, &self.record.id, self.record.generation),
            ..VmmExit::unseen()
        }
    }

    /// A suspend was completed while no supervisor was there, or after it had been given up.
    pub(super) fn record_unseen_suspend(&mut self) {
        let timing = Trace::begin().finish(Operation::Suspend, self.record.generation);
        let message = "completed while nobody waited for it; its phases are not known".to_owned();
        let details = EventDetails {
            timing: Some(timing),
            message: Some(message),
            ..EventDetails::default()
        };
        self.become_suspended(self.record.generation, details);
    }

    /// A machine that was started, and whose image is back, is resumed once more.
    pub(super) async fn resume_again(&mut self, generation: u64) -> Option<Request> {
        self.return_to_image(generation, IMAGE_IS_BACK);
        self.start(Trace::begin(), None).await
    }

    /// The VMM was restored from an image of an earlier generation, which is there again, since it was
    /// never durable that it had been used. The machine is suspended as it was before.
    pub(super) fn return_to_image(&mut self, generation: u64, why: &str) {
        self.log.add_note(why);
        let details = EventDetails {
            message: Some(why.to_owned()),
            ..EventDetails::default()
        };
        self.become_suspended(generation, details);
    }
}
