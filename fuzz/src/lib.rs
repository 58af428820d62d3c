//! Fuzz targets: plain functions over bytes, which run the project's own code and panic where something
//! does not hold that must.
//!
//! `tests/targets.rs` drives them on every test run, over the seeds in `corpus/` and random changes of
//! these. `./just fuzz` drives them with libFuzzer, guided by coverage.

mod changed;
mod guest;
pub mod mutation;
mod scratch;
mod steps;
mod targets;

use targets::{block, bodies, buses, control, image, kernel, protocol, rng, vsock};

/// A target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, on command lines and of its corpus.
    pub name: &'static str,
    /// What reads the input.
    pub subject: &'static str,
    /// Runs the input; panics if something does not hold.
    pub run: fn(&[u8]),
    /// Inputs that reach far, by name.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

/// All targets.
#[rustfmt::skip]
pub const TARGETS: &[Target] = &[
    Target { name: "rng", subject: "the entropy device behind its queue", run: rng::target, seeds: rng::seeds },
    Target { name: "block", subject: "a disk behind its queue", run: block::target, seeds: block::seeds },
    Target { name: "vsock", subject: "the vsock device behind its queues", run: vsock::target, seeds: vsock::seeds },
    Target { name: "buses", subject: "ports and register windows of a whole machine", run: buses::target, seeds: buses::seeds },
    Target { name: "image", subject: "the reader of images", run: image::target, seeds: image::seeds },
    Target { name: "kernel", subject: "the loader of kernels", run: kernel::target, seeds: kernel::seeds },
    Target { name: "frames", subject: "frames and messages of the guest protocol", run: protocol::frames, seeds: protocol::frame_seeds },
    Target { name: "calls", subject: "guest-init, which the supervisor calls", run: protocol::calls, seeds: protocol::call_seeds },
    Target { name: "answers", subject: "the supervisor, which a guest answers", run: protocol::answers, seeds: protocol::answer_seeds },
    Target { name: "requests", subject: "a VMM's control socket", run: control::requests, seeds: control::request_seeds },
    Target { name: "messages", subject: "the supervisor, to which a VMM talks", run: control::messages, seeds: control::message_seeds },
    Target { name: "bodies", subject: "the API's bodies", run: bodies::target, seeds: bodies::seeds },
];

/// The target of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
