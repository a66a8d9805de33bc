//! Keys, certificates and hashes: PROTOCOL 2 and 3.
use aws_lc_rs::digest::{digest, SHA256};
use rcgen::PublicKeyData;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyIdMethod, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ParsedCertificate;

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The CA whose private key stands in every copy of the Rust system.
const WELL_KNOWN_CA: &str = include_str!("../../data/certs/builtin_ca.key");

pub struct Identity {
    pub hash: String,
    pub leaf: CertificateDer<'static>,
    pub ca: CertificateDer<'static>,
    key: Vec<u8>,
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// RFC 4648, on one line.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            out.push(if digit <= chunk.len() { DIGITS[value as usize] as char } else { '=' });
        }
    }
    out
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// The identity of whoever showed this certificate: SHA-256 over its SubjectPublicKeyInfo.
pub fn hash_of(cert: &CertificateDer<'_>) -> Result<String, rustls::Error> {
    Ok(sha256(ParsedCertificate::try_from(cert)?.subject_public_key_info().as_ref()))
}

fn key_pair(pem: &str) -> Result<KeyPair, Error> {
    Ok(KeyPair::from_pem(pem)?)
}

/// The leaf is a function of the key: rcgen's default name, dates and serial number are the rules
/// of section 3, so only the names it is valid for have to be given.
pub fn load(key_file: &str, ca_file: Option<&str>) -> Result<Identity, Error> {
    let key = key_pair(&std::fs::read_to_string(key_file)?)?;
    let ca_key = match ca_file {
        Some(path) => key_pair(&std::fs::read_to_string(path)?)?,
        None => key_pair(WELL_KNOWN_CA)?,
    };
    let mut ca_params = CertificateParams::default();
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Section 3: over the bare key. This version of rcgen would hash what stands around it too.
    let id = digest(&SHA256, ca_key.public_key_raw()).as_ref()[..20].to_vec();
    ca_params.key_identifier_method = KeyIdMethod::PreSpecified(id);
    let ca = ca_params.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca_params, ca_key);
    let params = CertificateParams::new(vec!["localhost".to_string(), "127.0.0.1".to_string()])?;
    let leaf = params.signed_by(&key, &issuer)?;
    Ok(Identity {
        hash: sha256(&key.subject_public_key_info()),
        leaf: leaf.into(),
        ca: ca.into(),
        key: key.serialize_der(),
    })
}

impl Identity {
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}
