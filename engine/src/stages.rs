//! How long each piece of work of the data path takes on one core: always on, exported by the node, and joined by
//! `kiseki-bench s3 --server-admin` with what a client sees.

use kiseki_types::step_times::StepTimes;

kiseki_types::steps! {
    /// A piece of work, of one chunk unless it says otherwise; in the order of the data path.
    pub enum Stage {
        /// Until its id is known, with the wait for others to be hashed beside it.
        Hash = "hash",
        /// The question whether its home has it.
        Begin = "begin",
        /// Key and envelope.
        Seal = "seal",
        /// Parity; once more for a chunk that is begun anew.
        Encode = "encode",
        /// From the first fragment handed out to the last one that is durable; a node's flush is in it.
        Fragments = "fragments",
        /// Until its home has committed the pin or the intent.
        Confirm = "confirm",
        /// Until the shard has committed the name of an object or a part; pages that are committed before it are in no stage.
        Name = "name",
        /// Where the fragments lie.
        Locate = "locate",
        /// Reading of what is wanted of them, with rebuilding.
        ReadFragments = "read_fragments",
        /// Opening of an envelope.
        Open = "open",
    }
}

/// The times of one core.
pub type Stages = StepTimes<Stage>;
