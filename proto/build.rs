//! Compiles the schema with protox, so that nobody needs protoc.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

const SCHEMAS: [&str; 2] = ["nashflock/v1/expert.proto", "nashflock/v1/membership.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for (schema, descriptors) in SCHEMAS.iter().zip(["descriptors.bin", "membership.bin"]) {
        println!("cargo:rerun-if-changed={schema}");
        // Apart, because a server's reflection lists what it serves.
        fs::write(out.join(descriptors), protox::compile([schema], ["."])?.encode_to_vec())?;
    }
    let all = protox::compile(SCHEMAS, ["."])?;
    tonic_prost_build::configure().bytes(".nashflock.v1").compile_fds(all)?;
    Ok(())
}
