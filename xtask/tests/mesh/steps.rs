//! Each step of the demo as a test of its own, in both families.

use anyhow::Result;
use xtask::demo::stage::Stage;
use xtask::demo::steps::by_id;
use xtask::rings::can_use_kernel;
use xtask::testbed::Family;

fn step(id: &str, family: Family) -> Result<()> {
    if !can_use_kernel(&format!("step {id}, {family}")) {
        return Ok(());
    }
    let mut stage = Stage::build(family)?;
    if id == "encrypted" {
        stage.record_plain()?;
    }
    if id == "cost" {
        stage.measure_plain()?;
    }
    stage.start_mesh()?;
    let seen = (by_id(id)?.run)(&mut stage, &|_| ()).map_err(|error| stage.bed.explain(error))?;
    println!("{seen}");
    Ok(())
}

macro_rules! steps {
    ($($id:literal => $name:ident),* $(,)?) => {
        $(mod $name {
            #[test]
            fn ipv4() -> anyhow::Result<()> {
                super::step($id, super::Family::V4)
            }

            #[test]
            fn ipv6() -> anyhow::Result<()> {
                super::step($id, super::Family::V6)
            }
        })*

        #[test]
        fn no_step_is_without_a_test() {
            let steps: Vec<&str> = xtask::demo::steps::STEPS.iter().map(|step| step.id).collect();
            assert_eq!(steps, [$($id),*]);
        }
    };
}

steps! {
    "capture" => capture,
    "encrypted" => encrypted,
    "source-address" => source_address,
    "deny" => deny,
    "strict" => strict,
    "rotate" => rotate,
    "crash" => crash,
    "unenrol" => unenrol,
    "cost" => cost,
}
