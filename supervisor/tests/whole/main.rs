//! Tests of the whole supervisor over its real API, with fake VMMs in place of real ones.

#![expect(clippy::unwrap_used, reason = "parts of tests")]

mod access;
mod adoption;
mod crash;
mod disks;
mod ending;
mod fly_clients;
mod lifecycle;
mod power_failure;
mod published_ports;
mod reach;
mod resources;
mod stage;
#[path = "../support/mod.rs"]
mod support;
mod suspend;
mod tls;
mod unlisted;
mod versions;
