//! The manifests of `launch kubernetes`, held against the API's own types and against each other.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::binary::{Folder, SYNTHETIC};

fn rendered(folder: &Folder, more: &[&str]) -> Vec<Value> {
    let args = [&["launch", "kubernetes", "scenario.toml"], more].concat();
    let ended = folder.nashflock(&args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let list = ended.json();
    assert_eq!((&list["apiVersion"], &list["kind"]), (&"v1".into(), &"List".into()));
    list["items"].as_array().expect("a list").clone()
}

/// Reads an object as what it says that it is. A key that the API does not know, or that stands at the
/// wrong place, is not written again.
fn typed<T: DeserializeOwned + Serialize>(item: &Value) -> T {
    let typed: T = serde_json::from_value(item.clone()).unwrap_or_else(|e| panic!("{e}: {item:#}"));
    assert_eq!(&serde_json::to_value(&typed).expect("it is JSON"), item);
    typed
}

fn of_kind<'a>(items: &'a [Value], kind: &str) -> &'a Value {
    items.iter().find(|item| item["kind"] == kind).expect(kind)
}

#[test]
fn every_object_is_one_of_the_api_and_says_no_more_than_the_api_knows() {
    let folder = Folder::with(SYNTHETIC);
    for more in [
        &["--tasks", "4"][..],
        &["--tasks", "1", "--claim", "results", "--memory", "512Mi"],
        &["--tasks", "3", "--tls-secret", "certificates", "--tls-peer", "run.example"],
        &["--tasks", "3", "--token-secret", "token"],
        &["--tasks", "2", "--metrics", "9464", "--metrics-from", "monitoring"],
    ] {
        let items = rendered(&folder, more);
        for item in &items {
            match item["kind"].as_str().expect("a kind") {
                "ConfigMap" => drop(typed::<ConfigMap>(item)),
                "Secret" => drop(typed::<Secret>(item)),
                "Service" => drop(typed::<Service>(item)),
                "NetworkPolicy" => drop(typed::<NetworkPolicy>(item)),
                "Job" => drop(typed::<Job>(item)),
                "PodDisruptionBudget" => drop(typed::<PodDisruptionBudget>(item)),
                other => panic!("an unexpected {other}"),
            }
        }
        let budget = items.iter().any(|item| item["kind"] == "PodDisruptionBudget");
        assert_eq!(budget, more[1] != "1");
    }
}

/// What no schema says: names and labels that must agree.
#[test]
fn what_names_another_object_names_one_that_is_there() {
    let folder = Folder::with(SYNTHETIC);
    let items = rendered(&folder, &["--tasks", "4", "--name", "trial"]);
    let job: Job = typed(of_kind(&items, "Job"));
    let spec = job.spec.expect("a spec");
    assert_eq!((spec.completions, spec.parallelism), (Some(4), Some(4)));
    assert_eq!(spec.completion_mode.as_deref(), Some("Indexed"));
    let pod = spec.template.spec.expect("a pod");
    let labels = spec.template.metadata.and_then(|metadata| metadata.labels).expect("labels");
    let selects = |selector: &std::collections::BTreeMap<String, String>| {
        !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };

    let service: Service = typed(of_kind(&items, "Service"));
    assert_eq!(pod.subdomain, service.metadata.name);
    let service = service.spec.expect("a spec");
    assert_eq!(service.cluster_ip.as_deref(), Some("None"), "it is headless");
    assert!(service.selector.is_some_and(|selector| selects(&selector)));
    let budget: PodDisruptionBudget = typed(of_kind(&items, "PodDisruptionBudget"));
    let selector = budget.spec.and_then(|spec| spec.selector).and_then(|s| s.match_labels);
    assert!(selector.is_some_and(|selector| selects(&selector)));
    let policy: NetworkPolicy = typed(of_kind(&items, "NetworkPolicy"));
    let selector = policy.spec.and_then(|spec| spec.pod_selector).and_then(|s| s.match_labels);
    assert!(selector.is_some_and(|selector| selects(&selector)));

    let container = &pod.containers[0];
    let env = container.env.clone().expect("an environment");
    let value = |name: &str| {
        env.iter().find(|var| var.name == name).and_then(|var| var.value.clone()).expect(name)
    };
    assert_eq!(value("NASHFLOCK_TASKS"), "4");
    let name = job.metadata.name.expect("a name");
    let port = container.ports.as_ref().expect("ports")[0].container_port;
    // The name of the pod with index 0, as the headless service gives it.
    assert_eq!(value("NASHFLOCK_COORDINATOR"), format!("{name}-0.{name}:{port}"));
    let probe = container.readiness_probe.as_ref().and_then(|probe| probe.grpc.as_ref());
    assert_eq!(probe.map(|probe| probe.port), Some(port));
    let secret: Secret = typed(of_kind(&items, "Secret"));
    let reference = env
        .iter()
        .find_map(|var| var.value_from.as_ref()?.secret_key_ref.as_ref())
        .expect("the token comes from the secret");
    assert_eq!(Some(&reference.name), secret.metadata.name.as_ref());
    let strings = secret.string_data.expect("a token");
    assert!(strings[&reference.key].len() == 32);
    let volumes = pod.volumes.expect("volumes");
    for mount in container.volume_mounts.as_ref().expect("mounts") {
        assert!(volumes.iter().any(|volume| volume.name == mount.name), "{}", mount.name);
    }
    let config: ConfigMap = typed(of_kind(&items, "ConfigMap"));
    assert_eq!(config.data.expect("a file")["scenario.toml"], SYNTHETIC);
    let again = rendered(&folder, &["--tasks", "4", "--name", "trial"]);
    assert_ne!(of_kind(&again, "Secret"), of_kind(&items, "Secret"), "a token is drawn anew");
}

