//! How connections are made, and what calls on them carry.

use super::{
    CONNECTION_WINDOW_BYTES, FRAME_BYTES, Identity, KEEPALIVE, RunToken, STREAM_WINDOW_BYTES,
    ShowToken, UNIX,
};
use std::time::Duration;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

/// What somebody needs to be let in by others.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Shown in each call.
    pub token: RunToken,
    /// For TLS on TCP connections; plain text without.
    pub tls: Option<Identity>,
}

impl Access {
    /// A channel to `HOST:PORT` or `unix:PATH`, which connects when it is used.
    ///
    /// # Errors
    /// When it is not an address.
    pub fn channel(&self, address: &str) -> Result<Channel, String> {
        let endpoint = endpoint(address)?;
        Ok(match &self.tls {
            Some(identity) if !address.starts_with(UNIX) => {
                endpoint.connect_with_connector_lazy(identity.connector())
            }
            _ => endpoint.connect_lazy(),
        })
    }

    /// Calls on a channel, with the token.
    pub(crate) fn calls(&self, channel: Channel) -> Calls {
        InterceptedService::new(channel, ShowToken::new(&self.token))
    }
}

/// What clients of the services are made of.
pub(crate) type Calls = InterceptedService<Channel, ShowToken>;

/// A node's address, `HOST:PORT` or `unix:PATH`, with the transport settings of this project.
///
/// # Errors
/// When it is not an address.
pub fn endpoint(address: &str) -> Result<Endpoint, String> {
    let uri = match address.strip_prefix(UNIX) {
        Some(_) => address.to_owned(),
        None => format!("http://{address}"),
    };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|error| format!("\"{address}\" is not HOST:PORT: {error}"))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(2))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true))
}
