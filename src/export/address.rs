//! Where figures are served.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// A port of this machine alone, or an address that was spelled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsAddress(pub SocketAddr);

impl FromStr for MetricsAddress {
    type Err = String;

    /// `PORT` listens on 127.0.0.1; `IP:PORT` where it says.
    fn from_str(text: &str) -> Result<Self, String> {
        let port = text.parse().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let address = port.or_else(|_| text.parse());
        address.map(Self).map_err(|_| {
            format!("\"{text}\" is neither PORT, which listens on 127.0.0.1, nor IP:PORT")
        })
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::MetricsAddress;

    #[test]
    fn a_port_alone_is_of_this_machine_and_another_address_has_to_be_spelled_out() {
        for (text, address) in [
            ("9464", "127.0.0.1:9464"),
            ("0", "127.0.0.1:0"),
            ("0.0.0.0:9464", "0.0.0.0:9464"),
            ("[::]:9464", "[::]:9464"),
        ] {
            let parsed: MetricsAddress = text.parse().expect(text);
            assert_eq!(parsed.to_string(), address);
        }
        for text in ["", ":9464", "localhost:9464", "70000", "127.0.0.1"] {
            assert!(text.parse::<MetricsAddress>().is_err(), "{text}");
        }
    }
}
