//! Rows of machines, their versions, events and timings.

use machine_api::{
    Attempt, ImageRef, MachineConfig, MachineEvent, MachineVersion, PublishedPort, StartKind,
    Timing,
};
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::machine::state::State;
use crate::store::{Store, StoreError};
use crate::vmm_process::ProcessIdentity;

/// Events and timings kept per machine.
const KEPT: i64 = 5_000;

/// A machine as the database has it.
#[derive(Debug, Clone)]
pub(crate) struct MachineRecord {
    /// 14 hexadecimal digits.
    pub(crate) id: String,
    /// The app it belongs to.
    pub(crate) app: String,
    /// Unique among machines of the app that are not destroyed.
    pub(crate) name: String,
    /// Where it is in its life.
    pub(crate) state: State,
    /// Its version.
    pub(crate) instance_id: String,
    /// Its configuration.
    pub(crate) config: MachineConfig,
    /// The image it boots.
    pub(crate) image_ref: ImageRef,
    /// Milliseconds since 1970.
    pub(crate) created_at_ms: i64,
    /// Milliseconds since 1970.
    pub(crate) updated_at_ms: i64,
    /// Raised and stored before each launch of a VMM.
    pub(crate) generation: u64,
    /// Generation of the suspended image that counts, if there is one.
    pub(crate) image_generation: Option<u64>,
    /// Its VMM, as far as it is known.
    pub(crate) vmm: Option<ProcessIdentity>,
    /// The rest.
    pub(crate) facts: Facts,
}

/// What is kept of a machine and never searched for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Facts {
    /// No new connections are routed to it.
    pub(crate) cordoned: bool,
    /// A user asked for the last stop.
    pub(crate) stop_requested: bool,
    /// Restarts in a row by the restart policy.
    pub(crate) restarts: u32,
    /// How the last start went.
    pub(crate) last_start: Option<StartKind>,
    /// Readiness attempts of the last start or resume.
    pub(crate) readiness: Vec<Attempt>,
    /// Why the image of a suspended machine must not be resumed.
    pub(crate) image_unusable: Option<String>,
    /// Why a start that is under way boots a machine that had an image.
    pub(crate) cold_reason: Option<String>,
    /// Warnings for the operator.
    pub(crate) warnings: Vec<String>,
    /// Who may change it, if somebody took a lease.
    pub(crate) lease: Option<LeaseFact>,
    /// An update that is under way leaves it stopped.
    pub(crate) skip_launch: bool,
    /// Its VMM ended and the restart policy will start it again.
    pub(crate) restart_due: bool,
    /// It has ended and is to be removed, as its configuration wants.
    pub(crate) destroy_due: bool,
    /// Ports that are published now.
    pub(crate) published: Vec<PublishedPort>,
    /// First generation in which leaked sockets were seen, while they are.
    pub(crate) leaking_since: Option<u64>,
}

/// A lease as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LeaseFact {
    /// Proves who holds it.
    pub(crate) nonce: String,
    /// Milliseconds since 1970.
    pub(crate) expires_at_ms: i64,
    /// For people.
    pub(crate) description: String,
    /// The machine's version when it was taken.
    pub(crate) version: String,
}

impl Facts {
    /// The lease, if it has not expired.
    pub(crate) fn standing_lease(&self, now_ms: i64) -> Option<&LeaseFact> {
        self.lease
            .as_ref()
            .filter(|lease| lease.expires_at_ms > now_ms)
    }

    /// Notes what the first status after a start said about sockets of older generations.
    pub(crate) fn note_leaks(&mut self, older: u32, generation: u64) {
        self.warnings.clear();
        if older == 0 {
            self.leaking_since = None;
            return;
        }
        let since = *self.leaking_since.get_or_insert(generation);
        self.warnings.push(format!(
            "{older} vsock sockets of older generations are still open in the guest (first seen \
             in generation {since})"
        ));
    }
}

/// One write. Those of a commit happen together or not at all.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A machine that must not exist yet.
    NewMachine(Box<MachineRecord>),
    /// A machine's row as it is now.
    Machine(Box<MachineRecord>),
    /// A configuration that was in force.
    Version(Box<MachineRecord>),
    /// Something happened.
    Event(String, Box<MachineEvent>),
    /// Something was measured.
    Timing(String, Box<Timing>),
}

