//! TABLE.h: what C needs to know.

use std::fmt;

use super::HostTable;

pub(super) struct Header<'t>(pub &'t HostTable<'t>);

impl fmt::Display for Header<'_> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
