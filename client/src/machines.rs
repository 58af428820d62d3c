//! Calls about machines and the host, one method each: `/v1/apps/{app}/machines…` and
//! `/v1/host`.

use std::time::Duration;

use hyper::Method;
use machine_api::{
    CreateMachine, ExecRequest, ExecResponse, HostInfo, ListedProcess, LogLine, Machine,
    MachineEvent, MachineResources, MachineState, SignalRequest, StartResponse, StopRequest,
    Timing, UpdateMachine, Usage, VsockView,
};

use crate::call::{Call, DEFAULT_DEADLINE};
use crate::client::Client;
use crate::error::Error;
use crate::ndjson::Lines;
use crate::paths;

/// Admission is quick, but the request may have to wait for the step that the machine is in.
const ADMISSION_DEADLINE: Duration = Duration::from_secs(60);

/// The longest time that one call of [`Client::wait`] waits, in seconds.
const LONGEST_WAIT_S: u64 = 60;

/// Which machines `list` returns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only machines in these states; all if empty.
    pub states: Vec<MachineState>,
    /// Only machines that have all of these metadata.
    pub metadata: Vec<(String, String)>,
    /// Destroyed machines, too.
    pub include_deleted: bool,
}

/// Which log lines are returned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Go on with new lines until the caller drops the stream.
    pub follow: bool,
    /// Only lines since this time, RFC 3339.
    pub since: Option<String>,
    /// Only this many of the last lines.
    pub tail: Option<u64>,
}

impl Client {
    /// What the supervisor knows about its host.
    pub async fn host(&self) -> Result<HostInfo, Error> {
        self.json(Call::new(Method::GET, "/v1/host", "ask about the host"))
            .await
    }

    /// The machines that `filter` selects.
    pub async fn list(&self, filter: &ListFilter) -> Result<Vec<Machine>, Error> {
        let mut call = Call::new(Method::GET, paths::machines(&self.app), "list machines");
        if !filter.states.is_empty() {
            let names: Vec<&str> = filter.states.iter().map(|state| state.name()).collect();
            call = call.query("state", names.join(","));
        }
        for (key, value) in &filter.metadata {
            call = call.query(&format!("metadata.{key}"), value);
        }
        if filter.include_deleted {
            call = call.query("include_deleted", true);
        }
        self.json(call).await
    }

    /// One machine.
    pub async fn machine(&self, id: &str) -> Result<Machine, Error> {
        self.json(Call::new(
            Method::GET,
            paths::machine(&self.app, id, ""),
            format!("look up machine {id}"),
        ))
        .await
    }

    /// Creates a machine and, unless `skip_launch` is set, starts it. Does not wait for the start.
    pub async fn create(&self, machine: &CreateMachine) -> Result<Machine, Error> {
        let action = match &machine.name {
            Some(name) => format!("create machine {name}"),
            None => "create a machine".to_owned(),
        };
        self.json(
            Call::new(Method::POST, paths::machines(&self.app), action)
                .deadline(ADMISSION_DEADLINE)
                .body(machine),
        )
        .await
    }

    /// Gives a machine a new version.
    pub async fn update(&self, id: &str, update: &UpdateMachine) -> Result<Machine, Error> {
        let call = Call::new(
            Method::POST,
            paths::machine(&self.app, id, ""),
            format!("update machine {id}"),
        );
        self.json(call.deadline(ADMISSION_DEADLINE).body(update))
            .await
    }

    /// Destroys a machine. A running one only with `force`.
    pub async fn destroy(&self, id: &str, force: bool) -> Result<(), Error> {
        let call = Call::new(
            Method::DELETE,
            paths::machine(&self.app, id, ""),
            format!("destroy machine {id}"),
        );
        let call = call.query("force", force).deadline(ADMISSION_DEADLINE);
        self.ok(call).await
    }

    /// Starts or resumes a machine. Does not wait until it is started.
    pub async fn start(&self, id: &str) -> Result<StartResponse, Error> {
        self.json(self.start_call(id)).await
    }

    /// Boots a machine even if it is suspended; its image is set aside. Does not wait until it is started.
    pub async fn start_cold(&self, id: &str) -> Result<StartResponse, Error> {
        self.json(self.start_call(id).query("cold", true)).await
    }

    fn start_call(&self, id: &str) -> Call {
        let call = Call::new(
            Method::POST,
            paths::machine(&self.app, id, "/start"),
            format!("start machine {id}"),
        );
        call.deadline(ADMISSION_DEADLINE)
    }

    /// Stops a machine. Does not wait until it is stopped.
    pub async fn stop(&self, id: &str, request: &StopRequest) -> Result<(), Error> {
        let call = Call::new(
            Method::POST,
            paths::machine(&self.app, id, "/stop"),
            format!("stop machine {id}"),
        );
        self.ok(call.deadline(ADMISSION_DEADLINE).body(request))
            .await
    }

    /// Suspends a machine. Does not wait until it is suspended.
    pub async fn suspend(&self, id: &str) -> Result<(), Error> {
        let call = Call::new(
            Method::POST,
            paths::machine(&self.app, id, "/suspend"),
            format!("suspend machine {id}"),
        );
        self.ok(call.deadline(ADMISSION_DEADLINE)).await
    }

