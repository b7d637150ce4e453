//! Conflicts of the [precision] section.

use super::{Found, one_of};
use crate::scenario::budget::Budget;
use crate::scenario::file::{PrecisionUnit, Scenario, Sensitivity, Source};
use crate::scenario::read::Known;
use agents::precision::Budget as Limit;

pub(super) fn find(scenario: &Scenario, known: &Known<'_>, found: &mut Found<'_>) {
    let precision = &scenario.precision;
    allocator(scenario, known, found);
    pruning(scenario, found);
    reallocation(scenario, found);
    sensitivity(scenario, found);
    if let (Source::Checkpoint { text, .. }, Some(calibration)) =
        (&scenario.source, &precision.calibration_text)
    {
        found.unless(!text.contains(calibration), &["precision.calibration_text"], || {
            let message = "`precision.calibration_text` is a text that is scored too".to_owned();
            (
                message,
                "calibrate on another text: widths fitted to the scored one flatter it".into(),
            )
        });
    }
    let bits = match precision.budget {
        Budget::Limited(Limit::BitsPerWeight(bits)) => bits,
        Budget::Limited(Limit::SavedPercent(percent)) => 32.0 * (1.0 - percent / 100.0),
        // What bytes mean depends on the model; nothing is fitted into the others.
        Budget::Limited(Limit::Bytes(_)) | Budget::Full | Budget::Stored => f64::INFINITY,
    };
    let has_stored = matches!(scenario.source, Source::Checkpoint { .. });
    found.unless(has_stored || precision.budget != Budget::Stored, &["precision.budget"], || {
        let message = "`precision.budget` is stored but a synthetic source stores no experts";
        (message.into(), "name a checkpoint that `nashflock quantize` wrote, or a size".into())
    });
    let width = precision.widths.iter().copied().min().unwrap_or_default();
    // Pruned experts take nothing, and no more of a layer than their share.
    let least = f64::from(width) * (1.0 - precision.prune);
    found.unless(bits >= least, &["precision.budget", "precision.widths"], || {
        let budget = precision.budget;
        let message = format!(
            "`precision.budget` {budget} is {bits:.2} bits a weight, below the smallest of `precision.widths`, {width}"
        );
        (message, format!("write a budget above {width}bpw, which holds the scales too, or a smaller width"))
    });
    for (index, width) in precision.widths.iter().enumerate() {
        let key = format!("precision.widths[{index}]");
        found.unless(!precision.widths[..index].contains(width), &[&key], || {
            (format!("`precision.widths` lists {width} twice"), "list each width once".into())
        });
    }
}

fn allocator(scenario: &Scenario, known: &Known<'_>, found: &mut Found<'_>) {
    let precision = &scenario.precision;
    let name = &precision.allocator;
    let key = "precision.allocator";
    let is_known = known.allocators.build(name).is_ok();
    found.unless(is_known, &[key], || {
        let names = known.allocators.names().collect();
        (format!("there is no allocator \"{name}\""), one_of(name, names))
    });
    if let (true, Some(bits)) = (is_known, name.strip_prefix("uniform:")) {
        let allowed = precision.widths.iter().any(|width| width.to_string() == bits);
        found.unless(allowed, &[key, "precision.widths"], || {
            let widths = &precision.widths;
            let message =
                format!("`precision.allocator` is \"{name}\" but `precision.widths` is {widths:?}");
            (message, "name one of the widths, or list that width too".into())
        });
    }
    let allocates = matches!(precision.budget, Budget::Limited(_)) || name == "exact";
    found.unless(allocates, &[key, "precision.budget"], || {
        let message = format!(
            "`precision.allocator` is \"{name}\" but `precision.budget` is {}: nothing is allocated",
            precision.budget
        );
        (message, "write a budget such as 4bpw, or take the allocator out".into())
    });
}

fn reallocation(scenario: &Scenario, found: &mut Found<'_>) {
    let precision = &scenario.precision;
    let steps = precision.reallocate.every_steps;
    if precision.reallocate.is_off() {
        return;
    }
    let key = "precision.reallocate.every_steps";
    let is_limited = matches!(precision.budget, Budget::Limited(_));
    found.unless(is_limited, &[key, "precision.budget"], || {
        let budget = precision.budget;
        let message = format!(
            "`{key}` is {steps} but `precision.budget` is {budget}: there are no widths to choose"
        );
        (message, "write a budget such as 4bpw, or every_steps = 0".into())
    });
    let widths = precision.widths.len();
    found.unless(widths > 1, &[key, "precision.widths"], || {
        let message = format!("`{key}` is {steps} but `precision.widths` has one width alone");
        (message, "list two widths or more, or write every_steps = 0".into())
    });
    if matches!(scenario.source, Source::Checkpoint { .. }) {
        let given = precision.calibration_text.is_some();
        found.unless(given, &["precision.calibration_text", key], || {
            let message = format!(
                "`{key}` is {steps} but `precision.calibration_text` is missing: there are no loads to \
                 hold those of the run against"
            );
            (message, "add `calibration_text = …` under [precision], or write every_steps = 0".into())
        });
    }
}

