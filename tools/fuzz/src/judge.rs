//! Runs one input and says whether the parser failed: a panic, or more memory than the target is allowed.

use crate::target::{Target, Verdict};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Set while an input runs: where its panic is noted.
    static NOTED: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Panics of inputs are noted and not printed; all others go where they went.
fn note_panics() {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let noted = NOTED.with_borrow_mut(|noted| match noted {
                Some(text) => {
                    *text = info.to_string();
                    true
                }
                None => false,
            });
            if !noted {
                before(info);
            }
        }));
    });
}

/// Runs `input`. Errors: why the parser failed.
pub fn judge(target: &Target, input: &[u8]) -> Result<Verdict, String> {
    note_panics();
    NOTED.set(Some(String::new()));
    let mut outcome = None;
    let memory = allocation_counter::measure(|| {
        outcome = Some(catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(drop));
    });
    let noted = NOTED.take().unwrap_or_default();
    let verdict = outcome.expect("the input ran").map_err(|()| noted)?;
    let allowed = target.allowance.base_bytes + target.allowance.multiple * input.len();
    if memory.bytes_max > allowed as u64 {
        let (taken, len) = (memory.bytes_max, input.len());
        return Err(format!("I-O5: {taken} bytes of memory for {len} bytes of input; {allowed} are allowed"));
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_seeds() -> Vec<crate::target::Seed> {
        Vec::new()
    }

    #[test]
    fn panics_and_greed_are_failures() {
        let panics = Target::new("panics", |bytes| panic!("found {}", bytes.len()), no_seeds);
        let failure = judge(&panics, b"abc").unwrap_err();
        assert!(failure.contains("found 3"), "{failure}");
        let greedy = Target::new(
            "greedy",
            |bytes| {
                std::hint::black_box(Vec::<u8>::with_capacity(1 << (20 + bytes.len())));
                Verdict::Accepted
            },
            no_seeds,
        );
        assert!(judge(&greedy, b"a").unwrap_err().starts_with("I-O5"));
        let fine = Target::new("fine", |_| Verdict::Refused, no_seeds);
        assert_eq!(judge(&fine, b"a"), Ok(Verdict::Refused));
    }
}
