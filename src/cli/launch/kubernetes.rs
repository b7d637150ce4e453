//! Manifests for Kubernetes: an Indexed Job whose first pod coordinates and whose others are workers.

use super::super::{Failure, Outcome, check, kubernetes, print};
use crate::scenario::Scenario;
use crate::transport::RunToken;
use agents::game::Registries;
use clap::Args;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// Where the scenario is put: beside those of the image, so that its relative paths lead to their models
/// and texts.
const SCENARIO: &str = "/nashflock/scenarios/job.toml";

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
    /// Claim of a volume for the results, which are lost with the pod without one
    #[arg(long, value_name = "CLAIM")]
    claim: Option<String>,
}

pub(super) fn kubernetes(args: &KubernetesArgs, registries: &Registries) -> Outcome {
    let scenario = check::load(&args.scenario, &args.sets, registries, false)?;
    let text = fs::read_to_string(&args.scenario).map_err(|error| {
        Failure::BadInput(format!("cannot read {}: {error}", args.scenario.display()))
    })?;
    if !scenario.nodes.tls.is_off() {
        return Err(Failure::BadInput(
            "launch kubernetes: the pods have no files for `nodes.tls`: take it out; a network policy \
             keeps others from the pods"
                .into(),
        ));
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
            self.item("v1", "Secret", json!({"stringData": {"run-token": self.token.reveal()}})),
            self.item("v1", "Service", self.service()),
            self.item("networking.k8s.io/v1", "NetworkPolicy", self.network_policy()),
            self.item("batch/v1", "Job", self.job()),
        ];
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
            "ports": [{"name": "grpc", "port": kubernetes::PORT}],
        }})
    }

    /// Traffic is plain text: only the pods of the run reach each other.
    fn network_policy(&self) -> Value {
        json!({"spec": {
            "podSelector": self.selector(),
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": self.selector()}]}],
        }})
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
                "metadata": {"labels": self.labels()},
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
        let others = ["--nodes", "kubernetes", "--set", "nodes.insecure_non_loopback=true"];
        command.extend(others.map(str::to_owned));
        let port = kubernetes::PORT;
        let coordinator = format!("{0}-0.{0}:{port}", self.name);
        let of_pod = json!({"fieldRef": {"fieldPath": "status.podIP"}});
        let token = json!({"secretKeyRef": {"name": self.name, "key": "run-token"}});
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
            "ports": [{"name": "grpc", "containerPort": port}],
            // No liveness probe: the coordinator serves nobody while it calibrates and while it plays
            // the controls, and a worker whose coordinator is gone ends by itself.
            "readinessProbe": {"grpc": {"port": port}, "periodSeconds": 2, "failureThreshold": 2},
            "resources": {
                "requests": {"cpu": threads, "memory": self.args.memory},
                "limits": {"memory": self.args.memory},
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {
                    "name": "scenario",
                    "mountPath": SCENARIO,
                    "subPath": "scenario.toml",
                    "readOnly": true,
                },
                {"name": "runs", "mountPath": "/runs"},
            ],
        })
    }

    fn volumes(&self) -> Value {
        let runs = match &self.args.claim {
            Some(claim) => json!({"name": "runs", "persistentVolumeClaim": {"claimName": claim}}),
            None => json!({"name": "runs", "emptyDir": {}}),
        };
        json!([{"name": "scenario", "configMap": {"name": self.name}}, runs])
    }
}
