//! What came of it: a line for each binary, and one for each that was not run.

use super::tools::{Outcome, Tool};

#[derive(Default)]
pub struct Report {
    rows: Vec<(Tool, Outcome)>,
    skipped: Vec<(Tool, String, &'static str)>,
    not_run: Vec<(Tool, String)>,
    trouble: Vec<(Tool, String)>,
}

impl Report {
    /// A binary that was run.
    pub fn add(&mut self, tool: Tool, outcome: Outcome) {
        let Outcome { binary, passed, seconds, problem } = &outcome;
        let verdict = if problem.is_some() { "FAILED" } else { "ok" };
        println!("{:<9} {binary:<20} {passed:>4} tests {seconds:>6.1} s  {verdict}", tool.name());
        self.rows.push((tool, outcome));
    }

    /// A binary, or tests of it, that a tool does not run.
    pub fn skipped(&mut self, tool: Tool, what: String, why: &'static str) {
        self.skipped.push((tool, what, why));
    }

    /// A tool that is not there.
    pub fn not_run(&mut self, tool: Tool, why: &str, is_failure: bool) {
        println!("{}: NOT RUN: {why}", tool.name());
        self.not_run.push((tool, why.to_owned()));
        if is_failure {
            self.failed(tool, "it could not be run");
        }
    }

    /// A tool that came to nothing.
    pub fn failed(&mut self, tool: Tool, why: &str) {
        self.trouble.push((tool, why.to_owned()));
    }

    fn skipped_by_reason(&self) -> Vec<(Tool, &'static str, Vec<&str>)> {
        let mut reasons: Vec<(Tool, &'static str, Vec<&str>)> = Vec::new();
        for (tool, what, why) in &self.skipped {
            match reasons.iter_mut().find(|reason| (reason.0, reason.1) == (*tool, *why)) {
                Some(reason) => reason.2.push(what),
                None => reasons.push((*tool, why, vec![what])),
            }
        }
        reasons
    }

    /// Prints the tables; returns whether nothing has failed.
    pub fn print(&self) -> bool {
        println!("\n{:<9} {:<20} {:>6} {:>8}  result", "tool", "test binary", "tests", "seconds");
        for (tool, Outcome { binary, passed, seconds, problem }) in &self.rows {
            let result = problem.as_deref().unwrap_or("ok");
            println!("{:<9} {binary:<20} {passed:>6} {seconds:>8.1}  {result}", tool.name());
        }
        for (tool, why) in &self.not_run {
            println!("{:<9} NOT RUN: {why}", tool.name());
        }
        println!("thread    NOT RUN: ThreadSanitizer and MemorySanitizer take a standard library built with them");
        println!("memory             (-Zbuild-std, and its sources), which a toolchain does not come with");
        for skipped in self.skipped_by_reason() {
            let (tool, why, ref what) = skipped;
            println!("\n{} skips what {why}:\n  {}", tool.name(), what.join(", "));
        }
        for (tool, why) in &self.trouble {
            println!("\n{}: FAILED: {why}", tool.name());
        }
        self.trouble.is_empty() && self.rows.iter().all(|(_, outcome)| outcome.problem.is_none())
    }
}
