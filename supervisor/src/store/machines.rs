//! Rows of machines, their versions, events and timings.

use machine_api::{MachineEvent, MachineVersion, Timing};
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::record::MachineRecord;
use crate::model::state::State;
use crate::store::{Store, StoreError};

/// Most events and timings of a machine that are stored together, later than those that happened after them.
pub(crate) const MOST_LATE: u32 = 256;
/// Most events, and most timings, of a machine, and their bytes. A guest decides how many there are, and a part
/// of what they say.
const MOST_ROWS: i64 = 5_000;
const MOST_BYTES: i64 = 16 << 20;

/// One write. All changes of a commit are stored, or none.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A machine that must not exist yet.
    NewMachine(Box<MachineRecord>),
    /// A machine's row, which exists.
    Machine(Box<MachineRecord>),
    /// A machine that goes without a trace: its creation failed.
    Forget(String),
    /// A version of a machine.
    Version(Box<MachineRecord>),
    /// An event of a machine.
    Event(String, Box<MachineEvent>),
    /// A timing of a machine.
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
            // After a full disk some are stored late, behind those that happened after them.
            let sql = format!(
                "SELECT body FROM events WHERE sequence IN (SELECT sequence FROM (
                     SELECT sequence, body ->> '$.timestamp' AS at FROM events
                     WHERE machine_id = ?1 ORDER BY sequence DESC LIMIT ?2 + {MOST_LATE}
                 ) ORDER BY at DESC, sequence DESC LIMIT ?2) ORDER BY sequence DESC"
            );
            bodies(connection, &sql, &id, limit)
        });
        let mut events: Vec<MachineEvent> = read.await?;
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

/// Writes `changes` in order.
pub(super) fn write(connection: &Connection, changes: &[Change]) -> rusqlite::Result<()> {
    for change in changes {
        match change {
            Change::NewMachine(record) => insert(connection, record)?,
            Change::Machine(record) => update(connection, record)?,
            Change::Forget(id) => {
                connection
                    .prepare_cached("DELETE FROM machines WHERE id = ?1")?
                    .execute(params![id])?;
            }
            Change::Version(record) => add_version(connection, record)?,
            Change::Event(id, event) => {
                add_body(
                    connection,
                    "INSERT INTO events (machine_id, body) VALUES (?1, ?2)",
                    "DELETE FROM events WHERE machine_id = ?1 AND sequence <= (SELECT sequence \
                     FROM (SELECT sequence, row_number() OVER newest AS rows, \
                     sum(octet_length(body)) OVER newest AS bytes FROM events \
                     WHERE machine_id = ?1 WINDOW newest AS (ORDER BY sequence DESC)) \
                     WHERE rows > ?2 OR bytes > ?3 LIMIT 1)",
                    id,
                    event,
                )?;
            }
            Change::Timing(id, timing) => {
                add_body(
                    connection,
                    "INSERT INTO timings (machine_id, body) VALUES (?1, ?2)",
                    "DELETE FROM timings WHERE machine_id = ?1 AND sequence <= (SELECT sequence \
                     FROM (SELECT sequence, row_number() OVER newest AS rows, \
                     sum(octet_length(body)) OVER newest AS bytes FROM timings \
                     WHERE machine_id = ?1 WINDOW newest AS (ORDER BY sequence DESC)) \
                     WHERE rows > ?2 OR bytes > ?3 LIMIT 1)",
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
    // Pruning looks at all rows of the machine, so it is not done each time. By chance: numbers of rows, which
    // machines share, could always leave the same one out.
    if rand::random::<u8>() == 0 {
        connection
            .prepare_cached(prune)?
            .execute(params![machine_id, MOST_ROWS, MOST_BYTES])?;
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

/// SQLite's integers are signed. Generations are far below their maximum.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
