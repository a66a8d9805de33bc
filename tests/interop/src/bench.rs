//! The same work in the two ways of that system: a connection for each message, or one kept.
use crate::client::Dialer;
use crate::identity::Error;
use crate::wire::{encode, Identifier};
use serde_json::{json, Value};
use std::time::Instant;

pub struct Work {
    pub count: usize,
    pub size: usize,
    pub keep: bool,
    pub ping: bool, // before each further call on a kept connection, as that system does
}

/// Most memory this process ever held, in KiB.
fn memory_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

pub async fn run(d: &Dialer, address: &str, to: Identifier, w: Work) -> Result<Value, Error> {
    let bytes: Vec<u8> = (0..w.size).map(|i| (i * 7) as u8).collect();
    let mut times = Vec::with_capacity(w.count);
    let mut kept = None;
    let start = Instant::now();
    for _ in 0..w.count {
        let begin = Instant::now();
        let client = match kept.take() {
            Some(client) => client,
            None => d.connect(address).await?,
        };
        if w.ping && w.keep {
            client.ping().await?;
        }
        if !client.send(0, to.clone(), encode(&bytes)).await? {
            return Err("routing refused".into());
        }
        if w.keep {
            kept = Some(client);
        }
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].round();
    Ok(json!({"ok": true, "count": w.count, "per_second": (w.count as f64 / seconds).round(),
              "p50_us": at(0.5), "p99_us": at(0.99), "memory_kb": memory_kb()}))
}
