//! Certificates made for a test, in files.
#![allow(dead_code, reason = "the bench of hostile peers uses a part of this")]

use nashflock::transport::{Access, Identity, RunToken, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use std::fs;
use std::path::{Path, PathBuf};

/// The name that certificates of one cluster have.
pub(crate) const NAME: &str = "worker.run";

/// An authority with its certificate in a folder.
pub(crate) struct Authority {
    folder: PathBuf,
    name: String,
    issuer: Issuer<'static, KeyPair>,
    ca: PathBuf,
}

impl Authority {
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let ca = folder.join(format!("{name}.pem"));
        fs::write(&ca, certificate.pem()).expect("written");
        Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            issuer: Issuer::new(params, key),
            ca,
        }
    }

    pub(crate) fn ca(&self) -> &Path {
        &self.ca
    }

    /// A certificate for `name` until the end of a year, and its key. It takes peers of [`NAME`].
    pub(crate) fn issue(&self, name: &str, until: i32) -> TlsFiles {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 12, 31);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |end: &str| self.folder.join(format!("{}-{name}-{until}.{end}", self.name));
        let (at, key_at) = (path("pem"), path("key"));
        fs::write(&at, certificate.pem()).expect("written");
        fs::write(&key_at, key.serialize_pem()).expect("written");
        let ca = self.ca.clone();
        TlsFiles { certificate: at, key: key_at, ca, peers: vec![NAME.to_owned()] }
    }
}

/// What somebody with these files and this token shows.
pub(crate) fn access(files: Option<&TlsFiles>, token: &str) -> Access {
    let tls = files.map(|files| Identity::load(files).expect("good files"));
    Access { token: RunToken::from(token), tls }
}

/// The flags of a worker with these files.
pub(crate) fn flags(files: &TlsFiles) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let TlsFiles { certificate, key, ca, peers } = files;
    let mut flags = vec!["--tls-certificate".to_owned(), path(certificate)];
    flags.extend(["--tls-key".to_owned(), path(key), "--tls-ca".to_owned(), path(ca)]);
    flags.extend(peers.iter().flat_map(|peer| ["--tls-peer".to_owned(), peer.clone()]));
    flags
}
