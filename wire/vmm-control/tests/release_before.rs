//! A VMM and a supervisor of the release before, in the words that they send.

use release_before::{messages, play};
use vmm_control::{ExitReason, Message, Reply, Request, RunState};

#[test]
fn the_release_before_and_this_one_understand_each_other() {
    let messages = messages("vmm-control.ndjson");
    for message in &messages {
        match message.kind.as_str() {
            "Request" => play::<Request>(message),
            "Reply" => play::<Reply>(message),
            "Message" => play::<Message>(message),
            "RunStates" => play::<Vec<RunState>>(message),
            "ExitReasons" => play::<Vec<ExitReason>>(message),
            kind => panic!("{kind} is no message"),
        }
    }
    assert_eq!(messages.len(), 18);
}
