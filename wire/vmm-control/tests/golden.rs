//! The exact JSON of every message: supervisor and VMM may come from different builds.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vmm_control::{
    ANNOUNCE_CONSUMPTION, CollidedPair, ConnectionCounts, Event, ExitReason, ExitReport, Hello,
    Message, Phase, Protocols, Reply, Request, RequestBody, RunState, SuspendFigures,
    VsockCounters,
};

#[track_caller]
fn assert_golden<T>(value: &T, golden: &Value)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    assert_eq!(
        serde_json::to_value(value).expect("it has a JSON form"),
        *golden
    );
    assert_eq!(
        serde_json::from_value::<T>(golden.clone()).expect("it parses"),
        *value
    );
}

fn phase() -> Phase {
    Phase {
        name: "image_open".to_owned(),
        start_ns: 10,
        end_ns: 20,
    }
}

#[test]
fn requests() {
    let cases = [
        (RequestBody::Pause, json!({"id": 1, "request": "pause"})),
        (RequestBody::Unpause, json!({"id": 1, "request": "unpause"})),
        (
            RequestBody::Suspend {
                image: "/image".into(),
            },
            json!({"id": 1, "request": "suspend", "image": "/image"}),
        ),
        (
            RequestBody::CancelSuspend,
            json!({"id": 1, "request": "cancel_suspend"}),
        ),
        (
            RequestBody::Counters,
            json!({"id": 1, "request": "counters"}),
        ),
        (RequestBody::Quit, json!({"id": 1, "request": "quit"})),
    ];
    for (body, golden) in cases {
        assert_golden(&Request { id: 1, body }, &golden);
    }
}

#[test]
fn greeting() {
    let mut hello = Hello {
        version: vmm_control::VERSION,
        machine_id: "m1".to_owned(),
        generation: 3,
        pid: 42,
        state: RunState::Running,
        phases: vec![phase()],
        reset_acknowledged_ns: None,
        consumption_durable: false,
    };
    let mut golden = json!({
        "message": "hello", "version": 1, "machine_id": "m1", "generation": 3, "pid": 42,
        "state": "running",
        "phases": [{"name": "image_open", "start_ns": 10, "end_ns": 20}],
        "consumption_durable": false,
    });
    assert_golden(&Message::Hello(hello.clone()), &golden);
    hello.reset_acknowledged_ns = Some(99);
    golden["reset_acknowledged_ns"] = json!(99);
    assert_golden(&Message::Hello(hello), &golden);
}

#[test]
fn run_states() {
    let states = [
        RunState::Building,
        RunState::Running,
        RunState::Paused,
        RunState::Suspending,
    ];
    assert_golden(
        &states.to_vec(),
        &json!(["building", "running", "paused", "suspending"]),
    );
}

#[test]
fn simple_replies() {
    assert_golden(
        &Message::Reply {
            id: 5,
            reply: Reply::Done,
        },
        &json!({"message": "reply", "id": 5, "reply": {"type": "done"}}),
    );
    let reply = Reply::Failed {
        kind: "no_space".to_owned(),
        message: "full".to_owned(),
    };
    assert_golden(
        &Message::Reply { id: 5, reply },
        &json!({"message": "reply", "id": 5,
                "reply": {"type": "failed", "kind": "no_space", "message": "full"}}),
    );
}

#[test]
fn suspend_figures() {
    let figures = SuspendFigures {
        phases: vec![phase()],
        memory_bytes_written: 1,
        image_bytes_written: 2,
        image_bytes_allocated: 3,
        pages_changed: 4,
        dirty_source: "pagemap_scan".to_owned(),
    };
    assert_golden(
        &Reply::Suspended(figures),
        &json!({
            "type": "suspended",
            "phases": [{"name": "image_open", "start_ns": 10, "end_ns": 20}],
            "memory_bytes_written": 1, "image_bytes_written": 2, "image_bytes_allocated": 3,
            "pages_changed": 4, "dirty_source": "pagemap_scan",
        }),
    );
}

#[test]
fn counters() {
    let counters = VsockCounters {
        requests_sent: 1,
        connections: Some(ConnectionCounts {
            requesting: 1,
            requested: 2,
            accepting: 3,
            established: 4,
            draining: 5,
        }),
        gate_closed: true,
        port_policy: "random".to_owned(),
        last_collided: vec![CollidedPair {
            local_port: 1 << 30,
            peer_port: 1024,
            at_ns: 7,
        }],
        ..VsockCounters::default()
    };
    assert_golden(
        &Reply::Counters(counters),
        &json!({
            "type": "counters", "requests_sent": 1, "requests_accepted": 0, "requests_reset": 0,
            "requests_unanswered": 0, "guest_connections_accepted": 0,
            "guest_connections_refused": 0, "pairs_evicted": 0, "gate_held_packets": 0,
            "gate_dropped_packets": 0,
            "guest_packets_dropped": 0, "bytes_to_guest": 0, "bytes_from_guest": 0,
            "live_connections": 0,
            "connections": {"requesting": 1, "requested": 2, "accepting": 3, "established": 4,
                            "draining": 5},
            "gate_closed": true, "first_local_port": 0,
            "next_local_port": 0, "port_policy": "random",
            "last_collided": [{"local_port": 1_073_741_824, "peer_port": 1024, "at_ns": 7}],
        }),
    );
}

