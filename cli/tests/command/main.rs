//! The command as its users run it: arguments in, exit status, standard output and standard error out.
//!
//! No test makes an access to the hardware, whoever runs it: those that get past an interlock name a CPU that no kernel has, which is
//! found out before a port is opened.

mod about;
mod bad_input;
mod code;
mod common;
mod dell;
mod dry_run;
mod exec;
mod interlocks;
mod json;
mod logs;
mod looks;
mod pipes;
mod ports;
mod replay;
mod smi;
mod specification;
mod terminal;
mod traces;
mod vmware;
