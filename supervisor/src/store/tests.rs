//! The store on real files: what survives, what is refused, what is not changed.

use std::fs;
use std::path::Path;

use machine_api::{ImageRef, MachineConfig};
use rusqlite::Connection;

use super::{Change, OpenError, Store, StoreError};
use crate::model::event;
use crate::model::record::{Facts, MachineRecord};
use crate::model::state::State;

fn machine(id: &str, name: &str) -> Box<MachineRecord> {
    Box::new(MachineRecord {
        id: id.to_owned(),
        app: "default".to_owned(),
        name: name.to_owned(),
        state: State::Created,
        instance_id: "v1".to_owned(),
        config: MachineConfig::default(),
        image_ref: ImageRef::default(),
        created_at_ms: 1,
        updated_at_ms: 1,
        generation: 0,
        image_generation: None,
        vmm: None,
        facts: Facts::default(),
    })
}

async fn add(store: &Store, id: &str, name: &str) -> Result<(), StoreError> {
    store
        .commit("add", vec![Change::NewMachine(machine(id, name))])
        .await
}

fn damage(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    for byte in &mut bytes[offset..offset + 64] {
        *byte ^= 0x5a;
    }
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn machines_survive_a_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mctl.db");
    let store = Store::open(&path).unwrap();
    add(&store, "a", "one").await.unwrap();
    let mut changed = machine("a", "one");
    changed.state = State::Suspended;
    changed.generation = 7;
    changed.image_generation = Some(7);
    store
        .commit("change", vec![Change::Machine(changed)])
        .await
        .unwrap();
    drop(store);

    let found = Store::open(&path).unwrap().machines().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].state, found[0].image_generation),
        (State::Suspended, Some(7))
    );
}

#[tokio::test]
async fn a_name_is_taken_until_its_machine_is_destroyed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("mctl.db")).unwrap();
    add(&store, "a", "same").await.unwrap();
    assert!(matches!(
        add(&store, "b", "same").await,
        Err(StoreError::Exists { .. })
    ));

    let mut gone = machine("a", "same");
    gone.state = State::Destroyed;
    store
        .commit("destroy", vec![Change::Machine(gone)])
        .await
        .unwrap();
    add(&store, "b", "same").await.unwrap();
}

#[tokio::test]
async fn a_failed_change_takes_back_those_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("mctl.db")).unwrap();
    let twice = vec![
        Change::NewMachine(machine("a", "one")),
        Change::NewMachine(machine("a", "two")),
    ];
    assert!(store.commit("add twice", twice).await.is_err());
    assert!(store.machines().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_damaged_database_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mctl.db");
    let store = Store::open(&path).unwrap();
    add(&store, "a", "one").await.unwrap();
    drop(store);
    // The thread closes the connection, which folds the log into the file, after the last sender.
    let begun = std::time::Instant::now();
    while folder.path().join("mctl.db-wal").exists() {
        assert!(begun.elapsed().as_secs() < 20, "the database stays open");
        std::thread::yield_now();
    }
    let whole = fs::read(&path).unwrap();
    for offset in [0, 4096, whole.len() - 4096] {
        fs::write(&path, &whole).unwrap();
        damage(&path, offset);
        let before = fs::read(&path).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(
            matches!(error, OpenError::Damaged { .. }),
            "at {offset}: {error}"
        );
        assert_eq!(fs::read(&path).unwrap(), before, "at {offset}");
    }
}

#[test]
fn a_text_file_is_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mctl.db");
    fs::write(&path, "notes, and more than sixteen bytes of them").unwrap();
    assert!(matches!(Store::open(&path), Err(OpenError::Damaged { .. })));
    assert!(fs::read_to_string(&path).unwrap().starts_with("notes"));
}

#[test]
fn a_newer_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mctl.db");
    drop(Store::open(&path).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 999).unwrap();
    drop(connection);
    assert!(matches!(
        Store::open(&path),
        Err(OpenError::Newer { found: 999, .. })
    ));
}

