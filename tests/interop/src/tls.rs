//! Mutual TLS with the well-known CA and the allow list: PROTOCOL 3.1, 4, 7 and 8.
use crate::identity::{hash_of, Error, Identity};
use crate::lists::AllowList;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{aws_lc_rs, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore};
use rustls::{ClientConfig, OtherError, ServerConfig, SignatureScheme};
use std::sync::Arc;

/// A key whose hash is not on the list ends the handshake with certificate_unknown (46).
fn listed(allow: &AllowList, cert: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    let hash = hash_of(cert)?;
    if allow.has_hash(&hash) {
        return Ok(());
    }
    let reason: Box<dyn std::error::Error + Send + Sync> = format!("{hash} is not allowed").into();
    Err(CertificateError::Other(OtherError(reason.into())).into())
}

struct Clients {
    chain: Arc<dyn ClientCertVerifier>,
    allow: AllowList,
}

struct Servers {
    chain: Arc<WebPkiServerVerifier>,
    allow: AllowList,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Servers")
    }
}

type Signature = Result<HandshakeSignatureValid, rustls::Error>;

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, others, now)?;
        listed(&self.allow, leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Signature {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Signature {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.chain.verify_server_cert(leaf, others, name, ocsp, now)?;
        listed(&self.allow, leaf)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Signature {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Signature {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn parts(me: &Identity) -> Result<(Arc<CryptoProvider>, Arc<RootCertStore>), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(me.ca.clone())?;
    Ok((Arc::new(aws_lc_rs::default_provider()), Arc::new(roots)))
}

pub fn server(me: &Identity, allow: AllowList) -> Result<ServerConfig, Error> {
    let (provider, roots) = parts(me)?;
    let chain = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(Clients { chain, allow }))
        .with_single_cert(vec![me.leaf.clone()], me.private_key())?;
    Ok(config)
}

pub fn client(me: &Identity, allow: AllowList) -> Result<ClientConfig, Error> {
    let (provider, roots) = parts(me)?;
    let chain = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers { chain, allow }))
        .with_client_auth_cert(vec![me.leaf.clone()], me.private_key())?;
    Ok(config)
}
