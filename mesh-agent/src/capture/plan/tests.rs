//! Plans against a model of a node: its pods, its maps and pins, and agents that come, go, and stop in the middle.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

/// A pod's object.
#[derive(Clone, Debug)]
struct Object {
    ip: u8,
    labelled: bool,
    /// The newest holds an IP that several claim.
    created: u64,
}

/// A pod's network namespace with its processes.
#[derive(Clone, Debug)]
struct Sandbox {
    uid: Uid,
    ip: u8,
    interfaces: BTreeSet<u32>,
    /// It has made something that keeps it from being enrolled.
    barred: bool,
}

/// What outlives agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pinned {
    /// A pod's pin directory: where its lookup is attached, and its guards.
    pins: BTreeMap<Uid, (Option<u64>, BTreeSet<u32>)>,
    /// Whether the gate is open.
    gates: BTreeMap<u64, (u8, bool)>,
    guards: BTreeMap<u32, u8>,
    /// The agent and the namespace of the socket.
    listeners: BTreeMap<u8, (u64, u64)>,
    routes: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
struct Agent {
    id: u64,
    held: BTreeMap<u64, Held>,
    /// The newest agent over whose work this one has put its own; itself at first.
    answered: u64,
}

#[derive(Clone, Debug, Default)]
struct Node {
    objects: BTreeMap<Uid, Object>,
    sandboxes: BTreeMap<u64, Sandbox>,
    pinned: Pinned,
    /// The newest is the last.
    agents: Vec<Agent>,
    /// The newest agent that there ever was.
    newest: u64,
    /// Namespaces that were enrolled, each with the guards that it had then, and whose pods nobody said to leave.
    enrolled: BTreeMap<u64, BTreeSet<u32>>,
    numbers: u64,
}

/// What happens to a node.
#[derive(Clone, Debug)]
enum Event {
    Create { uid: u8, ip: u8, labelled: bool },
    Label { uid: u8, labelled: bool },
    DeleteObject { uid: u8 },
    EndSandbox { uid: u8 },
    RenewSandbox { uid: u8 },
    ChangeIp { uid: u8, ip: u8 },
    AddInterface { uid: u8 },
    RemoveInterface { uid: u8 },
    Bar { uid: u8, barred: bool },
    StartAgent,
    KillAgent { which: u8 },
    Reboot,
    Round { which: u8, close: bool, mishap: Mishap },
}

/// What happens in the middle of a round, after so many steps.
#[derive(Clone, Copy, Debug)]
enum Mishap {
    None,
    Killed(usize),
    StepFails(usize),
    NewerAgentStarts(usize),
}

fn name(uid: u8) -> Uid {
    format!("pod-{uid}").into()
}

fn address(ip: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, ip).into()
}

