//! PyTorch in a process that lives as long as the benchmark and works only when asked.

use super::Case;
use crate::shared::Failure;
use agents::game::{Certificate, Choices, certify};
use agents::ids::ExpertId;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

/// After a request its threads wait for the next one at full speed for a while.
const SETTLE: Duration = Duration::from_millis(30);

pub(crate) struct Torch {
    pub version: String,
    folder: TempDir,
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Torch {
    /// `None`, with a word on stderr, where Python or PyTorch is missing.
    pub(crate) fn start(python: &str) -> Result<Option<Self>, Failure> {
        let probe = Command::new(python).args(["-c", "import torch"]).output();
        match probe {
            Err(error) => eprintln!("skipped: PyTorch: {python} does not start: {error}"),
            Ok(output) if !output.status.success() => {
                eprintln!("skipped: PyTorch: {python} cannot import torch");
            }
            Ok(_) => return Self::spawn(python).map(Some),
        }
        Ok(None)
    }

    fn spawn(python: &str) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let mut child = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/torch_routers.py"))
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let requests = child.stdin.take();
        let mut answers = BufReader::new(child.stdout.take().ok_or("its output is piped")?);
        let version = line(&mut answers)?;
        Ok(Self { version, folder, child, requests, answers })
    }

    /// Makes the scores of a case known under a name without spaces.
    pub(crate) fn give(&self, file: &str, case: &Case) -> Result<(), Failure> {
        let bytes: Vec<u8> = case.values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        Ok(fs::write(self.folder.path().join(file), bytes)?)
    }

    /// The times in ms of `repeats` plays after `warm_up` others.
    pub(crate) fn times_ms(
        &mut self,
        router: &str,
        file: &str,
        case: &Case,
        (warm_up, repeats): (usize, usize),
    ) -> Result<Vec<f64>, Failure> {
        let (experts, top_k) = (case.experts, case.top_k);
        let tokens = case.values.len() / experts;
        let requests = self.requests.as_mut().ok_or("open until it is dropped")?;
        writeln!(requests, "{router} {file} {tokens} {experts} {top_k} {warm_up} {repeats}")?;
        requests.flush()?;
        let answer = line(&mut self.answers)?;
        sleep(SETTLE);
        Ok(answer.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    }

    /// What the last play is worth, by the same code as for own routers.
    pub(crate) fn certificate(&self, case: &Case) -> Result<Certificate, Failure> {
        let choices = fs::read(self.folder.path().join("choices"))?;
        let mut choices: Vec<ExpertId> =
            bytes_of(&choices).map(|word| ExpertId(u32::from_ne_bytes(word))).collect();
        choices.truncate(case.values.len() / case.experts * case.top_k);
        choices.chunks_exact_mut(case.top_k).for_each(<[ExpertId]>::sort_unstable);
        let prices = fs::read(self.folder.path().join("prices"))?;
        let mut prices: Vec<f64> =
            bytes_of(&prices).map(|word| f64::from(f32::from_ne_bytes(word))).collect();
        prices.truncate(case.experts);
        Ok(certify(&case.game(), &Choices::uniform(choices, case.top_k), &prices))
    }
}

impl Drop for Torch {
    /// It ends with its input.
    fn drop(&mut self) {
        self.requests = None;
        // It may have ended by itself, with its reason on stderr.
        let _ = self.child.wait();
    }
}

fn bytes_of(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.as_chunks().0.iter().copied()
}

fn line(answers: &mut BufReader<ChildStdout>) -> Result<String, Failure> {
    let mut line = String::new();
    if answers.read_line(&mut line)? == 0 {
        return Err("benches/torch_routers.py ended early: see above".into());
    }
    Ok(line.trim().to_owned())
}
