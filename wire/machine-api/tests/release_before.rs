//! Answers of a supervisor of the release before, which clients of this one read, and the other way round.

use machine_api::{
    CreatedToken, ErrorBody, Machine, MachineConfig, MachineEvent, StartResponse, Timing,
};
use release_before::{messages, play};

#[test]
fn the_release_before_and_this_one_understand_each_other() {
    let messages = messages("machine-api.ndjson");
    for message in &messages {
        match message.kind.as_str() {
            "Machine" => play::<Machine>(message),
            "MachineConfig" => play::<MachineConfig>(message),
            "MachineEvent" => play::<MachineEvent>(message),
            "StartResponse" => play::<StartResponse>(message),
            "Timing" => play::<Timing>(message),
            "ErrorBody" => play::<ErrorBody>(message),
            "CreatedToken" => play::<CreatedToken>(message),
            kind => panic!("{kind} is no answer"),
        }
    }
    assert_eq!(messages.len(), 12);
}
