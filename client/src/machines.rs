//! The calls of the API, one method each: `/v1/apps/default/machines…` and `/v1/host`.

use std::time::Duration;

use hyper::Method;
use machine_api::{
    CreateMachine, DEFAULT_APP, ExecRequest, ExecResponse, HostInfo, ListedProcess, LogLine,
    Machine, MachineEvent, MachineState, Ok as Done, SignalRequest, StartResponse, StopRequest,
    Timing, UpdateMachine, Usage, VsockView,
};

use crate::call::{Call, QUICK, escaped};
use crate::ndjson::Lines;
use crate::{Client, Error};

/// Admission is quick, but it may queue behind the step that the machine is in.
const ADMISSION: Duration = Duration::from_secs(60);

/// Most that the API waits in one call.
const LONGEST_WAIT_S: u64 = 60;

/// Which machines `list` returns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only these states; all if empty.
    pub states: Vec<MachineState>,
    /// Only machines that have all of these metadata.
    pub metadata: Vec<(String, String)>,
    /// Destroyed ones too.
    pub include_deleted: bool,
}

/// Which log lines are returned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Go on with new lines until the caller drops the stream.
    pub follow: bool,
    /// Only lines from then on, RFC 3339.
    pub since: Option<String>,
    /// Only that many of the last lines.
    pub tail: Option<u64>,
}

/// Address of all machines.
pub(crate) fn machines() -> String {
    format!("/v1/apps/{DEFAULT_APP}/machines")
}

/// Address of something of one machine, or of the machine itself with an empty `rest`.
pub(crate) fn of(id: &str, rest: &str) -> String {
    format!("{}/{}{rest}", machines(), escaped(id))
}

impl Client {
    /// What the supervisor knows of its host.
    pub async fn host(&self) -> Result<HostInfo, Error> {
        self.json(Call::new(Method::GET, "/v1/host", "ask about the host"))
            .await
    }

