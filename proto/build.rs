//! Compiles the schema with protox, so that nobody needs protoc.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=nashflock/v1/expert.proto");
    let descriptors = protox::compile(["nashflock/v1/expert.proto"], ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".nashflock.v1").compile_fds(descriptors)?;
    Ok(())
}
