//! What runs of one process have in common, made once: a trained model as it was read, what its calibration
//! measured, its experts in the widths that were chosen, and the losses of controls that no seed enters.
//!
//! A part is named by the whole resolved scenario but for keys that are known not to enter it, so that a key that
//! is added later separates runs until it is listed here, and never mixes them up. Sizes and times of the files are in
//! the name, too: one that changes while a sweep is played is read again.

use super::materials::files_of;
use crate::measure::clock::unix_ns;
use crate::scenario::Scenario;
use crate::scenario::file::Source;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;
use toml::{Table, Value};

/// Parts that are kept at most, and their bytes: those used least recently go.
const PARTS_MAX: usize = 64;
const BYTES_MAX: u64 = 512 << 20;

/// Keeps what runs have in common, for runs one after the other and at the same time.
#[derive(Debug)]
pub struct Shared {
    held: Mutex<Held>,
    parts_max: usize,
    bytes_max: u64,
}

#[derive(Debug, Default)]
struct Held {
    parts: BTreeMap<Name, Entry>,
    /// Counts uses.
    now: u64,
}

#[derive(Debug)]
struct Entry {
    part: Slot,
    bytes: u64,
    used: u64,
}

type Slot = Arc<OnceCell<Arc<dyn Any + Send + Sync>>>;

/// BLAKE3 of all that a part depends on.
type Name = [u8; 32];

/// What can be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Checkpoint, trunk and texts.
    Model,
    /// What calibration measured of the experts.
    Measured,
    /// Experts in some codes.
    Experts,
    /// Losses of the windows of the text under plain top-k.
    Losses,
}

/// Keys that enter no part: who plays, when, where and to what end.
const NEVER: &[&str] = &[
    "name",
    "seed",
    "flock",
    "nodes",
    "virtual",
    "compute",
    "run",
    "goals",
    "sweep",
    "game.router",
    "game.cost",
    "game.capacity_factor",
    "game.price_per_fair_share",
    "game.degree",
    "game.service_ms",
    "game.window_ms",
    "game.variation",
    "game.price_per_ms",
    "game.social_optimum",
    "game.information",
    "load.arrival",
    "load.variation",
    "load.burst_requests",
    "load.trace",
    "load.rate_per_s",
    "load.requests",
    "load.batch_window_ms",
    "load.deadline_ms",
    "load.admission",
    "load.queue_target_ms",
    "load.queue_interval_ms",
    "load.queue_requests_max",
    "precision.reallocate",
    "precision.budget",
    "precision.allocator",
];

/// Choices among experts and codes: where they enter a part, what they came to is in its name.
const CHOICES: &[&str] = &[
    "precision.sensitivity",
    "precision.unit",
    "precision.prune",
    "precision.prune_by",
    "precision.widths",
];

impl Part {
    /// Further keys that do not enter.
    fn without(self) -> Vec<&'static str> {
        match self {
            Self::Model => [CHOICES, &["game", "load", "precision.group"]].concat(),
            Self::Measured => vec!["source.text"],
            Self::Experts => [
                CHOICES,
                &["source.text", "game", "load"],
                &["precision.calibration_text", "precision.calibration_tokens"],
            ]
            .concat(),
            Self::Losses => {
                [CHOICES, &["precision.calibration_text", "precision.calibration_tokens"]].concat()
            }
        }
    }

    /// Of a scenario; `also` has what is not in it.
    fn name(self, scenario: &Scenario, also: &dyn Debug) -> Name {
        let mut table = Table::try_from(scenario).expect("a scenario within its ranges");
        let without = self.without();
        NEVER.iter().chain(&without).for_each(|key| take_out(&mut table, key));
        let is_read = |key: &str| !NEVER.contains(&key) && !without.contains(&key);
        let mut files = files_of(scenario);
        if let (Source::Checkpoint { text, .. }, false) = (&scenario.source, is_read("source.text"))
        {
            files.retain(|file| !text.contains(file));
        }
        files.retain(|file| Some(file) != scenario.load.trace.as_ref());
        let stamp = |file: &std::path::PathBuf| {
            let metadata = fs::metadata(file).ok()?;
            Some((metadata.len(), metadata.modified().ok().map(unix_ns)))
        };
        let stamps: Vec<_> = files.iter().map(|file| (file, stamp(file))).collect();
        blake3::hash(format!("{self:?}\n{table}\n{stamps:?}\n{also:?}").as_bytes()).into()
    }
}

