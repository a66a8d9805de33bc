//! Captured streams against a server: it must answer each as the captured server did. The hash of
//! the captured client is replaced by our own, and uids are not compared: some captures that moved
//! the counter are races or were left out.
use crate::client::Dialer;
use crate::identity::Error;
use serde_json::{json, Value};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const CAPTURED_CLIENT: &str = "6a3bdd7f625c39fcca1c74c225a8073b3510ebc82803aa972070995c7296445f";

/// PROTOCOL 6: other outcomes are right too.
const RACES: [&str; 5] =
    ["pipelined", "request_then_cancel", "deadline_zero", "bad_after_good", "was_it_stored"];

/// The answers in the order of their requests, without uids; None: a broken frame.
fn answers(mut bytes: &[u8], own_hash: &str) -> Option<Vec<Value>> {
    let mut out: Vec<Value> = Vec::new();
    while !bytes.is_empty() {
        let len = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let text = std::str::from_utf8(bytes.get(4..4 + len)?).ok()?;
        let text = text.replace(CAPTURED_CLIENT, own_hash);
        let mut value: Value = serde_json::from_str(&text).ok()?;
        if let Some(uid) = value.pointer_mut("/message/Ok/Get/Ok/uid") {
            *uid = json!("N");
        }
        out.push(value);
        bytes = &bytes[4 + len..];
    }
    out.sort_by_key(|v| v["request_id"].as_u64());
    Some(out)
}

/// The captured client's hash is replaced by our own; both have 64 digits, so lengths stay.
fn as_ourselves(mut bytes: Vec<u8>, own_hash: &str) -> Vec<u8> {
    let old = CAPTURED_CLIENT.as_bytes();
    let mut at = 0;
    while at + old.len() <= bytes.len() {
        if bytes[at..].starts_with(old) {
            bytes[at..at + old.len()].copy_from_slice(own_hash.as_bytes());
        }
        at += 1;
    }
    bytes
}

/// Where the last frame begins; 0 when there is one only.
fn last_frame(bytes: &[u8]) -> usize {
    let (mut at, mut last) = (0, 0);
    while let Some(head) = bytes.get(at..at + 4) {
        last = at;
        at += 4 + u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    }
    last
}

/// Writes one frame and, where the captured client waited for its answer, waits as well.
/// In a race it wrote all at once but for the Ping at the end.
async fn one(
    d: &Dialer,
    address: &str,
    c2s: &[u8],
    s2c: &[u8],
    race: bool,
) -> Result<Vec<u8>, Error> {
    let mut stream = d.stream(address).await?;
    let mut got = Vec::new();
    let mut at = 0;
    let mut buffer = vec![0; 65536];
    while at < c2s.len() {
        let len = match c2s.get(at..at + 4) {
            Some(head) => u32::from_be_bytes(head.try_into()?) as usize,
            None => c2s.len() - at,
        };
        let mut end = at.saturating_add(4).saturating_add(len).min(c2s.len());
        if race && at == 0 {
            end = last_frame(c2s).max(end);
        }
        // Written after a server has hung up it is lost, like the captured client's.
        if stream.write_all(&c2s[at..end]).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        at = end;
        let before = got.len();
        let quiet = Duration::from_millis(if at == c2s.len() { 3000 } else { 150 });
        while got.len() < s2c.len() || (at == c2s.len() && got.len() == before) {
            match timeout(quiet, stream.read(&mut buffer)).await {
                Ok(Ok(0)) | Ok(Err(_)) => return Ok(got),
                Ok(Ok(n)) => got.extend_from_slice(&buffer[..n]),
                Err(_) => break,
            }
            if got.len() > before && at < c2s.len() && answers(&got, "").is_some() {
                break;
            }
        }
    }
    Ok(got)
}

/// `denied`: those of a server whose routing table permits nothing, else all the others.
pub async fn all(d: &Dialer, address: &str, dir: &str, denied: bool) -> Result<Value, Error> {
    let mut names: Vec<(u32, String)> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        if let Some(name) = file.strip_suffix(".c2s.bin") {
            let number = name.split('_').next().unwrap_or("").parse()?;
            names.push((number, name.to_string()));
        }
    }
    names.retain(|(_, name)| name.contains("routing_denied") == denied);
    names.sort();
    let (mut same, mut races, mut others) = (0, Vec::new(), Vec::new());
    for (_, name) in &names {
        let c2s = std::fs::read(Path::new(dir).join(format!("{name}.c2s.bin")))?;
        let c2s = as_ourselves(c2s, &d.me.hash);
        let s2c = std::fs::read(Path::new(dir).join(format!("{name}.s2c.bin")))?;
        let wanted = answers(&s2c, &d.me.hash);
        let race = RACES.iter().any(|r| name.contains(r));
        // Number 07 was no capture: it acknowledged what 08 then finds gone.
        while name.ends_with("_get_none") {
            let client = d.connect(address).await?;
            let Some(message) = client.get(0).await? else { break };
            client.ack(0, message.uid).await?;
        }
        let got = answers(&one(d, address, &c2s, &s2c, race).await?, &d.me.hash);
        if got.is_some() && got == wanted {
            same += 1;
        } else if race {
            races.push(name.clone());
        } else {
            others.push(json!({"name": name, "got": got, "wanted": wanted}));
        }
    }
    Ok(json!({"ok": others.is_empty() && same > 0, "streams": names.len(), "same": same,
              "races": races, "different": others}))
}
