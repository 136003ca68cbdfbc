//! The shell scripts that try the command `ioemul` in a Linux guest, and how their rows are written.

/// A script, `hw/guest/cli/<name>.sh`, and the machine that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// A virtual machine with all devices and with two processors.
    Usual,
    /// A machine that does not say that it is virtual, with an Intel processor and without a VMware backdoor.
    Physical,
    /// A kernel with `lockdown=integrity`.
    LockedDown,
}

impl Script {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Usual, Self::Physical, Self::LockedDown];

    /// The script's file, without its directory and `.sh`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Usual => "usual",
            Self::Physical => "physical",
            Self::LockedDown => "locked-down",
        }
    }
}

/// One command line of a script: a line like `row 3 'ioemul out 0xcf9 6 --yes'`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Whether the row depends on this machine (`here` in place of `row`): it has to fail on the machine of the negative
    /// control, where every other row has to hold.
    pub here: bool,
    /// The exit code that the command has to end with.
    pub code: i32,
    /// What the shell executes.
    pub command: &'a str,
}

impl<'a> Row<'a> {
    /// The rows of a script, in order; a line that begins like a row and is none comes as the error.
    pub fn of(script: &'a str) -> impl Iterator<Item = Result<Self, &'a str>> {
        script.lines().filter_map(|line| {
            let (here, rest) = match (line.strip_prefix("row "), line.strip_prefix("here ")) {
                (Some(rest), _) => (false, rest),
                (_, Some(rest)) => (true, rest),
                _ => return None,
            };
            let parse = || {
                let (code, quoted) = rest.split_once(' ')?;
                let command = quoted.strip_prefix('\'')?.strip_suffix('\'')?;
                (!command.contains('\'')).then_some(Self { here, code: code.parse().ok()?, command })
            };
            Some(parse().ok_or(line))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_the_shell_reads_it() {
        let script =
            "# row 1 'no'\nrow 3 'a | b'\nf() {\n    row 1 'not at the left margin'\n}\nhere 0 'test \"$x\" = 1'\n";
        let mut rows = Row::of(script);
        assert_eq!(rows.next(), Some(Ok(Row { here: false, code: 3, command: "a | b" })));
        assert_eq!(rows.next(), Some(Ok(Row { here: true, code: 0, command: "test \"$x\" = 1" })));
        assert_eq!(rows.next(), None);
    }

    #[test]
    fn what_looks_like_a_row_and_is_none_is_not_passed_over() {
        for line in ["row 'a'", "row 0 a", "here x 'a'", "row 0 'a' 'b'", "row 0 'a' # why"] {
            assert_eq!(Row::of(line).next(), Some(Err(line)));
        }
    }
}
