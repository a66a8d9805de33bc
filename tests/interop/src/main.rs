//! An operator of the Rust system's kind on public crates, for tests/interop/interop.sh.
mod bench;
mod client;
mod identity;
mod lists;
mod mischief;
mod replay;
mod server;
mod store;
mod tls;
mod wire;

use client::{Client, Dialer};
use identity::{sha256, Error};
use lists::{AllowList, Routes};
use mischief::Mischief;
use serde_json::{json, Value};
use server::{Broker, Options};
use std::collections::HashMap;
use std::io::{BufRead, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{decode, encode, newer, Generation, Identifier, Message};

const HELP: &str = "\
interop-peer COMMAND --key FILE [--ca KEYFILE] [--allow FILE|allow_all] [--generation G] ...
  G: v0.5.0 (default), dev, newer. Each command prints one JSON object a line.
  hash                       the key's hash and the certificates made from it
  serve --addr IP:PORT       first line: I am HASH@ADDR
     --routes FILE|allow_all (default: nothing passes)  --frame-kb N  --ack-any
     --consume               takes its own mail and prints it; --dir D: contents to files D/0...
     --mischief HOW          late=MS twice reordered stray wrong-kind garbage extra
                             server-error unknown-error oversized silent
     --die-before N, --die-after N   ends before, after storing the n-th message, unanswered
     --refuse mutex|parse|too-large|rate     --bucket CAPACITY,REFILL     --depth N
  send --addr A --to HASH    content: --data TEXT, --file FILE or --stdin
     --text                  as it is, not as a byte array
     --from-id N --to-id N --count N (numbers the messages) --retry MS (until it is stored)
     --keep                  one connection, a ping before each further call
     --pause                 connects, then waits for a line
  get | ack --uid N | ping | recv [--count N] [--wait MS] [--keep]
     --addr A [--id N] [--out FILE]
  replay --addr A --dir D    captured streams of a server, in their order, with its verdicts
     --denied                only those of a server whose routing table is empty
  bench --addr A --to HASH --count N [--keep] [--ping] [--size N]
";

struct Args(HashMap<String, String>);

impl Args {
    fn parse(words: &[String]) -> Result<Self, Error> {
        const BARE: [&str; 9] =
            ["consume", "ack-any", "text", "stdin", "keep", "pause", "ping", "quiet", "denied"];
        let mut map = HashMap::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or(format!("what is {word}?"))?;
            let value = if BARE.contains(&name) {
                String::new()
            } else {
                words.next().ok_or(format!("--{name} needs a value"))?.clone()
            };
            map.insert(name.to_string(), value);
        }
        Ok(Args(map))
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn need(&self, name: &str) -> Result<&str, Error> {
        self.get(name).ok_or_else(|| format!("--{name} is needed").into())
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, Error> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| format!("--{name} {text}: no number").into()),
        }
    }

    fn generation(&self) -> Result<Generation, Error> {
        let text = self.get("generation").unwrap_or("v0.5.0");
        Generation::parse(text).ok_or_else(|| format!("no generation {text}").into())
    }

    fn dialer(&self) -> Result<Dialer, Error> {
        let generation = self.generation()?;
        Ok(Dialer {
            me: Arc::new(identity::load(self.need("key")?, self.get("ca"))?),
            allow: AllowList::load(self.get("allow").unwrap_or("allow_all"))?,
            generation,
            frame_kb: self.number("frame-kb", generation.frame_kb())?,
        })
    }

    fn content(&self) -> Result<Vec<u8>, Error> {
        if let Some(file) = self.get("file") {
            return Ok(std::fs::read(file)?);
        }
        let mut bytes = self.get("data").unwrap_or("").as_bytes().to_vec();
        if self.has("stdin") {
            std::io::stdin().read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }
}

