//! What is written as text or as a bitmap, against the obvious: instructions and registers read, printed and read again, and
//! a TSS's I/O bitmap port by port.
//!
//! Input: a byte that chooses, and the text or the bitmap.
#![no_main]

use std::collections::HashSet;
use std::sync::LazyLock;

use ioemul::{Gprs, IoInsn, PortSet, Width};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    match (choice % 4, str::from_utf8(rest)) {
        (0, _) => bitmap(rest),
        // Repeated, for maps as long as a real one.
        (1, _) => bitmap(&rest.repeat(8300 / rest.len().max(1))),
        (2, Ok(text)) => instruction(text),
        (3, Ok(text)) => registers(text),
        _ => {}
    }
});

fn bitmap(map: &[u8]) {
    let set = PortSet::from_tss_bitmap(map);
    // SDM vol. 1, 19.5.2: the processor reads two bytes, and denies where the second is beyond the segment's limit.
    let mut permitted = vec![false; 0x1_0003];
    for port in 0..=0xffff {
        permitted[port] = port / 8 + 1 < map.len() && map[port / 8] >> (port % 8) & 1 == 0;
    }
    for port in 0..=u16::MAX {
        for &width in Width::ALL {
            let all = permitted[port.into()..][..width.bytes().into()].iter().all(|permitted| *permitted);
            assert_eq!(set.permits(port, width), all, "{port:#x}, {width:?}");
        }
    }
    assert_eq!(PortSet::from_tss_bitmap(set.as_tss_bitmap()), set);
    assert_eq!(set.as_tss_bitmap().last(), Some(&0xff));
}

/// Every form, as it is written.
static WRITTEN: LazyLock<HashSet<String>> = LazyLock::new(|| IoInsn::all().map(|insn| insn.to_string()).collect());

fn instruction(text: &str) {
    let Ok(insn) = text.parse::<IoInsn>() else {
        // What is not read is not what is written, either.
        assert!(!WRITTEN.contains(text), "{text}");
        return;
    };
    let written = insn.to_string();
    assert_eq!(written.parse(), Ok(insn), "{text}");
    assert!(written.is_ascii() && written.len() <= 32);
    // But for spaces and the digits of a port, there is one way to write it.
    assert_eq!(normal(text), normal(&written));
}

/// Without spaces, the port in decimal.
fn normal(text: &str) -> String {
    let bare = text.split_whitespace().collect::<String>();
    let Some((before, rest)) = bare.split_once("0x") else { return bare };
    let (digits, after) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
    format!("{before}{}{after}", u8::from_str_radix(digits, 16).unwrap())
}

/// The registers' names, as they would be written down: name, word, first bit, bits.
fn parts() -> Vec<(String, usize, u32, u32)> {
    let mut parts = Vec::new();
    for (word, name) in Gprs::NAMES.iter().enumerate() {
        parts.push((name.to_string(), word, 0, 64));
        match name.strip_prefix('r').unwrap() {
            "flags" => {}
            number if number.parse::<u8>().is_ok() => {
                for (letter, bits) in [("d", 32), ("w", 16), ("b", 8)] {
                    parts.push((format!("{name}{letter}"), word, 0, bits));
                }
            }
            rest => {
                parts.push((format!("e{rest}"), word, 0, 32));
                parts.push((rest.to_string(), word, 0, 16));
                match rest.strip_suffix('x') {
                    Some(letter) => {
                        parts.push((format!("{letter}l"), word, 0, 8));
                        parts.push((format!("{letter}h"), word, 8, 8));
                    }
                    None => parts.push((format!("{rest}l"), word, 0, 8)),
                }
            }
        }
    }
    parts
}

fn registers(text: &str) {
    let parts = parts();
    let find =
        |name: &str| parts.iter().find(|part| part.0 == name).map(|(_, word, shift, bits)| (*word, *shift, *bits));
    let separator = |letter: char| letter == ',' || letter.is_ascii_whitespace();
    // The same, word by word.
    let (mut gprs, mut model, mut readable) = (Gprs::default(), [0; 16], true);
    for item in text.split(separator).filter(|item| !item.is_empty()) {
        let name = item.split('=').next().unwrap_or_default();
        assert_eq!(gprs.get(name).is_some(), find(name).is_some(), "{name}");
        let value = item.split_once('=').and_then(|(_, value)| number(value));
        let fits = |&(_, _, bits): &(usize, u32, u32)| value.is_some_and(|value| value <= u64::MAX >> (64 - bits));
        let before = gprs;
        let set = value.is_some_and(|value| gprs.set(name, value).is_ok());
        match find(name).filter(fits) {
            Some((word, shift, bits)) if set => {
                let (mask, value) = (u64::MAX >> (64 - bits), value.unwrap());
                model[word] = model[word] & !(mask << shift) | value << shift;
                assert_eq!((gprs.get(name), gprs.to_words()), (Some(value), model));
            }
            part => {
                assert!(part.is_none() && !set, "{item}");
                assert_eq!(gprs, before, "{item}");
                readable = false;
            }
        }
    }
    match text.parse::<Gprs>() {
        Ok(read) => assert!(readable && read.to_words() == model, "{text}"),
        Err(error) => assert!(!readable, "{error}"),
    }
}

/// A number of 64 bits, digit by digit.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    if digits.is_empty() {
        return None;
    }
    digits
        .chars()
        .try_fold(0_u64, |number, digit| number.checked_mul(radix)?.checked_add(digit.to_digit(radix as u32)?.into()))
}
