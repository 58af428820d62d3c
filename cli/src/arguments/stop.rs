//! Flags that say how the main process of a machine is ended.

use machine_api::StopRequest;

use crate::parse;

/// How the main process is ended.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct StopFlags {
    /// Signal to send to the main process
    #[arg(long, short, value_name = "SIGNAL", value_parser = parse::signal)]
    signal: Option<String>,
    /// Time that the main process has to end before it is killed, such as 10s
    #[arg(long, alias = "time", value_name = "TIME", value_parser = parse::api_duration)]
    timeout: Option<String>,
}

impl StopFlags {
    /// The request with these flags. What is not given follows the machine's configuration.
    pub(crate) fn request(&self) -> StopRequest {
        StopRequest {
            signal: self.signal.clone(),
            timeout: self.timeout.clone(),
        }
    }
}
