//! For tests: a guest that says what the test wants.

use guest_protocol::{GuestStatus, MainProcess, MainProcessState, OpenVsocks};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

use crate::guest::{GuestAddress, GuestStream};

/// A connection to a guest that has said `bytes`, and the guest's end of it, which is open.
pub(crate) async fn connected_to(bytes: &[u8]) -> (GuestStream, UnixStream) {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let path = folder.path().join("v.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let guest = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"OK 7\n").await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    };
    let address = GuestAddress::new(path, 1);
    let (stream, guest) = tokio::join!(address.connect(), guest);
    (stream.unwrap(), guest)
}

/// The status of a guest without a main process.
pub(crate) fn status() -> GuestStatus {
    GuestStatus {
        boot_id: "0e2b1c3d-0000-4000-8000-000000000000".to_owned(),
        generation: 3,
        protocol: guest_protocol::VERSION,
        init_version: "0.1.0+leaky".to_owned(),
        uptime_ms: 1,
        realtime_ns: 1,
        clock_step_ms: Some(-3),
        open_vsocks: OpenVsocks {
            source: "vsock_diag".to_owned(),
            ..OpenVsocks::default()
        },
        main: MainProcess {
            state: MainProcessState::Absent,
            pid: None,
            exit: None,
            next_output_sequence: 0,
        },
    }
}
