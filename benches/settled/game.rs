//! Equilibria, and the seven nearest.

use super::{Failure, nashflock, number};
use serde_json::Value;

const ROUTERS: [(&str, &str); 5] = [
    ("equilibrium", "exact, by prices and shortest paths"),
    ("best_response", "the prototype's rule, with a true best response"),
    ("flock_near", "a flock: local prices, seven neighbours an expert"),
    ("hash", "a draw, as the prototype's best response was"),
    ("top_k", "the control: no game"),
];

pub(crate) fn equilibrium() -> Result<(), Failure> {
    println!(
        "\n## Equilibrium\n\n\
         The claims: \"Nash equilibrium by 100 rounds of best response, convergence proven\", where the response was drawn at\n\
         random and each player had one strategy, and \"local groups of 7, as starlings keep\". `nashflock run\n\
         scenarios/claims.toml --set game.router=NAME`: batches of 8 × 32 tokens, experts at 90.6 % saved. ε is the most that a\n\
         token gains by another choice, the gap bounds the distance from the optimum, both by code that shares nothing with\n\
         routers and over the worst game; a certified equilibrium has ε = 0 up to rounding. Iterations are a game's mean.\n"
    );
    println!(
        "| router | what it is | iterations | ε | gap | max over mean | score loss | loss, nats |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (router, what) in ROUTERS {
        let folder = tempfile::tempdir()?;
        let out = folder.path().join("run");
        let out = out.to_str().ok_or("a folder's path is UTF-8")?;
        let set = format!("game.router={router}");
        let of = nashflock(&["run", "scenarios/claims.toml", "--set", &set, "--out", out])?;
        let rounds = number(&of, "convergence.rounds")?;
        println!(
            "| `{router}` | {what} | {:.1} | {} | {} | {:.3} | {:.2} % | {:.4} |",
            number(&of, "convergence.iterations")? / rounds,
            small(&of, "convergence.epsilon_nash"),
            small(&of, "convergence.relative_gap"),
            number(&of, "convergence.max_over_mean")?,
            100.0 * number(&of, "convergence.score_loss")?,
            number(&of, "quality.loss")?,
        );
    }
    println!(
        "\nA gap that is infinite (a load over its quota) is written as ∞. Under a quota every full assignment is an\n\
         equilibrium, far from the optimum or not, which is why ε is read together with the gap. Of 8 experts a group of\n\
         seven is nearly all; 64 and 4096 experts are in [flock.md](flock.md)."
    );
    Ok(())
}

fn small(of: &Value, path: &str) -> String {
    number(of, path).map_or("∞".to_owned(), |value| format!("{value:.1e}"))
}
