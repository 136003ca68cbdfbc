//! Puts our table in the place of Xen's own stub.
//!
//! Xen is under the GPL: none of its code, and none of its comments, is in this repository. This program is ours. It finds
//! what it replaces in the source that Debian distributes, by the *names* of functions, types and variables (and by one call) alone, and puts
//! code of ours there. A name that is not found, or found too often, is an error: then Xen has changed.

use std::ops::Range;

use anyhow::{Context, Result, ensure};

/// The file with the emulation of a guest's privileged instructions, and that with the quirks of machines.
pub const EMULATION: &str = "arch/x86/pv/emul-priv-op.c";
pub const QUIRKS: &str = "arch/x86/ioport_emulate.c";
/// What says which objects there are.
pub const MAKEFILE: &str = "arch/x86/pv/Makefile";

/// What stands in the place of 90 lines that write a stub for each access: a look-up in a table that is never written.
/// Bit 0 of the quirks is ProLiant's, the only one of the table; whether the machine is one, Xen's own list says. All of its
/// accesses are at the port that Xen has permitted already; of other quirks, `ioemul_accesses` would have to be asked.
const SETUP: &str = "\
IOEMUL_ASSERT_REGISTERS(struct cpu_user_regs, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rflags);

static io_emul_stub_t *io_emul_stub_setup(struct priv_op_ctxt *ctxt, u8 opcode, unsigned int port, unsigned int bytes)
{
    const struct cpu_user_regs *regs = ctxt->ctxt.regs;

    return ioemul_resolve(ioemul_index(opcode, bytes, port), regs->rax, regs->rdx, ioemul_handle_quirk);
}
";

/// The emulation, with the look-up. An access that faulted becomes the guest's #GP.
pub fn emulation(original: &str) -> Result<String> {
    let mut text = original.to_owned();
    text.replace_range(function(&text, "io_emul_stub_setup")?, SETUP);
    // The helpers in assembler, and the page that the stub was written to, have no other user.
    for name in ["load_guest_gprs", "save_guest_gprs"] {
        text.replace_range(statement(&text, "void", name)?, "");
    }
    text.replace_range(statement(&text, "char", "*io_emul_stub")?, "");
    text.replace_range(statement(&text, "if", "ctxt.io_emul_stub")?, "");
    text.replace_range(
        statement(&text, "typedef", "io_emul_stub_t(")?,
        "#include \"ioemul_table.h\"\n\ntypedef unsigned long io_emul_stub_t(void *registers);\n",
    );
    // Both calls: that of IN and that of OUT.
    let calls = text.matches("io_emul(ctxt->regs);").count();
    ensure!(calls == 2, "the stub is called in {calls} places, not in 2");
    Ok(text.replace("io_emul(ctxt->regs);", "if ( io_emul(ctxt->regs) )\n            return X86EMUL_UNHANDLEABLE;"))
}

/// The quirks, without the one that writes machine code: the list of machines stays.
pub fn quirks(original: &str) -> Result<String> {
    let mut text = original.to_owned();
    text.replace_range(function(&text, "ioemul_handle_proliant_quirk")?, "");
    Ok(text)
}

/// The table's object in the place of that of Xen's helpers.
pub fn makefile(original: &str) -> Result<String> {
    ensure!(original.matches("gpr_switch.o").count() == 1, "gpr_switch.o is not built once");
    Ok(original.replace("gpr_switch.o", "ioemul_table.o"))
}

/// The definition of a function: from the line that starts its declaration to the end of the line of its closing brace.
fn function(text: &str, name: &str) -> Result<Range<usize>> {
    let code = blanked(text);
    let call = format!("{name}(");
    let mut found = code.match_indices(&call).filter_map(|(at, _)| {
        let arguments = closed(&code, at + name.len())?;
        let body = arguments + code[arguments..].find(|c: char| !c.is_ascii_whitespace())?;
        let end = closed(&code, body)?;
        // A definition is no expression: nothing but a type stands before it.
        let before = code[..at].rfind([';', '}', '{']).map_or(0, |at| at + 1);
        Some((before, end))
    });
    let (before, end) = found.next().with_context(|| format!("Xen defines no function {name}"))?;
    ensure!(found.next().is_none(), "Xen defines more than one function {name}");
    Ok(start_of_text(text, &code, before)..end_of_line(text, end))
}

