//! Which nodes a run uses, as the user writes it.

use std::{fmt, num::NonZeroU32, str::FromStr};

/// More workers than this on one machine are a slip of the keyboard.
const LOCAL_MAX: u32 = 256;

/// `in-process`, `local:N` or `peers:HOST:PORT,…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeSpec {
    /// No workers: the experts compute in this process.
    InProcess,
    /// Worker processes on this machine.
    Local(NonZeroU32),
    /// Running workers, each as `HOST:PORT`; node ids follow this order.
    Peers(Vec<String>),
}

/// Why text is not a [`NodeSpec`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}; the forms are in-process, local:N and peers:HOST:PORT,…")]
pub struct NodeSpecError {
    detail: String,
}

impl FromStr for NodeSpec {
    type Err = NodeSpecError;

    fn from_str(text: &str) -> Result<Self, NodeSpecError> {
        let error = |detail| Err(NodeSpecError { detail });
        match text.split_once(':') {
            None if text == "in-process" => Ok(Self::InProcess),
            None if text == "slurm" => error("slurm is not available in this version".into()),
            Some(("virtual", _)) => error("virtual:N is not available in this version".into()),
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
            _ => error(format!("\"{text}\" names no nodes")),
        }
    }
}

impl fmt::Display for NodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProcess => f.write_str("in-process"),
            Self::Local(count) => write!(f, "local:{count}"),
            Self::Peers(peers) => write!(f, "peers:{}", peers.join(",")),
        }
    }
}

fn is_host_and_port(peer: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::NodeSpec;

    #[test]
    fn every_form_prints_as_it_was_written() {
        for text in ["in-process", "local:1", "local:256", "peers:a:1", "peers:[::1]:5001,n-2.x:9"]
        {
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
            ("slurm", "slurm is not available in this version"),
            ("virtual:4", "not available in this version"),
        ] {
            let error = text.parse::<NodeSpec>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(error.contains("the forms are in-process, local:N and peers"), "{error}");
        }
    }
}
