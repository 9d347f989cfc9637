//! Puts the plugin on a node and keeps it there: the binary, what it asks the API server with, and its place in the chain.
//!
//! The configuration comes last and goes first: at no time it names a binary that is not there. What another writes (the
//! network's own installer, at its restart or upgrade) is looked at every second and put right.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::TYPE;
use super::chain::{self, Entry};

/// How often is looked whether another has rewritten the configuration. What starts meanwhile is enrolled without the
/// plugin.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What the plugin asks the API server with. No runtime takes it for a configuration.
const KUBECONFIG: &str = "nodemesh-kubeconfig";
const AUTHORITY: &str = "nodemesh-ca.crt";
/// What a single plugin's configuration is kept under while a list stands for it.
const KEPT: &str = ".nodemesh-kept";
/// Where a pod finds its own account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where on the node. The same paths as there: the runtime reads what is written into the configuration.
#[derive(Clone, Debug)]
pub struct Places {
    /// /etc/cni/net.d
    pub conf: PathBuf,
    /// /opt/cni/bin
    pub bin: PathBuf,
    /// Where the agent answers.
    pub socket: PathBuf,
}

/// Installs, and keeps it so until `end`. Everything stays in place then.
///
/// # Errors
/// The binary cannot be put in place.
pub async fn keep(places: &Places, end: impl Future<Output = ()>) -> io::Result<()> {
    install_binary(&places.bin)?;
    let mut told = String::new();
    let mut end = std::pin::pin!(end);
    loop {
        match ensure(places) {
            Ok(Some(changed)) => tracing::info!(file = %changed.display(), "the plugin is in the chain"),
            Ok(None) => told.clear(),
            Err(reason) if reason != told => {
                tracing::warn!(reason, "the plugin is not in the chain: trying again");
                told = reason;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = &mut end => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// One look: everything in place. The configuration that was changed, if one was.
///
/// # Errors
/// Why the plugin is not in the chain.
pub fn ensure(places: &Places) -> Result<Option<PathBuf>, String> {
    if !places.bin.join(TYPE).exists() {
        install_binary(&places.bin).map_err(|error| format!("{}: {error}", places.bin.display()))?;
    }
    let kubeconfig = write_kubeconfig(&places.conf, Path::new(ACCOUNT), &server_of_environment())?;
    let entry = Entry { socket: text(&places.socket), kubeconfig: kubeconfig.as_deref().map(text) };
    insert(&places.conf, &entry)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Puts the plugin into the configuration that the runtime takes: the first by name.
fn insert(directory: &Path, entry: &Entry) -> Result<Option<PathBuf>, String> {
    let first = configurations(directory)?.into_iter().next();
    let first = first.ok_or_else(|| format!("{} has no network's configuration yet", directory.display()))?;
    let about = |reason: String| format!("{}: {reason}", first.display());
    let read = read(&first).map_err(about)?;
    if is_list(&first) {
        let Some(changed) = chain::insert(&read, entry).map_err(about)? else { return Ok(None) };
        write(&first, &changed).map_err(|error| about(error.to_string()))?;
        return Ok(Some(first));
    }
    let list = chain::list_of(&read).map_err(about)?;
    let list = chain::insert(&list, entry).map_err(about)?.unwrap_or(list);
    let place = first.with_extension("conflist");
    write(&place, &list).map_err(|error| about(error.to_string()))?;
    // The single one sorts before the list: it must not be found any more.
    fs::rename(&first, kept(&first)).map_err(|error| about(error.to_string()))?;
    Ok(Some(place))
}

/// Takes everything off the node again: configuration, then the rest. What was changed.
///
/// # Errors
/// What could not be removed; the binary stays where a configuration may name it.
pub fn uninstall(conf: &Path, bin: &Path) -> Result<Vec<PathBuf>, String> {
    let mut changed = Vec::new();
    for path in configurations(conf)?.into_iter().filter(|path| is_list(path)) {
        let about = |reason: String| format!("{}: {reason}", path.display());
        // What cannot be read names no plugin.
        let Some(without) = read(&path).ok().as_ref().and_then(chain::remove) else { continue };
        let single = kept(&path.with_extension("conf"));
        let is_its_list = read(&single).and_then(|conf| chain::list_of(&conf)).is_ok_and(|list| list == without);
        if is_its_list {
            fs::rename(&single, path.with_extension("conf")).map_err(|error| about(error.to_string()))?;
            fs::remove_file(&path).map_err(|error| about(error.to_string()))?;
        } else {
            write(&path, &without).map_err(|error| about(error.to_string()))?;
        }
        changed.push(path);
    }
    for path in [conf.join(KUBECONFIG), conf.join(AUTHORITY), bin.join(TYPE)] {
        match fs::remove_file(&path) {
            Ok(()) => changed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    Ok(changed)
}

/// The configurations of a directory as runtimes take them: by name, the first counts.
fn configurations(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", directory.display())),
    };
    let is_one = |path: &PathBuf| {
        path.extension()
            .and_then(|ending| ending.to_str())
            .is_some_and(|ending| ["conf", "conflist", "json"].contains(&ending))
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_one).collect();
    paths.sort();
    Ok(paths)
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "conflist")
}

fn kept(single: &Path) -> PathBuf {
    let mut name = single.as_os_str().to_owned();
    name.push(KEPT);
    name.into()
}

fn read(path: &Path) -> Result<Value, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

/// Over what is there, in one step, with its mode.
fn write(path: &Path, value: &Value) -> io::Result<()> {
    let mode = fs::metadata(path).map(|metadata| metadata.mode() & 0o777).unwrap_or(0o644);
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    replace(path, mode, &text)
}

fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let unnamed = directory.join(format!(".{}.nodemesh-new", name.to_string_lossy()));
    let _ = fs::remove_file(&unnamed);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&unnamed)?;
    // Whatever the umask says.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unnamed, path)
}

/// This very binary, under the plugin's name: a runtime that starts it meanwhile starts the one or the other, whole.
fn install_binary(directory: &Path) -> io::Result<()> {
    let own = fs::read("/proc/self/exe")?;
    let place = directory.join(TYPE);
    if fs::read(&place).is_ok_and(|there| there == own) {
        return Ok(());
    }
    replace(&place, 0o755, &own)
}

/// Where the API server is, as pods are told.
fn server_of_environment() -> Option<String> {
    let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".into());
    Some(if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") })
}

/// Writes what the plugin asks the API server with, for root alone, whenever the account's token was renewed. None where
/// this is no pod.
fn write_kubeconfig(conf: &Path, account: &Path, server: &Option<String>) -> Result<Option<PathBuf>, String> {
    let Some(server) = server else { return Ok(None) };
    let Ok(token) = fs::read_to_string(account.join("token")) else { return Ok(None) };
    let authority =
        fs::read(account.join("ca.crt")).map_err(|error| format!("{}/ca.crt: {error}", account.display()))?;
    let (path, authority_path) = (conf.join(KUBECONFIG), conf.join(AUTHORITY));
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {"server": server, "certificate-authority": authority_path}}],
        "users": [{"name": TYPE, "user": {"token": token.trim()}}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": TYPE}}],
        "current-context": "local",
    });
    let config = serde_json::to_vec_pretty(&config).map_err(|error| error.to_string())?;
    for (path, content) in [(&authority_path, &authority), (&path, &config)] {
        if !fs::read(path).is_ok_and(|there| there == *content) {
            replace(path, 0o600, content).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;
    const BRIDGE: &str = r#"{"cniVersion":"0.3.1","name":"net","type":"bridge","ipam":{"type":"host-local"}}"#;

    struct Node {
        directory: tempfile::TempDir,
    }

    impl Node {
        fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for part in ["conf", "bin", "account"] {
                fs::create_dir(directory.path().join(part)).unwrap();
            }
            let node = Self { directory };
            files.iter().for_each(|(name, text)| fs::write(node.conf().join(name), text).unwrap());
            node
        }

        fn conf(&self) -> PathBuf {
            self.directory.path().join("conf")
        }

        fn bin(&self) -> PathBuf {
            self.directory.path().join("bin")
        }

        fn insert(&self) -> Result<Option<String>, String> {
            let entry = Entry { socket: "/run/s".into(), kubeconfig: None };
            let changed = insert(&self.conf(), &entry)?;
            Ok(changed.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()))
        }

        fn files(&self) -> Vec<(String, Value)> {
            let entries = fs::read_dir(self.conf()).unwrap().flatten();
            let mut files: Vec<_> = entries
                .map(|entry| {
                    (entry.file_name().to_string_lossy().into_owned(), read(&entry.path()).unwrap_or_default())
                })
                .collect();
            files.sort_by(|one, other| one.0.cmp(&other.0));
            files
        }
    }

    fn json_of(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_first_list_gets_it_and_is_as_before_without_it() {
        let node = Node::new(&[("10-flannel.conflist", FLANNEL), ("99-loopback.conf", BRIDGE), ("README", "no")]);
        let before = node.files();
        fs::set_permissions(node.conf().join("10-flannel.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(node.insert(), Ok(Some("10-flannel.conflist".into())));
        assert_eq!(node.insert(), Ok(None));
        let mode = fs::metadata(node.conf().join("10-flannel.conflist")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        // The network's own installer writes it anew.
        fs::write(node.conf().join("10-flannel.conflist"), FLANNEL).unwrap();
        assert_eq!(node.insert(), Ok(Some("10-flannel.conflist".into())));
        install_binary(&node.bin()).unwrap();
        uninstall(&node.conf(), &node.bin()).unwrap();
        assert_eq!(node.files(), before);
        assert!(!node.bin().join(TYPE).exists());
        assert_eq!(uninstall(&node.conf(), &node.bin()), Ok(Vec::new()), "once more");
    }

    #[test]
    fn a_single_plugin_becomes_a_list_and_itself_again() {
        let node = Node::new(&[("10-bridge.conf", BRIDGE)]);
        let before = node.files();
        assert_eq!(node.insert(), Ok(Some("10-bridge.conflist".into())));
        let first = configurations(&node.conf()).unwrap().remove(0);
        let types =
            read(&first).unwrap()["plugins"].as_array().unwrap().iter().map(|p| p["type"].clone()).collect::<Vec<_>>();
        assert_eq!(types, ["bridge", TYPE]);
        assert_eq!(node.insert(), Ok(None));
        uninstall(&node.conf(), &node.bin()).unwrap();
        assert_eq!(node.files(), before);
    }

    #[test]
    fn a_network_that_comes_later_or_moves_first_is_followed() {
        let node = Node::new(&[]);
        assert!(node.insert().unwrap_err().contains("no network's configuration yet"));
        fs::write(node.conf().join("10-flannel.conflist"), &FLANNEL[..20]).unwrap();
        assert!(node.insert().is_err(), "half written");
        fs::write(node.conf().join("10-flannel.conflist"), FLANNEL).unwrap();
        assert!(node.insert().unwrap().is_some());
        fs::write(node.conf().join("05-cilium.conflist"), FLANNEL).unwrap();
        assert_eq!(node.insert(), Ok(Some("05-cilium.conflist".into())));
        uninstall(&node.conf(), &node.bin()).unwrap();
        for (name, content) in node.files() {
            assert_eq!(content, json_of(FLANNEL), "{name}");
        }
    }

    #[test]
    fn the_kubeconfig_follows_the_token_and_is_roots_alone() {
        let node = Node::new(&[]);
        let account = node.directory.path().join("account");
        let server = Some("https://10.96.0.1:443".to_string());
        assert_eq!(write_kubeconfig(&node.conf(), &account, &server), Ok(None), "no pod");
        fs::write(account.join("ca.crt"), "authority").unwrap();
        for token in ["first", "second"] {
            fs::write(account.join("token"), format!("{token}\n")).unwrap();
            let path = write_kubeconfig(&node.conf(), &account, &server).unwrap().unwrap();
            assert_eq!(read(&path).unwrap()["users"][0]["user"]["token"], token);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(configurations(&node.conf()), Ok(Vec::new()), "no runtime takes it for a network");
        uninstall(&node.conf(), &node.bin()).unwrap();
        assert_eq!(node.files(), []);
    }
}
