//! Published ports: connections to a port of the host reach a program in the guest.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::ListFilter;
use e2e::counter;
use machine_api::{
    Check, CheckKind, CheckStatus, EventType, Machine, MachineState, Port, Service, StartKind,
    StopRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bytes;
use crate::stage::{DEADLINE, Stage, config, until};

/// Echoes everything to any number of clients, also after a client has closed its sending half.
const ECHO: [&str; 6] = ["nc", "-ll", "-p", "7", "-e", "cat"];
const ECHO_PORT: u16 = 7;
/// Idle time after which the machine of this test is suspended.
const IDLE: Duration = Duration::from_secs(2);

fn echo_service(address: SocketAddr) -> Service {
    Service {
        protocol: "tcp".to_owned(),
        internal_port: ECHO_PORT,
        ports: vec![Port {
            port: address.port(),
            ..Port::default()
        }],
        ..Service::default()
    }
}

/// An address of this host on which nobody listens.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Sends bytes, closes the sending half, and returns everything received until the other end closes.
async fn echoed(mut stream: TcpStream, sent: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::new();
    let sending = async {
        writer.write_all(sent).await?;
        writer.shutdown().await
    };
    let both = async { tokio::try_join!(sending, reader.read_to_end(&mut received)) };
    timeout(DEADLINE, both)
        .await
        .context("the echo did not end")??;
    Ok(received)
}

async fn ensure_echo(address: SocketAddr, count: usize, seed: u64) -> anyhow::Result<()> {
    let sent = bytes::pattern(count, seed);
    let received = echoed(TcpStream::connect(address).await?, &sent).await?;
    bytes::ensure_same(&received, &sent)
}

pub(crate) async fn a_published_port_carries_megabytes_both_ways_and_half_closed_connections(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let address = free_address()?;
    let mut wanted = config(&ECHO);
    wanted.services = vec![echo_service(address)];
    let machine = stage.boot(wanted).await?;
    until("the guest to listen", || async {
        Ok(ensure_echo(address, 1, 0).await.ok())
    })
    .await?;
    ensure_echo(address, 4 << 20, 1).await?;
    let concurrent = tokio::try_join!(
        ensure_echo(address, 300_000, 2),
        ensure_echo(address, 0, 3),
        ensure_echo(address, 300_000, 4),
        ensure_echo(address, 1, 5),
    );
    concurrent?;
    // A suspend ends connections; after the resume, new ones work.
    let mut before = TcpStream::connect(address).await?;
    before.write_all(b"x").await?;
    ensure!(before.read_u8().await? == b'x', "no echo");
    stage.suspend(&machine).await?;
    let end = timeout(DEADLINE, before.read_u8()).await;
    ensure!(
        end.context("the connection was not closed")?.is_err(),
        "an echo"
    );
    stage.resume(&machine).await?;
    ensure_echo(address, 300_000, 6).await
}

pub(crate) async fn an_idle_machine_is_suspended_and_the_next_connection_starts_it_again(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let count = &counter::command()[2];
    let script = format!("({count}) & exec {}", ECHO.join(" "));
    let idle = format!("{}s", IDLE.as_secs());
    let address = free_address()?;
    let port = format!("{}:{ECHO_PORT}", address.port());
    let service = [
        "--port",
        &port,
        "--autostop",
        "suspend",
        "--idle-timeout",
        &idle,
        "--autostart",
    ];
    let command = ["--restart", "no", "--", "sh", "-c", &script];
    let run = [
        &["run", "--name", "sleeper", "--memory", "128"][..],
        &service,
        &command,
    ]
    .concat();
    stage.mctl(&run).await?.success_output()?;
    let machines = stage.client.list(&ListFilter::default()).await?;
    let machine = machines.into_iter().next().context("no machine")?;
    let suspended = || async {
        let state = stage.client.machine(&machine.id).await?.state;
        Ok((state == MachineState::Suspended).then_some(()))
    };
    until("the idle machine to be suspended", suspended).await?;

    let mut held = TcpStream::connect(address).await?;
    held.write_all(b"x").await?;
    let echo = timeout(DEADLINE, held.read_u8()).await;
    ensure!(
        echo.context("the connection got no answer")?? == b'x',
        "no echo"
    );
    let back = stage.client.machine(&machine.id).await?;
    ensure!(
        back.last_start == Some(StartKind::Resumed),
        "{:?}",
        back.last_start
    );
    let begun = Instant::now();
    until("more than the idle time to pass", || async {
        let state = stage.client.machine(&machine.id).await?.state;
        ensure!(
            state == MachineState::Started,
            "{state} with an open connection"
        );
        Ok((begun.elapsed() > 2 * IDLE).then_some(()))
    })
    .await?;
    let count = stage.count(&machine).await?;
    ensure!(count > 0, "the guest does not count");
    drop(held);
    until("the idle machine to be suspended again", suspended).await?;

    // Concurrent connections wait for the same start. A stopped machine is booted for a connection.
    tokio::try_join!(
        ensure_echo(address, 9_000, 1),
        ensure_echo(address, 9_000, 2)
    )?;
    stage.wait_for_count_beyond(&machine, count).await?;
    stage
        .client
        .stop(&machine.id, &StopRequest::default())
        .await?;
    let stopped = stage
        .client
        .reach(&machine.id, MachineState::Stopped, DEADLINE);
    stopped.await?;
    ensure_echo(address, 9_000, 3).await?;
    let back = stage.client.machine(&machine.id).await?;
    ensure!(
        back.last_start == Some(StartKind::Booted),
        "{:?}",
        back.last_start
    );
    Ok(())
}

pub(crate) async fn checks_reflect_the_guest_and_connections_wait_for_readiness_checks(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let mut wanted = config(&[
        "sh",
        "-c",
        &format!(
            "echo fine >/tmp/index.html; httpd -p 80 -h /tmp; exec {}",
            ECHO.join(" ")
        ),
    ]);
    let check = |kind, port| Check {
        kind,
        port,
        interval: Some("200ms".to_owned()),
        grace_period: Some("1ms".to_owned()),
        ..Check::default()
    };
    let ready = Check {
        command: ["test", "-e", "/run/ready"].map(str::to_owned).to_vec(),
        purpose: Some("readiness".to_owned()),
        ..check(CheckKind::Exec, None)
    };
    let page = Check {
        path: Some("/index.html".to_owned()),
        ..check(CheckKind::Http, Some(80))
    };
    let checks = [
        ("echo", check(CheckKind::Tcp, Some(ECHO_PORT))),
        ("nobody", check(CheckKind::Tcp, Some(9))),
        ("page", page),
        ("ready", ready),
    ];
    wanted.checks = checks.map(|(name, check)| (name.to_owned(), check)).into();
    let address = free_address()?;
    wanted.services = vec![echo_service(address)];
    let machine = stage.boot(wanted).await?;
    let (passing, critical) = ("passing", "critical");
    wait_for_checks(stage, &machine, [passing, critical, passing, critical]).await?;
    let mut held = TcpStream::connect(address).await?;
    held.write_all(b"x").await?;
    let early = timeout(Duration::from_secs(1), held.read_u8()).await;
    ensure!(early.is_err(), "an unready machine answered {early:?}");

    stage.shell(&machine, "touch /run/ready").await?;
    wait_for_checks(stage, &machine, [passing, critical, passing, passing]).await?;
    let echo = timeout(DEADLINE, held.read_u8()).await;
    ensure!(
        echo.context("the connection was not forwarded")?? == b'x',
        "no echo"
    );

    stage.suspend(&machine).await?;
    stage.resume(&machine).await?;
    stage
        .shell(&machine, "rm /tmp/index.html /run/ready")
        .await?;
    let seen = wait_for_checks(stage, &machine, [passing, critical, critical, critical]).await?;
    ensure!(seen[2].output.contains("404"), "{:?}", seen[2]);
    let events = stage.client.events(&machine.id, None).await?;
    ensure!(
        events.iter().any(|event| event.kind == EventType::Check),
        "{events:?}"
    );
    let text = stage
        .mctl(&["status", &machine.id])
        .await?
        .success_output()?;
    ensure!(text.contains("critical") && text.contains("404"), "{text}");
    Ok(())
}

/// Waits until the checks, sorted by name, have these results.
async fn wait_for_checks(
    stage: &Stage,
    machine: &Machine,
    wanted: [&str; 4],
) -> anyhow::Result<Vec<CheckStatus>> {
    let seen = until("the checks to have their results", || async {
        let mut checks = stage.client.machine(&machine.id).await?.checks;
        checks.sort_by(|one, other| one.name.cmp(&other.name));
        let reached = checks.iter().map(|one| one.status.as_str()).eq(wanted);
        Ok(reached.then_some(checks))
    });
    match seen.await {
        Ok(seen) => Ok(seen),
        Err(error) => {
            let last = stage.client.machine(&machine.id).await?.checks;
            Err(error.context(format!("wanted {wanted:?}, last seen {last:?}")))
        }
    }
}
