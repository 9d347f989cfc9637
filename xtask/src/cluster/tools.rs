//! An image of this machine's own programs, for the pods of tests: curl, nginx, redis, wrk, a shell.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::oci::{Entry, Image};

/// Its name.
pub const TOOLS: &str = "localhost/tools:1";

const PROGRAMS: [&str; 6] = [
    "/usr/bin/curl",
    "/usr/sbin/nginx",
    "/usr/bin/redis-server",
    "/usr/bin/redis-cli",
    "/usr/bin/wrk",
    "/usr/bin/h2load",
];

/// Says whose answer it is, and to whom.
const NGINX: &str = r#"daemon off;
worker_processes 1;
error_log stderr;
pid /tmp/nginx.pid;
events {}
http {
  access_log /dev/stdout;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  keepalive_requests 1000000;
  server {
    listen 8080;
    location / { return 200 "$hostname to $remote_addr\n"; }
  }
}
"#;

/// Packs the image.
pub fn pack(archive: &Path) -> Result<()> {
    let busybox = "/usr/bin/busybox";
    let applets = Command::new(busybox).arg("--list").output().context("asking busybox for its applets")?;
    let mut entries = vec![Entry::File(busybox.into(), "/bin/busybox".to_string()), Entry::Scratch("/tmp".to_string())];
    let applets = String::from_utf8(applets.stdout)?;
    let applets = applets.lines().filter(|applet| *applet != "busybox");
    entries.extend(applets.map(|applet| Entry::Link("busybox", format!("/bin/{applet}"))));
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        libraries.extend(libraries_of(program)?);
        entries.push(Entry::File(program.into(), program.to_string()));
    }
    // Where the loader looks for what a program names without a path.
    entries.extend(libraries.into_iter().map(|path| {
        let place = path.display().to_string();
        Entry::File(path, place)
    }));
    entries.push(Entry::Text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n".into(), "/etc/passwd".into()));
    entries.push(Entry::Text("root:x:0:\nnogroup:x:65534:\n".into(), "/etc/group".into()));
    entries.push(Entry::Text(NGINX.into(), "/etc/nginx/nginx.conf".into()));
    entries.push(Entry::Scratch("/var/log/nginx".to_string()));
    let config = json!({"Env": ["PATH=/usr/sbin:/usr/bin:/bin"], "Cmd": ["sleep", "2147483647"]});
    Image { names: vec![TOOLS.to_string()], config, entries }.write(archive)
}

/// The libraries that a program is loaded with, and its loader.
fn libraries_of(program: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("starting ldd")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "ldd {program}: {said}{}", String::from_utf8_lossy(&output.stderr));
    // "libz.so.1 => /lib/…/libz.so.1 (0x…)" or "/lib64/ld-linux-x86-64.so.2 (0x…)"
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}
