//! The control socket of a VMM, at both ends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use supervisor::fuzzing::ask_vmm;
use vmm::control::clients::Clients;
use vmm::control::{ControlListener, MAX_CONNECTIONS};
use vmm_control::{Event, Hello, Message, Phase, Reply, Request, RequestBody, RunState};

use crate::scratch;

/// The VMM's end: what clients send, in pieces, each piece on the connection that its first byte says.
pub(crate) fn requests(input: &[u8]) {
    let path = scratch::path("control");
    let listener = ControlListener::bind(&path).expect("the path is free");
    let mut clients = Clients::new(Some(listener)).expect("a descriptor");
    let mut connected: Vec<UnixStream> = Vec::new();
    let mut asked = 0;
    for piece in input.split(|byte| *byte == 0) {
        let Some((first, bytes)) = piece.split_first() else {
            continue;
        };
        let number = usize::from(*first) % (MAX_CONNECTIONS + 2);
        while connected.len() <= number {
            let stream = UnixStream::connect(&path).expect("the VMM listens");
            stream.set_nonblocking(true).expect("a socket");
            connected.push(stream);
            serve(&mut clients, &mut asked);
        }
        // Fails where the VMM has closed the connection.
        let _ = connected[number].write_all(bytes);
        serve(&mut clients, &mut asked);
        if first & 0x80 != 0 {
            connected.remove(number);
        }
    }
    let lines = input.iter().filter(|byte| **byte == b'\n').count();
    assert!(asked <= lines, "{asked} requests came of {lines} lines");
    clients.broadcast(&Message::Event {
        at_ns: 1,
        event: Event::ResetAcknowledged,
    });
    serve(&mut clients, &mut asked);
    for stream in &mut connected {
        let mut text = Vec::new();
        // Ends where nothing more is there.
        let _ = stream.read_to_end(&mut text);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            serde_json::from_slice::<Message>(line).expect("a VMM says messages");
        }
    }
}

fn serve(clients: &mut Clients, asked: &mut usize) {
    let served = clients.serve(hello).expect("epoll works");
    for (id, request) in served {
        *asked += 1;
        let line = serde_json::to_vec(&request).expect("requests are plain JSON");
        let again: Request = serde_json::from_slice(&line).expect("what was written is read");
        assert_eq!(again, request, "a request survives its line");
        clients.send(
            id,
            &Message::Reply {
                id: request.id,
                reply: Reply::Done,
            },
        );
    }
}

fn hello() -> Message {
    Message::Hello(Hello {
        version: vmm_control::VERSION,
        machine_id: "m1".to_owned(),
        generation: 3,
        pid: 4,
        state: RunState::Running,
        phases: Vec::<Phase>::new(),
        reset_acknowledged_ns: None,
        consumption_durable: false,
    })
}

/// The supervisor's end: what a VMM says.
pub(crate) fn messages(input: &[u8]) {
    for line in input.split(|byte| *byte == b'\n') {
        if let Ok(message) = serde_json::from_slice::<Message>(line) {
            let first = serde_json::to_vec(&message).expect("messages are plain JSON");
            let again: Message = serde_json::from_slice(&first).expect("what was written is read");
            let second = serde_json::to_vec(&again).expect("messages are plain JSON");
            assert_eq!(first, second, "a message has one encoding");
        }
    }
    let folder = scratch::path("");
    let (Ok(text) | Err(text)) = ask_vmm(input, &folder);
    assert!(!text.is_empty(), "an outcome says what it is");
}

fn line(message: &Message) -> Vec<u8> {
    [
        serde_json::to_vec(message).expect("messages are plain JSON"),
        b"\n".to_vec(),
    ]
    .concat()
}

/// Requests of several clients.
pub(crate) fn request_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let bodies = [
        RequestBody::Pause,
        RequestBody::Unpause,
        RequestBody::Suspend { image: "/i".into() },
        RequestBody::CancelSuspend,
        RequestBody::Counters,
        RequestBody::Quit,
    ];
    let mut all = Vec::new();
    for (id, body) in (1_u8..).zip(bodies) {
        let line = serde_json::to_vec(&Request {
            id: id.into(),
            body,
        })
        .expect("requests are plain JSON");
        all.extend([&[id][..], &line, b"\n\0"].concat());
    }
    let halves = b"\x01{\"id\":1,\"req\0\x02{\"id\":7,\"request\":\"dance\"}\n\0\x01uest\":\"pause\"}\n{}\n\0\x11x".to_vec();
    vec![
        ("all", all),
        ("halves", halves),
        ("leaves", b"\x81{\"id\":1}\0\x03\n".to_vec()),
    ]
}

/// What VMMs say.
pub(crate) fn message_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let event = |event| line(&Message::Event { at_ns: 9, event });
    let reply = |reply| line(&Message::Reply { id: 1, reply });
    let failed = Reply::Failed {
        kind: "busy".to_owned(),
        message: "no".to_owned(),
    };
    let events = [
        line(&hello()),
        event(Event::Running { phases: Vec::new() }),
        event(Event::ResetAcknowledged),
        event(Event::ConsumptionDurable),
        event(Event::Verified { bytes: 5, ms: 6 }),
        b"{\"message\":\"poem\"}\n{\"message\":\"event\",\"at_ns\":1,\"event\":{\"type\":\"danced\"}}\n".to_vec(),
        reply(Reply::Counters(vmm_control::VsockCounters::default())),
    ]
    .concat();
    vec![
        ("events", events),
        ("failed", [line(&hello()), reply(failed)].concat()),
        ("stranger", br#"{"message":"hello","version":9,"machine_id":"x","generation":3,"pid":4,"state":"paused","phases":[]}"#.to_vec()),
        ("silence", Vec::new()),
        ("text", b"no JSON\n".to_vec()),
    ]
}
