//! Where a node listens.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs, io, net::SocketAddr};

/// How the address of a Unix socket begins.
pub(crate) const UNIX: &str = "unix:";

/// Where a node listens: `IP:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A socket file, which the node makes and removes.
    Unix(PathBuf),
}

impl Listen {
    /// Whether no other machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// What to do about an address that cannot be listened on.
    pub(crate) fn remedy(&self, source: &io::Error) -> String {
        match self {
            Self::Tcp(_) => "choose another address with --listen IP:PORT (port 0 takes a free \
                             one)"
                .into(),
            Self::Unix(path) if source.kind() == io::ErrorKind::AddrInUse => {
                format!("remove {} if no node uses it", path.display())
            }
            Self::Unix(_) => "the folder has to be there and the path below about 100 bytes".into(),
        }
    }
}

/// A socket file that is removed when this is dropped.
pub(crate) struct SocketFile(PathBuf);

impl SocketFile {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever made its folder may have removed both already.
        let _ = fs::remove_file(&self.0);
        if let Some(folder) = self.0.parent().filter(|folder| is_private(folder)) {
            // The last node of a folder whose maker was killed; the others find it not empty.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// How the folders are named that are made for the socket files of one coordinator.
pub(crate) const SOCKET_FOLDER_PREFIX: &str = "nashflock-sockets-";

fn is_private(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(SOCKET_FOLDER_PREFIX))
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(UNIX) {
            Some("") => Err("\"unix:\" names no file; write unix:PATH".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| format!("\"{text}\" is neither IP:PORT nor unix:PATH")),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Listen;

    #[test]
    fn an_address_is_a_tcp_address_or_a_socket_file() {
        for text in ["127.0.0.1:0", "[::1]:5001", "unix:/run/a b.sock", "unix:here"] {
            let listen: Listen = text.parse().expect(text);
            assert_eq!(listen.to_string(), text);
        }
        for text in ["", "unix:", "localhost:5001", "127.0.0.1", "/run/a.sock"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
        let local = |text: &str| text.parse::<Listen>().expect(text).is_local();
        assert!(local("127.0.0.7:1") && local("[::1]:1") && local("unix:/a"));
        assert!(!local("0.0.0.0:1") && !local("192.0.2.1:1"));
    }
}
