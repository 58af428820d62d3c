//! The only printer of `mctl-kvm-host`: data to stdout, messages to stderr.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is this file's job"
)]

pub(crate) fn data(text: &str) {
    println!("{text}");
}

pub(crate) fn step(text: &str) {
    eprintln!("{text}");
}

pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}
