//! Mutual TLS: both ends show a certificate of one private authority, and each takes only those with a
//! name on its list.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{
    Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, RootCertStore,
    ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::Uri;

/// Names on the list, at most.
const PEERS_MAX: usize = 4096;

/// Where somebody's certificate is, and whose others it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate and those between it and the authority's, PEM. For both uses: server and client.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The authority's certificates, PEM.
    pub ca: PathBuf,
    /// DNS names or IP addresses: a peer's certificate has to have one of them as subject alternative
    /// name.
    pub peers: Vec<String>,
}

/// Why there is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The certificate cannot be used.
    #[error("the certificate {0} cannot be used: {1}")]
    Certificate(PathBuf, String),
    /// The key cannot be used.
    #[error("the key {0} cannot be used: {1}")]
    Key(PathBuf, String),
    /// The authority cannot be used.
    #[error("the authority {0} cannot be used: {1}")]
    Ca(PathBuf, String),
    /// The list of names is empty or has something else.
    #[error("{0}")]
    Peers(String),
}

/// Somebody's certificate, key and list, read once.
#[derive(Clone)]
pub struct Identity {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(secret)")
    }
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// The first that is not what it should be. Whether a certificate has expired shows in handshakes.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let TlsFiles { certificate, key, ca, peers } = files;
        let bad_chain = |why| TlsError::Certificate(certificate.clone(), why);
        let bad_key = |why| TlsError::Key(key.clone(), why);
        let bad_ca = |why| TlsError::Ca(ca.clone(), why);
        let chain = certificates(certificate).map_err(bad_chain)?;
        let secret =
            PrivateKeyDer::from_pem_file(key).map_err(|error| bad_key(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for root in certificates(ca).map_err(bad_ca)? {
            roots.add(root).map_err(|error| bad_ca(error.to_string()))?;
        }
        let list = Arc::new(AllowList {
            names: names(peers)?,
            roots: Arc::new(roots),
            provider: Arc::new(ring::default_provider()),
        });
        // A chain and a key that do not belong together are found here.
        let bad_pair = |error: Error| bad_key(error.to_string());
        let server = list.server(chain.clone(), secret.clone_key()).map_err(bad_pair)?;
        let client = list.client(chain, secret).map_err(bad_pair)?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.server.clone())
    }

    pub(super) fn connector(&self) -> Connector {
        Connector(TlsConnector::from(self.client.clone()))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err("no certificate in PEM is in it".into()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

fn names(peers: &[String]) -> Result<Vec<ServerName<'static>>, TlsError> {
    if peers.is_empty() || peers.len() > PEERS_MAX {
        return Err(TlsError::Peers(format!(
            "{} names of peers: list 1 to {PEERS_MAX}",
            peers.len()
        )));
    }
    let name = |peer: &String| {
        ServerName::try_from(peer.clone())
            .map_err(|_| TlsError::Peers(format!("\"{peer}\" is no DNS name and no IP address")))
    };
    peers.iter().map(name).collect()
}

/// Checks the certificates of both ends.
#[derive(Debug)]
struct AllowList {
    names: Vec<ServerName<'static>>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl AllowList {
    fn server(
        self: &Arc<Self>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<ServerConfig, Error> {
        let of_authority =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(Clients { list: self.clone(), of_authority }))
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Nobody resumes: each connection shows its certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn client(
        self: &Arc<Self>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Servers(self.clone())))
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// An error names one of the names that were looked for, and those that there are.
    fn check_name(&self, certificate: &ParsedCertificate<'_>) -> Result<(), Error> {
        let mut found = Err(Error::General("no names are looked for".into()));
        for name in &self.names {
            found = verify_server_name(certificate, name);
            if found.is_ok() {
                break;
            }
        }
        found
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }
}

/// What a client takes servers by. Nodes come and go at addresses that no certificate knows: the name is
/// looked for on the list, and not the address that was dialled.
#[derive(Debug)]
struct Servers(Arc<AllowList>);

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.0.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.0.roots,
            intermediates,
            now,
            algorithms,
        )?;
        self.0.check_name(&certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a server takes clients by.
#[derive(Debug)]
struct Clients {
    list: Arc<AllowList>,
    of_authority: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Clients {
    /// Strangers need not know which authority this is.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.of_authority.verify_client_cert(end_entity, intermediates, now)?;
        self.list.check_name(&ParsedCertificate::try_from(end_entity)?)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.list.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.list.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Connects to a node and shakes hands with it.
#[derive(Clone)]
pub(super) struct Connector(TlsConnector);

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let host = uri.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((bare, uri.port_u16().unwrap_or(443))).await?;
        tcp.set_nodelay(true)?;
        // Sent along where it is a name; the list decides.
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(TokioIo::new(self.0.connect(name, tcp).await?))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

#[cfg(test)]
mod tests {
    use super::{TlsError, names};

    #[test]
    fn the_list_takes_names_and_addresses_and_says_what_is_neither() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(names(&list(&["worker.run", "10.0.0.7", "::1", "*.run"])).is_err());
        assert_eq!(names(&list(&["worker.run", "10.0.0.7", "::1"])).map(|n| n.len()), Ok(3));
        for (bad, says) in [(list(&[]), "0 names"), (list(&["a b"]), "\"a b\" is no DNS name")] {
            let Err(TlsError::Peers(said)) = names(&bad) else { panic!("{bad:?}") };
            assert!(said.contains(says), "{said}");
        }
    }
}