#[tokio::test]
async fn a_full_database_keeps_what_it_promised_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("mctl.db")).unwrap();
    let limit = |connection: &Connection| {
        let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        connection.pragma_update_and_check(None, "max_page_count", pages + 40, |_| Ok(()))
    };
    store.call("set a limit", limit).await.unwrap();
    // While this one is at work the others gather, and share a transaction.
    let slow = store.call("wait", |_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        Ok(())
    });
    let names: Vec<String> = (0..60).map(|number| format!("m{number}")).collect();
    let adds = names.iter().map(|name| async {
        let mut large = machine(name, name);
        large.config.env.insert("x".to_owned(), "y".repeat(8_000));
        let stored = store.commit("add", vec![Change::NewMachine(large)]).await;
        (name.clone(), stored)
    });
    let (slow, added) = tokio::join!(slow, futures_util::future::join_all(adds));
    // It shared their transaction, and their fate.
    drop(slow);
    let mut promised = Vec::new();
    let mut refused = 0;
    for (name, stored) in added {
        match stored {
            Ok(()) => promised.push(name),
            Err(StoreError::Unwritable { why, .. }) => {
                assert!(why.contains("no space is left"), "{why}");
                refused += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(refused > 0, "the limit was never reached");
    let records = store.machines().await.unwrap();
    let mut kept: Vec<String> = records.into_iter().map(|record| record.id).collect();
    kept.sort();
    promised.sort();
    assert_eq!(kept, promised);
    // Small changes that need no further page go on.
    store.call("read", |_| Ok(())).await.unwrap();
}

/// Adds `rounds` times an event of each of two machines; the first one's have messages of so many bytes.
/// Returns how many events it has then, and the bytes of their messages.
async fn events_after(rounds: usize, bytes: usize) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("mctl.db")).unwrap();
    add(&store, "a", "one").await.unwrap();
    add(&store, "b", "two").await.unwrap();
    for round in 0..rounds.div_ceil(50) {
        let event = |id: &str| {
            let length = if id == "a" { bytes } else { 1 };
            let message = format!("{round} {}", "x".repeat(length));
            let event = event::warning(State::Started, message);
            Change::Event(id.to_owned(), Box::new(event))
        };
        let changes = (0..50).flat_map(|_| [event("a"), event("b")]).collect();
        store.commit("add events", changes).await.unwrap();
    }
    let kept = store.events("a", u32::MAX).await.unwrap();
    let newest = rounds.div_ceil(50) - 1;
    let message = kept[0].message.clone().unwrap();
    assert!(message.starts_with(&format!("{newest} ")), "{message}");
    let bytes = kept
        .iter()
        .map(|event| event.message.as_ref().map_or(0, String::len));
    (kept.len(), bytes.sum())
}

#[tokio::test]
async fn a_machine_has_a_bounded_number_of_events_and_the_newest_stay() {
    // One in 256 new events removes the oldest.
    let (events, _) = events_after(13_000, 1).await;
    assert!((5_000..5_000 + 20 * 256).contains(&events), "{events}");
}

#[tokio::test]
async fn long_events_are_bounded_by_their_bytes() {
    let (events, bytes) = events_after(7_000, 10_000).await;
    assert!(events < 7_000 && bytes > 10 << 20, "{events} with {bytes}");
    assert!(bytes < (16 << 20) + 20 * 256 * 10_000, "{bytes}");
}

/// As after a full disk: events that came earlier are stored last.
#[tokio::test]
async fn the_newest_events_are_the_last_that_happened_though_others_were_stored_after_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("mctl.db")).unwrap();
    add(&store, "a", "one").await.unwrap();
    let event = |timestamp| {
        let mut event = event::launch();
        event.timestamp = timestamp;
        Change::Event("a".to_owned(), Box::new(event))
    };
    let late = 100..200;
    let in_time = [0..100, 200..300].into_iter().flatten();
    for timestamps in [in_time.collect::<Vec<_>>(), late.collect()] {
        let changes = timestamps.into_iter().map(event).collect();
        store.commit("add events", changes).await.unwrap();
    }
    let newest = store.events("a", 150).await.unwrap();
    let times: Vec<_> = newest.iter().map(|event| event.timestamp).collect();
    assert_eq!(times, (150..300).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn only_machines_that_were_destroyed_long_ago_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("mctl.db")).unwrap();
    for (id, state, updated_at_ms) in [
        ("a", State::Destroyed, 5),
        ("b", State::Destroyed, 15),
        ("c", State::Stopped, 5),
    ] {
        let mut record = machine(id, id);
        record.state = state;
        record.updated_at_ms = updated_at_ms;
        store
            .commit("add", vec![Change::NewMachine(record)])
            .await
            .unwrap();
    }
    assert_eq!(store.forget_destroyed(10).await.unwrap(), ["a"]);
    let left = store.machines().await.unwrap();
    let left: Vec<&str> = left.iter().map(|record| record.id.as_str()).collect();
    assert_eq!(left, ["b", "c"]);
}

