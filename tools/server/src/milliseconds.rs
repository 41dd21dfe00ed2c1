//! Times of the configuration that may be shorter than a millisecond.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A time that is written in milliseconds, with a fraction where it needs one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Milliseconds(pub Duration);

impl TryFrom<f64> for Milliseconds {
    type Error = String;

    fn try_from(ms: f64) -> Result<Milliseconds, String> {
        Duration::try_from_secs_f64(ms / 1e3).map(Milliseconds).map_err(|error| format!("{ms} ms is no time: {error}"))
    }
}

impl From<Milliseconds> for f64 {
    fn from(Milliseconds(time): Milliseconds) -> f64 {
        time.as_secs_f64() * 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::Milliseconds;
    use crate::log_section::LogSection;
    use std::time::Duration;

    #[test]
    fn what_is_slow_may_be_less_than_a_millisecond() {
        let read = |ms: &str| toml::from_str::<LogSection>(&format!("slow_request_ms = {ms}\n"));
        let slow = |ms: &str| read(ms).unwrap().slow_request();
        assert_eq!(slow("0.2"), Some(Duration::from_micros(200)));
        assert_eq!(slow("1000"), Some(Duration::from_secs(1)));
        assert_eq!(slow("0"), None);
        for bad in ["-1", "nan", "1e300", "'soon'"] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("slow_request_ms"), "{bad}: {error}");
        }
        let written = toml::to_string(&LogSection::default()).unwrap();
        assert_eq!(
            toml::from_str::<LogSection>(&written).unwrap().slow_request_ms,
            Milliseconds(Duration::from_secs(1))
        );
    }
}
