//! Forwarded TCP connections.

use std::io::{Read, Write};

use super::*;

/// A service that sends a greeting, and echoes everything once its client stops sending.
fn echo_service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"hello:").unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        }
    });
    port
}

async fn read_to_end(client: &Client) -> Vec<u8> {
    let mut all = client.inbox.clone();
    loop {
        let chunk = client.stream.read_chunk().await.unwrap();
        if chunk.is_empty() {
            return all;
        }
        all.extend(chunk);
    }
}

#[test]
fn bytes_go_both_ways_and_each_direction_ends_by_itself() {
    with_guest(async |guest: Guest| {
        let port = echo_service();
        let client = guest.start(Request::Forward { port }).await;
        let data: Vec<u8> = (0..2_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
        client.stream.write_all(&data).await.unwrap();
        client.stream.end_sending().unwrap();

        let received = read_to_end(&client).await;

        assert_eq!(&received[..6], b"hello:");
        assert!(received[6..] == data);
        drop(client);
        until(|| guest.server.registry().open_sockets().is_empty()).await;
    });
}

#[test]
fn bytes_right_behind_the_call_are_not_lost() {
    with_guest(async |guest: Guest| {
        let port = echo_service();
        let call = Call::new(1, None, Request::Forward { port });
        let mut bytes = Vec::new();
        encode(Frame::Json(&serde_json::to_vec(&call).unwrap()), &mut bytes).unwrap();
        bytes.extend(b"early");
        let mut client = guest.connect();
        client.stream.write_all(&bytes).await.unwrap();
        client.stream.end_sending().unwrap();

        assert_eq!(client.receive_json::<Reply>().await, Reply::Streaming);
        assert_eq!(read_to_end(&client).await, b"hello:early");
    });
}

#[test]
fn a_client_that_vanishes_ends_the_local_connection() {
    with_guest(async |guest: Guest| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = guest.start(Request::Forward { port }).await;
        let (_idle, _) = listener.accept().unwrap();

        drop(client);

        until(|| guest.server.registry().open_sockets().is_empty()).await;
    });
}

#[test]
fn a_port_on_which_nobody_listens_is_not_found() {
    with_guest(async |guest: Guest| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let reply = guest.ask(1, Request::Forward { port }).await;
        assert_eq!(kind_of(&reply), Some(RefusalKind::NotFound));
    });
}
