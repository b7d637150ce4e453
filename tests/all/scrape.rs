//! Reads figures as Prometheus does: over HTTP, as text.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::binary::until;
use crate::http::{self, Page};

/// Asks once, with a header of its own.
pub(crate) fn ask(address: &str, request: &str, header: &str) -> Option<Page> {
    http::ask(address, request, &format!("Host: {address}\r\n{header}"))
}

/// Figures by name and labels, as they stand in Prometheus' text format.
#[derive(Debug)]
pub(crate) struct Scraped(pub(crate) BTreeMap<String, f64>);

impl Scraped {
    pub(crate) fn from(address: &str) -> Option<Self> {
        let page = ask(address, "GET /metrics", "")?;
        assert_eq!(page.status, 200, "{}", page.head);
        Some(Self::parse(&page.body))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').expect("a name and a value");
            (series.to_owned(), value.parse().expect("a number"))
        };
        Self(samples.map(sample).collect())
    }

    /// Of one series.
    pub(crate) fn get(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or_else(|| panic!("there is no {series} among {:?}", self.0))
    }

    /// Upper bounds of a histogram without labels, and how many are within each.
    pub(crate) fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let bound = |series: &str| {
            let rest = series.strip_prefix(name)?.strip_prefix("{le=\"")?;
            rest.strip_suffix("\"}")?.parse::<f64>().ok()
        };
        let found = self.0.iter().filter_map(|(series, count)| Some((bound(series)?, *count)));
        let mut found: Vec<(f64, f64)> = found.collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found
    }

    /// Of all series of a name together.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let of = |series: &&String| series.split('{').next() == Some(name);
        let found: Vec<f64> = self.0.keys().filter(of).map(|series| self.0[series]).collect();
        assert!(!found.is_empty(), "there is no {name} among {:?}", self.0);
        found.iter().sum()
    }
}

/// What `promtool check metrics` has to say; none where it is not installed.
pub(crate) fn promtool(text: &str) -> Option<Result<(), String>> {
    let command = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = command.ok()?;
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() && said.is_empty() { Ok(()) } else { Err(said) })
}

/// Families by name, counters with their suffix, and their kind.
pub(crate) fn families(text: &str) -> BTreeMap<String, String> {
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let kinds = kinds.map(|line| line.split_once(' ').expect("a name and a kind"));
    kinds.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// A configuration that scrapes these jobs five times a second.
pub(crate) fn scraping(jobs: &[(&str, &str)]) -> String {
    scraping_every("200ms", jobs)
}

/// The same at this interval, which is also how long a scrape may take.
pub(crate) fn scraping_every(interval: &str, jobs: &[(&str, &str)]) -> String {
    let job = |(name, address): &(&str, &str)| {
        format!("- {{job_name: {name}, static_configs: [{{targets: [\"{address}\"]}}]}}\n")
    };
    let jobs: String = jobs.iter().map(job).collect();
    let global = format!("global: {{scrape_interval: {interval}, scrape_timeout: {interval}}}");
    format!("{global}\nscrape_configs:\n{jobs}")
}

/// A Prometheus server that scrapes; ended when dropped.
pub(crate) struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    /// Starts one with this configuration, with its files in `folder`; none where it is not installed.
    pub(crate) fn start(folder: &Path, config: &str) -> Option<Self> {
        let address = free_address();
        let file = folder.join("prometheus.yml");
        fs::write(&file, config).expect("writable");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("prometheus.log")).expect("writable"))
            .spawn()
            .ok()?;
        let started = Self { child, address };
        let is_ready =
            || ask(&started.address, "GET /-/ready", "").is_some_and(|p| p.status == 200);
        until("Prometheus is ready", is_ready);
        Some(started)
    }

    /// The value of an expression that gives one series; none where it gives none.
    pub(crate) fn query(&self, expression: &str) -> Option<f64> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let request = format!("GET /api/v1/query?query={escaped}");
        let page = ask(&self.address, &request, "").expect("it answers");
        let said: Value = serde_json::from_str(&page.body).expect("JSON");
        assert_eq!(said["status"], "success", "{expression}: {said}");
        let found = said["data"]["result"].as_array().expect("a vector");
        assert!(found.len() < 2, "{expression} gives more than one series: {said}");
        found.first()?["value"][1].as_str().expect("a number as text").parse().ok()
    }

    /// Whether an expression is one.
    pub(crate) fn understands(&self, expression: &str) -> bool {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let page = ask(&self.address, &format!("GET /api/v1/query?query={escaped}"), "");
        page.expect("it answers").status == 200
    }

    /// Waits until an expression has a value.
    pub(crate) fn until(&self, expression: &str, value: f64) {
        until(expression, || self.query(expression) == Some(value));
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_address() -> String {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr());
    port.expect("a free port").to_string()
}
