//! What a peer does that means harm. Shared by the tests and the bench of hostile peers.
#![allow(dead_code, reason = "the bench uses a part of this")]

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use std::error::Error;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use tonic::metadata::BinaryMetadataValue;

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// How a client of HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame of headers that announces 16 KiB and brings none of them.
const HALF_HEADERS: &[u8] = &[0, 0x40, 0, 1, 4, 0, 0, 0, 1];
const NO_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// What a connection that is held says before it falls silent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Held {
    Nothing,
    HalfPreface,
    HalfHeaders,
}

/// A connection that is held open.
pub(crate) async fn hold(address: &str, how: Held) -> Result<TcpStream, Failure> {
    let mut stream = TcpStream::connect(address).await?;
    match how {
        Held::Nothing => {}
        Held::HalfPreface => stream.write_all(&PREFACE[..12]).await?,
        Held::HalfHeaders => {
            stream.write_all(&[PREFACE, NO_SETTINGS, HALF_HEADERS].concat()).await?;
        }
    }
    Ok(stream)
}

/// Bytes that are no HTTP/2, until the other end hangs up.
pub(crate) async fn garbage(address: &str) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(address).await?;
    let bytes: Vec<u8> =
        (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // It may hang up before all is written.
    let _ = stream.write_all(&bytes).await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    Ok(())
}

async fn http2(address: &str) -> Result<SendRequest<Bytes>, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (client, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(async move {
        // Its end shows in the requests.
        let _ = connection.await;
    });
    Ok(client)
}

fn compute(address: &str, token: &str) -> Result<Request<()>, Failure> {
    let token = BinaryMetadataValue::from_bytes(token.as_bytes());
    Ok(Request::post(format!("http://{address}/nashflock.v1.ExpertService/Compute"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("nashflock-run-token-bin", token.as_encoded_bytes())
        .body(())?)
}

/// A message that says it has 4 GiB, on as many streams of one connection. Gives their gRPC status codes.
pub(crate) async fn giants(
    address: &str,
    token: &str,
    streams: usize,
) -> Result<Vec<String>, Failure> {
    let mut client = http2(address).await?;
    let mut open = Vec::new();
    for _ in 0..streams {
        client = client.ready().await?;
        let (response, mut body) = client.send_request(compute(address, token)?, false)?;
        body.send_data(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]), false)?;
        open.push((response, body));
    }
    let mut codes = Vec::new();
    for (response, _body) in open {
        let response = response.await?;
        let status = |headers: &http::HeaderMap| {
            headers.get("grpc-status").and_then(|code| code.to_str().ok().map(str::to_owned))
        };
        let code = match status(response.headers()) {
            Some(code) => Some(code),
            None => {
                let mut body = response.into_body();
                while let Some(data) = body.data().await {
                    body.flow_control().release_capacity(data?.len())?;
                }
                body.trailers().await?.as_ref().and_then(status)
            }
        };
        codes.push(code.ok_or("no status")?);
    }
    Ok(codes)
}

/// Opens streams and resets each at once, until the other end hangs up or there were so many.
pub(crate) async fn rapid_reset(address: &str, token: &str, streams: usize) -> usize {
    let Ok(mut client) = http2(address).await else { return 0 };
    for done in 0..streams {
        client = match client.ready().await {
            Ok(client) => client,
            Err(_) => return done,
        };
        let request = compute(address, token).expect("a request");
        match client.send_request(request, false) {
            Ok((_, mut body)) => body.send_reset(h2::Reason::CANCEL),
            Err(_) => return done,
        }
        // The connection's task writes what there is.
        tokio::task::yield_now().await;
    }
    streams
}

/// A TLS client that trusts this authority and shows no certificate. Gives what the server says.
pub(crate) async fn without_certificate(
    address: &str,
    ca: &std::path::Path,
    name: &'static str,
) -> Result<String, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let connector = TlsConnector::from(Arc::new(config));
    // In TLS 1.3 the client is done before the server has looked for its certificate.
    let mut stream = match connector.connect(ServerName::try_from(name)?, stream).await {
        Ok(stream) => stream,
        Err(error) => return Ok(error.to_string()),
    };
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest).await {
        Ok(_) => Err("the server served".into()),
        Err(error) => Ok(error.to_string()),
    }
}
