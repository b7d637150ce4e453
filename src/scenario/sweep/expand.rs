//! A sweep to its runs: the scenario of each, its seed and its name.

use serde::Deserialize as _;
use toml::{Table, Value};

use super::check::is_same;
use super::{Points, Sweep};
use crate::scenario::file::Scenario;
use crate::scenario::shape::takes_whole_numbers;
use crate::scenario::{resolved, set};

/// A scenario with its sweep, from which each run is made when it is needed.
#[derive(Clone, Debug)]
pub struct Experiment {
    base: Table,
    sweep: Sweep,
    points: Points,
    seed: u64,
}

/// One run of a sweep.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// `point` times the seeds of a point, plus `replicate`.
    pub run: u64,
    /// Which point, from 0.
    pub point: u64,
    /// Which of its runs, from 0.
    pub replicate: u32,
    /// What is set at this point, in the order of the axes.
    pub parameters: Vec<Value>,
    /// What is played; its seed is the run's own.
    pub scenario: Scenario,
    /// First 32 hex digits of the BLAKE3 of the resolved scenario.
    pub id: String,
}

impl Experiment {
    /// Of a scenario that was loaded, so that its sweep was checked. Without `[sweep]` it is one point.
    ///
    /// # Panics
    /// When the scenario was made by hand and has no TOML form.
    #[must_use]
    pub fn new(scenario: &Scenario) -> Self {
        let mut base = scenario.clone();
        let sweep = base.sweep.take().unwrap_or_default();
        let base = Table::try_from(&base).expect("a scenario within its ranges has a TOML form");
        let whole: Vec<bool> =
            sweep.axis.iter().map(|axis| takes_whole_numbers(&axis.key)).collect();
        let points = Points::new(&sweep, &whole, scenario.seed);
        Self { base, sweep, points, seed: scenario.seed }
    }

    /// The section.
    #[must_use]
    pub fn sweep(&self) -> &Sweep {
        &self.sweep
    }

    /// Where its runs lie.
    #[must_use]
    pub fn points(&self) -> &Points {
        &self.points
    }

    /// Runs in all.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.points.count().saturating_mul(u64::from(self.sweep.seeds))
    }

    /// The seed of the scenario.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The points, to add those that an optimiser asks for.
    pub fn points_mut(&mut self) -> &mut Points {
        &mut self.points
    }

    /// The keys that are varied, in the order of the axes.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.sweep.axis.iter().map(|axis| axis.key.clone()).collect()
    }

    /// The axes that the baseline fixes, by their place, and at which of their values.
    #[must_use]
    pub fn baseline(&self) -> Vec<(usize, Value)> {
        let split = |text: &String| set::split(text).ok();
        let of = |(key, value): (String, Value)| {
            let at = self.sweep.axis.iter().position(|axis| axis.key == key)?;
            let is_value = |of: &&Value| is_same(&key, of, &value);
            Some((at, self.sweep.axis[at].values.iter().find(is_value)?.clone()))
        };
        self.sweep.baseline.iter().filter_map(split).filter_map(of).collect()
    }

    /// The resolved scenario with the values of a point, as a table that is not read yet.
    pub(super) fn table_at(&self, parameters: &[Value]) -> Result<Table, (String, String)> {
        let mut table = self.base.clone();
        for (axis, value) in self.sweep.axis.iter().zip(parameters) {
            set::apply(&mut table, &axis.key, value.clone())?;
        }
        Ok(table)
    }

    /// A run by its number.
    ///
    /// # Panics
    /// When there is no such run. What points make of the scenario was checked when it was loaded.
    #[must_use]
    pub fn run(&self, run: u64) -> PlannedRun {
        let point = run / u64::from(self.sweep.seeds);
        self.run_at(run, self.points.at(point))
    }

    /// A run by its number, at a point that is known from elsewhere.
    ///
    /// # Panics
    /// As [`Self::run`].
    #[must_use]
    pub fn run_at(&self, run: u64, parameters: Vec<Value>) -> PlannedRun {
        assert!(run < self.runs(), "there are {} runs", self.runs());
        let seeds = u64::from(self.sweep.seeds);
        let (point, replicate) = (run / seeds, run % seeds);
        let table = self.table_at(&parameters).expect("every point was checked");
        let mut scenario = Scenario::deserialize(table).expect("every point was checked");
        scenario.seed = self.seed_of(&scenario, replicate);
        let id = blake3::hash(resolved(&scenario).as_bytes()).to_hex()[..32].to_owned();
        let replicate = u32::try_from(replicate).expect("below the number of seeds");
        PlannedRun { run, point, replicate, parameters, scenario, id }
    }

    /// From the scenario's seed, the resolved values of the varied keys in the order of the keys, and the number of the
    /// repetition. Nothing else enters, so a further value on an axis moves no seed.
    fn seed_of(&self, scenario: &Scenario, replicate: u64) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("nashflock sweep seed, version 1");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&replicate.to_le_bytes());
        if !self.sweep.common_random_numbers {
            let resolved =
                Table::try_from(scenario).expect("a scenario within its ranges has a TOML form");
            let mut keys = self.keys();
            keys.sort();
            for key in keys {
                let value = value_at(&resolved, &key).map(Value::to_string).unwrap_or_default();
                for text in [key, value] {
                    hasher.update(&(text.len() as u64).to_le_bytes());
                    hasher.update(text.as_bytes());
                }
            }
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        // TOML has no larger whole numbers.
        u64::from_le_bytes(bytes) >> 1
    }
}

fn value_at<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => value_at(table.get(section)?.as_table()?, rest),
    }
}
