//! The accepting side: PROTOCOL 8, and of 13 the limits of the newer forms.
use crate::identity::{hash_of, Error, Identity};
use crate::lists::{AllowList, Routes};
use crate::mischief::{apply, Mischief};
use crate::store::Store;
use crate::tls;
use crate::wire::{first, newer, Generation, Identifier, Message};
use futures::StreamExt;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tarpc::context::Context;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::codec::LengthDelimitedCodec;

#[derive(Clone)]
pub struct Options {
    pub allow: AllowList,
    pub routes: Routes,
    pub generation: Generation,
    pub frame_kb: u64,
    pub mischief: Mischief,
    pub die_before: u64, // end the process before storing the n-th message; 0: never
    pub die_after: u64,  // after storing it, before the answer
    pub refuse: Option<newer::Failure>, // what every Send is answered with
    pub bucket: (u64, u64), // tokens, tokens a second; 0: no limit
    pub quiet: bool,
    pub depth_max: usize, // unacknowledged messages per sender and destination; 0: no limit
}

pub struct Broker {
    pub options: Options,
    pub store: Mutex<Store>,
    pub arrived: Notify,
    sent: Mutex<u64>,
    buckets: Mutex<HashMap<String, (f64, Instant)>>,
}

/// One connection: whose it is was proved in the handshake.
#[derive(Clone)]
struct Session {
    broker: Arc<Broker>,
    peer: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with it")
}

impl Broker {
    pub fn new(options: Options, ack_any: bool) -> Self {
        let store = Mutex::new(Store::new(ack_any));
        let arrived = Notify::new();
        Broker { options, store, arrived, sent: Mutex::new(0), buckets: Mutex::default() }
    }

    pub fn take_oldest(&self, dest: &Identifier) -> Option<Message> {
        let mut store = lock(&self.store);
        let message = store.oldest(dest)?;
        store.ack(dest, message.uid);
        Some(message)
    }

    fn spend_token(&self, peer: &str) -> Result<(), newer::Failure> {
        let (capacity, refill) = self.options.bucket;
        if self.options.generation == Generation::First || capacity == 0 {
            return Ok(());
        }
        let mut buckets = lock(&self.buckets);
        let now = Instant::now();
        let (tokens, at) = buckets.entry(peer.to_string()).or_insert((capacity as f64, now));
        let back = now.duration_since(*at).as_secs_f64() * refill as f64;
        *tokens = (*tokens + back).min(capacity as f64);
        *at = now;
        if *tokens < 1.0 {
            return Err(newer::Failure::RateLimitExceeded);
        }
        *tokens -= 1.0;
        Ok(())
    }

    fn check_size(&self, len: usize) -> Result<(), newer::Failure> {
        let limit = self.options.frame_kb.saturating_sub(4);
        if self.options.generation == Generation::First || len as u64 <= limit * 1024 {
            return Ok(());
        }
        let kb = match self.options.generation {
            Generation::Dev => newer::Kb::Limit(limit),
            _ => newer::Kb::LimitAndSize(limit, (len as u64).div_ceil(1024)),
        };
        Err(newer::Failure::MessageTooLarge(kb))
    }

    fn count_sent(&self) -> u64 {
        let mut sent = lock(&self.sent);
        *sent += 1;
        *sent
    }
}

impl Session {
    fn me(&self, id: u8) -> Identifier {
        Identifier { pubkey_hash: self.peer.clone(), id }
    }

    fn do_send(&self, from_id: u8, dest: Identifier, msg: String) -> Result<bool, newer::Failure> {
        let broker = &self.broker;
        let options = &broker.options;
        broker.spend_token(&self.peer)?;
        broker.check_size(msg.len())?;
        if let Some(failure) = &options.refuse {
            return Err(failure.clone());
        }
        let from = self.me(from_id);
        if !options.routes.can_route((&self.peer, from_id), (&dest.pubkey_hash, dest.id)) {
            return Ok(false);
        }
        let n = broker.count_sent();
        if n == options.die_before {
            std::process::exit(9);
        }
        {
            let mut store = lock(&broker.store);
            if options.depth_max != 0 && store.depth(&from, &dest) >= options.depth_max {
                return Err(newer::Failure::MutexError("queue is full".into()));
            }
            store.put(from, dest, msg);
        }
        if n == options.die_after {
            std::process::exit(9);
        }
        broker.arrived.notify_one();
        Ok(true)
    }

