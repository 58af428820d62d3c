//! Files in and out.

use super::*;

fn read(path: &Path) -> Request {
    Request::ReadFile {
        path: path.to_str().unwrap().to_owned(),
    }
}

fn write(path: &Path, mode: u32) -> Request {
    Request::WriteFile {
        path: path.to_str().unwrap().to_owned(),
        mode,
    }
}

async fn receive_file(client: &mut Client) -> (FileKind, Vec<u8>, StreamEnd) {
    let kind = client.receive_json().await;
    let mut bytes = Vec::new();
    loop {
        match client.receive().await {
            Received::Data(block) if block.is_empty() => break,
            Received::Data(block) => bytes.extend(block),
            other => panic!("{other:?} is no data"),
        }
    }
    (kind, bytes, client.receive_json().await)
}

#[test]
fn a_file_comes_back_as_it_went_in() {
    with_guest(async |guest: Guest| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/deep/file");
        let content: Vec<u8> = (0..1_500_000u32)
            .map(|n| n.to_le_bytes()[n as usize % 3])
            .collect();
        let mut client = guest.start(write(&path, 0o640)).await;
        for block in content.chunks(700_000) {
            client.send(Frame::Data(block)).await;
        }
        client.send(Frame::Data(b"")).await;
        let end: StreamEnd = client.receive_json().await;
        let bytes = content.len() as u64;
        assert_eq!(end, StreamEnd::Complete { bytes });

        let mut client = guest.start(read(&path)).await;
        let (kind, received, end) = receive_file(&mut client).await;

        assert_eq!((kind.size_bytes, kind.mode), (bytes, 0o640));
        assert!(received == content);
        assert_eq!(end, StreamEnd::Complete { bytes });
    });
}

#[test]
fn a_broken_transfer_leaves_the_old_file_and_nothing_else() {
    with_guest(async |guest: Guest| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "old").unwrap();
        let client = guest.start(write(&path, 0o600)).await;
        client.send(Frame::Data(b"new")).await;

        drop(client);

        let names = || std::fs::read_dir(directory.path()).unwrap().count();
        until(|| names() == 1).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    });
}

#[test]
fn files_of_the_kernel_are_read_to_their_end() {
    with_guest(async |guest: Guest| {
        let mut client = guest.start(read(Path::new("/proc/self/limits"))).await;
        let (kind, bytes, _) = receive_file(&mut client).await;
        assert_eq!(kind.size_bytes, 0);
        assert!(!bytes.is_empty());
    });
}

#[test]
fn what_is_no_regular_file_is_refused() {
    with_guest(async |guest: Guest| {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&pipe, mode).unwrap();
        let cases = [
            (read(&pipe), RefusalKind::Invalid),
            (read(directory.path()), RefusalKind::Invalid),
            (read(Path::new("relative")), RefusalKind::Invalid),
            (read(&directory.path().join("none")), RefusalKind::NotFound),
            (write(directory.path(), 0o600), RefusalKind::Invalid),
            (write(Path::new("/"), 0o600), RefusalKind::Invalid),
            (
                write(Path::new("/proc/none/file"), 0o600),
                RefusalKind::NotFound,
            ),
        ];
        for (request, kind) in cases {
            let reply = guest.ask(1, request).await;
            assert_eq!(kind_of(&reply), Some(kind), "{reply:?}");
        }
    });
}