    /// Stops a machine and starts it again. With `force` the main process gets no time to end.
    pub async fn restart(&self, id: &str, force: bool, how: &StopRequest) -> Result<(), Error> {
        let call = Call::new(
            Method::POST,
            paths::machine(&self.app, id, "/restart"),
            format!("restart machine {id}"),
        )
        .query("force_stop", force)
        .optional_query("timeout", how.timeout.as_deref())
        .optional_query("signal", how.signal.as_deref());
        self.ok(call.deadline(ADMISSION_DEADLINE)).await
    }

    /// Runs a command in the guest and waits for its end. The server kills the command after
    /// `request.timeout`; the client gives up somewhat later.
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecResponse, Error> {
        let limit = Duration::from_secs(request.timeout.unwrap_or(60).into());
        let call = Call::new(
            Method::POST,
            paths::machine(&self.app, id, "/exec"),
            format!("run a command in machine {id}"),
        );
        self.json(call.deadline(limit + DEFAULT_DEADLINE).body(request))
            .await
    }

    /// Sends a signal to the main process.
    pub async fn signal(&self, id: &str, signal: &str) -> Result<(), Error> {
        let action = format!("send {signal} to machine {id}");
        let body = SignalRequest {
            signal: signal.to_owned(),
        };
        let call = Call::new(
            Method::POST,
            paths::machine(&self.app, id, "/signal"),
            action,
        )
        .body(&body);
        self.ok(call).await
    }

    /// The processes of the guest.
    pub async fn processes(&self, id: &str) -> Result<Vec<ListedProcess>, Error> {
        let action = format!("list processes of machine {id}");
        self.json(Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/ps"),
            action,
        ))
        .await
    }

    /// Waits up to `timeout`, at most a minute, until the machine is in `state` and, if given, of
    /// the version `instance`. If it is not by then, that is a refusal of kind `Deadline`.
    pub async fn wait(
        &self,
        id: &str,
        state: MachineState,
        instance: Option<&str>,
        timeout: Duration,
    ) -> Result<(), Error> {
        let seconds = timeout
            .as_secs_f64()
            .ceil()
            .clamp(1.0, LONGEST_WAIT_S as f64);
        let call = Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/wait"),
            format!("wait for machine {id} to be {state}"),
        )
        .query("state", state)
        .query("timeout", seconds)
        .optional_query("instance_id", instance);
        let call = call.deadline(Duration::from_secs(LONGEST_WAIT_S) + DEFAULT_DEADLINE);
        self.ok(call).await
    }

    /// The events of a machine, newest first.
    pub async fn events(&self, id: &str, limit: Option<u32>) -> Result<Vec<MachineEvent>, Error> {
        let call = Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/events"),
            format!("list events of machine {id}"),
        );
        self.json(call.optional_query("limit", limit)).await
    }

    /// The newest `limit` events of a machine, oldest first, and then new ones until the machine
    /// is destroyed.
    pub async fn follow_events(&self, id: &str, limit: u32) -> Result<Lines<MachineEvent>, Error> {
        let call = Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/events"),
            format!("follow events of machine {id}"),
        );
        let call = call.query("follow", true).query("limit", limit);
        self.lines(call, true).await
    }

    /// Measured starts, suspends, resumes and stops, newest first.
    pub async fn timings(&self, id: &str, limit: Option<u32>) -> Result<Vec<Timing>, Error> {
        let call = Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/timings"),
            format!("list timings of machine {id}"),
        );
        self.json(call.optional_query("limit", limit)).await
    }

    /// CPU and memory of a started machine.
    pub async fn usage(&self, id: &str) -> Result<Usage, Error> {
        let action = format!("look up the usage of machine {id}");
        self.json(Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/usage"),
            action,
        ))
        .await
    }

    /// How host and guest see a machine's vsock connections, and a diagnosis.
    pub async fn vsock(&self, id: &str) -> Result<VsockView, Error> {
        let call = Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/vsock"),
            format!("diagnose vsock of machine {id}"),
        );
        self.json(call).await
    }

    /// What a machine and the processes that serve it have in use now.
    pub async fn resources(&self, id: &str) -> Result<MachineResources, Error> {
        let call = Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/resources"),
            format!("measure what machine {id} has in use"),
        );
        self.json(call).await
    }

    /// Lines of a machine's log, oldest first.
    pub async fn logs(&self, id: &str, filter: &LogFilter) -> Result<Lines<LogLine>, Error> {
        let call = Call::new(
            Method::GET,
            paths::machine(&self.app, id, "/logs"),
            format!("read logs of machine {id}"),
        )
        .query("follow", filter.follow)
        .optional_query("since", filter.since.as_deref())
        .optional_query("tail", filter.tail);
        self.lines(call, filter.follow).await
    }

    async fn lines<T>(&self, call: Call, endless: bool) -> Result<Lines<T>, Error> {
        let action = call.action.clone();
        let answer = self.open(call).await?;
        Ok(Lines::new(
            action,
            answer.into_body(),
            (!endless).then_some(DEFAULT_DEADLINE),
        ))
    }
}