#[test]
fn counters_of_a_vmm_that_counts_no_states_are_understood() {
    let mut known = serde_json::to_value(VsockCounters::default()).unwrap();
    assert_eq!(known.as_object_mut().unwrap().remove("connections"), None);
    let read: VsockCounters = serde_json::from_value(known).unwrap();
    assert_eq!(read.connections, None);
}

#[test]
fn the_names_of_states_are_those_on_the_wire() {
    let counts = ConnectionCounts {
        requesting: 1,
        requested: 2,
        accepting: 3,
        established: 4,
        draining: 5,
    };
    let listed = counts
        .by_state()
        .map(|(name, count)| (name.to_owned(), json!(count)));
    let object: serde_json::Map<String, Value> = listed.into_iter().collect();
    assert_eq!(serde_json::to_value(counts).unwrap(), Value::Object(object));
}

#[test]
fn events() {
    let event = |event| Message::Event { at_ns: 8, event };
    let golden = |event: Value| json!({"message": "event", "at_ns": 8, "event": event});
    assert_golden(
        &event(Event::Running {
            phases: vec![phase()],
        }),
        &golden(json!({"type": "running",
                       "phases": [{"name": "image_open", "start_ns": 10, "end_ns": 20}]})),
    );
    assert_golden(
        &event(Event::ResetAcknowledged),
        &golden(json!({"type": "reset_acknowledged"})),
    );
    assert_golden(
        &event(Event::ConsumptionDurable),
        &golden(json!({"type": "consumption_durable"})),
    );
    assert_golden(
        &event(Event::Verified { bytes: 1, ms: 2 }),
        &golden(json!({"type": "verified", "bytes": 1, "ms": 2})),
    );
    let report = ExitReport {
        machine_id: "m1".to_owned(),
        generation: 3,
        reason: ExitReason::GuestPowerOff,
        message: "bye".to_owned(),
    };
    assert_golden(
        &event(Event::Exiting(report)),
        &golden(
            json!({"type": "exiting", "machine_id": "m1", "generation": 3,
                       "reason": "guest_power_off", "message": "bye"}),
        ),
    );
}

#[test]
fn exit_reasons() {
    let reasons = vec![
        ExitReason::GuestPowerOff,
        ExitReason::GuestReset,
        ExitReason::GuestCrashed,
        ExitReason::Suspended,
        ExitReason::Quit,
        ExitReason::ImageRefused,
        ExitReason::ImageUnfit,
        ExitReason::ImageDamaged,
        ExitReason::HostFailed,
    ];
    let golden = json!([
        "guest_power_off",
        "guest_reset",
        "guest_crashed",
        "suspended",
        "quit",
        "image_refused",
        "image_unfit",
        "image_damaged",
        "host_failed"
    ]);
    assert_golden(&reasons, &golden);
}

#[test]
fn what_a_later_version_adds_is_skipped() {
    let unknown = [
        json!({"message": "event", "at_ns": 1, "event": {"type": "danced", "steps": 3}}),
        json!({"message": "poem", "verses": ["a", "b"]}),
    ];
    let [event, message] = unknown.map(|json| serde_json::from_value::<Message>(json).unwrap());
    let Message::Event { event, .. } = event else {
        panic!("{event:?}");
    };
    assert_eq!((event, message), (Event::Unknown, Message::Unknown));
    let mut hello = json!({"message": "hello", "version": 1, "machine_id": "m1", "generation": 3,
        "pid": 42, "state": "running", "phases": [], "mood": "good"});
    serde_json::from_value::<Message>(hello.clone()).unwrap();
    // A VMM that says nothing about its image makes no promise, so nothing waits for it.
    let Message::Hello(read) = serde_json::from_value(hello.take()).unwrap() else {
        panic!("no hello");
    };
    assert!(read.consumption_durable);
}

#[test]
fn protocols() {
    let protocols = Protocols {
        control: 1,
        image: 1,
        announces: vec![ANNOUNCE_CONSUMPTION.to_owned()],
    };
    let golden = json!({"control": 1, "image": 1, "announces": ["consumption"]});
    assert_golden(&protocols, &golden);
    // A release that announces nothing does not say so.
    let silent: Protocols = serde_json::from_value(json!({"control": 1, "image": 1})).unwrap();
    assert!(silent.announces.is_empty());
}
