//! `--metrics` and `--otlp`: what a run or a node tells monitoring systems.

use super::Failure;
use crate::export::{
    ExportError, MetricsAddress, NodePage, RunPage, SpanCounts, SpanTarget, Spans,
};
use crate::measure::Clock;
use crate::run::{Interrupts, Progress, RunEnd};
use crate::scenario::Scenario;
use crate::scenario::file::Engine;
use crate::worker;
use clap::Args;
use std::io::{self, Write as _};

#[derive(Args, Clone, Default)]
pub(super) struct ExportArgs {
    /// Serve figures of the run for Prometheus at `/metrics`: PORT on 127.0.0.1, or an address that is spelled out; port
    /// 0 takes a free one. In builds with feature `prometheus`
    #[arg(long, value_name = "[IP:]PORT")]
    pub(super) metrics: Option<MetricsAddress>,
    /// Send spans of stages, orders and requests to an OpenTelemetry collector, by OTLP over gRPC, as
    /// `http://localhost:4317`. In builds with feature `otel` [default: `OTEL_EXPORTER_OTLP_ENDPOINT`, if set]
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
}

impl ExportArgs {
    /// Whether the command line asks for anything.
    pub(super) fn is_asked(&self) -> bool {
        self.metrics.is_some() || self.otlp.is_some()
    }
}

/// What listens to a run for others.
#[derive(Default)]
pub(super) struct Exports {
    page: Option<RunPage>,
    spans: Option<(Spans, String)>,
}

impl Exports {
    /// Starts what is asked for.
    pub(super) fn start(args: &ExportArgs, scenario: &Scenario) -> Result<Self, Failure> {
        let page = args.metrics.map(RunPage::serve).transpose().map_err(failure)?;
        if let Some(page) = &page {
            say(&format!("figures at http://{}/metrics", page.address()));
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let target = span_target(args.otlp.clone(), variable, scenario)?;
        let spans = target.map(|target| {
            let spans = Spans::start(&target).map_err(failure)?;
            Ok((spans, target.endpoint))
        });
        Ok(Self { page, spans: spans.transpose()? })
    }

    /// The run's clock begins.
    pub(super) fn begins(&self, clock: &Clock) {
        if let Some((spans, _)) = &self.spans {
            spans.starts_at(clock.started_at());
        }
    }

    pub(super) fn listeners(&self) -> impl Iterator<Item = &dyn Progress> {
        let page = self.page.iter().map(|page| page as &dyn Progress);
        page.chain(self.spans.iter().map(|(spans, _)| spans as &dyn Progress))
    }

    /// Sends what is left, and says what became of it; the run has ended like this, or came to nothing.
    pub(super) fn end(self, end: Option<&RunEnd>) {
        // Who stops a run, and whom a failure concerns, does not wait.
        if let Some(page) = self.page.filter(|_| end.is_some_and(|end| end.failure.is_none())) {
            last_reading(page);
        }
        if let Some((spans, endpoint)) = self.spans {
            let SpanCounts { exported, failed, dropped } = spans.finish();
            say(&format!(
                "spans: {exported} sent to {endpoint}, {failed} not taken, {dropped} dropped"
            ));
        }
    }
}

/// Keeps the figures of a run that has ended until who reads them has read the last ones, or somebody ends that. Where the
/// system does not let it, they end with the run.
fn last_reading(page: RunPage) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        let Ok(mut interrupts) = Interrupts::listen() else { return };
        let Some(within) = page.awaited_for() else { return };
        say(&format!(
            "figures stay until they are read once more, {} s at most; Ctrl-C ends that",
            within.as_secs_f64().ceil()
        ));
        // Either way the run is over, and its results are written.
        let _ = interrupts.or(page.end_when_read(within)).await;
    });
}

/// Where spans go: where the command line says, else where the environment does, as other programs that export spans
/// take it. A build that sends none heeds the command line alone.
fn span_target(
    given: Option<String>,
    variable: impl Fn(&str) -> Option<String>,
    scenario: &Scenario,
) -> Result<Option<SpanTarget>, Failure> {
    let is_off =
        variable("OTEL_SDK_DISABLED").is_some_and(|said| said.eq_ignore_ascii_case("true"));
    let named = || {
        let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        let found = names.into_iter().find_map(&variable);
        found.filter(|_| cfg!(feature = "otel") && !is_off)
    };
    let Some(endpoint) = given.or_else(named) else { return Ok(None) };
    let names = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    if let Some(protocol) = names.into_iter().find_map(&variable).filter(|said| said != "grpc") {
        return Err(Failure::BadInput(format!(
            "--otlp: spans are sent by OTLP over gRPC, and OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}\n\
             help: name the collector's port for gRPC, 4317 by default, and unset the variable or set it to grpc"
        )));
    }
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    Ok(Some(SpanTarget {
        endpoint,
        scenario: scenario.name.clone(),
        router: scenario.game.router.clone(),
        seed: scenario.seed,
        is_remote: !matches!(scenario.nodes.engine, Engine::InProcess | Engine::Virtual),
        names_service: variable("OTEL_SERVICE_NAME").is_some()
            || attributes.contains("service.name="),
    }))
}

/// Serves the figures of a node from now on, where that is asked for, and has its address announced.
pub(super) fn of_node(
    address: Option<MetricsAddress>,
    settings: &mut worker::Settings,
) -> Result<Option<NodePage>, Failure> {
    let Some(address) = address else { return Ok(None) };
    let page = NodePage::serve(address, settings.figures.clone()).map_err(failure)?;
    settings.metrics = Some(page.address());
    say(&format!("figures at http://{}/metrics", page.address()));
    Ok(Some(page))
}

/// Standard error may be closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn failure(error: ExportError) -> Failure {
    match error {
        ExportError::System { .. } => Failure::dependency(error),
        _ => Failure::bad_input(error),
    }
}

#[cfg(test)]
mod tests {
    use super::span_target;
    use crate::cli::Failure;
    use crate::scenario::{self, Known, Scenario};
    use agents::game::Registries;
    use std::path::Path;

    fn quickstart() -> Scenario {
        let registries = Registries::standard();
        let routers = registries.routers.names().map(str::to_owned).collect();
        let Registries { costs, allocators, motions, migrations, .. } = &registries;
        let known = Known { routers, costs, allocators, motions, migrations };
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/quickstart.toml");
        scenario::load(&file, &[], &known).expect("a good scenario")
    }

    fn endpoint(
        given: Option<&str>,
        environment: &[(&str, &str)],
    ) -> Result<Option<String>, String> {
        let variable = |name: &str| {
            let found = environment.iter().find(|(of, _)| *of == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match span_target(given.map(str::to_owned), variable, &quickstart()) {
            Ok(target) => Ok(target.map(|target| target.endpoint)),
            Err(Failure::BadInput(sentence)) => Err(sentence),
            Err(_) => Err("another failure".to_owned()),
        }
    }

    #[test]
    fn the_command_line_names_the_collector_before_the_environment_does() {
        let (mine, named) = ("http://mine:1", ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://named:2"));
        let of = |given, environment: &[(&str, &str)]| endpoint(given, environment);
        assert_eq!(of(None, &[]), Ok(None));
        assert_eq!(of(Some(mine), &[named]), Ok(Some(mine.to_owned())));
        let heeded = cfg!(feature = "otel").then(|| "http://named:2".to_owned());
        assert_eq!(of(None, &[named]), Ok(heeded));
        assert_eq!(of(None, &[named, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        assert!(of(Some(mine), &[http]).is_err_and(|said| said.contains("over gRPC")));
        assert_eq!(of(None, &[http]), Ok(None));
    }
}
