//! Families of figures, as the encoders of `prometheus-client` take them.

use crate::measure::BucketCounts;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric as _, MetricEncoder,
    NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fmt;

/// Names and values of the labels of one figure.
pub(super) type Labels = Vec<(&'static str, String)>;

/// A figure by one label.
pub(super) fn by(label: &'static str, value: impl fmt::Display) -> Labels {
    vec![(label, value.to_string())]
}

/// Writes families one after the other. Names have neither the prefix nor the unit, nor the suffix of their kind:
/// those are added.
pub(super) struct Families<'a>(pub(super) DescriptorEncoder<'a>);

impl Families<'_> {
    /// What only grows.
    pub(super) fn counter<N: EncodeCounterValue>(
        &mut self,
        (name, unit): (&str, Option<Unit>),
        help: &str,
        values: impl IntoIterator<Item = (Labels, N)>,
    ) -> fmt::Result {
        let mut family = self.family(name, unit.as_ref(), help, MetricType::Counter)?;
        each(&mut family, values, |value, encoder| ConstCounter::new(value).encode(encoder))
    }

    /// What stands at a value.
    pub(super) fn gauge<N: EncodeGaugeValue>(
        &mut self,
        (name, unit): (&str, Option<Unit>),
        help: &str,
        values: impl IntoIterator<Item = (Labels, N)>,
    ) -> fmt::Result {
        let mut family = self.family(name, unit.as_ref(), help, MetricType::Gauge)?;
        each(&mut family, values, |value, encoder| ConstGauge::new(value).encode(encoder))
    }

    /// How long things took.
    pub(super) fn seconds(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels, BucketCounts)>,
    ) -> fmt::Result {
        let mut family = self.family(name, Some(&Unit::Seconds), help, MetricType::Histogram)?;
        each(&mut family, values, |counts, mut encoder| {
            let up_to = counts.up_to.iter().map(|(bound_ns, count)| (seconds(*bound_ns), *count));
            let buckets: Vec<_> = up_to.chain([(f64::INFINITY, counts.above)]).collect();
            let sum = seconds(counts.sum_ns);
            encoder.encode_histogram::<NoLabelSet>(sum, counts.count(), &buckets, None)
        })
    }

    fn family<'s>(
        &'s mut self,
        name: &'s str,
        unit: Option<&'s Unit>,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, unit, kind)
    }
}

/// One figure without labels.
pub(super) fn one<N>(value: N) -> [(Labels, N); 1] {
    [(Labels::new(), value)]
}

pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn each<N>(
    family: &mut MetricEncoder<'_>,
    values: impl IntoIterator<Item = (Labels, N)>,
    encode: impl Fn(N, MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    for (labels, value) in values {
        encode(value, family.encode_family(&labels)?)?;
    }
    Ok(())
}
