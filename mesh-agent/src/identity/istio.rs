//! The part of `istio.v1.auth.IstioCertificateService` that is said and understood here, as istiod and istio-csr speak it.

use std::collections::HashMap;

use prost::Message;

/// The method that is called.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// The word of the metadata under which an agent of a node names whom it asks for.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// What is asked for.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateRequest {
    /// PKCS #10, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long the certificate is wanted for, in seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Words beside it.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// The answer.
#[derive(Clone, PartialEq, Message)]
pub struct CertificateResponse {
    /// PEM, leaf first; each may hold more than one certificate, and the root may be among them.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`
#[derive(Clone, PartialEq, Message)]
pub struct Struct {
    /// Its fields.
    #[prost(map = "string, message", tag = "1")]
    pub fields: HashMap<String, Value>,
}

/// `google.protobuf.Value`, where it is a text.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    /// The text; none where it is of another kind.
    #[prost(string, optional, tag = "3")]
    pub text: Option<String>,
}

impl CertificateRequest {
    /// Asks for the certificate of an identity that is not the caller's own.
    pub fn impersonating(identity: &str, csr: String, validity_duration: i64) -> Self {
        let value = Value { text: Some(identity.to_string()) };
        let fields = HashMap::from([(IMPERSONATED_IDENTITY.to_string(), value)]);
        Self { csr, validity_duration, metadata: Some(Struct { fields }) }
    }

    /// Whom the caller asks for, if it says so.
    pub fn impersonated(&self) -> Option<&str> {
        self.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?.text.as_deref()
    }
}
