//! Who may be reached, and in plain text or not.

use super::Found;
use crate::scenario::file::{Engine, Nodes};
use crate::transport::{Identity, TlsError, is_loopback};

pub(super) fn find(nodes: &Nodes, found: &mut Found<'_>) {
    certificates(nodes, found);
    if nodes.insecure_non_loopback || !nodes.tls.is_off() {
        return;
    }
    const ALLOW: &str = "nodes.insecure_non_loopback";
    let listens_near = nodes.listen.as_ref().is_none_or(|listen| is_loopback(listen));
    found.unless(listens_near, &["nodes.listen", ALLOW], || {
        let message =
            "`nodes.listen` is an address that other machines reach, and traffic is plain text";
        let help = "listen on 127.0.0.1, add [nodes.tls], or write insecure_non_loopback = true on a \
                    network you trust";
        (message.into(), help.into())
    });
    for (index, peer) in nodes.peers.iter().enumerate() {
        let key = format!("nodes.peers[{index}]");
        found.unless(is_loopback(peer), &[&key, "nodes.peers", ALLOW], || {
            let message =
                format!("`nodes.peers` has {peer}, another machine, and traffic is plain text");
            let help =
                "add [nodes.tls], or write insecure_non_loopback = true on a network you trust";
            (message, help.into())
        });
    }
}

fn certificates(nodes: &Nodes, found: &mut Found<'_>) {
    let tls = &nodes.tls;
    if tls.is_off() {
        return;
    }
    let keys = ["nodes.tls.certificate", "nodes.tls.key", "nodes.tls.ca"];
    for (key, path) in keys.into_iter().zip([&tls.certificate, &tls.key, &tls.ca]) {
        found.unless(path.is_some(), &[key, "nodes.tls"], || {
            let message =
                format!("`{key}` is missing: TLS needs a certificate, its key and its authority");
            (message, "name a PEM file, or take [nodes.tls] out".into())
        });
    }
    let uses = matches!(nodes.engine, Engine::Peers | Engine::Join);
    found.unless(uses, &["nodes.tls", "nodes.engine"], || {
        let message =
            "`nodes.tls` is given but `nodes.engine` talks to nobody outside this machine";
        (message.into(), "write engine = \"peers\" or \"join\", or take [nodes.tls] out".into())
    });
    let Some(Err(error)) = tls.files().map(|files| Identity::load(&files)) else { return };
    let key = match &error {
        TlsError::Certificate(..) => keys[0],
        TlsError::Key(..) => keys[1],
        TlsError::Ca(..) => keys[2],
        TlsError::Peers(_) => "nodes.tls.peers",
    };
    found.unless(false, &[key, "nodes.tls"], || {
        let help = match error {
            TlsError::Peers(_) => "list the names that workers' certificates have",
            _ => "name a PEM file that this user can read, relative to the scenario file",
        };
        (error.to_string(), help.into())
    });
}
