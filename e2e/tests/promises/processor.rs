//! A guest sees the processor that its template describes, whatever the host's is.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use e2e::counter;
use machine_api::CpuTemplate;

use crate::stage::{Stage, config};

/// Features of the levels as /proc/cpuinfo names them, and some of a higher level.
const V2: [&str; 4] = ["sse4_2", "popcnt", "cx16", "ssse3"];
const V3: [&str; 4] = ["avx2", "bmi2", "fma", "movbe"];
const ABOVE_V3: [&str; 3] = ["avx512f", "sha_ni", "pku"];

pub(crate) async fn a_guest_has_the_features_of_its_template_and_no_others_before_and_after_a_resume(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    // What KVM offers is less than what the host has: the guest without a template shows it.
    let all = stage.boot(config(&["/bin/sleep", "600"])).await?;
    let offered = flags(&stage.shell(&all, "cat /proc/cpuinfo").await?.stdout)?;
    stage.client.destroy(&all.id, true).await?;
    let has_all = |names: &[&str]| names.iter().all(|name| offered.contains(*name));
    let mut templates = vec![(
        CpuTemplate::X86_64V2,
        V2.to_vec(),
        [&V3[..], &ABOVE_V3].concat(),
    )];
    if has_all(&V3) {
        let has = [&V2[..], &V3].concat();
        templates.push((CpuTemplate::X86_64V3, has, ABOVE_V3.to_vec()));
    }
    for (template, has, has_not) in templates {
        let mut wanted = config(&counter::command());
        let guest = wanted.guest.as_mut().context("a guest")?;
        guest.cpu_template = template;
        let machine = stage.boot(wanted).await?;
        let before = stage.shell(&machine, "cat /proc/cpuinfo").await?;
        let before = flags(&before.stdout)?;
        for name in has {
            ensure!(before.contains(name), "{template:?}: {name} is missing");
        }
        for name in has_not {
            ensure!(!before.contains(name), "{template:?}: {name} is there");
        }
        let added: Vec<_> = before.difference(&offered).collect();
        ensure!(added.is_empty(), "{template:?} adds {added:?}");
        ensure!(before != offered, "{template:?} takes nothing away");
        let count = stage.count(&machine).await?;
        stage.suspend(&machine).await?;
        stage.resume(&machine).await?;
        stage.wait_for_count_beyond(&machine, count).await?;
        let after = stage.shell(&machine, "cat /proc/cpuinfo").await?;
        ensure!(flags(&after.stdout)? == before, "{}", after.stdout);
        stage.client.destroy(&machine.id, true).await?;
    }
    Ok(())
}

fn flags(cpuinfo: &str) -> anyhow::Result<BTreeSet<String>> {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let (_, flags) = line
        .and_then(|line| line.split_once(':'))
        .context("no line of flags")?;
    Ok(flags.split_whitespace().map(str::to_owned).collect())
}
