//! Manifests for Kubernetes: an Indexed Job whose first pod coordinates and whose others are workers.

use super::super::{Failure, Outcome, check, kubernetes, print};
use crate::scenario::Scenario;
use crate::transport::RunToken;
use agents::game::Registries;
use clap::Args;
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Where the scenario is put: beside those of the image, so that its relative paths lead to their models
/// and texts.
const SCENARIO: &str = "/nashflock/scenarios/job.toml";

/// Where the secret with the certificates is mounted, and its keys, as `kubernetes.io/tls` and issuers of
/// certificates have them.
const TLS: &str = "/nashflock/tls";
const TLS_KEYS: [(&str, &str); 3] =
    [("certificate", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt")];

/// The key of the run token in its secret.
const TOKEN: &str = "run-token";

/// The name of the port that figures are served on.
const METRICS: &str = "metrics";

/// The label that selects the pods of one run.
const RUN: &str = "app.kubernetes.io/instance";

#[derive(Args)]
pub(in super::super) struct KubernetesArgs {
    /// Scenario file; its paths are looked up in the image, from /nashflock/scenarios
    scenario: PathBuf,
    /// Override a key, as `game.top_k=4`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Image, made by deploy/Containerfile
    #[arg(long, default_value = "nashflock:latest")]
    image: String,
    /// Name of the job and of what belongs to it [default: `nashflock-` and the scenario's name]
    #[arg(long)]
    name: Option<String>,
    /// Pods: the first coordinates and works, the others work [default: `nodes.count`]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    tasks: Option<u32>,
    /// Memory of a pod, as `2Gi`
    #[arg(long, default_value = "2Gi")]
    memory: String,
    /// Secret of the namespace with `tls.crt`, `tls.key` and `ca.crt`, for mutual TLS between the pods, which
    /// is plain text without one
    #[arg(long, value_name = "SECRET", requires = "tls_peers")]
    tls_secret: Option<String>,
    /// A DNS name or IP address that the certificate of a pod may have; may be repeated
    #[arg(long = "tls-peer", value_name = "NAME", requires = "tls_secret")]
    tls_peers: Vec<String>,
    /// Secret of the namespace with the run token under `run-token` [default: one with a random token, which
    /// the manifests then hold]
    #[arg(long, value_name = "SECRET")]
    token_secret: Option<String>,
    /// Claim of a volume for the results, which are lost with the pod without one
    #[arg(long, value_name = "CLAIM")]
    claim: Option<String>,
    /// Have every pod serve its figures for Prometheus on this port, named `metrics`: PORT on all IPv4 addresses of the
    /// pod, or an address that is spelled out, as `[::]:9464`. For images with feature `prometheus`
    #[arg(long, value_name = "[IP:]PORT", value_parser = metrics_address)]
    metrics: Option<SocketAddr>,
    /// Namespace whose pods may read the figures [default: that of the run]
    #[arg(long, value_name = "NAMESPACE", requires = "metrics")]
    metrics_from: Option<String>,
}

/// Where a pod listens for those who read its figures.
fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse().map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    let address = port.or_else(|_| text.parse::<SocketAddr>());
    let address = address.map_err(|_| "neither PORT nor IP:PORT".to_owned())?;
    match address.port() {
        0 => Err("pods need a port that others know: give one, as 9464".to_owned()),
        kubernetes::PORT => Err(format!("{} is the pods' port for each other", kubernetes::PORT)),
        _ if address.ip().is_loopback() => {
            Err("others do not reach this address of a pod: give the port alone".to_owned())
        }
        _ => Ok(address),
    }
}

pub(super) fn kubernetes(args: &KubernetesArgs, registries: &Registries) -> Outcome {
    let scenario = check::load(&args.scenario, &args.sets, registries, false)?;
    let text = fs::read_to_string(&args.scenario).map_err(|error| {
        Failure::BadInput(format!("cannot read {}: {error}", args.scenario.display()))
    })?;
    if !scenario.nodes.tls.is_off() {
        return Err(Failure::BadInput(
            "launch kubernetes: the pods have no files for `nodes.tls`: take it out, and name a secret with \
             --tls-secret"
                .into(),
        ));
    }
    for (flag, secret) in
        [("--tls-secret", &args.tls_secret), ("--token-secret", &args.token_secret)]
    {
        if let Some(secret) = secret.as_ref().filter(|secret| !is_object_name(secret)) {
            return Err(Failure::BadInput(format!(
                "{flag} \"{secret}\": 1 to 253 small letters, digits, hyphens and dots, a letter or digit \
                 at both ends"
            )));
        }
    }
    if let Some(from) = args.metrics_from.as_ref().filter(|from| **from != label(from)) {
        return Err(Failure::BadInput(format!(
            "--metrics-from \"{from}\": a namespace has small letters, digits and hyphens, no hyphen at an end"
        )));
    }
    let plain =
        |name: &&String| name.chars().all(|c| c.is_ascii_alphanumeric() || "-.:".contains(c));
    if let Some(name) = args.tls_peers.iter().find(|name| !plain(name) || name.is_empty()) {
        return Err(Failure::BadInput(format!(
            "--tls-peer \"{name}\": neither a DNS name nor an IP address"
        )));
    }
    let token = RunToken::random().map_err(|error| {
        Failure::Dependency(format!("cannot draw a run token from /dev/urandom: {error}"))
    })?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => label(&format!("nashflock-{}", scenario.name)),
    };
    if name != label(&name) || name.is_empty() {
        return Err(Failure::BadInput(format!(
            "--name \"{name}\": 1 to {NAME_MAX} small letters, digits and hyphens, no hyphen at an end"
        )));
    }
    let quantity = |text: &str| {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let units = ["", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"];
        !digits.is_empty()
            && digits.chars().all(|c| c.is_ascii_digit())
            && units.contains(&&text[digits.len()..])
    };
    if !quantity(&args.memory) {
        return Err(Failure::BadInput(format!("--memory \"{}\": write as 2Gi", args.memory)));
    }
    let job = Run { args, scenario: &scenario, text, name, token };
    print(&format!("{:#}", job.manifests()))
}

/// A pod is named after its job, with an index and five letters, and a host name has 63 characters.
const NAME_MAX: usize = 50;

/// Whether Kubernetes may have a secret of this name (a DNS subdomain).
fn is_object_name(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253
        && text.starts_with(edge)
        && text.ends_with(edge)
        && text.chars().all(|c| edge(c) || "-.".contains(c))
}

/// The nearest name that Kubernetes takes.
fn label(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = text.chars().map(plain).take(NAME_MAX).collect();
    text.trim_matches('-').to_owned()
}

struct Run<'a> {
    args: &'a KubernetesArgs,
    scenario: &'a Scenario,
    text: String,
    name: String,
    token: RunToken,
}

