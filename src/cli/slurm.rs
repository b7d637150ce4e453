//! What the environment of a Slurm task says of the run that it is part of.

use super::Failure;
use super::task::Task;
use std::net::{SocketAddr, ToSocketAddrs as _};

/// Ports of coordinators begin here, below those that Linux gives to clients.
const PORT_FIRST: u32 = 20_000;
const PORTS: u32 = 12_000;

/// The task of a step that these variables, which `srun` sets, are of. Where the user does not say where
/// its coordinator `listens`, that follows from the names of its nodes, and the port from job and step, so
/// that elements of an array may share a host.
///
/// # Errors
/// The first variable that is missing or not what it should be, and a first host without an address.
pub(super) fn task(
    variable: impl Fn(&str) -> Option<String>,
    listens: bool,
) -> Result<Task, Failure> {
    let number = |name: &str| -> Result<u32, Failure> {
        let text = variable(name).ok_or_else(|| {
            Failure::BadInput(format!(
                "--nodes slurm: {name} is not set; start every task with \
                 `srun -N N nashflock run SCENARIO --nodes slurm`"
            ))
        })?;
        let bad = |_| Failure::BadInput(format!("--nodes slurm: {name} is \"{text}\""));
        text.parse().map_err(bad)
    };
    let (rank, tasks) = (number("SLURM_PROCID")?, number("SLURM_NTASKS")?);
    let (job, step) = (number("SLURM_JOB_ID")?, number("SLURM_STEP_ID")?);
    // The step may have fewer nodes than the job.
    let list = variable("SLURM_STEP_NODELIST").or_else(|| variable("SLURM_JOB_NODELIST"));
    let port = PORT_FIRST + job.wrapping_add(step.wrapping_mul(997)) % PORTS;
    let port = u16::try_from(port).expect("both constants are small");
    let coordinator =
        if listens { None } else { Some(coordinator(&list.unwrap_or_default(), port)?) };
    Ok(Task {
        rank,
        tasks,
        listen: coordinator.map(|address| address.to_string()),
        join: None,
        own: None,
        run_token: format!("slurm {job}.{step}"),
        seed: variable("SLURM_ARRAY_TASK_ID").and_then(|id| id.parse().ok()),
    })
}

fn coordinator(list: &str, port: u16) -> Result<SocketAddr, Failure> {
    let bad = |why: String| {
        Failure::BadInput(format!(
            "--nodes slurm: {why}; give the coordinator's address with --set nodes.listen=IP:PORT"
        ))
    };
    let first = first_host(list)
        .ok_or_else(|| bad(format!("SLURM_JOB_NODELIST \"{list}\" names no host")))?;
    let mut found = (first.as_str(), port)
        .to_socket_addrs()
        .map_err(|error| bad(format!("the first host {first} has no address: {error}")))?;
    found.next().ok_or_else(|| bad(format!("the first host {first} has no address")))
}

/// The first host of a list as Slurm writes it: `node[003-007,9],other`.
fn first_host(list: &str) -> Option<String> {
    let first = match list.split_once('[') {
        Some((prefix, rest)) if !prefix.contains(',') => {
            let (ranges, rest) = rest.split_once(']')?;
            let number = ranges.split([',', '-']).next().filter(|number| !number.is_empty())?;
            // What follows up to the next comma belongs to every name: `rack[1-2]node[5-6]`.
            let suffix = rest.split(',').next().unwrap_or_default();
            let suffix = if suffix.contains('[') { first_host(suffix)? } else { suffix.to_owned() };
            format!("{prefix}{number}{suffix}")
        }
        _ => list.split(',').next()?.to_owned(),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (!first.is_empty() && first.chars().all(allowed)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::{first_host, task};
    use std::net::SocketAddr;

    #[test]
    fn the_first_host_of_a_list_is_found_as_scontrol_would() {
        // Expected values from `scontrol show hostnames LIST | head -1`.
        for (list, first) in [
            ("node1", "node1"),
            ("node[1-4]", "node1"),
            ("node[003-007,9]", "node003"),
            ("node[2,4-7]", "node2"),
            ("login,node[1-4]", "login"),
            ("a-b.c[08-10],d2", "a-b.c08"),
            ("rack[1-2]node[5-6]", "rack1node5"),
            ("n[1-2]x,m3", "n1x"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        for list in ["", ",", "node[", "[", "no de", "a;b", "node[]"] {
            assert_eq!(first_host(list), None, "{list}");
        }
    }

    #[test]
    fn a_task_is_what_srun_says_and_without_srun_it_is_refused() {
        let variable = |name: &str| {
            let value = match name {
                "SLURM_PROCID" => "3",
                "SLURM_NTASKS" => "8",
                "SLURM_JOB_ID" => "4711",
                "SLURM_STEP_ID" => "0",
                "SLURM_JOB_NODELIST" => "far[1-9]",
                "SLURM_STEP_NODELIST" => "localhost",
                "SLURM_ARRAY_TASK_ID" => "17",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let Ok(found) = task(variable, false) else { panic!("it is complete") };
        assert_eq!((found.rank, found.tasks, found.seed), (3, 8, Some(17)));
        let listen: SocketAddr = found.listen.expect("one is found").parse().expect("an address");
        assert!(listen.ip().is_loopback() && listen.port() == 24_711);
        let Ok(given) = task(variable, true) else { panic!("it is complete") };
        assert_eq!((given.listen, given.run_token.as_str()), (None, "slurm 4711.0"));
        assert!(task(|_| None, false).is_err());
        let bad =
            |name: &str| if name == "SLURM_PROCID" { Some("x".into()) } else { variable(name) };
        assert!(task(bad, false).is_err());
    }
}
