//! The buses of a whole machine without vCPUs: ports and register windows, serial port and power registers
//! included, and all devices saved and restored together.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm::bus::Bus;
use vmm::devices::serial::ConsoleOutput;
use vmm::devices::virtio::vsock::PortPolicy;
use vmm::machine::configuration::{Disk, MachineConfiguration, VsockHost};
use vmm::machine::devices::{DeviceContext, Devices, SavedDevices};
use vmm::machine::events::{EventQueue, EventSender, MachineEvent, queue};
use vmm::vcpu::exits::Buses;

use crate::changed::{Change, changed};
use crate::{scratch, steps};

const MEMORY_BYTES: usize = 64 << 10;
const DISK_BYTES: u64 = 64 << 10;
/// Most events that wait when nobody takes them: whatever a guest does, they are few.
const EVENTS: usize = 8;
/// Where registers are; an address is an offset from one of them.
const PORTS: [u64; 4] = [0x3f8, 0x60, 0x600, 0];
const WINDOWS: [u64; 4] = [0xd000_0000, 0xd000_1000, 0xd000_2000, 0];

/// A step of a guest or of its host.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum BusStep {
    /// Writes to ports.
    Out { base: u8, offset: u8, data: Vec<u8> },
    /// Reads from ports.
    In { base: u8, offset: u8, bytes: u8 },
    /// Writes to a register window.
    Write {
        base: u8,
        offset: u16,
        data: Vec<u8>,
    },
    /// Reads from a register window.
    Read { base: u8, offset: u16, bytes: u8 },
    /// Writes 32 bits to a register of a device, as drivers do.
    Set {
        device: u8,
        register: u8,
        value: u32,
    },
    /// Accesses any address, of both kinds.
    Anywhere { address: u64, data: Vec<u8> },
    /// The event loop serves all devices.
    Serve,
    /// The console is written.
    Flush,
    /// The machine is saved and restored.
    Restore,
    /// The machine is restored from a state that has been changed.
    RestoreChanged { change: Change },
    /// The machine is restored from these bytes.
    RestoreBytes { bytes: Vec<u8> },
}

#[derive(Debug)]
struct Machine {
    configuration: MachineConfiguration,
    vsock: VsockHost,
    memory: GuestMemoryMmap,
    console: PathBuf,
    sender: EventSender,
    events: EventQueue,
    devices: Option<Devices>,
}

impl Machine {
    fn new() -> Self {
        let disk = scratch::path("bus-disk");
        File::create(&disk)
            .and_then(|file| file.set_len(DISK_BYTES))
            .expect("a disk");
        let configuration = MachineConfiguration {
            vcpus: 1,
            memory_mib: 64,
            disks: vec![Disk {
                path: disk,
                read_only: false,
            }],
            vsock_cid: Some(3),
        };
        let vsock = VsockHost {
            socket: scratch::path("bus-vsock"),
            port_policy: PortPolicy::Continue,
            eviction: true,
            request_timeout: Duration::from_secs(1),
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]);
        let (sender, events) = queue().expect("a descriptor");
        let mut machine = Self {
            configuration,
            vsock,
            memory: memory.expect("host memory"),
            console: scratch::path("console"),
            sender,
            events,
            devices: None,
        };
        machine.boot();
        machine
    }

    fn context(&self) -> DeviceContext<'_> {
        DeviceContext {
            configuration: &self.configuration,
            vsock: Some(&self.vsock),
            memory: &self.memory,
            events: &self.sender,
            disk_filter: None,
        }
    }

    fn console(&self) -> ConsoleOutput {
        ConsoleOutput::new(File::create(&self.console).expect("a console")).expect("a console")
    }

    fn boot(&mut self) {
        self.devices = None;
        self.devices = Some(Devices::new(&self.context(), self.console()).expect("devices"));
    }

    fn devices(&self) -> &Devices {
        self.devices
            .as_ref()
            .expect("there are some between two steps")
    }

    fn take(&mut self, step: BusStep) {
        let Buses { ports, mmio } = &self.devices().buses;
        match step {
            BusStep::Out { base, offset, data } => {
                ports.write(at(&PORTS, base, offset.into()), &data);
            }
            BusStep::In {
                base,
                offset,
                bytes,
            } => read(ports, at(&PORTS, base, offset.into()), bytes),
            BusStep::Write { base, offset, data } => mmio.write(at(&WINDOWS, base, offset), &data),
            BusStep::Read {
                base,
                offset,
                bytes,
            } => read(mmio, at(&WINDOWS, base, offset), bytes),
            BusStep::Set {
                device,
                register,
                value,
            } => {
                let address = at(&WINDOWS, device % 3, u16::from(register) * 4);
                mmio.write(address, &value.to_le_bytes());
            }
            BusStep::Anywhere { address, data } => {
                for bus in [ports, mmio] {
                    bus.write(address, &data);
                    read(
                        bus,
                        address,
                        u8::try_from(data.len() % 9).expect("at most 8"),
                    );
                }
            }
            BusStep::Serve => self.serve(),
            BusStep::Flush => {
                self.devices().flush_console();
                self.sender.console_is_served();
            }
            BusStep::Restore => self.restore(),
            BusStep::RestoreChanged { change } => {
                let saved = self.save();
                if let Some(saved) = changed(&saved, &change) {
                    self.restore_untrusted(&saved);
                }
            }
            BusStep::RestoreBytes { bytes } => {
                if let Ok(saved) = postcard::from_bytes(&bytes) {
                    self.restore_untrusted(&saved);
                }
            }
        }
        self.assert_few_events();
    }

    fn serve(&self) {
        for transport in &self.devices().transports {
            for (index, _) in (0..).zip(transport.doorbells()) {
                if !transport.serves_itself() {
                    transport.serve_queue(index);
                }
            }
            transport.serve_backend();
        }
    }

    /// The state of devices at rest.
    fn save(&self) -> SavedDevices {
        for transport in &self.devices().transports {
            // The event that tells the end of requests in service is looked for below.
            transport.hold(1);
        }
        self.devices().quiesce();
        let saved = self.devices().save();
        for transport in &self.devices().transports {
            transport.release();
        }
        saved
    }

    fn restore(&mut self) {
        let saved = self.save();
        let bytes = postcard::to_stdvec(&saved).expect("plain data");
        let decoded = postcard::from_bytes(&bytes).expect("what was encoded is decoded");
        self.devices = None;
        let devices = Devices::restore(&self.context(), self.console(), &decoded, None);
        self.devices = Some(devices.expect("what was saved is restored"));
        let again = postcard::to_stdvec(&self.devices().save()).expect("plain data");
        assert_eq!(
            bytes, again,
            "restored devices have the state that was saved"
        );
        self.devices().resume();
    }

    fn restore_untrusted(&mut self, saved: &SavedDevices) {
        self.devices = None;
        match Devices::restore(&self.context(), self.console(), saved, None) {
            Ok(devices) => {
                self.devices = Some(devices);
                self.devices().resume();
            }
            Err(error) => {
                assert!(!error.to_string().is_empty(), "a refusal says why");
                self.boot();
            }
        }
    }

    fn assert_few_events(&self) {
        let mut count = 0;
        while let Some(event) = self.events.next() {
            // One for each hold, which is the host's.
            count += usize::from(!matches!(event, MachineEvent::DiskHeld { .. }));
        }
        assert!(count <= EVENTS, "one step has led to {count} events");
    }
}