pub fn print(value: &Value) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more: nothing is left to be done.
    if writeln!(out, "{value}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

fn content_of(message: &Message) -> Vec<u8> {
    decode(&message.msg).unwrap_or_else(|| message.msg.clone().into_bytes())
}

/// A message for people and scripts; --out F keeps its content.
fn keep(args: &Args, message: &Message) -> Result<(), Error> {
    match args.get("out") {
        Some(file) => Ok(std::fs::write(file, content_of(message))?),
        None => Ok(()),
    }
}

fn describe(message: &Message) -> Value {
    let coded = decode(&message.msg).is_some();
    let bytes = content_of(message);
    let text: String = String::from_utf8_lossy(&bytes).chars().take(60).collect();
    json!({"uid": message.uid, "from": message.from.pubkey_hash, "from_id": message.from.id,
           "len": bytes.len(), "sha256": sha256(&bytes), "coded": coded, "text": text})
}

fn refusal(text: &str, frame_kb: u64, generation: Generation) -> Result<newer::Failure, Error> {
    let limit = frame_kb.saturating_sub(4);
    Ok(match text {
        "mutex" => newer::Failure::MutexError("Mutex poisoned: storage".into()),
        "parse" => newer::Failure::ParseError("Failed to parse uid: x".into()),
        "rate" => newer::Failure::RateLimitExceeded,
        "too-large" if generation == Generation::Dev => {
            newer::Failure::MessageTooLarge(newer::Kb::Limit(limit))
        }
        "too-large" => newer::Failure::MessageTooLarge(newer::Kb::LimitAndSize(limit, limit + 812)),
        _ => return Err(format!("no refusal {text}").into()),
    })
}

async fn serve(args: &Args) -> Result<(), Error> {
    let me = identity::load(args.need("key")?, args.get("ca"))?;
    let generation = args.generation()?;
    let frame_kb = args.number("frame-kb", generation.frame_kb())?;
    let bucket = match args.get("bucket") {
        None => (0, 0),
        Some(text) => {
            let (capacity, refill) = text.split_once(',').ok_or("--bucket CAPACITY,REFILL")?;
            (capacity.parse()?, refill.parse()?)
        }
    };
    let options = Options {
        allow: AllowList::load(args.get("allow").unwrap_or("allow_all"))?,
        routes: match args.get("routes") {
            None => Routes::default(),
            Some(file) => Routes::load(file)?,
        },
        generation,
        frame_kb,
        mischief: match args.get("mischief") {
            None => Mischief::None,
            Some(text) => Mischief::parse(text).ok_or(format!("no mischief {text}"))?,
        },
        die_before: args.number("die-before", 0)?,
        die_after: args.number("die-after", 0)?,
        refuse: match args.get("refuse") {
            None => None,
            Some(text) => Some(refusal(text, frame_kb, generation)?),
        },
        bucket,
        depth_max: args.number("depth", 0)?,
        quiet: args.has("quiet"),
    };
    let broker = Arc::new(Broker::new(options, args.has("ack-any")));
    let listener = tokio::net::TcpListener::bind(args.need("addr")?).await?;
    println!("I am {}@{}", me.hash, listener.local_addr()?);
    let own = Identifier { pubkey_hash: me.hash.clone(), id: 0 };
    if args.has("consume") {
        let broker = broker.clone();
        let quiet = args.has("quiet");
        let dir = args.get("dir").map(std::path::PathBuf::from);
        tokio::spawn(async move {
            let mut n = 0;
            loop {
                while let Some(message) = broker.take_oldest(&own) {
                    if let Some(dir) = &dir {
                        let written = std::fs::write(dir.join(n.to_string()), content_of(&message));
                        written.expect("the directory takes files");
                    }
                    n += 1;
                    if !quiet {
                        print(&describe(&message));
                    }
                }
                broker.arrived.notified().await;
            }
        });
    }
    server::accept(&me, broker, listener).await
}

/// Sends one message; a connection that is kept is asked whether it lives before it is used again.
async fn send_one(
    dialer: &Dialer,
    address: &str,
    kept: &mut Option<Client>,
    from_id: u8,
    dest: Identifier,
    msg: String,
) -> Result<bool, Error> {
    if let Some(client) = kept {
        if client.ping().await.is_err() {
            *kept = None;
        }
    }
    if kept.is_none() {
        *kept = Some(dialer.connect(address).await?);
    }
    match kept {
        Some(client) => client.send(from_id, dest, msg).await,
        None => Err("not connected".into()),
    }
}

async fn send(args: &Args) -> Result<Value, Error> {
    let dialer = args.dialer()?;
    let address = args.need("addr")?;
    let dest = Identifier { pubkey_hash: args.need("to")?.into(), id: args.number("to-id", 0)? };
    let from_id = args.number("from-id", 0)?;
    let count: u64 = args.number("count", 1)?;
    let retry = Duration::from_millis(args.number("retry", 0)?);
    let content = args.content()?;
    let mut kept = None;
    let (mut stored, mut refused, mut attempts) = (0u64, 0u64, 0u64);
    let mut first_error = None;
    let start = Instant::now();
    if args.has("pause") {
        kept = Some(dialer.connect(address).await?);
        print(&json!({"connected": true}));
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    for n in 0..count {
        let mut bytes = content.clone();
        if count > 1 {
            bytes.extend_from_slice(format!(" {n}").as_bytes());
        }
        let msg = match args.has("text") {
            true => String::from_utf8(bytes)?,
            false => encode(&bytes),
        };
        loop {
            attempts += 1;
            let sent =
                send_one(&dialer, address, &mut kept, from_id, dest.clone(), msg.clone()).await;
            match sent {
                Ok(true) => stored += 1,
                Ok(false) => refused += 1,
                Err(error) => {
                    kept = None;
                    first_error.get_or_insert(error.to_string());
                    if start.elapsed() < retry {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                }
            }
            break;
        }
        if !args.has("keep") {
            kept = None;
        }
    }
    let server = kept.map(|c| c.server);
    Ok(json!({"ok": stored == count, "stored": stored, "refused": refused, "attempts": attempts,
              "error": first_error, "server": server}))
}

/// As an operator of that system takes a message: get, ping, ack.
async fn recv(args: &Args) -> Result<Value, Error> {
    let dialer = args.dialer()?;
    let address = args.need("addr")?;
    let id = args.number("id", 0)?;
    let count: u64 = args.number("count", 1)?;
    let end = Instant::now() + Duration::from_millis(args.number("wait", 0)?);
    let mut taken = 0;
    let mut kept = None;
    while taken < count {
        let client = match kept.take() {
            Some(client) => client,
            None => dialer.connect(address).await?,
        };
        match client.get(id).await? {
            Some(message) => {
                client.ping().await?;
                let acked = client.ack(id, message.uid).await?;
                keep(args, &message)?;
                let mut line = describe(&message);
                line["acked"] = json!(acked);
                print(&line);
                taken += 1;
            }
            None if Instant::now() < end => tokio::time::sleep(Duration::from_millis(5)).await,
            None => break,
        }
        if args.has("keep") {
            kept = Some(client);
        }
    }
    Ok(json!({"ok": taken == count, "taken": taken}))
}

async fn call(command: &str, args: &Args) -> Result<Value, Error> {
    let id = args.number("id", 0)?;
    let client = args.dialer()?.connect(args.need("addr")?).await?;
    let mut value = match command {
        "get" => match client.get(id).await? {
            None => json!({"message": null}),
            Some(message) => {
                keep(args, &message)?;
                describe(&message)
            }
        },
        "ack" => json!({"acked": client.ack(id, args.number("uid", 0)?).await?}),
        _ => json!({"pong": client.ping().await?}),
    };
    value["ok"] = json!(true);
    value["server"] = json!(client.server);
    Ok(value)
}

fn hash(args: &Args) -> Result<Value, Error> {
    let me = identity::load(args.need("key")?, args.get("ca"))?;
    let (leaf, ca) = (identity::base64(&me.leaf), identity::base64(&me.ca));
    Ok(json!({"ok": true, "hash": me.hash, "leaf": leaf, "ca": ca}))
}

async fn run(command: &str, args: &Args) -> Result<Value, Error> {
    match command {
        "hash" => hash(args),
        "serve" => serve(args).await.map(|()| json!({"ok": true})),
        "send" => send(args).await,
        "recv" => recv(args).await,
        "get" | "ack" | "ping" => call(command, args).await,
        "replay" => {
            let denied = args.has("denied");
            replay::all(&args.dialer()?, args.need("addr")?, args.need("dir")?, denied).await
        }
        "bench" => {
            let dest = Identifier { pubkey_hash: args.need("to")?.into(), id: 0 };
            let work = bench::Work {
                count: args.number("count", 100)?,
                size: args.number("size", 64)?,
                keep: args.has("keep"),
                ping: args.has("ping"),
            };
            bench::run(&args.dialer()?, args.need("addr")?, dest, work).await
        }
        _ => Err(HELP.into()),
    }
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let command = words.first().cloned().unwrap_or_default();
    let result = match Args::parse(words.get(1..).unwrap_or_default()) {
        Ok(args) => run(&command, &args).await,
        Err(error) => Err(error),
    };
    let ok = match result {
        Ok(value) => {
            print(&value);
            value["ok"] == json!(true)
        }
        Err(error) => {
            print(&json!({"ok": false, "error": error.to_string()}));
            false
        }
    };
    std::process::exit(if ok { 0 } else { 1 });
}
