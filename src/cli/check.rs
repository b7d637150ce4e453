//! `nashflock check` and `nashflock schema`.

use super::{Failure, Outcome, print, print_json};
use crate::scenario::{self, Known, Scenario};
use agents::game::Registries;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct CheckArgs {
    /// Scenario file
    scenario: PathBuf,
    /// Override a key, as `game.top_k=4`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print one JSON object: `ok` and `problems`
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: &CheckArgs, registries: &Registries) -> Outcome {
    let scenario = load(&args.scenario, &args.sets, registries, args.json)?;
    if args.json {
        return print_json(&json!({"ok": true, "problems": []}));
    }
    print(&format!("{}: scenario `{}` is good", args.scenario.display(), scenario.name))
}

pub(super) fn schema() -> Outcome {
    print_json(&scenario::schema())
}

/// Loads a scenario; with `json`, problems go to standard output as data too.
pub(super) fn load(
    path: &Path,
    sets: &[String],
    registries: &Registries,
    json: bool,
) -> Result<Scenario, Failure> {
    let routers = registries.routers.names().map(str::to_owned).collect();
    let Registries { costs, allocators, motions, migrations, .. } = registries;
    let known = Known { routers, costs, allocators, motions, migrations };
    scenario::load(path, sets, &known).map_err(|problems| {
        if json {
            let printed = print_json(&json!({"ok": false, "problems": problems.to_json()}));
            if let Err(failure) = printed {
                return failure;
            }
        }
        Failure::BadInput(problems.render())
    })
}
