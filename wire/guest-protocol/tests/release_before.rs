//! A guest-init and a supervisor of the release before, in the words that they send.

use guest_protocol::{
    Call, CpuSample, FileKind, OutputRecord, Reply, Request, StreamEnd, TerminalSize,
};
use release_before::{messages, play};

#[test]
fn the_release_before_and_this_one_understand_each_other() {
    let messages = messages("guest-protocol.ndjson");
    for message in &messages {
        match message.kind.as_str() {
            "Call" => play::<Call>(message),
            "Request" => play::<Request>(message),
            "Reply" => play::<Reply>(message),
            "StreamEnd" => play::<StreamEnd>(message),
            "CpuSample" => play::<CpuSample>(message),
            "OutputRecord" => play::<OutputRecord>(message),
            "TerminalSize" => play::<TerminalSize>(message),
            "FileKind" => play::<FileKind>(message),
            kind => panic!("{kind} is no message"),
        }
    }
    assert_eq!(messages.len(), 33);
}

#[test]
fn a_status_of_the_first_release_says_its_version_by_saying_none() {
    let status = messages("guest-protocol.ndjson")
        .into_iter()
        .find(|message| message.json["type"] == "status")
        .unwrap();
    let Reply::Status(status) = serde_json::from_value(status.json).unwrap() else {
        panic!("it is a status");
    };
    assert_eq!(status.protocol, 1);
    assert!(guest_protocol::common_version(status.protocol).is_some());
}