/// Certificates and the token come from secrets that are there already: the manifests hold neither.
#[test]
fn certificates_and_token_may_be_those_of_secrets_that_are_there() {
    let folder = Folder::with(SYNTHETIC);
    let flags =
        ["--tls-secret", "certificates", "--tls-peer", "run.example", "--tls-peer", "10.0.0.7"];
    let items = rendered(&folder, &[&flags[..], &["--token-secret", "token"]].concat());
    assert!(items.iter().all(|item| item["kind"] != "Secret"), "no secret is printed");
    let job: Job = typed(of_kind(&items, "Job"));
    let pod = job.spec.and_then(|spec| spec.template.spec).expect("a pod");
    let container = &pod.containers[0];
    let env = container.env.as_ref().expect("an environment");
    let token = env.iter().find_map(|var| var.value_from.as_ref()?.secret_key_ref.as_ref());
    assert_eq!(
        token.map(|token| (token.name.as_str(), token.key.as_str())),
        Some(("token", "run-token"))
    );

    let volumes = pod.volumes.expect("volumes");
    let mounts = container.volume_mounts.as_ref().expect("mounts");
    let mount =
        mounts.iter().find(|mount| mount.name == "tls").expect("the certificates are mounted");
    assert_eq!(mount.read_only, Some(true));
    let volume = volumes.iter().find(|volume| volume.name == "tls").expect("from a volume");
    let secret = volume.secret.as_ref().expect("of a secret");
    assert_eq!(secret.secret_name.as_deref(), Some("certificates"));
    assert_eq!(secret.default_mode, Some(0o440), "others of the pod's node cannot read the key");
    let args = container.args.as_ref().expect("arguments");
    assert!(!args.iter().any(|arg| arg.contains("insecure")), "{args:?}");
    let files: Vec<&str> = secret.items.iter().flatten().map(|item| item.path.as_str()).collect();
    for (key, file) in [("certificate", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt")] {
        assert!(files.contains(&file), "{files:?}");
        let set = format!("nodes.tls.{key}=\"{}/{file}\"", mount.mount_path);
        assert!(args.contains(&set), "{set}: {args:?}");
    }
    assert!(
        args.contains(&"nodes.tls.peers=[\"run.example\",\"10.0.0.7\"]".to_owned()),
        "{args:?}"
    );
    let probe = container.readiness_probe.as_ref().expect("a probe");
    assert!(probe.grpc.is_none() && probe.tcp_socket.is_some(), "a probe has no certificate");

    for bad in [
        &["--tls-secret", "certificates"][..],
        &["--tls-peer", "run.example"],
        &["--tls-secret", "No", "--tls-peer", "run.example"],
        &["--tls-secret", "certificates", "--tls-peer", "a b"],
        &["--token-secret", "-token"],
    ] {
        let ended = folder.nashflock(&[&["launch", "kubernetes", "scenario.toml"], bad].concat());
        assert_eq!(ended.code, Some(2), "{bad:?}: {}", ended.stdout);
    }
}

/// The port is one and the same wherever it is named, and nobody else gets further than before.
#[test]
fn every_pod_serves_its_figures_on_a_port_of_its_own_where_that_is_asked_for() {
    let folder = Folder::with(SYNTHETIC);
    let plain = rendered(&folder, &[]);
    assert!(!plain.iter().any(|item| item.to_string().contains("metrics")), "{plain:?}");
    let own: Value = json!([{"podSelector": {}}]);
    let of =
        json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "watch"}}}]);
    for (flags, address, from) in [
        (&["--metrics", "9464"][..], "0.0.0.0:9464", &own),
        (&["--metrics", "[::]:9464", "--metrics-from", "watch"], "[::]:9464", &of),
    ] {
        let items = rendered(&folder, flags);
        let pod = &of_kind(&items, "Job")["spec"]["template"];
        let annotations = &pod["metadata"]["annotations"];
        assert_eq!(
            *annotations,
            json!({
                "prometheus.io/scrape": "true",
                "prometheus.io/port": "9464",
                "prometheus.io/path": "/metrics",
            })
        );
        let container = &pod["spec"]["containers"][0];
        let args = container["args"].as_array().expect("arguments");
        let at = args.iter().position(|arg| arg == "--metrics").expect("the flag");
        assert_eq!(args[at + 1], address);
        let ports = |of: &Value, number: &str| {
            let named = |port: &Value| (port["name"] == "metrics").then(|| port[number].clone());
            let ports: Vec<Value> =
                of.as_array().expect("ports").iter().filter_map(named).collect();
            assert_eq!(ports, [9464], "{of}");
        };
        ports(&container["ports"], "containerPort");
        ports(&of_kind(&items, "Service")["spec"]["ports"], "port");
        let ingress = &of_kind(&items, "NetworkPolicy")["spec"]["ingress"];
        assert_eq!(ingress[0], of_kind(&plain, "NetworkPolicy")["spec"]["ingress"][0]);
        assert_eq!(ingress[1], json!({"from": from, "ports": [{"port": "metrics"}]}));
        assert_eq!(ingress.as_array().map(Vec::len), Some(2));
    }
    for bad in [
        &["--metrics", "0"][..],
        &["--metrics", "5000"],
        &["--metrics", "127.0.0.1:9464"],
        &["--metrics", "here"],
        &["--metrics", "9464", "--metrics-from", "No"],
        &["--metrics-from", "monitoring"],
    ] {
        let ended = folder.nashflock(&[&["launch", "kubernetes", "scenario.toml"], bad].concat());
        assert_eq!(ended.code, Some(2), "{bad:?}: {}", ended.stdout);
        assert!(ended.stderr.contains("--metrics"), "{}", ended.stderr);
    }
}

#[test]
fn names_and_sizes_that_kubernetes_refuses_are_refused_here() {
    let folder = Folder::with(SYNTHETIC);
    for (flag, value) in [
        ("--name", "Trial"),
        ("--name", "trial-"),
        ("--name", ""),
        ("--memory", "lots"),
        ("--memory", "2 Gi"),
        ("--memory", "Gi"),
    ] {
        let ended = folder.nashflock(&["launch", "kubernetes", "scenario.toml", flag, value]);
        assert_eq!(ended.code, Some(2), "{flag} {value}: {}", ended.stdout);
        assert!(ended.stderr.contains(flag), "{}", ended.stderr);
    }
    let long = "x".repeat(51);
    let ended = folder.nashflock(&["launch", "kubernetes", "scenario.toml", "--name", &long]);
    assert_eq!(ended.code, Some(2));
}