fn take_out(table: &mut Table, key: &str) {
    match key.split_once('.') {
        None => _ = table.remove(key),
        Some((section, rest)) => {
            if let Some(Value::Table(section)) = table.get_mut(section) {
                take_out(section, rest);
            }
        }
    }
}

/// Something that takes memory.
pub(super) trait Resident: Any + Send + Sync {
    /// About how much, bytes.
    fn bytes(&self) -> u64;
}

impl Resident for Vec<f64> {
    fn bytes(&self) -> u64 {
        size_of_val(self.as_slice()) as u64
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::bounded(PARTS_MAX, BYTES_MAX)
    }
}

impl Shared {
    fn bounded(parts_max: usize, bytes_max: u64) -> Self {
        Self { held: Mutex::default(), parts_max, bytes_max }
    }

    /// What is there by this name, or is made now: runs that want the same at the same time wait for one of them.
    async fn get<T: Resident, E>(
        &self,
        name: Name,
        make: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let slot = self.slot(name);
        let make = async || make().await.map(|made| Arc::new(made) as Arc<dyn Any + Send + Sync>);
        let part = Arc::clone(slot.get_or_try_init(make).await?);
        let part = part.downcast::<T>().expect("parts of one kind are of one type");
        self.bound(name, part.bytes());
        Ok(part)
    }

    fn slot(&self, name: Name) -> Slot {
        let mut held = self.held();
        held.now += 1;
        let used = held.now;
        let entry = held.parts.entry(name);
        let entry = entry.or_insert_with(|| Entry { part: Slot::default(), bytes: 0, used });
        entry.used = used;
        Arc::clone(&entry.part)
    }

    /// Lets parts go, now that one is known to take so many bytes.
    fn bound(&self, name: Name, bytes: u64) {
        let mut held = self.held();
        if bytes > self.bytes_max {
            held.parts.remove(&name);
        } else if let Some(entry) = held.parts.get_mut(&name) {
            entry.bytes = bytes;
        }
        while held.parts.len() > self.parts_max || held.bytes() > self.bytes_max {
            let oldest = held.parts.iter().min_by_key(|(_, entry)| entry.used);
            let Some(oldest) = oldest.map(|(name, _)| *name) else { return };
            held.parts.remove(&oldest);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn bytes(&self) -> u64 {
        self.parts.values().map(|entry| entry.bytes).sum()
    }
}

/// What one run shares with others.
#[derive(Clone, Copy)]
pub(super) struct Sharing<'a> {
    pub(super) scenario: &'a Scenario,
    shared: Option<&'a Shared>,
}

impl<'a> Sharing<'a> {
    /// A run of a synthetic source shares nothing: what it has follows from its seed, and takes no time.
    pub(super) fn of(scenario: &'a Scenario, shared: Option<&'a Shared>) -> Self {
        let is_read = matches!(scenario.source, Source::Checkpoint { .. });
        Self { scenario, shared: shared.filter(|_| is_read) }
    }

