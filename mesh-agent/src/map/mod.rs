//! The live map: a web page of who talks to whom, how well, how it is protected, and who was refused by which rule.
//!
//! It asks agents what they tell anyone on their admin addresses ([`Source`]): meshctl asks many, an agent asks itself. The
//! controller asks nobody: agents tell it (`teller`, in `words`), and it answers by what it `heard`.
//! `reading` makes counts of `/metrics`, `history` rates of counts, `world` facts of `/config_dump`, and `picture` the whole
//! of it, all of them pure. `keeper` asks in turn and keeps; `web` serves the page, a snapshot and a stream of them; `gate`
//! says who may see it.
//!
//! What is not looked at costs little: without a looker a round is made each [`keeper::UNWATCHED_EVERY`], for the charts, and
//! agents are told so ([`Source::attend`]).
//!
//! Read-only: nothing here changes an agent, and no answer leads to a question that its own round would not have asked,
//! but for the live connections, which are asked when somebody looks at an edge, and no oftener than [`keeper::FLOWS_AGE`].
//!
//! Not here: TLS (`kubectl port-forward`, or a proxy that has a certificate) and users.

mod gate;
mod heard;
mod history;
mod keeper;
mod page;
mod picture;
mod reading;
mod teller;
mod web;
mod words;
mod world;

#[cfg(test)]
mod large_tests;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::limit::{Limit, limits};
use crate::told::{Name, Told};

pub use gate::{Gate, GateError};
pub use heard::{Cluster, Heard, NotHeard, OnNode, Pods, Telling, Wanted};
pub use keeper::Map;
pub use reading::{Reading, of as counted};
pub use teller::{Line, MAX_REPORT_BYTES, Patience, tell};
pub use web::serve;
pub use words::{Edge, Report, TELL, Welcome};

/// What somebody will answer.
pub type Asked<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who can be asked what agents tell.
pub trait Source: Send + Sync + 'static {
    /// What each of them answers.
    fn ask(&self, path: &'static str) -> Asked<'_, Vec<Told>>;

    /// What one of them answers, whichever: of what all know alike.
    fn ask_one(&self, path: &'static str) -> Asked<'_, Result<Bytes, String>>;

    /// Says whether somebody looks, before each round. How long until what that round asks for is there: who is asked
    /// answers at once, who tells takes a moment.
    fn attend(&self, _is_watched: bool) -> Duration {
        Duration::ZERO
    }

    /// Somebody looks at an edge, of which live connections are asked for next (`/connections`). Whether the answer may be
    /// kept for a moment: not where it is at hand already.
    fn look_at(&self, _from: &str, _to: &str) -> bool {
        true
    }

    /// What each of them has counted since it started; who does not answer is left out.
    fn counts(&self) -> Asked<'_, Vec<(Name, Reading)>> {
        Box::pin(async move {
            let told = self.ask("/metrics").await.into_iter();
            told.filter_map(|Told { name, answer }| Some((name, reading::read(&answer.ok()?)))).collect()
        })
    }

    /// How many edges were left out of those: there are too many.
    fn unread(&self) -> u64 {
        0
    }
}

/// How often agents are asked, where nobody says otherwise.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        LOOK_EVERY, "milliseconds", "between two rounds of questions; what the page shows is as old";
        keeper::UNWATCHED_EVERY, "milliseconds", "the same while nobody looks: a chart has a point of each";
        keeper::WATCHED_LATELY, "milliseconds", "after somebody looked last, then nobody does";
        keeper::FRESH_WITHIN, "milliseconds", "that whoever asks for a picture after nobody looked waits for a new one";
        keeper::WORLD_EVERY, "milliseconds", "between two looks at pods, certificates, routes and policies";
        keeper::FLOWS_AGE, "milliseconds", "how old the list of live connections may be that an edge shows";
        keeper::MOST_FLOWS, "connections", "that an edge shows";
        history::WINDOW, "milliseconds", "what is now: rates and colours are of these";
        history::SAMPLE, "milliseconds", "that one point of a chart stands for";
        history::SAMPLES, "points", "of an edge's charts: a quarter of an hour";
        history::MOST_EDGES, "edges", "with a history of 5 KiB each; more are one edge, `other`, and are counted";
        picture::FAILING_PERCENT, "percent", "of requests that may fail before an edge is called failing";
        picture::OLD_CONFIG, "milliseconds", "from which an agent's world is shown as old";
        picture::LATE_PART, "parts of a life", "a certificate with less than one left is late: it is renewed at half";
        picture::MOST_WORKLOADS, "workloads", "of a picture: those with an edge, then those in trouble; of more it is told how many";
        picture::MOST_REASONS, "sentences", "on what is wrong with one of them; of more it is told how many";
        picture::MOST_DENIALS, "refusals", "of all agents, the newest";
        reading::MOST_BUCKETS, "buckets", "of one histogram of an agent's";
        web::MOST_STREAMS, "streams", "of events at once; as many connections again are left for the rest";
        web::MOST_LAG, "pictures", "that a stream may be behind before it ends; its page comes back by itself";
        web::MAX_FORM_BYTES, "bytes", "of a login";
        words::MOST_EDGES_TOLD, "edges", "that are read of what one agent tells the controller";
        teller::REPLICAS, "replicas", "of the controller that an agent tells";
        teller::MAX_REPORT_BYTES, "bytes", "that an agent tells the controller at once; what would be more is left out";
        teller::SLACK, "bytes", "of that for what stands around its parts";
        teller::MAX_WELCOME_BYTES, "bytes", "of what a replica says of itself";
        teller::WELCOME_TIMEOUT, "milliseconds", "for a connection to the controller and its welcome";
        teller::SIGN_OF_LIFE, "milliseconds", "between two words to a controller whose map nobody looks at; below heard::SILENT";
        teller::SHARED, "milliseconds", "how old may be what one stream to the controller takes of another";
        teller::AGAIN, "milliseconds", "and up to twice that, until a stream to the controller is begun anew";
        teller::LOOK_FOR_ANOTHER, "milliseconds", "and up to twice that, until a replica is looked for that is not told yet";
        teller::NOT_WANTED, "milliseconds", "and up to twice that, where nobody wants to be told";
        heard::SILENT, "milliseconds", "without a word, then a node is shown as silent";
        heard::FORGOTTEN, "milliseconds", "without a word, then a node is forgotten";
        heard::MOST_BYTES, "bytes", "that the controller keeps of what all nodes tell";
        heard::MOST_EDGES_READ, "edges", "that are read of what all nodes tell, each as many; of more it is told how many";
        heard::TOLD_WITHIN, "milliseconds", "for agents to tell what they were asked for: each is read once a second";
        heard::LOOKED_LATELY, "milliseconds", "after somebody looked at an edge last, agents tell its live connections no more";
        heard::MOST_ASKED_BYTES, "bytes", "of names of edges whose live connections agents are asked for at once";
        heard::INDEX_AGE, "milliseconds", "how old the controller's view may be of which pod is on which node";
        gate::MAX_TOKEN_BYTES, "bytes", "of a token";
        gate::MIN_TOKEN_BYTES, "bytes", "of a token: a shorter one can be guessed";
        gate::GUESS_PAUSE, "milliseconds", "until a wrong token is told so; one at a time is judged";
    ]
}