    fn do_get(&self, id: u8) -> Result<Option<Message>, newer::Failure> {
        self.broker.spend_token(&self.peer)?;
        Ok(lock(&self.broker.store).oldest(&self.me(id)))
    }

    fn do_ack(&self, id: u8, uid: u64) -> Result<bool, newer::Failure> {
        self.broker.spend_token(&self.peer)?;
        Ok(lock(&self.broker.store).ack(&self.me(id), uid))
    }
}

/// v0.5.0 knows two reasons only.
fn old(failure: newer::Failure) -> first::Failure {
    match failure {
        newer::Failure::ParseError(text) => first::Failure::ParseError(text),
        newer::Failure::MutexError(text) => first::Failure::MutexError(text),
        other => first::Failure::MutexError(format!("{other:?}")),
    }
}

impl first::Broker for Session {
    async fn send(
        self,
        _: Context,
        from_id: u8,
        dest: Identifier,
        msg: String,
    ) -> Result<bool, first::Failure> {
        self.do_send(from_id, dest, msg).map_err(old)
    }

    async fn get(self, _: Context, dest_id: u8) -> Result<Option<Message>, first::Failure> {
        self.do_get(dest_id).map_err(old)
    }

    async fn ack(self, _: Context, dest_id: u8, uid: u64) -> Result<bool, first::Failure> {
        self.do_ack(dest_id, uid).map_err(old)
    }

    async fn ping(self, _: Context) -> bool {
        true
    }
}

impl newer::Broker for Session {
    async fn send(
        self,
        _: Context,
        from_id: u8,
        dest: Identifier,
        msg: String,
    ) -> Result<bool, newer::Failure> {
        self.do_send(from_id, dest, msg)
    }

    async fn get(self, _: Context, dest_id: u8) -> Result<Option<Message>, newer::Failure> {
        self.do_get(dest_id)
    }

    async fn ack(self, _: Context, dest_id: u8, uid: u64) -> Result<bool, newer::Failure> {
        self.do_ack(dest_id, uid)
    }

    async fn ping(self, _: Context) -> Result<bool, newer::Failure> {
        self.broker.spend_token(&self.peer)?;
        Ok(true)
    }
}

async fn answer<T>(session: Session, stream: T)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let options = session.broker.options.clone();
    let frames = LengthDelimitedCodec::builder()
        .max_frame_length(options.frame_kb as usize * 1024)
        .new_framed(stream);
    // Each request runs in a task of its own, so answers may come in any order.
    if options.generation == Generation::First {
        let transport = tarpc::serde_transport::new(frames, Json::default());
        let requests = BaseChannel::with_defaults(transport);
        let serve = first::Broker::serve(session);
        requests.execute(serve).for_each(|work| async { drop(tokio::spawn(work)) }).await;
    } else {
        let transport = tarpc::serde_transport::new(frames, Json::default());
        let requests = BaseChannel::with_defaults(transport);
        let serve = newer::Broker::serve(session);
        requests.execute(serve).for_each(|work| async { drop(tokio::spawn(work)) }).await;
    }
}

async fn connection(
    broker: Arc<Broker>,
    acceptor: tokio_rustls::TlsAcceptor,
    tcp: TcpStream,
) -> Result<(), Error> {
    let ip = tcp.peer_addr()?.ip();
    let stream = acceptor.accept(tcp).await?;
    let certs = stream.get_ref().1.peer_certificates().ok_or("no certificate")?;
    let peer = hash_of(&certs[0])?;
    // The hash was checked in the handshake; the address only now, without a word (PROTOCOL 8).
    if !broker.options.allow.allows(&peer, ip) {
        return Ok(());
    }
    if !broker.options.quiet {
        crate::print(&serde_json::json!({"connected": peer}));
    }
    let session = Session { broker: broker.clone(), peer };
    match broker.options.mischief {
        Mischief::None => answer(session, stream).await,
        how => answer(session, apply(how, stream)).await,
    }
    Ok(())
}

pub async fn accept(
    me: &Identity,
    broker: Arc<Broker>,
    listener: TcpListener,
) -> Result<(), Error> {
    let config = tls::server(me, broker.options.allow.clone())?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                tokio::spawn(connection(broker.clone(), acceptor.clone(), tcp));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
