//! What a new supervisor makes of machines that a killed one left. `crash` kills it at named steps.

use crate::stage::Stage;
use crate::support::poll;

#[test]
fn a_new_supervisor_adopts_the_machines_of_a_killed_one() {
    let mut stage = Stage::new();
    let started = stage.start_machine("");
    let suspended = stage.start_machine("");
    stage.ask("POST", &suspended, "/suspend?wait=true", None);
    let (vmm, boot_id) = (stage.vmm(&started), stage.boot_id(&started));
    stage.kill();
    assert_eq!(stage.vmm(&started), vmm);
    stage.start(&[]);
    assert_eq!(
        (stage.vmm(&started), stage.boot_id(&started)),
        (vmm, boot_id)
    );
    assert_eq!(stage.ask("GET", &suspended, "", None)["state"], "suspended");
}

#[test]
fn a_vmm_that_was_killed_together_with_its_supervisor_is_found_ended() {
    let mut stage = Stage::new();
    let id = stage.start_machine("");
    stage.wait_for_database(&id);
    stage.kill();
    stage.kill_vmm(&id);
    poll("the end of the VMM", || {
        stage.vmm(&id).is_none().then_some(())
    });
    stage.start(&[]);
    let machine = stage.wait_for(&id, "stopped");
    assert_eq!(machine["events"][0]["type"], "exit");
}

#[test]
fn a_suspend_that_a_crash_interrupted_goes_on() {
    let mut stage = Stage::new();
    let id = stage.start_machine("slow-suspend");
    stage.ask("POST", &id, "/suspend", None);
    stage.wait_for(&id, "suspending");
    stage.kill();
    stage.start(&[]);
    // The fake VMM saves for 20 s unless it is cancelled. That a start cancels it shows that the new
    // supervisor drives it.
    let answer = stage.ask("POST", &id, "/start?wait=true", None);
    assert_eq!(answer["start"]["kind"], "suspend_cancelled", "{answer}");
}
