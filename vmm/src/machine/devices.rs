//! The devices of one machine: creates them, places them on the buses, connects them to KVM, saves and
//! restores them.
//!
//! Virtio devices have a fixed order (vsock, entropy, disks), which determines their addresses and
//! interrupt lines. A restored machine has the devices that were saved, in the saved order.

use std::sync::Arc;

use seccompiler::BpfProgram;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::configuration::{Disk, MachineConfiguration, VsockHost};
use super::events::{EventSender, MachineEvent};
use crate::boot::layout::{
    COM1_GSI, COM1_PORT, COM1_PORTS, I8042_PORT, I8042_PORTS, POWER_PORT, POWER_PORTS,
    VIRTIO_BYTES, VIRTIO_FIRST_GSI, VIRTIO_MAX_DEVICES, VIRTIO_START,
};
use crate::bus::{Bus, RangeTaken};
use crate::devices::power::{I8042, PowerRegisters};
use crate::devices::serial::{ConsoleOutput, SavedSerial, SerialPort};
use crate::devices::virtio::block::{Block, BlockConfig, BlockError, BlockHost, DiskIdentity};
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY, SavedTransport, TransportError};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::saved_device::{DeviceState, SavedDevice};
use crate::devices::virtio::vsock::{CountersHandle, Vsock, VsockConfig, VsockError};
use crate::image::DiskFile;
use crate::sandbox::confine;
use crate::sys::fd::new_event;
use crate::vcpu::exits::Buses;
use crate::vm::{Vm, VmError};

/// Why devices can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The vsock device.
    #[error("cannot set up the vsock device")]
    Vsock(#[from] VsockError),
    /// A disk.
    #[error("cannot set up a disk")]
    Block(#[from] BlockError),
    /// A virtio transport.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The serial port.
    #[error("cannot set up the serial port")]
    Serial(#[source] std::io::Error),
    /// The saved serial port.
    #[error("saved state of the serial port is not usable")]
    SavedSerial(#[source] vm_superio::serial::Error<std::io::Error>),
    /// Too many.
    #[error(
        "{count} virtio devices are more than the {VIRTIO_MAX_DEVICES} interrupt lines there are"
    )]
    TooMany {
        /// How many were asked for.
        count: usize,
    },
    /// The saved machine has a vsock device, and this VMM got no socket for it.
    #[error("the machine has a vsock device, so --vsock-socket is needed")]
    NoVsockSocket,
    /// The saved machine has another number of disks than this VMM got.
    #[error("the image has another number of disks than this machine")]
    DiskCount,
    /// Two devices have the same address: the layout is wrong.
    #[error("cannot place a device")]
    Place(#[from] RangeTaken),
}

impl DevicesError {
    /// Whether a saved state is at fault, and not the host or the caller.
    #[must_use]
    pub fn refuses_state(&self) -> bool {
        match self {
            Self::Transport(error) => match error {
                TransportError::State { .. }
                | TransportError::Queue { .. }
                | TransportError::Activate { .. } => true,
                TransportError::EventFd { .. } => false,
            },
            Self::Vsock(error) => matches!(error, VsockError::State { .. }),
            Self::SavedSerial(_) => true,
            // The disks are not those that the guest remembers.
            Self::Block(error) => matches!(
                error,
                BlockError::Changed { .. }
                    | BlockError::SizeChanged { .. }
                    | BlockError::ModeChanged { .. }
            ),
            Self::DiskCount => true,
            Self::Serial(_) | Self::TooMany { .. } | Self::NoVsockSocket | Self::Place(_) => false,
        }
    }
}

/// The devices of one machine.
#[derive(Debug)]
pub struct Devices {
    /// In the order of their addresses.
    pub transports: Vec<Arc<MmioTransport>>,
    /// How vCPUs reach all of them.
    pub buses: Buses,
    /// Of the vsock device.
    pub vsock_counters: Option<CountersHandle>,
    serial: Arc<SerialPort>,
    serial_line: Arc<EventFd>,
    disk_files: Arc<[DiskFile]>,
}

/// Saved devices.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedDevices {
    serial: SavedSerial,
    transports: Vec<SavedTransport>,
}

/// What devices are created from.
#[derive(Debug)]
pub struct DeviceContext<'a> {
    /// What the machine is made of.
    pub configuration: &'a MachineConfiguration,
    /// The host's end of vsock.
    pub vsock: Option<&'a VsockHost>,
    /// Guest memory.
    pub memory: &'a GuestMemoryMmap,
    /// Where their events go.
    pub events: &'a EventSender,
    /// Confines the threads of disks.
    pub disk_filter: Option<Arc<BpfProgram>>,
}

