//! How long each piece of work of the data path takes on one core: always on, exported by the node, and joined by
//! `kiseki-bench s3 --server-admin` with what a client sees.

use kiseki_types::Ports;
use kiseki_types::histogram::Histogram;
use kiseki_types::runtime::Instant;
use std::cell::RefCell;

/// A piece of work, of one chunk unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Until its id is known, with the wait for others to be hashed beside it.
    Hash,
    /// The question whether its home has it.
    Begin,
    /// Key and envelope.
    Seal,
    /// Parity; once more for a chunk that is begun anew.
    Encode,
    /// From the first fragment handed out to the last one that is durable; a node's flush is in it.
    Fragments,
    /// Until its home has committed the pin or the intent.
    Confirm,
    /// Until the shard has committed the name of an object or a part; pages that are committed before it are in no stage.
    Name,
    /// Where the fragments lie.
    Locate,
    /// Reading of what is wanted of them, with rebuilding.
    ReadFragments,
    /// Opening of an envelope.
    Open,
}

impl Stage {
    /// All of them, in the order of the data path.
    pub const ALL: [Stage; 10] = [
        Stage::Hash,
        Stage::Begin,
        Stage::Seal,
        Stage::Encode,
        Stage::Fragments,
        Stage::Confirm,
        Stage::Name,
        Stage::Locate,
        Stage::ReadFragments,
        Stage::Open,
    ];

    /// As it is exported.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Hash => "hash",
            Stage::Begin => "begin",
            Stage::Seal => "seal",
            Stage::Encode => "encode",
            Stage::Fragments => "fragments",
            Stage::Confirm => "confirm",
            Stage::Name => "name",
            Stage::Locate => "locate",
            Stage::ReadFragments => "read_fragments",
            Stage::Open => "open",
        }
    }
}

/// The times of one core.
pub struct Stages {
    of: RefCell<Vec<Histogram>>,
}

impl Default for Stages {
    fn default() -> Stages {
        Stages { of: RefCell::new(vec![Histogram::default(); Stage::ALL.len()]) }
    }
}

impl Stages {
    /// Counts a piece of work that began at `since` and has ended.
    pub fn ended(&self, stage: Stage, since: Instant, ports: &Ports) {
        self.of.borrow_mut()[stage as usize].record(ports.now().since(since));
    }

    /// The same for what is waited for.
    pub async fn time<T>(&self, stage: Stage, ports: &Ports, work: impl Future<Output = T>) -> T {
        let since = ports.now();
        let done = work.await;
        self.ended(stage, since, ports);
        done
    }

    /// What was counted so far.
    #[must_use]
    pub fn histograms(&self) -> Vec<(&'static str, Histogram)> {
        let of = self.of.borrow();
        Stage::ALL.iter().map(|stage| (stage.name(), of[*stage as usize].clone())).collect()
    }
}
