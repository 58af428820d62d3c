//! `mctl-supervisor`; see the library.

fn main() -> anyhow::Result<()> {
    supervisor::run()
}
