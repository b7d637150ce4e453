//! A client of another make: Python's grpcio with its health and reflection packages.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::binary::{Folder, SYNTHETIC, python, skipped};

const IMPORTS: &str = "import grpc, grpc_health.v1.health_pb2, grpc_reflection.v1alpha";

#[test]
fn pythons_grpcio_lists_the_services_checks_health_and_is_told_what_is_wrong() {
    let Some(python) = python("GRPC_PYTHON", IMPORTS) else {
        skipped(
            "no Python with grpcio, grpcio-health-checking and grpcio-reflection; .ci/run makes one in \
             target/grpc-venv, and GRPC_PYTHON names another",
        );
        return;
    };
    let folder = Folder::with(SYNTHETIC);
    let worker =
        ["worker", "--listen", "127.0.0.1:0", "--lifeline", "--message-bytes-max", "2097152"];
    let mut worker = folder.command(&worker);
    worker.env("NASHFLOCK_RUN_TOKEN", "of this run").stdin(Stdio::piped()).stderr(Stdio::null());
    let mut worker = worker.spawn().expect("the program runs");
    let mut line = String::new();
    let mut stdout = BufReader::new(worker.stdout.take().expect("piped"));
    stdout.read_line(&mut line).expect("one line");
    let said: Value = serde_json::from_str(&line).expect("one JSON line");
    let client = Command::new(&python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc/client.py"))
        .args([said["listening"].as_str().expect("an address"), "of this run"])
        .output()
        .expect("Python runs");
    let stderr = String::from_utf8_lossy(&client.stderr);
    assert!(client.status.success(), "{stderr}");
    let found: Value = serde_json::from_slice(&client.stdout).expect("JSON");

    let services = found["services"].as_array().expect("a list");
    for name in ["nashflock.v1.ExpertService", "grpc.health.v1.Health"] {
        assert!(services.iter().any(|service| service == name), "{services:?}");
    }
    assert_eq!(
        found["methods"],
        serde_json::json!(["Compute", "DropShards", "LoadShard", "Status"])
    );
    let health = &found["health"];
    assert_eq!([&health[""], &health["nashflock.v1.ExpertService"]], ["SERVING", "SERVING"]);
    assert_eq!(found["status"]["messageBytesMax"], "2097152", "{}", found["status"]);
    for (what, code, says) in [
        ("health_of_nobody", "NOT_FOUND", ""),
        ("without_token", "UNAUTHENTICATED", "NASHFLOCK_RUN_TOKEN"),
        ("other_token", "PERMISSION_DENIED", "not that of this run"),
        ("garbage", "INTERNAL", "failed to decode Protobuf message"),
        ("garbage_shard", "INTERNAL", "failed to decode Protobuf message"),
        ("too_long", "OUT_OF_RANGE", "2097152"),
        ("no_such_method", "UNIMPLEMENTED", ""),
    ] {
        let told = &found[what];
        assert_eq!(told["code"], code, "{what}: {told}");
        assert!(told["details"].as_str().is_some_and(|said| said.contains(says)), "{what}: {told}");
    }
    let reply = &found["unsealed_order"][0];
    assert_eq!(reply["fault"], "COMPUTE_FAULT_CORRUPT", "{reply}");
    assert!(reply["detail"].as_str().is_some_and(|said| !said.is_empty()), "{reply}");
    // Its lifeline ends.
    drop(worker.stdin.take());
    assert!(worker.wait().expect("it ends").success());
}
