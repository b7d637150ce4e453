//! What was fitted, as keys of `[virtual]` and as text.

use agents::cluster::fit::{Estimate, Fitted, Residual};
use std::fmt::Write as _;
use toml::{Table, Value};

const US: f64 = 1e-3;
const MIB: f64 = (1 << 20) as f64;

/// The file that `run --virtual` and `calibrate` read: `[virtual]`, and in `[control]` what is known to one who has
/// means alone. The comment stands at its head.
#[must_use]
pub fn fitted_toml(fitted: &Fitted, comment: &str) -> String {
    let mut text = String::new();
    for line in comment.lines() {
        let _ = writeln!(text, "# {line}");
    }
    let table = |name: &str, keys: Table| Table::from_iter([(name.to_owned(), Value::Table(keys))]);
    text += &table("virtual", keys(fitted)).to_string();
    text.push('\n');
    text += &table("control", control(fitted)).to_string();
    text
}

fn keys(fitted: &Fitted) -> Table {
    let all = [
        ("node_factors", &fitted.node_factors),
        ("service_factors", &fitted.service_factors),
        ("step_factors", &fitted.step_factors),
        ("coordinator_factors", &fitted.coordinator_factors),
    ];
    let value = |estimate: Estimate| estimate.value;
    let times = (fitted.service.map(value), fitted.ways.map(value), fitted.coordinator.map(value));
    table_of(times, fitted.cores, all.map(|(key, factors)| (key, factors.as_slice())))
}

/// A cluster of which nothing but the mean time of a message and of the coordinator's part of a round is known:
/// nodes with cores of their own and ways that take no time.
fn control(fitted: &Fitted) -> Table {
    let service = [fitted.service_mean_ns, 0.0, 0.0, 0.0];
    let coordinator = [fitted.coordinator_mean_ns, 0.0, 0.0, 0.0];
    let none = ["node_factors", "service_factors", "step_factors", "coordinator_factors"];
    table_of((service, [0.0; 3], coordinator), 0, none.map(|key| (key, &[][..])))
}

/// Every key that says how long something takes, so that none is left as a scenario has it.
fn table_of(
    (service, ways, coordinator): ([f64; 4], [f64; 3], [f64; 4]),
    cores: u32,
    factors: [(&str, &[f64]); 4],
) -> Table {
    let [setup, pair, weight_byte, pass_byte] = service;
    let [latency, message, byte] = ways;
    let [round, token, step, step_token] = coordinator;
    let numbers = [
        ("setup_us", setup * US),
        ("pair_us", pair * US),
        ("weight_mib_us", weight_byte * MIB * US),
        ("pass_mib_us", pass_byte * MIB * US),
        ("latency_us", (latency * US).max(LEAST_LATENCY_US)),
        ("jitter_us", 0.0),
        ("message_us", message * US),
        ("gbit_per_s", (8.0 / byte.max(f64::MIN_POSITIVE)).min(GBIT_PER_S_MAX)),
        ("node_deviation", 0.0),
        ("coordinator_round_us", round * US),
        ("coordinator_token_us", token * US),
        ("coordinator_step_us", step * US),
        ("coordinator_step_token_us", step_token * US),
    ];
    let number = |(key, value): (&str, f64)| (key.to_owned(), value.into());
    let mut keys: Table = numbers.into_iter().map(number).collect();
    keys.insert("topology".into(), "flat".into());
    keys.insert("shared_cores".into(), i64::from(cores).into());
    let varies = factors.iter().any(|(key, list)| *key == "service_factors" && !list.is_empty());
    keys.insert("service".into(), if varies { "empirical" } else { "constant" }.into());
    for (key, list) in factors {
        keys.insert(key.into(), list.iter().copied().map(rounded).collect::<Vec<_>>().into());
    }
    keys
}

/// The least and the most that a scenario takes.
const LEAST_LATENCY_US: f64 = 0.001;
const GBIT_PER_S_MAX: f64 = 1_000_000.0;

/// To six digits: more says nothing.
fn rounded(factor: f64) -> f64 {
    (factor * 1e6).round() / 1e6
}

/// Parameters with their errors, and residuals.
#[must_use]
pub fn fitted_text(fitted: &Fitted) -> String {
    let mut text = format!(
        "{} rounds\n\nparameter                      value   standard error\n",
        fitted.rounds
    );
    let [setup, pair, weight_byte, pass_byte] = fitted.service;
    let [latency, message, byte] = fitted.ways;
    let [round, token, step, step_token] = fitted.coordinator;
    for (name, Estimate { value, error }, unit, text_unit) in [
        ("node: message", setup, US, "µs"),
        ("node: pair", pair, US, "µs"),
        ("node: MiB of weights", weight_byte, US * MIB, "µs"),
        ("node: MiB each time read", pass_byte, US * MIB, "µs"),
        ("way: latency", latency, US, "µs"),
        ("way: message", message, US, "µs"),
        ("way: KiB", byte, US * 1024.0, "µs"),
        ("coordinator: round", round, US, "µs"),
        ("coordinator: token", token, US, "µs"),
        ("coordinator: step", step, US, "µs"),
        ("coordinator: step's token", step_token, US, "µs"),
    ] {
        let error =
            error.map_or("not told apart".to_owned(), |error| format!("{:.4}", error * unit));
        let _ = writeln!(text, "{name:<26} {:>12.4} {error:>16} {text_unit}", value * unit);
    }
    let factors: Vec<String> = fitted.node_factors.iter().map(|f| format!("{f:.3}")).collect();
    let _ = writeln!(text, "node factors               {}", factors.join(" "));
    let cores = match fitted.cores {
        0 => "each node has its own".to_owned(),
        cores => format!("{cores}, which all nodes share"),
    };
    let _ = writeln!(text, "cores                      {cores}");
    text += "\nof                         mean, µs   residual, µs    bias, µs\n";
    let names = ["services", "last answers of rounds", "coordinator's times"];
    for (name, Residual { mean_ns, rms_ns, bias_ns }) in names.iter().zip(fitted.residuals) {
        let [mean, rms, bias] = [mean_ns, rms_ns, bias_ns].map(|ns| ns * US);
        let _ = writeln!(text, "{name:<24} {mean:>10.1} {rms:>14.1} {bias:>11.1}");
    }
    text
}
