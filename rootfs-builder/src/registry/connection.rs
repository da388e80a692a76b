//! A registry that we speak to: how, and as whom.

use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};

use super::credentials::Login;
use super::settings::Endpoint;
use super::{RegistryError, Trouble};

/// A connection that gives nothing for so long is broken.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// How long a server may take to be reached.
pub(super) const CONNECT: Duration = Duration::from_secs(15);
/// Blobs that move at once.
pub(super) const CONNECTIONS: usize = 4;
/// Times that something is asked for without having got a byte further.
pub(super) const ATTEMPTS: u32 = 6;
/// Before the second attempt; doubled for each one more.
pub(super) const PAUSE: Duration = Duration::from_millis(250);
/// Between two looks at whether the end was asked for.
pub(super) const TICK: Duration = Duration::from_millis(100);
pub(super) const USER_AGENT: &str = concat!("labyard-rootfs-builder/", env!("CARGO_PKG_VERSION"));

/// Speaks the protocol, and knows the login.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) reference: Reference,
    pub(super) login: Login,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
    pub(super) insecure: bool,
}

impl Connection {
    pub(super) async fn new(endpoint: Endpoint, login: Login) -> Result<Self, RegistryError> {
        let Endpoint { reference, insecure } = endpoint;
        let failed = |problem: String| RegistryError::Failed { image: reference.whole(), problem };
        let build = |protocol| {
            let config = ClientConfig {
                protocol,
                accept_invalid_certificates: insecure,
                read_timeout: Some(SILENCE),
                connect_timeout: Some(CONNECT),
                user_agent: USER_AGENT,
                ..ClientConfig::default()
            };
            Client::try_from(config).map_err(|error| failed(error.to_string()))
        };
        let (mut client, mut scheme) = (build(ClientProtocol::Https)?, "https");
        if insecure {
            // TLS is still taken where it is offered; a refusal is an answer, too.
            let answer = client.auth(&reference, &RegistryAuth::Anonymous, RegistryOperation::Pull).await;
            if matches!(answer, Err(OciDistributionError::RequestError(_))) {
                (client, scheme) = (build(ClientProtocol::Http)?, "http");
            }
        }
        Ok(Self { client, reference, login, scheme, insecure })
    }

    pub(super) fn name(&self) -> String {
        self.reference.whole()
    }

    pub(super) fn failed(&self, trouble: Trouble) -> RegistryError {
        let (image, found) = (self.name(), self.login.found.clone());
        match trouble {
            Trouble::Denied(problem) => {
                RegistryError::Denied { image, found, problem, registry: self.reference.registry().to_owned() }
            }
            Trouble::Missing(_) => RegistryError::Missing { image, found },
            Trouble::Passing(problem) => RegistryError::Unreached { image, problem },
            Trouble::Lasting(problem) => RegistryError::Failed { image, problem },
        }
    }
}

/// An event loop for one conversation, with TLS set up.
pub(super) fn runtime(image: &Reference) -> Result<tokio::runtime::Runtime, RegistryError> {
    // The provider is a matter of the whole process; the second call finds it set.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| RegistryError::Failed { image: image.whole(), problem: error.to_string() })
}

/// Comes once the end was asked for.
pub(super) async fn interruption(watch: &crate::watch::Watch) -> crate::watch::Interrupted {
    loop {
        if let Err(interrupted) = watch.check() {
            return interrupted;
        }
        tokio::time::sleep(TICK).await;
    }
}
