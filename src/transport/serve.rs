//! The gRPC server that every listener has: its limits, and the service that lists the others.

use super::strangers::CountCalls;
use super::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, KEEPALIVE, STREAM_WINDOW_BYTES};
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::layer::util::{Identity, Stack};

/// Longest request to health and reflection, in bytes.
const SMALL_MESSAGE_BYTES_MAX: usize = 4096;

/// Bytes of the headers of a request.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Streams that a client has reset before they were looked at, and that it made the server reset: more
/// end its connection.
const RESET_STREAMS_MAX: usize = 32;

/// What differs between servers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerLimits {
    /// Streams of a connection at once.
    pub(crate) streams: u32,
    /// Whether messages are large, so that windows and frames are, too.
    pub(crate) is_bulk: bool,
}

/// A server that allocates nothing for a client but within limits.
pub(crate) fn server(
    limits: ServerLimits,
) -> Server<Stack<InterceptorLayer<CountCalls>, Identity>> {
    let server = Server::builder()
        .max_concurrent_streams(limits.streams)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_max_local_error_reset_streams(Some(RESET_STREAMS_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    let server = if limits.is_bulk {
        server
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
    } else {
        server
    };
    server.layer(InterceptorLayer::new(CountCalls))
}

/// Adds health, and reflection in both of its versions: it lists health and what these descriptors are of.
pub(crate) fn with_health_and_reflection(
    routes: Routes,
    health: HealthServer<impl Health>,
    descriptors: &'static [u8],
) -> Routes {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let compiled = "the descriptors were compiled with this program";
    let v1 = builder().build_v1().expect(compiled);
    let v1alpha = builder().build_v1alpha().expect(compiled);
    routes
        .add_service(health.max_decoding_message_size(SMALL_MESSAGE_BYTES_MAX))
        .add_service(v1.max_decoding_message_size(SMALL_MESSAGE_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(SMALL_MESSAGE_BYTES_MAX))
}
