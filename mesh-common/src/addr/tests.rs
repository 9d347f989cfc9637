extern crate std;

use core::net::{IpAddr, SocketAddr};
use std::vec::Vec;

use super::*;

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().expect("an address").into()
}

#[test]
fn layout_has_no_padding() {
    assert_eq!((size_of::<Ip>(), align_of::<Ip>()), (16, 4));
    assert_eq!((size_of::<Endpoint>(), align_of::<Endpoint>()), (20, 4));
    assert_eq!((size_of::<FourTuple>(), align_of::<FourTuple>()), (36, 4));
}

#[test]
fn words_and_octets_agree() {
    let v6 = ip("fd99:1:2:3:4:5:6:7");
    assert_eq!(Ip::from_words(v6.words()), v6);
    let v4 = ip("10.1.2.3");
    assert_eq!(v4.octets()[10..], [0xff, 0xff, 10, 1, 2, 3]);
    assert_eq!(Ip::from_v4_word(v4.v4_word()), v4);
    assert_eq!(v4.v4_host_order(), 0x0a01_0203);
}

#[test]
fn classes() {
    // address, v4, loopback, capture, source, unspecified, link-local
    let table = [
        ("127.0.0.1", 'l'),
        ("127.63.255.255", 'l'),
        ("127.64.0.0", 's'),
        ("127.127.255.255", 's'),
        ("127.128.0.0", 'c'),
        ("127.255.255.255", 'c'),
        ("128.0.0.1", '-'),
        ("10.0.0.1", '-'),
        ("0.0.0.0", 'u'),
        ("::", 'u'),
        ("::1", 'l'),
        ("::2", '-'),
        ("fe80::1", 'k'),
        ("febf::1", 'k'),
        ("fec0::1", '-'),
        ("fd6e:6f64:656d:6573::1", 'c'),
        ("fd6e:6f64:656d:6572::1", 's'),
        ("fd6e:6f64:656d:6574::1", '-'),
        ("::ffff:127.0.0.1", 'l'),
    ];
    for (text, class) in table {
        let ip = ip(text);
        let seen: Vec<char> = [
            (ip.is_capture(), 'c'),
            (ip.is_agent_source(), 's'),
            (ip.is_loopback() && !ip.is_capture() && !ip.is_agent_source(), 'l'),
            (ip.is_unspecified(), 'u'),
            (ip.is_v6_link_local(), 'k'),
        ]
        .iter()
        .filter_map(|(holds, c)| holds.then_some(*c))
        .collect();
        let expected: Vec<char> = if class == '-' { Vec::new() } else { [class].to_vec() };
        assert_eq!(seen, expected, "{text}");
    }
}

#[test]
fn socket_addresses_come_back_canonical() {
    for text in ["10.0.0.1:80", "[fd99::2]:443"] {
        let address: SocketAddr = text.parse().expect("an address");
        assert_eq!(SocketAddr::from(Endpoint::from(address)), address);
    }
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().expect("an address");
    assert_eq!(SocketAddr::from(Endpoint::from(mapped)), "10.0.0.1:80".parse().expect("an address"));
}
