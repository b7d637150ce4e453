//! Conflicts of `[load.generation]`.

use super::Found;
use crate::scenario::file::{Admission, Lengths, Scenario, Source};

pub(super) fn find(scenario: &Scenario, found: &mut Found<'_>) {
    let load = &scenario.load;
    let generation = &load.generation;
    if generation.is_off() {
        return;
    }
    const LENGTHS: &str = "load.generation.lengths";
    let is_checkpoint = matches!(scenario.source, Source::Checkpoint { .. });
    found.unless(is_checkpoint, &[LENGTHS, "source.kind"], || {
        let message = "`load.generation` has answers decoded but `source.kind` is \"synthetic\"";
        (message.into(), "name a checkpoint: random draws continue no text".into())
    });
    let holds = generation.lengths != Lengths::Trace || load.trace.is_some();
    found.unless(holds, &[LENGTHS, "load.trace"], || {
        let message = "`load.generation.lengths` is \"trace\" but `load.trace` is missing";
        let help = "write arrival = \"trace\" and `trace = …` under [load]: a CSV file with columns \
                    ContextTokens and GeneratedTokens";
        (message.into(), help.into())
    });
    let (room, running) = (generation.step_tokens_max, generation.running_max);
    let keys = ["load.generation.running_max", "load.generation.step_tokens_max", LENGTHS];
    found.unless(running <= room, &keys, || {
        let message = format!(
            "`load.generation.running_max` is {running} but a step takes {room} tokens: each running \
             request needs one"
        );
        (message, "write fewer running requests, or more step_tokens_max".into())
    });
    found.unless(load.admission == Admission::All, &["load.admission", LENGTHS], || {
        let message = "`load.admission` sheds requests but `load.generation` serves all";
        (message.into(), "write admission = \"all\", or take the generation out".into())
    });
}