fn at(bases: &[u64; 4], base: u8, offset: u16) -> u64 {
    bases[usize::from(base % 4)] + u64::from(offset)
}

/// Reads, and checks that all of the answer comes from the device.
fn read(bus: &Bus, address: u64, bytes: u8) {
    let length = usize::from(bytes % 9);
    let mut first = vec![0x55; length];
    let mut second = vec![0xaa; length];
    bus.read(address, &mut first);
    bus.read(address, &mut second);
    let untouched =
        first.iter().all(|byte| *byte == 0x55) && second.iter().all(|byte| *byte == 0xaa);
    assert!(
        length < 2 || !untouched,
        "a read of {length} bytes at {address:#x} returns what was there before"
    );
}

/// The state of devices after a boot.
pub(crate) fn booted_state() -> SavedDevices {
    Machine::new().save()
}

/// Restores devices from a state that is not trusted.
pub(crate) fn restore_state(saved: &SavedDevices) {
    let mut machine = Machine::new();
    machine.restore_untrusted(saved);
    machine.serve();
}

/// See [`crate::TARGETS`].
pub(crate) fn target(input: &[u8]) {
    let mut machine = Machine::new();
    for step in steps::decode::<BusStep>(input) {
        machine.take(step);
    }
}

/// See [`crate::TARGETS`].
#[rustfmt::skip]
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use BusStep::{Flush, In, Out, Read, Restore, RestoreBytes, RestoreChanged, Serve, Set};
    let out = |base, offset, data: &[u8]| Out { base, offset, data: data.to_vec() };
    let serial = vec![
        out(0, 3, &[0x80]), out(0, 0, &[1]), out(0, 1, &[0]), out(0, 3, &[3]), out(0, 1, &[0xf]),
        out(0, 0, b"a line of the console\nand the begin of"), In { base: 0, offset: 2, bytes: 1 }, Flush,
        out(0, 4, &[0x10]), out(0, 0, b"to itself"), In { base: 0, offset: 5, bytes: 1 }, Restore,
        In { base: 0, offset: 0, bytes: 4 }, In { base: 0, offset: 6, bytes: 2 },
    ];
    let power = vec![out(1, 4, &[0xfe]), out(2, 0, &[0x34]), out(2, 2, &[1]), In { base: 1, offset: 4, bytes: 1 }];
    let negotiation = |device, queues: u32| {
        let set = move |register: u8, value| Set { device, register: register / 4, value };
        let mut steps = vec![set(0x70, 1), set(0x70, 3), set(0x24, 1), set(0x20, 1), set(0x70, 11)];
        for queue in 0..queues {
            let base = 0x1000 + 0x4000 * queue;
            steps.extend([
                set(0x30, queue), set(0x38, 16), set(0x80, base), set(0x90, base + 0x1000), set(0xa0, base + 0x2000), set(0x44, 1),
            ]);
        }
        steps.extend([set(0x70, 15), set(0x50, 0), Serve, Read { base: device, offset: 0x70, bytes: 4 }, Read { base: device, offset: 0x100, bytes: 8 }]);
        steps
    };
    let drivers = [negotiation(0, 3), negotiation(1, 1), negotiation(2, 1)].concat();
    let restored = [drivers.clone(), vec![Restore, Serve, Restore]].concat();
    let mut all = vec![("serial", serial), ("power", power), ("drivers", drivers.clone()), ("restored", restored)];
    let changes = [
        ("number", Change::Number { place: 20, value: 3 }),
        ("repeat", Change::Repeat { place: 1, times: 20 }),
        ("empty", Change::Empty { place: 3 }),
    ];
    for (name, change) in changes {
        all.push((name, [drivers.clone(), vec![RestoreChanged { change }, Serve]].concat()));
    }
    all.push(("bytes", vec![RestoreBytes { bytes: vec![0; 24] }]));
    all.into_iter().map(|(name, steps)| (name, steps::encode(&steps))).collect()
}
