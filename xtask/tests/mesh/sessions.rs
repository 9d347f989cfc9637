//! Long sessions of ordinary servers: Redis, PostgreSQL, gRPC.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, PodSpec, Process, ServiceSpec, Testbed, eventually, greeter_session, postgres_programs,
    postgres_url, psql, start_greeter, start_postgres, start_redis,
};

use crate::pair::lines;

const LONG: Duration = Duration::from_secs(180);
const PATIENCE: Duration = Duration::from_secs(60);

/// A client on one node, servers behind one Service on the other.
fn bed(test: &str, start: impl Fn(&Testbed) -> Result<()>) -> Result<Option<Testbed>> {
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let mut bed = Testbed::of_two_nodes("pair")?;
    bed.add_pod(PodSpec::new("pair", "client", "n1"))?;
    bed.add_pod(PodSpec::new("pair", "server", "n2"))?;
    let service = ServiceSpec::new("pair", "server").port("redis", 6379, 6379);
    bed.add_service(service.port("postgres", 5432, 5432).port("grpc", 50051, 50051))?;
    start(&bed)?;
    bed.start_agents(&AgentOptions::default())?;
    Ok(Some(bed))
}

#[test]
fn redis_sessions_last_and_pipelines_are_answered() -> Result<()> {
    let Some(bed) = bed("Redis", |bed| start_redis(bed.pod("server")))? else { return Ok(()) };
    for family in Family::BOTH {
        let address = bed.service("server").socket(family, 6379);
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let session = ["redis", &address.to_string(), "--interval=5", "--rounds=400"];
        let mut session = bed.pod("client").spawn_probe("redis", &session)?;
        let benchmark =
            ["redis-benchmark", "-h", &ip, "-p", &port, "-q", "-c", "50", "-n", "50000", "-t", "set,get,lrange_100"];
        let said = bed.pod("client").run(&[&benchmark[..], &["-P", "16", "-d", "512"]].concat(), LONG)?;
        let said = said.expect_ok("redis-benchmark").map_err(|error| bed.explain(error))?;
        println!(
            "{family}: {}",
            said.replace('\r', "\n").lines().filter(|l| l.contains("per second")).collect::<Vec<_>>().join("; ")
        );
        ended(&mut session)?;
    }
    Ok(())
}

#[test]
fn postgresql_transactions_copies_and_notifications() -> Result<()> {
    let Some(bed) = bed("PostgreSQL", |bed| start_postgres(bed.pod("server")))? else { return Ok(()) };
    for family in Family::BOTH {
        let server = bed.service("server").socket(family, 5432);
        let run = |script: &str| -> Result<String> {
            psql(bed.pod("client"), server, script)?.expect_ok("psql").map_err(|error| bed.explain(error))
        };
        let tables = "drop table if exists t; create table t (n int primary key, text text);";
        run(tables)?;
        let counted = run("begin; insert into t values (1, 'kept'); savepoint s; insert into t values (2, 'undone');
            rollback to s; commit; begin; delete from t; rollback; select count(*), min(text) from t;")?;
        ensure!(counted.trim() == "1|kept", "{family}: {counted}");

        // Eight megabytes there by COPY FROM, and back by COPY TO.
        let (up, down) = (bed.pod("client").dir.join("up.tsv"), bed.pod("client").dir.join("down.tsv"));
        let rows: String = (10..80_010).map(|n| format!("{n}\t{n:0>95}\n")).collect();
        std::fs::write(&up, &rows)?;
        let copies = format!(
            "delete from t;\n\\copy t from '{}'\n\\copy (select * from t order by n) to '{}'\nselect count(*) from t;",
            up.display(),
            down.display()
        );
        let copied = run(&copies)?;
        ensure!(copied.trim() == "80000", "{family}: {copied}");
        ensure!(std::fs::read(&down)? == rows.as_bytes(), "{family}: another table came back");

        // A session that waits in silence, and hears of it when another speaks.
        let url = postgres_url(server);
        // It sleeps on until the other has spoken: how long that takes is the machine's matter.
        let spoken =
            "do $$ begin while not exists (select from t where n = 0) loop perform pg_sleep(0.1); end loop; end $$";
        let silence = ["-c", "listen c", "-c", "select pg_sleep(3)", "-c", spoken, "-c", "select 'listened'"];
        let listener = [&["psql", "-X", "-A", "-t"][..], &silence, &[&url]].concat();
        let mut listener = bed.pod("client").spawn("listener", &listener)?;
        eventually(PATIENCE, "the listener to listen", || {
            listener.check_running()?;
            Ok(listener.log().contains("LISTEN").then_some(()))
        })?;
        run("begin; notify c, 'news of the other'; insert into t values (0, 'spoken'); commit;")?;
        let status = listener.wait(PATIENCE)?;
        let heard = listener.log();
        ensure!(status.success() && heard.contains("news of the other") && heard.contains("listened"), "{heard}");

        let pgbench = postgres_programs()?.join("pgbench");
        let (pgbench, ip, port) = (pgbench.to_string_lossy(), server.ip().to_string(), server.port().to_string());
        let fixed = [&pgbench, "-h", &ip, "-p", &port, "-U", "postgres"];
        let client = bed.pod("client");
        client.run(&[&fixed[..], &["-i", "-q", "-s", "1", "postgres"]].concat(), LONG)?.expect_ok("pgbench -i")?;
        let load = ["-c", "8", "-j", "2", "-T", "3", "-n", "postgres"];
        for way in [&[][..], &["-C"]] {
            let said = client.run(&[&fixed[..], way, &load].concat(), LONG)?.expect_ok("pgbench")?;
            ensure!(said.contains("number of failed transactions: 0 "), "{family} {way:?}: {said}");
            println!("{family} {way:?}: {}", said.lines().filter(|l| l.starts_with("tps")).collect::<String>());
        }
    }
    Ok(())
}

#[test]
fn grpc_calls_of_every_kind_share_one_connection() -> Result<()> {
    let Some(bed) = bed("gRPC", |bed| start_greeter(bed.pod("server")))? else { return Ok(()) };
    for family in Family::BOTH {
        let server = bed.service("server").socket(family, 50051);
        let mut session = greeter_session(bed.pod("client"), server, 3)?;
        ended(&mut session).map_err(|error| bed.explain(error))?;
        println!("{family}: {}", session.log().lines().last().unwrap_or_default());
    }
    Ok(())
}

/// Waits for a session's end, which must be its own.
fn ended(session: &mut Process) -> Result<()> {
    let status = session.wait(LONG)?;
    let last = lines(&session.log()).pop().with_context(|| format!("the session said: {}", session.log()))?;
    ensure!(status.success() && last["ended"] == true, "{}", session.log());
    Ok(())
}
