//! Sends orders to experts, in process or over gRPC.
