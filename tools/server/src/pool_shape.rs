//! How a new cluster's first pool protects chunks, as operators write it: `4+2`, or `2 copies`.

use kiseki_types::fragment::StripeShape;
use kiseki_types::limits::STRIPE_WIDTH_MAX;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// A shape that a pool can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolShape(StripeShape);

impl PoolShape {
    /// As stripes are made.
    #[must_use]
    pub fn stripe(self) -> StripeShape {
        self.0
    }
}

impl FromStr for PoolShape {
    type Err = String;

    fn from_str(text: &str) -> Result<PoolShape, String> {
        let number = |digits: &str| digits.trim().parse::<u8>().ok();
        let words = text.trim().trim_start_matches("EC ");
        let copies = words.strip_suffix("copies").or(words.strip_suffix("copy")).and_then(number);
        let shape = match (copies, words.split_once('+')) {
            (Some(copies), _) if copies > 0 => Some((1, copies - 1)),
            (None, Some((data, parity))) => number(data).zip(number(parity)).filter(|(data, _)| *data > 0),
            _ => None,
        };
        let Some((data, parity)) = shape else {
            return Err(format!(
                "{text:?} is no way to protect chunks: write DATA+PARITY, such as 4+2, or \"2 copies\""
            ));
        };
        let shape = StripeShape { data, parity };
        match shape.width() <= STRIPE_WIDTH_MAX && (parity > 0 || data == 1) {
            true => Ok(PoolShape(shape)),
            false if parity == 0 => Err(format!("{text:?}: without parity every lost device loses data")),
            false => Err(format!("{text:?}: a stripe has at most {STRIPE_WIDTH_MAX} fragments")),
        }
    }
}

impl TryFrom<String> for PoolShape {
    type Error = String;

    fn try_from(text: String) -> Result<PoolShape, String> {
        text.parse()
    }
}

impl From<PoolShape> for String {
    fn from(PoolShape(shape): PoolShape) -> String {
        match (shape.data, shape.width()) {
            (1, 1) => "1 copy".to_owned(),
            (1, copies) => format!("{copies} copies"),
            (data, _) => format!("{data}+{}", shape.parity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_written_in_two_ways() {
        for (text, data, parity, again) in [
            ("4+2", 4, 2, "4+2"),
            ("EC 8+3", 8, 3, "8+3"),
            ("2copies", 1, 1, "2 copies"),
            ("3 copies", 1, 2, "3 copies"),
            ("1+1", 1, 1, "2 copies"),
            ("1 copy", 1, 0, "1 copy"),
        ] {
            let shape: PoolShape = text.parse().unwrap();
            assert_eq!(shape.stripe(), StripeShape { data, parity }, "{text}");
            assert_eq!(String::from(shape), again, "{text}");
            assert_eq!(again.parse::<PoolShape>(), Ok(shape), "{text}");
        }
        for bad in ["", "4", "0+2", "4+0", "0 copies", "30+3", "-1+2", "300+1", "copies"] {
            assert!(bad.parse::<PoolShape>().is_err(), "{bad}");
        }
    }
}
