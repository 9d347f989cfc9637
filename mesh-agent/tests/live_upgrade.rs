//! Ring 2: a live connection of TLS 1.3 goes from one process to another, and its client does not notice. A prototype:
//! docs/design/live-upgrade.md says what it shows, and what is missing before agents could do it.
//!
//! ```text
//! client ══TLS 1.3══► older process: handshake, some words
//!    ║                  │ the socket (SCM_RIGHTS), keys, IVs and counters of records
//!    ╚════════════════► newer process: more words, the same connection
//! ```

mod support;

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundPlainMessage,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion, RootCertStore,
    ServerConfig, ServerConnection, Stream, SupportedCipherSuite, version,
};
use support::{TestCa, id};

/// Where the newer process finds the socket that it is handed the connection by.
const SUCCESSOR: &str = "NODEMESH_TEST_SUCCESSOR";

/// Of a record: type, version, length.
const HEAD: usize = 5;
const LENGTH_OF_KEYS: usize = 32 + 12 + 8;
/// A word of the test.
const WORD: usize = 8;
const WORDS: u64 = 50;

#[test]
fn a_live_connection_goes_to_another_process_unnoticed() {
    let (server, client) = configs();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut newer = successor(theirs);
    // Words and answers, one after another; the third part without waiting, so that some are on their way at the handover.
    let client = std::thread::spawn(move || {
        let mut tls = ClientConnection::new(client, ServerName::try_from("server.test").unwrap()).unwrap();
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut tls = Stream::new(&mut tls, &mut tcp);
        let mut pids = Vec::new();
        for number in 0..WORDS {
            tls.write_all(&number.to_be_bytes()).unwrap();
            if number < WORDS / 2 {
                pids.push(answer(&mut tls, number));
            }
        }
        (WORDS / 2..WORDS).for_each(|number| pids.push(answer(&mut tls, number)));
        pids
    });
    let (tcp, _) = listener.accept().unwrap();
    hand_over(serve(server, tcp, WORDS / 3), ours);
    let pids = client.join().unwrap();
    assert!(newer.wait().unwrap().success(), "the newer process failed");
    let by = |pid: u32| pids.iter().filter(|of| **of == pid).count() as u64;
    assert_eq!([by(std::process::id()), by(newer.id())], [WORDS / 3, WORDS - WORDS / 3], "{pids:?}");
}

/// The newer process: this program once more, which does nothing where no socket is handed to it.
#[test]
fn successor_of_another_process() {
    if std::env::var_os(SUCCESSOR).is_some() {
        go_on(Taken::receive());
    }
}

fn successor(theirs: UnixStream) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--nocapture", "--exact", "successor_of_another_process"]).env(SUCCESSOR, "1");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).spawn().unwrap()
}

/// Who answered a word.
fn answer(tls: &mut impl Read, number: u64) -> u32 {
    let mut said = [0; WORD + 4];
    tls.read_exact(&mut said).unwrap();
    let (word, pid) = said.split_at(WORD);
    assert_eq!(word, number.to_be_bytes(), "an answer to another word");
    u32::from_be_bytes(pid.try_into().unwrap())
}

fn reply(word: &[u8]) -> Vec<u8> {
    [word, &std::process::id().to_be_bytes()].concat()
}

/// One suite: its keys have the one length that can be made a key again from outside of rustls.
fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![cipher_suite::TLS13_AES_256_GCM_SHA384];
    Arc::new(CryptoProvider { cipher_suites, ..default_provider() })
}

fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let ca = TestCa::new();
    let name = "server.test".try_into().map(rcgen::SanType::DnsName).unwrap();
    let leaf = ca.forge(&id("server"), |params| params.subject_alt_names = vec![name]);
    let root: CertificateDer<'static> = {
        use mesh_agent::identity::CertificateAuthority;
        ca.state().borrow().roots[0].clone()
    };
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let server = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13]).unwrap();
    let mut server = server.with_no_client_auth().with_single_cert(leaf.chain, leaf.key).unwrap();
    server.enable_secret_extraction = true;
    // A ticket that is still to be sent would be lost.
    server.send_tls13_tickets = 0;
    let client = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13]).unwrap();
    (Arc::new(server), Arc::new(client.with_root_certificates(roots).with_no_client_auth()))
}

/// What one process takes over from another.
struct Taken {
    tcp: TcpStream,
    /// Key, IV, number of the next record: what is sent, and what is received.
    sends: [u8; LENGTH_OF_KEYS],
    receives: [u8; LENGTH_OF_KEYS],
    /// Read, and not answered yet.
    rest: Vec<u8>,
}

/// The older process: a handshake and so many words, then what is to be handed over. rustls does not give back what it has
/// read of a record that is not whole, so it is given whole ones alone.
fn serve(config: Arc<ServerConfig>, mut tcp: TcpStream, words: u64) -> Taken {
    let mut tls = ServerConnection::new(config).unwrap();
    let (mut rest, mut answered) = (Vec::new(), 0);
    while answered < words || tls.is_handshaking() {
        let record = read_record(&mut tcp).unwrap();
        tls.read_tls(&mut &record[..]).unwrap();
        let state = tls.process_new_packets().unwrap();
        let mut said = vec![0; state.plaintext_bytes_to_read()];
        tls.reader().read_exact(&mut said).unwrap();
        rest.extend(said);
        while rest.len() >= WORD && answered < words {
            let word: Vec<u8> = rest.drain(..WORD).collect();
            tls.writer().write_all(&reply(&word)).unwrap();
            answered += 1;
        }
        while tls.wants_write() {
            tls.write_tls(&mut tcp).unwrap();
        }
    }
    let secrets = tls.dangerous_extract_secrets().unwrap();
    Taken { tcp, sends: plain(&secrets.tx), receives: plain(&secrets.rx), rest }
}

