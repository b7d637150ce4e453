//! The token of a run: every call to a node shows it, and a node of another run refuses.

use super::{Peer, Refusals};
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, Read as _};
use std::sync::Arc;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// The environment variable with the token of a run, so that no list of processes shows it.
pub(crate) const RUN_TOKEN_VARIABLE: &str = "NASHFLOCK_RUN_TOKEN";

/// The metadata key of the token. Binary, because a token may be any text.
const KEY: &str = "nashflock-run-token-bin";

/// What shows that somebody is of a run. The empty one is none: who has none asks for none.
#[derive(Clone)]
pub struct RunToken {
    text: Arc<str>,
    hash: blake3::Hash,
}

impl RunToken {
    /// 128 random bits of the system.
    ///
    /// # Errors
    /// When the system has none.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0_u8; 16];
        fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let text = bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("text takes all");
            text
        });
        Ok(text.into())
    }

    /// Whether it is the empty one.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.text.is_empty()
    }

    /// For those that are to show it: an environment, a request.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Whether what is shown is this. Hashes are compared, in constant time: a guess learns nothing from
    /// how long it takes.
    #[must_use]
    pub fn is(&self, shown: &[u8]) -> bool {
        blake3::hash(shown) == self.hash
    }

    /// Whether these metadata show this; none where they show nothing.
    pub(super) fn is_shown_in(&self, metadata: &MetadataMap) -> Option<bool> {
        let shown = metadata.get_bin(KEY)?;
        Some(shown.to_bytes().is_ok_and(|shown| self.is(&shown)))
    }
}

impl<T: Into<Arc<str>>> From<T> for RunToken {
    fn from(text: T) -> Self {
        let text = text.into();
        Self { hash: blake3::hash(text.as_bytes()), text }
    }
}

impl Default for RunToken {
    fn default() -> Self {
        "".into()
    }
}

impl PartialEq for RunToken {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for RunToken {}

impl fmt::Debug for RunToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_none() { "RunToken(none)" } else { "RunToken(secret)" })
    }
}

/// Puts the token into each call.
#[derive(Clone, Debug)]
pub(crate) struct ShowToken(Option<BinaryMetadataValue>);

impl ShowToken {
    pub(super) fn new(token: &RunToken) -> Self {
        let shown = || BinaryMetadataValue::from_bytes(token.text.as_bytes());
        Self((!token.is_none()).then(shown))
    }
}

impl Interceptor for ShowToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(shown) = &self.0 {
            request.metadata_mut().insert_bin(KEY, shown.clone());
        }
        Ok(request)
    }
}

/// Refuses calls that do not show the token, where there is one; whoever shows it is no stranger any
/// more.
#[derive(Clone, Debug)]
pub(crate) struct CheckToken {
    token: RunToken,
    refusals: Arc<Refusals>,
}

impl CheckToken {
    pub(crate) fn new(token: RunToken, refusals: Arc<Refusals>) -> Self {
        Self { token, refusals }
    }
}

impl Interceptor for CheckToken {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<Peer>();
        let refused = match self.token.is_shown_in(request.metadata()) {
            _ if self.token.is_none() => None,
            Some(true) => None,
            Some(false) => Some(Status::permission_denied(OTHER_RUN)),
            None => Some(Status::unauthenticated(NO_TOKEN)),
        };
        match refused {
            None => {
                peer.inspect(|peer| peer.admit());
                Ok(request)
            }
            Some(status) => {
                let from = peer.map_or_else(|| "a call".into(), |p| format!("a call from {p}"));
                self.refusals.note(format_args!("{from}: {}", status.message()));
                Err(status)
            }
        }
    }
}

/// What the caller of another run reads.
pub(crate) const OTHER_RUN: &str = "the run token is not that of this run";
const NO_TOKEN: &str = "the call shows no run token: set NASHFLOCK_RUN_TOKEN to that of the run";

#[cfg(test)]
mod tests {
    use super::RunToken;

    #[test]
    fn a_token_is_compared_whole_and_never_printed() {
        let token = RunToken::from("of this run");
        assert!(token.is(b"of this run") && !token.is(b"of this ru") && !token.is(b""));
        assert!(!format!("{token:?}").contains("this"), "{token:?}");
        assert_eq!(token, RunToken::from("of this run".to_owned()));
        assert_ne!(token, RunToken::default());
    }

    #[test]
    fn random_tokens_differ() {
        let [one, other] = [(); 2].map(|()| RunToken::random().expect("a system with entropy"));
        assert_eq!(one.reveal().len(), 32);
        assert_ne!(one, other);
    }
}
