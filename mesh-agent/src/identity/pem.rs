//! What is said of PEM that cannot be read. The library's own words have the bytes that it stumbled over, and those may be a
//! key: one whose newlines were lost is a single line, all of it in the message.

use rustls::pki_types::pem::Error;

/// What is wrong, without anything of what the text holds.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => "nothing of that kind is in it".to_string(),
        Error::Base64Decode(_) => "what is between BEGIN and END is not base64".to_string(),
        _ => "it is no PEM: -----BEGIN …----- and -----END …----- are on lines of their own".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn a_key_that_cannot_be_read_is_not_told() {
        let key = KeyPair::generate().unwrap().serialize_pem();
        let of_key = key.lines().nth(1).unwrap();
        let (begin, end) = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----");
        for broken in [
            key.replace('\n', " "),
            key.replace('\n', "\\n"),
            key.replace('\n', ""),
            key.replace(end, ""),
            key.replace(begin, ""),
            key.replace("-----END", "----END"),
            key.replace(of_key, &format!("{of_key}!")),
        ] {
            let error = PrivateKeyDer::from_pem_slice(broken.as_bytes()).expect_err(&broken);
            let said = words(&error);
            // As a text, or as numbers of bytes.
            let numbers: Vec<String> = of_key.bytes().map(|byte| byte.to_string()).collect();
            assert!(!said.contains(&of_key[..8]) && !said.contains(&numbers[..4].join(", ")), "{said}");
            assert!(said.len() < 100, "{said}");
        }
    }
}
