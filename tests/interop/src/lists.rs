//! Allow list and routing table in their YAML forms: PROTOCOL 11 and 12.
use crate::identity::Error;
use serde::de::{self, Deserialize, Deserializer};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

#[derive(Clone, Default)]
pub struct AllowList {
    all: bool,
    entries: HashMap<String, Option<IpAddr>>,
}

/// The word `allow_all` in place of a file name is for tests that are not about lists.
fn text_of(file: &str) -> Result<String, Error> {
    if file == "allow_all" {
        return Ok(file.to_string());
    }
    Ok(std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?)
}

/// An empty document is an empty mapping, not a mapping that is missing.
fn mapping<T: de::DeserializeOwned + Default>(text: &str) -> Result<T, Error> {
    let blank =
        |l: &str| l.trim().is_empty() || l.trim_start().starts_with('#') || l.trim() == "---";
    if text.lines().all(blank) {
        return Ok(T::default());
    }
    Ok(serde_yaml::from_str(text)?)
}

impl AllowList {
    pub fn load(file: &str) -> Result<Self, Error> {
        let text = text_of(file)?;
        if text == "allow_all" {
            return Ok(AllowList { all: true, entries: HashMap::new() });
        }
        Ok(AllowList { all: false, entries: mapping(&text)? })
    }

    /// In the handshake only the key is known.
    pub fn has_hash(&self, hash: &str) -> bool {
        self.all || self.entries.contains_key(hash)
    }

    pub fn allows(&self, hash: &str, ip: IpAddr) -> bool {
        self.all
            || match self.entries.get(hash) {
                None => false,
                Some(None) => true,
                Some(Some(wanted)) => *wanted == ip,
            }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Rule {
    hash: String,
    id: Option<u8>, // None: any
}

impl Rule {
    fn parse(text: &str) -> Option<Rule> {
        let (hash, id) = text.split_once(':')?;
        if hash.len() > 128 || id.contains(':') {
            return None;
        }
        let id = if id == "~" { None } else { Some(id.parse().ok()?) };
        Some(Rule { hash: hash.to_string(), id })
    }

    fn matches(&self, hash: &str, id: u8) -> bool {
        self.hash == hash && self.id.is_none_or(|wanted| wanted == id)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Rule::parse(&text).ok_or_else(|| de::Error::custom(format!("not hash:id: {text}")))
    }
}

#[derive(Clone, Default)]
pub struct Routes {
    all: bool,
    rules: HashMap<Rule, HashSet<Rule>>,
}

impl Routes {
    pub fn load(file: &str) -> Result<Self, Error> {
        let text = text_of(file)?;
        if text.trim() == "allow_all" {
            return Ok(Routes { all: true, rules: HashMap::new() });
        }
        let rules: HashMap<Rule, Option<HashSet<Rule>>> = mapping(&text)?;
        let rules = rules.into_iter().map(|(from, to)| (from, to.unwrap_or_default())).collect();
        Ok(Routes { all: false, rules })
    }

    pub fn can_route(&self, from: (&str, u8), to: (&str, u8)) -> bool {
        self.all
            || self.rules.iter().any(|(rule, targets)| {
                rule.matches(from.0, from.1) && targets.iter().any(|t| t.matches(to.0, to.1))
            })
    }
}