fn plain((number, secrets): &(u64, ConnectionTrafficSecrets)) -> [u8; LENGTH_OF_KEYS] {
    let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another suite") };
    [key.as_ref(), iv.as_ref(), &number.to_be_bytes()].concat().try_into().unwrap()
}

/// One record as it is on the wire; nothing at the end of the connection.
fn read_record(tcp: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut record = vec![0; HEAD];
    tcp.read_exact(&mut record)?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(HEAD + length, 0);
    tcp.read_exact(&mut record[HEAD..])?;
    Ok(record)
}

fn hand_over(taken: Taken, to: UnixStream) {
    let sockets = [taken.tcp.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    assert!(beside.push(SendAncillaryMessage::ScmRights(&sockets)));
    let state = [&taken.sends[..], &taken.receives, &taken.rest].concat();
    let sent = sendmsg(&to, &[IoSlice::new(&state)], &mut beside, SendFlags::empty()).unwrap();
    assert_eq!(sent, state.len());
    // What goes last here is this process' socket: the connection lives on in the other.
}

impl Taken {
    fn receive() -> Self {
        let from = std::io::stdin();
        let mut state = [0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&from, &mut [IoSliceMut::new(&mut state)], &mut beside, RecvFlags::empty()).unwrap().bytes;
        let mut sockets = beside.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => sockets.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let tcp = TcpStream::from(sockets.next().unwrap());
        let (sends, rest) = state[..received].split_at(LENGTH_OF_KEYS);
        let (receives, rest) = rest.split_at(LENGTH_OF_KEYS);
        Self { tcp, sends: sends.try_into().unwrap(), receives: receives.try_into().unwrap(), rest: rest.to_vec() }
    }
}

/// Records from keys that were handed over; rustls has no connection that begins so.
struct Records {
    encrypter: Box<dyn MessageEncrypter>,
    decrypter: Box<dyn MessageDecrypter>,
    sent: u64,
    received: u64,
}

impl Records {
    fn of(taken: &Taken) -> Self {
        let SupportedCipherSuite::Tls13(suite) = cipher_suite::TLS13_AES_256_GCM_SHA384 else { panic!("no suite") };
        let parts = |keys: &[u8; LENGTH_OF_KEYS]| {
            let key: [u8; 32] = keys[..32].try_into().unwrap();
            let iv: [u8; 12] = keys[32..44].try_into().unwrap();
            (AeadKey::from(key), Iv::new(iv), u64::from_be_bytes(keys[44..].try_into().unwrap()))
        };
        let ((key, iv, sent), (their_key, their_iv, received)) = (parts(&taken.sends), parts(&taken.receives));
        let encrypter = suite.aead_alg.encrypter(key, iv);
        let decrypter = suite.aead_alg.decrypter(their_key, their_iv);
        let mut records = Self { encrypter, decrypter, sent: 0, received };
        // AWS-LC takes the number of the first record that it seals for zero, and refuses later ones that seem to go back by
        // it. So it has one of number zero, which nobody gets.
        records.seal(&[]);
        records.sent = sent;
        records
    }

    fn open(&mut self, mut record: Vec<u8>) -> Option<Vec<u8>> {
        let payload = &mut record[HEAD..];
        let message = InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload);
        let opened = self.decrypter.decrypt(message, self.received).unwrap();
        self.received += 1;
        // An alert is the end. A KeyUpdate would need the secret that the keys are made of, which rustls does not give.
        assert!(matches!(opened.typ, ContentType::ApplicationData | ContentType::Alert), "{:?}", opened.typ);
        (opened.typ == ContentType::ApplicationData).then(|| opened.payload.to_vec())
    }

    fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let message = OutboundPlainMessage {
            typ: ContentType::ApplicationData,
            version: ProtocolVersion::TLSv1_3,
            payload: bytes.into(),
        };
        let sealed = self.encrypter.encrypt(message, self.sent).unwrap();
        self.sent += 1;
        sealed.encode()
    }
}

/// The newer process: answers what is left of the words.
fn go_on(mut taken: Taken) {
    let mut records = Records::of(&taken);
    let mut rest = std::mem::take(&mut taken.rest);
    let mut left = WORDS - WORDS / 3;
    while left > 0 {
        while rest.len() >= WORD {
            let word: Vec<u8> = rest.drain(..WORD).collect();
            let sealed = records.seal(&reply(&word));
            taken.tcp.write_all(&sealed).unwrap();
            left -= 1;
        }
        if left > 0 {
            let record = read_record(&mut taken.tcp).unwrap();
            rest.extend(records.open(record).expect("the client went before all was answered"));
        }
    }
}
