//! All targets, by room.

mod devices;
mod engine;
mod links;
mod names;
mod outside;
mod raft;

use crate::target::Target;

/// Every target.
pub const TARGETS: &[Target] = &[
    devices::SUPERBLOCK,
    devices::PROBE,
    devices::FRAGMENT_HEADER,
    devices::LANE_RECORD,
    devices::INDEX_ROW,
    devices::MEMBER_FILE,
    devices::JOURNAL,
    devices::DEVICE_IMAGE,
    devices::NVME_CONTROLLER,
    devices::NVME_NAMESPACE,
    devices::NVME_NAMESPACE_LIST,
    devices::NVME_SMART,
    engine::COMMAND,
    engine::COMMAND_APPLIED,
    engine::DELTA_ROWS,
    engine::OUTCOME,
    engine::SEALED_PAYLOAD,
    engine::PAGE,
    engine::ENTRY,
    engine::UPLOAD,
    engine::PART,
    engine::TENANT_ROW,
    engine::ACCESS_KEY_ROW,
    engine::BUCKET_ROW,
    engine::SHARD_ROW,
    engine::POOL_ROW,
    engine::DEVICE_RECORD,
    engine::GENERATION_RECORD,
    engine::CHUNK_FORMAT,
    names::ENTRY_KEY,
    names::UPLOAD_KEY,
    names::CHUNK_NAME_KEY,
    names::PIN_KEY,
    names::S3_KEY,
    raft::RECORD,
    raft::ENTRY_ROW,
    raft::GROUP_ROW,
    raft::LANE_ROW,
    raft::APPLIED_ROW,
    raft::REPLAY,
    raft::FILE_HEADER,
    raft::SNAPSHOT_FRAME,
    raft::SNAPSHOT_ROWS,
    links::PREAMBLE,
    links::HEAD,
    links::FRAMES,
    links::CONTROL,
    links::NAME,
    links::CERTIFICATE,
    links::REVOKED,
    outside::KEY_STORE_HEAD,
    outside::KEY_STORE_PLAIN,
    outside::CONFIG,
    outside::ADMIN_REQUEST,
    outside::TOKEN,
    outside::RANGE,
    outside::CHECKSUM_HEADERS,
    outside::ATTRIBUTES,
    outside::UPLOAD_ID,
    outside::QUERY,
];
