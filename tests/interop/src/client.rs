//! The connecting side: PROTOCOL 7.
use crate::identity::{hash_of, Error, Identity};
use crate::lists::AllowList;
use crate::tls;
use crate::wire::{first, newer, Generation, Identifier, Message};
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use tarpc::client::Config;
use tarpc::context;
use tarpc::tokio_serde::formats::Json;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::codec::LengthDelimitedCodec;

#[derive(Clone)]
pub struct Dialer {
    pub me: Arc<Identity>,
    pub allow: AllowList,
    pub generation: Generation,
    pub frame_kb: u64,
}

enum Calls {
    First(first::BrokerClient),
    Newer(newer::BrokerClient),
}

pub struct Client {
    calls: Calls,
    pub server: String, // the hash of whoever answered
}

fn text(error: impl std::fmt::Debug) -> Error {
    format!("{error:?}").into()
}

impl Dialer {
    pub async fn stream(&self, address: &str) -> Result<TlsStream<TcpStream>, Error> {
        let tcp = TcpStream::connect(address.parse::<SocketAddr>()?).await?;
        tcp.set_nodelay(true)?;
        let ip = tcp.peer_addr()?.ip();
        // A configuration for each connection: that system's client never resumes a session.
        let config = tls::client(&self.me, self.allow.clone())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("localhost")?, tcp).await?;
        let server = server_hash(&stream)?;
        if !self.allow.allows(&server, ip) {
            return Err(format!("{server} is not allowed at {ip}").into());
        }
        Ok(stream)
    }

    pub async fn connect(&self, address: &str) -> Result<Client, Error> {
        let stream = self.stream(address).await?;
        let server = server_hash(&stream)?;
        let frames = LengthDelimitedCodec::builder()
            .max_frame_length(self.frame_kb as usize * 1024)
            .new_framed(stream);
        let calls = if self.generation == Generation::First {
            let transport = tarpc::serde_transport::new(frames, Json::default());
            Calls::First(first::BrokerClient::new(Config::default(), transport).spawn())
        } else {
            let transport = tarpc::serde_transport::new(frames, Json::default());
            Calls::Newer(newer::BrokerClient::new(Config::default(), transport).spawn())
        };
        Ok(Client { calls, server })
    }
}

fn server_hash(stream: &TlsStream<TcpStream>) -> Result<String, Error> {
    let certs = stream.get_ref().1.peer_certificates().ok_or("no certificate")?;
    Ok(hash_of(&certs[0])?)
}

/// Each call has ten seconds from its start, tarpc's default.
impl Client {
    pub async fn send(&self, from_id: u8, dest: Identifier, msg: String) -> Result<bool, Error> {
        let now = context::current();
        match &self.calls {
            Calls::First(c) => c.send(now, from_id, dest, msg).await?.map_err(text),
            Calls::Newer(c) => c.send(now, from_id, dest, msg).await?.map_err(text),
        }
    }

    pub async fn get(&self, id: u8) -> Result<Option<Message>, Error> {
        let now = context::current();
        match &self.calls {
            Calls::First(c) => c.get(now, id).await?.map_err(text),
            Calls::Newer(c) => c.get(now, id).await?.map_err(text),
        }
    }

    pub async fn ack(&self, id: u8, uid: u64) -> Result<bool, Error> {
        let now = context::current();
        match &self.calls {
            Calls::First(c) => c.ack(now, id, uid).await?.map_err(text),
            Calls::Newer(c) => c.ack(now, id, uid).await?.map_err(text),
        }
    }

    pub async fn ping(&self) -> Result<bool, Error> {
        let now = context::current();
        match &self.calls {
            Calls::First(c) => Ok(c.ping(now).await?),
            Calls::Newer(c) => c.ping(now).await?.map_err(text),
        }
    }
}
