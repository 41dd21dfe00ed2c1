//! Metrics of links: a series for each peer and way.

use crate::status::NodeReport;
use kiseki_net::peer::counters::LATENCY_US;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;
use std::sync::Mutex;

type Labels = Vec<(&'static str, String)>;

/// Times that were counted elsewhere.
#[derive(Debug, Default)]
struct Times(Mutex<(u64, Vec<u64>)>);

impl Times {
    fn add(&self, sum_us: u64, classes: &[u64]) {
        let mut all = self.0.lock().expect("nothing panics while it holds the times");
        all.0 += sum_us;
        all.1.resize(LATENCY_US.len() + 1, 0);
        all.1.iter_mut().zip(classes).for_each(|(sum, more)| *sum += more);
    }
}

impl TypedMetric for Times {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Times {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let all = self.0.lock().expect("nothing panics while it holds the times");
        let ends = LATENCY_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
        let classes: Vec<(f64, u64)> = ends.zip(all.1.iter().copied()).collect();
        encoder.encode_histogram::<NoLabelSet>(all.0 as f64 / 1e6, all.1.iter().sum(), &classes, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Registers what the links of all cores have counted; nothing where the port for peers is closed.
pub(super) fn metrics(registry: &mut Registry, report: &NodeReport) {
    let Some(peer) = &report.peer else { return };
    let gauge = |value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge
    };
    registry.register("peer_certificate_end_unix_seconds", "End of the node's certificate", gauge(peer.not_after_unix));
    registry.register("peer_certificates_revoked", "Revoked certificates that are known", gauge(peer.revoked));
    registry.register(
        "peer_problem",
        "Whether changed certificates were not taken",
        gauge(u64::from(!peer.problem.is_empty())),
    );
    let refused = Counter::<u64>::default();
    refused.inc_by(peer.refused);
    registry.register("peer_refused", "Connections and calls that were turned away", refused);
    let counters: [Family<Labels, Counter>; 6] = Default::default();
    let in_flight = Family::<Labels, Gauge>::default();
    let times = Family::<Labels, Times>::default();
    for link in report.core_reports.values().flat_map(|core| &core.links) {
        let labels = vec![("peer", link.peer.clone()), ("way", link.way.clone())];
        let values = [link.calls, link.bytes_in, link.bytes_out, link.connects, link.connect_failures, link.refused];
        for (family, value) in counters.iter().zip(values) {
            family.get_or_create(&labels).inc_by(value);
        }
        in_flight.get_or_create(&labels).inc_by(i64::try_from(link.in_flight).unwrap_or(i64::MAX));
        times.get_or_create(&labels).add(link.latency_sum_us, &link.latency);
    }
    let names = [
        ("link_calls", "Calls"),
        ("link_bytes_in", "Bytes of frames received"),
        ("link_bytes_out", "Bytes of frames sent"),
        ("link_connects", "Connections made; the first one is no reconnect"),
        ("link_connect_failures", "Attempts to connect that failed"),
        ("link_calls_refused", "Calls that were refused"),
    ];
    for (family, (name, help)) in counters.into_iter().zip(names) {
        registry.register(name, help, family);
    }
    registry.register("link_calls_in_flight", "Calls without an answer yet", in_flight);
    registry.register("link_call_seconds", "Time from a call to its answer", times);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{CoreReport, LinkReport, PeerReport};

    #[test]
    fn links_of_all_cores_are_added_up_by_peer() {
        let mut report =
            NodeReport { peer: Some(PeerReport { refused: 3, ..Default::default() }), ..Default::default() };
        for core in ["0", "1"] {
            let mut latency = vec![0; LATENCY_US.len() + 1];
            latency[1] = 2;
            let link = LinkReport {
                peer: "admin/alice".to_owned(),
                way: "in".to_owned(),
                calls: 2,
                latency,
                latency_sum_us: 150,
                ..LinkReport::default()
            };
            report.core_reports.insert(core.to_owned(), CoreReport { links: vec![link], ..CoreReport::default() });
        }
        let mut registry = Registry::with_prefix("kiseki");
        metrics(&mut registry, &report);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "kiseki_link_calls_total{peer=\"admin/alice\",way=\"in\"} 4",
            "kiseki_peer_refused_total 3",
            "kiseki_link_call_seconds_bucket{le=\"0.0001\",peer=\"admin/alice\",way=\"in\"} 4",
            "kiseki_link_call_seconds_count{peer=\"admin/alice\",way=\"in\"} 4",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        let mut empty = Registry::default();
        metrics(&mut empty, &NodeReport::default());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &empty).unwrap();
        assert_eq!(text, "# EOF\n");
    }
}
