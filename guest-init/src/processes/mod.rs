//! The guest's processes: how they start, what they print, how they end. Calls and connections
//! are above: nothing here knows who asked.

pub(crate) mod main_process;
pub(crate) mod oom;
pub(crate) mod output_buffer;
pub(crate) mod output_streams;
pub(crate) mod reaper;
pub(crate) mod shutdown;
pub(crate) mod spawn;