/// What disks ask of their machine.
#[derive(Debug)]
struct DiskHost {
    events: EventSender,
    filter: Option<Arc<BpfProgram>>,
}

impl BlockHost for DiskHost {
    fn prepare_thread(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match &self.filter {
            Some(filter) => Ok(confine(filter)?),
            None => Ok(()),
        }
    }

    fn held(&self, round: u64) {
        self.events.send(MachineEvent::DiskHeld { round });
    }
}

impl DeviceContext<'_> {
    fn disk_host(&self) -> Arc<DiskHost> {
        Arc::new(DiskHost {
            events: self.events.clone(),
            filter: self.disk_filter.clone(),
        })
    }
}

impl Devices {
    /// The devices of a machine that boots.
    ///
    /// # Errors
    /// [`DevicesError`].
    pub fn new(
        context: &DeviceContext<'_>,
        mut console: ConsoleOutput,
    ) -> Result<Self, DevicesError> {
        console.set_listener(Arc::new(context.events.clone()));
        let mut devices: Vec<Box<dyn SavedDevice>> = Vec::new();
        let mut vsock_counters = None;
        if let Some(config) = vsock_config(context)? {
            let vsock = Vsock::new(config)?;
            vsock_counters = Some(vsock.counters_handle());
            devices.push(Box::new(vsock));
        }
        devices.push(Box::new(Rng::new()));
        let mut disk_files = Vec::new();
        for disk in &context.configuration.disks {
            let block = Block::new(&block_config(disk), context.disk_host())?;
            disk_files.push(disk_file(&block, disk)?);
            devices.push(Box::new(block));
        }
        let transports = devices
            .into_iter()
            .map(|device| MmioTransport::new(device, context.memory.clone()).map(Arc::new))
            .collect::<Result<_, _>>()?;
        let serial_line = serial_line()?;
        let serial = SerialPort::new(Arc::clone(&serial_line), console);
        Self::place(
            transports,
            Arc::new(serial),
            serial_line,
            vsock_counters,
            disk_files,
            context.events,
        )
    }

    /// The devices of a machine that was saved, with disks of these identities. To be connected once the interrupt controllers have their
    /// state.
    ///
    /// # Errors
    /// [`DevicesError`].
    pub fn restore(
        context: &DeviceContext<'_>,
        mut console: ConsoleOutput,
        saved: &SavedDevices,
        identities: Option<&[DiskIdentity]>,
    ) -> Result<Self, DevicesError> {
        console.set_listener(Arc::new(context.events.clone()));
        let mut vsock_counters = None;
        let mut disks = context.configuration.disks.iter();
        let mut disk_files = Vec::new();
        let mut transports = Vec::with_capacity(saved.transports.len());
        for transport in &saved.transports {
            let device: Box<dyn SavedDevice> = match &transport.device {
                DeviceState::Vsock(state) => {
                    let config = vsock_config(context)?.ok_or(DevicesError::NoVsockSocket)?;
                    let vsock = Vsock::restore(config, state)?;
                    vsock_counters = Some(vsock.counters_handle());
                    Box::new(vsock)
                }
                DeviceState::Rng => Box::new(Rng::new()),
                DeviceState::Block(state) => {
                    let disk = disks.next().ok_or(DevicesError::DiskCount)?;
                    let block = Block::restore(
                        &block_config(disk),
                        state,
                        identities.and_then(|identities| identities.get(disk_files.len())),
                        context.disk_host(),
                    )?;
                    disk_files.push(disk_file(&block, disk)?);
                    Box::new(block)
                }
            };
            let memory = context.memory.clone();
            transports.push(Arc::new(MmioTransport::restore(device, memory, transport)?));
        }
        if disks.next().is_some() {
            return Err(DevicesError::DiskCount);
        }
        let serial_line = serial_line()?;
        // A pending interrupt is written to the line now, and reaches KVM when the line is connected.
        let serial = SerialPort::restore(Arc::clone(&serial_line), console, &saved.serial)
            .map_err(DevicesError::SavedSerial)?;
        Self::place(
            transports,
            Arc::new(serial),
            serial_line,
            vsock_counters,
            disk_files,
            context.events,
        )
    }

