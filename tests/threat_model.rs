//! The threat model promises what tests hold: each sentence of a promise names one that is there.

use std::fs;
use std::path::Path;

const MODEL: &str = include_str!("../docs/threat-model.md");

/// The items of the lists under the heading `title`, each on one line.
fn items(title: &str) -> Vec<String> {
    let section = MODEL.split("\n## ").find_map(|section| section.strip_prefix(title)).expect("the section is there");
    let mut items: Vec<String> = Vec::new();
    for line in section.lines() {
        if let Some(item) = line.strip_prefix("- ") {
            items.push(item.to_owned());
        } else if let (Some(rest), Some(item)) = (line.strip_prefix("  "), items.last_mut()) {
            item.push(' ');
            item.push_str(rest);
        }
    }
    items
}

/// The parts of a text in parentheses that are nothing but code: names of tests.
fn names(sentence: &str) -> Vec<&str> {
    let parentheses = sentence.split('(').skip(1).filter_map(|rest| rest.split_once(')')).map(|(inside, _)| inside);
    let only_code =
        parentheses.filter(|inside| inside.split(", ").all(|name| name.starts_with('`') && name.ends_with('`')));
    only_code.flat_map(|inside| inside.split(", ")).map(|name| name.trim_matches('`')).collect()
}

/// Splits at full stops; those within code are none.
fn sentences(item: &str) -> Vec<String> {
    let item = item.replace(".** ", "**. ");
    let mut sentences = vec![String::new()];
    let mut code = false;
    for (at, c) in item.char_indices() {
        code ^= c == '`';
        sentences.last_mut().unwrap().push(c);
        if c == '.' && !code && item[at + 1..].starts_with(' ') {
            sentences.push(String::new());
        }
    }
    sentences.iter().map(|sentence| sentence.trim().to_owned()).filter(|sentence| !sentence.is_empty()).collect()
}

/// Whether there is a test of this name.
fn is_there(name: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if let Some(target) = name.strip_prefix("fuzz/") {
        // The fuzz targets are not in the published package.
        return !root.join("fuzz").exists() || root.join(format!("fuzz/fuzz_targets/{target}.rs")).exists();
    }
    if let Some((file, check)) = name.strip_prefix("hw/").and_then(|name| name.split_once("::")) {
        let source = fs::read_to_string(root.join(format!("hw/{file}.rs")));
        return !root.join("hw").exists() || source.is_ok_and(|source| source.contains(&format!("fn {check}(")));
    }
    let Some((file, test)) = name.split_once("::") else { return false };
    let file = match (file.strip_prefix("cli/"), file.starts_with("src/")) {
        // Neither is the command in the library's package.
        (Some(_), _) if !root.join("cli").exists() => return true,
        (Some(file), _) => format!("cli/tests/command/{file}.rs"),
        (None, true) => format!("{file}.rs"),
        (None, false) => format!("tests/{file}.rs"),
    };
    let Ok(source) = fs::read_to_string(root.join(file)) else { return false };
    let is_test = |before: &str| {
        let mut attributes = before.trim_end().lines().rev().take_while(|line| line.trim_start().starts_with("#["));
        attributes.any(|line| line.trim() == "#[test]")
    };
    source.match_indices(&format!("fn {test}(")).any(|(at, _)| is_test(&source[..at]))
}

#[test]
fn every_promise_names_its_test() {
    let items = items("What is promised");
    assert!(items.len() > 40, "{} promises", items.len());
    let mut problems = Vec::new();
    for item in &items {
        for sentence in sentences(item) {
            let names = names(&sentence);
            if names.is_empty() && !is_heading(&sentence) {
                problems.push(format!("names no test: {}", sentence));
            }
            problems.extend(names.iter().filter(|name| !is_there(name)).map(|name| format!("is not there: {name}")));
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

/// `**Registers**.`, before a sentence.
fn is_heading(sentence: &str) -> bool {
    sentence.starts_with("**") && sentence.ends_with("**.") && sentence.matches("**").count() == 2
}

#[test]
fn the_test_can_fail() {
    assert!(is_there("threat_model::every_promise_names_its_test"));
    assert!(!is_there("threat_model::no_such_test") && !is_there("no_such_file::every_promise_names_its_test"));
    assert!(!is_there("threat_model::is_heading"), "no test");
    assert!(!is_there("cli/interlocks::no_such_test") || !Path::new(env!("CARGO_MANIFEST_DIR")).join("cli").exists());
    assert_eq!(names("It holds (`a::b`, `fuzz/c`), (not) always (in `d::e`)."), ["a::b", "fuzz/c"]);
    let item = "**Registers.** One (`a::b.c`). Two";
    assert_eq!(sentences(item), ["**Registers**.", "One (`a::b.c`).", "Two"]);
    assert!(is_heading("**Registers**.") && !is_heading("**One** (`a::b.c`).") && !is_heading("Two"));
}
