//! Sockets: who may connect, how long a stranger is borne with, and what everything may cost. The only
//! place where connections are accepted and made.

mod brake;
mod dial;
pub(crate) mod http;
mod incoming;
mod listen;
mod refusals;
mod serve;
mod strangers;
mod tls;
mod token;

pub(crate) use dial::Calls;
pub use dial::{Access, endpoint};
pub use incoming::{Connection, Incoming};
pub use listen::Listen;
pub(crate) use listen::{SOCKET_FOLDER_PREFIX, SocketFile, UNIX};
pub(crate) use refusals::Refusals;
pub(crate) use serve::{ServerLimits, server, with_health_and_reflection};
pub(crate) use strangers::Attendance;
pub use strangers::{Attending, ConnectionLimits, Peer};
pub use tls::{Identity, TlsError, TlsFiles};
pub use token::RunToken;
pub(crate) use token::{CheckToken, OTHER_RUN, RUN_TOKEN_VARIABLE, ShowToken};

use std::time::Duration;

/// HTTP/2 windows and frames of both ends. Fixed, because the adaptive window can stall a bulk
/// stream for ever: its pings wait behind the data of both directions.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// See [`STREAM_WINDOW_BYTES`].
pub const FRAME_BYTES: u32 = 256 << 10;
/// A silent peer is noticed after twice this time.
pub const KEEPALIVE: Duration = Duration::from_secs(5);

/// Whether `HOST:PORT` names this machine, as far as the text tells.
pub(crate) fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_loopback_addresses_are_of_this_machine() {
        for (address, expected) in [
            ("127.0.0.1:1", true),
            ("127.1.2.3:1", true),
            ("[::1]:1", true),
            ("localhost:1", true),
            ("localhost.example:1", false),
            ("127.0.0.1.example:1", false),
            ("0.0.0.0:1", false),
            ("node3:1", false),
            ("[2001:db8::1]:1", false),
        ] {
            assert_eq!(is_loopback(address), expected, "{address}");
        }
    }
}
