//! Embeds the BPF object where `cargo xtask build` names one; a plain `cargo build` needs none.

fn main() {
    println!("cargo:rerun-if-env-changed=NODEMESH_BPF_OBJECT");
    if let Some(object) = std::env::var_os("NODEMESH_BPF_OBJECT") {
        println!("cargo:rerun-if-changed={}", object.to_string_lossy());
        println!("cargo:rustc-cfg=nodemesh_embed_object");
    }
}