    /// All machines that `filter` lets through.
    pub async fn list(&self, filter: &ListFilter) -> Result<Vec<Machine>, Error> {
        let mut call = Call::new(Method::GET, machines(), "list machines");
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
            of(id, ""),
            format!("look up machine {id}"),
        ))
        .await
    }

    /// Makes a machine and, unless told otherwise, starts it; does not wait for the start.
    pub async fn create(&self, machine: &CreateMachine) -> Result<Machine, Error> {
        let what = match &machine.name {
            Some(name) => format!("create machine {name}"),
            None => "create a machine".to_owned(),
        };
        self.json(
            Call::new(Method::POST, machines(), what)
                .deadline(ADMISSION)
                .body(machine),
        )
        .await
    }

    /// Gives a machine a new version.
    pub async fn update(&self, id: &str, update: &UpdateMachine) -> Result<Machine, Error> {
        let call = Call::new(Method::POST, of(id, ""), format!("update machine {id}"));
        self.json(call.deadline(ADMISSION).body(update)).await
    }

    /// Removes a machine; one that runs only with `force`.
    pub async fn destroy(&self, id: &str, force: bool) -> Result<(), Error> {
        let call = Call::new(Method::DELETE, of(id, ""), format!("destroy machine {id}"));
        let call = call.query("force", force).deadline(ADMISSION);
        self.json::<Done>(call).await.map(drop)
    }

    /// Starts or resumes; does not wait for the end.
    pub async fn start(&self, id: &str) -> Result<StartResponse, Error> {
        let call = Call::new(
            Method::POST,
            of(id, "/start"),
            format!("start machine {id}"),
        );
        self.json(call.deadline(ADMISSION)).await
    }

    /// Stops; does not wait for the end.
    pub async fn stop(&self, id: &str, request: &StopRequest) -> Result<(), Error> {
        let call = Call::new(Method::POST, of(id, "/stop"), format!("stop machine {id}"));
        self.json::<Done>(call.deadline(ADMISSION).body(request))
            .await
            .map(drop)
    }

    /// Suspends; does not wait for the end.
    pub async fn suspend(&self, id: &str) -> Result<(), Error> {
        let call = Call::new(
            Method::POST,
            of(id, "/suspend"),
            format!("suspend machine {id}"),
        );
        self.json::<Done>(call.deadline(ADMISSION)).await.map(drop)
    }

    /// Stops and starts again; with `force` without giving the main process time to end.
    pub async fn restart(&self, id: &str, force: bool, how: &StopRequest) -> Result<(), Error> {
        let call = Call::new(
            Method::POST,
            of(id, "/restart"),
            format!("restart machine {id}"),
        )
        .query("force_stop", force)
        .maybe_query("timeout", how.timeout.as_deref())
        .maybe_query("signal", how.signal.as_deref());
        self.json::<Done>(call.deadline(ADMISSION)).await.map(drop)
    }

    /// Runs a command in the guest to its end. The bound on it is `request.timeout`, which the
    /// server enforces; this end gives up somewhat later.
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecResponse, Error> {
        let limit = Duration::from_secs(request.timeout.unwrap_or(60).into());
        let call = Call::new(
            Method::POST,
            of(id, "/exec"),
            format!("run a command in {id}"),
        );
        self.json(call.deadline(limit + QUICK).body(request)).await
    }

    /// Sends a signal to the main process.
    pub async fn signal(&self, id: &str, signal: &str) -> Result<(), Error> {
        let what = format!("send {signal} to machine {id}");
        let body = SignalRequest {
            signal: signal.to_owned(),
        };
        let call = Call::new(Method::POST, of(id, "/signal"), what).body(&body);
        self.json::<Done>(call).await.map(drop)
    }

    /// The guest's processes.
    pub async fn processes(&self, id: &str) -> Result<Vec<ListedProcess>, Error> {
        let what = format!("list processes of {id}");
        self.json(Call::new(Method::GET, of(id, "/ps"), what)).await
    }

    /// Waits up to `timeout` (at most a minute) for `state`, of the version `instance` if given.
    /// Running out of time is a refusal of kind `Deadline`.
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
            of(id, "/wait"),
            format!("wait for {id} to be {state}"),
        )
        .query("state", state)
        .query("timeout", seconds)
        .maybe_query("instance_id", instance);
        let call = call.deadline(Duration::from_secs(LONGEST_WAIT_S) + QUICK);
        self.json::<Done>(call).await.map(drop)
    }

    /// What happened to a machine, newest first.
    pub async fn events(&self, id: &str, limit: Option<u32>) -> Result<Vec<MachineEvent>, Error> {
        let call = Call::new(
            Method::GET,
            of(id, "/events"),
            format!("list events of {id}"),
        );
        self.json(call.maybe_query("limit", limit)).await
    }

    /// The newest `limit` of what happened to a machine, oldest first, and then whatever happens
    /// until it is destroyed.
    pub async fn follow_events(&self, id: &str, limit: u32) -> Result<Lines<MachineEvent>, Error> {
        let call = Call::new(
            Method::GET,
            of(id, "/events"),
            format!("follow events of {id}"),
        );
        let call = call.query("follow", true).query("limit", limit);
        self.lines(call, true).await
    }

    /// Measured starts, suspends, resumes and stops, newest first.
    pub async fn timings(&self, id: &str, limit: Option<u32>) -> Result<Vec<Timing>, Error> {
        let call = Call::new(
            Method::GET,
            of(id, "/timings"),
            format!("list timings of {id}"),
        );
        self.json(call.maybe_query("limit", limit)).await
    }

    /// CPU and memory of a started machine.
    pub async fn usage(&self, id: &str) -> Result<Usage, Error> {
        let what = format!("look up the usage of {id}");
        self.json(Call::new(Method::GET, of(id, "/usage"), what))
            .await
    }

    /// Both ends' view of a machine's vsock connections, and what it means.
    pub async fn vsock(&self, id: &str) -> Result<VsockView, Error> {
        let call = Call::new(
            Method::GET,
            of(id, "/vsock"),
            format!("diagnose vsock of {id}"),
        );
        self.json(call).await
    }

    /// Lines of a machine's output, oldest first.
    pub async fn logs(&self, id: &str, filter: &LogFilter) -> Result<Lines<LogLine>, Error> {
        let call = Call::new(Method::GET, of(id, "/logs"), format!("read logs of {id}"))
            .query("follow", filter.follow)
            .maybe_query("since", filter.since.as_deref())
            .maybe_query("tail", filter.tail);
        self.lines(call, filter.follow).await
    }

    pub(crate) async fn lines<T>(&self, call: Call, endless: bool) -> Result<Lines<T>, Error> {
        let what = call.what.clone();
        let answer = self.open(call).await?;
        Ok(Lines::new(
            what,
            answer.into_body(),
            (!endless).then_some(QUICK),
        ))
    }
}
