//! The servers that answer the requests.

use crate::{chain::Chain, reply::Reply, request::Request, tree::Tree};
use std::sync::{Arc, Mutex, PoisonError};

/// A server.
pub trait Backend: Send + Sync {
    /// Answers the request in `chain`; `request` is its parsed copy. If the server wrote the reply to the chain
    /// itself, it returns [`Reply::written`].
    fn answer(&self, chain: &Chain, request: &Request) -> Reply;
}

impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn answer(&self, chain: &Chain, request: &Request) -> Reply {
        (**self).answer(chain, request)
    }
}

impl Backend for Tree {
    fn answer(&self, _chain: &Chain, request: &Request) -> Reply {
        self.reply(request)
    }
}

/// A server of a [`Tree`]; a script may change its good replies.
pub struct Scripted<S> {
    tree: Tree,
    script: Mutex<S>,
}

impl<S: FnMut(&Request, Reply) -> Reply + Send> Scripted<S> {
    pub fn new(tree: Tree, script: S) -> Self {
        let script = Mutex::new(script);
        Self { tree, script }
    }
}

impl<S: FnMut(&Request, Reply) -> Reply + Send> Backend for Scripted<S> {
    fn answer(&self, _chain: &Chain, request: &Request) -> Reply {
        let good = self.tree.reply(request);
        let request = request.with_path(self.tree.path(request));
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        script(&request, good)
    }
}
