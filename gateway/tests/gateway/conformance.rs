//! Runs `tests/conformance.py` (boto3 and raw requests) against the gateway over a store in memory.

use std::process::Command;

#[test]
fn real_clients_are_answered_as_aws_would() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || crate::memory::serve(listener, crate::memory::config()));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance.py");
    let status = Command::new("python3")
        .args([script, "--memory"])
        .env("AWS_ENDPOINT_URL", &endpoint)
        .env("AWS_ACCESS_KEY_ID", "memory-key")
        .env("AWS_SECRET_ACCESS_KEY", "memory-key-secret")
        .env("AWS_REGION", "us-east-1")
        .env_remove("AWS_CA_BUNDLE")
        .status()
        .expect("python3 with boto3 is installed");
    assert!(status.success(), "the failed cases are listed above");
}
