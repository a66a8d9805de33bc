//! Answers that come late, twice, out of order or with a stranger before them. The server proper
//! stays tarpc's: its frames pass through a pipe whose other end is treated here.
use std::collections::VecDeque;
use std::time::Duration;
use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    None,
    Late(u64), // each answer so many milliseconds late
    Twice,     // each answer twice
    Reordered, // answers of what is in flight together in the reverse order
    Stray,     // before each answer one to a request that was never made
    WrongKind, // the answer of another call
    Garbage,   // a frame that is no JSON
    Extra,     // fields nobody knows in every object of an answer
    Server,    // tarpc's own error instead of the answer
    Unknown,   // an error variant nobody knows
    Oversized, // a frame header beyond every limit
    Silent,    // no answer at all, the connection stays
}

impl Mischief {
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "twice" => Self::Twice,
            "reordered" => Self::Reordered,
            "stray" => Self::Stray,
            "wrong-kind" => Self::WrongKind,
            "garbage" => Self::Garbage,
            "extra" => Self::Extra,
            "server-error" => Self::Server,
            "unknown-error" => Self::Unknown,
            "oversized" => Self::Oversized,
            "silent" => Self::Silent,
            _ => Self::Late(text.strip_prefix("late=")?.parse().ok()?),
        })
    }
}

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let len = from.read_u32().await?;
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body).await?;
    Ok(body)
}

async fn put(to: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    to.write_u32(body.len() as u32).await?;
    to.write_all(body).await?;
    to.flush().await
}

/// {"request_id":N,"message":{"Ok":...}}: N
fn request_id(body: &[u8]) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    value["request_id"].as_u64().unwrap_or(0)
}

async fn answers(
    how: Mischief,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    loop {
        let body = frame(from).await?;
        let id = request_id(&body);
        let is_ping = String::from_utf8_lossy(&body).contains("\"Ping\"");
        match how {
            Mischief::None => put(to, &body).await?,
            Mischief::Late(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                put(to, &body).await?;
            }
            Mischief::Twice => {
                put(to, &body).await?;
                put(to, &body).await?;
            }
            Mischief::Reordered => {
                let mut held = VecDeque::from([body]);
                // What else is in flight arrives at once; a lone request must not wait long.
                let wait = Duration::from_millis(20);
                while let Ok(next) = tokio::time::timeout(wait, frame(from)).await {
                    held.push_front(next?);
                }
                for body in held {
                    put(to, &body).await?;
                }
            }
            Mischief::Stray => {
                let other = format!(
                    "{{\"request_id\":{},\"message\":{{\"Ok\":{{\"Send\":{{\"Ok\":false}}}}}}}}",
                    id + 1_000_000
                );
                put(to, other.as_bytes()).await?;
                put(to, &body).await?;
            }
            Mischief::WrongKind => {
                let wrong = if is_ping { "{\"Get\":{\"Ok\":null}}" } else { "{\"Ping\":true}" };
                let text = format!("{{\"request_id\":{id},\"message\":{{\"Ok\":{wrong}}}}}");
                put(to, text.as_bytes()).await?;
            }
            Mischief::Garbage => put(to, b"{\"request_id\":0,").await?,
            Mischief::Extra => {
                let mut value: serde_json::Value = serde_json::from_slice(&body)?;
                value["added"] = serde_json::json!({"a": [1, 2, {"b": null}]});
                put(to, &serde_json::to_vec(&value)?).await?;
            }
            Mischief::Server => {
                let text = format!(
                    "{{\"request_id\":{id},\"message\":{{\"Err\":\
                     {{\"kind\":13,\"detail\":\"too busy\"}}}}}}"
                );
                put(to, text.as_bytes()).await?;
            }
            Mischief::Unknown => {
                let call = if is_ping { "Ping" } else { "Send" };
                let text = format!(
                    "{{\"request_id\":{id},\"message\":{{\"Ok\":{{\"{call}\":\
                     {{\"Err\":{{\"Weather\":\"bad\"}}}}}}}}}}"
                );
                put(to, text.as_bytes()).await?;
            }
            Mischief::Oversized => {
                to.write_u32(0x7fff_ffff).await?;
                to.flush().await?;
            }
            Mischief::Silent => {}
        }
    }
}

/// Returns the end that the server talks to.
pub fn apply<S>(how: Mischief, stream: S) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (inner, outer) = io::duplex(1 << 16);
    tokio::spawn(async move {
        let (mut from_peer, mut to_peer) = io::split(stream);
        let (mut from_server, mut to_server) = io::split(outer);
        tokio::select! {
            _ = io::copy(&mut from_peer, &mut to_server) => {}
            _ = answers(how, &mut from_server, &mut to_peer) => {}
        }
    });
    inner
}
