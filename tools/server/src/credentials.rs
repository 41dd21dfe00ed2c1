//! Files that let clients in: exports for SDKs, a configuration each for s3cmd and rclone.

use crate::config::Config;
use crate::files::{Readers, write_whole};
use std::io;
use zeroize::Zeroizing;

/// An access key as a client holds it.
pub struct Credentials {
    /// Its id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: Zeroizing<String>,
}

/// Writes `env`, `s3cfg` and `rclone.conf` (0600) for this endpoint.
pub fn write_client_files(config: &Config, credentials: &Credentials) -> io::Result<()> {
    for (path, text) in [
        (config.dir.env_file(), env_text(config, credentials)),
        (config.dir.s3cfg(), s3cfg_text(config, credentials)),
        (config.dir.rclone_conf(), rclone_text(config, credentials)),
    ] {
        write_whole(&path, text.as_bytes(), Readers::Owner)?;
    }
    Ok(())
}

/// The credentials in `env`, when it is there and holds any.
pub fn read_env(config: &Config) -> io::Result<Option<Credentials>> {
    let bytes = match crate::files::read_bounded(&config.dir.env_file(), 64 * 1024) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&bytes);
    let value = |name: &str| {
        let prefix = format!("export {name}=");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).map(|value| value.trim_matches('\'').to_owned())
    };
    Ok(value("AWS_ACCESS_KEY_ID")
        .zip(value("AWS_SECRET_ACCESS_KEY"))
        .map(|(access_key_id, secret)| Credentials { access_key_id, secret_access_key: Zeroizing::new(secret) }))
}

fn env_text(config: &Config, credentials: &Credentials) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    text.push_str("# Source this file: SDKs and the AWS command line then reach this node.\n");
    let mut export = |name: &str, value: &str| text.push_str(&format!("export {name}='{value}'\n"));
    export("AWS_ACCESS_KEY_ID", &credentials.access_key_id);
    export("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key);
    export("AWS_ENDPOINT_URL", &config.endpoint());
    // s5cmd knows the endpoint by this name alone.
    export("S3_ENDPOINT_URL", &config.endpoint());
    export("AWS_REGION", &config.s3.region);
    if !config.s3.unsafe_s3_plaintext {
        export("AWS_CA_BUNDLE", &config.s3.ca_file.display().to_string());
    }
    text
}

fn s3cfg_text(config: &Config, credentials: &Credentials) -> Zeroizing<String> {
    let tls = !config.s3.unsafe_s3_plaintext;
    Zeroizing::new(format!(
        "[default]\naccess_key = {}\nsecret_key = {}\nhost_base = {listen}\nhost_bucket = {listen}\nbucket_location = \
         {}\nuse_https = {}\nca_certs_file = {}\nsignature_v2 = False\n",
        credentials.access_key_id,
        credentials.secret_access_key.as_str(),
        config.s3.region,
        if tls { "True" } else { "False" },
        config.s3.ca_file.display(),
        listen = config.s3.listen,
    ))
}

fn rclone_text(config: &Config, credentials: &Credentials) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "[kiseki]\ntype = s3\nprovider = Other\naccess_key_id = {}\nsecret_access_key = {}\nendpoint = {}\nregion = \
         {}\nforce_path_style = true\n",
        credentials.access_key_id,
        credentials.secret_access_key.as_str(),
        config.endpoint(),
        config.s3.region,
    ))
}
