//! The certificates of a first node: an authority of its own and a server certificate signed by it.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Names and addresses that the server certificate is for, besides those that are asked for.
const ALWAYS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// PEM texts of a new authority and of a server certificate.
pub struct Certificates {
    /// The authority's certificate: what clients trust.
    pub ca: String,
    /// The server's certificate.
    pub server: String,
    /// The server's private key.
    pub server_key: zeroize::Zeroizing<String>,
}

/// Makes an authority and a server certificate for this machine and `names`. The authority's key is dropped: nobody
/// can sign a second certificate with it later.
pub fn generate(names: &[String]) -> Result<Certificates, rcgen::Error> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::<String>::new())?;
    ca.distinguished_name.push(DnType::CommonName, "Kiseki local authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    let mut subject_names: Vec<String> = ALWAYS.iter().map(|name| (*name).to_owned()).collect();
    subject_names.extend(names.iter().filter(|name| !ALWAYS.contains(&name.as_str())).cloned());
    let key = KeyPair::generate()?;
    let mut server = CertificateParams::new(subject_names)?;
    server.distinguished_name.push(DnType::CommonName, "kiseki-server");
    server.use_authority_key_identifier_extension = true;
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server = server.signed_by(&key, &issuer)?;
    Ok(Certificates {
        ca: ca_cert.pem(),
        server: server.pem(),
        server_key: zeroize::Zeroizing::new(key.serialize_pem()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_can_use_them() {
        let made = generate(&["storage.example".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        kiseki_net::TlsAcceptor::from_pem(made.server.as_bytes(), made.server_key.as_bytes()).unwrap();
        assert!(made.ca.starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