impl Store {
    /// All machines, destroyed ones too, oldest first.
    pub(crate) async fn machines(&self) -> Result<Vec<MachineRecord>, StoreError> {
        self.call("read all machines", |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, app, name, state, instance_id, config, image_ref, created_at_ms,
                        updated_at_ms, generation, image_generation, vmm, facts
                 FROM machines ORDER BY created_at_ms, id",
            )?;
            let rows = statement.query_map([], record)?;
            rows.collect()
        })
        .await
    }

    /// A machine's events, newest first.
    pub(crate) async fn events(
        &self,
        machine_id: &str,
        limit: u32,
    ) -> Result<Vec<MachineEvent>, StoreError> {
        let id = machine_id.to_owned();
        let read = self.call("read events", move |connection| {
            let sql =
                "SELECT body FROM events WHERE machine_id = ?1 ORDER BY sequence DESC LIMIT ?2";
            bodies(connection, sql, &id, limit)
        });
        let mut events: Vec<MachineEvent> = read.await?;
        // What a full disk held up is stored late, behind what happened after it.
        events.sort_by_key(|event| std::cmp::Reverse(event.timestamp));
        Ok(events)
    }

    /// A machine's timings, newest first.
    pub(crate) async fn timings(
        &self,
        machine_id: &str,
        limit: u32,
    ) -> Result<Vec<Timing>, StoreError> {
        let id = machine_id.to_owned();
        self.call("read timings", move |connection| {
            let sql =
                "SELECT body FROM timings WHERE machine_id = ?1 ORDER BY sequence DESC LIMIT ?2";
            bodies(connection, sql, &id, limit)
        })
        .await
    }

    /// A machine's versions, newest first.
    pub(crate) async fn versions(
        &self,
        machine_id: &str,
    ) -> Result<Vec<MachineVersion>, StoreError> {
        let id = machine_id.to_owned();
        self.call("read versions", move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT instance_id, config FROM versions WHERE machine_id = ?1
                 ORDER BY created_at_ms DESC, instance_id DESC",
            )?;
            let rows = statement.query_map(params![id], |row| {
                let version = row.get("instance_id")?;
                Ok(MachineVersion {
                    version,
                    user_config: from_json(row, "config")?,
                })
            })?;
            rows.collect()
        })
        .await
    }

    /// Forgets machines that were destroyed before `before_ms`. Returns their ids.
    pub(crate) async fn forget_destroyed(&self, before_ms: i64) -> Result<Vec<String>, StoreError> {
        self.call("forget destroyed machines", move |connection| {
            let mut statement = connection.prepare_cached(
                "DELETE FROM machines WHERE state = 'destroyed' AND updated_at_ms < ?1
                 RETURNING id",
            )?;
            let ids = statement.query_map(params![before_ms], |row| row.get("id"))?;
            ids.collect()
        })
        .await
    }
}

/// Carries out `changes` in order.
pub(super) fn write(connection: &Connection, changes: &[Change]) -> rusqlite::Result<()> {
    for change in changes {
        match change {
            Change::NewMachine(record) => insert(connection, record)?,
            Change::Machine(record) => update(connection, record)?,
            Change::Version(record) => add_version(connection, record)?,
            Change::Event(id, event) => {
                add_body(
                    connection,
                    "INSERT INTO events (machine_id, body) VALUES (?1, ?2)",
                    "DELETE FROM events WHERE machine_id = ?1 AND sequence <= (SELECT sequence \
                     FROM events WHERE machine_id = ?1 ORDER BY sequence DESC LIMIT 1 OFFSET ?2)",
                    id,
                    event,
                )?;
            }
            Change::Timing(id, timing) => {
                add_body(
                    connection,
                    "INSERT INTO timings (machine_id, body) VALUES (?1, ?2)",
                    "DELETE FROM timings WHERE machine_id = ?1 AND sequence <= (SELECT sequence \
                     FROM timings WHERE machine_id = ?1 ORDER BY sequence DESC LIMIT 1 OFFSET ?2)",
                    id,
                    timing,
                )?;
            }
        }
    }
    Ok(())
}

