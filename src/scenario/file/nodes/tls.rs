//! The keys of `[nodes.tls]`.

use crate::transport::TlsFiles;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Certificates for TLS between the coordinator and workers of engines `peers` and `join`, which both show
/// one. All keys or none: none is plain text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The certificate and those between it and the authority's, a PEM file, relative to the scenario file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// The private key of the certificate, a PEM file, relative to the scenario file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The authority's certificates, a PEM file, relative to the scenario file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// DNS names or IP addresses: a worker's certificate has to have one of them as subject alternative name.
    #[schemars(length(max = 4096), extend("items" = { "type": "string" }))]
    pub peers: Vec<String>,
}

impl Tls {
    /// Whether connections are in plain text.
    #[must_use]
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// The files; none where a key is missing.
    #[must_use]
    pub fn files(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            certificate: self.certificate.clone()?,
            key: self.key.clone()?,
            ca: self.ca.clone()?,
            peers: self.peers.clone(),
        })
    }

    pub(in crate::scenario) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.certificate, &mut self.key, &mut self.ca].into_iter().flatten()
    }
}
