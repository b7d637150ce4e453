//! Asks over HTTP as any client does.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// An answer.
pub(crate) struct Page {
    pub(crate) status: u16,
    /// Lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Asks once, with these headers, each of them a line. HTTP/1.0, so that the answer comes in one piece and ends with
/// its connection.
pub(crate) fn ask(address: &str, request: &str, headers: &str) -> Option<Page> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
    write!(stream, "{request} HTTP/1.0\r\n{headers}\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Page { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}