impl Node {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Create { uid, ip, labelled } => {
                let (uid, ip, labelled) = (name(*uid), *ip, *labelled);
                // No network plugin gives an address away that a living pod has.
                let taken = self.sandboxes.values().any(|sandbox| sandbox.ip == ip || sandbox.uid == uid);
                if taken || self.objects.contains_key(&uid) {
                    return;
                }
                let created = self.number();
                self.objects.insert(uid.clone(), Object { ip, labelled, created });
                self.add_sandbox(uid, ip);
            }
            Event::Label { uid, labelled } => {
                if let Some(object) = self.objects.get_mut(&name(*uid)) {
                    object.labelled = *labelled;
                    self.enrolled.retain(|cookie, _| *labelled || self.sandboxes[cookie].uid != name(*uid));
                }
            }
            Event::DeleteObject { uid } => drop(self.objects.remove(&name(*uid))),
            Event::EndSandbox { uid } => drop(self.end_sandbox(&name(*uid))),
            Event::RenewSandbox { uid } => {
                if let Some(ended) = self.end_sandbox(&name(*uid)) {
                    self.add_sandbox(ended.uid, ended.ip);
                }
            }
            Event::ChangeIp { uid, ip } => {
                let uid = name(*uid);
                if self.sandboxes.values().any(|sandbox| sandbox.ip == *ip) {
                    return;
                }
                let sandbox = self.sandboxes.values_mut().find(|sandbox| sandbox.uid == uid);
                if let (Some(object), Some(sandbox)) = (self.objects.get_mut(&uid), sandbox) {
                    (object.ip, sandbox.ip) = (*ip, *ip);
                }
            }
            Event::AddInterface { uid } => {
                let index = self.number() as u32;
                if let Some(sandbox) = self.sandboxes.values_mut().find(|sandbox| sandbox.uid == name(*uid)) {
                    sandbox.interfaces.insert(index);
                }
            }
            Event::RemoveInterface { uid } => {
                if let Some(sandbox) = self.sandboxes.values_mut().find(|sandbox| sandbox.uid == name(*uid))
                    && sandbox.interfaces.len() > 1
                {
                    let gone = sandbox.interfaces.pop_first().expect("more than one");
                    self.enrolled.values_mut().for_each(|guards| guards.retain(|index| *index != gone));
                }
            }
            Event::Bar { uid, barred } => {
                if let Some(sandbox) = self.sandboxes.values_mut().find(|sandbox| sandbox.uid == name(*uid)) {
                    sandbox.barred = *barred;
                }
            }
            Event::StartAgent => self.start_agent(),
            Event::KillAgent { which } => {
                if let Some(index) = self.choose(*which) {
                    self.kill(index);
                }
            }
            Event::Reboot => {
                while !self.agents.is_empty() {
                    self.kill(0);
                }
                self.pinned = Pinned::default();
                self.enrolled.clear();
                let before: Vec<Sandbox> = std::mem::take(&mut self.sandboxes).into_values().collect();
                before.into_iter().for_each(|sandbox| self.add_sandbox(sandbox.uid, sandbox.ip));
            }
            Event::Round { which, close, mishap } => {
                if let Some(index) = self.choose(*which) {
                    self.round(index, *close, *mishap);
                }
            }
        }
    }

    fn add_sandbox(&mut self, uid: Uid, ip: u8) {
        let (cookie, index) = (self.number(), self.number() as u32);
        self.sandboxes.insert(cookie, Sandbox { uid, ip, interfaces: BTreeSet::from([index]), barred: false });
    }

    fn end_sandbox(&mut self, uid: &Uid) -> Option<Sandbox> {
        let cookie = *self.sandboxes.iter().find(|(_, sandbox)| sandbox.uid == *uid)?.0;
        self.pinned.routes.remove(&cookie);
        self.enrolled.remove(&cookie);
        self.sandboxes.remove(&cookie)
    }

    fn choose(&self, which: u8) -> Option<usize> {
        usize::from(which).checked_rem(self.agents.len())
    }

    fn start_agent(&mut self) {
        let id = self.number();
        self.agents.push(Agent { id, held: BTreeMap::new(), answered: id });
        self.newest = id;
    }

    fn kill(&mut self, index: usize) {
        let Agent { id, .. } = self.agents.remove(index);
        self.pinned.listeners.retain(|_, (agent, _)| *agent != id);
    }

    /// As `state` has it: of several that claim an IP the newest holds it.
    fn wanted(&self) -> BTreeMap<Uid, BTreeSet<IpAddr>> {
        let holds = |object: &Object| {
            let newer = |other: &Object| other.ip == object.ip && other.created > object.created;
            !self.objects.values().any(newer)
        };
        let wanted = self.objects.iter().filter(|(_, object)| object.labelled && holds(object));
        wanted.map(|(uid, object)| (uid.clone(), BTreeSet::from([address(object.ip)]))).collect()
    }

    fn view(&self, agent: &Agent, close: bool, duty: Duty) -> View {
        let wanted = self.wanted();
        let mut held = agent.held.clone();
        for (cookie, pod) in &mut held {
            let sandbox = self.sandboxes.get(cookie);
            pod.fits = wanted.get(&pod.uid) == Some(&pod.ips);
            pod.may_leave = self.may_leave(&pod.uid);
            pod.elsewhere = sandbox.is_none() && self.sandboxes.values().any(|other| other.uid == pod.uid);
            // A pod that is wanted is looked at closely now and then only.
            if close || !pod.fits || pod.phase != Phase::Enrolled {
                pod.present = sandbox.is_some();
            }
            let looks = close && pod.phase == Phase::Enrolled && pod.fits && pod.present;
            pod.interfaces = sandbox.filter(|_| looks).map(|sandbox| sandbox.interfaces.clone());
        }
        let is_held = |uid: &Uid| {
            held.values().any(|pod| pod.uid == *uid && pod.phase == Phase::Enrolled && pod.fits && pod.present)
        };
        let to_find = self.sandboxes.iter().filter(|(_, sandbox)| {
            let ips = BTreeSet::from([address(sandbox.ip)]);
            duty != Duty::LetGo && wanted.get(&sandbox.uid) == Some(&ips) && !is_held(&sandbox.uid)
        });
        let found = to_find.map(|(cookie, sandbox)| {
            let Sandbox { uid, interfaces, barred, .. } = sandbox;
            let barred = *barred && !self.was_enrolled(*cookie, sandbox);
            (uid.clone(), Found { cookie: *cookie, interfaces: interfaces.clone(), barred })
        });
        let found = found.collect();
        let ips = |ip: &u8| BTreeSet::from([address(*ip)]);
        let Pinned { pins, gates, guards, .. } = &self.pinned;
        let kernel = (close && duty != Duty::LetGo).then(|| Kernel {
            pins: pins.iter().map(|(uid, (_, guards))| (uid.clone(), guards.clone())).collect(),
            gates: gates.iter().map(|(cookie, (ip, _))| (*cookie, ips(ip))).collect(),
            guards: guards.iter().map(|(index, ip)| (*index, ips(ip))).collect(),
            forsaken: self.forsaken(&wanted, &held),
        });
        View { wanted, held, found, kernel }
    }

    /// Whether a pod's object says that it is not asked for.
    fn may_leave(&self, uid: &Uid) -> bool {
        self.objects.get(uid).is_some_and(|object| !object.labelled)
    }

    /// The pods with pins that live where the agent holds nothing, and of which nobody speaks.
    fn forsaken(
        &self,
        wanted: &BTreeMap<Uid, BTreeSet<IpAddr>>,
        held: &BTreeMap<u64, Held>,
    ) -> BTreeMap<Uid, Option<Forsaken>> {
        let living = self.sandboxes.iter().filter(|(cookie, Sandbox { uid, .. })| {
            let is_silent = !wanted.contains_key(uid) && !self.may_leave(uid);
            let is_held = held.get(cookie).is_some_and(|pod| pod.phase != Phase::Joining);
            is_silent && self.pinned.pins.contains_key(uid) && !is_held
        });
        let place = |cookie: u64, interfaces: &BTreeSet<u32>| Forsaken { cookie, interfaces: interfaces.clone() };
        living.map(|(cookie, pod)| (pod.uid.clone(), Some(place(*cookie, &pod.interfaces)))).collect()
    }

    /// Whether an agent enrolled it by a link that it still has.
    fn was_enrolled(&self, cookie: u64, sandbox: &Sandbox) -> bool {
        let Pinned { gates, guards, .. } = &self.pinned;
        gates.get(&cookie) == Some(&(sandbox.ip, true))
            && sandbox.interfaces.iter().any(|index| guards.get(index) == Some(&sandbox.ip))
    }

    fn duty(&self, index: usize) -> Duty {
        let is_owner = index + 1 == self.agents.len();
        match is_owner {
            true if self.agents[index].answered < self.newest => Duty::Resume,
            true => Duty::Own,
            false => Duty::LetGo,
        }
    }

    /// One round of an agent; returns what it did.
    fn round(&mut self, index: usize, close: bool, mishap: Mishap) -> Vec<Step> {
        let (duty, newest) = (self.duty(index), self.newest);
        let view = self.view(&self.agents[index], close || duty == Duty::Resume, duty);
        let id = self.agents[index].id;
        // What the look has seen; and what left before this round has had its time.
        for (cookie, pod) in &view.held {
            let own = self.agents[index].held.get_mut(cookie).expect("held");
            (own.present, own.fits) = (pod.present, pod.fits);
            if let Phase::Departed { due } = &mut own.phase {
                *due = true;
            }
        }
        let steps = plan(&view, duty).steps;
        let mut failures = Failures::default();
        for (number, step) in steps.iter().enumerate() {
            match mishap {
                Mishap::Killed(after) if after == number => {
                    self.kill(index);
                    return steps;
                }
                Mishap::NewerAgentStarts(after) if after == number => self.start_agent(),
                _ => {}
            }
            if failures.forbid(step) {
                continue;
            }
            if step.is_owners() && index + 1 != self.agents.len() {
                return steps;
            }
            // The removal of a map's entry fails only where there is none, and letting go needs nobody's help.
            let can_fail = !matches!(
                step,
                Step::RemoveGate { .. }
                    | Step::Unguard { .. }
                    | Step::Release { .. }
                    | Step::Forsake { .. }
                    | Step::LetGo { .. }
            );
            if can_fail && matches!(mishap, Mishap::StepFails(at) if at == number) {
                failures.add(step, |cookie| Some(self.agents[index].held.get(&cookie)?.uid.clone()));
                let phase = step.cookie().and_then(|cookie| Some(self.agents[index].held.get(&cookie)?.phase));
                let phase = phase.unwrap_or(Phase::Joining);
                let has = |cookie: u64| self.sandboxes.get(&cookie).map(|sandbox| sandbox.interfaces.clone());
                let has = step.cookie().and_then(has).unwrap_or_default();
                for step in step.cookie().into_iter().flat_map(|cookie| after_failure(cookie, phase, step, &has)) {
                    self.act(id, &view, &step);
                }
            } else {
                self.act(id, &view, step);
            }
            self.check(step);
        }
        if let Some(agent) = self.agents.iter_mut().find(|agent| agent.id == id)
            && duty != Duty::LetGo
        {
            agent.answered = newest;
        }
        steps
    }

    /// What a step does to the node.
    fn act(&mut self, id: u64, view: &View, step: &Step) {
        let Self { pinned, agents, sandboxes, .. } = self;
        let held = &mut agents.iter_mut().find(|agent| agent.id == id).expect("alive").held;
        let last = |ips: &BTreeSet<IpAddr>| match ips.first() {
            Some(IpAddr::V4(ip)) => ip.octets()[3],
            _ => panic!("an address of the model"),
        };
        let ip_of = |held: &BTreeMap<u64, Held>, cookie: &u64| held.get(cookie).map(|pod| last(&pod.ips));
        match step {
            Step::Join { uid, cookie } => {
                pinned.pins.entry(uid.clone()).or_default();
                let pod = Held {
                    uid: uid.clone(),
                    ips: view.wanted[uid].clone(),
                    phase: Phase::Joining,
                    fits: true,
                    present: true,
                    elsewhere: false,
                    may_leave: false,
                    guards: BTreeSet::new(),
                    interfaces: None,
                    closed: false,
                };
                held.insert(*cookie, pod);
            }
            Step::AddRoutes { cookie } | Step::RestoreRoutes { cookie } => {
                if sandboxes.contains_key(cookie) {
                    pinned.routes.insert(*cookie);
                }
            }
            Step::Steer { cookie } => drop(pinned.listeners.insert(ip_of(held, cookie).expect("held"), (id, *cookie))),
            Step::Announce { .. } => {}
            Step::AttachLookup { cookie } => {
                pinned.pins.entry(held[cookie].uid.clone()).or_default().0 = Some(*cookie);
            }
            Step::OpenGate { cookie } | Step::CloseGate { cookie } => {
                let open = matches!(step, Step::OpenGate { .. });
                let found = view.found.iter().find(|(_, found)| found.cookie == *cookie);
                let ip = ip_of(held, cookie).or_else(|| found.map(|(uid, _)| last(&view.wanted[uid])));
                if let Some(ip) = ip {
                    pinned.gates.insert(*cookie, (ip, open));
                }
                if let Some(pod) = held.get_mut(cookie) {
                    pod.closed = !open;
                }
            }
            Step::Guard { cookie, index } => {
                let pod = held.get_mut(cookie).expect("held");
                pod.guards.insert(*index);
                pinned.guards.insert(*index, last(&pod.ips));
                pinned.pins.entry(pod.uid.clone()).or_default().1.insert(*index);
            }
            Step::Settle { cookie } => {
                let pod = held.get_mut(cookie).expect("held");
                pod.phase = Phase::Enrolled;
                // Whoever was told to leave meanwhile does in the next round.
                let is_asked_for = self.objects.get(&pod.uid).is_some_and(|object| object.labelled);
                if sandboxes.contains_key(cookie) && is_asked_for {
                    self.enrolled.insert(*cookie, pod.guards.clone());
                }
            }
            Step::Unguard { uid, index } => {
                pinned.guards.remove(index);
                if let Some((_, guards)) = uid.as_ref().and_then(|uid| pinned.pins.get_mut(uid)) {
                    guards.remove(index);
                }
                held.values_mut().filter(|pod| Some(&pod.uid) == uid.as_ref()).for_each(|pod| {
                    pod.guards.remove(index);
                });
            }
            Step::RemoveGate { cookie } => drop(pinned.gates.remove(cookie)),
            Step::DetachLookup { uid } => {
                if let Some((lookup, _)) = pinned.pins.get_mut(uid) {
                    *lookup = None;
                }
            }
            Step::Release { cookie } | Step::Forsake { cookie } => {
                pinned.listeners.retain(|_, listener| *listener != (id, *cookie));
                let is_refused = matches!(step, Step::Forsake { .. });
                if let Some(pod) = held.get_mut(cookie) {
                    pod.phase = if is_refused { Phase::Forsaken } else { Phase::Departed { due: false } };
                }
            }
            Step::RemoveRoutes { cookie } => drop(pinned.routes.remove(cookie)),
            Step::RemoveStrangersRoutes { uid } => {
                pinned.routes.retain(|cookie| sandboxes.get(cookie).is_none_or(|sandbox| sandbox.uid != *uid));
            }
            Step::RemovePins { uid } => drop(pinned.pins.remove(uid)),
            Step::LetGo { cookie } => drop(held.remove(cookie)),
        }
    }

    /// What holds at every moment, whoever did something last.
    fn check(&self, last: &Step) {
        let wanted = self.wanted();
        for (cookie, sandbox) in &self.sandboxes {
            if self.pinned.gates.get(cookie).is_some_and(|(_, open)| *open) {
                let lookup = self.pinned.pins.get(&sandbox.uid).and_then(|(lookup, _)| *lookup);
                assert_eq!(lookup, Some(*cookie), "an open gate and nothing on the other side, after {last:?}");
            }
        }
        for (cookie, guards) in &self.enrolled {
            let Pinned { pins, gates, guards: pinned, .. } = &self.pinned;
            let uid = &self.sandboxes[cookie].uid;
            let is_kept = gates.contains_key(cookie)
                && guards.iter().all(|index| pinned.contains_key(index))
                && pins.get(uid).is_some_and(|(lookup, _)| *lookup == Some(*cookie));
            assert!(is_kept, "{uid}, who did not ask for it, is its own after {last:?}: {:#?}", self.pinned);
        }
        let Some(owner) = self.agents.last().filter(|owner| owner.answered == self.newest) else { return };
        for (cookie, pod) in &owner.held {
            let Some(sandbox) = self.sandboxes.get(cookie) else { continue };
            let stays = pod.fits && pod.present && wanted.get(&pod.uid) == Some(&pod.ips);
            if pod.phase != Phase::Enrolled || !stays || pod.closed {
                continue;
            }
            let Pinned { pins, gates, guards, listeners, routes } = &self.pinned;
            let whole = gates.get(cookie) == Some(&(sandbox.ip, true))
                && listeners.get(&sandbox.ip) == Some(&(owner.id, *cookie))
                && routes.contains(cookie)
                && pins.get(&pod.uid).is_some_and(|(lookup, pinned)| {
                    *lookup == Some(*cookie) && pod.guards.iter().all(|index| pinned.contains(index))
                })
                && pod.guards.iter().all(|index| guards.get(index) == Some(&sandbox.ip));
            assert!(whole, "{} lost something after {last:?}: {:#?}", pod.uid, self.pinned);
        }
    }

    /// Whether this is of a pod that the owner cannot enrol. What it has enrolled it keeps.
    fn is_refused(&self, cookie: u64) -> bool {
        let is_held = self.agents.last().is_some_and(|owner| owner.held.contains_key(&cookie));
        !is_held && self.sandboxes.get(&cookie).is_some_and(|sandbox| sandbox.barred)
    }

    /// What one agent makes of these pods where nothing was before.
    fn made_anew(&self, owner: u64) -> Pinned {
        let mut pinned = Pinned::default();
        let wanted = self.wanted();
        for (cookie, sandbox) in self.sandboxes.iter().filter(|(_, sandbox)| wanted.contains_key(&sandbox.uid)) {
            let refused = self.is_refused(*cookie);
            pinned.pins.insert(sandbox.uid.clone(), (Some(*cookie), sandbox.interfaces.clone()));
            pinned.gates.insert(*cookie, (sandbox.ip, !refused));
            pinned.guards.extend(sandbox.interfaces.iter().map(|index| (*index, sandbox.ip)));
            if refused {
                continue;
            }
            pinned.listeners.insert(sandbox.ip, (owner, *cookie));
            pinned.routes.insert(*cookie);
        }
        pinned
    }

    /// Lets things come to rest; returns the owner.
    fn rest(&mut self) -> u64 {
        // What is not there yet may come: its leftovers are kept for it.
        let here: BTreeSet<Uid> = self.sandboxes.values().map(|sandbox| sandbox.uid.clone()).collect();
        self.objects.retain(|uid, _| here.contains(uid));
        if self.agents.is_empty() {
            self.start_agent();
        }
        self.rounds();
        self.check_free();
        // Whoever is forsaken ends.
        let there: BTreeSet<Uid> = self.objects.keys().cloned().collect();
        here.difference(&there).for_each(|uid| drop(self.end_sandbox(uid)));
        self.rounds();
        self.agents.last().expect("an agent").id
    }

    fn rounds(&mut self) {
        for _ in 0..4 {
            for index in 0..self.agents.len() {
                self.round(index, true, Mishap::None);
            }
        }
    }

    /// Nobody who may leave is kept because of others who may not.
    fn check_free(&self) {
        let Pinned { pins, gates, guards, .. } = &self.pinned;
        for (cookie, Sandbox { uid, interfaces, .. }) in &self.sandboxes {
            if self.may_leave(uid) {
                let is_free = !gates.contains_key(cookie) && !pins.contains_key(uid);
                let is_unguarded = interfaces.iter().all(|index| !guards.contains_key(index));
                assert!(is_free && is_unguarded, "{uid} may leave, and is not its own: {:#?}", self.pinned);
            }
        }
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let (uid, ip) = (0u8..4, 0u8..3);
    let mishap = prop_oneof![
        4 => Just(Mishap::None),
        1 => (0usize..24).prop_map(Mishap::Killed),
        1 => (0usize..24).prop_map(Mishap::StepFails),
        1 => (0usize..24).prop_map(Mishap::NewerAgentStarts),
    ];
    let event = prop_oneof![
        5 => (uid.clone(), ip.clone(), prop::bool::weighted(0.8))
            .prop_map(|(uid, ip, labelled)| Event::Create { uid, ip, labelled }),
        3 => (uid.clone(), any::<bool>()).prop_map(|(uid, labelled)| Event::Label { uid, labelled }),
        2 => uid.clone().prop_map(|uid| Event::DeleteObject { uid }),
        3 => uid.clone().prop_map(|uid| Event::EndSandbox { uid }),
        1 => uid.clone().prop_map(|uid| Event::RenewSandbox { uid }),
        1 => (uid.clone(), ip).prop_map(|(uid, ip)| Event::ChangeIp { uid, ip }),
        1 => uid.clone().prop_map(|uid| Event::AddInterface { uid }),
        1 => uid.clone().prop_map(|uid| Event::RemoveInterface { uid }),
        2 => (uid, any::<bool>()).prop_map(|(uid, barred)| Event::Bar { uid, barred }),
        2 => Just(Event::StartAgent),
        2 => any::<u8>().prop_map(|which| Event::KillAgent { which }),
        1 => Just(Event::Reboot),
        12 => (any::<u8>(), any::<bool>(), mishap)
            .prop_map(|(which, close, mishap)| Event::Round { which, close, mishap }),
    ];
    prop::collection::vec(event, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The invariants are checked after every step, see [`Node::check`].
    #[test]
    fn whatever_happens_every_pod_ends_as_from_scratch(events in events()) {
        let mut node = Node::default();
        for event in &events {
            node.happens(event);
        }
        let owner = node.rest();
        let expected = node.made_anew(owner);
        // Routes lead nowhere, and an older agent serves what arrives for as long as it drains.
        let refused: Vec<u64> = node.sandboxes.keys().copied().filter(|cookie| node.is_refused(*cookie)).collect();
        node.pinned.routes.retain(|cookie| !refused.contains(cookie));
        node.pinned.listeners.retain(|_, (_, cookie)| !refused.contains(cookie));
        prop_assert_eq!(&node.pinned, &expected);
        // And then there is nothing left to do but to look.
        for index in 0..node.agents.len() {
            let steps = node.round(index, true, Mishap::None);
            let again = |step: &Step| step.cookie().is_some_and(|cookie| refused.contains(&cookie));
            let rests = |step: &Step| matches!(step, Step::RestoreRoutes { .. }) || again(step);
            prop_assert!(steps.iter().all(rests), "{:?}", steps);
        }
    }
}

/// Of one that is forsaken and was not found nobody knows what in the maps is its own: nothing is taken out.
#[test]
fn what_may_be_a_forsaken_pods_stays() {
    let ips = BTreeSet::from([address(1)]);
    let kernel = |forsaken: Option<Forsaken>| Kernel {
        pins: BTreeMap::from([(name(1), BTreeSet::new()), (name(2), BTreeSet::from([8]))]),
        gates: BTreeMap::from([(11, ips.clone()), (12, ips.clone())]),
        guards: BTreeMap::from([(7, ips.clone()), (8, ips.clone())]),
        forsaken: BTreeMap::from([(name(1), forsaken)]),
    };
    let view = |forsaken| View { kernel: Some(kernel(forsaken)), ..View::default() };
    let found = Forsaken { cookie: 11, interfaces: BTreeSet::from([7]) };
    let others = [
        Step::RemoveGate { cookie: 12 },
        Step::Unguard { uid: Some(name(2)), index: 8 },
        Step::DetachLookup { uid: name(2) },
        Step::RemoveStrangersRoutes { uid: name(2) },
        Step::RemovePins { uid: name(2) },
    ];
    assert_eq!(plan(&view(Some(found)), Duty::Own).steps, others);
    assert_eq!(plan(&view(None), Duty::Own).steps, []);
}

/// A pod that shares an address with another that lives waits, and is refused meanwhile.
#[test]
fn of_two_living_pods_with_one_address_the_first_keeps_it() {
    let ips = BTreeSet::from([address(1)]);
    let held = Held {
        uid: name(1),
        ips: ips.clone(),
        phase: Phase::Enrolled,
        fits: true,
        present: true,
        elsewhere: false,
        may_leave: false,
        guards: BTreeSet::from([7]),
        interfaces: None,
        closed: false,
    };
    let view = View {
        wanted: BTreeMap::from([(name(1), ips.clone()), (name(2), ips)]),
        held: BTreeMap::from([(11, held)]),
        found: BTreeMap::from([(name(2), Found { cookie: 12, interfaces: BTreeSet::from([8]), barred: false })]),
        kernel: None,
    };
    let expected = Plan { steps: vec![Step::CloseGate { cookie: 12 }], in_conflict: vec![name(2)] };
    assert_eq!(plan(&view, Duty::Own), expected);
    assert_eq!(plan(&view, Duty::LetGo), Plan::default());
}
