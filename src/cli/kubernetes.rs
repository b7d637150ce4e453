//! What the environment of a pod of an Indexed Job says of the run that it is part of.

use super::Failure;
use super::task::Task;
use std::net::{IpAddr, SocketAddr};

/// The port of every pod: of the coordinator's membership service, and of each worker.
pub(super) const PORT: u16 = 5000;

/// Variables that the manifest of `launch kubernetes` sets.
pub(super) const TASKS: &str = "NASHFLOCK_TASKS";
/// See [`TASKS`].
pub(super) const COORDINATOR: &str = "NASHFLOCK_COORDINATOR";
/// See [`TASKS`].
pub(super) const POD_IP: &str = "POD_IP";
/// Kubernetes sets it in each pod of an Indexed Job.
const INDEX: &str = "JOB_COMPLETION_INDEX";

/// The task of the job that these variables are of.
///
/// # Errors
/// The first variable that is missing or not what it should be.
pub(super) fn task(variable: impl Fn(&str) -> Option<String>) -> Result<Task, Failure> {
    let text = |name: &str| {
        variable(name).ok_or_else(|| {
            Failure::BadInput(format!(
                "--nodes kubernetes: {name} is not set; render the job with \
                 `nashflock launch kubernetes SCENARIO`"
            ))
        })
    };
    let number = |name: &str| -> Result<u32, Failure> {
        let text = text(name)?;
        let bad = |_| Failure::BadInput(format!("--nodes kubernetes: {name} is \"{text}\""));
        text.parse().map_err(bad)
    };
    let ip = text(POD_IP)?;
    let bad = |_| Failure::BadInput(format!("--nodes kubernetes: {POD_IP} is \"{ip}\""));
    let own = SocketAddr::new(ip.parse::<IpAddr>().map_err(bad)?, PORT);
    Ok(Task {
        rank: number(INDEX)?,
        tasks: number(TASKS)?,
        listen: Some(own.to_string()),
        join: Some(text(COORDINATOR)?),
        own: Some(own),
        run_token: String::new(),
        seed: None,
    })
}

#[cfg(test)]
mod tests {
    use super::task;

    #[test]
    fn a_pod_knows_its_place_and_its_coordinator() {
        let variable = |name: &str| {
            let value = match name {
                "JOB_COMPLETION_INDEX" => "2",
                "NASHFLOCK_TASKS" => "4",
                "NASHFLOCK_COORDINATOR" => "run-0.run:5000",
                "POD_IP" => "10.1.2.3",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let Ok(found) = task(variable) else { panic!("it is complete") };
        assert_eq!((found.rank, found.tasks), (2, 4));
        assert_eq!(found.join.as_deref(), Some("run-0.run:5000"));
        assert_eq!(found.own.map(|own| own.to_string()).as_deref(), Some("10.1.2.3:5000"));
        for lacks in ["JOB_COMPLETION_INDEX", "NASHFLOCK_TASKS", "NASHFLOCK_COORDINATOR", "POD_IP"]
        {
            assert!(task(|name| variable(name).filter(|_| name != lacks)).is_err(), "{lacks}");
        }
    }
}
