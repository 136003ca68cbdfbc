//! What a trace says about itself.

/// Where, when and on what a trace was recorded: what the first line of a trace file says. An empty text says nothing.
///
/// The texts are for people and for programs that compare traces; the crate itself neither fills nor interprets them.
///
/// ```
/// use ioemul::trace::{Trace, TraceHeader};
/// let header = TraceHeader::default().on("hardware").machine("ProLiant DL360 Gen9").port_source("FADT");
/// let trace = Trace::new().with_header(header);
/// assert_eq!(trace.header().on, "hardware");
/// assert!(trace.header().bios.is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TraceHeader {
    /// What answered the accesses: `hardware`, or the name of a machine of device models.
    pub on: String,
    /// The machine, as its DMI product name has it.
    pub machine: String,
    /// Its firmware: vendor, version, date.
    pub bios: String,
    /// When the recording began: RFC 3339, in UTC, as in `2026-11-28T14:41:20Z`.
    pub date: String,
    /// The processor's brand string.
    pub cpu: String,
    /// The port that raises SMIs, if that is what was recorded.
    pub smi_port: Option<u16>,
    /// Where that port was taken from: `FADT`, a command line.
    pub port_source: String,
    /// Codes that were kept away from that port, and their names: `(0xf1, "ACPI_DISABLE")`.
    pub reserved_codes: Vec<(u8, String)>,
}

macro_rules! setters {
    ($($field:ident: $doc:literal,)*) => {
        impl TraceHeader {
            $(
                #[doc = $doc]
                pub fn $field(mut self, text: impl Into<String>) -> Self {
                    self.$field = text.into();
                    self
                }
            )*
        }
    };
}

setters! {
    on: "Says what answered the accesses.",
    machine: "Names the machine.",
    bios: "Names its firmware.",
    date: "Says when the recording began.",
    cpu: "Names the processor.",
    port_source: "Says where the port was taken from.",
}
