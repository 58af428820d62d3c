-- Machines, their versions, what happened to them and how long it took.
CREATE TABLE machines (
    id               TEXT PRIMARY KEY,
    app              TEXT NOT NULL,
    name             TEXT NOT NULL,
    state            TEXT NOT NULL,
    instance_id      TEXT NOT NULL,
    config           TEXT NOT NULL CHECK (json_valid(config)),
    image_ref        TEXT NOT NULL CHECK (json_valid(image_ref)),
    created_at_ms    INTEGER NOT NULL,
    updated_at_ms    INTEGER NOT NULL,
    generation       INTEGER NOT NULL,
    image_generation INTEGER,
    vmm              TEXT CHECK (vmm IS NULL OR json_valid(vmm)),
    facts            TEXT NOT NULL CHECK (json_valid(facts))
) STRICT;

CREATE UNIQUE INDEX machines_by_name ON machines (app, name) WHERE state <> 'destroyed';

CREATE TABLE versions (
    machine_id    TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    instance_id   TEXT NOT NULL,
    config        TEXT NOT NULL CHECK (json_valid(config)),
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (machine_id, instance_id)
) STRICT;

CREATE TABLE events (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    machine_id TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    body       TEXT NOT NULL CHECK (json_valid(body))
) STRICT;
CREATE INDEX events_by_machine ON events (machine_id, sequence);

CREATE TABLE timings (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    machine_id TEXT NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
    body       TEXT NOT NULL CHECK (json_valid(body))
) STRICT;
CREATE INDEX timings_by_machine ON timings (machine_id, sequence);
