//! Which nodes a run uses, as the user writes it.

use std::{fmt, num::NonZeroU32, str::FromStr};

/// More workers than this on one machine are a slip of the keyboard.
const LOCAL_MAX: u32 = 256;

/// More seats than this are a slip of the keyboard, too.
const JOIN_MAX: u32 = 4096;

/// More virtual nodes than this are a slip of the keyboard, too.
const VIRTUAL_MAX: u32 = 1_000_000;

/// `in-process`, `virtual:N`, `local:N`, `peers:HOST:PORT,…`, `join:IP:PORT:N`, `slurm` or `kubernetes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeSpec {
    /// No workers: the experts compute in this process.
    InProcess,
    /// Nodes in virtual time: the experts compute in this process.
    Virtual(NonZeroU32),
    /// Worker processes on this machine.
    Local(NonZeroU32),
    /// Running workers, each as `HOST:PORT`; node ids follow this order.
    Peers(Vec<String>),
    /// Workers that join a run: where it listens for them, and how many seats it has.
    Join(String, NonZeroU32),
    /// The tasks of the Slurm step that this process is one of.
    Slurm,
    /// The pods of the Indexed Job that this process is one of.
    Kubernetes,
}

/// Why text is not a [`NodeSpec`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{detail}; the forms are in-process, local:N, peers:HOST:PORT,…, virtual:N, join:IP:PORT:N, slurm and kubernetes"
)]
pub struct NodeSpecError {
    detail: String,
}

impl FromStr for NodeSpec {
    type Err = NodeSpecError;

    fn from_str(text: &str) -> Result<Self, NodeSpecError> {
        let error = |detail| Err(NodeSpecError { detail });
        match text.split_once(':') {
            None if text == "in-process" => Ok(Self::InProcess),
            None if text == "slurm" => Ok(Self::Slurm),
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(("virtual", count)) => match count.parse::<NonZeroU32>() {
                Ok(count) if count.get() <= VIRTUAL_MAX => Ok(Self::Virtual(count)),
                _ => error(format!("virtual:N takes 1 to {VIRTUAL_MAX} nodes, not \"{count}\"")),
            },
            Some(("local", count)) => match count.parse::<NonZeroU32>() {
                Ok(count) if count.get() <= LOCAL_MAX => Ok(Self::Local(count)),
                _ => error(format!("local:N takes 1 to {LOCAL_MAX} workers, not \"{count}\"")),
            },
            Some(("peers", list)) => {
                let peers: Vec<String> = list.split(',').map(str::to_owned).collect();
                if let Some(peer) = peers.iter().find(|peer| !is_host_and_port(peer)) {
                    return error(format!("\"{peer}\" is not HOST:PORT"));
                }
                if let Some(at) = (1..peers.len()).find(|at| peers[..*at].contains(&peers[*at])) {
                    return error(format!("{} is named twice", peers[at]));
                }
                Ok(Self::Peers(peers))
            }
            Some(("join", rest)) => {
                let parts = rest.rsplit_once(':');
                let seats =
                    |count: &str| count.parse().ok().filter(|n: &NonZeroU32| n.get() <= JOIN_MAX);
                match parts.map(|(listen, count)| (is_ip_and_port(listen), listen, seats(count))) {
                    Some((true, listen, Some(seats))) => Ok(Self::Join(listen.to_owned(), seats)),
                    Some((true, ..)) => {
                        error(format!("join:IP:PORT:N takes 1 to {JOIN_MAX} seats"))
                    }
                    _ => error(format!("\"{rest}\" is not IP:PORT:N")),
                }
            }
            _ => error(format!("\"{text}\" names no nodes")),
        }
    }
}

impl fmt::Display for NodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProcess => f.write_str("in-process"),
            Self::Local(count) => write!(f, "local:{count}"),
            Self::Virtual(count) => write!(f, "virtual:{count}"),
            Self::Peers(peers) => write!(f, "peers:{}", peers.join(",")),
            Self::Slurm => f.write_str("slurm"),
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Join(listen, seats) => write!(f, "join:{listen}:{seats}"),
        }
    }
}

/// Whether a text is `HOST:PORT`, with a port from 1 to 65535 and IPv6 hosts in brackets.
pub(crate) fn is_host_and_port(peer: &str) -> bool {
    peer.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_is_plain =
            bare.map_or(!host.contains(':'), |host| host.parse::<std::net::Ipv6Addr>().is_ok());
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
        !host.is_empty()
            && host_is_plain
            && host.chars().all(allowed)
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// Whether a text is `IP:PORT`, with a port from 1 to 65535 and IPv6 in brackets.
pub(crate) fn is_ip_and_port(address: &str) -> bool {
    address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.port() > 0)
}

#[cfg(test)]
mod tests {
    use super::NodeSpec;

    #[test]
    fn every_form_prints_as_it_was_written() {
        for text in [
            "in-process",
            "local:1",
            "local:256",
            "virtual:1",
            "virtual:1000000",
            "peers:a:1",
            "peers:[::1]:5001,n-2.x:9",
            "slurm",
            "kubernetes",
            "join:0.0.0.0:5000:4",
            "join:[::1]:5000:4096",
        ] {
            let spec: NodeSpec = text.parse().expect(text);
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn other_text_is_refused_with_the_forms() {
        for (text, says) in [
            ("", "names no nodes"),
            ("in-process:2", "names no nodes"),
            ("local", "names no nodes"),
            ("local:0", "1 to 256 workers"),
            ("local:257", "1 to 256 workers"),
            ("local:two", "not \"two\""),
            ("peers:", "is not HOST:PORT"),
            ("peers:host", "\"host\" is not HOST:PORT"),
            ("peers:host:0", "is not HOST:PORT"),
            ("peers:host:99999", "is not HOST:PORT"),
            ("peers:::1:80", "is not HOST:PORT"),
            ("peers:a b:80", "is not HOST:PORT"),
            ("peers:a:1,", "is not HOST:PORT"),
            ("peers:a:1,b:2,a:1", "a:1 is named twice"),
            ("join:5000:4", "\"5000:4\" is not IP:PORT:N"),
            ("join:host:5000:4", "is not IP:PORT:N"),
            ("join:127.0.0.1:0:4", "is not IP:PORT:N"),
            ("join:127.0.0.1:5000:0", "1 to 4096 seats"),
            ("join:127.0.0.1:5000:5000", "1 to 4096 seats"),
            ("slurm:4", "names no nodes"),
            ("virtual:0", "1 to 1000000 nodes"),
            ("virtual:1000001", "not \"1000001\""),
        ] {
            let error = text.parse::<NodeSpec>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(error.contains("the forms are in-process, local:N, peers"), "{error}");
        }
    }
}