#[tokio::test]
async fn the_size_of_the_database_grows_with_what_is_stored_and_not_with_what_is_rewritten() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("mctl.db")).unwrap();
    add(&store, "a", "one").await.unwrap();
    let before = store.bytes().await.unwrap();
    // Far more changes than the write-ahead log holds before a checkpoint.
    for generation in 0..2_000 {
        let mut changed = machine("a", "one");
        changed.generation = generation;
        let changes = vec![Change::Machine(changed)];
        store.commit("change", changes).await.unwrap();
    }
    assert_eq!(store.bytes().await.unwrap(), before);
    for index in 0..100 {
        let name = format!("machine-{index}");
        add(&store, &name, &name).await.unwrap();
    }
    let grown = store.bytes().await.unwrap() - before;
    assert!((10_000..1_000_000).contains(&grown), "{grown}");
}

fn database_of_the_release_before() -> String {
    String::from_utf8(release_before::bytes("database.sql")).unwrap()
}

#[tokio::test]
async fn a_database_of_the_release_before_has_its_machines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mctl.db");
    let before = Connection::open(&path).unwrap();
    before
        .execute_batch(&database_of_the_release_before())
        .unwrap();
    drop(before);
    let store = Store::open(&path).unwrap();
    let machines = store.machines().await.unwrap();
    let states: Vec<_> = machines
        .iter()
        .map(|machine| (machine.name.as_str(), machine.state))
        .collect();
    assert_eq!(
        states,
        [
            ("untouched", State::Started),
            ("resumed", State::Started),
            ("suspended", State::Suspended)
        ]
    );
    let suspended = &machines[2];
    assert_eq!(suspended.image_generation, Some(1));
    assert_eq!(suspended.config.mounts.len(), 1);
    assert!(machines[0].vmm.is_some());
    let events = store.events(&suspended.id, 100).await.unwrap();
    assert_eq!(events.len(), 5);
    let timings = store.timings(&suspended.id, 100).await.unwrap();
    assert_eq!(timings.len(), 2);
}

/// It refuses a database with a higher version, and its statements name their columns.
#[tokio::test]
async fn the_release_before_can_use_a_database_of_ours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mctl.db");
    let store = Store::open(&path).unwrap();
    add(&store, "a", "one").await.unwrap();
    drop(store);
    let ours = Connection::open(&path).unwrap();
    let theirs = Connection::open_in_memory().unwrap();
    theirs
        .execute_batch(&database_of_the_release_before())
        .unwrap();
    let pragma = |connection: &Connection, name| -> i64 {
        connection
            .pragma_query_value(None, name, |row| row.get(0))
            .unwrap()
    };
    for name in ["application_id", "user_version"] {
        assert_eq!(pragma(&ours, name), pragma(&theirs, name), "{name}");
    }
    let statements = database_of_the_release_before();
    let inserts = statements
        .lines()
        .filter(|line| line.starts_with("INSERT INTO"));
    for insert in inserts {
        ours.execute_batch(insert).unwrap();
    }
    let tables: Vec<String> = theirs
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(tables.len(), 5);
    for table in tables {
        let columns = |connection: &Connection| -> Vec<(String, String)> {
            let sql = format!("SELECT name, type FROM pragma_table_info('{table}')");
            let mut statement = connection.prepare(&sql).unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            rows.unwrap().collect::<Result<_, _>>().unwrap()
        };
        let found = columns(&ours);
        for column in columns(&theirs) {
            assert!(
                found.contains(&column),
                "{table} has no {column:?} any more"
            );
        }
    }
}