/// The statement or declaration that starts with one word and contains a second text, with its semicolon.
fn statement(text: &str, first: &str, contains: &str) -> Result<Range<usize>> {
    let code = blanked(text);
    let mut found = code.match_indices(contains).filter_map(|(at, _)| {
        let line = code[..at].rfind('\n').map_or(0, |at| at + 1);
        code[line..].trim_start().starts_with(first).then_some((line, at))
    });
    let (line, at) = found.next().with_context(|| format!("Xen has no `{first} … {contains}`"))?;
    ensure!(found.next().is_none(), "Xen has more than one `{first} … {contains}`");
    let end = at + code[at..].find(';').context("a statement has no end")?;
    Ok(line..end_of_line(text, end))
}

/// The text with comments, strings and lines of the preprocessor blanked out, so that every brace left is one; places are the
/// same. A name is taken in any line but those.
fn blanked(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let (mut at, mut line_start) = (0, true);
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let len = match rest[0] {
            b'/' if rest.starts_with(b"/*") => find(rest, 2, b"*/").map_or(rest.len(), |end| end + 2),
            b'/' if rest.starts_with(b"//") => find(rest, 2, b"\n").unwrap_or(rest.len()),
            b'#' if line_start => directive(rest),
            quote @ (b'"' | b'\'') => quoted(rest, quote),
            byte => {
                line_start = byte == b'\n' || line_start && byte.is_ascii_whitespace();
                at += 1;
                continue;
            }
        };
        bytes[at..at + len].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at += len;
    }
    String::from_utf8(bytes).expect("whole tokens are blanked")
}

fn find(text: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    Some(from + text[from..].windows(what.len()).position(|window| window == what)?)
}

/// The length of a line of the preprocessor, with those that continue it.
fn directive(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(end) = find(text, at, b"\n") {
        if text[end - 1] != b'\\' {
            return end;
        }
        at = end + 1;
    }
    text.len()
}

fn quoted(text: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// The place behind the bracket that closes the one at `open`, which is `(` or `{`.
fn closed(code: &str, open: usize) -> Option<usize> {
    let (opening, closing) = match code.as_bytes().get(open)? {
        b'(' => (b'(', b')'),
        b'{' => (b'{', b'}'),
        _ => return None,
    };
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        depth += i32::from(byte == opening) - i32::from(byte == closing);
        if depth == 0 {
            return Some(at + 1);
        }
    }
    None
}

/// The first line from `at` on that holds code.
fn start_of_text(text: &str, code: &str, at: usize) -> usize {
    let first = at + code[at..].find(|c: char| !c.is_ascii_whitespace()).unwrap_or(0);
    text[..first].rfind('\n').map_or(0, |at| at + 1)
}

fn end_of_line(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |len| at + len + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
int other(void);

/* wanted() { */
#define X(y) do { \\
    wanted(y); {
static int *wanted(char *a,
                   int b)
{
    if ( other() ) { a = \"}\"; b = '}'; } // }
#undef X
    return a;
}

int caller(void) { return *wanted(0, 1); }
    if ( a.b )
        c(a.b);
";

    #[test]
    fn a_function_is_found_by_its_name_among_braces_that_are_none() {
        let found = &TEXT[function(TEXT, "wanted").unwrap()];
        assert!(found.starts_with("static int *wanted(char *a,\n"), "{found}");
        assert!(found.ends_with("    return a;\n}\n"), "{found}");
        assert!(function(TEXT, "other").is_err(), "a declaration is not a definition");
    }

    #[test]
    fn a_statement_ends_with_its_semicolon() {
        assert_eq!(&TEXT[statement(TEXT, "if", "( a.b").unwrap()], "    if ( a.b )\n        c(a.b);\n");
        assert!(statement(TEXT, "if", "nothing").is_err());
    }
}
