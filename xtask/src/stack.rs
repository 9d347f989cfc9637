//! How much stack the kernel programs take. The kernel that they are tried on may allow more than others that run them: a
//! chain of calls has 512 bytes, of which in older ones, 6.1 among them, each function takes 32 or a multiple.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

/// MAX_BPF_STACK
const MOST: usize = 512;
/// What a function takes at least, and a multiple of.
const STEP: usize = 32;
/// The section of functions that programs call.
const CALLED: &str = ".text";

/// The register of the stack.
const FRAME: u8 = 10;
/// BPF_CALL with BPF_PSEUDO_CALL as its source.
const CALL: u8 = 0x85;
const OF_PROGRAM: u8 = 1;
/// Two instructions long.
const LOAD_64: u8 = 0x18;
/// dst = src
const MOVE: u8 = 0xbf;
/// dst += immediate
const ADD: u8 = 0x07;

/// Refuses an object with a program that some kernel would refuse.
pub fn check(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let object = object::File::parse(&*bytes).with_context(|| format!("reading {}", path.display()))?;
    let mut functions = Vec::new();
    for symbol in object.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let Some(section) = symbol.section_index() else { continue };
        let section = object.section_by_index(section)?;
        let (at, size) = (symbol.address() as usize, symbol.size() as usize);
        let code = section.data()?.get(at..at + size).context("a function ends behind its section")?;
        functions.push((section.name()? == CALLED, symbol.name()?, Frame::of(code)));
    }
    let called = functions.iter().filter(|(is_called, ..)| *is_called);
    for (_, name, frame) in called.clone() {
        ensure!(!frame.calls, "{name} calls another function: xtask/src/stack.rs does not follow such chains");
    }
    let deepest = called.map(|(.., frame)| frame.rounded()).max().unwrap_or_default();
    for (_, name, frame) in functions.iter().filter(|(is_called, ..)| !is_called) {
        let takes = frame.rounded() + if frame.calls { deepest } else { 0 };
        ensure!(
            takes <= MOST,
            "{name} takes {takes} bytes of stack with what it calls; kernels such as 6.1 give {MOST}"
        );
    }
    Ok(())
}

/// Of one function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Frame {
    bytes: usize,
    /// It calls another function of the object.
    calls: bool,
}

impl Frame {
    fn of(code: &[u8]) -> Self {
        let (mut frame, mut address_in, mut is_second) = (Self::default(), None, false);
        for instruction in code.as_chunks::<8>().0 {
            if std::mem::take(&mut is_second) {
                continue;
            }
            let [operation, registers, offset @ .., _, _, _, _] = *instruction;
            let [.., a, b, c, d] = *instruction;
            let (to, from) = (registers & 0xf, registers >> 4);
            let (offset, immediate) = (i16::from_le_bytes(offset), i32::from_le_bytes([a, b, c, d]));
            let below = match (operation & 7, operation) {
                (1, _) if from == FRAME => i32::from(offset),
                (2 | 3, _) if to == FRAME => i32::from(offset),
                (_, ADD) if address_in == Some(to) => immediate,
                _ => 0,
            };
            frame.bytes = frame.bytes.max(below.min(0).unsigned_abs() as usize);
            frame.calls |= operation == CALL && from == OF_PROGRAM;
            address_in = (operation == MOVE && from == FRAME).then_some(to);
            is_second = operation == LOAD_64;
        }
        frame
    }

    fn rounded(self) -> usize {
        self.bytes.next_multiple_of(STEP).max(STEP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_deep_as_what_is_touched() {
        // (instructions, bytes, calls)
        let table: [(&[[u8; 8]], usize, bool); 7] = [
            (&[[0x95, 0, 0, 0, 0, 0, 0, 0]], 0, false),
            // *(u64 *)(r10 - 8) = r1
            (&[[0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0]], 8, false),
            // r1 = *(u64 *)(r10 - 256)
            (&[[0x79, 0xa1, 0x00, 0xff, 0, 0, 0, 0]], 256, false),
            // *(u32 *)(r1 + 8) = 1
            (&[[0x62, 0x01, 0x08, 0x00, 1, 0, 0, 0]], 0, false),
            // r2 = r10; r2 += -504
            (&[[0xbf, 0xa2, 0, 0, 0, 0, 0, 0], [0x07, 0x02, 0, 0, 0x08, 0xfe, 0xff, 0xff]], 504, false),
            // r2 = r10; r3 += -504
            (&[[0xbf, 0xa2, 0, 0, 0, 0, 0, 0], [0x07, 0x03, 0, 0, 0x08, 0xfe, 0xff, 0xff]], 0, false),
            // call a function; then what looks like a store is the second half of a load
            (
                &[[0x85, 0x10, 0, 0, 1, 0, 0, 0], [0x18, 1, 0, 0, 0, 0, 0, 0], [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0]],
                0,
                true,
            ),
        ];
        for (code, bytes, calls) in table {
            assert_eq!(Frame::of(code.as_flattened()), Frame { bytes, calls }, "{code:x?}");
        }
        assert_eq!([0, 8, 32, 33, 504].map(|bytes| Frame { bytes, calls: false }.rounded()), [32, 32, 32, 64, 512]);
    }
}