    fn place(
        transports: Vec<Arc<MmioTransport>>,
        serial: Arc<SerialPort>,
        serial_line: Arc<EventFd>,
        vsock_counters: Option<CountersHandle>,
        disk_files: Vec<DiskFile>,
        events: &EventSender,
    ) -> Result<Self, DevicesError> {
        if transports.len() > VIRTIO_MAX_DEVICES {
            return Err(DevicesError::TooMany {
                count: transports.len(),
            });
        }
        let power = Arc::new(events.clone());
        let mut ports = Bus::default();
        ports.add(COM1_PORT.into(), COM1_PORTS.into(), serial.clone())?;
        ports.add(
            I8042_PORT.into(),
            I8042_PORTS.into(),
            Arc::new(I8042(power.clone())),
        )?;
        ports.add(
            POWER_PORT.into(),
            POWER_PORTS.into(),
            Arc::new(PowerRegisters(power)),
        )?;
        let mut mmio = Bus::default();
        for (address, transport) in windows().zip(&transports) {
            mmio.add(address, VIRTIO_BYTES.into(), transport.clone())?;
        }
        let buses = Buses {
            ports: Arc::new(ports),
            mmio: Arc::new(mmio),
        };
        Ok(Self {
            transports,
            buses,
            vsock_counters,
            serial,
            serial_line,
            disk_files: disk_files.into(),
        })
    }

    /// How many virtio devices there are.
    #[must_use]
    pub fn virtio_count(&self) -> u32 {
        // `place` refuses more than there are interrupt lines.
        u32::try_from(self.transports.len()).unwrap_or(u32::MAX)
    }

    /// Connects interrupt lines and doorbells. On a restore, only once the interrupt controllers have their
    /// state, since a pending interrupt is delivered at once.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn connect(&self, vm: &Vm) -> Result<(), VmError> {
        vm.connect_interrupt(&self.serial_line, COM1_GSI)?;
        for ((gsi, address), transport) in (VIRTIO_FIRST_GSI..).zip(windows()).zip(&self.transports)
        {
            vm.connect_interrupt(transport.interrupt_line(), gsi)?;
            for (index, doorbell) in (0..).zip(transport.doorbells()) {
                vm.connect_doorbell(doorbell, address + QUEUE_NOTIFY, index)?;
            }
        }
        Ok(())
    }

    /// Lets devices tell the guest about the restore; once, when all are connected.
    pub fn resume(&self) {
        for transport in &self.transports {
            transport.resume();
        }
    }

    /// Serves queues whose doorbells rang before the vCPUs halted, so that no request is in flight. Those
    /// of disks are held by now.
    pub fn quiesce(&self) {
        let served_here = |transport: &&Arc<MmioTransport>| !transport.serves_itself();
        for transport in self.transports.iter().filter(served_here) {
            for (index, _) in (0..).zip(transport.doorbells()) {
                transport.serve_queue(index);
            }
        }
    }

    /// Writes console output that waits for the rest of its line.
    pub fn flush_console(&self) {
        self.serial.flush();
    }

    /// Its disks.
    #[must_use]
    pub fn disk_files(&self) -> Arc<[DiskFile]> {
        Arc::clone(&self.disk_files)
    }

    /// The state of all devices. vCPUs are halted and no device is being served.
    #[must_use]
    pub fn save(&self) -> SavedDevices {
        // The next VMM has another buffer.
        self.serial.flush();
        SavedDevices {
            serial: self.serial.save(),
            transports: self
                .transports
                .iter()
                .map(|transport| transport.save())
                .collect(),
        }
    }
}

/// Addresses of the virtio register windows.
fn windows() -> impl Iterator<Item = u64> {
    (0..).map(|index| u64::from(VIRTIO_START) + index * u64::from(VIRTIO_BYTES))
}

fn serial_line() -> Result<Arc<EventFd>, DevicesError> {
    new_event().map(Arc::new).map_err(DevicesError::Serial)
}

fn vsock_config(context: &DeviceContext<'_>) -> Result<Option<VsockConfig>, DevicesError> {
    let Some(guest_cid) = context.configuration.vsock_cid else {
        return Ok(None);
    };
    let host = context.vsock.ok_or(DevicesError::NoVsockSocket)?;
    Ok(Some(VsockConfig {
        guest_cid,
        host_socket: host.socket.clone(),
        port_policy: host.port_policy,
        eviction: host.eviction,
        request_timeout: host.request_timeout,
        observer: Arc::new(context.events.clone()),
    }))
}

fn disk_file(block: &Block, disk: &Disk) -> Result<DiskFile, DevicesError> {
    let path = disk.path.clone();
    match block.file() {
        Ok(file) => Ok(DiskFile {
            path,
            file,
            size_bytes: block.size_bytes(),
            read_only: disk.read_only,
        }),
        Err(source) => Err(BlockError::Open { path, source }.into()),
    }
}

fn block_config(disk: &Disk) -> BlockConfig {
    BlockConfig {
        path: disk.path.clone(),
        read_only: disk.read_only,
    }
}