fn insert(connection: &Connection, record: &MachineRecord) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO machines (app, name, state, instance_id, config, image_ref, created_at_ms,
                updated_at_ms, generation, image_generation, vmm, facts, id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute(params![
            record.app,
            record.name,
            record.state.name(),
            record.instance_id,
            json(&record.config)?,
            json(&record.image_ref)?,
            record.created_at_ms,
            record.updated_at_ms,
            integer(record.generation),
            record.image_generation.map(integer),
            record.vmm.as_ref().map(json).transpose()?,
            json(&record.facts)?,
            record.id,
        ])?;
    Ok(())
}

fn update(connection: &Connection, record: &MachineRecord) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE machines SET name = ?1, state = ?2, instance_id = ?3, config = ?4,
                image_ref = ?5, updated_at_ms = ?6, generation = ?7, image_generation = ?8,
                vmm = ?9, facts = ?10
             WHERE id = ?11",
        )?
        .execute(params![
            record.name,
            record.state.name(),
            record.instance_id,
            json(&record.config)?,
            json(&record.image_ref)?,
            record.updated_at_ms,
            integer(record.generation),
            record.image_generation.map(integer),
            record.vmm.as_ref().map(json).transpose()?,
            json(&record.facts)?,
            record.id,
        ])?;
    Ok(())
}

fn add_version(connection: &Connection, record: &MachineRecord) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO versions (machine_id, instance_id, config, created_at_ms)
             VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![
            record.id,
            record.instance_id,
            json(&record.config)?,
            record.updated_at_ms
        ])?;
    Ok(())
}

fn add_body(
    connection: &Connection,
    insert: &str,
    prune: &str,
    machine_id: &str,
    body: &impl Serialize,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(insert)?
        .execute(params![machine_id, json(body)?])?;
    // Pruning each time would walk the index each time; now and then is enough for a bound.
    if connection.last_insert_rowid() % 256 == 0 {
        connection
            .prepare_cached(prune)?
            .execute(params![machine_id, KEPT])?;
    }
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<MachineRecord> {
    let state: String = row.get("state")?;
    Ok(MachineRecord {
        id: row.get("id")?,
        app: row.get("app")?,
        name: row.get("name")?,
        state: State::from_name(&state).ok_or_else(|| {
            let unknown = format!("unknown machine state {state:?}");
            rusqlite::Error::FromSqlConversionFailure(3, Type::Text, unknown.into())
        })?,
        instance_id: row.get("instance_id")?,
        config: from_json(row, "config")?,
        image_ref: from_json(row, "image_ref")?,
        created_at_ms: row.get("created_at_ms")?,
        updated_at_ms: row.get("updated_at_ms")?,
        generation: row.get::<_, i64>("generation")?.cast_unsigned(),
        image_generation: row
            .get::<_, Option<i64>>("image_generation")?
            .map(i64::cast_unsigned),
        vmm: row
            .get::<_, Option<String>>("vmm")?
            .map(|text| parse(&text))
            .transpose()?,
        facts: from_json(row, "facts")?,
    })
}

/// The `body` column of rows chosen by machine and limit.
pub(super) fn bodies<T: DeserializeOwned>(
    connection: &Connection,
    sql: &str,
    machine_id: &str,
    limit: u32,
) -> rusqlite::Result<Vec<T>> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params![machine_id, limit], |row| from_json(row, "body"))?;
    rows.collect()
}

fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    parse(&row.get::<_, String>(column)?)
}

fn parse<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// SQLite's integers are signed; a generation never comes near their bound.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_is_warned_of_with_its_size_and_its_beginning_until_it_is_gone() {
        let mut facts = Facts::default();
        facts.note_leaks(0, 3);
        assert!(facts.warnings.is_empty());
        facts.note_leaks(1, 4);
        facts.note_leaks(2, 5);
        assert_eq!(facts.leaking_since, Some(4));
        assert_eq!(
            facts.warnings,
            [
                "2 vsock sockets of older generations are still open in the guest (first seen in \
                 generation 4)"
            ]
        );
        facts.note_leaks(0, 6);
        assert!(facts.warnings.is_empty() && facts.leaking_since.is_none());
    }
}
