//! The four calls in their two generations: PROTOCOL 6 and 13. The envelope is tarpc's own.
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identifier {
    pub pubkey_hash: String,
    pub id: u8,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Message {
    pub uid: u64,
    pub from: Identifier,
    pub msg: String,
}

/// v0.5.0
pub mod first {
    use super::*;

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub enum Failure {
        MutexError(String),
        ParseError(String),
    }

    #[tarpc::service]
    pub trait Broker {
        async fn send(from_id: u8, dest: Identifier, msg: String) -> Result<bool, Failure>;
        async fn get(dest_id: u8) -> Result<Option<Message>, Failure>;
        async fn ack(dest_id: u8, uid: u64) -> Result<bool, Failure>;
        async fn ping() -> bool;
    }
}

/// The forms after it: every answer is a result, and there are more reasons to refuse.
pub mod newer {
    use super::*;

    /// At first the limit alone, later limit and size, all in KB.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(untagged)]
    pub enum Kb {
        Limit(u64),
        LimitAndSize(u64, u64),
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub enum Failure {
        MutexError(String),
        ParseError(String),
        MessageTooLarge(Kb),
        RateLimitExceeded,
    }

    #[tarpc::service]
    pub trait Broker {
        async fn send(from_id: u8, dest: Identifier, msg: String) -> Result<bool, Failure>;
        async fn get(dest_id: u8) -> Result<Option<Message>, Failure>;
        async fn ack(dest_id: u8, uid: u64) -> Result<bool, Failure>;
        async fn ping() -> Result<bool, Failure>;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    First, // v0.5.0: 8 MiB frames
    Dev,   // January 2026: 1 MiB frames, the limit alone in MessageTooLarge
    Newer, // 2026: 8 MiB frames, limit and size
}

impl Generation {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "v0.5.0" => Some(Self::First),
            "dev" => Some(Self::Dev),
            "newer" => Some(Self::Newer),
            _ => None,
        }
    }

    pub fn frame_kb(self) -> u64 {
        if self == Self::Dev {
            1024
        } else {
            8192
        }
    }
}

/// How an operator writes bytes into `msg`: a JSON array of decimal numbers (PROTOCOL 10).
pub fn encode(bytes: &[u8]) -> String {
    serde_json::to_string(bytes).expect("numbers")
}

/// None: the text is something else.
pub fn decode(msg: &str) -> Option<Vec<u8>> {
    serde_json::from_str(msg).ok()
}