impl Run<'_> {
    fn tasks(&self) -> u32 {
        self.args.tasks.unwrap_or(self.scenario.nodes.count)
    }

    /// One list, for `kubectl apply -f -`.
    fn manifests(&self) -> Value {
        let mut items = vec![
            self.item("v1", "ConfigMap", json!({"data": {"scenario.toml": self.text}})),
            self.item("v1", "Service", self.service()),
            self.item("networking.k8s.io/v1", "NetworkPolicy", self.network_policy()),
            self.item("batch/v1", "Job", self.job()),
        ];
        if self.args.token_secret.is_none() {
            let token = json!({"stringData": {TOKEN: self.token.reveal()}});
            items.push(self.item("v1", "Secret", token));
        }
        if self.tasks() > 1 {
            // A job has no scale: a budget of its pods must be a count of those that stay.
            let spec = json!({"minAvailable": self.tasks() - 1, "selector": self.selector()});
            items.push(self.item("policy/v1", "PodDisruptionBudget", json!({"spec": spec})));
        }
        json!({"apiVersion": "v1", "kind": "List", "items": items})
    }

    fn item(&self, api_version: &str, kind: &str, mut item: Value) -> Value {
        item["apiVersion"] = json!(api_version);
        item["kind"] = json!(kind);
        item["metadata"] = json!({"name": self.name, "labels": self.labels()});
        item
    }

    fn labels(&self) -> Value {
        json!({"app.kubernetes.io/name": "nashflock", RUN: self.name})
    }

    fn selector(&self) -> Value {
        json!({"matchLabels": {RUN: self.name}})
    }

    /// Headless: it gives each pod a name, also before it is ready.
    fn service(&self) -> Value {
        json!({"spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": {RUN: self.name},
            "ports": self.ports("port"),
        }})
    }

    /// The ports of a pod and of the service, which call their numbers differently.
    fn ports(&self, number: &str) -> Value {
        let mut ports = vec![json!({"name": "grpc", number: kubernetes::PORT})];
        ports.extend(self.args.metrics.map(|at| json!({"name": METRICS, number: at.port()})));
        json!(ports)
    }

    /// Only the pods of the run reach each other; its figures may be read by pods of one namespace.
    fn network_policy(&self) -> Value {
        let mut ingress = vec![json!({"from": [{"podSelector": self.selector()}]})];
        if self.args.metrics.is_some() {
            let from = match &self.args.metrics_from {
                None => json!({"podSelector": {}}),
                // Kubernetes gives every namespace this label.
                Some(of) => json!({"namespaceSelector": {
                    "matchLabels": {"kubernetes.io/metadata.name": of},
                }}),
            };
            ingress.push(json!({"from": [from], "ports": [{"port": METRICS}]}));
        }
        json!({"spec": {
            "podSelector": self.selector(),
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        }})
    }

    /// Of a pod. The annotations are those that the usual configurations of Prometheus look for.
    fn pod_metadata(&self) -> Value {
        let mut metadata = json!({"labels": self.labels()});
        if let Some(at) = self.args.metrics {
            metadata["annotations"] = json!({
                "prometheus.io/scrape": "true",
                "prometheus.io/port": at.port().to_string(),
                "prometheus.io/path": "/metrics",
            });
        }
        metadata
    }

    fn job(&self) -> Value {
        let tasks = self.tasks();
        json!({"spec": {
            "completionMode": "Indexed",
            "completions": tasks,
            "parallelism": tasks,
            // The run is over when its coordinator is.
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            // A worker that died is replaced and joins; others go on meanwhile.
            "backoffLimitPerIndex": 3,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": self.pod_metadata(),
                "spec": {
                    // With the job's name and the index it makes the name of a pod's host.
                    "subdomain": self.name,
                    "restartPolicy": "Never",
                    // More than a worker takes to hand over and to drain.
                    "terminationGracePeriodSeconds": 30,
                    "automountServiceAccountToken": false,
                    "securityContext": {
                        "runAsNonRoot": true,
                        "runAsUser": 65_532,
                        "runAsGroup": 65_532,
                        "fsGroup": 65_532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [self.container()],
                    "volumes": self.volumes(),
                },
            },
        }})
    }

    fn container(&self) -> Value {
        let mut command = vec!["run".to_owned(), SCENARIO.to_owned()];
        command.extend(self.args.sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
        command.extend(["--nodes", "kubernetes"].map(str::to_owned));
        command.extend(self.privacy().into_iter().flat_map(|set| ["--set".to_owned(), set]));
        let metrics = self.args.metrics.map(|at| ["--metrics".to_owned(), at.to_string()]);
        command.extend(metrics.into_iter().flatten());
        let port = kubernetes::PORT;
        let coordinator = format!("{0}-0.{0}:{port}", self.name);
        let of_pod = json!({"fieldRef": {"fieldPath": "status.podIP"}});
        let token_secret = self.args.token_secret.as_ref().unwrap_or(&self.name);
        let token = json!({"secretKeyRef": {"name": token_secret, "key": TOKEN}});
        let mut mounts = vec![
            json!({
                "name": "scenario",
                "mountPath": SCENARIO,
                "subPath": "scenario.toml",
                "readOnly": true,
            }),
            json!({"name": "runs", "mountPath": "/runs"}),
        ];
        // A probe shows no certificate: behind TLS it sees no more than that somebody listens.
        let mut probe = json!({"grpc": {"port": port}, "periodSeconds": 2, "failureThreshold": 2});
        if self.args.tls_secret.is_some() {
            mounts.push(json!({"name": "tls", "mountPath": TLS, "readOnly": true}));
            probe = json!({"tcpSocket": {"port": port}, "periodSeconds": 5, "failureThreshold": 2});
        }
        let threads = self.scenario.nodes.threads.to_string();
        json!({
            "name": "nashflock",
            "image": self.args.image,
            "args": command,
            // Results go to runs/ there.
            "workingDir": "/",
            "env": [
                {"name": kubernetes::TASKS, "value": self.tasks().to_string()},
                {"name": kubernetes::COORDINATOR, "value": coordinator},
                {"name": kubernetes::POD_IP, "valueFrom": of_pod},
                {"name": "NASHFLOCK_RUN_TOKEN", "valueFrom": token},
            ],
            "ports": self.ports("containerPort"),
            // No liveness probe: the coordinator serves nobody while it calibrates and while it plays
            // the controls, and a worker whose coordinator is gone ends by itself.
            "readinessProbe": probe,
            "resources": {
                "requests": {"cpu": threads, "memory": self.args.memory},
                "limits": {"memory": self.args.memory},
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": mounts,
        })
    }

    /// The `--set` texts that say what the pods' connections are: in plain text, or behind TLS with the files of
    /// the secret.
    fn privacy(&self) -> Vec<String> {
        if self.args.tls_secret.is_none() {
            return vec!["nodes.insecure_non_loopback=true".to_owned()];
        }
        let files = TLS_KEYS.iter().map(|(key, file)| format!("nodes.tls.{key}=\"{TLS}/{file}\""));
        files.chain([format!("nodes.tls.peers={}", json!(self.args.tls_peers))]).collect()
    }

    fn volumes(&self) -> Value {
        let runs = match &self.args.claim {
            Some(claim) => json!({"name": "runs", "persistentVolumeClaim": {"claimName": claim}}),
            None => json!({"name": "runs", "emptyDir": {}}),
        };
        let mut volumes = vec![json!({"name": "scenario", "configMap": {"name": self.name}}), runs];
        if let Some(secret) = &self.args.tls_secret {
            let items: Vec<Value> =
                TLS_KEYS.iter().map(|(_, file)| json!({"key": file, "path": file})).collect();
            // For the group of the pod alone: 0440.
            let secret = json!({"secretName": secret, "items": items, "defaultMode": 0o440});
            volumes.push(json!({"name": "tls", "secret": secret}));
        }
        json!(volumes)
    }
}