    /// A part, made unless another run has made it. `also` is what it depends on beside the scenario.
    ///
    /// # Errors
    /// What making it gives; the next run tries again.
    pub(super) async fn get<T: Resident, E>(
        self,
        part: Part,
        also: &dyn Debug,
        make: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        match self.shared {
            None => make().await.map(Arc::new),
            Some(shared) => shared.get(part.name(self.scenario, also), make).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Name, Part, Shared};
    use crate::scenario::Scenario;
    use std::convert::Infallible;
    use std::fs;
    use std::sync::Arc;

    fn scenario(folder: &std::path::Path, text: &str) -> Scenario {
        let line = |key: &str, name: &str| {
            if !folder.join(name).exists() {
                fs::write(folder.join(name), "so much text").expect("written");
            }
            format!("{key} = {:?}\n", folder.join(name))
        };
        let (read, calibration) = (line("text", "a.txt"), line("calibration_text", "b.txt"));
        let read = read.replace("= ", "= [").replace('\n', "]\n");
        let source = format!("kind = \"checkpoint\"\ncheckpoint = {folder:?}\n{read}");
        let whole = format!(
            "schema_version = 1\nname = \"x\"\n[source]\n{source}[game]\nrouter = \"top_k\"\n[load]\n\
             arrival = \"constant\"\nrate_per_s = 1.0\nrequests = 1\ntokens_per_request = 1\n\
             batch_requests_max = 1\n[precision]\n{calibration}"
        );
        let mut table: toml::Table = whole.parse().expect("TOML");
        let (key, value) = text.split_once('=').unwrap_or(("seed", "0"));
        let value: toml::Table = format!("x = {value}").parse().expect("TOML");
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        let of = if section.is_empty() {
            &mut table
        } else {
            let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
            section.as_table_mut().expect("a section")
        };
        of.insert(key.to_owned(), value["x"].clone());
        table.try_into().expect("a scenario")
    }

    #[test]
    fn a_part_is_named_by_all_that_enters_it_and_by_the_files_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let parts = [Part::Model, Part::Measured, Part::Experts, Part::Losses];
        let names = |text: &str| -> Vec<Name> {
            let scenario = scenario(folder.path(), text);
            parts.iter().map(|part| part.name(&scenario, &())).collect()
        };
        let plain = names("");
        // Which of model, measured, experts and losses a key enters.
        for (text, enters) in [
            ("seed=3", [false; 4]),
            ("game.router=\"equilibrium\"", [false; 4]),
            ("flock.price_step=0.5", [false; 4]),
            ("load.rate_per_s=2.0", [false; 4]),
            ("nodes.count=2", [false; 4]),
            ("precision.budget=\"4bpw\"", [false; 4]),
            ("precision.group=64", [false, true, true, true]),
            ("precision.widths=[2, 4]", [false, true, false, false]),
            ("precision.prune=0.5", [false, true, false, false]),
            ("precision.calibration_tokens=7", [true, true, false, false]),
            ("game.top_k=2", [false, true, false, true]),
            ("game.affinity=\"logit\"", [false, true, false, true]),
            ("load.batch_requests_max=2", [false, true, false, true]),
            ("load.tokens_per_request=2", [false, true, false, true]),
        ] {
            let unlike: Vec<bool> = plain.iter().zip(names(text)).map(|(a, b)| *a != b).collect();
            assert_eq!(unlike, enters, "{text}");
        }
        let scenario = scenario(folder.path(), "");
        let other = parts.map(|part| part.name(&scenario, &1));
        assert!(plain.iter().zip(other).all(|(a, b)| *a != b), "what is named beside enters");
        fs::write(folder.path().join("a.txt"), "longer text").expect("written");
        let unlike: Vec<bool> =
            plain.iter().zip(parts).map(|(a, part)| *a != part.name(&scenario, &())).collect();
        assert_eq!(unlike, [true, false, false, true], "the text that is served has changed");
    }

    async fn get(shared: &Shared, name: &str, values: usize) -> (usize, bool) {
        let mut made = false;
        let make = async || {
            made = true;
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(vec![0.0; values])
        };
        let Ok(part) = shared.get(blake3::hash(name.as_bytes()).into(), make).await;
        (part.len(), made)
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_in_parts_and_bytes_and_the_least_recent_goes() {
        let shared = Shared::bounded(3, 800);
        for name in ["a", "b", "c", "a"] {
            get(&shared, name, 10).await;
        }
        assert_eq!(get(&shared, "d", 10).await, (10, true));
        assert_eq!(get(&shared, "a", 10).await, (10, false), "it was used since");
        assert_eq!(get(&shared, "b", 10).await, (10, true), "a fourth part came");
        assert_eq!(get(&shared, "large", 90).await, (90, true));
        assert!(!get(&shared, "b", 10).await.1, "90 and 10 fill it");
        assert!(get(&shared, "a", 10).await.1);
        assert_eq!(get(&shared, "too large", 101).await, (101, true));
        assert!(get(&shared, "too large", 101).await.1, "it is not kept");
        assert!(!get(&shared, "a", 10).await.1, "nor does it drive others out");
        let held = shared.held();
        assert!(held.parts.len() <= 3 && held.bytes() <= 800);
    }

    #[tokio::test]
    async fn runs_that_want_the_same_at_once_have_it_made_once_and_a_failure_is_not_kept() {
        let shared = Shared::default();
        let (a, b) = tokio::join!(get(&shared, "a", 4), get(&shared, "a", 4));
        assert_eq!((a.0, b.0), (4, 4));
        assert_ne!(a.1, b.1, "one of them made it");
        let name = blake3::hash(b"b").into();
        let failed = shared.get(name, async || Err::<Vec<f64>, _>("no")).await;
        assert_eq!(failed, Err("no"));
        assert_eq!(get(&shared, "b", 4).await, (4, true));
        let again: Result<Arc<Vec<f64>>, &str> = shared.get(name, async || Err("no")).await;
        assert_eq!(again.map(|part| part.len()), Ok(4));
    }
}
