//! Every input of the corpus, and a bounded run of mutated ones with a fixed seed.

use kiseki_fuzz::judge::judge;
use kiseki_fuzz::{TARGETS, Verdict, corpus, run};

/// Mutated inputs of each target in `make test`.
const INPUTS_PER_TARGET: u64 = 20_000;

/// Any fixed number; another one is another run.
const SEED: u64 = 0x6b69_7365_6b69;

#[test]
fn i_o5_the_corpus_breaks_nothing_and_its_seeds_are_accepted() {
    for target in TARGETS {
        let inputs = corpus::read(target).unwrap_or_else(|error| panic!("{}: {error}", target.name));
        assert!(!inputs.is_empty(), "{} has no corpus: kiseki-fuzz --write-seeds", target.name);
        for (name, bytes) in inputs {
            let plain = judge(target, &bytes);
            let plain = plain.unwrap_or_else(|what| panic!("{}/{name}: {what}", target.name));
            let mended = target.mend.map(|mend| judge(target, &mend(&bytes)));
            let mended = mended.transpose().unwrap_or_else(|what| panic!("{}/{name}, mended: {what}", target.name));
            let accepted = plain == Verdict::Accepted || mended == Some(Verdict::Accepted);
            assert!(accepted || !name.starts_with(corpus::SEED_PREFIX), "{}/{name} is refused", target.name);
        }
    }
}

#[test]
fn i_o5_mutated_inputs_break_nothing() {
    for target in TARGETS {
        let inputs = corpus::read(target).unwrap_or_else(|error| panic!("{}: {error}", target.name));
        let inputs: Vec<Vec<u8>> = inputs.into_iter().map(|(_, bytes)| bytes).collect();
        let totals = run::run(target, &inputs, SEED, |totals| totals.inputs < INPUTS_PER_TARGET);
        let totals = totals.unwrap_or_else(|failure| {
            panic!("{}: input {}: {}\n{:02x?}", target.name, failure.number, failure.what, failure.input)
        });
        assert!(totals.accepted > 0, "{}: nothing gets behind its first check", target.name);
    }
}

#[test]
fn targets_have_names_of_their_own_and_every_corpus_a_target() {
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
    for entry in std::fs::read_dir(corpus::directory()).expect("the corpus is in the tree") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        assert!(names.contains(&name.as_str()), "corpus/{name} belongs to no target");
    }
}
