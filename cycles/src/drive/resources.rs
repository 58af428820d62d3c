//! What a supervisor reports about a machine, under the names that records use.

use std::collections::BTreeMap;

use machine_api::{MachineResources, ProcessUsage};

use crate::record::Resources;

/// The figures of `resources` by name; absent ones are left out.
pub(super) fn by_name(resources: &MachineResources) -> Resources {
    let MachineResources {
        // Grows with each cycle by design, and is no resource.
        generation: _,
        supervisor,
        supervisor_tasks,
        vmm,
        vmm_guest_anonymous_bytes,
        vmm_vsock_connections,
        guest_init,
        guest_tasks,
        guest_vsocks,
        image_bytes,
        database_bytes,
        log_bytes,
        machine_folder_bytes,
        machine_folder_files,
    } = resources;
    let single = [
        ("supervisor_tasks", supervisor_tasks),
        ("vmm_guest_anonymous_bytes", vmm_guest_anonymous_bytes),
        ("guest_tasks", guest_tasks),
        ("image_bytes", image_bytes),
        ("database_bytes", database_bytes),
        ("log_bytes", log_bytes),
        ("machine_folder_bytes", machine_folder_bytes),
        ("machine_folder_files", machine_folder_files),
    ];
    let single = single
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), (*value)?)));
    let processes = [
        ("supervisor", Some(supervisor)),
        ("vmm", vmm.as_ref()),
        ("guest_init", guest_init.as_ref()),
    ];
    let processes = processes
        .into_iter()
        .filter_map(|(process, usage)| Some(of_process(process, usage?)))
        .flatten();
    single
        .chain(processes)
        .chain(of_states("vmm_vsock_connections", vmm_vsock_connections))
        .chain(of_states("guest_vsocks", guest_vsocks))
        .collect()
}

fn of_process(process: &str, usage: &ProcessUsage) -> impl Iterator<Item = (String, u64)> {
    let figures = [
        ("descriptors", usage.descriptors),
        ("threads", usage.threads),
        ("resident_bytes", usage.resident_bytes),
        ("anonymous_bytes", usage.anonymous_bytes),
        ("epoll_entries", usage.epoll_entries),
        ("timers", usage.timers),
    ];
    figures
        .into_iter()
        .filter_map(move |(name, value)| Some((format!("{process}_{name}"), value?)))
}

fn of_states(
    what: &str,
    counts: &Option<BTreeMap<String, u64>>,
) -> impl Iterator<Item = (String, u64)> {
    let counts = counts.iter().flatten();
    counts.map(move |(state, count)| (format!("{what}_{state}"), *count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_its_name_and_absent_ones_have_none() {
        let reported = MachineResources {
            generation: 7,
            supervisor: ProcessUsage {
                descriptors: Some(1),
                resident_bytes: Some(2),
                ..ProcessUsage::default()
            },
            supervisor_tasks: Some(3),
            guest_init: Some(ProcessUsage {
                epoll_entries: Some(4),
                ..ProcessUsage::default()
            }),
            guest_vsocks: Some(BTreeMap::from([("established".to_owned(), 5)])),
            vmm_vsock_connections: Some(BTreeMap::from([("draining".to_owned(), 6)])),
            machine_folder_files: Some(7),
            ..MachineResources::default()
        };
        let resources = by_name(&reported);
        let expected = [
            ("guest_init_epoll_entries", 4),
            ("guest_vsocks_established", 5),
            ("machine_folder_files", 7),
            ("supervisor_descriptors", 1),
            ("supervisor_resident_bytes", 2),
            ("supervisor_tasks", 3),
            ("vmm_vsock_connections_draining", 6),
        ];
        assert_eq!(resources.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_empty_answer_is_no_resource() {
        assert!(by_name(&MachineResources::default()).is_empty());
    }
}
