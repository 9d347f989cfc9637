#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_agent::fuzzing::run("authorizer_answer", input));