fn sensitivity(scenario: &Scenario, found: &mut Found<'_>) {
    let precision = &scenario.precision;
    let (key, unit) = ("precision.sensitivity", "precision.unit");
    if precision.unit == PrecisionUnit::Matrix {
        let by_loss = precision.sensitivity == Sensitivity::Loss;
        found.unless(by_loss, &[unit, key], || {
            let message =
                "`precision.unit` is \"matrix\" but `precision.sensitivity` is \"output\"";
            (message.into(), "write sensitivity = \"loss\", or unit = \"expert\"".into())
        });
        let stay = precision.reallocate.is_off();
        found.unless(stay, &[unit, "precision.reallocate.every_steps"], || {
            let message = "`precision.unit` is \"matrix\" but re-allocation changes whole experts";
            (message.into(), "write unit = \"expert\", or reallocate.every_steps = 0".into())
        });
    }
    if precision.sensitivity == Sensitivity::Output {
        return;
    }
    let has_loss = matches!(scenario.source, Source::Checkpoint { .. });
    found.unless(has_loss, &[key, "source.kind"], || {
        let message = "`precision.sensitivity` is \"loss\" but a synthetic source predicts nothing";
        (message.into(), "name a checkpoint, or write sensitivity = \"output\"".into())
    });
    let given = !has_loss || precision.calibration_text.is_some();
    found.unless(given, &["precision.calibration_text", key], || {
        let message =
            "`precision.sensitivity` is \"loss\" but `precision.calibration_text` is missing";
        (message.into(), "add `calibration_text = …` under [precision]".into())
    });
    let is_limited = matches!(precision.budget, Budget::Limited(_));
    found.unless(is_limited, &[key, "precision.budget"], || {
        let budget = precision.budget;
        let message = format!(
            "`precision.sensitivity` is \"loss\" but `precision.budget` is {budget}: nothing is allocated"
        );
        (message, "write a budget such as 4bpw, or take the sensitivity out".into())
    });
}

fn pruning(scenario: &Scenario, found: &mut Found<'_>) {
    let precision = &scenario.precision;
    let share = precision.prune;
    if share <= 0.0 {
        return;
    }
    let key = "precision.prune";
    if matches!(scenario.source, Source::Checkpoint { .. }) {
        let given = precision.calibration_text.is_some();
        found.unless(given, &["precision.calibration_text", key], || {
            let message = format!(
                "`precision.prune` is {share} but `precision.calibration_text` is missing: it shows \
                 which experts matter"
            );
            (message, "add `calibration_text = …` under [precision], or prune nothing".into())
        });
    }
    let game = &scenario.game;
    let one_time = game.cost != "latency" || game.service_ms.len() < 2;
    found.unless(one_time, &["game.service_ms", key, "game.cost"], || {
        let times = game.service_ms.len();
        let message = format!(
            "`game.service_ms` lists {times} times but `precision.prune` is {share}: who is pruned \
             is not known yet"
        );
        (message, "write one time for all experts, or prune nothing".into())
    });
    // A checkpoint states its experts when it is loaded.
    let Source::Synthetic { experts, .. } = scenario.source else { return };
    let kept = precision.kept_experts(experts as usize);
    let leaves = format!("`precision.prune` {share} leaves {kept} of {experts} experts a layer");
    // Above all experts is another problem, reported where it stands.
    let top_k = game.top_k.filter(|top_k| *top_k <= experts).unwrap_or(1);
    let keys = ["game.top_k", key, "source.experts"];
    found.unless(top_k as usize <= kept, &keys, || {
        let message = format!("`game.top_k` is {top_k} but {leaves}");
        (message, format!("write a top_k from 1 to {kept}, or prune less"))
    });
    let flock = &scenario.flock;
    let holds = !flock.enabled || flock.neighbours >= experts || (flock.neighbours as usize) < kept;
    found.unless(holds, &["flock.neighbours", key, "source.experts", "flock.enabled"], || {
        let message = format!("`flock.neighbours` is {} but {leaves}", flock.neighbours);
        (message, "write fewer neighbours, prune less, or flock.enabled = false".into())
    });
}
