//! Serves a disk to QEMU by the Network Block Device protocol, on one connection.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, its fixed newstyle
//! handshake and simple replies. Numbers are big-endian.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use thiserror::Error;

use crate::disk::{AccessError, Disk, SECTOR_BYTES};

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// The disk has flags; it flushes, and writes through to the file if asked to.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
/// On a write: flush before the reply.
const FLAG_FUA: u16 = 1;

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// Requests are about whole sectors.
const LEAST_REQUEST_BYTES: u32 = 512;
const _: () = assert!(LEAST_REQUEST_BYTES as usize == SECTOR_BYTES);
/// Longest data of one request, which the client is told.
const REQUEST_LIMIT_BYTES: u32 = 8 << 20;
/// Longest content of an option: a name and some numbers.
const OPTION_LIMIT_BYTES: u32 = 4 << 10;

/// Why the service ended early.
#[derive(Debug, Error)]
pub(crate) enum NbdError {
    #[error("cannot talk to the client of the disk")]
    Connection(#[from] io::Error),
    #[error("the client of the disk does not follow the protocol: {what}")]
    Protocol { what: &'static str },
}

/// Serves the disk until the client leaves or its process ends, and gives it back. What went wrong
/// after the handshake is the end of the connection, as it is when QEMU is killed.
pub(crate) fn serve(mut connection: UnixStream, mut disk: Disk) -> (Disk, Result<(), NbdError>) {
    let result = shake_hands(&mut connection, disk.size_bytes()).and_then(|wanted| {
        if wanted {
            transmit(&mut connection, &mut disk)
        } else {
            Ok(())
        }
    });
    (disk, result)
}

/// Whether the client wants the disk.
fn shake_hands(connection: &mut UnixStream, size_bytes: u64) -> Result<bool, NbdError> {
    let mut greeting = Vec::new();
    greeting.extend(MAGIC.to_be_bytes());
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    connection.write_all(&greeting)?;
    // The client's flags: what it supports, and what it need not say.
    read_u32(connection)?;
    loop {
        if read_u64(connection)? != OPTION_MAGIC {
            return Err(NbdError::Protocol {
                what: "an option without its magic number",
            });
        }
        let option = read_u32(connection)?;
        let length = read_u32(connection)?;
        if length > OPTION_LIMIT_BYTES {
            return Err(NbdError::Protocol {
                what: "an option of extreme length",
            });
        }
        // The name of the export and the wanted facts: there is one export, and it tells all.
        io::copy(&mut (&*connection).take(length.into()), &mut io::sink())?;
        match option {
            OPTION_GO | OPTION_INFO => {
                let mut export = INFO_EXPORT.to_be_bytes().to_vec();
                export.extend(size_bytes.to_be_bytes());
                export.extend(EXPORT_FLAGS.to_be_bytes());
                reply_to_option(connection, option, REPLY_INFO, &export)?;
                let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                for size in [LEAST_REQUEST_BYTES, 4096, REQUEST_LIMIT_BYTES] {
                    sizes.extend(size.to_be_bytes());
                }
                reply_to_option(connection, option, REPLY_INFO, &sizes)?;
                reply_to_option(connection, option, REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => {
                reply_to_option(connection, option, REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => reply_to_option(connection, option, REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn reply_to_option(
    connection: &mut UnixStream,
    option: u32,
    kind: u32,
    content: &[u8],
) -> Result<(), NbdError> {
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    reply.extend(option.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend(length.to_be_bytes());
    reply.extend(content);
    Ok(connection.write_all(&reply)?)
}

struct Request {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

fn transmit(connection: &mut UnixStream, disk: &mut Disk) -> Result<(), NbdError> {
    while let Some(request) = read_request(connection)? {
        let mut data = Vec::new();
        let result = match request.command {
            COMMAND_READ if request.length <= REQUEST_LIMIT_BYTES => {
                data.resize(request.length as usize, 0);
                disk.read(request.offset, &mut data)
            }
            COMMAND_WRITE if request.length <= REQUEST_LIMIT_BYTES => {
                let mut bytes = vec![0; request.length as usize];
                connection.read_exact(&mut bytes)?;
                disk.write(request.offset, &bytes).and_then(|()| {
                    if request.flags & FLAG_FUA == 0 {
                        Ok(())
                    } else {
                        disk.flush()
                    }
                })
            }
            // Its data would be taken for requests.
            COMMAND_WRITE => {
                return Err(NbdError::Protocol {
                    what: "a write of extreme length",
                });
            }
            COMMAND_DISCONNECT => return Ok(()),
            COMMAND_FLUSH => disk.flush(),
            _ => Err(AccessError::Range),
        };
        let error = match result {
            Ok(()) => 0,
            Err(AccessError::Range) => EINVAL,
            Err(AccessError::File(_)) => EIO,
        };
        let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
        reply.extend(error.to_be_bytes());
        reply.extend(request.cookie.to_be_bytes());
        if error == 0 {
            reply.append(&mut data);
        }
        connection.write_all(&reply)?;
    }
    Ok(())
}

/// The next request; `None` if the connection ends before it.
fn read_request(connection: &mut UnixStream) -> Result<Option<Request>, NbdError> {
    let mut magic = [0; 4];
    match connection.read_exact(&mut magic) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    if u32::from_be_bytes(magic) != REQUEST_MAGIC {
        return Err(NbdError::Protocol {
            what: "a request without its magic number",
        });
    }
    let [flags, command] = [read_u16(connection)?, read_u16(connection)?];
    let [cookie, offset] = [read_u64(connection)?, read_u64(connection)?];
    Ok(Some(Request {
        flags,
        command,
        cookie,
        offset,
        length: read_u32(connection)?,
    }))
}

fn read_u16(input: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    input.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::JoinHandle;

    const SIZE: u64 = 1 << 20;

    type Server = JoinHandle<(Disk, Result<(), NbdError>)>;

    /// A client that has asked for the disk, and the server.
    fn start(folder: &tempfile::TempDir) -> (UnixStream, Server) {
        let disk = Disk::open(&folder.path().join("disk"), SIZE).unwrap();
        let (mut client, server) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || serve(server, disk));
        let mut greeting = [0; 18];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        client.write_all(&3_u32.to_be_bytes()).unwrap();
        (client, server)
    }

    fn send_option(client: &mut UnixStream, option: u32, content: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        bytes.extend(content);
        client.write_all(&bytes).unwrap();
    }

    /// Kind and content of a reply to an option.
    fn reply(client: &mut UnixStream) -> (u32, Vec<u8>) {
        assert_eq!(read_u64(client).unwrap(), OPTION_REPLY_MAGIC);
        read_u32(client).unwrap();
        let kind = read_u32(client).unwrap();
        let mut content = vec![0; read_u32(client).unwrap() as usize];
        client.read_exact(&mut content).unwrap();
        (kind, content)
    }

    fn go(client: &mut UnixStream) {
        send_option(client, OPTION_GO, &[0, 0, 0, 0, 0, 0]);
        let (kind, export) = reply(client);
        assert_eq!(
            (kind, &export[2..10]),
            (REPLY_INFO, &SIZE.to_be_bytes()[..])
        );
        assert_eq!(reply(client).0, REPLY_INFO);
        assert_eq!(reply(client).0, REPLY_ACK);
    }

    /// Sends a request and returns the error of its reply.
    fn request(
        client: &mut UnixStream,
        flags: u16,
        command: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> u32 {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(77_u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(data);
        client.write_all(&bytes).unwrap();
        assert_eq!(read_u32(client).unwrap(), REPLY_MAGIC);
        let error = read_u32(client).unwrap();
        assert_eq!(read_u64(client).unwrap(), 77);
        error
    }

    #[test]
    fn what_is_written_is_read_and_a_flush_makes_it_last() {
        let folder = tempfile::tempdir().unwrap();
        let (mut client, server) = start(&folder);
        // An option that is not supported is refused, and the next one is read.
        send_option(&mut client, 8, &[]);
        assert_eq!(reply(&mut client).0, REPLY_UNSUPPORTED);
        go(&mut client);
        assert_eq!(
            request(&mut client, 0, COMMAND_WRITE, 512, 512, &[5; 512]),
            0
        );
        assert_eq!(request(&mut client, 0, COMMAND_FLUSH, 0, 0, &[]), 0);
        assert_eq!(
            request(&mut client, FLAG_FUA, COMMAND_WRITE, 1024, 512, &[6; 512]),
            0
        );
        assert_eq!(
            request(&mut client, 0, COMMAND_WRITE, 1536, 512, &[7; 512]),
            0
        );
        assert_eq!(request(&mut client, 0, COMMAND_READ, 512, 1536, &[]), 0);
        let mut data = [0; 1536];
        client.read_exact(&mut data).unwrap();
        assert_eq!([data[0], data[512], data[1024]], [5, 6, 7]);
        drop(client);
        let (disk, result) = server.join().unwrap();
        result.unwrap();
        disk.cut_power(crate::disk::Loss::All).unwrap();
        let content = std::fs::read(folder.path().join("disk")).unwrap();
        assert_eq!([content[512], content[1024], content[1536]], [5, 6, 0]);
    }

    #[test]
    fn bad_requests_are_refused_and_the_connection_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (mut client, server) = start(&folder);
        go(&mut client);
        for (command, offset, length) in [
            (COMMAND_READ, SIZE, 512),
            (COMMAND_READ, 0, u32::MAX),
            (COMMAND_READ, 1, 512),
            // Trim, which is not offered.
            (4, 0, 512),
        ] {
            assert_eq!(
                request(&mut client, 0, command, offset, length, &[]),
                EINVAL
            );
        }
        assert_eq!(
            request(&mut client, 0, COMMAND_WRITE, SIZE, 512, &[1; 512]),
            EINVAL
        );
        assert_eq!(request(&mut client, 0, COMMAND_FLUSH, 0, 0, &[]), 0);
        drop(client);
        server.join().unwrap().1.unwrap();
    }

    #[test]
    fn a_client_that_does_not_follow_the_protocol_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (mut client, server) = start(&folder);
        client.write_all(&[0; 16]).unwrap();
        let error = server.join().unwrap().1.unwrap_err();
        assert!(matches!(error, NbdError::Protocol { .. }), "{error}");

        let (mut client, server) = start(&folder);
        let mut option = b"IHAVEOPT".to_vec();
        option.extend([0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]);
        client.write_all(&option).unwrap();
        let error = server.join().unwrap().1.unwrap_err();
        assert!(matches!(error, NbdError::Protocol { .. }), "{error}");
    }

    #[test]
    fn a_client_may_leave_without_using_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (mut client, server) = start(&folder);
        send_option(&mut client, OPTION_ABORT, &[]);
        assert_eq!(reply(&mut client).0, REPLY_ACK);
        server.join().unwrap().1.unwrap();
    }
}
